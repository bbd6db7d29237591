package shoal

import (
	"cmp"
	"container/heap"
	"hash/maphash"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoalcache/shoal/lru"
)

// A store is a part of a group's memory in this process, under a budget in bytes that counts keys, values and what it
// costs to keep them. Shards only spread its locks: there is one budget, and what was used least recently goes first,
// whichever shard it is in. What has ended goes before anything that lives.
//
// Values that would take more than an eighth of the budget are not kept, so that one of them cannot empty the cache.
type store struct {
	clock  *clock
	seed   maphash.Seed
	max    atomic.Int64
	used   atomic.Int64 // of the budget
	lent   func() int64 // how much of the budget other stores use; nil: there are none
	tick   atomic.Int64 // counts sets, and so tells what was used before what
	shards []shard

	// How entries age. The zero values: an entry past its TTL is not served.
	stale       time.Duration // how long past its TTL an entry may be served while it is loaded anew
	hotRate     float64       // uses a second that have an entry loaded anew shortly before its TTL ends; 0: none have
	loadTimeout time.Duration // a load that is due is not asked for again before this has passed, or it has failed

	oversized atomic.Int64
}

// An entry is what the store keeps of a key.
type entry struct {
	value   ByteView
	err     error         // in place of a value: what the getter said
	version uint64        // given when it is stored
	born    time.Duration // on the clock, when the load or the write that made it began
	fresh   time.Duration // … when its TTL, or a copy's lease, ends; 0: never
	ends    time.Duration // … when it cannot be of use any more; 0: never
	late    bool          // of a copy: it was past its TTL when it was made
}

// isStale reports whether e is past its TTL.
func (e *entry) isStale(now time.Duration) bool { return e.fresh != 0 && e.fresh <= now }

// remaining is how long e stays fresh: 0 means for ever.
func (e *entry) remaining(now time.Duration) time.Duration {
	if e.fresh == 0 {
		return 0
	}
	return max(e.fresh-now, 1)
}

// ahead is when e, if it is hot, is loaded anew before its TTL ends.
func (e *entry) ahead() time.Duration { return e.fresh - (e.fresh-e.born)/10 }

type shard struct {
	mu       sync.Mutex // guards what follows, but soonest and oldest are written under it and read without
	entries  lru.Cache[string, *item]
	expiring expiryHeap
	soonest  atomic.Int64 // when the first of expiring ends
	oldest   atomic.Int64 // the tick of the least recently used of entries
	hits     int64        // of callers of this process
	served   int64        // of peers
	stale    int64        // of both, past their TTL
	evicted  int64
	expired  int64

	_ [64]byte // keeps shards off each other's cache lines
}

// An item is an entry in its shard.
type item struct {
	entry
	key   string
	cost  int64
	tick  int64         // of the store when it was used last
	at    int           // index in expiring; -1: not there
	uses  int64         // calls it has answered
	fails int           // loads that have failed to replace it
	retry time.Duration // no load is due before, since one has failed
	asked time.Duration // … or since one has been asked for
}

// none is what soonest and oldest are where there is nothing.
const none = math.MaxInt64

// entryOverhead is what an entry costs besides its key and value: the item, the list and map of lru, and the place in
// expiring. It was measured; TestMemoryMatchesMaxBytes holds it to the heap.
const entryOverhead = 280

// bytesPerShard is what there must be of the budget for each shard. Small stores have one, and evict exactly.
const bytesPerShard = 4 << 20

func newStore(c *clock, maxBytes int64) *store {
	n := 1
	for n < 64 && int64(n)*2*bytesPerShard <= maxBytes {
		n *= 2
	}
	s := &store{clock: c, seed: maphash.MakeSeed(), shards: make([]shard, n)}
	for i := range s.shards {
		s.shards[i].soonest.Store(none)
		s.shards[i].oldest.Store(none)
	}
	s.max.Store(max(maxBytes, 0))
	return s
}

func (s *store) shardOf(key string) *shard {
	return &s.shards[maphash.String(s.seed, key)&uint64(len(s.shards)-1)]
}

// get returns the entry of key if a caller of this process may have it, or nil, counts a hit, and takes note that key is
// in use. If due is true, the caller must see to it that the key is loaded anew in the background. Entries are not
// changed any more once they are stored, so they are handed out as they are.
func (s *store) get(key string) (e *entry, due bool) { return s.use(key, 1, false) }

// serve is get for a peer, and for as many calls there as it says.
func (s *store) serve(key string, calls int64) (e *entry, due bool) { return s.use(key, calls, true) }

func (s *store) use(key string, calls int64, peer bool) (e *entry, due bool) {
	sh := s.shardOf(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	it, ok := sh.entries.Get(key)
	if !ok {
		return nil, false
	}
	it.uses += calls
	if it.ends != 0 {
		now := s.clock.now()
		switch stale := it.isStale(now); {
		case it.ends <= now:
			s.expireLocked(sh, it)
			return nil, false
		case !stale:
			due = s.hotRate > 0 && now > it.ahead() && float64(it.uses) >= s.hotRate*(now-it.born).Seconds()
		case now < it.fresh+s.stale:
			due = true
			sh.stale++
		case it.retry <= now:
			return nil, false // the caller is the one to load it, and to wait
		default:
			sh.stale++
		}
		if due = due && it.retry <= now && it.asked <= now; due {
			it.asked = now + s.loadTimeout
		}
	}
	switch {
	case peer:
		sh.served++
	case it.err == nil:
		sh.hits++
	}
	it.tick = s.tick.Load()
	sh.note()
	return &it.entry, due
}

// peek returns the entry of key, past its TTL or not, or nil, and leaves no trace.
func (s *store) peek(key string) *entry {
	sh := s.shardOf(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	it, ok := sh.entries.Peek(key)
	if !ok || it.ends != 0 && it.ends <= s.clock.now() {
		return nil
	}
	return &it.entry
}

// callsOf returns how many calls the entry of key has answered.
func (s *store) callsOf(key string) int64 {
	sh := s.shardOf(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if it, ok := sh.entries.Peek(key); ok {
		return it.uses
	}
	return 0
}

// failed takes note that the entry of key could not be loaded anew, and returns it if it may be served until the next
// try, or nil.
func (s *store) failed(key string) *entry {
	sh := s.shardOf(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	now := s.clock.now()
	it, ok := sh.entries.Peek(key)
	if !ok || it.ends != 0 && it.ends <= now {
		return nil
	}
	if it.retry <= now { // else all who waited for that load say so
		wait := min(firstReload<<min(it.fails, 16), lastReload)
		it.fails++
		it.retry, it.asked = now+wait-rand.N(wait/2), 0
	}
	return &it.entry
}

// A load that failed to replace an entry is tried again after firstReload, then twice that, and so on up to lastReload,
// each time cut at random by up to a half.
const firstReload, lastReload = 250 * time.Millisecond, 30 * time.Second

// put keeps value, or e.err, under key, and returns e with its version. What was there goes, even if the value is too
// large to be kept. The slice is the store's from then on. The caller calls shrink when it holds no lock, with the cost
// that put returns.
func (s *store) put(key string, value []byte, e entry) (entry, int64) {
	it := s.newItem(key, value, e)
	sh := s.shardOf(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	it.version = cmp.Or(e.version, s.clock.version())
	return it.entry, s.putLocked(sh, it)
}

// replace is put if what the store has of key is of that version, and 0 is the version of nothing. TTL and age are kept.
func (s *store) replace(key string, version uint64, value []byte, e entry) (entry, int64, bool) {
	it := s.newItem(key, value, e)
	sh := s.shardOf(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	var is uint64
	if old, ok := sh.entries.Peek(key); ok && (old.ends == 0 || old.ends > s.clock.now()) {
		is = old.version
	}
	if is != version {
		return entry{}, 0, false
	}
	it.version = s.clock.version()
	return it.entry, s.putLocked(sh, it), true
}

func (s *store) newItem(key string, value []byte, e entry) *item {
	e.value = NewByteView(value)
	own := append([]byte(nil), key...) // key may be a part of something large
	it := &item{entry: e, key: NewByteView(own).s, tick: s.tick.Add(1), at: -1}
	it.cost = int64(cap(own)) + int64(cap(value)) + entryOverhead // what the allocator gave, not what was asked for
	if e.err != nil {
		it.cost += int64(len(e.err.Error()))
	}
	return it
}

func (s *store) putLocked(sh *shard, it *item) (cost int64) {
	s.removeLocked(sh, it.key)
	if it.cost > s.max.Load()/8 {
		s.oversized.Add(1)
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

// remove drops the entry of key, unless its version is higher than most, which 0 does not limit.
func (s *store) remove(key string, most uint64) {
	sh := s.shardOf(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if it, ok := sh.entries.Peek(key); ok && (most == 0 || it.version <= most) {
		s.removeLocked(sh, key)
	}
}

// clear drops everything, however much it is, at once.
func (s *store) clear() {
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

// setMax changes the budget, and evicts until it is kept.
func (s *store) setMax(n int64) {
	s.max.Store(max(n, 0))
	s.shrink(math.MaxInt64)
}

// over reports whether the budget is exceeded.
func (s *store) over() bool {
	used := s.used.Load()
	if s.lent != nil {
		used += s.lent()
	}
	return used > s.max.Load()
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

// shrink drops entries while the budget is exceeded: one that has ended if there is one, else the least recently used.
// Who has added n bytes frees no more than twice that, even if there is more to do: the rest is for whoever has lowered
// the budget, and for those who add more.
func (s *store) shrink(n int64) {
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
func (s *store) expire(sh *shard) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if len(sh.expiring) > 0 && sh.expiring[0].ends <= s.clock.now() {
		s.expireLocked(sh, sh.expiring[0])
	}
}

// evict drops the least recently used entry of sh, if there is still need.
func (s *store) evict(sh *shard) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if key, _, ok := sh.entries.Oldest(); ok && s.over() {
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

// numbers are what a store counts.
type numbers struct {
	entries, bytes              int64
	hits, served, stale         int64
	evicted, expired, oversized int64
}

func (s *store) numbers() numbers {
	n := numbers{bytes: s.used.Load(), oversized: s.oversized.Load()}
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		n.entries += int64(sh.entries.Len())
		n.hits += sh.hits
		n.served += sh.served
		n.stale += sh.stale
		n.evicted += sh.evicted
		n.expired += sh.expired
		sh.mu.Unlock()
	}
	return n
}

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
