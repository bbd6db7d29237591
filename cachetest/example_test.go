package cachetest_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/cachetest"
)

func Example() {
	// In a test file this is the body of func TestPriceWithTheOwnerSilent(t *testing.T).
	var t *testing.T

	synctest.Test(t, func(t *testing.T) {
		cluster := cachetest.New(t, 3, nil)
		var prices []*shoal.Group[int] // in your tests, those that your own code makes in a Cache it is given
		for i := range 3 {
			prices = append(prices, shoal.NewGroup(cluster.Cache(i), "prices", func(ctx context.Context, name string) (int, error) {
				return len(name), nil
			}, nil))
		}
		owner := cluster.Owner("apple")
		other := (owner + 1) % 3
		cluster.Delay(other, owner, time.Hour) // a black hole

		began := time.Now() // the bubble's clock, which stands still while anything happens
		price, err := prices[other].Get(t.Context(), "apple")
		if price != 5 || err != nil {
			t.Errorf("the price is %d, %v", price, err)
		}
		if took := time.Since(began); took != 500*time.Millisecond {
			t.Errorf("took %v, want PeerTimeout", took)
		}
	})
}

func ExampleCluster_Restart() {
	var t *testing.T

	synctest.Test(t, func(t *testing.T) {
		cluster := cachetest.New(t, 3, nil)
		cluster.Kill(2) // or Shutdown of cluster.Cache(2), for one that leaves
		cluster.See(0, 0, 1)
		time.Sleep(time.Second) // cache 1 hears of it later
		cluster.See(1, 0, 1)

		cache := cluster.Restart(2)
		shoal.NewGroup(cache, "sessions", nil, &shoal.GroupOptions[string]{TTL: time.Hour})
		if err := cache.Ready(t.Context()); err != nil {
			t.Error(err)
		}
		cluster.See(0, 0, 1, 2)
		cluster.See(1, 0, 1, 2)
	})
}
