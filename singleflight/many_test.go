package singleflight_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal/singleflight"
)

type flights = []*flight

// keysOf returns the keys of fs.
func keysOf(fs flights) (keys []string) {
	for _, f := range fs {
		keys = append(keys, f.Key())
	}
	return keys
}

func TestDoManyCallsOnceForWhatIsNotUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		var wg sync.WaitGroup
		wg.Go(func() {
			g.Do(t.Context(), "a", 0, func(context.Context, *flight) (int, error) {
				time.Sleep(2 * time.Second)
				return 1, nil
			})
		})
		synctest.Wait()
		var called [][]string
		many := func(ctx context.Context, fs flights) {
			called = append(called, keysOf(fs))
			time.Sleep(time.Second)
			for _, f := range fs {
				f.End(10, nil)
			}
		}
		wg.Go(func() {
			got := g.DoMany(t.Context(), []string{"a", "b", "c"}, 0, many)
			if want := []singleflight.Result[int]{{Value: 1}, {Value: 10}, {Value: 10}}; !slices.Equal(got, want) {
				t.Errorf("got %v", got)
			}
		})
		synctest.Wait()
		wg.Go(func() { // joins both
			got := g.DoMany(t.Context(), []string{"c", "a"}, 0, many)
			if want := []singleflight.Result[int]{{Value: 10}, {Value: 1}}; !slices.Equal(got, want) {
				t.Errorf("got %v", got)
			}
		})
		wg.Go(func() {
			if v, err := g.Do(t.Context(), "b", 0, nil); v != 10 || err != nil {
				t.Error(v, err)
			}
		})
		wg.Wait()
		if fmt.Sprint(called) != "[[b c]]" {
			t.Errorf("called for %v", called)
		}
		if keys := g.Keys(); len(keys) > 0 {
			t.Errorf("%v are left", keys)
		}
	})
}

// Each flight of a call ends by itself, and its callers need not wait for the others.
func TestFlightsOfOneCallEndOneByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		bad := errors.New("bad")
		start := time.Now()
		go g.DoMany(t.Context(), []string{"a", "b", "c", "d"}, 0, func(_ context.Context, fs flights) {
			for i, f := range fs[:3] {
				time.Sleep(time.Second)
				f.End(i, []error{nil, bad, nil}[i])
				f.End(100, nil) // too late
			}
		})
		synctest.Wait()
		for i, key := range []string{"a", "b", "c"} {
			v, err := g.Do(t.Context(), key, 0, nil)
			if v != i || err != []error{nil, bad, nil}[i] || time.Since(start) != time.Duration(i+1)*time.Second {
				t.Errorf("%s: %d, %v after %v", key, v, err, time.Since(start))
			}
		}
		synctest.Wait()
		if keys := g.Keys(); len(keys) > 0 {
			t.Errorf("%v are left", keys)
		}
	})
}

func TestCallOfManyThatDoesNotEndItsFlights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, fn := range map[string]func(context.Context, flights){
			"returns": func(_ context.Context, fs flights) { fs[0].End(1, nil) },
			"panics":  func(_ context.Context, fs flights) { fs[0].End(1, nil); panic("bad") },
			"exits":   func(_ context.Context, fs flights) { fs[0].End(1, nil); runtime.Goexit() },
			"hangs":   func(ctx context.Context, fs flights) { fs[0].End(1, nil); <-ctx.Done(); time.Sleep(time.Hour) },
		} {
			var g group
			got := g.DoMany(t.Context(), []string{"a", "b", "c"}, time.Minute, fn)
			p, panicked := errors.AsType[*singleflight.PanicError](got[1].Err)
			switch {
			case got[0].Value != 1 || got[0].Err != nil || got[1].Err == nil || got[2].Err == nil:
				t.Errorf("%s: %v", name, got)
			case panicked != (name == "panics" || name == "exits") || panicked && (p.Value == nil) != (name == "exits"):
				t.Errorf("%s: %v", name, got[1].Err)
			case name == "hangs" && got[1].Err != context.DeadlineExceeded:
				t.Errorf("%s: %v", name, got[1].Err)
			}
			if keys := g.Keys(); len(keys) > 0 {
				t.Errorf("%s: %v are left", name, keys)
			}
		}
		time.Sleep(2 * time.Hour) // until the one that hangs is done
	})
}

// A call ends when nobody waits for any of its flights any more: those that have ended are not waited for.
func TestCallOfManyEndsWithItsLastCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		ended := make(chan time.Time, 1)
		begin := time.Now()
		wait := func(d time.Duration, keys ...string) {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			defer cancel()
			g.DoMany(ctx, keys, 0, func(ctx context.Context, fs flights) {
				time.Sleep(time.Second)
				fs[0].End(1, nil)
				<-ctx.Done()
				ended <- time.Now()
			})
		}
		var wg sync.WaitGroup
		wg.Go(func() { wait(2*time.Second, "a", "b", "c") })
		synctest.Wait()
		wg.Go(func() { wait(3*time.Second, "a", "c") })
		wg.Wait()
		if d := (<-ended).Sub(begin); d != 3*time.Second {
			t.Errorf("the call ended after %v", d)
		}
	})
}

func TestForgottenFlightsOfACallCommitNothing(t *testing.T) {
	var g group
	var stored []string
	g.DoMany(t.Context(), []string{"a", "b"}, 0, func(_ context.Context, fs flights) {
		g.Forget("a")
		for _, f := range fs {
			f.Commit(func() { stored = append(stored, f.Key()) })
			f.End(1, nil)
		}
	})
	if !slices.Equal(stored, []string{"b"}) {
		t.Errorf("stored %v", stored)
	}
}

// What overtakes a flight is not undone by it, nor by one that begins meanwhile.
func TestOvertakeStoresAfterAllThatHasBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		var mu sync.Mutex
		stored, overtaken := 0, false
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				g.Do(t.Context(), "a", 0, func(_ context.Context, f *flight) (int, error) {
					mu.Lock()
					before := !overtaken
					mu.Unlock()
					runtime.Gosched()
					f.Commit(func() {
						if before && stored == 7 {
							t.Error("a flight that had begun before has stored after")
						}
						stored = 1
					})
					return 1, nil
				})
			})
		}
		g.Overtake("a", func() {
			mu.Lock()
			defer mu.Unlock()
			stored, overtaken = 7, true
		})
		wg.Wait()
	})
}
