package shoal_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
)

// Who has gone through the purge of one with which another has no link takes nothing from that until it has gone through it, too.
func TestPurgedDoesNotComeBackFromAThird(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 4, nil, s.get, &shoal.GroupOptions[string]{Owners: 2})
		f.calm(t)
		key := keyWhere(func(key string) bool { return f.Owner(key) == 1 && nextAmong(key, 0, 1, 2, 3) == 2 })
		f.Partition([]int{0}, []int{1, 2, 3})
		f.See(0, 0)
		f.See(1, 1, 2, 3)
		time.Sleep(2 * time.Minute)
		for range 2 {
			f.groups[1].Purge(t.Context()) // so their number is higher, and a purge of the other side is told by its name
		}
		time.Sleep(time.Second)
		s.set(key, "old")
		want(t, f, 1, key, "old")
		time.Sleep(time.Second)
		s.set(key, "new")
		must(t, f.groups[0].Purge(t.Context()))
		time.Sleep(time.Minute)
		f.Kill(3)
		f.See(2, 0, 1, 2)
		f.Heal()
		f.noLink(0, 2)
		f.See(1, 0, 1, 2)
		f.See(0, 0, 1, 2)
		time.Sleep(5 * time.Second)
		f.Heal()
		time.Sleep(3 * time.Minute)
		wantEverywhere(t, f, key, "new")
	})
}

// noLink has nothing arrive between two that is sent from now on.
func (f *fleet[V]) noLink(a, b int) {
	f.Delay(a, b, time.Hour)
	f.Delay(b, a, time.Hour)
}

// Nobody takes over from a process that leaves what that would have had to drop, if all could have told it so.
func TestLeaverWhoHasMissedWritesBringsNothingOldBack(t *testing.T) {
	for name, write := range map[string]func(*testing.T, *fleet[string], string){
		"one": func(t *testing.T, f *fleet[string], key string) { must(t, f.groups[0].Set(t.Context(), key, "new")) },
		"more than a journal has": func(t *testing.T, f *fleet[string], key string) {
			must(t, f.groups[0].Set(t.Context(), key, "new"))
			setAll(t, f.groups[0], "another", 300, "value")
		},
		"a purge": func(t *testing.T, f *fleet[string], _ string) { must(t, f.groups[0].Purge(t.Context())) },
	} {
		for _, owners := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s, %d owners", name, owners), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var s source
					f := newFleet(t, 3, nil, s.get, &shoal.GroupOptions[string]{Owners: owners, MaxBytes: 1 << 20})
					f.calm(t)
					key := keyWhere(func(key string) bool { return f.Owner(key) == 2 && ownerAmong(key, 0, 1) == 1 })
					f.Partition([]int{0}, []int{1, 2})
					f.See(0, 0)
					f.See(1, 1, 2)
					f.See(2, 1, 2)
					time.Sleep(2 * time.Minute)
					for range 2 {
						must(t, f.groups[1].Purge(t.Context()))
					}
					s.set(key, "old")
					want(t, f, 2, key, "old")
					s.set(key, "new")
					time.Sleep(time.Second)
					write(t, f, key)
					time.Sleep(2 * time.Minute)
					f.Heal()
					f.noLink(0, 2)
					for i := range 3 {
						f.See(i, 0, 1, 2)
					}
					time.Sleep(time.Second)
					f.Cache(2).Shutdown(t.Context())
					time.Sleep(10 * time.Second)
					f.See(0, 0, 1)
					f.See(1, 0, 1)
					f.Heal()
					want(t, f, 0, key, "new")
					want(t, f, 1, key, "new")
				})
			})
		}
	}
}

// … nor finds it there, when it is asked for the key.
func TestWhoHasMissedWritesIsNotAskedForWhatItHad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, nil)
		f.calm(t)
		key := keyWhere(func(key string) bool { return f.Owner(key) == 2 && ownerAmong(key, 0, 1) == 1 })
		s.set(key, "old")
		want(t, f, 2, key, "old")
		f.Partition([]int{0}, []int{1, 2})
		f.See(0, 0)
		s.set(key, "new")
		must(t, f.groups[0].Set(t.Context(), key, "new"))
		time.Sleep(2 * time.Minute)
		f.Heal()
		f.noLink(0, 2)
		f.See(0, 0, 1, 2)
		time.Sleep(10 * time.Second)
		f.See(1, 0, 1)
		f.Heal()
		f.noLink(0, 2)
		want(t, f, 1, key, "new")
	})
}

// Where nothing can be loaded it is not said that there is nothing, and what is there is found as soon as that one has been told.
func TestWhoHasMissedWritesIsWaitedForWhereNothingCanBeLoaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 3, nil, nil, nil)
		f.calm(t)
		key := keyWhere(func(key string) bool { return f.Owner(key) == 2 && ownerAmong(key, 0, 1) == 1 })
		must(t, f.groups[2].Set(t.Context(), key, "value"))
		f.Partition([]int{0}, []int{1, 2})
		f.See(0, 0)
		must(t, f.groups[0].Set(t.Context(), "another", "value"))
		time.Sleep(2 * time.Minute)
		f.Heal()
		f.noLink(0, 2)
		f.See(0, 0, 1, 2)
		time.Sleep(10 * time.Second)
		f.See(1, 0, 1)
		if v, err := f.groups[1].Get(t.Context(), key); err == nil || errors.Is(err, shoal.ErrNotFound) {
			t.Errorf("Get = %q, %v", v, err)
		}
		f.Heal()
		time.Sleep(30 * time.Second) // until 0 tries 2 again
		want(t, f, 1, key, "value")
	})
}

// … and takes over all of it when it has been told: here, by the one who is told that it leaves.
func TestLeaverIsToldWhatItHasMissedAndHandsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 3, nil, nil, nil)
		f.calm(t)
		keys := setAll(t, f.groups[0], "k", 90, "value")
		f.See(0, 0, 1) // and so it does not know that 2 is told of writes
		must(t, f.groups[1].Set(t.Context(), keys[0], "value"))
		must(t, f.groups[0].Set(t.Context(), keys[1], "value"))
		must(t, f.Cache(2).Shutdown(t.Context()))
		f.Kill(2)
		f.See(1, 0, 1)
		if n := lostOf(t, f.groups[0], keys, "value"); n > 0 {
			t.Errorf("%d of 90 are lost", n)
		}
	})
}

// Who has had to drop all that it kept, since it may have missed a write of any of it, gets it again from the others who keep it.
func TestWhatHadToBeDroppedIsCopiedAgain(t *testing.T) {
	for owner := range 2 {
		synctest.Test(t, func(t *testing.T) {
			f := newFleet[string](t, 3, nil, nil, &shoal.GroupOptions[string]{Owners: 2, MaxBytes: 1 << 20})
			f.calm(t)
			var keys []string
			for n := 0; len(keys) < 20; n++ {
				if key := fmt.Sprint("key ", n); f.Owner(key) == owner && nextAmong(key, 0, 1, 2) == 1-owner {
					keys = append(keys, key)
					must(t, f.groups[2].Set(t.Context(), key, "value"))
				}
			}
			f.Partition([]int{0, 2}, []int{1})
			f.See(0, 0, 2)
			f.See(2, 0, 2)
			time.Sleep(10 * time.Second)
			setAll(t, f.groups[2], "another", 1000, "value") // more than a journal has
			f.Heal()
			f.See(0, 0, 1, 2)
			f.See(2, 0, 1, 2)
			if n := lostOf(t, f.groups[2], keys, "value"); n > 0 {
				t.Errorf("owner %d: %d of 20 are lost at first", owner, n)
			}
			time.Sleep(time.Minute)
			if f.Cache(1).Stats().Repairing {
				t.Error("it is still being repaired")
			}
			f.Kill(0)
			f.See(1, 1, 2)
			f.See(2, 1, 2)
			if n := lostOf(t, f.groups[2], keys, "value"); n > 0 {
				t.Errorf("owner %d: %d of 20 are lost", owner, n)
			}
		})
	}
}

// … also where it was told so for writes that have failed, of other keys.
func TestHintsThatOverflowLoseNothingThatOthersKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 3, nil, nil, &shoal.GroupOptions[string]{Owners: 2})
		f.calm(t)
		keys := allOwnedBy(f.Cluster, 1, 20)
		for _, key := range keys {
			must(t, f.groups[2].Set(t.Context(), key, "value"))
		}
		f.Partition([]int{0, 2}, []int{1})
		for n, failed := 0, 0; failed < 1100; n++ {
			if key := fmt.Sprint("another ", n); f.Owner(key) == 0 && nextAmong(key, 0, 1, 2) == 1 {
				f.groups[2].Set(t.Context(), key, "value")
				failed++
			}
		}
		f.Heal()
		time.Sleep(30 * time.Second)
		if n := lostOf(t, f.groups[2], keys, "value"); n > 0 {
			t.Errorf("%d of 20 are lost", n)
		}
	})
}

// Who comes while there is much writing has been told of each write, and need not drop all since a journal does not have them any more.
func TestJoinUnderMuchWritingLosesNothing(t *testing.T) {
	for _, owners := range []int{1, 2} {
		synctest.Test(t, func(t *testing.T) {
			opts := &shoal.GroupOptions[string]{Owners: owners, MaxBytes: 1 << 20}
			f := newFleet[string](t, 4, nil, nil, opts)
			f.Kill(3)
			for i := range 3 {
				f.See(i, 0, 1, 2)
			}
			time.Sleep(3 * time.Minute)
			keys := allOwnedBy(f.Cluster, 3, 50)
			for _, key := range keys {
				must(t, f.groups[2].Set(t.Context(), key, "value"))
			}
			stop := make(chan struct{})
			go func() {
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					case <-time.After(20 * time.Millisecond):
						f.groups[0].Set(t.Context(), fmt.Sprint("another ", n%500), "value")
					}
				}
			}()
			time.Sleep(5 * time.Second)
			restart(t, f, 3, nil, opts)
			time.Sleep(5 * time.Second)
			f.See(0, 0, 1, 2, 3)
			f.See(1, 0, 1, 2, 3)
			time.Sleep(40 * time.Second)
			f.See(2, 0, 1, 2, 3)
			time.Sleep(10 * time.Second)
			close(stop)
			time.Sleep(3 * time.Minute)
			if n := lostOf(t, f.groups[0], keys, "value"); n > 0 {
				t.Errorf("%d owners: %d of 50 are lost", owners, n)
			}
		})
	}
}

// A list that lags for longer than Warm holds up what goes with it, and loses nothing.
func TestListThatLagsForMinutesLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 4, nil, nil, nil)
		f.Kill(3)
		for i := range 3 {
			f.See(i, 0, 1, 2)
		}
		time.Sleep(3 * time.Minute)
		keys := allOwnedBy(f.Cluster, 3, 50)
		for _, key := range keys {
			must(t, f.groups[2].Set(t.Context(), key, "value"))
		}
		time.Sleep(3 * time.Minute)
		restart(t, f, 3, nil, nil)
		f.See(0, 0, 1, 2, 3)
		time.Sleep(5 * time.Minute)
		f.See(1, 0, 1, 2, 3)
		f.See(2, 0, 1, 2, 3)
		time.Sleep(10 * time.Second)
		if n := lostOf(t, f.groups[0], keys, "value"); n > 0 {
			t.Errorf("%d of 50 are lost", n)
		}
	})
}

// Who is out of the lists a while before it leaves, as where a program waits before it shuts down, is told of writes all along, and
// found where its keys are looked for, and hands them over.
func TestWhoIsOutOfTheListsHandsOver(t *testing.T) {
	for name, get := range map[string]shoal.Getter[string]{"with a getter": upper, "without": nil} {
		for _, shutdown := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, shut down %v", name, shutdown), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFleet(t, 4, nil, get, nil)
					f.calm(t)
					keys := allOwnedBy(f.Cluster, 3, 50)
					for _, key := range keys {
						must(t, f.groups[2].Set(t.Context(), key, "value"))
					}
					f.calm(t)
					for i := range 3 {
						f.See(i, 0, 1, 2)
						time.Sleep(500 * time.Millisecond)
					}
					for n := range 10 {
						must(t, f.groups[n%3].Set(t.Context(), fmt.Sprint("another ", n), "value"))
					}
					time.Sleep(8 * time.Second)
					if shutdown {
						must(t, f.Cache(3).Shutdown(t.Context()))
						f.Kill(3)
						time.Sleep(2 * time.Second)
					}
					if n := lostOf(t, f.groups[0], keys, "value"); n > 0 {
						t.Errorf("%d of 50 are lost", n)
					}
				})
			})
		}
	}
}

// What this process has had to drop it looks for elsewhere only until it has asked everybody that is there.
func TestDeadPeerDoesNotKeepWhatWasDroppedFromBeingAbsent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 4, nil, nil, &shoal.GroupOptions[string]{MaxBytes: 1 << 20})
		f.calm(t)
		keys := allOwnedBy(f.Cluster, 1, 40)
		f.Partition([]int{0, 2, 3}, []int{1})
		f.See(0, 0, 2, 3)
		time.Sleep(10 * time.Second)
		for n := range 3000 {
			f.groups[0].Set(t.Context(), fmt.Sprint("another ", n), "value")
		}
		f.Kill(3)
		time.Sleep(2 * time.Second)
		f.Heal()
		f.See(0, 0, 1, 2, 3)
		time.Sleep(5 * time.Second)
		for _, key := range keys {
			if _, err := f.groups[1].Get(t.Context(), key); !errors.Is(err, shoal.ErrNotFound) {
				t.Fatal(err)
			}
		}
	})
}
