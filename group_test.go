package shoal_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/cachetest"
)

func TestHerdLoadsEachKeyOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := cachetest.New(t, 3, nil)
		var loads atomic.Int64
		var groups []*shoal.Group[string]
		for i := range 3 {
			groups = append(groups, shoal.NewGroup(cluster.Cache(i), "g", func(ctx context.Context, key string) (string, error) {
				loads.Add(1)
				time.Sleep(10 * time.Millisecond)
				return "value of " + key, nil
			}, nil))
		}
		var wg sync.WaitGroup
		for _, g := range groups {
			for range 300 {
				for k := range 100 {
					wg.Go(func() {
						key := fmt.Sprint("key ", k)
						if v, err := g.Get(t.Context(), key); v != "value of "+key || err != nil {
							t.Errorf("Get(%q) = %q, %v", key, v, err)
						}
					})
				}
			}
		}
		wg.Wait()
		if n := loads.Load(); n != 100 {
			t.Errorf("the getter ran %d times for 100 keys", n)
		}
	})
}
