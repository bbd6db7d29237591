package cachetest

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
)

func TestKillEndsAllThatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, ask := newPair(t, 10*time.Second)
		go func() {
			time.Sleep(time.Second)
			c.Kill(0)
		}()
		if took, answered := ask(); took != time.Second || answered {
			t.Errorf("took %v, answered: %v; want until the owner is killed", took, answered)
		}
		if took, answered := ask(); took != 0 || answered {
			t.Errorf("afterwards it took %v, answered: %v; want none", took, answered)
		}
	})
}

func TestNothingComesFromAProcessThatWasKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(t, 2, nil)
		groups, _ := groupsOf(c, func(context.Context, string) (string, error) { return "loaded", nil })
		key := keyOf(c, 0)
		c.Kill(1)
		killed := groups[1]
		check := func(when string) {
			t.Helper()
			if err := killed.Set(t.Context(), key, "set"); err == nil {
				t.Errorf("%s: the Set of a process that was killed has not failed", when)
			}
			time.Sleep(time.Minute) // hints would be delivered
			if v, err := groups[0].Get(t.Context(), key); v != "loaded" || err != nil {
				t.Errorf("%s: Get = %q, %v", when, v, err)
			}
		}
		check("killed")
		c.Restart(1)
		check("another in its place")
	})
}

func TestKillingTwiceLeavesTheNextAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, ask := newPair(t, 0)
		c.Kill(0)
		c.Kill(0)
		groupOf(c.Restart(0), new(atomic.Int64), func(context.Context, string) (string, error) { return "of cache 0", nil })
		if _, answered := ask(); !answered {
			t.Error("the process in its place does not answer")
		}
	})
}

// ends are the ways in which a process may have come to its end before another is started in its place.
var ends = map[string]func(c *Cluster, i int) error{
	"killed":    func(c *Cluster, i int) error { c.Kill(i); return nil },
	"shut down": func(c *Cluster, i int) error { return c.Cache(i).Shutdown(context.Background()) },
	"running":   func(c *Cluster, i int) error { return nil },
}

func TestRestartIsAnotherProcessInTheSamePlace(t *testing.T) {
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := New(t, 3, nil)
				load := func(_ context.Context, key string) (string, error) { return key, nil }
				groups, loads := groupsOf(c, load)
				c.See(0, 0, 2)
				key, before := keyOf(c, 0), c.Cache(0)
				groups[0].Get(t.Context(), key)
				if err := end(c, 0); err != nil {
					t.Error(err)
				}

				cache := c.Restart(0)
				group := groupOf(cache, loads, load)
				if err := cache.Ready(t.Context()); err != nil {
					t.Error(err)
				}
				if cache == before || cache != c.Cache(0) {
					t.Error("Cache does not return the new one")
				}
				if e := group.Stats().Entries; e != 0 {
					t.Errorf("it begins with %d entries", e)
				}
				peers := cache.Peers()
				if len(peers) != 2 || peers[0].ID != "http://cache-0" || peers[1].ID != "http://cache-2" {
					t.Errorf("it sees %v, want what cache 0 was told last", peers)
				}
				loads.Store(0)
				for _, g := range []*shoal.Group[string]{groups[1], groups[2], group} {
					if v, err := g.Get(t.Context(), key); v != key || err != nil {
						t.Errorf("Get = %q, %v", v, err)
					}
				}
				// Who was shut down has handed it over, if that has arrived.
				if n := loads.Load(); n > 1 || n < 1 && name != "shut down" || group.Stats().Entries != 1 {
					t.Errorf("%d loads, %d entries in the new one; want 1 and 1", n, group.Stats().Entries)
				}
			})
		})
	}
}

func TestSeeReachesWhoIsStartedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(t, 3, nil)
		c.Kill(2)
		c.See(0, 0, 1)
		c.See(1, 0, 1)
		if n := len(c.Cache(0).Peers()); n != 2 {
			t.Errorf("cache 0 sees %d caches, want 2", n)
		}
		c.See(2, 0, 2)
		cache := c.Restart(2)
		if err := cache.Ready(t.Context()); err != nil {
			t.Error(err)
		}
		if n := len(cache.Peers()); n != 2 {
			t.Errorf("it sees %d caches, want 2", n)
		}
	})
}

func TestKillWhileItIsToldOfOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(t, 3, nil)
		c.Partition()
		c.See(0, 0)
		go func() {
			time.Sleep(time.Millisecond)
			c.Kill(0)
		}()
		c.See(0, 0, 1, 2) // would take PeerTimeout
	})
}

// overEachWithFaults is overEach, but for the wire that has none.
func overEachWithFaults(t *testing.T, test func(t *testing.T, between network)) {
	overEach(t, func(t *testing.T, between network) {
		if between(t, 1)[0].transport == nil {
			t.Skip("the caches have transports of their own")
		}
		test(t, between)
	})
}

func TestKilledOverEachWire(t *testing.T) {
	overEachWithFaults(t, func(t *testing.T, between network) {
		c := newCluster(t, 2, patient, between)
		begun := make(chan struct{}, 1)
		groups, _ := groupsOf(c, func(ctx context.Context, key string) (string, error) {
			select {
			case begun <- struct{}{}:
				<-ctx.Done()
				return "", errors.New("nobody waits any more")
			default:
				return key, nil
			}
		})
		go func() {
			for len(begun) == 0 {
				runtime.Gosched()
			}
			c.Kill(0)
		}()
		key := keyOf(c, 0)
		for range 2 {
			if v, err := groups[1].Get(t.Context(), key); v != key || err != nil {
				t.Errorf("Get = %q, %v", v, err)
			}
		}
	})
}

func TestRestartedOverEachWire(t *testing.T) {
	overEach(t, func(t *testing.T, between network) {
		c := newCluster(t, 2, patient, between)
		load := func(_ context.Context, key string) (string, error) { return key, nil }
		groups, loads := groupsOf(c, load)
		key := keyOf(c, 0)
		for turn := range 3 {
			if turn > 0 {
				if err := c.Cache(0).Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
				groups[0] = groupOf(c.Restart(0), loads, load)
				if err := c.Cache(0).Ready(t.Context()); err != nil {
					t.Error(err)
				}
			}
			for end := time.Now().Add(10 * time.Second); groups[0].Stats().Requests == 0; runtime.Gosched() {
				if v, err := groups[1].Get(t.Context(), key); v != key || err != nil {
					t.Errorf("Get = %q, %v", v, err)
				}
				if time.Now().After(end) {
					t.Fatalf("turn %d: the owner is not asked", turn)
				}
			}
		}
	})
}
