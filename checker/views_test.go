package checker

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/cachetest"
)

var steps = flag.Int("steps", 300, "change views `so often` in TestEveryCallEndsWhateverTheViews")

// Whoever is taken for the owner of a key by whom: no two processes wait for each other, and nobody is asked in circles.
// When all see the same again, each key is loaded once.
func TestEveryCallEndsWhateverTheViews(t *testing.T) {
	for _, views := range []int{2, 3, 5} {
		t.Run(fmt.Sprint(views), func(t *testing.T) {
			t.Parallel()
			seed := *first
			if seed == 0 {
				seed = uint64(time.Now().UnixNano() >> 20)
			}
			synctest.Test(t, func(t *testing.T) { disagree(t, seed, views) })
			if t.Failed() {
				t.Logf("again: go test ./checker -run WhateverTheViews/%d -first %d -steps %d", views, seed, *steps)
			}
		})
	}
}

// disagree has five caches see as many different lists as there are views, which change all the time.
func disagree(t *testing.T, seed uint64, views int) {
	const size, keys = 5, 20
	const patience = 10 * time.Second // many times what any call takes where all can be reached
	rng := rand.New(rand.NewPCG(seed, uint64(views)))
	c := cachetest.New(t, size, &shoal.Options{Logger: slog.New(slog.DiscardHandler)})
	for from := range size {
		for to := range size {
			c.Delay(from, to, time.Duration(1+rng.Int64N(int64(5*time.Millisecond))))
		}
	}
	var (
		mu     sync.Mutex // guards loads
		loads  = make(map[string]int)
		groups []*shoal.Group[int]
	)
	for i := range size {
		groups = append(groups, shoal.NewGroup(c.Cache(i), "g", func(ctx context.Context, key string) (int, error) {
			mu.Lock()
			loads[key]++
			mu.Unlock()
			time.Sleep(10 * time.Millisecond)
			return len(key), nil
		}, &shoal.GroupOptions[int]{HotRate: 0.3}))
	}

	var clients sync.WaitGroup
	over := make(chan struct{})
	for i := range size {
		for n := range 2 {
			rng := rand.New(rand.NewPCG(seed, uint64(100+2*i+n)))
			clients.Go(func() {
				for t.Context().Err() == nil && !closed(over) {
					time.Sleep(time.Duration(rng.ExpFloat64() * float64(100*time.Millisecond)))
					limit := patience
					if rng.IntN(20) == 0 {
						limit = time.Duration(rng.Int64N(int64(30 * time.Millisecond)))
					}
					ctx, cancel := context.WithTimeout(t.Context(), limit)
					key, began, what := key(rng.IntN(keys)), time.Now(), "Get"
					var err error
					switch n := rng.IntN(20); {
					case n < 13:
						_, err = groups[i].Get(ctx, key)
					case n < 14 && rng.IntN(4) > 0:
						what = "Fresh"
						_, err = groups[i].GetEntry(ctx, key, &shoal.GetOptions{Fresh: true})
					case n < 14:
						what = "Purge"
						err = groups[i].Purge(ctx)
					case n < 16:
						what = "GetMany"
						_, err = groups[i].GetMany(ctx, []string{key, "another", "a third"})
					case n < 17:
						what = "Remove"
						err = groups[i].Remove(ctx, key)
					case n < 18:
						what = "Add"
						_, err = shoal.Add(ctx, groups[i], key, 1)
					default:
						what = "Set"
						err = groups[i].Set(ctx, key, 1)
					}
					cancel()
					if took := time.Since(began); took > limit || limit == patience && errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("seed %d: %s(%q) at cache %d took %v of %v: %v", seed, what, key, i, took, limit, err)
					}
				}
			})
		}
	}

	lists := make([][]int, views)
	for range *steps {
		v := rng.IntN(views)
		list := someOf(rng, size)
		if slices.ContainsFunc(lists, func(other []int) bool { return slices.Equal(other, list) }) {
			continue
		}
		lists[v] = list
		var told sync.WaitGroup
		for i := v; i < size; i += views {
			told.Go(func() { c.See(i, list...) })
		}
		told.Wait()
		time.Sleep(time.Duration(rng.Int64N(int64(500 * time.Millisecond))))
	}
	close(over)
	clients.Wait()

	all := everybody(size)
	for i := range size {
		c.See(i, all...)
	}
	time.Sleep(20 * time.Second) // whoever is being asked again has answered
	var getters sync.WaitGroup
	for n := range 100 {
		for _, g := range groups {
			getters.Go(func() {
				if _, err := g.Get(t.Context(), fmt.Sprint("fresh ", n)); err != nil {
					t.Errorf("seed %d: when all see all: %v", seed, err)
				}
			})
		}
	}
	getters.Wait()
	for n := range 100 {
		if key := fmt.Sprint("fresh ", n); loads[key] != 1 {
			t.Errorf("seed %d: when all see all, %q is loaded %d times", seed, key, loads[key])
		}
	}
}

// someOf returns some of the indexes below size, at least one.
func someOf(rng *rand.Rand, size int) (some []int) {
	for len(some) == 0 {
		for i := range size {
			if rng.IntN(2) == 0 {
				some = append(some, i)
			}
		}
	}
	return some
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
