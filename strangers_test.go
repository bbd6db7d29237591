package shoal_test

// strangers_test.go: values without a source that are with processes which own keys by views of others, and are not in the own one.

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
)

// newFleetWithStrangers is a fleet of n without a getter. All are there, but only 1 lists more than three, and nobody remembers that
// the others were there before.
func newFleetWithStrangers[V any](t *testing.T, n int, opts *shoal.GroupOptions[V]) *fleet[V] {
	t.Helper()
	f := newFleet[V](t, n, nil, nil, opts)
	var all []int
	for i := range n {
		all = append(all, i)
		if i >= 3 {
			f.Kill(i)
		}
	}
	for _, listed := range [][]int{{0, 1, 2}, {0, 1}, {0, 1, 2}} {
		for _, i := range listed {
			f.See(i, listed...)
		}
		time.Sleep(2 * time.Minute)
	}
	for i := 3; i < n; i++ {
		f.join(i, nil, opts)
	}
	for i := 3; i < n; i++ {
		must(t, f.Cache(i).Ready(t.Context()))
	}
	f.See(1, all...)
	return f
}

// theirs returns keys of which 1 sees that strangers own them, and 0 that it does itself.
func (f *fleet[V]) theirs(n int) (keys []string) {
	for k := 0; len(keys) < n; k++ {
		if key := fmt.Sprint("key ", k); f.Owner(key) >= 3 && ownerAmong(key, 0, 1, 2) == 0 {
			keys = append(keys, key)
		}
	}
	return keys
}

// What a stranger has taken is found, also if there are more of them than can be asked.
func TestWriteTakenByAStrangerIsFound(t *testing.T) {
	for _, size := range []int{4, 22} {
		for _, owners := range []int{1, 2} {
			synctest.Test(t, func(t *testing.T) {
				f := newFleetWithStrangers(t, size, &shoal.GroupOptions[string]{Owners: owners})
				if size > 4 {
					time.Sleep(5 * time.Second)
				}
				for _, key := range f.theirs(20) {
					must(t, f.groups[1].Set(t.Context(), key, "value"))
					want(t, f, 0, key, "value")
					want(t, f, 2, key, "value")
				}
			})
		}
	}
}

// … or if it does not answer for a while: for 15 seconds there is no saying whether it is there.
func TestWriteTakenByAStrangerThatIsSilentIsFoundLater(t *testing.T) {
	for _, owners := range []int{1, 2} {
		for _, silent := range []time.Duration{0, 2 * time.Minute} {
			synctest.Test(t, func(t *testing.T) {
				f := newFleetWithStrangers(t, 4, &shoal.GroupOptions[string]{Owners: owners})
				key := f.theirs(1)[0]
				must(t, f.groups[1].Set(t.Context(), key, "value"))
				f.noLink(0, 3)
				time.Sleep(silent)
				if v, err := f.groups[0].Get(t.Context(), key); owners == 1 && errors.Is(err, shoal.ErrNotFound) != (silent > 0) {
					t.Errorf("silent for %v: %q, %v", silent, v, err)
				}
				f.Heal()
				time.Sleep(20 * time.Second)
				want(t, f, 0, key, "value")
			})
		}
	}
}

// … also if this process has just dropped it from its list.
func TestWriteTakenByWhoWasListedLatelyIsFoundLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 4, nil, nil, nil)
		time.Sleep(3 * time.Minute)
		key := f.theirs(1)[0]
		f.See(0, 0, 1, 2)
		f.See(2, 0, 1, 2)
		time.Sleep(time.Second)
		must(t, f.groups[1].Set(t.Context(), key, "value"))
		f.noLink(0, 3)
		if v, err := f.groups[0].Get(t.Context(), key); errors.Is(err, shoal.ErrNotFound) {
			t.Errorf("%q, %v", v, err)
		}
		time.Sleep(2 * time.Minute)
		f.Heal()
		time.Sleep(20 * time.Second)
		want(t, f, 0, key, "value")
	})
}

// So is what a process has never heard of: it has been started since, into a list without the owner.
func TestWhatAStrangerHasIsFoundByWhoHasJustBeenStarted(t *testing.T) {
	for _, owners := range []int{1, 2} {
		for name, silent := range map[string]bool{"there": false, "silent": true} {
			t.Run(fmt.Sprint(owners, " owners, ", name), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					opts := &shoal.GroupOptions[string]{Owners: owners}
					f := newFleet[string](t, 3, nil, nil, opts)
					key := keyWhere(func(key string) bool { return f.Owner(key) == 2 && nextAmong(key, 0, 1, 2) == 1 })
					must(t, f.groups[2].Set(t.Context(), key, "value"))
					time.Sleep(time.Minute) // 0 still knows of that, but need not tell it
					f.Kill(1)
					f.See(1, 0, 1)
					f.join(1, nil, opts)
					must(t, f.Cache(1).Ready(t.Context()))
					if silent {
						f.noLink(1, 2)
						if v, err := f.groups[1].Get(t.Context(), key); err == nil || errors.Is(err, shoal.ErrNotFound) {
							t.Errorf("%q, %v", v, err)
						}
						f.Heal()
						time.Sleep(10 * time.Second)
					}
					want(t, f, 1, key, "value")
				})
			})
		}
	}
}

// … or lists it, and it is not the owner by the own view. That another, who owns the key by that, has something old is no answer.
func TestWriteTakenByAMemberThatDoesNotOwnTheKeyIsFoundLater(t *testing.T) {
	for _, old := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := newFleet[string](t, 4, nil, nil, nil)
			time.Sleep(3 * time.Minute)
			key := keyWhere(func(key string) bool {
				return f.Owner(key) == 0 && nextAmong(key, 0, 1, 2, 3) == 1 && ownerAmong(key, 2, 3) == 2
			})
			if old {
				f.See(1, 1, 2, 3)
				time.Sleep(3 * time.Minute)
				must(t, f.groups[1].Set(t.Context(), key, "old"))
				f.noLink(1, 2)
				f.noLink(1, 3)
			}
			f.See(2, 2, 3)
			f.See(3, 2, 3)
			time.Sleep(3 * time.Minute)
			must(t, f.groups[2].Set(t.Context(), key, "value"))
			f.noLink(0, 2)
			if v, err := f.groups[0].Get(t.Context(), key); err == nil || errors.Is(err, shoal.ErrNotFound) {
				t.Errorf("%q, %v", v, err)
			}
			f.Heal()
			time.Sleep(20 * time.Second)
			want(t, f, 0, key, "value")
			for i := range 4 {
				f.See(i, 0, 1, 2, 3)
			}
			time.Sleep(2 * time.Minute)
			wantEverywhere(t, f, key, "value")
		})
	}
}

// Who is in no list keeps nothing from being absent for more than a quarter of Warm after it was heard of last.
func TestStrangerThatHasDiedKeepsNothingFromBeingAbsent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleetWithStrangers[string](t, 4, nil)
		key := f.theirs(1)[0]
		must(t, f.groups[1].Set(t.Context(), key, "value"))
		f.Kill(3)
		f.See(1, 0, 1, 2)
		time.Sleep(20 * time.Second)
		if v, err := f.groups[0].Get(t.Context(), key); !errors.Is(err, shoal.ErrNotFound) {
			t.Errorf("%q, %v", v, err)
		}
	})
}

// A counter does not begin anew because the stranger that has it is slow.
func TestCounterAtAStrangerThatIsSlowDoesNotBeginAnew(t *testing.T) {
	for _, owners := range []int{1, 2} {
		synctest.Test(t, func(t *testing.T) {
			f := newFleetWithStrangers(t, 4, &shoal.GroupOptions[int64]{Owners: owners})
			key := f.theirs(1)[0]
			if _, err := shoal.Add(t.Context(), f.groups[1], key, 5); err != nil {
				t.Fatal(err)
			}
			f.Delay(3, 0, time.Second)
			shoal.Add(t.Context(), f.groups[0], key, 1)
			f.Heal()
			f.See(0, 0, 1, 2, 3)
			f.See(2, 0, 1, 2, 3)
			time.Sleep(2 * time.Minute)
			for i, g := range f.groups {
				if n, err := shoal.Add(t.Context(), g, key, 0); n < 5 || err != nil {
					t.Errorf("cache %d counts %d, %v", i, n, err)
				}
			}
		})
	}
}

// What a stranger holds that is older than a removal is no reason to doubt that there is nothing, though it may have missed writes.
func TestStrangerWithSomethingOldIsNotAskedForMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleetWithStrangers[string](t, 4, nil)
		key := keyWhere(func(key string) bool {
			return f.Owner(key) == 3 && ownerAmong(key, 0, 1, 2) == 0 && ownerAmong(key, 1, 2) == 1
		})
		must(t, f.groups[3].Set(t.Context(), key, "old"))
		f.See(1, 1, 2)
		f.See(2, 1, 2)
		time.Sleep(time.Minute)
		f.noLink(1, 3)
		time.Sleep(time.Minute)
		f.groups[1].Set(t.Context(), "another "+key, "value") // 3 is not told
		f.noLink(2, 3)
		must(t, f.groups[1].Remove(t.Context(), key))
		if v, err := f.groups[0].Get(t.Context(), key); !errors.Is(err, shoal.ErrNotFound) {
			t.Errorf("%q, %v", v, err)
		}
	})
}
