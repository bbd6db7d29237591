package shoal_test

import (
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/shoalpb"
)

// One of three dies: with two owners nothing is loaded again, and no write is lost, whether lists say so yet or not.
func TestDeathOfOneOwnerOfTwoLosesNothing(t *testing.T) {
	for name, get := range map[string]shoal.Getter[string]{"with a getter": upper, "without": nil} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, 3, nil, get, &shoal.GroupOptions[string]{Owners: 2})
				check := func(when string) {
					t.Helper()
					for k := range 200 {
						key := fmt.Sprint("key ", k)
						for i := 1; i < 3; i++ {
							if when == "dead" && f.Owner(key) == 0 && nextAmong(key, 0, 1, 2) == i {
								continue
							}
							value := fmt.Sprint("set ", k)
							if get != nil && k%2 == 0 {
								value = strings.ToUpper(key)
							}
							if v, err := f.groups[i].Get(t.Context(), key); v != value || err != nil {
								t.Fatalf("%s: cache %d: %q, %v, want %q", when, i, v, err, value)
							}
						}
					}
				}
				for k := range 200 {
					key := fmt.Sprint("key ", k)
					if get != nil && k%2 == 0 {
						want(t, f, k%3, key, strings.ToUpper(key))
					} else {
						must(t, f.groups[k%3].Set(t.Context(), key, fmt.Sprint("set ", k)))
					}
				}
				time.Sleep(time.Second) // what was loaded is copied in the background
				loads := f.loads.Load()
				f.Kill(0)
				check("dead")
				f.See(1, 1, 2)
				f.See(2, 1, 2)
				check("gone")
				time.Sleep(5 * time.Minute)
				check("long gone")
				f.wantLoads(t, loads)
			})
		})
	}
}

// A write is at the replicas when it returns.
func TestWriteIsAtTheReplicasWhenItReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 4, nil, nil, &shoal.GroupOptions[string]{Owners: 2})
		f.calm(t)
		key := keyWhere(func(key string) bool { return f.Owner(key) == 0 && nextAmong(key, 0, 1, 2, 3) == 1 })
		f.Delay(2, 1, 100*time.Millisecond)
		must(t, f.groups[2].Set(t.Context(), key, "value"))
		f.Kill(0)
		want(t, f, 2, key, "value")
		want(t, f, 3, key, "value")
		for i := 1; i < 4; i++ {
			f.See(i, 1, 2, 3)
		}
		want(t, f, 1, key, "value")
		must(t, f.groups[3].Remove(t.Context(), key))
		for i := 1; i < 4; i++ {
			if v, err := f.groups[i].Get(t.Context(), key); err == nil {
				t.Errorf("cache %d: %q after Remove", i, v)
			}
		}
	})
}

// A replica that could not be written to is an error, and does not serve what it has afterwards.
func TestReplicaThatMissedAWriteDropsWhatItHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, &shoal.GroupOptions[string]{Owners: 2})
		key := keyWhere(func(key string) bool { return f.Owner(key) == 0 && nextAmong(key, 0, 1, 2) == 1 })
		s.set(key, "old")
		must(t, f.groups[2].Set(t.Context(), key, "old"))
		f.Partition([]int{0, 2}, []int{1})
		s.set(key, "new")
		if got := peersOf(f.groups[2].Set(t.Context(), key, "new"), "set"); !slices.Equal(got, []string{"http://cache-1"}) {
			t.Errorf("not told: %v", got)
		}
		f.Heal()
		time.Sleep(15 * time.Second)
		f.Kill(0)
		want(t, f, 1, key, "new")
		want(t, f, 2, key, "new")
	})
}

// History 15: the owner restarts, is written to, and dies: nobody serves what the replica had from before.
func TestRestartedOwnerIsNotShadowedByItsPast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := &shoal.GroupOptions[string]{Owners: 2}
		f := newFleet[string](t, 3, nil, nil, opts)
		key := keyWhere(func(key string) bool { return f.Owner(key) == 0 && nextAmong(key, 0, 1, 2) == 1 })
		for n := range 100 {
			must(t, f.groups[2].Set(t.Context(), key, fmt.Sprint("old ", n)))
		}
		restart(t, f, 0, nil, opts)
		time.Sleep(time.Second)
		must(t, f.groups[0].Set(t.Context(), key, "first"))
		must(t, f.groups[0].Set(t.Context(), key, "second"))
		f.Kill(0)
		want(t, f, 2, key, "second")
		f.See(1, 1, 2)
		f.See(2, 1, 2)
		want(t, f, 1, key, "second")
		want(t, f, 2, key, "second")
	})
}

// History 16: what is loaded at an owner does not come to a replica after a write.
func TestLateFillDoesNotUndoAWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, &shoal.GroupOptions[string]{Owners: 2})
		key := keyWhere(func(key string) bool { return f.Owner(key) == 0 && nextAmong(key, 0, 1, 2) == 1 })
		for n, write := range []func(value string) error{
			func(value string) error { return f.groups[2].Set(t.Context(), key, value) },
			func(string) error { return f.groups[2].Remove(t.Context(), key) },
		} {
			old, value := fmt.Sprint("old ", n), fmt.Sprint("new ", n)
			s.set(key, old)
			f.Delay(0, 1, 300*time.Millisecond)
			f.Delay(1, 0, 100*time.Millisecond)
			f.groups[0].Remove(t.Context(), key)
			want(t, f, 0, key, old)
			s.set(key, value)
			must(t, write(value)) // by way of cache 2, it overtakes the fill
			time.Sleep(time.Second)
			f.Down(0)
			want(t, f, 1, key, value)
			want(t, f, 2, key, value)
			f.Heal()
			f.Up(0)
			time.Sleep(15 * time.Second)
		}
	})
}

// place makes a cache for each zone, and waits until they all see each other.
func place(t *testing.T, h *hosts, opts shoal.Options, zones ...string) (caches []*shoal.Cache) {
	t.Helper()
	var all []string
	for i := range zones {
		all = append(all, fmt.Sprint("http://host-", i))
	}
	for i, zone := range zones {
		opts.Self, opts.Zone, opts.Discovery = all[i], zone, shoal.Static(all...)
		caches = append(caches, newPeer(t, h, opts, fmt.Sprint("host-", i)))
	}
	return caches
}

// seeAll waits until all see all.
func seeAll(t *testing.T, caches []*shoal.Cache) {
	t.Helper()
	time.Sleep(time.Second)
	for i, c := range caches {
		ready(t, c)
		if n := len(c.Peers()); n != len(caches) {
			t.Fatalf("cache %d sees %d of %d", i, n, len(caches))
		}
	}
}

// Replicas are in other zones than their owners, as far as there are others.
func TestReplicasAreInDifferentZones(t *testing.T) {
	for _, test := range []struct {
		zones  []string
		owners int
		want   int // zones in which each key is
	}{
		{[]string{"a", "a", "a", "b", "b", "b"}, 2, 2},
		{[]string{"a", "a", "a", "a", "b"}, 2, 2},
		{[]string{"a", "b", "c", "a", "b", "c"}, 3, 3},
		{[]string{"a", "a", "b", "b"}, 3, 2},
		{[]string{"a", "a", "a"}, 2, 1},
	} {
		t.Run(fmt.Sprint(test.zones, test.owners), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				caches := place(t, new(hosts), shoal.Options{}, test.zones...)
				var groups []*shoal.Group[string]
				for _, c := range caches {
					groups = append(groups, shoal.NewGroup[string](c, "g", nil, &shoal.GroupOptions[string]{Owners: test.owners}))
				}
				seeAll(t, caches)
				has := make([]int64, len(groups))
				for k := range 25 {
					must(t, groups[k%len(groups)].Set(t.Context(), fmt.Sprint("key ", k), "value"))
					in, n := make(map[string]bool), 0
					for i, g := range groups {
						if e := g.Stats().Entries; e > has[i] {
							has[i] = e
							in[test.zones[i]] = true
							n++
						}
					}
					if n != test.owners || len(in) != test.want {
						t.Fatalf("key %d is at %d processes in %d zones", k, n, len(in))
					}
				}
			})
		})
	}
}

// With ZoneReads a value comes from one's own zone, if it is there, and is right.
func TestZoneReadsAreServedInTheZone(t *testing.T) {
	for _, zoneReads := range []bool{true, false} {
		t.Run(fmt.Sprint(zoneReads), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				zones := []string{"a", "a", "b", "b"}
				caches := place(t, new(hosts), shoal.Options{ZoneReads: zoneReads}, zones...)
				var groups []*shoal.Group[string]
				for _, c := range caches {
					groups = append(groups, shoal.NewGroup[string](c, "g", nil, &shoal.GroupOptions[string]{Owners: 2, HotBytes: -1}))
				}
				seeAll(t, caches)
				for k := range 100 {
					must(t, groups[k%4].Set(t.Context(), fmt.Sprint("key ", k), "value"))
				}
				across := func() (n int64) { // exchanges between zones
					for i, c := range caches {
						for _, p := range c.Stats().Peers {
							if p.Peer.Zone != zones[i] {
								n += p.Exchanges
							}
						}
					}
					return n
				}
				before := across()
				for k := range 100 {
					for i, g := range groups {
						if v, err := g.Get(t.Context(), fmt.Sprint("key ", k)); v != "value" || err != nil {
							t.Errorf("cache %d: %q, %v", i, v, err)
						}
					}
				}
				if n := across() - before; (n == 0) != zoneReads {
					t.Errorf("%d questions went to another zone", n)
				}
			})
		})
	}
}

// With ZoneReads too, what a Set or Remove has returned from is read everywhere.
func TestZoneReadsAreNotOlderThanWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		caches := place(t, new(hosts), shoal.Options{ZoneReads: true}, "a", "a", "b", "b")
		var s source
		var groups []*shoal.Group[string]
		for _, c := range caches {
			groups = append(groups, shoal.NewGroup(c, "g", s.get, &shoal.GroupOptions[string]{Owners: 2}))
		}
		seeAll(t, caches)
		for n := range 60 {
			key, value := fmt.Sprint("key ", n%7), fmt.Sprint("value ", n)
			s.set(key, value)
			if n%3 == 0 {
				must(t, groups[n%4].Remove(t.Context(), key))
			} else {
				must(t, groups[n%4].Set(t.Context(), key, value))
			}
			for i, g := range groups {
				if v, err := g.Get(t.Context(), key); v != value || err != nil {
					t.Fatalf("cache %d: %q, %v, want %q", i, v, err, value)
				}
			}
		}
	})
}

// A process has keys in proportion to its weight.
func TestSharesAreInProportionToWeights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const keys = 1500
		h := new(hosts)
		weights := []float64{1, 1, 2, 4}
		var caches []*shoal.Cache
		var groups []*shoal.Group[string]
		var all []string
		for i := range weights {
			all = append(all, fmt.Sprint("http://host-", i))
		}
		for i, w := range weights {
			c := newPeer(t, h, shoal.Options{Self: all[i], Weight: w, Discovery: shoal.Static(all...)}, fmt.Sprint("host-", i))
			caches = append(caches, c)
			groups = append(groups, shoal.NewGroup(c, "g", upper, &shoal.GroupOptions[string]{HotBytes: -1}))
		}
		seeAll(t, caches)
		many := make([]string, keys)
		for k := range many {
			many[k] = fmt.Sprint("key ", k)
		}
		if _, err := groups[0].GetMany(t.Context(), many); err != nil {
			t.Error(err)
		}
		for i, g := range groups {
			share, want := float64(g.Stats().Entries)/keys, weights[i]/8
			if math.Abs(share-want) > 0.25*want {
				t.Errorf("a weight of %v has %.3f of the keys, want %.3f", weights[i], share, want)
			}
		}
	})
}

// A replica whose owner is dead serves its own callers too from what it has, and loads nothing.
func TestReplicaServesItsOwnCallersWhenTheOwnerIsDead(t *testing.T) {
	for name, get := range map[string]shoal.Getter[string]{"with a getter": upper, "without": nil} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, 3, nil, get, &shoal.GroupOptions[string]{Owners: 2})
				key := keyWhere(func(key string) bool { return f.Owner(key) == 0 && nextAmong(key, 0, 1, 2) == 1 })
				must(t, f.groups[2].Set(t.Context(), key, "value"))
				f.Kill(0)
				want(t, f, 2, key, "value")
				want(t, f, 1, key, "value")
				values, err := f.groups[1].GetMany(t.Context(), []string{key})
				if values[key] != "value" || err != nil {
					t.Errorf("GetMany: %q, %v", values, err)
				}
				time.Sleep(time.Second)
				want(t, f, 1, key, "value")
				f.wantLoads(t, 0)
			})
		})
	}
}

// lostOf is how many of keys a group does not have, or not at the value.
func lostOf(t *testing.T, g *shoal.Group[string], keys []string, value string) (n int) {
	for _, key := range keys {
		if v, err := g.Get(t.Context(), key); err != nil || v != value {
			n++
		}
	}
	return n
}

func setAll(t *testing.T, g *shoal.Group[string], prefix string, n int, value string) (keys []string) {
	t.Helper()
	for i := range n {
		keys = append(keys, fmt.Sprint(prefix, i))
		must(t, g.Set(t.Context(), keys[i], value))
	}
	return keys
}

// What was written so long ago that it is not remembered any more is handed over all the same.
func TestOldWritesAreHandedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 3, nil, nil, nil)
		keys := setAll(t, f.groups[0], "k", 60, "value")
		for range 4 {
			time.Sleep(time.Minute)
			setAll(t, f.groups[0], "other", 60, "value")
		}
		must(t, f.Cache(0).Shutdown(t.Context()))
		synctest.Wait()
		if n := lostOf(t, f.groups[1], keys, "value"); n > 0 {
			t.Errorf("%d of 60 are lost", n)
		}
	})
}

// A write that nobody has taken leaves what was there, at the owner and at replicas.
func TestWriteThatIsNotTakenLeavesWhatWasThere(t *testing.T) {
	for _, owners := range []int{1, 2} {
		t.Run(fmt.Sprint(owners, " owners"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet[string](t, 3, nil, nil, &shoal.GroupOptions[string]{Owners: owners})
				keys := allOwnedBy(f.Cluster, 0, 60)
				for _, key := range keys {
					must(t, f.groups[0].Set(t.Context(), key, "value"))
				}
				f.calm(t)
				f.Partition([]int{0}, []int{1, 2})
				first := ownedBy(f.Cluster, 0, 1000)
				if err := f.groups[1].Set(t.Context(), first, "new"); err == nil {
					t.Error("a Set has succeeded whose owner is cut off")
				}
				for i, key := range keys {
					err := f.groups[1].Set(t.Context(), key, "new")
					if i%2 == 0 {
						err = f.groups[1].Remove(t.Context(), key)
					}
					if err == nil {
						t.Errorf("a write of %q has succeeded whose owner is cut off", key)
					}
				}
				if owners == 2 {
					if n := lostOf(t, f.groups[1], keys, "value"); n > 0 {
						t.Errorf("%d of 60 are lost where the owner is cut off", n)
					}
				}
				f.Heal()
				time.Sleep(time.Minute)
				if n := lostOf(t, f.groups[2], keys, "value"); n > 0 {
					t.Errorf("%d of 60 are lost", n)
				}
			})
		})
	}
}

// More than comes with one Pull.
func TestManyEntriesAreHandedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 2, nil, nil, nil)
		value := strings.Repeat("v", 1000)
		keys := setAll(t, f.groups[0], "k", 3000, value)
		must(t, f.Cache(0).Shutdown(t.Context()))
		synctest.Wait()
		if n := lostOf(t, f.groups[1], keys, value); n > 0 {
			t.Errorf("%d of 3000 are lost", n)
		}
	})
}

// What is used while others pull, and so is not in the place any more where they would have come to it.
func TestEntriesThatAreUsedMeanwhileAreHandedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		two := &shoal.GroupOptions[string]{Owners: 2}
		f := newFleet[string](t, 2, nil, nil, two)
		f.Kill(1)
		f.See(0, 0)
		keys, value := allOwnedBy(f.Cluster, 0, 60), strings.Repeat("v", 50_000)
		for _, key := range keys {
			must(t, f.groups[0].Set(t.Context(), key, value))
		}
		f.Delay(0, 1, 100*time.Millisecond)
		f.join(1, nil, two)
		go f.See(0, 0, 1)
		for range 100 {
			if f.groups[1].Stats().Pulled == 0 {
				time.Sleep(10 * time.Millisecond)
			}
		}
		for _, key := range keys {
			want(t, f, 0, key, value)
		}
		time.Sleep(time.Minute)
		if f.Cache(1).Stats().Repairing {
			t.Error("it is still being repaired")
		}
		f.Kill(0)
		f.See(1, 1)
		if n := lostOf(t, f.groups[1], keys, value); n > 0 {
			t.Errorf("%d of 60 are lost", n)
		}
	})
}

// After a death the copies that are left are copied again, and another process may die.
func TestLostCopiesAreRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 3, nil, nil, &shoal.GroupOptions[string]{Owners: 2})
		keys := setAll(t, f.groups[0], "k", 90, "value")
		f.Kill(2)
		f.See(0, 0, 1)
		f.See(1, 0, 1)
		time.Sleep(90 * time.Second)
		if f.Cache(0).Stats().Repairing || f.Cache(1).Stats().Repairing {
			t.Error("it is still being repaired")
		}
		f.Kill(0)
		f.See(1, 1)
		if n := lostOf(t, f.groups[1], keys, "value"); n > 0 {
			t.Errorf("%d of 90 are lost", n)
		}
	})
}

// A replica that does not see itself listed is given what it writes all the same.
func TestReplicaThatDoesNotSeeItselfWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 3, nil, nil, &shoal.GroupOptions[string]{Owners: 2})
		key := keyWhere(func(key string) bool { return f.Owner(key) == 0 && nextAmong(key, 0, 1, 2) == 1 })
		f.See(1, 0, 2)
		time.Sleep(time.Second)
		must(t, f.groups[1].Set(t.Context(), key, "value"))
		must(t, f.groups[2].Set(t.Context(), key, "newer"))
		wantEverywhere(t, f, key, "newer")
	})
}

// A replica that does not see itself listed keeps what it is given for half of Warm, whatever it drops meanwhile of what it has lost.
func TestReplicaThatDoesNotSeeItselfKeepsWhatItIsGiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 3, nil, nil, &shoal.GroupOptions[string]{Owners: 2})
		key := keyWhere(func(key string) bool { return f.Owner(key) == 0 && nextAmong(key, 0, 1, 2) == 1 })
		f.See(1, 0, 2)
		time.Sleep(25 * time.Second)
		must(t, f.groups[2].Set(t.Context(), key, "value"))
		for i := range 5_000 {
			f.groups[2].Set(t.Context(), fmt.Sprint("other ", i%100), "value") // those that 1 owns go nowhere
		}
		time.Sleep(10 * time.Second) // what it had before is gone
		f.Kill(0)
		f.See(2, 1, 2)
		time.Sleep(5 * time.Second)
		f.See(1, 1, 2)
		want(t, f, 1, key, "value")
		want(t, f, 2, key, "value")
	})
}

// What a process kept by a list that nobody else had any more is dropped before others cease to tell it of writes.
func TestLastWritesOfALaggardAreNotKeptForLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 3, nil, nil, &shoal.GroupOptions[string]{Owners: 2})
		key := keyWhere(func(key string) bool { return f.Owner(key) == 2 && nextAmong(key, 0, 1, 2) == 1 })
		time.Sleep(3 * time.Minute)
		f.See(0, 0)
		time.Sleep(2 * time.Minute)
		must(t, f.groups[2].Set(t.Context(), key, "old"))
		f.See(1, 0)
		f.See(2, 0)
		for i := 1; i < 3; i++ {
			f.groups[i].Get(t.Context(), "another") // 0 hears that they agree
		}
		time.Sleep(5 * time.Second) // … and tells them of writes for so long
		for i := 1; i < 3; i++ {
			if n := f.groups[i].Stats().Entries; n != 0 {
				t.Errorf("%d keeps %d entries", i, n)
			}
		}
	})
}

// Of two that take themselves for the owner one dies. The other tells its replica, a stranger, what it has missed when it greets.
func TestWhatWasGivenByAnOwnerThatDiedIsNotServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 3, nil, nil, &shoal.GroupOptions[string]{Owners: 2})
		key := keyWhere(func(key string) bool { return ownerAmong(key, 1, 2) == 2 && ownerAmong(key, 0, 1) == 1 })
		other := ownedBy(f.Cluster, 0, 0)
		time.Sleep(3 * time.Minute)
		f.See(0, 0)
		time.Sleep(2 * time.Minute)
		f.See(2, 1, 2)
		f.See(1, 0)
		f.groups[1].Get(t.Context(), other)
		time.Sleep(10 * time.Second)
		must(t, f.groups[2].Set(t.Context(), key, "old"))
		f.Kill(2)
		if err := f.groups[0].Set(t.Context(), other, "value"); err == nil {
			t.Error("0 does not tell 2 of a write")
		}
		time.Sleep(5 * time.Second)
		must(t, f.groups[0].Set(t.Context(), key, "new"))
		f.See(1, 0, 1)
		want(t, f, 1, key, "new")
	})
}

// What a replica was given by the list of somebody else is not kept for ever.
func TestWhatIsGivenByOthersListsIsDroppedInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 3, nil, nil, &shoal.GroupOptions[string]{Owners: 2})
		key := keyWhere(func(key string) bool { return f.Owner(key) == 0 && nextAmong(key, 0, 1, 2) == 1 })
		f.See(1, 0, 2)
		time.Sleep(25 * time.Second)
		must(t, f.groups[2].Set(t.Context(), key, "value"))
		f.See(0, 0, 2)
		f.See(2, 0, 2)
		time.Sleep(20 * time.Second)
		if n := f.groups[1].Stats().Entries; n != 1 {
			t.Errorf("it has %d entries after 20 s, want 1", n)
		}
		time.Sleep(2 * time.Minute)
		if n := f.groups[1].Stats().Entries; n != 0 {
			t.Errorf("it still has %d entries", n)
		}
	})
}

// A replica that has lost a key to another for a while has nothing old of it when it is a replica again.
func TestReplicaThatIsOneAgainHasNothingOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		two := &shoal.GroupOptions[string]{Owners: 2}
		f := newFleet[string](t, 3, nil, nil, two)
		f.Kill(2)
		f.See(0, 0, 1)
		f.See(1, 0, 1)
		time.Sleep(5 * time.Minute)
		keys := setAll(t, f.groups[0], "k", 90, "old")
		time.Sleep(10 * time.Second)
		f.See(2, 0, 1, 2)
		shoal.NewGroup[string](f.Restart(2), "things", nil, two)
		f.See(0, 0, 1, 2)
		f.See(1, 0, 1, 2)
		time.Sleep(10 * time.Second)
		setAll(t, f.groups[0], "k", 90, "new")
		must(t, f.Cache(2).Shutdown(t.Context()))
		f.See(0, 0, 1)
		f.See(1, 0, 1)
		time.Sleep(15 * time.Second)
		f.Kill(0)
		f.See(1, 1)
		if n := lostOf(t, f.groups[1], keys, "new"); n > 0 {
			t.Errorf("%d of 90 are old or lost", n)
		}
	})
}

// What was loaded before a write that a replica knows of is no newer for having a higher version: another gave it that.
func TestFillThatWasLoadedBeforeAWriteIsNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, upper, &shoal.GroupOptions[string]{Owners: 2})
		key := ownedBy(f.Cluster, 0, 0)
		time.Sleep(2 * time.Minute)
		must(t, f.groups[0].Set(t.Context(), key, "written"))
		fill := func(age time.Duration) {
			t.Helper()
			_, hello := post(t, f.Cache(0), marshal(t, &shoalpb.Request{Op: &shoalpb.Request_Hello{Hello: &shoalpb.Hello{Weight: 1}}}))
			version := uint64(time.Now().Add(time.Minute).UnixNano())>>16<<16 | 1
			_, reply := post(t, f.Cache(1), marshal(t, &shoalpb.Request{
				Group: []byte("things"), Sender: hello.Sender, Op: &shoalpb.Request_Replicate{Replicate: &shoalpb.Replicate{Fill: true, Entries: []*shoalpb.Entry{
					{Key: []byte(key), Version: version, Value: &shoalpb.Value{Value: []byte("loaded"), Version: version, Age: int64(age)}},
				}}},
			}))
			if reply.GetReplicated() == nil {
				t.Fatal(reply)
			}
		}
		held := func(want string) {
			t.Helper()
			_, reply := post(t, f.Cache(1), marshal(t, &shoalpb.Request{Group: []byte("things"), Op: &shoalpb.Request_Peek{Peek: &shoalpb.Peek{Key: []byte(key)}}}))
			if got := string(reply.GetValue().GetValue()); got != want {
				t.Errorf("the replica has %q, not %q", got, want)
			}
		}
		fill(100 * time.Millisecond)
		held("written")
		time.Sleep(10 * time.Second)
		fill(100 * time.Millisecond)
		held("loaded")
	})
}

// A replica that has lent a copy too is told of a write twice: to have it, and to drop what is older.
func TestReplicaThatHoldsALeaseKeepsWhatWasWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 3, nil, nil, &shoal.GroupOptions[string]{Owners: 2, HotLease: 5 * time.Second})
		f.calm(t)
		key := ownedBy(f.Cluster, 0, 0)
		next := nextAmong(key, 0, 1, 2)
		must(t, f.groups[0].Set(t.Context(), key, "old"))
		time.Sleep(10 * time.Second)
		f.heat(t, next, key)
		f.Delay(0, next, 10*time.Millisecond)
		must(t, f.groups[3-next].Set(t.Context(), key, "new"))
		f.Kill(0)
		f.See(1, 1, 2)
		f.See(2, 1, 2)
		want(t, f, 1, key, "new")
		want(t, f, 2, key, "new")
	})
}

// The owner is dead: what the replica has is all there is.
func TestFailedAddLeavesTheReplicaItsCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[int](t, 3, nil, nil, &shoal.GroupOptions[int]{Owners: 2})
		f.calm(t)
		key := ownedBy(f.Cluster, 0, 0)
		next := nextAmong(key, 0, 1, 2)
		if n, err := shoal.Add(t.Context(), f.groups[0], key, 8); n != 8 || err != nil {
			t.Fatal(n, err)
		}
		f.Kill(0)
		if n, err := shoal.Add(t.Context(), f.groups[next], key, 1); err == nil {
			t.Errorf("Add while the owner is dead: %d", n)
		}
		f.See(1, 1, 2)
		f.See(2, 1, 2)
		v, err := f.groups[next].Get(t.Context(), key)
		if v < 8 || err != nil {
			t.Errorf("Get = %d, %v, want at least 8", v, err)
		}
	})
}

// … and so it is for a Set that nobody has taken.
func TestFailedSetLeavesTheReplicaItsCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 3, nil, nil, &shoal.GroupOptions[string]{Owners: 2})
		f.calm(t)
		key := ownedBy(f.Cluster, 0, 0)
		next := nextAmong(key, 0, 1, 2)
		must(t, f.groups[0].Set(t.Context(), key, "old"))
		time.Sleep(time.Second)
		f.Kill(0)
		if f.groups[3-next].Set(t.Context(), key, "new") == nil {
			t.Error("Set while the owner is dead: nil")
		}
		f.See(1, 1, 2)
		f.See(2, 1, 2)
		v, err := f.groups[next].Get(t.Context(), key)
		if err != nil {
			t.Errorf("Get = %q, %v, want old or new", v, err)
		}
	})
}

// A page that comes too late, as a collector has paused, ends no pull.
func TestPullThatWasSlowIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		two := &shoal.GroupOptions[string]{Owners: 2}
		h := new(hosts)
		var pulls atomic.Int64
		start := func(name string) (*shoal.Cache, *shoal.Group[string]) {
			c := newPeer(t, h, shoal.Options{Self: name, Discovery: shoal.Static("a", "b"), Warm: time.Minute})
			filtered(h, name, c, func(r *shoalpb.Request) {
				if r.GetPull() != nil && pulls.Add(1) == 1 {
					time.Sleep(600 * time.Millisecond) // a pause of the collector
				}
			})
			return c, shoal.NewGroup[string](c, "things", nil, two)
		}
		pulls.Store(1)
		a, ga := start("a")
		b, _ := start("b")
		ready(t, a)
		ready(t, b)
		time.Sleep(5 * time.Minute)
		pulls.Store(0)
		keys := setAll(t, ga, "k", 90, "value")
		// b is killed, and started again.
		h.set("b", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { panic("x") }))
		delete(h.handlers, "b")
		time.Sleep(10 * time.Second)
		b, gb := start("b")
		ready(t, b)
		time.Sleep(2 * time.Minute)
		// Now a dies.
		delete(h.handlers, "a")
		time.Sleep(10 * time.Second)
		if n := lostOf(t, gb, keys, "value"); n > 0 {
			t.Errorf("%d of 90 are lost", n)
		}
	})
}
