package shoal

import (
	"time"

	"github.com/shoalcache/shoal/packed"
)

// A packedEngine is a packed.Cache.
type packedEngine struct {
	*packed.Cache
}

func newPackedEngine(c *clock, maxBytes int64, lent func() int64) packedEngine {
	return packedEngine{packed.New(maxBytes, func() int64 { return int64(c.now()) }, lent)}
}

func entryOf(e packed.Entry) entry {
	return entry{
		value:   NewByteView(e.Value),
		version: e.Version,
		born:    time.Duration(e.Born),
		fresh:   time.Duration(e.Fresh),
		ends:    time.Duration(e.Ends),
	}
}

func (p packedEngine) get(key string) (entry, bool) {
	e, ok := p.Get(key)
	return entryOf(e), ok
}

func (p packedEngine) value(key string) (value ByteView, fresh time.Duration, ok bool) {
	data, until, ok := p.Value(key)
	return NewByteView(data), time.Duration(until), ok
}

func (p packedEngine) near(keys []string) { p.Near(keys) }

func (p packedEngine) peek(key string) (entry, bool) {
	e, ok := p.Peek(key)
	return entryOf(e), ok
}

// put keeps values only: for errors there is the lruEngine.
func (p packedEngine) put(key string, value []byte, e entry, version func(old uint64) uint64) (entry, int64) {
	if e.err != nil {
		panic("shoal: a packedEngine keeps no errors")
	}
	m := packed.Meta{Born: int64(e.born), Fresh: int64(e.fresh), Ends: int64(e.ends)}
	put := true
	kept := p.Put(key, value, func(old packed.Meta, held bool) (packed.Meta, bool) {
		m.Version = version(old.Version)
		put = m.Version != 0
		return m, put
	})
	if !put {
		return entry{}, 0
	}
	e.value, e.version = NewByteView(value), m.Version
	if !kept {
		return e, 0
	}
	return e, int64(len(key) + len(value))
}

func (p packedEngine) remove(key string, most uint64) {
	p.Delete(key, func(m packed.Meta) bool { return most == 0 || m.Version <= most })
}

func (p packedEngine) clear() { p.Clear() }

func (p packedEngine) retain(keep func(key string) bool) {
	for key := range p.Keys() {
		if !keep(key) {
			p.remove(key, 0)
		}
	}
}

func (p packedEngine) setMax(n int64) { p.SetMax(max(n, 0)) }
func (p packedEngine) shrink(n int64) { p.Shrink(n) }
func (p packedEngine) inUse() int64   { return p.Used() }

func (p packedEngine) numbers() engineNumbers {
	st := p.Stats()
	return engineNumbers{entries: st.Entries, bytes: p.Used(), maxBytes: p.Max(), evicted: st.Evicted, expired: st.Expired}
}

func (p packedEngine) walk(from uint64, each func(key string, e entry, again bool) bool) (next uint64, more bool) {
	return p.Walk(from, func(key string, e packed.Entry, again bool) bool { return each(key, entryOf(e), again) })
}
