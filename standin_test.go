package shoal_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
)

// The owner dies: for each time of a lease, the next owner loads each key once, however many ask.
func TestStandInLoadsOnceForTheFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 5, nil, slow(20*time.Millisecond), nil)
		keys := allOwnedBy(f.Cluster, 0, 5)
		f.calm(t)
		f.loads.Store(0)
		f.Kill(0)
		ask := func() {
			var wg sync.WaitGroup
			for i := 1; i < 5; i++ {
				for range 5 {
					for _, key := range keys {
						wg.Go(func() {
							if _, err := f.groups[i].Get(t.Context(), key); err != nil {
								t.Error(err)
							}
						})
					}
				}
			}
			wg.Wait()
		}
		began := time.Now()
		for time.Since(began) < 4900*time.Millisecond {
			ask()
			time.Sleep(200 * time.Millisecond)
		}
		f.wantLoads(t, 5)
		for time.Since(began) < 9900*time.Millisecond {
			ask()
			time.Sleep(200 * time.Millisecond)
		}
		f.wantLoads(t, 10)
		for i := 1; i < 5; i++ {
			f.See(i, 1, 2, 3, 4)
		}
		for range 60 { // 12 s
			ask()
			time.Sleep(200 * time.Millisecond)
		}
		if n := f.loads.Load(); n > 15 {
			t.Errorf("%d loads, want at most one more of each key at its new owner", n)
		}
	})
}

// … also while one after the other drops it from its list: who does so first asks the next owner, who still sees the dead one.
func TestStandInLoadsOnceWhileListsDropTheOwner(t *testing.T) {
	for name, opts := range map[string]*shoal.GroupOptions[string]{"one owner": nil, "two owners": {Owners: 2}} {
		for _, order := range [][]int{{1, 2, 3}, {3, 2, 1}} {
			t.Run(fmt.Sprint(name, order), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFleet(t, 4, nil, upper, opts)
					keys := allOwnedBy(f.Cluster, 0, 20)
					f.calm(t)
					for _, key := range keys {
						want(t, f, 0, key, strings.ToUpper(key))
					}
					time.Sleep(time.Second) // the replicas are given it
					f.loads.Store(0)
					f.Kill(0)
					ask := func() {
						for _, g := range f.groups[1:] {
							all, err := g.GetMany(t.Context(), keys[:len(keys)/2])
							if must(t, err); len(all) != len(keys)/2 {
								t.Errorf("%d values of %d", len(all), len(keys)/2)
							}
							for _, key := range keys {
								if _, err := g.Get(t.Context(), key); err != nil {
									t.Error(err)
								}
							}
						}
					}
					ask()
					for _, i := range order {
						f.See(i, 1, 2, 3)
						for range 3 {
							time.Sleep(100 * time.Millisecond)
							ask()
						}
					}
					most := int64(2 * len(keys)) // by the next owner, in its place and as the owner
					if opts != nil {
						most = 0
					}
					if n := f.loads.Load(); n > most {
						t.Errorf("%d loads of %d keys, want at most %d", n, len(keys), most)
					}
				})
			})
		}
	}
}

// … also if it is silent: who has dropped it from its list knows that it is, and does not wait for it again and again.
func TestSilentOwnerCostsNothingWhileListsDropIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 4, nil, upper, nil)
		keys := allOwnedBy(f.Cluster, 0, 100)
		f.calm(t)
		f.Partition([]int{0}, []int{1, 2, 3})
		for _, g := range f.groups[1:] {
			g.GetMany(t.Context(), keys)
		}
		f.See(1, 1, 2, 3)
		time.Sleep(time.Second)
		began := time.Now()
		for _, key := range keys {
			want(t, f, 1, key, strings.ToUpper(key))
		}
		if all, err := f.groups[1].GetMany(t.Context(), keys); len(all) != len(keys) || err != nil {
			t.Errorf("%d values, %v", len(all), err)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("it took %v", took)
		}
	})
}

// History 13: the copies of a stand-in end with the first word of the owner.
func TestCopiesOfAStandInEndWhenTheOwnerIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, nil)
		key := keyWhere(func(key string) bool { return f.Owner(key) == 0 && nextAmong(key, 0, 1, 2) == 1 })
		s.set(key, "old")
		f.calm(t)
		cut(f, 0, 1)
		want(t, f, 1, key, "old")
		if f.groups[1].Stats().HotEntries != 1 {
			t.Fatal("it holds no copy")
		}
		s.set(key, "new")
		must(t, f.groups[2].Remove(t.Context(), key)) // nobody knows of the copy
		f.Heal()
		time.Sleep(2 * time.Second)
		want(t, f, 1, key, "new")
	})
}

// … and what it is loading is not kept.
func TestLoadsOfAStandInAreForgottenWhenTheOwnerIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, nil)
		key := keyWhere(func(key string) bool { return f.Owner(key) == 0 && nextAmong(key, 0, 1, 2) == 1 })
		s.set(key, "old")
		f.calm(t)
		cut(f, 0, 1)
		f.groups[1].Get(t.Context(), ownedBy(f.Cluster, 0, 3)) // finds out
		s.slow(3 * time.Second)
		var wg sync.WaitGroup
		wg.Go(func() { want(t, f, 1, key, "old") })
		time.Sleep(500 * time.Millisecond)
		s.set(key, "new")
		s.slow(0)
		must(t, f.groups[2].Remove(t.Context(), key))
		f.Heal()
		time.Sleep(2 * time.Second)
		want(t, f, 1, key, "new")
		wg.Wait()
		want(t, f, 1, key, "new")
		if n := f.groups[1].Stats().HotEntries; n != 0 {
			t.Errorf("it holds %d copies", n)
		}
	})
}

// cut has two caches hear nothing of each other.
func cut(f *fleet[string], a, b int) {
	f.Delay(a, b, time.Hour)
	f.Delay(b, a, time.Hour)
}

// A stand-in that can reach the owner asks it for a lease, and is told of writes.
func TestStandInThatReachesTheOwnerIsToldOfWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 4, nil, s.get, nil)
		f.calm(t)
		for name, held := range map[string]bool{"the owner has it": true, "nobody has": false} {
			key := keyWhere(func(key string) bool {
				return f.Owner(key) == 0 && nextAmong(key, 0, 1, 2, 3) == 1 && s.values[key] == ""
			})
			s.set(key, "old")
			if held {
				want(t, f, 0, key, "old")
			}
			cut(f, 0, 2)
			want(t, f, 2, key, "old")
			s.set(key, "new")
			must(t, f.groups[3].Set(t.Context(), key, "new"))
			want(t, f, 2, key, "new")
			want(t, f, 1, key, "new")
			if t.Failed() {
				t.Fatal(name)
			}
			f.Heal()
			time.Sleep(10 * time.Second)
		}
	})
}

// A silent owner costs callers PeerTimeout once, and is asked again soon after it is back.
func TestSilentOwnerCostsNothingForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3, nil, upper, nil)
		keys := allOwnedBy(f.Cluster, 0, 200)
		f.calm(t)
		f.Partition([]int{0}, []int{1, 2})
		ask := func(n int) time.Duration {
			began := time.Now()
			for i := 1; i < 3; i++ {
				if _, err := f.groups[i].Get(t.Context(), keys[n]); err != nil {
					t.Error(err)
				}
			}
			return time.Since(began)
		}
		for n := range 10 {
			ask(n)
		}
		for n := 10; n < 110; n++ {
			if took := ask(n); took > 0 {
				t.Fatalf("%d: a Get took %v", n, took)
			}
			time.Sleep(100 * time.Millisecond)
		}
		f.Heal()
		time.Sleep(2 * time.Second)
		before := f.groups[0].Stats().Requests
		ask(150)
		ask(151)
		if n := f.groups[0].Stats().Requests - before; n != 4 {
			t.Errorf("the owner has been asked %d times of 4", n)
		}
	})
}

// So it is if no caller has the time to find out that the owner is silent.
func TestSilentOwnerCostsHurriedCallersNothingForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3, nil, upper, nil)
		keys := allOwnedBy(f.Cluster, 0, 100)
		f.calm(t)
		f.Partition([]int{0}, []int{1, 2})
		began := time.Now()
		for n, key := range keys {
			for i := 1; i < 3; i++ {
				asked := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 250*time.Millisecond)
				_, err := f.groups[i].Get(ctx, key)
				cancel()
				if took := time.Since(asked); err != nil || took > 0 && asked.Sub(began) > time.Second {
					t.Errorf("%v after it fell silent, Get %d: %v after %v", asked.Sub(began), n, err, took)
				}
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
}

// A stream on which nothing comes any more is given up though callers with little time go on asking over it.
func TestDeadStreamIsGivenUpByHurriedCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, upper, nil)
		keys := allOwnedBy(f.Cluster, 0, 100)
		f.calm(t)
		_, err := f.groups[1].GetMany(t.Context(), keys[:5])
		must(t, err)
		synctest.Wait() // there is a stream
		f.Loss(0, 1, 1)
		began := time.Now()
		time.AfterFunc(100*time.Millisecond, f.Heal)
		var wg sync.WaitGroup
		for _, key := range keys[5:] {
			wg.Go(func() {
				asked := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 240*time.Millisecond)
				defer cancel()
				_, err := f.groups[1].Get(ctx, key)
				if took := time.Since(asked); asked.Sub(began) > 2*time.Second && (err != nil || took > 0) {
					t.Errorf("%v later: %v after %v", asked.Sub(began), err, took)
				}
			})
			time.Sleep(50 * time.Millisecond)
		}
		wg.Wait()
	})
}

// An owner that only had too little time to answer writes without a word to who has loaded the key in its place.
func TestStandInKeepsNothingOfAnOwnerThatIsOnlySlow(t *testing.T) {
	for name, gets := range map[string]int{"once": 1, "often": 10} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s source
				f := newFleet(t, 2, nil, s.get, nil)
				f.calm(t)
				for _, key := range allOwnedBy(f.Cluster, 0, 20) {
					s.set(key, "old")
					f.Delay(0, 1, 5*time.Millisecond)
					for range gets {
						ctx, cancel := context.WithTimeout(t.Context(), 4*time.Millisecond)
						if v, err := f.groups[1].Get(ctx, key); v != "old" && !errors.Is(err, context.DeadlineExceeded) {
							t.Errorf("%q, %v", v, err)
						}
						cancel()
					}
					s.set(key, "new")
					must(t, f.groups[0].Set(t.Context(), key, "new"))
					want(t, f, 1, key, "new")
					f.Heal()
					time.Sleep(time.Second)
				}
			})
		})
	}
}

// Whatever a stand-in keeps, the owner is greeted, and the copy ends with its answer: also the second time within a second.
func TestEveryStandInGreetsTheOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 2, nil, s.get, nil)
		f.calm(t)
		keys := allOwnedBy(f.Cluster, 0, 2)
		for _, key := range keys {
			s.set(key, "old")
		}
		for _, key := range keys {
			ctx, cancel := context.WithTimeout(t.Context(), 240*time.Millisecond)
			f.Partition([]int{0}, []int{1})
			time.AfterFunc(100*time.Millisecond, f.Heal)
			if v, err := f.groups[1].Get(ctx, key); v != "old" || err != nil { // after 120 ms
				t.Errorf("%q, %v", v, err)
			}
			cancel()
			time.Sleep(380 * time.Millisecond)
		}
		s.set(keys[1], "new")
		must(t, f.groups[0].Set(t.Context(), keys[1], "new"))
		want(t, f, 1, keys[1], "new")
	})
}

// An owner that is too busy for greetings is not silent: a refusal is a word, and so is an answer on a stream.
func TestOwnerThatRefusesGreetingsIsNotSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		busy := make(chan struct{})
		f := newFleet(t, 3, &shoal.Options{MaxRequests: 8}, func(ctx context.Context, key string) (string, error) {
			if strings.HasPrefix(key, "slow") {
				<-busy
			}
			return strings.ToUpper(key), nil
		}, nil)
		f.calm(t)
		var slow []string
		for k := 0; len(slow) < 8; k++ {
			if key := fmt.Sprint("slow ", k); f.Owner(key) == 0 {
				slow = append(slow, key)
			}
		}
		keys := allOwnedBy(f.Cluster, 0, 50)
		for _, key := range keys {
			want(t, f, 0, key, strings.ToUpper(key))
		}
		want(t, f, 1, keys[0], strings.ToUpper(keys[0]))
		time.Sleep(time.Second) // 1 has a stream
		var wg sync.WaitGroup
		for _, key := range slow {
			wg.Go(func() { f.groups[2].Get(t.Context(), key) })
		}
		time.Sleep(time.Second)
		want(t, f, 1, keys[1], strings.ToUpper(keys[1]))
		f.Delay(0, 1, 5*time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Millisecond)
		f.groups[1].Get(ctx, keys[2]) // which has it greeted
		cancel()
		f.Heal()
		f.loads.Store(0)
		for _, key := range keys[3:] {
			time.Sleep(100 * time.Millisecond)
			want(t, f, 1, key, strings.ToUpper(key))
			for _, p := range f.Cache(1).Stats().Peers {
				if p.Silent {
					t.Fatal("it counts as silent")
				}
			}
		}
		f.wantLoads(t, 0)
		close(busy)
		wg.Wait()
	})
}

// A silent member costs nothing after a change of view either.
func TestSilentMemberAfterAChangeOfViewCostsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3, nil, upper, nil)
		f.calm(t)
		f.Partition([]int{0}, []int{1, 2})
		f.See(1, 0, 1) // all are greeted
		time.Sleep(time.Second)
		began := time.Now()
		for k, n := 0, 0; n < 200; k++ {
			key := fmt.Sprintf("key %d", k)
			if ownerAmong(key, 0, 1) != 0 {
				continue
			}
			n++
			asked := time.Now()
			want(t, f, 1, key, strings.ToUpper(key))
			if took := time.Since(asked); took > 0 {
				t.Errorf("%v later, a Get took %v", asked.Sub(began), took)
			}
			time.Sleep(100 * time.Millisecond)
		}
	})
}

// An answer for which nobody waits any more is a word of the owner all the same.
func TestLateAnswerEndsTheCopyOfAStandIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 2, nil, s.get, nil)
		f.calm(t)
		keys := allOwnedBy(f.Cluster, 0, 10)
		_, err := f.groups[1].GetMany(t.Context(), keys[5:])
		must(t, err)
		synctest.Wait() // until there is a stream: a POST ends when nobody waits for it any more
		for _, key := range keys[:5] {
			s.set(key, "old")
			f.Delay(0, 1, 150*time.Millisecond)
			ctx, cancel := context.WithTimeout(t.Context(), 240*time.Millisecond)
			if v, err := f.groups[1].Get(ctx, key); v != "old" || err != nil {
				t.Errorf("%q, %v", v, err)
			}
			cancel()
			time.Sleep(60 * time.Millisecond) // 180 ms since it asked
			s.set(key, "new")
			must(t, f.groups[0].Set(t.Context(), key, "new"))
			want(t, f, 1, key, "new")
			f.Heal()
			time.Sleep(5 * time.Second)
		}
	})
}

// An owner whose answer was lost is asked again once that has been waited for, and not taken for silent: it writes without a word to
// who stands in for it.
func TestLostAnswerMakesNoStandIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		began := time.Now()
		f := newFleet(t, 2, nil, func(ctx context.Context, key string) (string, error) {
			if time.Since(began) < 20*time.Second {
				time.Sleep(10 * time.Second)
			}
			return s.get(ctx, key)
		}, nil)
		f.calm(t)
		keys := allOwnedBy(f.Cluster, 0, 2)
		s.set(keys[0], "old")
		began = time.Now()
		var wg sync.WaitGroup
		wg.Go(func() { want(t, f, 1, keys[0], "old") })
		time.Sleep(9 * time.Second)
		f.Delay(0, 1, time.Hour)
		time.Sleep(2 * time.Second)
		f.Heal()
		want(t, f, 0, keys[0], "old")
		wg.Wait()
		if took := time.Since(began); took < 30*time.Second {
			t.Fatalf("nothing was lost: %v", took)
		}
		s.set(keys[0], "new")
		must(t, f.groups[0].Set(t.Context(), keys[0], "new"))
		want(t, f, 1, keys[0], "new")
	})
}

// A caller who has little time gets the value from the next owner within it, though the owner is silent.
func TestCallerWithLittleTimeGetsTheValueFromTheNextOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 4, nil, upper, nil)
		key := keyWhere(func(key string) bool { return f.Owner(key) == 0 && nextAmong(key, 0, 1, 2, 3) == 1 })
		f.calm(t)
		f.Partition([]int{0}, []int{1, 2, 3})
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if v, err := f.groups[2].Get(ctx, key); v != "" && err == nil && v[:3] == "KEY" {
			return
		} else {
			t.Errorf("%q, %v", v, err)
		}
	})
}

// Who does not take itself for the next owner says so, and loads nothing.
func TestWhoIsNotTheNextOwnerDoesNotStandIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 4, nil, upper, nil)
		key := keyWhere(func(key string) bool {
			return f.Owner(key) == 0 && nextAmong(key, 0, 1, 2, 3) == 1 && nextAmong(key, 0, 2, 3) == 2
		})
		f.See(3, 0, 2, 3)
		f.Partition([]int{0}, []int{1, 2, 3})
		if _, err := f.groups[3].Get(t.Context(), key); err != nil {
			t.Error(err)
		}
		if n := f.groups[2].Stats().Loads; n != 0 {
			t.Errorf("it has loaded %d keys", n)
		}
	})
}

// GetMany finds the keys of a dead owner at the next owners, and each is loaded once.
func TestGetManyAsksTheNextOwners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 4, nil, upper, nil)
		var keys []string
		for k := range 100 {
			keys = append(keys, fmt.Sprint("key ", k))
		}
		f.calm(t)
		f.loads.Store(0)
		f.Kill(0)
		for range 3 {
			for i := 1; i < 4; i++ {
				values, err := f.groups[i].GetMany(t.Context(), keys)
				if len(values) != 100 || err != nil {
					t.Errorf("%d values, %v", len(values), err)
				}
			}
		}
		f.wantLoads(t, 100)
	})
}

// A write never counts as done since a stand-in has taken it.
func TestStandInTakesNoWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3, nil, upper, nil)
		key := ownedBy(f.Cluster, 0, 0)
		f.Kill(0)
		for range 3 {
			if err := f.groups[1].Set(t.Context(), key, "value"); len(peersOf(err, "set")) != 1 {
				t.Errorf("Set: %v", err)
			}
			time.Sleep(time.Second)
		}
	})
}
