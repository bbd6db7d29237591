package shoal_test

import (
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

// History 19: the journal of one that has purged does not reach back before that.
func TestPurgeSetsTheJournalsHorizon(t *testing.T) {
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
	for name, purgers := range map[string][]int{"one": {0}, "two at once": {0, 1}, "two at once, heard of late": {0, 1}, "one after the other": {0, 1, 0, 1}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet[string](t, 3, nil, nil, nil)
				time.Sleep(2 * time.Minute)
				f.See(0, 0, 1)
				f.See(1, 0, 1)
				time.Sleep(time.Second)
				at := time.Duration(0)
				switch name {
				case "two at once, heard of late":
					f.Delay(1, 2, 100*time.Millisecond)
				case "one after the other":
					at = time.Second
				}
				var wg sync.WaitGroup
				for _, i := range purgers {
					wg.Go(func() { must(t, f.groups[i].Purge(t.Context())) })
					time.Sleep(at)
				}
				keys := allOwnedBy(f.Cluster, 2, 20)
				time.Sleep(10 * time.Millisecond)
				f.groups[0].Get(t.Context(), keys[0]) // which tells of the purges that it has heard of
				wg.Wait()
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
