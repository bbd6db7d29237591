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
	"hash/maphash"
	"iter"
	"math"
	"math/bits"
	"math/rand/v2"
	"slices"
	"sync/atomic"
)

// A Cache is a bounded map. Its methods may be called concurrently, but New makes it.
type Cache struct {
	seed   maphash.Seed
	max    atomic.Int64
	lent   func() int64
	now    func() int64
	shards []shard
	_      [64]byte     // what follows is written by every Put, and what is before read by every Get
	used   atomic.Int64 // of max: chunks, indexes, ghosts, endings
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

// Near has the memory of the entries of keys come near the processor, all at once, as it would one after another by Get. It
// is worth its time before Get for several keys, in a cache much larger than the processor's. What it returns says nothing,
// but to the compiler that memory is to be read.
func (c *Cache) Near(keys []string) (sum byte) {
	const some = 16 // a processor waits for about as many lines of memory at once
	type place struct {
		hash  uint64
		shard *shard
		first *bucket
		chunk *chunk
		at    int
	}
	var places [some]place
	for now := range slices.Chunk(keys, some) {
		for i, key := range now {
			p := &places[i]
			p.hash = c.hash(key)
			p.shard = c.of(p.hash)
			idx := p.shard.index.Load()
			p.first = &idx.buckets[p.hash&idx.mask]
			sum += byte(p.first.passed.Load())
		}
		for i := range now {
			p := &places[i]
			p.chunk = nil
			for j := range p.first.slots {
				if s := p.first.slots[j].Load(); s>>tagShift == p.hash>>tagShift && s != 0 {
					p.chunk, p.at = p.shard.chunk(chunkOf(s)), offsetOf(s)
				}
			}
		}
		for i := range now {
			if p := &places[i]; p.chunk != nil {
				sum += p.chunk.buf[p.at]
			}
		}
	}
	return sum
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
	c.Shrink(math.MaxInt64)
}

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

// Walk calls each for entries, those that have been used more often before others, until each returns false, and for up to six
// more. In the end it calls it again for those that have been used: again says so, though such an entry may not have come
// before, if its first use was just now. It begins where an earlier Walk has ended, or with 0 anew, and returns where the next
// begins, or that there are no more. Entries that come, go or change their place meanwhile may be missed, or come twice. It
// takes no lock, and each may use the Cache.
func (c *Cache) Walk(from uint64, each func(key string, e Entry, again bool) bool) (next uint64, more bool) {
	const (
		ranks     = 3 // used twice or more often, once, and all in the end
		walkShift = 26
	)
	part, first := from>>32, from&(1<<32-1)
	for ; part < uint64(ranks*len(c.shards)); part, first = part+1, 0 {
		sh, rank := &c.shards[part%uint64(len(c.shards))], part/uint64(len(c.shards))
		idx, now := sh.index.Load(), c.now()
		if size := uint64(bits.Len(uint(len(idx.buckets)))); first>>walkShift != size { // it has been made anew: from its beginning
			first = size << walkShift
		}
		for b := first & (1<<walkShift - 1); b < uint64(len(idx.buckets)); b++ {
			enough := false
			for i := range idx.buckets[b].slots {
				s := idx.buckets[b].slots[i].Load()
				own := ranks - 1 - min(s&freqMask, ranks-1) // the rank of its uses, up to now
				if s == 0 || own != rank && rank < ranks-1 {
					continue
				}
				ch := sh.chunk(chunkOf(s))
				if ch == nil {
					continue
				}
				if e := ch.entry(offsetOf(s)); e.Ends == 0 || e.Ends > now {
					enough = !each(ch.key(offsetOf(s)), e, own != rank) || enough
				}
			}
			if enough {
				return part<<32 | first>>walkShift<<walkShift | (b + 1), true
			}
		}
	}
	return 0, false
}

func (c *Cache) over() bool { return c.used.Load()+c.lent() > c.max.Load() }

// Shrink evicts while more than the bound is used, here and by whom the rest is lent, but not many more than n bytes: so
// who has put something evicts for that, and not for all others. It evicts from that one of two shards which uses more.
func (c *Cache) Shrink(n int64) {
	n = min(n, math.MaxInt64/4)*2 + maxChunk
	for idle, next := 0, 0; n > 0 && c.over() && idle < 2*len(c.shards); {
		sh, other := &c.shards[rand.IntN(len(c.shards))], &c.shards[rand.IntN(len(c.shards))]
		if idle > 0 { // each in turn, until there is one that has something
			sh = &c.shards[next%len(c.shards)]
			next++
		} else if other.used.Load() > sh.used.Load() {
			sh = other
		}
		sh.mu.Lock()
		before := sh.used.Load()
		freed := sh.evict()
		n -= before - sh.used.Load()
		sh.mu.Unlock()
		if idle++; freed {
			idle = 0
		}
	}
}
