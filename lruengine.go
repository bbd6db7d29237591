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

// An lruEngine evicts what was used least recently. Shards only spread its locks: there is one budget, and what goes is
// oldest, whichever shard it is in. What has ended goes before anything that lives.
type lruEngine struct {
	clock  *clock
	seed   maphash.Seed
	max    atomic.Int64
	used   atomic.Int64 // of the budget
	lent   func() int64
	tick   atomic.Int64 // counts sets, and so tells what was used before what
	shards []shard
}

type shard struct {
	mu       sync.Mutex // guards what follows, but soonest and oldest are written under it and read without
	entries  lru.Cache[string, *item]
	expiring expiryHeap
	soonest  atomic.Int64 // when the first of expiring ends
	oldest   atomic.Int64 // the tick of the least recently used of entries
	evicted  int64
	expired  int64

	_ [64]byte // keeps shards off each other's cache lines
}

// An item is an entry in its shard.
type item struct {
	entry
	key  string
	cost int64
	tick int64 // of the engine when it was used last
	at   int   // index in expiring; -1: not there
}

// none is what soonest and oldest are where there is nothing.
const none = math.MaxInt64

// entryOverhead is what an entry costs besides its key and value: the item, the list and map of lru, and the place in
// expiring. It was measured; TestMemoryMatchesMaxBytes holds it to the heap.
const entryOverhead = 272

// bytesPerShard is what there must be of the budget for each shard. Small stores have one, and evict exactly.
const bytesPerShard = 4 << 20

func newLRUEngine(c *clock, maxBytes int64, lent func() int64) *lruEngine {
	n := 1
	for n < 64 && int64(n)*2*bytesPerShard <= maxBytes {
		n *= 2
	}
	s := &lruEngine{clock: c, seed: maphash.MakeSeed(), lent: lent, shards: make([]shard, n)}
	for i := range s.shards {
		s.shards[i].soonest.Store(none)
		s.shards[i].oldest.Store(none)
	}
	s.max.Store(max(maxBytes, 0))
	return s
}

func (s *lruEngine) shardOf(key string) *shard {
	return &s.shards[maphash.String(s.seed, key)&uint64(len(s.shards)-1)]
}

func (s *lruEngine) get(key string) (entry, bool) {
	sh := s.shardOf(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	it, ok := sh.entries.Get(key)
	if !ok {
		return entry{}, false
	}
	if it.ends != 0 && it.ends <= s.clock.now() {
		s.expireLocked(sh, it)
		return entry{}, false
	}
	it.tick = s.tick.Load()
	sh.note()
	return it.entry, true
}

func (s *lruEngine) value(key string) (value ByteView, fresh time.Duration, ok bool) {
	e, ok := s.get(key)
	return e.value, e.fresh, ok && e.err == nil
}

func (s *lruEngine) near([]string) {}

func (s *lruEngine) peek(key string) (entry, bool) {
	sh := s.shardOf(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	it, ok := sh.entries.Peek(key)
	if !ok || it.ends != 0 && it.ends <= s.clock.now() {
		return entry{}, false
	}
	return it.entry, true
}

func (s *lruEngine) put(key string, value []byte, e entry, version func(old uint64) uint64) (entry, int64) {
	it := s.newItem(key, value, e)
	sh := s.shardOf(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	var old uint64
	if it, ok := sh.entries.Peek(key); ok && (it.ends == 0 || it.ends > s.clock.now()) {
		old = it.version
	}
	if it.version = version(old); it.version == 0 {
		return entry{}, 0
	}
	return it.entry, s.putLocked(sh, it)
}

func (s *lruEngine) newItem(key string, value []byte, e entry) *item {
	e.value = NewByteView(value)
	own := append([]byte(nil), key...) // key may be a part of something large
	it := &item{entry: e, key: NewByteView(own).s, tick: s.tick.Add(1), at: -1}
	it.cost = int64(cap(own)) + int64(cap(value)) + entryOverhead // what the allocator gave, not what was asked for
	if e.err != nil {
		it.cost += int64(len(e.err.Error()))
	}
	return it
}

func (s *lruEngine) putLocked(sh *shard, it *item) (cost int64) {
	s.removeLocked(sh, it.key)
	if it.cost > s.max.Load()/8 {
		return 0
	}
	sh.entries.Add(it.key, it, it.cost)
	s.used.Add(it.cost)
	if it.ends != 0 {
		heap.Push(&sh.expiring, it)
	}
	sh.note()
	return it.cost
}

func (s *lruEngine) remove(key string, most uint64) {
	sh := s.shardOf(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if it, ok := sh.entries.Peek(key); ok && (most == 0 || it.version <= most) {
		s.removeLocked(sh, key)
	}
}

func (s *lruEngine) clear() {
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		s.used.Add(-sh.entries.Cost())
		sh.entries = lru.Cache[string, *item]{}
		sh.expiring = nil
		sh.note()
		sh.mu.Unlock()
	}
}

func (s *lruEngine) setMax(n int64) {
	s.max.Store(max(n, 0))
	s.shrink(math.MaxInt64)
}

// over reports whether the budget is exceeded.
func (s *lruEngine) over() bool {
	used := s.used.Load()
	if s.lent != nil {
		used += s.lent()
	}
	return used > s.max.Load()
}

// keys returns the keys, those first that were used last.
func (sh *shard) keys() []string {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	keys := make([]string, 0, sh.entries.Len())
	for key := range sh.entries.All() {
		keys = append(keys, key)
	}
	return keys
}

// walk goes through the shards one by one, each from what was used last.
func (s *lruEngine) walk(from uint64, each func(key string, e entry, again bool) bool) (next uint64, more bool) {
	shard, skip := from>>32, from&(1<<32-1)
	for ; shard < uint64(len(s.shards)); shard, skip = shard+1, 0 {
		for i, key := range s.shards[shard].keys() {
			if uint64(i) < skip {
				continue
			}
			if e, ok := s.peek(key); ok && !each(key, e, false) {
				return shard<<32 | uint64(i+1), true
			}
		}
	}
	return 0, false
}

func (s *lruEngine) retain(keep func(key string) bool) {
	for i := range s.shards {
		sh := &s.shards[i]
		for _, key := range sh.keys() {
			if keep(key) {
				continue
			}
			sh.mu.Lock()
			s.removeLocked(sh, key)
			sh.mu.Unlock()
		}
	}
}

// shrink drops entries: one that has ended if there is one, else the least recently used.
// Who has added n bytes frees no more than twice that, even if there is more to do: the rest is for whoever has lowered
// the budget, and for those who add more.
func (s *lruEngine) shrink(n int64) {
	for least := s.used.Load() - min(n, math.MaxInt64/2)*2; s.over() && s.used.Load() > least; {
		var due, stale *shard
		first, last := int64(s.clock.now())+1, int64(none)
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

// expire drops the entry of sh that ends first, if it has.
func (s *lruEngine) expire(sh *shard) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if len(sh.expiring) > 0 && sh.expiring[0].ends <= s.clock.now() {
		s.expireLocked(sh, sh.expiring[0])
	}
}

// evict drops the least recently used entry of sh, if there is still need.
func (s *lruEngine) evict(sh *shard) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if key, _, ok := sh.entries.Oldest(); ok && s.over() {
		s.removeLocked(sh, key)
		sh.evicted++
	}
}

func (s *lruEngine) expireLocked(sh *shard, it *item) {
	s.removeLocked(sh, it.key)
	sh.expired++
}

func (s *lruEngine) removeLocked(sh *shard, key string) {
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
		soonest = int64(sh.expiring[0].ends)
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

func (s *lruEngine) numbers() engineNumbers {
	n := engineNumbers{bytes: s.used.Load(), maxBytes: s.max.Load()}
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		n.entries += int64(sh.entries.Len())
		n.evicted += sh.evicted
		n.expired += sh.expired
		sh.mu.Unlock()
	}
	return n
}

func (s *lruEngine) inUse() int64 { return s.used.Load() }

// An expiryHeap is a heap, as in container/heap, whose first item ends first.
type expiryHeap []*item

func (h expiryHeap) Len() int           { return len(h) }
func (h expiryHeap) Less(i, j int) bool { return h[i].ends < h[j].ends }

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
