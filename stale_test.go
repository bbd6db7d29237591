package shoal_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
)

func entryOf(t *testing.T, g *shoal.Group[string], key string, opts *shoal.GetOptions) shoal.Entry[string] {
	t.Helper()
	e, err := g.GetEntry(t.Context(), key, opts)
	if err != nil {
		t.Errorf("GetEntry(%q, %+v): %v", key, opts, err)
	}
	return e
}

func TestStaleValueIsServedWhileOneLoadReplacesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, &shoal.GroupOptions[string]{TTL: time.Minute, Stale: time.Minute})
		key := ownedBy(f.Cluster, 0, 0)
		s.set(key, "old")
		want(t, f, 0, key, "old")
		s.set(key, "new")
		s.slow(time.Second)
		time.Sleep(90 * time.Second)
		var wg sync.WaitGroup
		for _, g := range f.groups {
			for range 100 {
				wg.Go(func() {
					start := time.Now()
					e := entryOf(t, g, key, nil)
					if e.Value != "old" || !e.Stale || e.Age != 90*time.Second || time.Since(start) > 0 {
						t.Errorf("%+v after %v", e, time.Since(start))
					}
				})
			}
		}
		wg.Wait()
		f.wantLoads(t, 2)
		time.Sleep(2 * time.Second)
		for _, g := range f.groups {
			if e := entryOf(t, g, key, nil); e.Value != "new" || e.Stale || e.Age != 2*time.Second {
				t.Errorf("%+v", e)
			}
		}
		f.wantLoads(t, 2)
		time.Sleep(3 * time.Minute) // past TTL and Stale
		for _, g := range f.groups {
			if e := entryOf(t, g, key, nil); e.Stale || e.Age > 2*time.Second {
				t.Errorf("%+v", e)
			}
		}
	})
}

func TestStaleIfErrorServesWhileLoadsFail(t *testing.T) {
	for _, stale := range []time.Duration{0, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			var s source
			f := newFleet(t, 3, nil, s.get, &shoal.GroupOptions[string]{TTL: time.Minute, Stale: stale, StaleIfError: time.Hour})
			key := ownedBy(f.Cluster, 0, 0)
			s.set(key, "old")
			want(t, f, 0, key, "old")
			s.fail(errors.New("down"))
			time.Sleep(time.Minute)
			before := f.loads.Load()
			for range 600 { // ten minutes, a get a second from each
				for _, g := range f.groups {
					if e := entryOf(t, g, key, nil); e.Value != "old" || !e.Stale {
						t.Errorf("%+v", e)
					}
				}
				time.Sleep(time.Second)
			}
			// 250 ms, and twice that each time up to 30 s, cut by up to a half.
			if n := f.loads.Load() - before; n < 20 || n > 50 {
				t.Errorf("%d loads in ten minutes", n)
			}
			s.fail(nil)
			s.set(key, "new")
			time.Sleep(31 * time.Second)
			for _, g := range f.groups {
				g.Get(t.Context(), key) // sets off the load, or waits for it
			}
			synctest.Wait()
			for _, g := range f.groups {
				if e := entryOf(t, g, key, nil); e.Value != "new" || e.Stale {
					t.Errorf("%+v", e)
				}
			}
			s.fail(errors.New("down"))
			time.Sleep(2 * time.Hour)
			for _, g := range f.groups {
				if v, err := g.Get(t.Context(), key); err == nil {
					t.Errorf("%q, two hours old", v)
				}
			}
		})
	}
}

// A load that panics, or does not end, has failed too.
func TestStaleIfErrorCoversPanicsAndTimeouts(t *testing.T) {
	for name, bad := range map[string]shoal.Getter[string]{
		"panic":   func(context.Context, string) (string, error) { panic("bad") },
		"timeout": func(ctx context.Context, _ string) (string, error) { <-ctx.Done(); return "", ctx.Err() },
		"deaf":    func(context.Context, string) (string, error) { time.Sleep(time.Hour); return "late", nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var broken atomic.Bool
				f := newFleet(t, 2, nil, func(ctx context.Context, key string) (string, error) {
					if broken.Load() {
						return bad(ctx, key)
					}
					return upper(ctx, key)
				}, &shoal.GroupOptions[string]{TTL: time.Minute, StaleIfError: 10 * time.Hour, LoadTimeout: time.Second})
				key := ownedBy(f.Cluster, 0, 0)
				want(t, f, 1, key, strings.ToUpper(key))
				broken.Store(true)
				time.Sleep(time.Minute)
				for _, g := range f.groups {
					if e := entryOf(t, g, key, nil); !e.Stale || e.Value != strings.ToUpper(key) {
						t.Errorf("%+v", e)
					}
				}
				time.Sleep(2 * time.Hour)
			})
		})
	}
}

// A load that says the key has no value has not failed.
func TestStaleValueGoesWhenTheKeyHasNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 2, nil, s.get, &shoal.GroupOptions[string]{TTL: time.Minute, StaleIfError: time.Hour})
		key := ownedBy(f.Cluster, 0, 0)
		s.set(key, "old")
		want(t, f, 1, key, "old")
		s.mu.Lock()
		delete(s.values, key)
		s.mu.Unlock()
		time.Sleep(2 * time.Minute)
		for i, g := range f.groups {
			if v, err := g.Get(t.Context(), key); !errors.Is(err, shoal.ErrNotFound) {
				t.Errorf("cache %d: %q, %v", i, v, err)
			}
		}
		s.fail(errors.New("down"))
		if v, err := f.groups[0].Get(t.Context(), key); err == nil {
			t.Errorf("%q has come back", v)
		}
	})
}

// With Stale, a hot key is loaded before its TTL ends, so that nobody gets it stale, or waits.
func TestHotKeyIsLoadedBeforeItsTTLEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 2, nil, s.get, &shoal.GroupOptions[string]{TTL: 10 * time.Second, Stale: time.Minute})
		for _, hot := range []bool{false, true} {
			key := ownedBy(f.Cluster, 0, 0) + fmt.Sprint(hot)
			s.set(key, "value")
			before := f.loads.Load()
			var late int
			pause := time.Second
			if hot {
				pause = 50 * time.Millisecond
			}
			for start := time.Now(); time.Since(start) < 95*time.Second; time.Sleep(pause) {
				if entryOf(t, f.groups[f.Owner(key)], key, nil).Stale {
					late++
				}
			}
			if n := f.loads.Load() - before; hot && (n < 9 || n > 12 || late > 0) || !hot && (n > 10 || late == 0) {
				t.Errorf("hot %v: %d loads, %d gets of what was stale", hot, n, late)
			}
		}
	})
}

func TestNotFoundIsRememberedAndEndedBySet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, &shoal.GroupOptions[string]{NotFoundTTL: time.Minute})
		key := ownedBy(f.Cluster, 0, 0)
		none := func(loads int64) {
			t.Helper()
			for i, g := range f.groups {
				if v, err := g.Get(t.Context(), key); !errors.Is(err, shoal.ErrNotFound) {
					t.Errorf("cache %d: %q, %v", i, v, err)
				}
			}
			f.wantLoads(t, loads)
		}
		none(1)
		time.Sleep(59 * time.Second)
		none(1)
		time.Sleep(time.Second)
		none(2)
		must(t, f.groups[1].Set(t.Context(), key, "value"))
		wantEverywhere(t, f, key, "value")
		must(t, f.groups[1].Remove(t.Context(), key))
		none(3)
		s.set(key, "loaded")
		must(t, f.groups[2].Remove(t.Context(), key))
		wantEverywhere(t, f, key, "loaded")
		must(t, f.groups[1].Purge(t.Context()))
		wantEverywhere(t, f, key, "loaded")
	})
}

// What is not there must not push out what is.
func TestWhatIsNotThereHasABudgetOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 1, nil, s.get, &shoal.GroupOptions[string]{NotFoundTTL: time.Hour, MaxBytes: 1 << 20})
		for n := range 1000 {
			s.set(fmt.Sprint("there ", n), strings.Repeat("v", 500))
			want(t, f, 0, fmt.Sprint("there ", n), strings.Repeat("v", 500))
		}
		for n := range 20_000 {
			f.groups[0].Get(t.Context(), fmt.Sprint("nowhere ", n))
		}
		if st := f.groups[0].Stats(); st.Entries != 1000 || st.Absent == 0 || st.Absent > 1<<20/64/280 {
			t.Errorf("%d values of 1000, %d remembered as absent", st.Entries, st.Absent)
		}
	})
}

// T30.
func TestErrorsAreRememberedButNoPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := errors.New("bad")
		var panics atomic.Bool
		f := newFleet(t, 2, nil, func(ctx context.Context, key string) (string, error) {
			if panics.Load() {
				panic("bad")
			}
			return "", bad
		}, &shoal.GroupOptions[string]{ErrorTTL: time.Second})
		key := ownedBy(f.Cluster, 0, 0)
		fails := func(loads int64) {
			t.Helper()
			for i, g := range f.groups {
				_, err := g.Get(t.Context(), key)
				if err == nil || i == 0 && !panics.Load() && !errors.Is(err, bad) {
					t.Errorf("cache %d: %v", i, err)
				}
			}
			f.wantLoads(t, loads)
		}
		fails(1)
		fails(1)
		time.Sleep(time.Second)
		fails(2)
		panics.Store(true)
		time.Sleep(time.Second)
		fails(4)
		must(t, f.groups[1].Set(t.Context(), key, "value"))
		wantEverywhere(t, &fleet[string]{groups: f.groups}, key, "value")
	})
}

func TestLoadsThatTakeTooLongAreRememberedAsErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 1, nil, slow(time.Hour), &shoal.GroupOptions[string]{ErrorTTL: time.Minute, LoadTimeout: time.Second})
		for range 10 {
			if _, err := f.groups[0].Get(t.Context(), "key"); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		}
		f.wantLoads(t, 1)
	})
}

func TestMaxLoadsRunAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most atomic.Int64
		f := newFleet(t, 1, nil, func(ctx context.Context, key string) (string, error) {
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			return slow(time.Second)(ctx, key)
		}, &shoal.GroupOptions[string]{MaxLoads: 3})
		start := time.Now()
		var wg sync.WaitGroup
		for n := range 30 {
			wg.Go(func() { want(t, f, 0, fmt.Sprint("key ", n), fmt.Sprint("KEY ", n)) })
		}
		wg.Wait()
		if d := time.Since(start); most.Load() != 3 || d != 10*time.Second {
			t.Errorf("%d at once, %v in all", most.Load(), d)
		}
	})
}

func TestEntryTellsAgeAndSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, slow(time.Second), nil)
		key := ownedBy(f.Cluster, 0, 0)
		check := func(i int, source string, age time.Duration) {
			t.Helper()
			if e := entryOf(t, f.groups[i], key, nil); e.Source != source || e.Age != age || e.Stale || e.Value != strings.ToUpper(key) {
				t.Errorf("%+v, want from %s, %v old", e, source, age)
			}
		}
		check(1, "getter", 2*time.Second) // by the time of the question, for what it takes to come is not known
		check(1, "peer", time.Second)
		check(0, "memory", time.Second)
		time.Sleep(time.Minute)
		check(0, "memory", 61*time.Second)
		check(1, "peer", 61*time.Second)
		must(t, f.groups[1].Set(t.Context(), key, strings.ToUpper(key)))
		check(0, "memory", 0)
		must(t, f.groups[0].Remove(t.Context(), key))
		check(0, "getter", time.Second)
		for range 20 {
			f.groups[1].Get(t.Context(), key)
		}
		check(1, "memory", time.Second) // a copy
	})
}

func TestGetEntryHoldsItsConditions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 2, nil, s.get, &shoal.GroupOptions[string]{TTL: time.Minute, Stale: time.Minute, StaleIfError: time.Hour, HotRate: 0.5})
		key := ownedBy(f.Cluster, 0, 0)
		for i, g := range f.groups {
			must(t, g.Remove(t.Context(), key))
			if e, err := g.GetEntry(t.Context(), key, &shoal.GetOptions{CachedOnly: true}); err != shoal.ErrNotCached {
				t.Errorf("cache %d: %+v, %v", i, e, err)
			}
			s.set(key, "old")
			want(t, f, i, key, "old")
			if e := entryOf(t, g, key, &shoal.GetOptions{CachedOnly: true}); e.Value != "old" {
				t.Errorf("%+v", e)
			}
			s.set(key, "new")
			time.Sleep(10 * time.Second)
			if e := entryOf(t, g, key, &shoal.GetOptions{MaxAge: 11 * time.Second}); e.Value != "old" {
				t.Errorf("%+v", e)
			}
			if e, err := g.GetEntry(t.Context(), key, &shoal.GetOptions{MaxAge: 9 * time.Second, CachedOnly: true}); err != shoal.ErrNotCached {
				t.Errorf("cache %d: %+v, %v", i, e, err)
			}
			s.fail(errors.New("down")) // too old a value is no substitute
			if e, err := g.GetEntry(t.Context(), key, &shoal.GetOptions{MaxAge: 9 * time.Second}); err == nil {
				t.Errorf("cache %d: %+v", i, e)
			}
			want(t, f, i, key, "old")
			if e, err := g.GetEntry(t.Context(), key, &shoal.GetOptions{Fresh: true}); err == nil {
				t.Errorf("cache %d: %+v", i, e)
			}
			s.fail(nil)
			if e := entryOf(t, g, key, &shoal.GetOptions{MaxAge: 9 * time.Second}); e.Value != "new" || e.Source != "getter" {
				t.Errorf("%+v", e)
			}
			s.set(key, "newer")
			if e := entryOf(t, g, key, &shoal.GetOptions{Fresh: true}); e.Value != "newer" || e.Source != "getter" {
				t.Errorf("%+v", e)
			}
			want(t, f, 0, key, "newer")
		}
	})
}

// A value that has just been loaded is as young as can be.
func TestMaxAgeShorterThanALoadIsOneLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, slow(time.Second), nil)
		for _, g := range f.groups {
			before := f.loads.Load()
			key := ownedBy(f.Cluster, 0, 0)
			if e := entryOf(t, g, key, &shoal.GetOptions{MaxAge: time.Millisecond}); e.Source != "getter" {
				t.Errorf("%+v", e)
			}
			if n := f.loads.Load() - before; n != 1 {
				t.Errorf("%d loads", n)
			}
		}
	})
}

// A load that began before the call is not fresh; those who want a fresh one share the next.
func TestFreshJoinsNoLoadThatHasBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 2, nil, s.get, nil)
		key := ownedBy(f.Cluster, 0, 0)
		s.set(key, "old")
		s.slow(time.Second)
		var wg sync.WaitGroup
		for _, g := range f.groups {
			wg.Go(func() { g.Get(t.Context(), key) })
		}
		time.Sleep(time.Second / 2)
		s.set(key, "new")
		for _, g := range f.groups {
			for range 10 {
				wg.Go(func() {
					if e := entryOf(t, g, key, &shoal.GetOptions{Fresh: true}); e.Value != "new" {
						t.Errorf("%+v", e)
					}
				})
			}
		}
		wg.Wait()
		f.wantLoads(t, 2)
	})
}

// T33: a TTL is cut by its jitter, never stretched; T35: not all entries end together.
func TestJitterCutsTTLs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 1, nil, upper, &shoal.GroupOptions[string]{TTL: 100 * time.Second, Jitter: 0.5})
		for n := range 100 {
			f.groups[0].Get(t.Context(), fmt.Sprint(n))
		}
		alive := func() (n int) {
			for k := range 100 {
				if _, err := f.groups[0].GetEntry(t.Context(), fmt.Sprint(k), &shoal.GetOptions{CachedOnly: true}); err == nil {
					n++
				}
			}
			return n
		}
		time.Sleep(49 * time.Second)
		early := alive()
		time.Sleep(26 * time.Second)
		half := alive()
		time.Sleep(25 * time.Second)
		if late := alive(); early != 100 || half < 20 || half > 80 || late != 0 {
			t.Errorf("of 100, %d, %d and %d live after 49, 75 and 100 s", early, half, late)
		}
	})
}

func TestFreshIsNotAnsweredWithAnOlderNotFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 1, nil, s.get, nil)
		s.slow(time.Second)
		var wg sync.WaitGroup
		wg.Go(func() { f.groups[0].Get(t.Context(), "key") })
		time.Sleep(time.Second / 2)
		s.set("key", "new")
		e, err := f.groups[0].GetEntry(t.Context(), "key", &shoal.GetOptions{Fresh: true})
		if e.Value != "new" || err != nil {
			t.Errorf("%+v %v", e, err)
		}
		wg.Wait()
	})
}

func TestCachedOnlyRunsNoGetter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 1, nil, s.get, &shoal.GroupOptions[string]{TTL: time.Second, Stale: time.Minute})
		s.set("key", "v")
		want(t, f, 0, "key", "v")
		time.Sleep(2 * time.Second)
		f.groups[0].GetEntry(t.Context(), "key", &shoal.GetOptions{CachedOnly: true})
		synctest.Wait()
		f.wantLoads(t, 1)
	})
}

// A load that ends since nobody waits for it any more does not put off the next.
func TestImpatientCallersAreNoFailureOfTheSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 1, nil, s.get, &shoal.GroupOptions[string]{TTL: time.Second, StaleIfError: time.Hour})
		s.set("key", "old")
		want(t, f, 0, "key", "old")
		time.Sleep(2 * time.Second)
		s.set("key", "new")
		s.slow(100 * time.Millisecond) // the source is well
		for range 12 {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			f.groups[0].Get(ctx, "key")
			cancel()
			time.Sleep(40 * time.Second)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		f.groups[0].Get(ctx, "key")
		cancel()
		time.Sleep(10 * time.Second)
		want(t, f, 0, "key", "new")
	})
}

func TestRemoveEndsARememberedError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 1, nil, s.get, &shoal.GroupOptions[string]{LoadTimeout: time.Second, ErrorTTL: time.Hour})
		s.set("key", "v")
		s.slow(time.Hour)
		_, err := f.groups[0].Get(t.Context(), "key")
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		s.slow(0)
		must(t, f.groups[0].Remove(t.Context(), "key"))
		want(t, f, 0, "key", "v")
	})
}
