package shoal

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoalcache/shoal/shoalpb"
)

// A generation counts the purges of a group. It travels on every message that names the group; a process that hears of
// a higher one purges before it goes on. So what was purged cannot come back from a process that had not heard of it.
//
// Two purges must not pass for one: the number comes with the incarnation of the process that purged. Where equal
// numbers of different processes meet, both sides purge, and both go on to the same next number by both.
type generation struct {
	mu     sync.Mutex // guards what follows, and is held while the group is emptied
	number uint64
	by     uint64
	own    uint64        // the last number that stands for a purge of this process, by itself or with another's
	at     time.Duration // when it began that

	said atomic.Pointer[shoalpb.Generation] // the same, once the group has been emptied; nil: 0
}

// message returns what is said of the generation; nil: that it is the first.
func (g *generation) message() *shoalpb.Generation { return g.said.Load() }

// is reports whether g is what another process says of it.
func (g *generation) is(theirs *shoalpb.Generation) bool {
	mine := g.said.Load()
	return mine.GetNumber() == theirs.GetNumber() && mine.GetBy() == theirs.GetBy()
}

// meet takes note of the generation in which another process sees the group, and reports whether it was a later one, so
// that the group has been emptied.
func (g *group) meet(theirs *shoalpb.Generation) (emptied bool) {
	number, by := theirs.GetNumber(), theirs.GetBy()
	mine := &g.generation
	if mine.is(theirs) {
		return false
	}
	mine.mu.Lock()
	defer mine.mu.Unlock()
	switch {
	case number >= lastGeneration: // nobody has purged as often: it is not true, and there must be one above
		return false
	case number > mine.number:
		mine.number, mine.by = number, by
	case number == mine.number && by != mine.by:
		g.journal.purged(number, by, g.cache.clock.now())
		if mine.own == number {
			mine.own++
		}
		mine.number, mine.by = number+1, by+mine.by // on both sides the same, and no process
	default:
		return false
	}
	g.empty(mine.number, mine.by)
	mine.said.Store(&shoalpb.Generation{Number: mine.number, By: mine.by})
	return true
}

// goThrough empties the group for purges of the other side of a cut, which has had fewer of them, unless it has been emptied for them;
// it reports whether it did.
func (g *group) goThrough(purges []*shoalpb.Past) (emptied bool) {
	if len(purges) == 0 {
		return false
	}
	g.generation.mu.Lock()
	defer g.generation.mu.Unlock()
	now := g.cache.clock.now()
	news := slices.DeleteFunc(purges, func(p *shoalpb.Past) bool {
		of := p.GetGeneration()
		return of.GetNumber() >= lastGeneration || g.journal.hasGoneThrough(of.GetNumber(), of.GetBy(), now-time.Duration(max(p.GetAge(), 0)))
	})
	if len(news) == 0 {
		return false
	}
	g.dropAll(nil, "")
	for _, p := range news { // for others of this side
		g.journal.purged(p.GetGeneration().GetNumber(), p.GetGeneration().GetBy(), now)
	}
	return true
}

// empty drops whatever the group holds here for a purge, and makes sure that nothing which is under way is stored.
func (g *group) empty(number, by uint64) {
	now := g.cache.clock.now() // what is loaded while it is dropped may be dropped or not
	g.dropAll(nil, "")
	g.written.areNowhere()
	g.journal.purged(number, by, now)
}

// dropAll drops whatever the group holds here, or, if there is a view, what is by that the key of the one of that ID. Nothing
// which is under way is stored.
func (g *group) dropAll(v *view, owner string) {
	g.fetches.ForgetAll()
	g.copies.clear()
	g.loads.OvertakeAll(func() {
		g.purged.Add(1)
		for i := range g.changes {
			g.changes[i].Add(1)
		}
		if v == nil {
			g.main.clear()
			g.absent.clear()
		}
	})
	if v != nil {
		others := func(key string) bool {
			o, _ := v.owner(key)
			return o == nil || o.ID != owner
		}
		g.main.retain(others)
		g.absent.retain(others)
	}
	g.forgetDecoded()
	advance(&g.cache.peers.wrote, g.cache.clock.now())
	g.counts.emptied.Add(1)
}

// isOvertaken reports whether this process has heard of another generation since it began its own: that may have been before.
func (g *generation) isOvertaken() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.number != g.own
}

// began returns when this process began its last purge.
func (g *generation) began() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.at
}

// goOn begins a new generation, above all that this process has heard of.
func (g *group) goOn() {
	g.generation.mu.Lock()
	defer g.generation.mu.Unlock()
	g.generation.number++
	g.generation.at = g.cache.clock.now()
	g.generation.own, g.generation.by = g.generation.number, g.cache.peers.incarnation
	g.empty(g.generation.number, g.generation.by)
	g.generation.said.Store(&shoalpb.Generation{Number: g.generation.number, By: g.generation.by})
}

// purge empties the group here and at all peers. If ctx ends, it goes on without the caller.
func (g *group) purge(ctx context.Context) error {
	g.counts.purges.Add(1)
	birth := g.cache.peers.birth
	g.goOn()
	if must, may := g.cache.peers.everybody(); len(must)+len(may) == 0 && birth.over.Load() != 0 {
		return nil
	}
	return g.cache.carryOut(ctx, fmt.Sprintf("purge of group %q", g.name), func(ctx context.Context) error {
		select {
		case <-birth.done: // now it knows whom to tell
		case <-ctx.Done():
		}
		return g.purgeAll(ctx)
	}, func() {})
}

// lastGeneration is above all that are.
const lastGeneration = 1 << 48

// purgeTurns is how often a purge goes above those who are ahead of it.
const purgeTurns = 10

// purgeAll tells everybody of the generation that this process has begun, and of one above it as long as somebody was
// ahead, who might take another purge for this one.
func (g *group) purgeAll(ctx context.Context) error {
	for turn := 0; ; turn++ {
		behind, errs := g.tellPurge(ctx)
		behind = behind || g.generation.isOvertaken()
		if behind && turn == purgeTurns {
			errs = append(errs, fmt.Errorf("purge of group %q: others purge without end", g.name))
			behind = false
		}
		if !behind {
			return errors.Join(errs...)
		}
		pause(ctx, rand.N(firstRetry/4<<min(turn, 5)), nil) // purges in step would never end
		g.goOn()
	}
}

// tellPurge tells everybody of the generation, and whom they name, and reports whether somebody was ahead.
func (g *group) tellPurge(ctx context.Context) (behind bool, errs []error) {
	var (
		peers = &g.cache.peers
		wg    sync.WaitGroup
		mu    sync.Mutex // guards told, behind and errs
		told  = map[[2]string]bool{}
		tell  func(all []*peer, must bool)

		began = g.generation.began()
	)
	tell = func(all []*peer, must bool) {
		for _, p := range all {
			at := [2]string{p.ID, p.Addr}
			as, already := told[at]
			if p.ID == peers.self.ID || already && (as || !must) || len(told) >= maxStrangers {
				continue
			}
			told[at] = must // else once more, for it may have been another process that was silent
			wg.Go(func() {
				ahead, known, past, err := g.cache.purge(ctx, peers.current(p), g)
				mu.Lock()
				defer mu.Unlock()
				behind = behind || ahead
				tell(known, true)
				tell(past, false)
				if err != nil && must {
					peers.misses(p, began)
					g.cache.hints.keepPurge(g, p)
					errs = append(errs, &PeerError{Peer: p.Peer, Op: "purge", Err: fmt.Errorf("group %q: %w", g.name, err)})
				}
			})
		}
	}
	must, may := peers.everybody()
	mu.Lock()
	tell(must, true)
	tell(may, false)
	mu.Unlock()
	wg.Wait()
	return behind, errs
}
