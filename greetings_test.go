package shoal_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/consistenthash"
	"github.com/shoalcache/shoal/shoalpb"
)

// restart starts cache i of f again, with a group that loads from get, and waits until it is Ready.
func restart[V any](t *testing.T, f *fleet[V], i int, get shoal.Getter[V], opts *shoal.GroupOptions[V]) {
	t.Helper()
	f.join(i, get, opts)
	must(t, f.Cache(i).Ready(t.Context()))
}

// join starts cache i of f again, with a group that loads from get.
func (f *fleet[V]) join(i int, get shoal.Getter[V], opts *shoal.GroupOptions[V]) {
	c := f.Restart(i)
	if get != nil {
		of := get
		get = func(ctx context.Context, key string) (V, error) {
			f.loads.Add(1)
			return of(ctx, key)
		}
	}
	f.groups[i] = shoal.NewGroup(c, "things", get, opts)
}

// ownerAmong returns which of some owns key where nobody else is seen.
func ownerAmong(key string, some ...int) int {
	members := make([]consistenthash.Member, len(some))
	for i, k := range some {
		members[i].ID = fmt.Sprint("http://cache-", k)
	}
	return some[consistenthash.New(members).Owner(key)]
}

// nextAmong returns which of some owns key where nobody else is seen, if its owner is not there.
func nextAmong(key string, some ...int) int {
	owner := ownerAmong(key, some...)
	return ownerAmong(key, slices.DeleteFunc(slices.Clone(some), func(i int) bool { return i == owner })...)
}

// keyWhere returns the first key for which ok holds.
func keyWhere(ok func(key string) bool) string {
	for k := 0; ; k++ {
		if key := fmt.Sprint("key ", k); ok(key) {
			return key
		}
	}
}

// History 5: the owner restarts, and is written to before anything else: who was lent a key by the process before it is told.
func TestRestartedOwnerTellsEverybodyOfItsFirstWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		opts := &shoal.GroupOptions[string]{HotLease: 5 * time.Second}
		f := newFleet(t, 3, nil, s.get, opts)
		key := ownedBy(f.Cluster, 0, 0)
		s.set(key, "old")
		f.calm(t)
		f.heat(t, 2, key)
		f.join(0, s.get, opts)
		s.set(key, "new")
		must(t, f.Cache(0).Ready(t.Context()))
		must(t, f.groups[1].Set(t.Context(), key, "new"))
		wantEverywhere(t, f, key, "new")
	})
}

// History 6: b acts on what has come to it before it has greeted a, which does not know of it yet.
func TestNewOwnerDoesNotActBeforeItHasGreetedEverybody(t *testing.T) {
	for name, act := range map[string]func(*fleet[string], context.Context, string){
		"read":  func(f *fleet[string], ctx context.Context, key string) { f.groups[1].Get(ctx, key) },
		"write": func(f *fleet[string], ctx context.Context, key string) { f.groups[1].Set(ctx, key, "overlaps") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s source
				f := newFleet(t, 2, nil, s.get, nil)
				key := ownedBy(f.Cluster, 1, 0)
				f.See(0, 0)
				f.See(1, 0) // its client
				time.Sleep(2 * time.Minute)
				s.set(key, "old")
				want(t, f, 0, key, "old")
				f.Delay(1, 0, 400*time.Millisecond)
				var wg sync.WaitGroup
				wg.Go(func() { f.See(1, 0, 1) })
				time.Sleep(60 * time.Millisecond)
				began := time.Now()
				wg.Go(func() {
					act(f, t.Context(), key)
					if took := time.Since(began); took < 300*time.Millisecond {
						t.Errorf("it acted after %v", took)
					}
				})
				time.Sleep(50 * time.Millisecond)
				s.set(key, "new")
				must(t, f.groups[0].Set(t.Context(), key, "new"))
				if name == "read" {
					want(t, f, 1, key, "new")
				}
				wg.Wait()
				s.set(key, "newer")
				must(t, f.groups[0].Set(t.Context(), key, "newer"))
				wantEverywhere(t, f, key, "newer")
			})
		})
	}
}

// Who has just been started does not know yet that it is not alone, and is not to say that there is nothing.
func TestWhoHasJustStartedWaitsForItsPeers(t *testing.T) {
	for name, c := range map[string]struct{ list, askers []int }{
		"a member":             {[]int{0, 1, 2}, []int{1, 2}},
		"not listed by itself": {[]int{0, 1}, []int{1}}, // and so others do not agree with it
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				two := &shoal.GroupOptions[string]{Owners: 2}
				f := newFleet[string](t, 3, nil, nil, two)
				theirs := keyWhere(func(key string) bool { return f.Owner(key) == 2 && nextAmong(key, 0, 1, 2) == 0 })
				other := ownedBy(f.Cluster, 0, 0)
				must(t, f.groups[0].Set(t.Context(), theirs, "value"))
				must(t, f.groups[0].Set(t.Context(), other, "value"))
				f.calm(t)
				f.Kill(2)
				f.See(2, c.list...)
				f.Delay(2, 0, 100*time.Millisecond)
				f.Delay(2, 1, 100*time.Millisecond)
				f.join(2, nil, two)
				time.Sleep(10 * time.Millisecond)
				var wg sync.WaitGroup
				for _, i := range c.askers {
					for _, key := range []string{theirs, other} {
						wg.Go(func() { want(t, f, i, key, "value") })
					}
				}
				wg.Wait()
			})
		})
	}
}

// Where lists change before those can be asked whom they name, a process that has just been started waits for those of one list.
func TestWhoHasJustStartedIsNotAloneForTheListsThatChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 8, nil, s.get, nil)
		key := keyWhere(func(key string) bool { return ownerAmong(key, 0, 1, 2) == 2 && ownerAmong(key, 0, 1) == 0 })
		f.Kill(2)
		for i := 3; i < 8; i++ {
			f.See(i, i)
		}
		f.See(0, 0, 1)
		f.See(1, 0, 1)
		time.Sleep(20 * time.Minute)
		s.set(key, "old")
		want(t, f, 0, key, "old")
		for i := range 2 {
			f.Delay(2, i, 100*time.Millisecond)
			f.Delay(i, 2, 100*time.Millisecond)
		}
		for i := 3; i < 8; i++ {
			f.Delay(2, i, time.Hour)
		}
		f.See(2, 2, 3)
		f.join(2, s.get, nil)
		var wg sync.WaitGroup
		wg.Go(func() {
			for _, list := range [][]int{{2, 3, 4}, {2, 3, 4, 5}, {2, 3, 4, 5, 6}, {0, 1, 2}} {
				time.Sleep(230 * time.Millisecond)
				wg.Go(func() { f.See(2, list...) })
			}
		})
		want(t, f, 2, key, "old")
		time.Sleep(time.Millisecond)
		s.set(key, "new")
		must(t, f.groups[1].Remove(t.Context(), key))
		want(t, f, 2, key, "new")
		wg.Wait()
	})
}

// History 6, the other half: a window is dated from the end of the greeting.
func TestWindowIsDatedFromTheEndOfTheGreeting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3, &shoal.Options{Warm: 20 * time.Second, PeerTimeout: 30 * time.Second}, upper, nil)
		for i := range f.groups {
			f.See(i, 0, 1)
		}
		time.Sleep(30 * time.Second)
		moves := keyWhere(func(key string) bool { return ownerAmong(key, 0, 1) == 0 && f.Owner(key) == 2 })
		f.See(0, 0, 1, 2)
		f.See(1, 0, 1, 2)
		time.Sleep(30 * time.Second)
		f.Delay(2, 0, 15*time.Second)
		f.See(2, 0, 1, 2) // takes so long
		f.Heal()
		for i := range f.groups { // each hears that the others agree
			for j := range f.groups {
				f.groups[i].Get(t.Context(), ownedBy(f.Cluster, j, 0))
			}
		}
		time.Sleep(15 * time.Second)
		for after, want := range []int64{1, 0} {
			before := f.groups[0].Stats().Drops
			must(t, f.groups[2].Set(t.Context(), moves, "value"))
			if n := f.groups[0].Stats().Drops - before; n != want {
				t.Errorf("%d s after the greeting: told %d times, want %d", 15+10*after, n, want)
			}
			time.Sleep(10 * time.Second)
		}
	})
}

// History 7: a lags, and takes writes as the owner of what b owns by its own view. It has been greeted by b, and so tells it.
func TestLaggingOwnerTellsWhoHasGreetedIt(t *testing.T) {
	for name, write := range map[string]func(*fleet[string], *testing.T, string) error{
		"set": func(f *fleet[string], t *testing.T, key string) error {
			return f.groups[0].Set(t.Context(), key, "new")
		},
		"remove": func(f *fleet[string], t *testing.T, key string) error { return f.groups[0].Remove(t.Context(), key) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s source
				f := newFleet(t, 2, nil, s.get, nil)
				f.See(0, 0)
				f.See(1, 1)
				time.Sleep(20 * time.Minute) // long forgotten
				f.See(1, 0, 1)
				time.Sleep(2 * time.Minute) // no window is open
				key := ownedBy(f.Cluster, 1, 0)
				s.set(key, "old")
				wantEverywhere(t, f, key, "old")
				s.set(key, "new")
				must(t, write(f, t, key))
				wantEverywhere(t, f, key, "new")
			})
		})
	}
}

// History 8: b accepts a write; before a is told, a Get at b finds the old value there.
func TestWhatWasWrittenIsNotTakenOverFromTheFormerOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, &shoal.Options{Warm: time.Hour}, s.get, nil)
		key := keyWhere(func(key string) bool { return f.Owner(key) == 1 && ownerAmong(key, 0, 2) == 0 })
		for i := range f.groups {
			f.See(i, 0, 2)
		}
		s.set(key, "old")
		want(t, f, 0, key, "old")
		f.Delay(1, 0, 100*time.Millisecond) // too slow to have been pulled
		for i := range f.groups {
			go f.See(i, 0, 1, 2)
		}
		for f.Cache(1).Peers(); len(f.Cache(1).Peers()) < 3; {
			time.Sleep(time.Millisecond)
		}
		f.Delay(2, 0, 300*time.Millisecond)
		s.set(key, "new")
		var wg sync.WaitGroup
		wg.Go(func() { must(t, f.groups[2].Remove(t.Context(), key)) })
		for range 10 {
			time.Sleep(25 * time.Millisecond)
			f.groups[1].Get(t.Context(), key)
		}
		wg.Wait()
		wantEverywhere(t, f, key, "new")
		time.Sleep(time.Second)
		wantEverywhere(t, f, key, "new")
	})
}

// History 9: p is told, fetches again from a, which lags, under a fresh lease, and then a is told.
func TestHolderIsToldAgainWhenItsLenderHasBeenTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, &shoal.GroupOptions[string]{HotLease: 5 * time.Second})
		f.See(0, 0, 2)
		f.See(2, 0, 2)
		key := keyWhere(func(key string) bool { return f.Owner(key) == 1 && ownerAmong(key, 0, 2) == 0 })
		s.set(key, "old")
		want(t, f, 0, key, "old")
		f.Delay(1, 0, 300*time.Millisecond)
		s.set(key, "new")
		var wg sync.WaitGroup
		wg.Go(func() { must(t, f.groups[1].Set(t.Context(), key, "new")) })
		time.Sleep(100 * time.Millisecond)
		if f.groups[2].Stats().Drops == 0 {
			t.Error("the holder to be has not been told yet")
		}
		f.heat(t, 2, key)
		want(t, f, 2, key, "old") // the write is not over
		wg.Wait()
		wantEverywhere(t, f, key, "new")
	})
}

// History 9, the other half: the acceptor loses the key to a process that has the old value and is told late.
func TestAcceptorThatLostTheKeyHasNoOldCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, &shoal.GroupOptions[string]{HotLease: 5 * time.Second})
		key := keyWhere(func(key string) bool { return f.Owner(key) == 0 && ownerAmong(key, 1, 2) == 1 })
		f.See(1, 1, 2)
		f.See(2, 1, 2)
		s.set(key, "old")
		want(t, f, 0, key, "old")
		f.Delay(2, 0, 400*time.Millisecond)
		s.set(key, "new")
		var wg sync.WaitGroup
		wg.Go(func() { must(t, f.groups[2].Set(t.Context(), key, "new")) })
		time.Sleep(50 * time.Millisecond)
		if f.groups[1].Stats().Writes != 1 {
			t.Error("the owner has not taken the write yet")
		}
		f.See(1, 0, 1, 2)
		f.heat(t, 1, key)
		wg.Wait()
		wantEverywhere(t, f, key, "new")
	})
}

// History 10: a leaves b's list but lives; b restarts, and hears of it from those it greets only.
func TestWhoIsGreetedNamesThoseThatAreListedNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, nil)
		key := keyWhere(func(key string) bool { return f.Owner(key) == 0 && ownerAmong(key, 1, 2) == 1 })
		f.See(1, 1, 2)
		f.See(2, 1, 2)
		s.set(key, "old")
		want(t, f, 0, key, "old")
		restart(t, f, 1, s.get, nil)
		s.set(key, "new")
		must(t, f.groups[1].Set(t.Context(), key, "new"))
		wantEverywhere(t, f, key, "new")
	})
}

// History 11: what is frozen must be gone when the new owner stops to tell its writes to all.
func TestFrozenEntriesDoNotComeBackAfterTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 2, nil, s.get, nil)
		key := ownedBy(f.Cluster, 1, 0)
		f.See(0, 0)
		s.set(key, "old")
		want(t, f, 0, key, "old")
		f.See(0, 0, 1)
		want(t, f, 1, key, "old")
		f.calm(t)
		s.set(key, "new")
		f.wantExchanges(t, "calm", 0, func() { must(t, f.groups[1].Set(t.Context(), key, "new")) })
		f.See(0, 0)
		want(t, f, 0, key, "new")
	})
}

// History 11, where a lags: it freezes what it loses late for so much less.
func TestFrozenEntriesOfOneThatLaggedDoNotComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 2, nil, s.get, nil)
		key := ownedBy(f.Cluster, 1, 0)
		f.See(1, 1)
		f.See(0, 0)
		time.Sleep(20 * time.Minute)
		s.set(key, "old")
		want(t, f, 0, key, "old")
		f.See(1, 0, 1)
		time.Sleep(50 * time.Second)
		f.See(0, 0, 1)
		f.groups[1].Get(t.Context(), ownedBy(f.Cluster, 0, 1)) // hears that it agrees now
		time.Sleep(12 * time.Second)
		if n := f.groups[0].Stats().Entries; n != 0 {
			t.Errorf("%d entries are still frozen", n)
		}
		s.set(key, "new")
		must(t, f.groups[1].Set(t.Context(), key, "new"))
		f.See(0, 0)
		want(t, f, 0, key, "new")
	})
}

// Of history 11: b owns a key for as long as it does not see a, which owns it all the time, and freezes what it has loaded.
func TestWhatAnotherHasOwnedMeanwhileIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 2, nil, s.get, nil)
		key := ownedBy(f.Cluster, 0, 0)
		time.Sleep(5 * time.Minute)
		f.See(1, 1)
		s.set(key, "old")
		want(t, f, 1, key, "old")
		f.See(1, 0, 1)
		time.Sleep(10 * time.Second)
		s.set(key, "new")
		must(t, f.groups[0].Set(t.Context(), key, "new"))
		f.See(0, 0, 1)
		restart(t, f, 0, s.get, nil)
		want(t, f, 0, key, "new")
	})
}

// History 12, and T12: b takes over while a is cut off, and a comes back with what it held. A write is a Set or a Remove.
func TestWhoWasCutOffDropsWhatWasWrittenMeanwhile(t *testing.T) {
	for name, write := range map[string]func(*fleet[string], *testing.T, string) error{
		"set": func(f *fleet[string], t *testing.T, key string) error {
			return f.groups[1].Set(t.Context(), key, "new")
		},
		"remove": func(f *fleet[string], t *testing.T, key string) error { return f.groups[2].Remove(t.Context(), key) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s source
				f := newFleet(t, 3, nil, s.get, nil)
				key := keyWhere(func(key string) bool { return f.Owner(key) == 0 && ownerAmong(key, 1, 2) == 1 })
				s.set(key, "old")
				want(t, f, 0, key, "old")
				f.calm(t)
				want(t, f, 0, key, "old")
				kept := ownedBy(f.Cluster, 0, 1)
				s.set(kept, "kept")
				want(t, f, 0, kept, "kept")
				f.Partition([]int{0}, []int{1, 2})
				f.See(1, 1, 2)
				f.See(2, 1, 2)
				s.set(key, "new")
				must(t, write(f, t, key))
				time.Sleep(2 * time.Minute)
				f.Heal()
				f.See(1, 0, 1, 2)
				f.See(2, 0, 1, 2)
				loads := f.loads.Load()
				wantEverywhere(t, f, key, "new")
				wantEverywhere(t, f, kept, "kept")
				if n := f.loads.Load() - loads; n > 1 {
					t.Errorf("%d loads afterwards: more was dropped than what was written", n)
				}
			})
		})
	}
}

// T44: the values of a member follow it to a new address.
func TestMemberAtANewAddressIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := new(hosts)
		said := make(chan []string)
		a := newPeer(t, h, shoal.Options{Self: "http://a", ID: "a", Discovery: lists(said)}, "a")
		old := newPeer(t, h, shoal.Options{Self: "http://10.0.0.1", ID: "pod-0", Discovery: shoal.Static("http://a", "http://10.0.0.1")}, "10.0.0.1")
		of := func(c *shoal.Cache, value string) *shoal.Group[string] {
			return shoal.NewGroup(c, "g", func(context.Context, string) (string, error) { return value, nil }, nil)
		}
		asking := of(a, "a's own")
		of(old, "the old one's")
		tell(said, "http://a", "http://10.0.0.1")
		ready(t, a)
		key := ""
		for n := 0; key == ""; n++ {
			k := fmt.Sprint("key ", n)
			if v, _ := asking.Get(t.Context(), k); v == "the old one's" {
				key = k
			}
		}
		old.Shutdown(t.Context())
		h.mu.Lock()
		delete(h.handlers, "10.0.0.1")
		h.mu.Unlock()
		moved := newPeer(t, h, shoal.Options{Self: "http://10.0.0.2", ID: "pod-0", Discovery: shoal.Static("http://a", "http://10.0.0.2")}, "10.0.0.2")
		group := of(moved, "the new one's")
		ready(t, moved)
		tell(said, "http://a", "http://10.0.0.2")
		ready(t, a)
		wantIDs(t, a, "a pod-0")
		must(t, asking.Remove(t.Context(), key))
		if v, err := asking.Get(t.Context(), key); v != "the new one's" || err != nil {
			t.Errorf("%q, %v", v, err)
		}
		must(t, asking.Set(t.Context(), key, "set"))
		if v, err := group.Get(t.Context(), key); v != "set" || err != nil {
			t.Errorf("%q, %v", v, err)
		}
		if n := group.Stats().Writes; n != 2 {
			t.Errorf("it has taken %d writes, want 2", n)
		}
	})
}

// T45: an empty list takes nobody away, and moves no keys.
func TestEmptyListMovesNoKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3, nil, upper, nil)
		keys := allOwnedBy(f.Cluster, 0, 30)
		for _, key := range keys {
			f.groups[1].Get(t.Context(), key)
		}
		for i := range f.groups {
			f.See(i)
		}
		for _, key := range keys {
			f.wantGets(t, key, 30)
		}
		for i := range f.groups {
			if n := len(f.Cache(i).Peers()); n != 3 {
				t.Errorf("cache %d sees %d peers", i, n)
			}
		}
	})
}

// Those that leave at the same time wait for each other no longer than for any that does not answer.
func TestAllThatLeaveAtOnceDoNotWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 5, nil, nil, nil)
		for k := range 100 {
			must(t, f.groups[k%5].Set(t.Context(), fmt.Sprint("key ", k), "value"))
		}
		began := time.Now()
		var wg sync.WaitGroup
		for i := range f.groups {
			wg.Go(func() { must(t, f.Cache(i).Shutdown(t.Context())) })
		}
		wg.Wait()
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
		for i := range f.groups {
			if err := f.Cache(i).Ready(t.Context()); err == nil {
				t.Errorf("cache %d is ready after Shutdown", i)
			}
		}
	})
}

// Of history 6: b has not been answered by a yet, and takes itself for alone. It acts before it has greeted anybody.
func TestNothingIsLeftOfTheTimeBeforeReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 2, nil, s.get, nil)
		f.Kill(1)
		f.See(0, 0)
		time.Sleep(20 * time.Minute)
		key := ownedBy(f.Cluster, 1, 0)
		s.set(key, "old")
		f.Delay(1, 0, 300*time.Millisecond)
		f.join(1, s.get, nil)
		var wg sync.WaitGroup
		wg.Go(func() { f.groups[1].Get(t.Context(), key) })
		time.Sleep(50 * time.Millisecond)
		s.set(key, "new")
		must(t, f.groups[0].Set(t.Context(), key, "new"))
		wg.Wait()
		must(t, f.Cache(1).Ready(t.Context())) // before that it may take itself for alone
		want(t, f, 1, key, "new")
	})
}

// Of history 10: a is in nobody's list but its own, and is quiet for longer than strangerLife. Lists may differ for any time.
func TestQuietStrangerIsToldOfWritesForAnyTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, nil)
		key := keyWhere(func(key string) bool { return f.Owner(key) == 0 && ownerAmong(key, 1, 2) == 1 })
		f.See(1, 1, 2)
		f.See(2, 1, 2)
		s.set(key, "old")
		want(t, f, 0, key, "old")
		time.Sleep(30 * time.Minute)
		want(t, f, 0, key, "old") // served from memory: it says nothing to anybody
		s.set(key, "new")
		must(t, f.groups[1].Set(t.Context(), key, "new"))
		want(t, f, 0, key, "new")
	})
}

// Of history 10: b has taken a write while it was alone, and a, which has something older, greets it before b sees a.
func TestWhoGreetsIsToldWhatWasWrittenBefore(t *testing.T) {
	for name, alone := range map[string]time.Duration{"young": time.Second, "old": 20 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s source
				f := newFleet(t, 3, nil, s.get, nil)
				f.Kill(0)
				f.See(0, 0)
				f.See(1, 1, 2)
				f.See(2, 1, 2)
				f.join(0, s.get, nil)
				time.Sleep(alone)
				key := keyWhere(func(key string) bool { return f.Owner(key) == 0 && ownerAmong(key, 1, 2) == 1 })
				s.set(key, "old")
				want(t, f, 0, key, "old")
				s.set(key, "new")
				must(t, f.groups[1].Set(t.Context(), key, "new"))
				f.See(0, 0, 1, 2)
				want(t, f, 0, key, "new")
				time.Sleep(time.Minute)
				want(t, f, 0, key, "new")
				want(t, f, 1, key, "new")
			})
		})
	}
}

// Of history 8: c has been told of a write just before its window opens, and the one that leaves has not been yet.
func TestWhatWasToldBeforeTheWindowIsNotTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, nil)
		f.See(0, 0, 1, 2)
		f.See(1, 0, 1) // lags
		f.See(2, 0, 1, 2)
		key := keyWhere(func(key string) bool {
			return f.Owner(key) == 0 && ownerAmong(key, 0, 1) == 0 && ownerAmong(key, 1, 2) == 2
		})
		time.Sleep(3 * time.Minute)
		s.set(key, "old")
		want(t, f, 0, key, "old")
		f.Delay(0, 2, 300*time.Millisecond)
		var wg sync.WaitGroup
		wg.Go(func() { must(t, f.Cache(0).Shutdown(t.Context())) })
		time.Sleep(20 * time.Millisecond)
		s.set(key, "new")
		f.Delay(1, 0, 400*time.Millisecond)
		wg.Go(func() { must(t, f.groups[1].Set(t.Context(), key, "new")) })
		time.Sleep(270 * time.Millisecond) // the leave arrives
		f.Delay(0, 2, 0)
		wg.Wait()
		time.Sleep(2 * time.Second)
		want(t, f, 2, key, "new")
		want(t, f, 1, key, "new")
	})
}

// A process that began to own keys while it said that it owns none is told of writes.
func TestWordThatIsOlderThanItsMessageIsNotTheLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 1, nil, nil, nil)
		hello := func(owns bool, views uint64) {
			_, reply := post(t, f.Cache(0), marshal(t, &shoalpb.Request{
				Sender: &shoalpb.Sender{Id: []byte("stranger"), Incarnation: 7, Views: 2},
				Op:     &shoalpb.Request_Hello{Hello: &shoalpb.Hello{Addr: []byte("http://nowhere"), Weight: 1, Owns: owns, Views: views}},
			}))
			if is := reply.GetSender().GetViews(); reply.GetHello().GetViews() != is || is == 0 {
				t.Errorf("it has had %d views, and says %d", is, reply.GetHello().GetViews())
			}
		}
		hello(true, 2)
		hello(false, 1)
		if err := f.groups[0].Set(t.Context(), "key", "value"); err == nil {
			t.Error("it is not told of a write")
		}
		hello(false, 2)
		must(t, f.groups[0].Set(t.Context(), "key", "newer"))
	})
}

// Who greets and cannot be reached hears that it could not be told, in its answer.
func TestWhoCannotBeToldHearsThat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 1, nil, nil, nil)
		hello := func() bool {
			_, reply := post(t, f.Cache(0), marshal(t, &shoalpb.Request{
				Sender: &shoalpb.Sender{Id: []byte("stranger"), Incarnation: 7, Views: 2},
				Op:     &shoalpb.Request_Hello{Hello: &shoalpb.Hello{Addr: []byte("http://nowhere"), Weight: 1, Owns: true}},
			}))
			return reply.GetHello().GetUntold()
		}
		must(t, f.groups[0].Set(t.Context(), "key", "value"))
		if !hello() {
			t.Error("it does not hear that it has not been told")
		}
	})
}

// Who sees other owners is told of a write that fell into a moment of its silence.
func TestWhoWasSilentAndSeesOtherOwnersIsToldWhatItHasMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, nil)
		f.See(2, 1, 2) // for any time: it does not list 0
		time.Sleep(5 * time.Minute)
		key := keyWhere(func(key string) bool { return f.Owner(key) == 0 && ownerAmong(key, 1, 2) == 2 })
		other := ownedBy(f.Cluster, 2, 0)
		s.set(key, "old")
		want(t, f, 0, key, "old")
		want(t, f, 2, key, "old")
		f.Delay(2, 0, 2*time.Second) // a pause of the collector, say
		f.groups[0].Get(t.Context(), other)
		s.set(key, "new")
		must(t, f.groups[0].Set(t.Context(), key, "new"))
		f.Heal()
		time.Sleep(time.Minute)
		f.groups[0].Get(t.Context(), other)
		want(t, f, 0, key, "new")
		want(t, f, 2, key, "new")
	})
}

// … also if it is in nobody's view.
func TestStrangerThatWasSilentIsToldWhatItHasMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 2, nil, s.get, nil)
		f.See(0, 0)
		f.See(1, 1)
		time.Sleep(20 * time.Minute)
		f.See(1, 0, 1)
		time.Sleep(2 * time.Minute)
		key := ownedBy(f.Cluster, 1, 0)
		s.set(key, "old")
		wantEverywhere(t, f, key, "old")
		// a write of another key fails, as the stranger is slow
		f.Delay(1, 0, 2*time.Second)
		f.groups[0].Set(t.Context(), "another", "x")
		s.set(key, "new")
		must(t, f.groups[0].Set(t.Context(), key, "new"))
		f.Heal()
		time.Sleep(time.Minute)
		f.groups[1].Get(t.Context(), ownedBy(f.Cluster, 0, 0))
		time.Sleep(time.Minute)
		wantEverywhere(t, f, key, "new")
	})
}

// One that is not listed any more, and was to be told so in vain, sees for itself that the owners have changed.
func TestWhoSeesOtherOwnersIsMetThoughAGreetingWasLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 2, nil, s.get, nil)
		time.Sleep(5 * time.Minute)
		key := ownedBy(f.Cluster, 1, 0)
		f.Delay(1, 0, time.Second)
		f.See(0, 0)
		f.Heal()
		time.Sleep(5 * time.Minute)
		s.set(key, "old")
		wantEverywhere(t, f, key, "old")
		f.groups[1].Get(t.Context(), ownedBy(f.Cluster, 0, 0))
		time.Sleep(time.Second)
		s.set(key, "new")
		must(t, f.groups[0].Set(t.Context(), key, "new"))
		wantEverywhere(t, f, key, "new")
	})
}

// What the other side of a cut has loaded meanwhile is frozen when that has healed, and must not thaw as its own.
func TestWhatWasLoadedWhileCutOffIsNotServedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, nil)
		time.Sleep(5 * time.Minute)
		key := keyWhere(func(key string) bool { return f.Owner(key) == 0 && ownerAmong(key, 1, 2) == 2 })
		s.set(key, "old")
		f.Partition([]int{0}, []int{1, 2})
		f.See(1, 1, 2)
		f.See(2, 1, 2)
		want(t, f, 2, key, "old")
		s.set(key, "new")
		must(t, f.groups[0].Set(t.Context(), key, "new")) // calm: it has heard of nothing
		f.Heal()
		f.See(1, 0, 1, 2)
		f.See(2, 0, 1, 2)
		time.Sleep(10 * time.Second)
		wantEverywhere(t, f, key, "new")
		must(t, f.Cache(0).Shutdown(t.Context()))
		f.See(1, 1, 2)
		f.See(2, 1, 2)
		want(t, f, 1, key, "new")
		want(t, f, 2, key, "new")
	})
}

// … though the writer's side has parted only after the write.
func TestWhatWasLoadedBeforeBothSidesPartedIsNotServedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, nil)
		time.Sleep(5 * time.Minute)
		key := keyWhere(func(key string) bool { return f.Owner(key) == 0 && ownerAmong(key, 1, 2) == 2 })
		s.set(key, "old")
		f.Partition([]int{0}, []int{1, 2})
		f.See(1, 1, 2)
		f.See(2, 1, 2)
		want(t, f, 2, key, "old")
		time.Sleep(time.Second)
		s.set(key, "new")
		must(t, f.groups[0].Set(t.Context(), key, "new"))
		time.Sleep(time.Second)
		f.See(0, 0)
		time.Sleep(10 * time.Second)
		f.Heal()
		for i := range 3 {
			f.See(i, 0, 1, 2)
		}
		time.Sleep(10 * time.Second)
		wantEverywhere(t, f, key, "new")
		must(t, f.Cache(0).Shutdown(t.Context())) // a rolling restart goes on
		f.See(1, 1, 2)
		f.See(2, 1, 2)
		want(t, f, 1, key, "new")
		want(t, f, 2, key, "new")
	})
}

// Who starts when a cut has healed, and others do not list each other yet, may have values from the side that has missed a write.
func TestWhoStartsWhenACutHasHealedHasNothingOld(t *testing.T) {
	for name, loads := range map[string]bool{"with a getter": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s source
				var get shoal.Getter[string]
				if loads {
					get = s.get
				}
				f := newFleet(t, 4, nil, get, nil)
				key := keyWhere(func(key string) bool {
					return f.Owner(key) == 3 && ownerAmong(key, 0, 1, 2) == 2 && ownerAmong(key, 0, 1) == 0
				})
				f.Kill(3)
				for i := range 3 {
					f.See(i, 0, 1, 2)
				}
				time.Sleep(2 * time.Minute)
				s.set(key, "old")
				must(t, f.groups[2].Set(t.Context(), key, "old"))
				f.Partition([]int{0, 1, 3}, []int{2})
				f.See(0, 0, 1)
				f.See(1, 0, 1)
				f.See(2, 2)
				time.Sleep(time.Minute)
				s.set(key, "new")
				must(t, f.groups[1].Remove(t.Context(), key))
				time.Sleep(time.Minute)
				f.Heal()
				f.See(3, 0, 1, 2, 3)
				f.join(3, get, nil)
				f.groups[3].Get(t.Context(), key)
				time.Sleep(500 * time.Millisecond)
				for i := range 3 {
					f.See(i, 0, 1, 2, 3)
				}
				time.Sleep(5 * time.Minute)
				for i, g := range f.groups {
					if v, _ := g.Get(t.Context(), key); v == "old" {
						t.Errorf("cache %d: Get = %q", i, v)
					}
				}
			})
		})
	}
}

// Who starts drops nothing that was written before it for those who were away and have ended: they give it nothing.
func TestWhoStartsIsNotToldForThoseThatHaveEnded(t *testing.T) {
	for name, end := range map[string]func(*fleet[string]){
		"left":     func(f *fleet[string]) { f.Cache(2).Shutdown(context.Background()) },
		"replaced": func(f *fleet[string]) { f.join(2, upper, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, 4, nil, upper, nil)
				must(t, f.Cache(3).Shutdown(t.Context()))
				for i := range 3 {
					f.See(i, 0, 1, 2)
				}
				time.Sleep(2 * time.Minute)
				f.Partition([]int{0, 1, 3}, []int{2})
				f.See(0, 0, 1)
				f.See(1, 0, 1)
				must(t, f.groups[0].Remove(t.Context(), ownedBy(f.Cluster, 0, 0)))
				time.Sleep(time.Minute)
				f.Heal()
				end(f)
				f.See(0, 0, 1, 2)
				f.See(1, 0, 1, 2)
				time.Sleep(time.Minute)
				f.See(3, 0, 1, 2, 3)
				f.join(3, upper, nil)
				time.Sleep(time.Minute)
				if n := f.Cache(3).Stats().Groups[0].Drops; n != 0 {
					t.Errorf("who has started had to drop %d keys", n)
				}
			})
		})
	}
}

// An answer to a greeting that is overtaken by word that its sender leaves makes nobody a member.
func TestLeaverWhoseGreetingIsUnderWayIsNoMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3, nil, upper, nil)
		f.See(1, 1, 2)
		f.See(0, 0, 1, 2)
		time.Sleep(5 * time.Minute)
		f.Delay(0, 1, 300*time.Millisecond)
		go f.See(1, 0, 1, 2)
		time.Sleep(100 * time.Millisecond) // 50 ms debounce, and then the question is answered
		f.Heal()
		must(t, f.Cache(0).Shutdown(t.Context()))
		time.Sleep(5 * time.Minute)
		for i := 1; i < 3; i++ {
			if n := len(f.Cache(i).Peers()); n != 2 {
				t.Errorf("cache %d sees %d: %v", i, n, f.Cache(i).Peers())
			}
		}
	})
}
