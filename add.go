package shoal

import (
	"context"
	"errors"
	"time"
)

// increase adds delta to the counter at key, which it loads first if it is not held.
func (g *group) increase(ctx context.Context, key string, delta int64, loading func(longest time.Duration)) (entry, int64, error) {
	if g.add == nil {
		return entry{}, 0, errNoCounter
	}
	for {
		if owner, mine := g.cache.peers.view.Load().owner(key); !mine { // and so what it holds is frozen, and is not found
			return entry{}, 0, &notOwner{owner: owner}
		}
		if err := ctx.Err(); err != nil {
			return entry{}, 0, &notDone{"load", err}
		}
		changes := g.changed(key).Load() // what is loaded from now on is not older than any write counted there
		var before uint64                // version of what is to be replaced; 0: there is nothing
		var start entry
		now := g.cache.clock.now()
		held, ok := g.main.peek(key)
		if ok {
			before, start = held.version, held
		}
		if !ok || held.isStale(now) {
			if g.getter != nil || g.mayBeElsewhere(key) {
				loading(g.longestStart())
			}
			f, err := g.load(ctx, key, want{})
			switch {
			case f.over:
				continue // what was loaded may be older than what was written
			case errors.Is(err, ErrNotFound):
				zero := g.zero(key)
				if zero.err != nil {
					return entry{}, 0, zero.err
				}
				start = g.aged(entry{value: NewByteView(zero.data), born: now}, zero.ttl)
			case err != nil:
				if other, moved := err.(*notOwner); moved {
					return entry{}, 0, other
				}
				return entry{}, 0, &notDone{"load", err}
			case f.failed != nil:
				return entry{}, 0, &notDone{"load", f.failed}
			case f.kept:
				continue
			default:
				start = f.entry
			}
		}
		data, sum, err := g.add(start.value.bytes(), delta)
		if err != nil {
			return entry{}, 0, &notDone{"add", err}
		}
		var e entry
		var cost int64
		ok = false
		g.loads.Overtake(key, func() { // loads would bring back what was before
			if before != 0 || g.changed(key).Load() == changes {
				g.absent.remove(key, 0)
				g.touch(key)
				e, cost, ok = g.main.replace(key, before, trimmed(data), start)
			}
		})
		g.main.shrink(cost)
		if ok {
			return e, sum, nil
		}
	}
}

var errNoCounter = errors.New("the group's values are no counters: V is neither ~int nor ~int64")

// notDone is the error of an add that its owner has not done: "load", the counter could not be loaded, or "add", there is
// no such sum.
type notDone struct {
	op  string
	err error
}

func (e *notDone) Error() string { return e.err.Error() }
func (e *notDone) Unwrap() error { return e.err }

// longestStart is how long it may take to get what an add starts from: by a load or, without a getter, from others, most of whom
// answer at once.
func (g *group) longestStart() time.Duration {
	if g.getter != nil {
		return g.loadTimeout
	}
	return (2 + mostPeeks) * g.cache.opts.PeerTimeout
}
