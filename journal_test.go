package shoal_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
)

// History 12 where more was written than a journal holds: who was away drops the group.
func TestJournalThatOverflowsDropsTheGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 2, nil, s.get, &shoal.GroupOptions[string]{MaxBytes: 1 << 20})
		key, kept := ownedBy(f.Cluster, 0, 0), ownedBy(f.Cluster, 0, 1)
		s.set(key, "old")
		s.set(kept, "kept")
		want(t, f, 0, key, "old")
		want(t, f, 0, kept, "kept")
		f.Partition([]int{0}, []int{1})
		f.See(1, 1)
		s.set(key, "new")
		must(t, f.groups[1].Set(t.Context(), key, "new"))
		for n := range 3000 { // more than there is room for
			must(t, f.groups[1].Remove(t.Context(), fmt.Sprint("another ", n)))
		}
		before := f.groups[0].Stats()
		f.Heal()
		f.See(1, 0, 1)
		if n := f.groups[0].Stats().Emptied - before.Emptied; n < 1 || n > 2 { // both may greet at once
			t.Errorf("it has dropped all %d times, want once", n)
		}
		wantEverywhere(t, f, key, "new")
		wantEverywhere(t, f, kept, "kept")
	})
}

// History 19: a purge that was missed by one that was cut off, and is told by no message about the group.
func TestPurgeThatWasMissedIsHeardOfInAGreeting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 2, nil, s.get, nil)
		key := ownedBy(f.Cluster, 0, 0)
		s.set(key, "old")
		want(t, f, 0, key, "old")
		f.Partition([]int{0}, []int{1})
		f.See(1, 1)
		s.set(key, "new")
		f.groups[1].Purge(t.Context())
		time.Sleep(20 * time.Minute) // there are no hints any more
		f.Heal()
		f.See(1, 0, 1)
		want(t, f, 0, key, "new")
	})
}

// History 19: where both sides of a cut have purged, the writes before that are told, too.
func TestPurgeOfBothSidesIsToldWithTheWritesBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, nil)
		key := keyWhere(func(key string) bool { return f.Owner(key) == 0 && ownerAmong(key, 1, 2) == 1 })
		s.set(key, "old")
		want(t, f, 0, key, "old")
		f.Partition([]int{0}, []int{1, 2})
		f.See(1, 1, 2)
		f.See(2, 1, 2)
		s.set(key, "new")
		must(t, f.groups[1].Set(t.Context(), key, "new"))
		f.groups[2].Purge(t.Context())
		f.groups[0].Purge(t.Context()) // both sides have purged once
		s.set(key, "old")
		want(t, f, 0, key, "old")
		s.set(key, "new")
		time.Sleep(20 * time.Minute)
		f.Heal()
		f.See(1, 0, 1, 2)
		f.See(2, 0, 1, 2)
		wantEverywhere(t, f, key, "new")
	})
}

// A process that hears of a purge as it starts has not written anything that others may have missed.
func TestRestartAfterAPurgeTakesNothingFromOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 3, nil, nil, nil)
		for i := range 3 {
			for j := range 3 {
				f.Delay(i, j, time.Millisecond)
			}
		}
		time.Sleep(2 * time.Minute)
		must(t, f.groups[1].Purge(t.Context()))
		setAll(t, f.groups[1], "k", 300, "value")
		time.Sleep(time.Minute)
		before := f.groups[1].Stats().Entries + f.groups[2].Stats().Entries
		f.Kill(0)
		restart(t, f, 0, nil, nil)
		time.Sleep(10 * time.Second)
		if n := f.groups[1].Stats().Entries + f.groups[2].Stats().Entries; n != before || n < 100 {
			t.Errorf("the others had %d entries, and have %d", before, n)
		}
	})
}

// Whom a purge has reached while it was not listed keeps what it has taken since then: it is told of that purge by its name.
func TestWhoHasGoneThroughAPurgeDropsNothingLater(t *testing.T) {
	for name, purgers := range map[string][]int{"one": {0}, "one after the other": {0, 1, 0, 1}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet[string](t, 3, nil, nil, nil)
				time.Sleep(2 * time.Minute)
				f.See(0, 0, 1)
				f.See(1, 0, 1)
				time.Sleep(time.Second)
				for _, i := range purgers {
					must(t, f.groups[i].Purge(t.Context()))
					time.Sleep(time.Second)
				}
				keys := allOwnedBy(f.Cluster, 2, 20)
				for _, key := range keys {
					must(t, f.groups[2].Set(t.Context(), key, "value"))
				}
				f.See(0, 0, 1, 2)
				f.See(1, 0, 1, 2)
				time.Sleep(10 * time.Second)
				if n := lostOf(t, f.groups[0], keys, "value"); n > 0 {
					t.Errorf("%d of 20 are lost", n)
				}
			})
		})
	}
}

// A purge that others have not heard of is news to them, whatever other purges both sides have had: A's second here, after the
// numbers of A and C were equal once, where P heard of both.
func TestPurgeIsNotTakenForAnother(t *testing.T) {
	const a, p, c = 0, 1, 2
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, nil)
		key := keyWhere(func(key string) bool { return f.Owner(key) == p && ownerAmong(key, p, c) == p })
		f.Partition([]int{a}, []int{p, c})
		f.See(a, a)
		f.See(p, p, c)
		f.See(c, p, c)
		must(t, f.groups[c].Purge(t.Context()))
		must(t, f.groups[a].Purge(t.Context()))
		time.Sleep(time.Minute)
		f.Heal()
		f.Partition([]int{a, p}, []int{c})
		f.Delay(p, a, time.Hour) // a is heard by p, and hears nothing
		f.See(a, a, p)
		f.Heal()
		f.Partition([]int{a}, []int{p, c})
		f.See(a, a)
		time.Sleep(20 * time.Second)
		f.groups[c].Purge(t.Context()) // a cannot be told
		s.set(key, "old")
		want(t, f, p, key, "old")
		time.Sleep(2 * time.Minute)
		s.set(key, "new")
		must(t, f.groups[a].Purge(t.Context()))
		time.Sleep(20 * time.Minute)
		f.Heal()
		for i := range 3 {
			f.See(i, a, p, c)
		}
		time.Sleep(time.Minute)
		wantEverywhere(t, f, key, "new")
	})
}

// Who has just been started does not know yet whom to tell of a purge, nor how many others there have been.
func TestPurgeByOneThatHasJustStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, nil)
		key := ownedBy(f.Cluster, 0, 0)
		must(t, f.groups[1].Purge(t.Context()))
		must(t, f.groups[1].Purge(t.Context()))
		s.set(key, "old")
		wantEverywhere(t, f, key, "old")
		f.calm(t)
		f.Kill(2)
		f.Delay(2, 0, 20*time.Millisecond)
		f.Delay(2, 1, 20*time.Millisecond)
		f.join(2, s.get, nil)
		s.set(key, "new")
		must(t, f.groups[2].Purge(t.Context()))
		want(t, f, 0, key, "new")
		want(t, f, 1, key, "new")
	})
}

// Each side of a cut has purged, and written. What one side had is not taken for new by the other, which has lost what was newer.
func TestPurgeOfTheOtherSideBringsNothingOldBack(t *testing.T) {
	for name, moves := range map[string]bool{"to its owner": false, "to a new owner": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet[string](t, 4, nil, nil, nil)
				// It is cache 0's, then 2's, but 3's where that is there.
				key := keyWhere(func(key string) bool {
					return f.Owner(key) == 3 && ownerAmong(key, 0, 1, 2) == 0 && nextAmong(key, 0, 1, 2) == 2
				})
				f.Kill(3)
				for i := range 3 {
					f.See(i, 0, 1, 2)
				}
				time.Sleep(time.Minute)
				f.Partition([]int{0, 1, 3}, []int{2})
				f.See(0, 0, 1)
				f.See(1, 0, 1)
				f.See(2, 2)
				f.groups[2].Purge(t.Context()) // nobody else can be told
				must(t, f.groups[2].Set(t.Context(), key, "old"))
				time.Sleep(time.Second)
				must(t, f.groups[1].Set(t.Context(), key, "new"))
				time.Sleep(time.Second)
				f.Heal()
				for i := range 4 {
					f.Delay(2, i, 30*time.Millisecond)
					f.Delay(i, 2, 30*time.Millisecond)
				}
				list, askers := []int{0, 1, 2}, []int{0, 1}
				if moves {
					list, askers = []int{0, 1, 2, 3}, []int{0, 1, 3}
					f.See(3, list...)
					f.join(3, nil, nil)
				}
				var wg sync.WaitGroup
				if !moves {
					wg.Go(func() { f.See(0, list...) }) // it is told before it tells
				}
				for _, i := range askers {
					wg.Go(func() {
						for range 1000 {
							if v, err := f.groups[i].Get(t.Context(), key); v == "old" {
								t.Errorf("cache %d: Get = %q, %v", i, v, err)
								break
							}
							time.Sleep(time.Millisecond)
						}
					})
				}
				time.Sleep(500 * time.Millisecond)
				for i := range 3 {
					f.See(i, list...)
				}
				wg.Wait()
			})
		})
	}
}

// A purge that nobody could be told of is not taken for one of theirs, of before, though there had been more of those.
func TestPurgeThatWasToldToNobodyIsDoneWhenTheCutHeals(t *testing.T) {
	for _, first := range []int{0, 2} { // who hears of the other first
		synctest.Test(t, func(t *testing.T) {
			var s source
			f := newFleet(t, 3, nil, s.get, nil)
			f.calm(t)
			keys := []string{ownedBy(f.Cluster, 0, 0), ownedBy(f.Cluster, 1, 0)}
			f.Partition([]int{0, 1}, []int{2})
			for i := range 4 {
				f.groups[i%2].Purge(t.Context())
			}
			for _, key := range keys {
				s.set(key, "old")
				want(t, f, 0, key, "old")
				s.set(key, "new")
			}
			time.Sleep(10 * time.Second)
			f.groups[2].Get(t.Context(), keys[0])
			f.groups[2].Get(t.Context(), keys[1])
			if f.groups[2].Purge(t.Context()) == nil {
				t.Error("no error, though nobody could be told")
			}
			time.Sleep(time.Second)
			f.Heal()
			for _, i := range []int{0, 1} {
				if first == 2 {
					f.Delay(2, i, 400*time.Millisecond)
				} else {
					f.Delay(i, 2, 400*time.Millisecond)
				}
			}
			time.Sleep(time.Minute)
			f.Heal()
			for _, key := range keys {
				wantEverywhere(t, f, key, "new")
			}
		})
	}
}

// Purges in step do not go on without end.
func TestManyPurgesAtOnceEnd(t *testing.T) {
	for _, delay := range []time.Duration{0, 10 * time.Millisecond, 100 * time.Millisecond} {
		t.Run(fmt.Sprint(delay), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet[string](t, 6, nil, nil, nil)
				for i := range 36 {
					f.Delay(i/6, i%6, delay)
				}
				time.Sleep(time.Minute)
				var wg sync.WaitGroup
				for _, g := range f.groups {
					wg.Go(func() { must(t, g.Purge(t.Context())) })
				}
				wg.Wait()
			})
		})
	}
}

// What was written somewhere has been purged there: nobody has to be asked for it.
func TestWhatWasWrittenElsewhereIsPurged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 3, nil, nil, nil)
		key := keyWhere(func(key string) bool {
			return f.Owner(key) == 0 && ownerAmong(key, 0, 1) == 0 && nextAmong(key, 0, 1, 2) == 1
		})
		f.See(1, 1, 2) // and so it is its own
		time.Sleep(5 * time.Second)
		must(t, f.groups[1].Set(t.Context(), key, "value"))
		f.See(1, 0, 1, 2)
		time.Sleep(2 * time.Second)
		must(t, f.groups[2].Purge(t.Context()))
		f.Down(1)
		time.Sleep(3 * time.Minute)
		if v, err := f.groups[0].Get(t.Context(), key); !errors.Is(err, shoal.ErrNotFound) {
			t.Errorf("Get = %q, %v", v, err)
		}
	})
}
