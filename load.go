package shoal

// load.go: what a load is: one run of the getter for all who wait, and what becomes of what it says.

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/shoalcache/shoal/singleflight"
)

// loaded is what a getter has said of a key.
type loaded struct {
	data []byte
	ttl  time.Duration // 0: for ever; negative: it is not kept
	err  error
}

type loadFlight = singleflight.Flight[string, found]

// load runs the getter, once for all who wait, here and at peers. What it returns is kept if this process owns key. A
// load that had begun before the call, and brings what will not do, is followed by another.
func (g *group) load(ctx context.Context, key string, w want) (found, error) {
	began := g.cache.clock.now()
	for anew := w.anew || w.fresh; ; anew = true {
		f, err := g.loads.Do(ctx, key, g.loadTimeout, func(ctx context.Context, f *loadFlight) (found, error) {
			if !anew { // another load may have ended between the caller's look at memory and this flight's start
				if f, ok := g.here(key); ok {
					return f, nil
				}
			}
			return g.fly(ctx, f, anew)
		})
		f, err = g.landed(ctx, key, f, err)
		switch {
		case err != nil:
			return f, err
		case w.takes(&f.entry, began, g.cache.clock.now()):
			return f, f.err
		case f.failed != nil:
			return found{}, f.failed
		}
	}
}

// here returns what memory has of key, if it is not past its TTL.
func (g *group) here(key string) (found, bool) {
	e, ok := g.peek(key)
	if !ok || e.isStale(g.cache.clock.now()) {
		return found{}, false
	}
	return found{entry: e, kept: true}, true
}

// longestLoad is how long a load may take: two, if what the first brings may not do.
func (g *group) longestLoad(w want) time.Duration {
	if w.fresh || w.maxAge > 0 {
		return 2 * g.loadTimeout
	}
	return g.loadTimeout
}

// fly is a load flight's way to the getter and back. What the getter says is its result, in found.err if it is an error:
// an error of the flight itself is shared with those who gather behind it.
func (g *group) fly(ctx context.Context, f *loadFlight, anew bool) (found, error) {
	v, err := g.cache.peers.greetedFor(ctx, f.Key(), func() {})
	if err != nil {
		return found{}, err
	}
	if owner, mine := v.owner(f.Key()); !mine && g.getter == nil {
		return found{}, &notOwner{owner: owner} // it has gone there since
	}
	if !anew {
		if result, ok, err := g.inherit(ctx, f); ok || err != nil {
			return result, err
		}
	}
	if g.getter == nil {
		return found{entry: entry{err: ErrNotFound, born: g.cache.clock.now()}}, nil
	}
	var place placing
	if !anew {
		var err error
		if place, err = g.inPlace(ctx, f); place.ok || err != nil {
			return place.found, err
		}
	}
	done, err := g.turn(ctx, f)
	if err != nil {
		return found{}, err
	}
	defer done()
	began := g.cache.clock.now()
	g.counts.loads.Add(1)
	l := g.run(func() []loaded { return []loaded{g.getter(ctx, f.Key())} })[0]
	result := g.settle(f, began, l)
	g.copyInPlace(f, result, place.until)
	return result, nil
}

// turn waits until the getter may run for flights.
func (g *group) turn(ctx context.Context, flights ...*loadFlight) (done func(), err error) {
	v := g.cache.peers.view.Load()
	for _, f := range flights {
		if !v.owns(f.Key()) {
			// Nobody tells this process of writes. So nobody joins what may have begun long before one.
			g.counts.unownedLoads.Add(1)
			if g.cache.left.Load() {
				f.Seal() // others may take it for gone
			} else {
				time.AfterFunc(maxLease, func() { f.Seal() })
			}
		}
	}
	if g.turns == nil {
		return func() {}, nil
	}
	if err := g.turns.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	return func() { g.turns.Release(1) }, nil
}

// run runs a getter and counts what goes wrong.
func (g *group) run(getter func() []loaded) []loaded {
	returned := false
	defer func() {
		if !returned {
			g.counts.loadPanics.Add(1)
			g.counts.loadErrors.Add(1)
		}
	}()
	all := getter()
	returned = true
	most := g.cache.opts.MaxValueBytes
	for i, l := range all {
		if l.err == nil && int64(len(l.data)) > most {
			all[i] = loaded{err: fmt.Errorf("a value of %d bytes in group %q is longer than MaxValueBytes, %d", len(l.data), g.name, most)}
		}
		if all[i].err != nil && !errors.Is(all[i].err, ErrNotFound) {
			g.counts.loadErrors.Add(1)
		}
	}
	return all
}

// settle makes the result of what the getter has said, and keeps it if the key is this process's and the flight has not
// been forgotten. It is forgotten by a write, and if the key goes to another process just now: see viewSwapped.
func (g *group) settle(f *loadFlight, began time.Duration, l loaded) found {
	ttl, into := l.ttl, g.main
	switch {
	case l.err == nil:
	case errors.Is(l.err, ErrNotFound):
		ttl, into = cut(cmp.Or(g.notFoundTTL, -1), g.jitter), g.absent
	default:
		var e entry
		var ok bool
		if !f.Commit(func() { e, ok = g.main.failed(f.Key()) }) { // else it may have failed since nobody waits any more
			e, ok = g.main.peek(f.Key())
		}
		if ok {
			return g.instead(e, l.err)
		}
		ttl, into = cut(cmp.Or(g.errorTTL, -1), g.jitter), g.absent
	}
	result := found{entry: g.aged(entry{value: NewByteView(l.data), err: l.err, born: began}, ttl), loaded: true}
	if g.cache.peers.view.Load().owns(f.Key()) {
		var cost int64
		result.over = !f.Commit(func() { result.entry, cost = g.keep(into, f.Key(), trimmed(l.data), result.entry, ttl) })
		result.kept = cost > 0
		g.shrink(into, cost)
		if result.kept && l.err == nil {
			g.fill(f.Key())
		}
	}
	return result
}

// aged returns e with a TTL that begins now.
func (g *group) aged(e entry, ttl time.Duration) entry {
	now := g.cache.clock.now()
	if ttl != 0 && ttl <= math.MaxInt64-now { // else for ever, or as good as
		e.fresh = max(now+ttl, 1)
		e.ends = e.fresh
		if e.err == nil && ttl > 0 {
			e.ends += min(g.grace, math.MaxInt64-e.fresh)
		}
	}
	return e
}

// keep puts e in the place of whatever there is of key, or only takes that away if ttl is negative. It returns e with
// its version, and what it costs: nothing if it was not kept.
func (g *group) keep(into *store, key string, data []byte, e entry, ttl time.Duration) (entry, int64) {
	if into == g.main {
		g.absent.remove(key, 0)
	} else {
		g.main.remove(key, 0)
	}
	if ttl < 0 {
		into.remove(key, 0)
		e.version = g.cache.clock.version()
		return e, 0
	}
	return into.put(key, data, e)
}

// shrink makes room after cost bytes were put into s, whose bytes are also main's.
func (g *group) shrink(s *store, cost int64) {
	s.shrink(cost)
	if s != g.main {
		g.main.shrink(cost)
	}
}

// trimmed returns data without capacity that would be paid for and not used.
func trimmed(data []byte) []byte {
	if cap(data)-len(data) > len(data)/8 {
		return bytes.Clone(data)
	}
	return data
}

// landed sees to what a flight cannot see to itself: it panicked, or took too long.
func (g *group) landed(ctx context.Context, key string, f found, err error) (found, error) {
	if err == nil && errors.Is(f.err, context.DeadlineExceeded) {
		f.err = fmt.Errorf("load %.80q of group %q: %w", key, g.name, f.err)
	}
	_, panicked := errors.AsType[*PanicError](err)
	late := ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded)
	if !panicked && !late {
		return f, err
	}
	err = fmt.Errorf("load %.80q of group %q: %w", key, g.name, err)
	if e, ok := g.main.failed(key); ok {
		return g.instead(e, err), nil
	}
	if late && g.errorTTL > 0 && g.cache.peers.view.Load().owns(key) {
		// The flight is over, and cannot commit it. An error is no value, and takes none away.
		_, cost := g.absent.put(key, nil, g.aged(entry{err: err, born: g.cache.clock.now()}, cut(g.errorTTL, g.jitter)))
		g.shrink(g.absent, cost)
	}
	return f, err
}

// instead makes the result of a load that has failed, where there is still an older value.
func (g *group) instead(e entry, err error) found {
	return found{entry: e, stale: e.isStale(g.cache.clock.now()), kept: true, failed: err}
}
