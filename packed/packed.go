// Package packed is a bounded map from strings to bytes for many entries: they lie packed in append-only chunks behind an
// index without pointers, so that an entry costs little more than its bytes, and the garbage collector has next to
// nothing to look at.
//
// Reading takes no lock and copies nothing. A value that is handed out is a view into its chunk; chunks are never written
// to twice, so it stays as it is for as long as somebody holds it, and with it the chunk, beyond the bound.
//
// What goes when there is no more room is chosen by S3-FIFO (Yang et al., "FIFO queues are all you need for cache
// eviction", SOSP 2023): a queue is a sequence of chunks here, and evicting is working off the oldest chunk.
package packed

import (
	"encoding/binary"
	"hash/maphash"
	"iter"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"
)

// A Cache is a bounded map. Its methods may be called concurrently, but New makes it.
type Cache struct {
	seed   maphash.Seed
	max    atomic.Int64
	used   atomic.Int64 // of max: chunks, indexes, ghosts
	lent   func() int64
	now    func() int64
	shards []shard
}

// Meta is what a Cache keeps with a value. Times are by the clock of the Cache.
type Meta struct {
	Version uint64
	Born    int64
	Fresh   int64 // 0: for ever
	Ends    int64 // when the entry is dropped; 0: never
}

// An Entry is a value and what is kept with it. Value must not be changed.
type Entry struct {
	Meta
	Value []byte
}

// Stats are the numbers of a Cache.
type Stats struct {
	Entries int64
	Evicted int64 // that had not ended
	Expired int64 // that had
}

// A shard has an index and two queues of its own. There are several only so that writers do not wait for each other.
type shard struct {
	cache *Cache
	index atomic.Pointer[index]
	table atomic.Pointer[[]atomic.Pointer[chunk]] // the chunks by the low bits of their ids

	mu       sync.Mutex // guards what follows, and every change of what is above
	nextID   uint32
	chunks   int
	small    queue // what has come lately
	main     queue // what has been asked for again
	ghosts   ghosts
	endings  endings
	used     atomic.Int64 // of the budget
	entries  int64
	evicted  int64
	expired  int64
	promoted int // bytes that the current eviction has carried over
	_        [64]byte
}

// perShard is how many bytes of the bound there must be for each shard: small caches keep their hit ratio.
const perShard = 1 << 20

// New returns a Cache of max bytes whose clock is now. Of the bound, lent says how much is used elsewhere; it may be nil.
func New(max int64, now func() int64, lent func() int64) *Cache {
	n := 1
	for n < 64 && int64(n)*2*perShard <= max {
		n *= 2
	}
	if lent == nil {
		lent = func() int64 { return 0 }
	}
	c := &Cache{seed: maphash.MakeSeed(), now: now, lent: lent, shards: make([]shard, n)}
	c.max.Store(max)
	for i := range c.shards {
		sh := &c.shards[i]
		sh.cache = c
		sh.reset()
	}
	return c
}

func (c *Cache) hash(key string) uint64 { return maphash.String(c.seed, key) }

// of returns the shard of a hash: by bits that neither its index nor its tags use.
func (c *Cache) of(h uint64) *shard { return &c.shards[(h>>32)&uint64(len(c.shards)-1)] }

// Get returns the entry of key, unless it has ended, and takes note that it is in use.
func (c *Cache) Get(key string) (Entry, bool) {
	h := c.hash(key)
	at, s, ch := c.of(h).find(h, key)
	if at == nil {
		return Entry{}, false
	}
	e := ch.entry(offsetOf(s))
	if e.Ends != 0 && e.Ends <= c.now() {
		return Entry{}, false
	}
	use(at, s)
	return e, true
}

// Value is Get for who wants to know no more than when the entry's freshness ends, which is not later than its own end;
// it does not look whether that has been.
func (c *Cache) Value(key string) (value []byte, fresh int64, ok bool) {
	h := c.hash(key)
	at, s, ch := c.of(h).find(h, key)
	if at == nil {
		return nil, 0, false
	}
	use(at, s)
	value, fresh = ch.value(offsetOf(s))
	return value, fresh, true
}

// use takes note that the entry of a slot is in use.
func use(at *atomic.Uint64, s uint64) {
	if s&freqMask < freqMask { // else many have used it, and write nothing
		at.CompareAndSwap(s, s+1)
	}
}

// Peek is Get without taking note.
func (c *Cache) Peek(key string) (Entry, bool) {
	h := c.hash(key)
	at, s, ch := c.of(h).find(h, key)
	if at == nil {
		return Entry{}, false
	}
	e := ch.entry(offsetOf(s))
	return e, e.Ends == 0 || e.Ends > c.now()
}

// Put keeps value under key, if decide says so: it is called with what there is of key, under a lock, and returns what
// is to be kept with the value. Put reports false, and nothing is left of key, if the entry is too large. It may exceed
// the bound: Shrink is for when the caller holds no lock.
func (c *Cache) Put(key string, value []byte, decide func(old Meta, held bool) (m Meta, put bool)) (kept bool) {
	h := c.hash(key)
	sh := c.of(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.put(h, key, value, decide)
}

// Delete drops the entry of key, if there is one and drop says so, which is called under a lock.
func (c *Cache) Delete(key string, drop func(Meta) bool) bool {
	h := c.hash(key)
	sh := c.of(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	at, s, ch := sh.find(h, key)
	if at == nil || !drop(ch.entry(offsetOf(s)).Meta) {
		return false
	}
	sh.drop(h, at, s, ch)
	return true
}

// Clear drops everything, however much it is, at once.
func (c *Cache) Clear() {
	for i := range c.shards {
		sh := &c.shards[i]
		sh.mu.Lock()
		sh.reset()
		sh.mu.Unlock()
	}
}

// SetMax changes the bound, and evicts until it is kept.
func (c *Cache) SetMax(max int64) {
	c.max.Store(max)
	c.shrink(nil)
}

// Shrink evicts while more than the bound is used, here and by whom the rest is lent.
func (c *Cache) Shrink() { c.shrink(nil) }

// Max is the bound.
func (c *Cache) Max() int64 { return c.max.Load() }

// Used is how much of the bound is used.
func (c *Cache) Used() int64 { return c.used.Load() }

// Largest is the largest share of the bound that an entry may take; others are not kept.
const Largest = 8

// Stats returns a snapshot.
func (c *Cache) Stats() (st Stats) {
	for i := range c.shards {
		sh := &c.shards[i]
		sh.mu.Lock()
		st.Entries += sh.entries
		st.Evicted += sh.evicted
		st.Expired += sh.expired
		sh.mu.Unlock()
	}
	return st
}

// Keys returns the keys, those of one shard at a time as they are at one moment.
func (c *Cache) Keys() iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := range c.shards {
			for _, key := range c.shards[i].keys() {
				if !yield(key) {
					return
				}
			}
		}
	}
}

func (c *Cache) over() bool { return c.used.Load()+c.lent() > c.max.Load() }

// shrink evicts while the bound is exceeded: from the shard that uses most of a few, of which first is one.
func (c *Cache) shrink(first *shard) {
	for idle := 0; c.over() && idle < 2*len(c.shards); {
		most := first
		for range 2 {
			sh := &c.shards[rand.IntN(len(c.shards))]
			if most == nil || sh.used.Load() > most.used.Load() {
				most = sh
			}
		}
		most.mu.Lock()
		freed := most.evict()
		most.mu.Unlock()
		if freed {
			idle = 0
		} else {
			idle++
			first = &c.shards[idle%len(c.shards)]
		}
	}
}

func (sh *shard) use(n int64) {
	sh.used.Add(n)
	sh.cache.used.Add(n)
}

// reset makes the shard empty.
func (sh *shard) reset() {
	sh.use(-sh.used.Load())
	idx, table := newIndex(1), make([]atomic.Pointer[chunk], 8)
	sh.index.Store(idx)
	sh.table.Store(&table)
	sh.small, sh.main, sh.chunks, sh.entries = queue{}, queue{}, 0, 0
	sh.ghosts, sh.endings = ghosts{}, endings{}
	sh.use(idx.bytes() + int64(len(table))*8)
}

// find returns the slot of key, what was in it, and the chunk it named. It takes no lock: what a slot names is not
// changed any more, and no other chunk bears the name for a long time after.
func (sh *shard) find(h uint64, key string) (at *atomic.Uint64, slot uint64, ch *chunk) {
	idx := sh.index.Load()
	tag := h >> tagShift
	for n, b := 0, h&idx.mask; n < len(idx.buckets); n, b = n+1, (b+1)&idx.mask {
		bucket := &idx.buckets[b]
		for i := range bucket.slots {
			at := &bucket.slots[i]
			for s := at.Load(); s != 0 && s>>tagShift == tag; {
				if ch := sh.chunk(chunkOf(s)); ch != nil {
					if ch.is(offsetOf(s), key) {
						return at, s, ch
					}
					break
				}
				again := at.Load() // the chunk has gone, and the slot before it
				if again == s {
					break
				}
				s = again
			}
		}
		if bucket.passed.Load() == 0 {
			break
		}
	}
	return nil, 0, nil
}

// chunk returns the chunk of that id, or nil if it has gone.
func (sh *shard) chunk(id uint32) *chunk {
	table := *sh.table.Load()
	if ch := table[int(id)&(len(table)-1)].Load(); ch != nil && ch.id == id {
		return ch
	}
	return nil
}

func (sh *shard) put(h uint64, key string, value []byte, decide func(Meta, bool) (Meta, bool)) bool {
	at, s, old := sh.find(h, key)
	var was Meta
	held := at != nil
	if held {
		was = old.entry(offsetOf(s)).Meta
		held = was.Ends == 0 || was.Ends > sh.cache.now()
	}
	if !held {
		was = Meta{}
	}
	m, put := decide(was, held)
	if !put {
		return false
	}
	size := sizeOf(key, value, &m)
	if int64(size) > sh.cache.max.Load()/Largest {
		if at != nil {
			sh.drop(h, at, s, old)
		}
		return false
	}
	q, freq := &sh.small, uint64(0)
	if at != nil {
		q, freq = old.queue, s&freqMask
	} else if sh.ghosts.take(h) {
		q = &sh.main
	}
	ch, offset := sh.append(q, size)
	encode(ch.buf[offset:offset+size], key, value, &m)
	ch.live += size
	slot := slotOf(h, ch.id, offset, freq)
	if at != nil {
		at.Store(slot)
		sh.dead(old, old.size(offsetOf(s)))
	} else {
		sh.insert(h, slot)
		sh.entries++
	}
	if m.Ends != 0 {
		sh.endings.add(m.Ends, m.Born, slot)
	}
	return true
}

// drop takes an entry out of the index, and makes its bytes dead.
func (sh *shard) drop(h uint64, at *atomic.Uint64, s uint64, ch *chunk) {
	at.Store(0)
	sh.index.Load().left(h, at)
	sh.entries--
	sh.dead(ch, ch.size(offsetOf(s)))
}

// dead takes note that size bytes of ch are of no use any more, and lets go of ch if all are.
func (sh *shard) dead(ch *chunk, size int) {
	ch.live -= size
	if ch.live == 0 && ch != ch.queue.newest {
		sh.release(ch)
	}
}

func (sh *shard) insert(h uint64, slot uint64) {
	idx := sh.index.Load()
	if sh.entries+1 > idx.most() {
		idx = sh.reindex(2 * len(idx.buckets))
	}
	idx.insert(h, slot)
}

// reindex replaces the index by one of n buckets. Readers go on with the old one.
func (sh *shard) reindex(n int) *index {
	old, idx := sh.index.Load(), newIndex(n)
	for i := range old.buckets {
		for j := range old.buckets[i].slots {
			if s := old.buckets[i].slots[j].Load(); s != 0 {
				idx.insert(sh.cache.hash(sh.chunk(chunkOf(s)).key(offsetOf(s))), s)
			}
		}
	}
	sh.index.Store(idx)
	sh.use(idx.bytes() - old.bytes())
	return idx
}

// append makes room for size bytes at the end of q.
func (sh *shard) append(q *queue, size int) (ch *chunk, offset int) {
	if q.newest == nil || len(q.newest.buf)-q.newest.tail < size || q.newest.tail > maxOffset {
		if old := q.newest; old != nil && old.live == 0 {
			q.newest = nil
			sh.release(old)
		}
		sh.newChunk(q, size)
	}
	ch = q.newest
	offset = ch.tail
	ch.tail += size
	return ch, offset
}

// newChunk adds to q a chunk with room for size bytes at least.
func (sh *shard) newChunk(q *queue, size int) {
	share := min(sh.cache.max.Load()/int64(len(sh.cache.shards)), 2*sh.used.Load())
	usual := 256 // small beside the shard, so that evicting one is evicting little; but for more than one entry if that can be
	for usual < maxChunk && (int64(usual) < share/128 || usual < 2*size && int64(usual) < share/32) {
		usual *= 2
	}
	buf := slices.Grow([]byte(nil), max(size, usual)) // as the allocator gives it
	ch := &chunk{buf: buf[:cap(buf)], queue: q}
	if size > usual/2 {
		ch.buf = buf[:size] // nobody else's: what is left of it would have been somebody's anyway
	}
	table := *sh.table.Load()
	if sh.chunks >= len(table)*3/4 {
		table = sh.retable(2 * len(table))
	}
	for {
		sh.nextID = (sh.nextID + 1) & maxID
		if at := &table[int(sh.nextID)&(len(table)-1)]; sh.nextID != 0 && at.Load() == nil {
			ch.id = sh.nextID
			at.Store(ch)
			break
		}
	}
	sh.chunks++
	q.push(ch)
	sh.use(ch.cost())
}

// release lets go of a chunk that nothing in the index names.
func (sh *shard) release(ch *chunk) {
	table := *sh.table.Load()
	table[int(ch.id)&(len(table)-1)].Store(nil)
	ch.queue.remove(ch)
	sh.chunks--
	sh.use(-ch.cost())
}

// The small queue takes a tenth of a shard, but leastSmall chunks at least: in a shard of few chunks, and the fewer the
// entries, what has come in would be gone before it could be asked for again. (12 was best over traces in caches of 13 to
// 1,000 entries, by bench/hitratio; larger ones never come to it.)
const smallShare, leastSmall = 10, 12

// evict frees memory, and reports false if there is nothing to free: what has ended goes first.
func (sh *shard) evict() bool {
	if sh.expire() || sh.trim() || sh.compact() {
		return true
	}
	sh.promoted = 0
	for {
		if sh.main.oldest == nil || sh.small.chunks > leastSmall && sh.small.bytes*smallShare > sh.small.bytes+sh.main.bytes {
			if sh.small.oldest == nil {
				return false
			}
			before := sh.used.Load()
			sh.workOff(&sh.small)
			if sh.used.Load() < before {
				return true
			}
			continue
		}
		before := sh.used.Load()
		sh.workOff(&sh.main)
		if sh.used.Load() < before {
			return true
		}
	}
}

// workOff empties the oldest chunk of q: what has been used stays, at the end of the main queue.
func (sh *shard) workOff(q *queue) {
	ch := q.oldest
	if ch == q.newest {
		q.newest = nil // nothing is added to it any more
	}
	now := sh.cache.now()
	stays := sh.promoted < int(sh.main.bytes+sh.small.bytes)/4
	for offset := 0; offset < ch.tail; {
		size := ch.size(offset)
		key := ch.key(offset)
		h := sh.cache.hash(key)
		if at, s, in := sh.find(h, key); at != nil && in == ch && offsetOf(s) == offset {
			e := ch.entry(offset)
			freq := s & freqMask
			switch {
			case e.Ends != 0 && e.Ends <= now:
				sh.expired++
				sh.out(h, at, ch, size)
			case q == &sh.small && freq >= 2 && stays:
				sh.carry(&sh.main, h, at, ch, offset, size, 0)
			case q == &sh.main && freq >= 1 && stays:
				sh.carry(&sh.main, h, at, ch, offset, size, freq-1)
			default:
				if q == &sh.small {
					sh.ghosts.add(h, sh)
				}
				sh.evicted++
				sh.out(h, at, ch, size)
			}
		}
		offset += size
	}
	sh.release(ch)
}

// out takes an entry of a chunk that is being worked off out of the index.
func (sh *shard) out(h uint64, at *atomic.Uint64, ch *chunk, size int) {
	at.Store(0)
	sh.index.Load().left(h, at)
	sh.entries--
	ch.live -= size
}

// carry copies an entry to the end of q.
func (sh *shard) carry(q *queue, h uint64, at *atomic.Uint64, from *chunk, offset, size int, freq uint64) {
	ch, to := sh.append(q, size)
	copy(ch.buf[to:to+size], from.buf[offset:offset+size])
	ch.live += size
	slot := slotOf(h, ch.id, to, freq)
	at.Store(slot)
	from.live -= size
	sh.promoted += size
	if e := ch.entry(to); e.Ends != 0 {
		sh.endings.add(e.Ends, e.Born, slot)
	}
}

// compact frees a chunk of which more than half is dead, if there is one: what lives moves to the end of its queue.
func (sh *shard) compact() bool {
	for _, q := range [...]*queue{&sh.main, &sh.small} {
		for ch := q.oldest; ch != nil && ch != q.newest; ch = ch.next {
			if ch.live*2 > ch.tail {
				continue
			}
			for offset := 0; offset < ch.tail && ch.live > 0; {
				size, key := ch.size(offset), ch.key(offset)
				h := sh.cache.hash(key)
				if at, s, in := sh.find(h, key); at != nil && in == ch && offsetOf(s) == offset {
					sh.carry(q, h, at, ch, offset, size, s&freqMask)
				}
				offset += size
			}
			sh.release(ch)
			return true
		}
	}
	return false
}

// expire drops what has ended, without looking for it, and reports whether that has freed anything.
func (sh *shard) expire() bool {
	before, now := sh.used.Load(), sh.cache.now()
	for _, slot := range sh.endings.due(now) {
		ch := sh.chunk(chunkOf(slot))
		if ch == nil {
			continue
		}
		offset := offsetOf(slot)
		key := ch.key(offset)
		h := sh.cache.hash(key)
		if at, s, in := sh.find(h, key); at != nil && in == ch && offsetOf(s) == offset {
			sh.expired++
			sh.drop(h, at, s, ch)
		}
	}
	return sh.used.Load() < before
}

// trim makes tables smaller that have been larger than they need be for long, and reports whether that has freed anything.
func (sh *shard) trim() bool {
	before := sh.used.Load()
	if idx := sh.index.Load(); len(idx.buckets) > 1 && sh.entries < idx.most()/4 {
		sh.reindex(len(idx.buckets) / 2)
	}
	if n := len(sh.ghosts.places); n > 16 && int64(n) > 8*sh.entries {
		sh.use(-int64(n) * 4)
		sh.ghosts = ghosts{}
	}
	if table := *sh.table.Load(); len(table) > 8 && sh.chunks < len(table)/8 {
		sh.retable(len(table) / 2)
	}
	return sh.used.Load() < before
}

// retable replaces the table of chunks by one of n places, or of more if two chunks would have the same.
func (sh *shard) retable(n int) []atomic.Pointer[chunk] {
	old := *sh.table.Load()
	for {
		table, ok := make([]atomic.Pointer[chunk], n), true
		for i := range old {
			if ch := old[i].Load(); ch != nil {
				at := &table[int(ch.id)&(n-1)]
				ok = ok && at.Load() == nil
				at.Store(ch)
			}
		}
		if ok {
			sh.use(int64(n-len(old)) * 8)
			sh.table.Store(&table)
			return table
		}
		n *= 2
	}
}

func (sh *shard) keys() []string {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	keys := make([]string, 0, sh.entries)
	idx := sh.index.Load()
	for i := range idx.buckets {
		for j := range idx.buckets[i].slots {
			if s := idx.buckets[i].slots[j].Load(); s != 0 {
				keys = append(keys, sh.chunk(chunkOf(s)).key(offsetOf(s)))
			}
		}
	}
	return keys
}

// An index says where the entry of a key is. A bucket is a cache line; what does not fit into its own goes to the next
// that has room, and is counted in all it passes, so that a search knows where to end and nothing ever moves. (After F14,
// Facebook's hash table.)
type index struct {
	buckets []bucket
	mask    uint64
}

type bucket struct {
	passed atomic.Uint64
	slots  [7]atomic.Uint64
}

func newIndex(n int) *index { return &index{make([]bucket, n), uint64(n - 1)} }

func (idx *index) bytes() int64 { return int64(len(idx.buckets)) * int64(unsafe.Sizeof(bucket{})) }

// most is how many entries it takes before it is made larger.
func (idx *index) most() int64 { return int64(len(idx.buckets)) * 6 }

func (idx *index) insert(h, slot uint64) {
	for b := h & idx.mask; ; b = (b + 1) & idx.mask {
		bucket := &idx.buckets[b]
		for i := range bucket.slots {
			if bucket.slots[i].Load() == 0 {
				bucket.slots[i].Store(slot)
				return
			}
		}
		bucket.passed.Add(1)
	}
}

// left takes note that the entry of that hash is in slot at no longer.
func (idx *index) left(h uint64, at *atomic.Uint64) {
	for b := h & idx.mask; ; b = (b + 1) & idx.mask {
		bucket := &idx.buckets[b]
		first, last := uintptr(unsafe.Pointer(&bucket.slots[0])), uintptr(unsafe.Pointer(&bucket.slots[6]))
		if p := uintptr(unsafe.Pointer(at)); first <= p && p <= last {
			return
		}
		bucket.passed.Add(^uint64(0))
	}
}

// A slot is 22 bits of the hash, 20 of the chunk's id, 20 of the offset in it, and 2 that count uses.
const (
	tagShift  = 42
	maxID     = 1<<20 - 1
	maxOffset = 1<<20 - 1
	maxChunk  = 1 << 20
	freqMask  = 3
)

func slotOf(h uint64, id uint32, offset int, freq uint64) uint64 {
	return h>>tagShift<<tagShift | uint64(id)<<22 | uint64(offset)<<2 | freq
}

func chunkOf(slot uint64) uint32 { return uint32(slot>>22) & maxID }
func offsetOf(slot uint64) int   { return int(slot>>2) & maxOffset }

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

// value returns the value of the entry at offset, and when its freshness ends.
func (ch *chunk) value(offset int) (data []byte, fresh int64) {
	at, key, value, flags := ch.lengths(offset)
	if flags&hasFresh != 0 {
		fresh = int64(binary.LittleEndian.Uint64(ch.buf[at+16:]))
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

// ghosts remember what has left the small queue lately, by hashes, so that it goes to the main one if it comes back. A
// place is 16 bits of a hash, and 16 of a clock that counts the ghosts.
type ghosts struct {
	places []uint32 // buckets of 4
	clock  uint32
}

func (g *ghosts) bucket(h uint64) []uint32 {
	n := uint64(len(g.places) / 4)
	b := (h & math.MaxUint32) * n >> 32
	return g.places[4*b : 4*b+4]
}

// unit is how many ghosts pass for one step of the clock: so many that a quarter of its range is their number.
func (g *ghosts) unit() uint32 { return max(uint32(len(g.places))>>14, 1) }

func (g *ghosts) age(place uint32) uint32 { return uint32(uint16(g.clock/g.unit()) - uint16(place)) }

func (g *ghosts) live(place uint32) bool {
	return place != 0 && g.age(place)*g.unit() <= uint32(len(g.places))
}

func (g *ghosts) add(h uint64, sh *shard) {
	if want := int(sh.entries); len(g.places) < want {
		// As many as there are entries. What there were are forgotten: it happens while a cache grows.
		places := make([]uint32, max(16, 1<<uintLog2(want)*2))
		sh.use(int64(len(places)-len(g.places)) * 4)
		*g = ghosts{places: places}
	}
	g.clock++
	place := uint32(h>>48)<<16 | uint32(uint16(g.clock/g.unit()))
	if place == 0 {
		place = 1 << 16
	}
	b := g.bucket(h)
	oldest := 0
	for i := range b {
		if !g.live(b[i]) {
			oldest = i
			break
		}
		if g.age(b[i]) > g.age(b[oldest]) {
			oldest = i
		}
	}
	b[oldest] = place
}

// take reports whether h is a ghost, and forgets it.
func (g *ghosts) take(h uint64) bool {
	if len(g.places) == 0 {
		return false
	}
	b := g.bucket(h)
	for i := range b {
		if b[i]>>16 == uint32(h>>48) && g.live(b[i]) {
			b[i] = 0
			return true
		}
	}
	return false
}

func uintLog2(n int) (log int) {
	for ; n > 1; n >>= 1 {
		log++
	}
	return log
}

// endings are the entries that end, by about when they do: those whose TTLs are of one magnitude lie in 32 spans of time.
type endings struct {
	spans map[span][]uint64 // slots
}

type span struct {
	width int   // the power of two of its length
	n     int64 // of them since the clock began
}

func (e *endings) add(ends, born int64, slot uint64) {
	if e.spans == nil {
		e.spans = make(map[span][]uint64)
	}
	width := uintLog2(int(max(ends-born, 1<<20) >> 5))
	s := span{width, ends >> width}
	e.spans[s] = append(e.spans[s], slot)
}

// due returns the slots of what has ended.
func (e *endings) due(now int64) (slots []uint64) {
	for s, some := range e.spans {
		if (s.n+1)<<s.width <= now {
			slots = append(slots, some...)
			delete(e.spans, s)
		}
	}
	return slots
}
