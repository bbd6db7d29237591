package packed

import (
	"encoding/binary"
	"unsafe"
)

// A chunk holds entries one after the other. What has been written is not changed any more.
type chunk struct {
	buf  []byte
	id   uint32
	tail int // where the next entry goes
	live int // bytes of entries that the index names

	queue      *queue
	prev, next *chunk
}

// cost is what ch takes of the budget.
func (ch *chunk) cost() int64 { return int64(cap(ch.buf)) + int64(unsafe.Sizeof(chunk{})) }

// A queue is chunks in the order in which they were begun. New entries go to the newest.
type queue struct {
	oldest, newest *chunk
	last           *chunk // newest, or where it has been
	chunks         int
	bytes          int64 // that they cost
}

func (q *queue) push(ch *chunk) {
	ch.prev = q.last
	if q.last != nil {
		q.last.next = ch
	} else {
		q.oldest = ch
	}
	q.last, q.newest = ch, ch
	q.chunks++
	q.bytes += ch.cost()
}

func (q *queue) remove(ch *chunk) {
	if ch.prev != nil {
		ch.prev.next = ch.next
	} else {
		q.oldest = ch.next
	}
	if ch.next != nil {
		ch.next.prev = ch.prev
	} else {
		q.last = ch.prev
	}
	if q.newest == ch {
		q.newest = nil
	}
	ch.prev = nil // next stays, for who walks along
	q.chunks--
	q.bytes -= ch.cost()
}

// An entry is a byte of flags, the lengths of its key and value as varints, its version, when it was born, when its
// freshness and it itself end, if that is so, the key and the value.
const (
	hasFresh = 1 << iota
	hasEnds  // other than Fresh
)

func flagsOf(m *Meta) (flags byte, times int) {
	if m.Fresh != 0 || m.Ends != 0 {
		flags, times = hasFresh, 8
		if m.Ends != m.Fresh {
			flags, times = flags|hasEnds, 16
		}
	}
	return flags, times
}

func uvarintLen(n int) int {
	size := 1
	for ; n >= 0x80; n >>= 7 {
		size++
	}
	return size
}

func sizeOf(key string, value []byte, m *Meta) int {
	_, times := flagsOf(m)
	return 1 + uvarintLen(len(key)) + uvarintLen(len(value)) + 16 + times + len(key) + len(value)
}

func encode(b []byte, key string, value []byte, m *Meta) {
	flags, _ := flagsOf(m)
	b[0] = flags
	n := 1
	n += binary.PutUvarint(b[n:], uint64(len(key)))
	n += binary.PutUvarint(b[n:], uint64(len(value)))
	put := func(v uint64) {
		binary.LittleEndian.PutUint64(b[n:], v)
		n += 8
	}
	put(m.Version)
	put(uint64(m.Born))
	if flags&hasFresh != 0 {
		put(uint64(m.Fresh))
	}
	if flags&hasEnds != 0 {
		put(uint64(m.Ends))
	}
	n += copy(b[n:], key)
	copy(b[n:], value)
}

// lengths returns where the fixed part of the entry at offset begins, and how long key and value are.
func (ch *chunk) lengths(offset int) (at, key, value int, flags byte) {
	b := ch.buf[offset:]
	flags, at = b[0], 1
	k, n := uint64(b[1]), 1
	if k >= 0x80 {
		k, n = binary.Uvarint(b[1:])
	}
	at += n
	v, n := uint64(b[at]), 1
	if v >= 0x80 {
		v, n = binary.Uvarint(b[at:])
	}
	return offset + at + n, int(k), int(v), flags
}

func timesOf(flags byte) int { return int(flags&hasFresh)*8 + int(flags&hasEnds)*4 }

func (ch *chunk) size(offset int) int {
	at, key, value, flags := ch.lengths(offset)
	return at - offset + 16 + timesOf(flags) + key + value
}

func (ch *chunk) key(offset int) string {
	at, key, _, flags := ch.lengths(offset)
	at += 16 + timesOf(flags)
	return unsafe.String(unsafe.SliceData(ch.buf[at:at+key:at+key]), key)
}

// is reports whether the entry at offset is that of key.
func (ch *chunk) is(offset int, key string) bool {
	at, n, _, flags := ch.lengths(offset)
	at += 16 + timesOf(flags)
	return n == len(key) && string(ch.buf[at:at+n]) == key
}

// value returns the value of the entry at offset, and when its freshness ends, or it itself.
func (ch *chunk) value(offset int) (data []byte, fresh int64) {
	at, key, value, flags := ch.lengths(offset)
	if flags&hasFresh != 0 {
		if fresh = int64(binary.LittleEndian.Uint64(ch.buf[at+16:])); fresh == 0 {
			fresh = int64(binary.LittleEndian.Uint64(ch.buf[at+24:]))
		}
	}
	at += 16 + timesOf(flags) + key
	return ch.buf[at : at+value : at+value], fresh
}

func (ch *chunk) entry(offset int) (e Entry) {
	at, key, value, flags := ch.lengths(offset)
	e.Version = binary.LittleEndian.Uint64(ch.buf[at:])
	e.Born = int64(binary.LittleEndian.Uint64(ch.buf[at+8:]))
	at += 16
	if flags&hasFresh != 0 {
		e.Fresh = int64(binary.LittleEndian.Uint64(ch.buf[at:]))
		e.Ends = e.Fresh
		at += 8
	}
	if flags&hasEnds != 0 {
		e.Ends = int64(binary.LittleEndian.Uint64(ch.buf[at:]))
		at += 8
	}
	at += key
	e.Value = ch.buf[at : at+value : at+value]
	return e
}
