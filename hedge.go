package shoal

import (
	"context"
	"errors"
	"math"
	"sync/atomic"
	"time"
)

// A quantile follows a quantile of durations, with one number. Each duration above it raises it, each below it lowers it, in
// proportion to how rare that should be. (Frugal streaming; Ma, Muthukrishnan and Sandler, "Frugal Streaming for Estimating
// Quantiles", 2013, with steps relative to the value.)
type quantile struct{ at atomic.Uint64 } // the bits of a float64, in nanoseconds; 0: nothing is known yet

// quantileStep is by how much of itself a quantile moves at most.
const quantileStep = 0.1

// note takes note of a duration; share is which quantile it is, from 0 to 1.
func (q *quantile) note(d time.Duration, share float64) {
	for {
		bits := q.at.Load()
		now := math.Float64frombits(bits)
		next := now
		switch {
		case bits == 0:
			next = float64(d)
		case float64(d) > now:
			next *= 1 + quantileStep*share
		default:
			next *= 1 - quantileStep*(1-share)
		}
		if q.at.CompareAndSwap(bits, math.Float64bits(max(next, 1))) {
			return
		}
	}
}

func (q *quantile) value() time.Duration { return time.Duration(math.Float64frombits(q.at.Load())) }

// fetchHedged is Cache.fetch, and asks the next owner too if the owner takes longer than most of its answers have taken. The next
// owner has nothing loaded: it gives what it has, or what it can peek at.
func (g *group) fetchHedged(ctx context.Context, flight *fetchFlight, owner *peer, key string, q question, before entry) (found, error) {
	share := g.cache.opts.Hedge / 100
	if share == 0 || q.want != (want{}) {
		return g.cache.fetch(ctx, flight, owner, g, key, q, before)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(errAnswered)
	usual := owner.counts.latency.value()
	next, _ := g.cache.peers.view.Load().next(key, g.owners)
	sent := g.cache.clock.now()
	theirs, others := make(chan outcome, 1), make(chan outcome, 1)
	go func() {
		f, err := g.cache.fetch(ctx, flight, owner, g, key, q, before)
		theirs <- outcome{f, err}
	}()
	took := func(o outcome) (found, error) {
		if o.err == nil && !o.loaded { // a load takes as long as it takes
			owner.counts.latency.note(g.cache.clock.now()-sent, share)
		}
		return o.found, o.err
	}
	instead := func(f found) (found, error) {
		if cancel(errAnswered); context.Cause(ctx) != errAnswered {
			return took(<-theirs) // the caller has left, and what the owner has begun goes on for others of the flight
		}
		owner.counts.latency.note(math.MaxInt64, share) // at least as long
		return f, nil
	}
	if usual == 0 || next == nil && g.owners == 1 {
		return took(<-theirs)
	}
	late := time.NewTimer(usual)
	defer late.Stop()
	select {
	case o := <-theirs:
		return took(o)
	case <-late.C:
	}
	if f, ok := g.replica(g.cache.peers.view.Load(), key, q.want); ok {
		return instead(f)
	} else if next == nil {
		return took(<-theirs)
	}
	g.counts.hedged.Add(1)
	second := question{want: want{cachedOnly: true}, callers: q.callers, standIn: true}
	go func() {
		f, err := g.cache.fetch(ctx, nil, next, g, key, second, entry{})
		others <- outcome{f, err}
	}()
	select {
	case o := <-theirs:
		return took(o)
	case o := <-others:
		if o.err != nil {
			return took(<-theirs)
		}
		return instead(o.found)
	}
}

// errAnswered is why the owner's answer is not waited for.
var errAnswered = errors.New("another has answered")

// peekFor answers a peer that finds the owner of key slow: with what the owner has.
func (g *group) peekFor(ctx context.Context, key string) (found, error) {
	owner, _ := g.cache.peers.view.Load().owner(key)
	if owner == nil {
		return found{}, ErrNotCached
	}
	g.counts.peeks.Add(1)
	e, _, _, err := g.cache.peek(ctx, owner, g, key, false)
	if err != nil || e.err != nil || e.isStale(g.cache.clock.now()) {
		return found{}, ErrNotCached
	}
	return found{entry: e}, nil
}
