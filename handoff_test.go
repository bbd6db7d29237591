package shoal_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/shoalpb"
	"google.golang.org/protobuf/proto"
)

// A crowd asks all of a fleet for keys, again and again, until it ends.
type crowd struct {
	wg      sync.WaitGroup
	gets    atomic.Int64
	mu      sync.Mutex     // guards members
	members map[int]func() // by cache, how it ends
}

// gather has a group asked for n keys, a few every twenty milliseconds.
func (c *crowd) gather(t *testing.T, i int, g *shoal.Group[string], n int) {
	ctx, cancel := context.WithCancel(t.Context())
	c.mu.Lock()
	if c.members == nil {
		c.members = make(map[int]func())
	}
	c.members[i] = cancel
	c.mu.Unlock()
	for m := range 2 {
		c.wg.Go(func() {
			for k := 0; ctx.Err() == nil; k++ {
				key := fmt.Sprint("key ", (2*k+m)%n)
				v, err := g.Get(context.Background(), key)
				if ctx.Err() == nil && (v != strings.ToUpper(key) || err != nil) {
					t.Errorf("cache %d: Get(%q) = %q, %v", i, key, v, err)
				}
				c.gets.Add(1)
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
}

// leaves has nobody ask cache i any more, as when a load balancer takes it out.
func (c *crowd) leaves(i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members[i]()
	delete(c.members, i)
}

func (c *crowd) end() {
	for i := range c.members {
		c.members[i]()
	}
	c.wg.Wait()
}

// wantFewLoads checks that keys were loaded once each, but for one in a hundred.
func (f *fleet[V]) wantFewLoads(t *testing.T, keys int64) {
	t.Helper()
	if n := f.loads.Load(); n < keys || n > keys+keys/100 {
		t.Errorf("%d loads of %d keys", n, keys)
	}
}

// Values follow their keys: processes are replaced one after another, and nothing is loaded twice.
func TestRollingRestartLoadsNothingAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const keys = 200
		f := newFleet(t, 3, nil, slow(5*time.Millisecond), nil)
		var c crowd
		for i, g := range f.groups {
			c.gather(t, i, g, keys)
		}
		time.Sleep(5 * time.Second)
		for i := range f.groups {
			c.leaves(i)
			must(t, f.Cache(i).Shutdown(t.Context()))
			time.Sleep(time.Second)
			restart(t, f, i, slow(5*time.Millisecond), nil)
			c.gather(t, i, f.groups[i], keys)
			time.Sleep(4 * time.Second)
		}
		c.end()
		f.wantFewLoads(t, keys)
		if n := c.gets.Load(); n < 10*keys {
			t.Errorf("only %d gets", n)
		}
	})
}

// … and so they do when processes are added, and taken away again.
func TestScalingLoadsNothingAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const keys = 200
		get := slow(5 * time.Millisecond)
		f := newFleet(t, 5, nil, get, nil)
		f.Kill(3)
		f.Kill(4)
		for i := range 3 {
			f.See(i, 0, 1, 2)
		}
		var c crowd
		for i := range 3 {
			c.gather(t, i, f.groups[i], keys)
		}
		time.Sleep(5 * time.Second)
		all := []int{0, 1, 2}
		for i := 3; i < 5; i++ {
			all = append(all, i)
			f.See(i, all...)
			f.join(i, get, nil)
			for _, j := range all[:i] {
				f.See(j, all...)
				time.Sleep(500 * time.Millisecond) // lists come to each at its own time
			}
			must(t, f.Cache(i).Ready(t.Context()))
			c.gather(t, i, f.groups[i], keys)
			time.Sleep(4 * time.Second)
		}
		if n := f.groups[4].Stats().Entries; n < keys/20 {
			t.Errorf("the last has %d entries", n)
		}
		for i := 4; i >= 3; i-- {
			c.leaves(i)
			must(t, f.Cache(i).Shutdown(t.Context()))
			time.Sleep(time.Second)
			all = all[:i]
			for _, j := range all {
				f.See(j, all...)
				time.Sleep(500 * time.Millisecond)
			}
			time.Sleep(4 * time.Second)
		}
		c.end()
		f.wantFewLoads(t, keys)
	})
}

// … and when a quarter of them is replaced at once, as a Deployment of Kubernetes does, though everybody's list lags.
func TestReplacingAQuarterAtOnceLoadsLittleAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const keys, size, atOnce = 200, 8, 2
		get := slow(5 * time.Millisecond)
		f := newFleet(t, 2*size, nil, get, nil)
		var (
			c       crowd
			mu      sync.Mutex // guards listed
			listed  []int
			telling sync.WaitGroup
		)
		list := func(change func()) []int {
			mu.Lock()
			defer mu.Unlock()
			change()
			return slices.Clone(listed)
		}
		now := func() []int { return list(func() {}) }
		tell := func() {
			for _, i := range now() {
				telling.Go(func() {
					time.Sleep(rand.N(2 * time.Second))
					f.See(i, now()...)
				})
			}
		}
		for i := range size {
			f.Kill(size + i)
			listed = append(listed, i)
		}
		for i := range size {
			f.See(i, listed...)
		}
		for i := range size {
			c.gather(t, i, f.groups[i], keys)
		}
		time.Sleep(10 * time.Second)
		for i := 0; i < size; i += atOnce {
			var wg sync.WaitGroup
			for leaves := i; leaves < i+atOnce; leaves++ {
				wg.Go(func() {
					list(func() { listed = slices.DeleteFunc(listed, func(i int) bool { return i == leaves }) })
					c.leaves(leaves)
					began := time.Now()
					must(t, f.Cache(leaves).Shutdown(t.Context()))
					if took := time.Since(began); took > 800*time.Millisecond { // of two that leave, neither waits for the other
						t.Errorf("it took %v to leave", took)
					}
					f.Kill(leaves)
				})
				wg.Go(func() {
					comes := leaves + size
					time.Sleep(rand.N(time.Second))
					f.See(comes, list(func() { listed = append(listed, comes) })...)
					f.join(comes, get, nil)
					must(t, f.Cache(comes).Ready(t.Context()))
					c.gather(t, comes, f.groups[comes], keys)
				})
			}
			tell()
			wg.Wait()
			tell()
			time.Sleep(rand.N(3 * time.Second))
		}
		telling.Wait()
		time.Sleep(5 * time.Second)
		c.end()
		if n := f.loads.Load(); n < keys || n > keys+keys/20 {
			t.Errorf("%d loads of %d keys", n, keys)
		}
	})
}

// T53: two restarts right after one another, each shut down as it should be, lose nothing.
func TestTwoQuickRestartsLoseNothing(t *testing.T) {
	for name, get := range map[string]shoal.Getter[string]{"with a getter": upper, "without": nil} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				opts := &shoal.GroupOptions[string]{Owners: 2}
				f := newFleet(t, 3, nil, get, opts)
				for k := range 200 {
					key := fmt.Sprint("key ", k)
					if get == nil {
						must(t, f.groups[k%3].Set(t.Context(), key, strings.ToUpper(key)))
					} else {
						want(t, f, k%3, key, strings.ToUpper(key))
					}
				}
				loads := f.loads.Load()
				for i := range 2 {
					must(t, f.Cache(i).Shutdown(t.Context()))
					restart(t, f, i, get, opts)
				}
				for k := range 200 {
					key := fmt.Sprint("key ", k)
					wantEverywhere(t, f, key, strings.ToUpper(key))
				}
				f.wantLoads(t, loads)
			})
		})
	}
}

// … not even of two, of which each is alone for a while.
func TestTwoRestartsOfTwoLoadNothingAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, upper, nil)
		for k := range 100 {
			want(t, f, k%2, fmt.Sprint("key ", k), fmt.Sprint("KEY ", k))
		}
		for i := range 4 {
			i %= 2
			must(t, f.Cache(i).Shutdown(t.Context()))
			f.See(1-i, 1-i)
			time.Sleep(100 * time.Millisecond)
			restart(t, f, i, upper, nil)
			f.See(1-i, 0, 1)
			time.Sleep(100 * time.Millisecond)
		}
		for k := range 100 {
			want(t, f, k%2, fmt.Sprint("key ", k), fmt.Sprint("KEY ", k))
		}
		f.wantLoads(t, 100)
	})
}

// History 14: what is pulled is never newer than what was written here, whatever its version says.
func TestPulledEntriesDoNotReplaceWhatWasWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 2, nil, s.get, nil)
		key := ownedBy(f.Cluster, 1, 0)
		f.See(0, 0)
		s.set(key, "old")
		want(t, f, 0, key, "old")
		f.Delay(0, 1, 200*time.Millisecond)
		var wg sync.WaitGroup
		wg.Go(func() { f.See(0, 0, 1) })
		for n := range 30 { // before, while and after its answer to the pull is on its way
			time.Sleep(50 * time.Millisecond)
			value := fmt.Sprint("new ", n)
			s.set(key, value)
			if n%2 == 0 {
				must(t, f.groups[1].Remove(t.Context(), key))
			} else {
				must(t, f.groups[1].Set(t.Context(), key, value))
			}
			want(t, f, 1, key, value)
		}
		wg.Wait()
	})
}

// An entry is not pulled into a cache whose load of the key may be under way.
func TestLoadsThatAreUnderWayAreNotOvertakenByPulls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 2, nil, s.get, nil)
		key := ownedBy(f.Cluster, 1, 0)
		f.See(0, 0)
		s.set(key, "old")
		want(t, f, 0, key, "old")
		s.set(key, "new")
		s.slow(300 * time.Millisecond)
		f.Delay(0, 1, 120*time.Millisecond) // the peek comes to nothing
		f.See(0, 0, 1)
		must(t, f.groups[1].Remove(t.Context(), key))
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { want(t, f, 1, key, "new") })
			time.Sleep(30 * time.Millisecond)
		}
		wg.Wait()
	})
}

// A purge reaches what is frozen, and what is on its way.
func TestPulledEntriesArePurged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 2, nil, s.get, nil)
		keys := allOwnedBy(f.Cluster, 1, 20)
		f.See(0, 0)
		for _, key := range keys {
			s.set(key, "old")
			want(t, f, 0, key, "old")
		}
		f.Delay(0, 1, 200*time.Millisecond)
		var wg sync.WaitGroup
		wg.Go(func() { f.See(0, 0, 1) })
		time.Sleep(400 * time.Millisecond)
		for _, key := range keys {
			s.set(key, "new")
		}
		must(t, f.groups[1].Purge(t.Context()))
		wg.Wait()
		time.Sleep(3 * time.Second)
		for _, key := range keys {
			want(t, f, 1, key, "new")
		}
	})
}

// What was set in a group without a getter is there after a rolling restart of all.
func TestRollingRestartLosesNothing(t *testing.T) {
	for owners := range 3 {
		t.Run(fmt.Sprint(owners, " owners"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				opts := &shoal.GroupOptions[string]{Owners: owners}
				f := newFleet[string](t, 3, nil, nil, opts)
				for k := range 200 {
					must(t, f.groups[k%3].Set(t.Context(), fmt.Sprint("key ", k), fmt.Sprint("value ", k)))
				}
				for i := range f.groups {
					must(t, f.Cache(i).Shutdown(t.Context()))
					restart(t, f, i, nil, opts)
				}
				for k := range 200 {
					wantEverywhere(t, f, fmt.Sprint("key ", k), fmt.Sprint("value ", k))
				}
			})
		})
	}
}

// Ready says that what cannot be loaded has been taken over.
func TestReadyWaitsForWhatCannotBeLoaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 2, nil, nil, nil)
		f.Kill(1)
		f.See(0, 0)
		keys := allOwnedBy(f.Cluster, 1, 300)
		for _, key := range keys {
			must(t, f.groups[0].Set(t.Context(), key, strings.Repeat(key, 1000)))
		}
		f.join(1, nil, nil)
		time.Sleep(time.Second)
		f.Delay(0, 1, 50*time.Millisecond)
		f.See(0, 0, 1)
		must(t, f.Cache(1).Ready(t.Context()))
		if n := f.groups[1].Stats().Entries; n != 300 {
			t.Errorf("it is Ready with %d of 300", n)
		}
	})
}

// A program makes its groups after New, while peers may be greeted already: what is theirs is taken over all the same.
func TestGroupsMadeLaterAreTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 2, nil, nil, nil)
		f.Kill(1)
		f.See(0, 0)
		keys := allOwnedBy(f.Cluster, 1, 30)
		for _, key := range keys {
			must(t, f.groups[0].Set(t.Context(), key, key))
		}
		f.See(0, 0, 1)
		c := f.Restart(1)
		time.Sleep(time.Second) // it reads its configuration
		f.groups[1] = shoal.NewGroup[string](c, "things", nil, nil)
		must(t, c.Ready(t.Context()))
		if n := f.groups[1].Stats().Entries; n != 30 {
			t.Errorf("it is Ready with %d of 30", n)
		}
		time.Sleep(2 * time.Minute)
		for _, key := range keys {
			want(t, f, 1, key, key)
		}
	})
}

// Lists that have come to some later than to others are no reason to drop, at the next change, what others own then.
func TestJoinAfterListsThatLagged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 4, nil, nil, nil)
		f.Kill(3)
		for i := range 3 {
			f.See(i, 0, 1, 2)
			time.Sleep(time.Second)
		}
		keys := setAll(t, f.groups[0], "k", 200, "value")
		time.Sleep(5 * time.Minute)
		f.See(3, 0, 1, 2, 3)
		f.join(3, nil, nil)
		for i := range 3 {
			f.See(i, 0, 1, 2, 3)
			time.Sleep(time.Second)
		}
		time.Sleep(time.Second)
		if n := lostOf(t, f.groups[0], keys, "value"); n > 0 {
			t.Errorf("%d of %d are lost", n, len(keys))
		}
	})
}

// What goes to others with a change of the peers is kept for them as long as it may be, whatever went with one before.
func TestWhatGoesLaterIsKeptForAsLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3, nil, upper, nil)
		for i := range 3 {
			f.See(i, 0)
		}
		first := keyWhere(func(key string) bool { return ownerAmong(key, 0, 1) == 1 && f.Owner(key) == 1 })
		later := keyWhere(func(key string) bool { return ownerAmong(key, 0, 1) == 0 && f.Owner(key) == 2 })
		want(t, f, 0, first, strings.ToUpper(first))
		want(t, f, 0, later, strings.ToUpper(later))
		kept := func(want int64) {
			t.Helper()
			if n := f.groups[0].Stats().Entries; n != want {
				t.Errorf("it has %d entries, want %d", n, want)
			}
		}
		for i := range 3 {
			f.See(i, 0, 1)
		}
		time.Sleep(20 * time.Second)
		for i := range 3 {
			f.See(i, 0, 1, 2)
		}
		kept(2)
		time.Sleep(15 * time.Second) // half a Warm since the first change
		kept(1)
		time.Sleep(20 * time.Second)
		kept(0)
	})
}

// Who learns late that its keys are another's keeps them for as long as it takes to fetch them.
func TestWhatALaggardLosesIsTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 2, nil, nil, nil)
		f.See(0, 0)
		f.See(1, 0) // its client
		keys := setAll(t, f.groups[1], "k", 40, "value")
		time.Sleep(20 * time.Minute)
		f.See(1, 0, 1)
		time.Sleep(50 * time.Second)
		f.See(0, 0, 1)
		time.Sleep(time.Minute)
		if n := lostOf(t, f.groups[1], keys, "value"); n > 0 {
			t.Errorf("%d of 40 are lost", n)
		}
	})
}

// filtered serves c at host, and calls before for each Request.
func filtered(h *hosts, host string, c http.Handler, before func(*shoalpb.Request)) {
	h.set(host, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		req := new(shoalpb.Request)
		if proto.Unmarshal(body, req) == nil {
			before(req)
		}
		c.ServeHTTP(w, r)
	}))
}

// Where nothing can be loaded, who has had a key is waited for, and a counter does not begin anew.
func TestSlowFormerOwnerIsNotTakenForOneWithNothing(t *testing.T) {
	for _, d := range []time.Duration{0, 150 * time.Millisecond} {
		t.Run(d.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := new(hosts)
				var slow atomic.Bool
				start := func(name string, list ...string) (*shoal.Cache, *shoal.Group[string], *shoal.Group[int]) {
					c := newPeer(t, h, shoal.Options{Self: name, Discovery: shoal.Static(list...)})
					filtered(h, name, c, func(r *shoalpb.Request) {
						if slow.Load() && (r.GetPeek() != nil || r.GetPull() != nil) {
							time.Sleep(d)
						}
					})
					return c, shoal.NewGroup[string](c, "things", nil, nil), shoal.NewGroup[int](c, "counts", nil, nil)
				}
				a, ga, na := start("a", "a")
				ready(t, a)
				time.Sleep(5 * time.Minute)
				keys := setAll(t, ga, "k", 50, "value")
				for _, k := range keys {
					if _, err := shoal.Add(t.Context(), na, k, 5); err != nil {
						t.Fatal(err)
					}
				}
				slow.Store(true)
				b, gb, nb := start("b", "a", "b")
				b.Peers()
				for len(b.Peers()) < 2 {
					time.Sleep(time.Millisecond)
				}
				var notFound, lost, other int
				for _, k := range keys[:25] {
					if _, err := gb.Get(t.Context(), k); errors.Is(err, shoal.ErrNotFound) {
						notFound++
					} else if err != nil {
						other++
					}
					if n, err := shoal.Add(t.Context(), nb, k, 1); err == nil && n != 6 {
						lost++
					}
				}
				t.Logf("not found %d, other errors %d, counters reset %d, of 25", notFound, other, lost)
				if notFound+lost > 0 {
					t.Errorf("not found %d, other errors %d, counters reset %d, of 25", notFound, other, lost)
				}
			})
		})
	}
}

// A Get that looks for a key where it was, in vain, does not keep it from being pulled.
func TestPulledValuesAreKeptWhileTheyAreLookedForElsewhere(t *testing.T) {
	for name, test := range map[string]struct {
		peek, patience time.Duration
	}{
		"control": {0, time.Second}, "slow peek": {60 * time.Millisecond, time.Second}, "caller leaves": {30 * time.Millisecond, 20 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := new(hosts)
				var slow atomic.Bool
				start := func(name string) (*shoal.Cache, *shoal.Group[string]) {
					c := newPeer(t, h, shoal.Options{Self: name, Discovery: shoal.Static("a", "b")})
					filtered(h, name, c, func(r *shoalpb.Request) {
						if slow.Load() && r.GetPeek() != nil && test.peek > 0 {
							time.Sleep(test.peek)
						}
						if slow.Load() && r.GetPull() != nil {
							time.Sleep(10 * time.Millisecond)
						}
					})
					return c, shoal.NewGroup[string](c, "things", nil, nil)
				}
				a, ga := start("a")
				b, gb := start("b")
				ready(t, a)
				ready(t, b)
				time.Sleep(5 * time.Minute)
				keys := setAll(t, ga, "k", 50, "value")
				slow.Store(true)
				var wg sync.WaitGroup
				wg.Go(func() {
					if err := a.Shutdown(t.Context()); err != nil {
						t.Error(err)
					}
				})
				for len(b.Peers()) > 1 {
					time.Sleep(time.Millisecond)
				}
				for _, k := range keys {
					wg.Go(func() {
						ctx, cancel := context.WithTimeout(t.Context(), test.patience)
						defer cancel()
						gb.Get(ctx, k)
					})
				}
				wg.Wait()
				time.Sleep(time.Minute)
				if n := lostOf(t, gb, keys, "value"); n > 0 {
					t.Errorf("%d of 50 are lost", n)
				}
			})
		})
	}
}
