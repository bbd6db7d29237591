package cachetest

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
)

// newPair makes two caches with a group each, and returns a question of the second to the first: how long the answer
// took, and whether it was the first's.
func newPair(t *testing.T, load time.Duration) (c *Cluster, ask func() (took time.Duration, answered bool)) {
	t.Helper()
	c = New(t, 2, &shoal.Options{Warm: -1})
	var groups []*shoal.Group[string]
	for i := range 2 {
		groups = append(groups, shoal.NewGroup(c.Cache(i), "g", func(ctx context.Context, _ string) (string, error) {
			if i == 0 && load > 0 {
				select {
				case <-time.After(load):
				case <-ctx.Done():
				}
			}
			return fmt.Sprint("of cache ", i), nil
		}, &shoal.GroupOptions[string]{TTL: -1}))
	}
	key := keyOf(c, 0)
	return c, func() (time.Duration, bool) {
		t.Helper()
		began := time.Now()
		v, err := groups[1].Get(t.Context(), key)
		if err != nil {
			t.Error(err)
		}
		return time.Since(began), v == "of cache 0"
	}
}

func TestFaultsDoWhatTheySay(t *testing.T) {
	const timeout = 500 * time.Millisecond // Options.PeerTimeout
	for name, test := range map[string]struct {
		fault    func(c *Cluster)
		took     time.Duration
		answered bool
	}{
		"none":                           {func(c *Cluster) {}, 0, true},
		"down":                           {func(c *Cluster) { c.Down(0) }, 0, false},
		"down itself":                    {func(c *Cluster) { c.Down(1) }, 0, false},
		"down and up":                    {func(c *Cluster) { c.Down(0); c.Up(0) }, 0, true},
		"down is not healed":             {func(c *Cluster) { c.Down(0); c.Heal() }, 0, false},
		"apart":                          {func(c *Cluster) { c.Partition([]int{0}, []int{1}) }, timeout, false},
		"apart, not named":               {func(c *Cluster) { c.Partition([]int{0}) }, timeout, false},
		"neither named":                  {func(c *Cluster) { c.Partition() }, timeout, false},
		"on one side":                    {func(c *Cluster) { c.Partition([]int{0, 1}) }, 0, true},
		"apart, then together":           {func(c *Cluster) { c.Partition([]int{0}, []int{1}); c.Partition([]int{1, 0}) }, 0, true},
		"question delayed":               {func(c *Cluster) { c.Delay(1, 0, time.Second/4) }, time.Second / 4, true},
		"answer delayed":                 {func(c *Cluster) { c.Delay(0, 1, time.Second/4) }, time.Second / 4, true},
		"black hole":                     {func(c *Cluster) { c.Delay(0, 1, time.Hour) }, timeout, false},
		"question lost":                  {func(c *Cluster) { c.Loss(1, 0, 1) }, timeout, false},
		"answer lost":                    {func(c *Cluster) { c.Loss(0, 1, 1) }, timeout, false},
		"nothing lost":                   {func(c *Cluster) { c.Loss(0, 1, 0); c.Loss(1, 0, 0) }, 0, true},
		"partition, loss, delay, healed": {func(c *Cluster) { c.Partition(); c.Loss(0, 1, 1); c.Delay(1, 0, time.Hour); c.Heal() }, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, ask := newPair(t, 0)
				test.fault(c)
				if took, answered := ask(); took != test.took || answered != test.answered {
					t.Errorf("took %v, answered: %v; want %v, %v", took, answered, test.took, test.answered)
				}
			})
		})
	}
}

func TestFaultsReachExchangesUnderWay(t *testing.T) {
	for name, test := range map[string]struct {
		fault func(c *Cluster)
		took  time.Duration
	}{
		"down":      {func(c *Cluster) { c.Down(0) }, time.Second},
		"partition": {func(c *Cluster) { c.Partition() }, 30*time.Second + 600*time.Millisecond}, // LoadTimeout, which it was told, PeerTimeout, and a peek
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, ask := newPair(t, 10*time.Second)
				go func() {
					time.Sleep(time.Second)
					test.fault(c)
				}()
				if took, answered := ask(); took != test.took || answered {
					t.Errorf("took %v, answered: %v; want %v", took, answered, test.took)
				}
			})
		})
	}
}

func TestLossLosesItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, ask := newPair(t, 0)
		c.Loss(1, 0, 0.3)
		lost := 0
		for range 1000 {
			if _, answered := ask(); !answered {
				lost++
				time.Sleep(20 * time.Second) // until it has been greeted again
			}
		}
		if lost < 250 || lost > 350 {
			t.Errorf("%d of 1000 were lost", lost)
		}
	})
}

func TestSeeChangesOneCachesPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(t, 3, nil)
		seen := func(i int) (names []string) {
			for _, p := range c.Cache(i).Peers() {
				names = append(names, strings.TrimPrefix(p.ID, "http://cache-"))
			}
			return names
		}
		c.See(0, 1, 2)
		c.See(1, 1)
		c.See(2)
		for i, want := range []string{"[1 2]", "[1]", "[0 1 2]"} {
			if got := fmt.Sprint(seen(i)); got != want {
				t.Errorf("cache %d sees %s, want %s", i, got, want)
			}
		}
	})
}

func TestOwnerIsRightWhateverTheWeight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, weight := range []float64{0, 0.1, 1.5, 100} {
			c := New(t, 3, &shoal.Options{Weight: weight})
			groups, _ := groupsOf(c, func(_ context.Context, key string) (string, error) { return key, nil })
			for k := range 50 {
				key := fmt.Sprint("key ", k)
				before := groups[c.Owner(key)].Stats().Loads
				for _, g := range groups {
					g.Get(t.Context(), key)
				}
				if n := groups[c.Owner(key)].Stats().Loads - before; n != 1 {
					t.Errorf("weight %v: cache %d was to load %q once, and has %d times", weight, c.Owner(key), key, n)
				}
			}
		}
	})
}
