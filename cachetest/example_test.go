package cachetest_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/cachetest"
)

// In a test file this is func TestPriceWithThePeerDown(t *testing.T), and t is the test's.
func Example() {
	test := func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			cluster := cachetest.New(t, 3, nil)
			var prices []*shoal.Group[int] // in a real test, those of your own code
			for i := range 3 {
				prices = append(prices, shoal.NewGroup(cluster.Cache(i), "prices", func(ctx context.Context, name string) (int, error) {
					return len(name), nil
				}, nil))
			}
			owner := cluster.Owner("apple")
			cluster.Delay((owner+1)%3, owner, time.Hour) // a black hole, which takes no time in the bubble
			price, err := prices[(owner+1)%3].Get(t.Context(), "apple")
			fmt.Println(price, err)
		})
	}
	testing.RunTests(func(string, string) (bool, error) { return true, nil }, []testing.InternalTest{{Name: "TestPrice", F: test}})
	// Output: 5 <nil>
}
