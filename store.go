package shoal

import (
	"cmp"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A store is a part of a group's memory in this process, under a budget in bytes that counts keys, values and what it
// costs to keep them. An engine keeps the entries and chooses which go; the store says what may be served of those that
// age, and counts.
type store struct {
	engine
	aging

	// What is frozen is here for those to whom its keys have gone, and for nobody else; and so is what replicas keep.
	frozen   atomic.Bool
	replicas bool                  // there are such entries at any time
	serves   func(key string) bool // asked if there may be some

	hits, served tally // of callers of this process, of peers
	staleHits    tally // of both, past their TTL
	oversized    atomic.Int64
}

// An engine keeps entries within a budget. There are two: packed.Cache, and an lruEngine. What has ended goes first, and
// is not there for anybody. Entries that would take more than an eighth of the budget are not kept.
type engine interface {
	// get returns the entry of key, and takes note that it is in use; peek leaves no trace.
	get(key string) (entry, bool)
	peek(key string) (entry, bool)
	// near is called before several keys are looked for, as it may be faster to reach for them all at once.
	near(keys []string)
	// value is get for what is no error, and tells no more than when it ceases to be fresh; 0: never. It may have ended.
	value(key string) (value ByteView, fresh time.Duration, ok bool)
	// put keeps value, or e.err, under key, and returns e with its version, which version gives, under a lock, to what
	// is to follow the old one; 0 stands for nothing, as the old version or to keep what is there. What was there goes,
	// even if the value is too large to be kept, which then costs nothing. The slice is the engine's from then on.
	put(key string, value []byte, e entry, version func(old uint64) uint64) (kept entry, cost int64)
	// remove drops the entry of key, unless its version is higher than most, which 0 does not limit.
	remove(key string, most uint64)
	// clear drops everything, however much it is, at once.
	clear()
	// retain drops every entry for whose key keep is false.
	retain(keep func(key string) bool)
	// walk calls each for entries, the more useful first, until it returns false, or a little longer, from where an earlier walk
	// has ended, or 0. It returns where the next begins, or that nothing is left. Some may be missed, or come twice; where an
	// engine knows that most likely, again says so.
	walk(from uint64, each func(key string, e entry, again bool) bool) (next uint64, more bool)
	// setMax changes the budget, and evicts until it is kept.
	setMax(n int64)
	// shrink evicts while the budget is exceeded, but not much more than n bytes. It is called after put, without locks.
	shrink(n int64)
	inUse() int64
	numbers() engineNumbers
}

// engineNumbers are what an engine counts.
type engineNumbers struct {
	entries, bytes, maxBytes, evicted, expired int64
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
	uses    *atomic.Int64 // of a copy: the calls it has answered
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

// get returns the value of key if a caller of this process may have it, counts a hit, and takes note that key is in use.
// If due is true, the caller must see to it that the key is loaded anew in the background.
func (s *store) get(key string) (value ByteView, due, ok bool) {
	if s.isFrozen(key) {
		return ByteView{}, false, false
	}
	value, fresh, ok := s.value(key)
	switch {
	case !ok:
		return ByteView{}, false, false
	case fresh != 0 && (s.hotRate > 0 || fresh <= s.clock.now()):
		e, due, ok := s.use(key, 1, false)
		return e.value, due, ok
	}
	s.hits.add()
	return value, false, true
}

// use is get for whoever wants to know more, and, for a peer, for as many calls a second there as it says.
func (s *store) use(key string, calls float64, peer bool) (e entry, due, ok bool) {
	if s.isFrozen(key) {
		return entry{}, false, false
	}
	if e, ok = s.engine.get(key); !ok {
		return entry{}, false, false
	}
	if e.fresh != 0 {
		now := s.clock.now()
		if ok, due = s.aging.serves(key, &e, calls, now); !ok {
			return entry{}, false, false
		}
		if e.isStale(now) {
			s.staleHits.add()
		}
	}
	switch {
	case peer:
		s.served.add()
	case e.err == nil:
		s.hits.add()
	}
	return e, due, true
}

// peek returns what there is of key, whatever its age, and leaves no trace.
func (s *store) peek(key string) (entry, bool) {
	if s.isFrozen(key) {
		return entry{}, false
	}
	return s.engine.peek(key)
}

func (s *store) isFrozen(key string) bool { return (s.replicas || s.frozen.Load()) && !s.serves(key) }

// adopt keeps e, with its version, if there is nothing of key, or, if versions decide, nothing as new.
func (s *store) adopt(key string, value []byte, e entry, versions bool) (cost int64) {
	_, cost = s.engine.put(key, value, e, func(old uint64) uint64 {
		if old != 0 && (!versions || old >= e.version) {
			return 0
		}
		return e.version
	})
	return cost
}

// put keeps value, or e.err, under key, and returns e with its version, and what it costs. The caller calls shrink with
// that when it holds no lock.
func (s *store) put(key string, value []byte, e entry) (entry, int64) {
	s.forget(key)
	e, cost := s.engine.put(key, value, e, func(uint64) uint64 { return cmp.Or(e.version, s.clock.version()) })
	if cost == 0 {
		s.oversized.Add(1)
	}
	return e, cost
}

// replace is put if what the store has of key is of that version, and 0 is the version of nothing.
func (s *store) replace(key string, version uint64, value []byte, e entry) (kept entry, cost int64, ok bool) {
	kept, cost = s.engine.put(key, value, e, func(old uint64) uint64 {
		if ok = old == version; !ok {
			return 0
		}
		return s.clock.version()
	})
	return kept, cost, ok
}

// failed takes note that the entry of key could not be loaded anew, and returns it if it may be served until the next
// try.
func (s *store) failed(key string) (entry, bool) {
	e, ok := s.peek(key)
	if ok {
		s.hasFailed(key)
	}
	return e, ok
}

// aging says what may be served of entries that are past their TTL, or nearly, and when they are to be loaded anew. The
// zero values: what is past its TTL is not served.
type aging struct {
	clock       *clock
	stale       time.Duration // how long past its TTL an entry may be served while it is loaded anew
	hotRate     float64       // uses a second that have an entry loaded anew shortly before its TTL ends; 0: none have
	loadTimeout time.Duration // a load that is due is not asked for again before this has passed, or it has failed
	rates       rates         // of keys whose TTL is about to end

	mu    sync.Mutex // guards tries
	tries map[string]try
	tried atomic.Int64 // how many there are
}

// A try is a load that is to replace an entry.
type try struct {
	fails int           // that went before it
	retry time.Duration // no other is due before, since one has failed
	asked time.Duration // … or since one has been asked for
}

// maxTries is how many are remembered. Where there are more, some are asked for sooner.
const maxTries = 16_384

// A load that failed to replace an entry is tried again after firstReload, then twice that, and so on up to lastReload,
// each time cut at random by up to a half.
const firstReload, lastReload = 250 * time.Millisecond, 30 * time.Second

// serves reports whether e may be served, and whether it is due to be loaded anew. The entry has not ended.
func (a *aging) serves(key string, e *entry, calls float64, now time.Duration) (ok, due bool) {
	switch {
	case !e.isStale(now):
		hot := a.hotRate > 0 && now > e.ahead() && a.rates.note(key, 0, calls, now) >= a.hotRate
		return true, hot && a.isDue(key, now)
	case now < e.fresh+a.stale:
		return true, a.isDue(key, now)
	default: // only after a load has failed; else the caller is the one to load it, and to wait
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.tries[key].retry > now, false
	}
}

// isDue reports whether key is to be loaded now, and takes note that it is.
func (a *aging) isDue(key string, now time.Duration) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.tries[key]
	if t.retry > now || t.asked > now {
		return false
	}
	t.asked = now + a.loadTimeout
	a.noteLocked(key, t)
	return true
}

func (a *aging) hasFailed(key string) {
	now := a.clock.now()
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.tries[key]
	if t.retry > now {
		return // all who waited for that load say so
	}
	wait := min(firstReload<<min(t.fails, 16), lastReload)
	a.noteLocked(key, try{fails: t.fails + 1, retry: now + wait - rand.N(wait/2)})
}

func (a *aging) noteLocked(key string, t try) {
	if a.tries == nil || len(a.tries) >= maxTries {
		a.tries = make(map[string]try)
	}
	a.tries[strings.Clone(key)] = t // it may be part of a message
	a.tried.Store(int64(len(a.tries)))
}

// forget takes note that key has been replaced.
func (a *aging) forget(key string) {
	if a.tried.Load() == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.tries, key)
	a.tried.Store(int64(len(a.tries)))
}

// A tally counts what many goroutines do at once: in several places, so that they do not all write to one.
type tally [8]struct {
	n atomic.Int64
	_ [56]byte
}

func (c *tally) add() { c[rand.Uint32()%uint32(len(c))].n.Add(1) }

func (c *tally) load() (n int64) {
	for i := range c {
		n += c[i].n.Load()
	}
	return n
}
