package checker

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/cachetest"
)

// What a process holds goes to those who come after it, and comes back to the one that is started in its place: a source
// hears next to nothing of a deploy.
func TestRollingRestartLoadsLittle(t *testing.T) {
	if !*membership {
		t.Skip("without -membership")
	}
	synctest.Test(t, func(t *testing.T) {
		const size, keys = 4, 400
		rng := rand.New(rand.NewPCG(1, 2))
		c := cachetest.New(t, size, &shoal.Options{Logger: slog.New(slog.DiscardHandler)})
		for from := range size {
			for to := range size {
				c.Delay(from, to, time.Duration(1+rng.Int64N(int64(5*time.Millisecond))))
			}
		}
		var loads atomic.Int64
		var groups [size]atomic.Pointer[shoal.Group[int]]
		open := func(i int) {
			groups[i].Store(shoal.NewGroup(c.Cache(i), "g", func(context.Context, string) (int, error) {
				loads.Add(1)
				time.Sleep(20 * time.Millisecond)
				return 1, nil
			}, nil))
		}
		for i := range size {
			open(i)
		}
		for n := range keys {
			if _, err := groups[0].Load().Get(t.Context(), key(n)); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(70 * time.Second) // nobody is new any more

		var clients sync.WaitGroup
		over := make(chan struct{})
		for i := range size {
			rng := rand.New(rand.NewPCG(2, uint64(i)))
			clients.Go(func() {
				for !closed(over) {
					time.Sleep(time.Duration(rng.ExpFloat64() * float64(20*time.Millisecond)))
					if g := groups[i].Load(); g != nil {
						if _, err := g.Get(t.Context(), key(rng.IntN(keys))); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		all := everybody(size)
		// tell tells the others one after the other.
		tell := func(i int, list []int) {
			for k := range size {
				if k != i {
					time.Sleep(time.Duration(rng.Int64N(int64(time.Second))))
					c.See(k, list...)
				}
			}
		}
		loads.Store(0)
		for i := range size {
			others := slices.DeleteFunc(slices.Clone(all), func(k int) bool { return k == i })
			groups[i].Store(nil)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			if err := c.Cache(i).Shutdown(ctx); err != nil {
				t.Error(err)
			}
			cancel()
			tell(i, others)
			time.Sleep(5 * time.Second)
			c.Restart(i)
			open(i)
			if err := c.Cache(i).Ready(t.Context()); err != nil {
				t.Error(err)
			}
			tell(i, all)
			time.Sleep(15 * time.Second)
		}
		close(over)
		clients.Wait()
		const moved = 2 * keys // a share of each process, away from it and back
		t.Logf("%d loads, as %d keys moved", loads.Load(), moved)
		if loads.Load() > moved/20 {
			t.Errorf("%d loads, as %d keys moved; want %d at most", loads.Load(), moved, moved/20)
		}
	})
}
