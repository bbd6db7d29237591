package shoal

// standin.go: what becomes of a key whose owner cannot be reached. The next owner stands in for it, so that the fleet still
// loads the key once. What it holds meanwhile is a copy: it asks the owner for a lease if it can reach it; if not, it keeps
// the copy for as long as a lease could last, and no longer than until the first word from the owner.

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// askNext asks the next owner of a key whose owner could not be reached, or does not take itself for the owner, which is what failed
// says.
func (g *group) askNext(ctx context.Context, flight *fetchFlight, owner *peer, key string, q question, failed error) (found, error) {
	v := g.cache.peers.view.Load()
	q.standIn, q.lease, q.have = true, false, 0
	for _, i := range v.standIns(owner, key, g.owners) {
		if i == v.self || ctx.Err() != nil {
			if f, ok := g.replica(v, key, q.want); ok {
				return f, nil
			}
			break // the caller loads it here
		}
		g.counts.standIns.Add(1)
		began := g.cache.clock.now()
		f, err := g.cache.fetch(ctx, flight, v.members[i], g, key, q, entry{})
		if p, ok := errors.AsType[*PeerError](err); !(ok && p.Op == "get") && !errors.Is(err, ErrNotCached) {
			return f, err
		}
		if g.cache.clock.now()-began > g.cache.opts.PeerTimeout {
			break // it was to load the key, and fell silent: the caller has waited for long enough
		}
	}
	return found{}, failed
}

// askNextMany is askNext for many keys, which are loaded here if nobody else does.
func (g *group) askNextMany(ctx context.Context, keys []string, got func(key string, f found, err error)) {
	v := g.cache.peers.view.Load()
	var here []string
	elsewhere := make(map[*peer][]string)
	for _, key := range keys {
		if f, ok := g.replica(v, key, want{}); ok {
			got(key, f, nil)
		} else if next, _ := v.next(key, g.owners); next != nil {
			elsewhere[next] = append(elsewhere[next], key)
		} else {
			here = append(here, key)
		}
	}
	for next, keys := range elsewhere {
		g.counts.standIns.Add(int64(len(keys)))
		answered := make([]bool, len(keys))
		g.cache.fetchMany(ctx, next, g, keys, true, false, func(i int, f found, err error) {
			if p, ok := errors.AsType[*PeerError](err); !(ok && p.Op == "get") {
				answered[i] = true
				got(keys[i], f, err)
			}
		})
		for i, key := range keys {
			if !answered[i] {
				here = append(here, key)
			}
		}
	}
	g.loadManyHere(ctx, here, got)
}

// notMine answers a question for a key that this process does not own: unless it stands in for the owner, with whose it is.
func (g *group) notMine(key string, q question) (f found, err error, ok bool) {
	v := g.cache.peers.view.Load()
	owner, mine := v.owner(key)
	if mine {
		return found{}, nil, false
	}
	if q.standIn && owner != nil {
		if f, ok := g.replica(v, key, q.want); ok {
			g.main.served.add()
			return f, nil, true
		}
		if g.getter == nil {
			return found{}, ErrNotCached, true
		}
		if _, next := v.next(key, g.owners); next {
			if e, _, ok := g.copies.use(key, 1, true); ok && q.want == (want{}) {
				return found{entry: e, stale: e.late}, e.err, true
			}
			return found{}, nil, false
		}
	}
	return found{}, &notOwner{owner: owner}, true
}

// replica returns what this process keeps of key in case its owner is not there.
func (g *group) replica(v *view, key string, w want) (found, bool) {
	if g.owners == 1 || w.fresh || !v.keeps(key, g.owners) {
		return found{}, false
	}
	now := g.cache.clock.now()
	e, ok := g.main.engine.get(key)
	return found{entry: e}, ok && e.err == nil && !e.isStale(now) && w.takes(&e, now, now)
}

// standIns returns who is asked in place of that owner of key, one after the other: its replicas, and the next owner. If it is the
// owner only by the views of others, then the owner by v may take itself for a replica, or the next.
func (v *view) standIns(owner *peer, key string, n int) []int {
	some := slices.Clone(v.keepers(key, n))
	for _, i := range v.ring(key, 2) {
		if !slices.Contains(some, i) {
			some = append(some, i)
		}
	}
	return slices.DeleteFunc(some, func(i int) bool { return v.members[i].ID == owner.ID })
}

// standsIn are the keys that a process holds in place of owners that it could not reach either: for as long as a lease at least,
// and twice that at most.
type standsIn struct {
	mu           sync.Mutex                 // guards what follows
	keys, before map[string]map[string]bool // by the owner's ID
	since        time.Duration              // when the first of keys came
	n            int                        // how many of keys there are; from mostStandsIn on, no more are remembered
	full         bool                       // there were so many of before
}

// mostStandsIn bounds the keys of a lease's time. Where there are more, the word of any owner ends all copies and loads.
const mostStandsIn = 10_000

func (s *standsIn) add(owner, key string, now time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now-s.since > maxLease {
		s.keys, s.before, s.since, s.n, s.full = nil, s.keys, now, 0, s.n == mostStandsIn
	}
	if s.n == mostStandsIn {
		return
	}
	s.n++
	if s.keys == nil {
		s.keys = make(map[string]map[string]bool)
	}
	if s.keys[owner] == nil {
		s.keys[owner] = make(map[string]bool)
	}
	s.keys[owner][strings.Clone(key)] = true
}

// take returns the keys of an owner, for which this process does not stand in any more, and whether there are some that it does
// not remember.
func (s *standsIn) take(owner string) (keys []string, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	more = s.full || s.n == mostStandsIn
	for _, all := range []map[string]map[string]bool{s.keys, s.before} {
		keys = slices.AppendSeq(keys, maps.Keys(all[owner]))
		delete(all, owner)
	}
	return keys, more
}

// placing is what a process has found that is to load a key which it does not own.
type placing struct {
	found found         // if it need not be loaded
	ok    bool          // … so
	until time.Duration // how long a copy of what is loaded may be kept; 0: not at all
}

// inPlace looks for the key of f at its owner, if this process stands in for that.
func (g *group) inPlace(ctx context.Context, f *loadFlight) (p placing, err error) {
	v := g.cache.peers.view.Load()
	owner, _ := v.owner(f.Key())
	if owner == nil {
		return p, nil
	}
	if p.found, p.ok = g.replica(v, f.Key(), want{}); p.ok || g.hotShare == 0 {
		return p, nil
	}
	if _, next := v.next(f.Key(), g.owners); !next {
		return p, nil
	}
	sent := g.cache.clock.now()
	there := &owner.counts.breaker
	if there.isHere() && !there.isOpen(sent) {
		g.counts.peeks.Add(1)
		e, lease, held, err := g.cache.peek(ctx, owner, g, f.Key(), true)
		switch {
		case err != nil && ctx.Err() != nil:
			return p, ctx.Err()
		case err == nil && lease > 0 && !e.isStale(g.cache.clock.now()):
			p.found, p.ok = found{entry: e, fetched: true}, true
			g.copyInPlace(f, p.found, sent+lease)
			return p, nil
		case err == nil && held:
			p.until = sent + maxLease
			return p, nil
		case err == nil: // it does not take itself for the owner
			return p, nil
		}
	}
	p.until = sent + maxLease
	g.standing.add(owner.ID, f.Key(), sent)
	owner.counts.stoodIn.Store(true) // from now on, a word of the owner forgets this flight
	if !there.isSilent(g.cache.shortWait()) {
		p.until = 0 // it has just come, or only had no time to answer: it may write without a word to this process
	}
	return p, nil
}

// copyInPlace keeps a copy of what was found until then, unless f has been forgotten.
func (g *group) copyInPlace(f *loadFlight, result found, until time.Duration) {
	e := result.entry
	if until == 0 || g.cache.left.Load() || e.err != nil && (!errors.Is(e.err, ErrNotFound) || g.notFoundTTL == 0) {
		return
	}
	if e.fresh == 0 || e.fresh > until {
		e.fresh = until
	}
	e.ends, e.uses = e.fresh, new(atomic.Int64)
	var cost int64
	f.Commit(func() { _, cost = g.copies.put(f.Key(), e.value.bytes(), e) })
	g.shrink(g.copies, cost)
}

// ownerIsBack ends what this process holds and loads in place of p.
func (c *Cache) ownerIsBack(p *peer) {
	if !p.counts.stoodIn.Swap(false) {
		return
	}
	for _, g := range c.allGroups() {
		keys, more := g.standing.take(p.ID)
		for _, key := range keys {
			g.fetches.Forget(key)
			g.loads.Overtake(key, func() { g.copies.remove(key, 0) })
		}
		if more {
			g.fetches.ForgetAll()
			g.loads.OvertakeAll(g.copies.clear)
		}
	}
}
