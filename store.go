package shoal

import (
	"container/heap"
	"hash/maphash"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoalcache/shoal/lru"
)

// A store is a group's memory in this process, under a budget in bytes that counts keys, values and what it costs to
// keep them. Shards only spread its locks: there is one budget, and what was used least recently goes first, whichever
// shard it is in. What has expired goes before anything that lives.
//
// Values that would take more than an eighth of the budget are not kept, so that one of them cannot empty the cache.
type store struct {
	seed   maphash.Seed
	epoch  time.Time // when the store's clock, which the wall clock cannot move, began
	max    atomic.Int64
	used   atomic.Int64 // of the budget
	tick   atomic.Int64 // counts sets, and so tells what was used before what
	shards []shard

	oversized atomic.Int64
}

// An entry is what the store keeps of a key.
type entry struct {
	value   ByteView
	expires time.Duration // on the store's clock; 0: never
}

type shard struct {
	mu       sync.Mutex // guards what follows, but soonest and oldest are written under it and read without
	entries  lru.Cache[string, *item]
	expiring expiryHeap
	soonest  atomic.Int64 // when the first of expiring ends
	oldest   atomic.Int64 // the tick of the least recently used of entries
	hits     int64        // of callers of this process
	served   int64        // of peers
	evicted  int64
	expired  int64

	_ [64]byte // keeps shards off each other's cache lines
}

// An item is an entry in its shard.
type item struct {
	entry
	key  string
	cost int64
	tick int64 // of the store when it was used last
	at   int   // index in expiring; -1: not there
}

// none is what soonest and oldest are where there is nothing.
const none = math.MaxInt64

// entryOverhead is what an entry costs besides its key and value: the item, the list and map of lru, and the place in
// expiring. It was measured; TestMemoryMatchesMaxBytes holds it to the heap.
const entryOverhead = 208

// bytesPerShard is what there must be of the budget for each shard. Small stores have one, and evict exactly.
const bytesPerShard = 4 << 20

func newStore(maxBytes int64) *store {
	n := 1
	for n < 64 && int64(n)*2*bytesPerShard <= maxBytes {
		n *= 2
	}
	s := &store{seed: maphash.MakeSeed(), epoch: time.Now(), shards: make([]shard, n)}
	for i := range s.shards {
		s.shards[i].soonest.Store(none)
		s.shards[i].oldest.Store(none)
	}
	s.max.Store(maxBytes)
	return s
}

// now is the time on the store's clock.
func (s *store) now() time.Duration { return time.Since(s.epoch) }

func (s *store) shardOf(key string) *shard {
	return &s.shards[maphash.String(s.seed, key)&uint64(len(s.shards)-1)]
}

// get returns the live entry of key for a caller of this process, counts a hit, and takes note that key is in use.
func (s *store) get(key string) (entry, bool) { return s.use(key, false) }

// serve is get for a peer.
func (s *store) serve(key string) (entry, bool) { return s.use(key, true) }

func (s *store) use(key string, peer bool) (entry, bool) {
	sh := s.shardOf(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	it, ok := sh.entries.Get(key)
	if !ok {
		return entry{}, false
	}
	if it.expires != 0 && it.expires <= s.now() {
		s.expireLocked(sh, it)
		return entry{}, false
	}
	if peer {
		sh.served++
	} else {
		sh.hits++
	}
	it.tick = s.tick.Load()
	sh.note()
	return it.entry, true
}

// peek returns the live entry of key and leaves no trace.
func (s *store) peek(key string) (entry, bool) {
	sh := s.shardOf(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	it, ok := sh.entries.Peek(key)
	if !ok || it.expires != 0 && it.expires <= s.now() {
		return entry{}, false
	}
	return it.entry, true
}

// remaining is how long e will live: 0 means for ever.
func (s *store) remaining(e entry) time.Duration {
	if e.expires == 0 {
		return 0
	}
	return max(e.expires-s.now(), 1)
}

// set keeps value under key for ttl, or for ever if ttl is 0. What was there goes, even if value is too large to be kept.
// The slice is the store's from then on.
func (s *store) set(key string, value []byte, ttl time.Duration) entry {
	e := entry{value: NewByteView(value)}
	if now := s.now(); ttl > 0 && ttl <= math.MaxInt64-now { // else for ever, as good as
		e.expires = now + ttl
	}
	own := append([]byte(nil), key...) // key may be a part of something large
	it := &item{entry: e, key: NewByteView(own).s, tick: s.tick.Add(1), at: -1}
	it.cost = int64(cap(own)) + int64(cap(value)) + entryOverhead // what the allocator gave, not what was asked for

	sh := s.shardOf(key)
	sh.mu.Lock()
	s.removeLocked(sh, key)
	fits := it.cost <= s.max.Load()/8
	if fits {
		sh.entries.Add(it.key, it, it.cost)
		s.used.Add(it.cost)
		if e.expires != 0 {
			heap.Push(&sh.expiring, it)
		}
		sh.note()
	}
	sh.mu.Unlock()

	if fits {
		s.shrink()
	} else {
		s.oversized.Add(1)
	}
	return e
}

// setMax changes the budget, and evicts until it is kept.
func (s *store) setMax(n int64) {
	s.max.Store(max(n, 0))
	s.shrink()
}

// retain drops every entry for whose key keep is false.
func (s *store) retain(keep func(key string) bool) {
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		keys := make([]string, 0, sh.entries.Len())
		for key := range sh.entries.All() {
			keys = append(keys, key)
		}
		sh.mu.Unlock()
		for _, key := range keys {
			if keep(key) {
				continue
			}
			sh.mu.Lock()
			s.removeLocked(sh, key)
			sh.mu.Unlock()
		}
	}
}

// shrink drops entries while the budget is exceeded: one that has expired if there is one, else the least recently used.
func (s *store) shrink() {
	for s.used.Load() > s.max.Load() {
		var due, stale *shard
		first, last := int64(s.now())+1, int64(none)
		for i := range s.shards {
			sh := &s.shards[i]
			if t := sh.soonest.Load(); t < first {
				due, first = sh, t
			}
			if t := sh.oldest.Load(); t < last {
				stale, last = sh, t
			}
		}
		if due == nil && stale == nil {
			return // others have made room
		}
		if due != nil {
			s.expire(due)
		} else {
			s.evict(stale)
		}
	}
}

// expire drops the entry of sh that expires first, if it has.
func (s *store) expire(sh *shard) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if len(sh.expiring) > 0 && sh.expiring[0].expires <= s.now() {
		s.expireLocked(sh, sh.expiring[0])
	}
}

// evict drops the least recently used entry of sh, if there is still need.
func (s *store) evict(sh *shard) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if key, _, ok := sh.entries.Oldest(); ok && s.used.Load() > s.max.Load() {
		s.removeLocked(sh, key)
		sh.evicted++
	}
}

func (s *store) expireLocked(sh *shard, it *item) {
	s.removeLocked(sh, it.key)
	sh.expired++
}

func (s *store) removeLocked(sh *shard, key string) {
	it, ok := sh.entries.Peek(key)
	if !ok {
		return
	}
	sh.entries.Remove(key)
	s.used.Add(-it.cost)
	if it.at >= 0 {
		heap.Remove(&sh.expiring, it.at)
	}
	sh.note()
}

// note keeps soonest and oldest true.
func (sh *shard) note() {
	soonest, oldest := int64(none), int64(none)
	if len(sh.expiring) > 0 {
		soonest = int64(sh.expiring[0].expires)
	}
	if _, it, ok := sh.entries.Oldest(); ok {
		oldest = it.tick
	}
	if soonest != sh.soonest.Load() { // to store costs more than to look
		sh.soonest.Store(soonest)
	}
	if oldest != sh.oldest.Load() {
		sh.oldest.Store(oldest)
	}
}

// count adds to st what the store knows.
func (s *store) count(st *GroupStats) {
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		st.Entries += int64(sh.entries.Len())
		st.Hits += sh.hits
		st.RequestHits += sh.served
		st.Evicted += sh.evicted
		st.Expired += sh.expired
		sh.mu.Unlock()
	}
	st.Bytes = s.used.Load()
	st.MaxBytes = s.max.Load()
	st.Oversized = s.oversized.Load()
}

// An expiryHeap is a heap, as in container/heap, whose first item expires first.
type expiryHeap []*item

func (h expiryHeap) Len() int           { return len(h) }
func (h expiryHeap) Less(i, j int) bool { return h[i].expires < h[j].expires }

func (h expiryHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}

func (h *expiryHeap) Push(x any) {
	it := x.(*item)
	it.at = len(*h)
	*h = append(*h, it)
}

func (h *expiryHeap) Pop() any {
	old := *h
	it := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	if len(*h) >= 256 && len(*h) <= cap(*h)/4 {
		*h = append(make(expiryHeap, 0, 2*len(*h)), *h...)
	}
	it.at = -1
	return it
}
