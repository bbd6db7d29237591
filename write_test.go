package shoal_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/consistenthash"
	"github.com/shoalcache/shoal/shoalpb"
)

// A source is what a fleet loads from. It may be changed, and takes as long as it is told.
type source struct {
	mu     sync.Mutex
	values map[string]string
	wait   time.Duration // between reading and returning
	err    error
}

func (s *source) get(ctx context.Context, key string) (string, error) {
	s.mu.Lock()
	v, ok := s.values[key]
	wait, err := s.wait, s.err
	s.mu.Unlock()
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	if err == nil && !ok {
		err = shoal.ErrNotFound
	}
	return v, err
}

func (s *source) set(key, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.values == nil {
		s.values = make(map[string]string)
	}
	s.values[key] = value
}

func (s *source) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *source) slow(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wait = d
}

// calm waits until writes are told to holders of leases only: until nobody is new, and all know that they agree.
func (f *fleet[V]) calm(t *testing.T) {
	t.Helper()
	time.Sleep(61 * time.Second)
	for _, g := range f.groups {
		for i := range f.groups {
			if err := g.Remove(t.Context(), ownedBy(f.Cluster, i, 1000)); err != nil {
				t.Fatal(err)
			}
		}
	}
	time.Sleep(6 * time.Second)
}

// heat makes key hot at cache i, which then holds a copy.
func (f *fleet[V]) heat(t *testing.T, i int, key string) {
	t.Helper()
	before := f.groups[i].Stats().HotHits
	for range 100 {
		if _, err := f.groups[i].Get(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	if f.groups[i].Stats().HotHits == before {
		t.Fatalf("cache %d has no copy of %q", i, key)
	}
}

// want checks what cache i says is the value of key.
func want(t *testing.T, f *fleet[string], i int, key, value string) {
	t.Helper()
	if v, err := f.groups[i].Get(t.Context(), key); v != value || err != nil {
		t.Errorf("cache %d: Get(%q) = %q, %v, want %q", i, key, v, err, value)
	}
}

func wantEverywhere(t *testing.T, f *fleet[string], key, value string) {
	t.Helper()
	for i := range f.groups {
		want(t, f, i, key, value)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// peersOf returns the addresses of the peers that err says have failed at op.
func peersOf(err error, op string) (addrs []string) {
	var walk func(error)
	walk = func(err error) {
		switch e := err.(type) {
		case *shoal.PeerError:
			if e.Op == op {
				addrs = append(addrs, e.Peer.Addr)
			}
		case interface{ Unwrap() []error }:
			for _, err := range e.Unwrap() {
				walk(err)
			}
		case interface{ Unwrap() error }:
			walk(e.Unwrap())
		}
	}
	walk(err)
	slices.Sort(addrs)
	return addrs
}

func TestSetIsSeenByAllPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 3, nil, nil, nil)
		for n := range 30 {
			key := fmt.Sprint("key ", n%10)
			must(t, f.groups[n%3].Set(t.Context(), key, fmt.Sprint("value ", n)))
			wantEverywhere(t, f, key, fmt.Sprint("value ", n))
		}
		if err := f.groups[0].Remove(t.Context(), "key 1", "key 2", "key 1"); err != nil {
			t.Error(err)
		}
		for i, g := range f.groups {
			for _, key := range []string{"key 1", "key 2"} {
				if v, err := g.Get(t.Context(), key); !errors.Is(err, shoal.ErrNotFound) {
					t.Errorf("cache %d: Get(%q) = %q, %v after Remove", i, key, v, err)
				}
			}
			want(t, f, i, "key 3", "value 23")
		}
	})
}

// T1.
func TestRemoveDuringALoadIsNotUndone(t *testing.T) {
	for originator := range 2 {
		t.Run([]string{"at the owner", "at another"}[originator], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s source
				s.set("", "")
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
				must(t, f.groups[originator].Remove(t.Context(), key))
				wantEverywhere(t, f, key, "new") // while the old load is under way
				wg.Wait()
				wantEverywhere(t, f, key, "new")
			})
		})
	}
}

// T2.
func TestSetDuringALoadIsNotOverwritten(t *testing.T) {
	for originator := range 2 {
		t.Run([]string{"at the owner", "at another"}[originator], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s source
				f := newFleet(t, 2, nil, s.get, nil)
				key := ownedBy(f.Cluster, 0, 0)
				s.set(key, "old")
				s.slow(time.Second)
				var wg sync.WaitGroup
				wg.Go(func() { f.groups[1].Get(t.Context(), key) })
				time.Sleep(time.Second / 2)
				must(t, f.groups[originator].Set(t.Context(), key, "new"))
				wantEverywhere(t, f, key, "new")
				wg.Wait()
				wantEverywhere(t, f, key, "new")
				f.wantLoads(t, 1)
			})
		})
	}
}

// A process that cannot reach the owner loads for itself; a write that reaches it ends that, for who comes later.
func TestWriteEndsLoadsOfThoseWhoCannotReachTheOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, nil)
		key := ownedBy(f.Cluster, 0, 0)
		s.set(key, "old")
		s.slow(3 * time.Second)
		f.Delay(2, 0, time.Hour)
		f.Delay(0, 2, time.Hour)
		var wg sync.WaitGroup
		wg.Go(func() { want(t, f, 2, key, "old") })
		time.Sleep(time.Second)
		s.set(key, "new")
		must(t, f.groups[1].Set(t.Context(), key, "new"))
		want(t, f, 2, key, "new")
		wg.Wait()
	})
}

// … and if nobody can tell it, it believes its own load for the time of a lease at most.
func TestLoadsOfThoseWhoCannotReachTheOwnerAreNotJoinedForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 2, nil, s.get, nil)
		key := ownedBy(f.Cluster, 0, 0)
		s.set(key, "old")
		s.slow(20 * time.Second)
		f.Partition([]int{0}, []int{1})
		var wg sync.WaitGroup
		wg.Go(func() { want(t, f, 1, key, "old") })
		time.Sleep(time.Second)
		s.set(key, "new")
		f.groups[0].Set(t.Context(), key, "new") // fails for the other, which cannot be told
		time.Sleep(5 * time.Second)
		want(t, f, 1, key, "new")
		wg.Wait()
	})
}

// T3.
func TestConcurrentSetsAreEachDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 2, nil, nil, nil)
		key := ownedBy(f.Cluster, 0, 0)
		f.Delay(1, 0, 10*time.Millisecond)
		var wg sync.WaitGroup
		for n := range 50 {
			wg.Go(func() { must(t, f.groups[1].Set(t.Context(), key, fmt.Sprint("value ", n))) })
		}
		wg.Wait()
		if n := f.groups[0].Stats().Writes; n != 50 {
			t.Errorf("the owner has taken %d writes of 50", n)
		}
		last, err := f.groups[0].Get(t.Context(), key)
		must(t, err)
		must(t, f.groups[1].Set(t.Context(), key, "the last"))
		if wantEverywhere(t, f, key, "the last"); last == "the last" || !strings.HasPrefix(last, "value ") {
			t.Error(last)
		}
	})
}

// T4.
func TestRemoveOfManyKeysReachesCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, &shoal.GroupOptions[string]{HotLease: 5 * time.Second})
		var keys []string
		for i := range 3 {
			keys = append(keys, ownedBy(f.Cluster, i, 0), ownedBy(f.Cluster, i, 1))
		}
		for _, key := range keys {
			s.set(key, "old")
		}
		f.wantGets(t, keys[0], 1)
		f.calm(t)
		for _, key := range keys {
			for i := range f.groups {
				if f.Owner(key) != i {
					f.heat(t, i, key)
				}
			}
		}
		for _, key := range keys {
			s.set(key, "new")
		}
		must(t, f.groups[0].Remove(t.Context(), keys...))
		for _, key := range keys {
			wantEverywhere(t, f, key, "new")
		}
	})
}

// T5. The owner cannot be reached, and everybody else is told all the same.
func TestWriteWithoutItsOwnerReachesTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 4, nil, s.get, &shoal.GroupOptions[string]{HotLease: 5 * time.Second})
		key := ownedBy(f.Cluster, 0, 0)
		s.set(key, "old")
		for i := 1; i < 4; i++ {
			f.heat(t, i, key)
		}
		f.Down(0)
		s.set(key, "new")
		err := f.groups[1].Set(t.Context(), key, "new")
		if got := peersOf(err, "set"); !slices.Equal(got, []string{"http://cache-0"}) {
			t.Errorf("%v says that %v failed", err, got)
		}
		for i := 1; i < 4; i++ {
			want(t, f, i, key, "new")
		}
		f.Up(0)
		time.Sleep(20 * time.Second) // more than the longest back-off
		if s := f.groups[1].Stats(); s.HintsTold == 0 {
			t.Errorf("%+v", s)
		}
		wantEverywhere(t, f, key, "new")
	})
}

// T6.
func TestEveryPeerThatWasNotToldIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 5, nil, nil, nil)
		key := ownedBy(f.Cluster, 0, 0)
		numbers := shoal.NewGroup[int](f.Cache(0), "numbers", nil, nil)
		shoal.Add(t.Context(), numbers, key, 1) // or whether there is a counter would not be known then
		f.Down(2)
		f.Down(4)
		for op, write := range map[string]func() error{
			"set":    func() error { return f.groups[1].Set(t.Context(), key, "value") },
			"remove": func() error { return f.groups[1].Remove(t.Context(), key) },
			"purge":  func() error { return f.groups[1].Purge(t.Context()) },
			"add": func() error {
				_, err := shoal.Add(t.Context(), numbers, key, 1)
				return err
			},
		} {
			err := write()
			if got := peersOf(err, op); !slices.Equal(got, []string{"http://cache-2", "http://cache-4"}) {
				t.Errorf("%s: %v", op, err)
			}
		}
	})
}

// T7, T10.
func TestWhatIsNotKeptIsNotOldEither(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 2, nil, nil, &shoal.GroupOptions[string]{MaxBytes: 1 << 20})
		key := ownedBy(f.Cluster, 0, 0)
		gone := func(what string) {
			t.Helper()
			for i, g := range f.groups {
				if v, err := g.Get(t.Context(), key); !errors.Is(err, shoal.ErrNotFound) {
					t.Errorf("%s: cache %d has %.10q, %v", what, i, v, err)
				}
			}
		}
		for _, g := range f.groups {
			must(t, g.Set(t.Context(), key, "old"))
			must(t, g.Set(t.Context(), key, strings.Repeat("new", 100_000)))
			gone("too large")
			must(t, g.Set(t.Context(), key, "old"))
			must(t, g.SetWithTTL(t.Context(), key, "new", 0))
			gone("expired when it was set")
			must(t, g.Set(t.Context(), key, "old"))
			if err := g.Set(t.Context(), key, strings.Repeat("n", 65<<20)); err == nil {
				t.Error("a value longer than MaxValueBytes was taken")
			}
			gone("longer than MaxValueBytes")
		}
		f.groups[0].SetMaxBytes(0)
		must(t, f.groups[1].Set(t.Context(), key, "new"))
		gone("nothing is kept")
	})
}

// T8, and the second half of what can go wrong with purges: a peer that has purged asks one that has not.
func TestPurgedValuesDoNotComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, nil)
		key := ownedBy(f.Cluster, 0, 0)
		s.set(key, "old")
		wantEverywhere(t, f, key, "old")
		f.Delay(1, 0, 400*time.Millisecond) // the owner hears of it late
		s.set(key, "new")
		var wg sync.WaitGroup
		wg.Go(func() { must(t, f.groups[1].Purge(t.Context())) })
		time.Sleep(100 * time.Millisecond) // cache 2 has heard of it
		want(t, f, 2, key, "new")
		wg.Wait()
		wantEverywhere(t, f, key, "new")
	})
}

func TestPurgeForgetsWhatIsUnderWay(t *testing.T) {
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
		must(t, f.groups[1].Purge(t.Context()))
		wantEverywhere(t, f, key, "new")
		wg.Wait()
		wantEverywhere(t, f, key, "new")
	})
}

// T9.
func TestWriteWithAPeerDownAndNoLoggerIsAnError(t *testing.T) {
	c, err := shoal.New(&shoal.Options{Self: "http://127.0.0.1:1", Discovery: shoal.Static("http://127.0.0.1:1", "http://127.0.0.1:2")})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Shutdown(t.Context())
	must(t, c.Ready(t.Context()))
	g := shoal.NewGroup[string](c, "g", nil, nil)
	must(t, g.Set(t.Context(), "key", "value")) // who has never answered is no peer
	if v, err := g.Get(t.Context(), "key"); v != "value" || err != nil {
		t.Errorf("%q, %v", v, err)
	}
}

// T11.
func TestSetKeepsOneCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 5, nil, nil, nil)
		for n := range 100 {
			must(t, f.groups[n%5].Set(t.Context(), fmt.Sprint("key ", n), strings.Repeat("v", 1000)))
		}
		var entries, bytes int64
		for _, g := range f.groups {
			s := g.Stats()
			entries += s.Entries + s.HotEntries
			bytes += s.Bytes
		}
		if entries != 100 || bytes > 100*1400+5*16<<10 { // and empty tables
			t.Errorf("%d entries and %d bytes in all", entries, bytes)
		}
	})
}

// History 1: an answer is on its way when a write returns. A Get that starts after that must not be given it.
func TestGetDoesNotJoinAQuestionThatWasSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, nil)
		key := ownedBy(f.Cluster, 0, 0)
		s.set(key, "old")
		want(t, f, 0, key, "old")
		f.calm(t)
		want(t, f, 0, key, "old")
		f.Delay(0, 2, 200*time.Millisecond)
		var wg sync.WaitGroup
		wg.Go(func() { f.groups[2].Get(t.Context(), key) })
		time.Sleep(50 * time.Millisecond) // it was answered with the old value, which is on its way
		s.set(key, "new")
		must(t, f.groups[1].Remove(t.Context(), key))
		want(t, f, 2, key, "new")
		wg.Wait()
	})
}

// History 2: an answer with a lease is on its way when the holder is told to drop the key.
func TestCopyThatADropHasOvertakenIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, &shoal.GroupOptions[string]{HotLease: 5 * time.Second})
		key := ownedBy(f.Cluster, 0, 0)
		s.set(key, "old")
		f.calm(t)
		for range 12 { // nearly hot
			want(t, f, 2, key, "old")
		}
		if f.groups[2].Stats().HotEntries == 0 {
			t.Fatal("no copy")
		}
		time.Sleep(5100 * time.Millisecond) // the lease has run out, and is asked for again
		f.heat(t, 2, key)
		time.Sleep(5100 * time.Millisecond)
		f.Delay(0, 2, 300*time.Millisecond)
		var wg sync.WaitGroup
		wg.Go(func() { f.groups[2].Get(t.Context(), key) })
		time.Sleep(100 * time.Millisecond)
		s.set(key, "new")
		f.Delay(0, 2, 0)
		must(t, f.groups[1].Remove(t.Context(), key))
		wg.Wait() // the old value has arrived
		for range 3 {
			want(t, f, 2, key, "new")
		}
	})
}

// History 2, the other half: the owner counts the lease from its answer, the holder must not count from when it comes.
func TestLeaseRunsFromTheQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, &shoal.GroupOptions[string]{HotLease: 200 * time.Millisecond, HotRate: 0.5})
		key := ownedBy(f.Cluster, 0, 0)
		s.set(key, "old")
		want(t, f, 0, key, "old")
		f.calm(t)
		want(t, f, 0, key, "old")
		f.Delay(0, 2, 190*time.Millisecond)
		want(t, f, 2, key, "old") // 10 ms of the lease are left
		if f.groups[2].Stats().HotEntries != 1 {
			t.Fatal("no copy")
		}
		f.Delay(0, 2, 0)
		f.Partition([]int{0, 1}, []int{2})
		time.Sleep(15 * time.Millisecond)
		s.set(key, "new")
		start := time.Now()
		must(t, f.groups[1].Set(t.Context(), key, "new")) // its lease is over by all clocks
		f.Heal()
		if want(t, f, 2, key, "new"); time.Since(start) > 100*time.Millisecond {
			t.Errorf("the write took %v", time.Since(start))
		}
	})
}

// While a write is on its way to the owner, the writer itself may be lent what it is about to replace.
func TestWriterDropsWhatItWasLentMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 2, nil, s.get, &shoal.GroupOptions[string]{HotRate: 0.5, HotLease: 5 * time.Second})
		key := ownedBy(f.Cluster, 0, 0)
		s.set(key, "old")
		want(t, f, 0, key, "old")
		f.calm(t)
		want(t, f, 0, key, "old")
		f.Delay(1, 0, 100*time.Millisecond)
		long := strings.Repeat("new", 100_000) // so that it goes by a way of its own
		var wg sync.WaitGroup
		wg.Go(func() { must(t, f.groups[1].Set(t.Context(), key, long)) })
		time.Sleep(10 * time.Millisecond)
		f.Delay(1, 0, 0)
		want(t, f, 1, key, "old")
		if f.groups[1].Stats().HotEntries != 1 {
			t.Error("no copy")
		}
		wg.Wait()
		want(t, f, 1, key, long)
	})
}

// History 3: a load begins, the key is written, and the load ends: what it brought is not lent, though its lease had been
// noted, and the holder been told to drop what had not come yet.
func TestLoadThatAWriteOvertookIsNotLent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 2, nil, s.get, &shoal.GroupOptions[string]{HotRate: 0.5, HotLease: 5 * time.Second})
		key := ownedBy(f.Cluster, 0, 0)
		s.set(key, "old")
		f.calm(t)
		s.slow(time.Second)
		var wg sync.WaitGroup
		wg.Go(func() { want(t, f, 1, key, "old") }) // hot at once
		time.Sleep(time.Second / 2)
		s.set(key, "new")
		s.slow(0)
		must(t, f.groups[0].Set(t.Context(), key, "new"))
		wg.Wait()
		want(t, f, 1, key, "new")
	})
}

// History 4: a writer dies before it has told the holders. The next one must tell them.
func TestHoldersAreToldThoughAnEarlierWriterWasToTellThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, &shoal.GroupOptions[string]{HotLease: 5 * time.Second})
		key := ownedBy(f.Cluster, 0, 0)
		s.set(key, "old")
		f.calm(t)
		f.heat(t, 2, key)
		f.Delay(1, 2, time.Hour) // cache 1 can reach the owner, and not the holder
		go f.groups[1].Set(t.Context(), key, "between")
		time.Sleep(100 * time.Millisecond)
		f.Down(1)
		must(t, f.groups[0].Set(t.Context(), key, "new"))
		want(t, f, 2, key, "new")
		want(t, f, 0, key, "new")
		f.Heal()
		f.Up(1)
		time.Sleep(10 * time.Second)
	})
}

// A holder that cannot be told is waited for until its lease has run out, and is then no error.
func TestWriteWaitsForTheLeaseOfAHolderThatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, &shoal.GroupOptions[string]{HotLease: 4 * time.Second})
		key := ownedBy(f.Cluster, 0, 0)
		s.set(key, "old")
		f.calm(t)
		f.heat(t, 2, key)
		f.Partition([]int{0, 1}, []int{2})
		want(t, f, 2, key, "old")
		s.set(key, "new")
		start := time.Now()
		must(t, f.groups[1].Set(t.Context(), key, "new"))
		if d := time.Since(start); d < 3*time.Second || d > 5*time.Second {
			t.Errorf("the write took %v", d)
		}
		if e, err := f.groups[2].GetEntry(t.Context(), key, nil); e.Source == "memory" || e.Value != "new" {
			t.Errorf("%+v, %v", e, err)
		}
	})
}

// History 17: two purges at once must not take the same number, or a peer counts the second as done.
func TestPurgesAtOnceAreEachDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, nil)
		key := ownedBy(f.Cluster, 0, 0)
		s.set(key, "first")
		want(t, f, 0, key, "first")
		f.Delay(2, 0, 300*time.Millisecond)
		f.Delay(1, 2, 100*time.Millisecond)
		f.Delay(2, 1, 100*time.Millisecond)
		var wg sync.WaitGroup
		wg.Go(func() { must(t, f.groups[1].Purge(t.Context())) })
		wg.Go(func() {
			time.Sleep(50 * time.Millisecond)
			want(t, f, 0, key, "first") // loaded after the first purge
			s.set(key, "second")
			must(t, f.groups[2].Purge(t.Context())) // has not heard of the first
			wantEverywhere(t, f, key, "second")
		})
		wg.Wait()
		wantEverywhere(t, f, key, "second")
	})
}

// History 18: a late hint must not drop what was set after it, which no getter brings back.
func TestLateHintSparesANewerSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 3, nil, nil, nil)
		key := ownedBy(f.Cluster, 0, 0)
		f.Partition([]int{0, 2}, []int{1})
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := f.groups[1].Set(t.Context(), key, "lost"); err == nil {
				t.Error("nil, though the owner was not reached")
			}
		})
		time.Sleep(200 * time.Millisecond) // and before that one has failed
		f.groups[2].Set(t.Context(), key, "newer")
		wg.Wait()
		f.Heal()
		time.Sleep(time.Minute)
		if s := f.groups[1].Stats(); s.HintsTold == 0 {
			t.Errorf("%+v", s)
		}
		wantEverywhere(t, f, key, "newer")
	})
}

// History 19: two halves purge once each, and come to the same number.
func TestHalvesThatPurgeOnceEachDropAllWhenTheyHeal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 2, nil, s.get, nil)
		keys := []string{ownedBy(f.Cluster, 0, 0), ownedBy(f.Cluster, 1, 0)}
		for _, key := range keys {
			s.set(key, "old")
			wantEverywhere(t, f, key, "old")
		}
		f.Partition([]int{0}, []int{1})
		if f.groups[0].Purge(t.Context()) == nil {
			t.Error("nil, though the other was not reached")
		}
		want(t, f, 0, keys[0], "old") // each half loads its own again
		want(t, f, 1, keys[1], "old")
		for _, key := range keys {
			s.set(key, "new")
		}
		if f.groups[1].Purge(t.Context()) == nil {
			t.Error("nil, though the other was not reached")
		}
		f.Heal()
		time.Sleep(time.Minute)
		for _, key := range keys {
			wantEverywhere(t, f, key, "new")
		}
	})
}

// The same before any hint has been delivered: the first message between them does it.
func TestEqualGenerationsOfTwoPurgesEmptyBothSides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 2, nil, s.get, nil)
		keys := []string{ownedBy(f.Cluster, 0, 0), ownedBy(f.Cluster, 1, 0)}
		f.Partition([]int{0}, []int{1})
		for i, g := range f.groups {
			g.Purge(t.Context())
			s.set(keys[i], "old")
			want(t, f, i, keys[i], "old")
			s.set(keys[i], "new")
		}
		f.Heal()
		time.Sleep(2 * time.Second) // until they have greeted each other
		want(t, f, 1, keys[0], "new")
		want(t, f, 0, keys[1], "new")
		emptied := f.groups[0].Stats().Emptied
		time.Sleep(time.Minute)
		if n := f.groups[0].Stats().Emptied; n > emptied+1 {
			t.Errorf("emptied %d times more", n-emptied)
		}
	})
}

func TestHintsThatOverflowDropTheGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 2, nil, s.get, nil)
		keys := allOwnedBy(f.Cluster, 0, 1500)
		for _, key := range keys {
			s.set(key, "old")
			want(t, f, 0, key, "old")
		}
		f.Down(0)
		for _, key := range keys {
			s.set(key, "new")
		}
		if f.groups[1].Remove(t.Context(), keys...) == nil {
			t.Error("nil, though the owner was not reached")
		}
		f.Up(0)
		time.Sleep(time.Minute)
		for _, key := range keys {
			want(t, f, 0, key, "new")
		}
		if s := f.groups[1].Stats(); s.HintsLost == 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestHintIsToldAsSoonAsThePeerIsHeardOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 2, nil, s.get, nil)
		key := ownedBy(f.Cluster, 0, 0)
		s.set(key, "old")
		want(t, f, 0, key, "old")
		f.Down(0)
		s.set(key, "new")
		if f.groups[1].Remove(t.Context(), key) == nil {
			t.Error("nil, though the owner was not reached")
		}
		time.Sleep(5 * time.Minute) // tries are far apart now
		f.Up(0)
		time.Sleep(time.Second + 100*time.Millisecond) // by then it has been greeted
		synctest.Wait()
		time.Sleep(101 * time.Millisecond) // the least between two tries, of which one may just have been made
		want(t, f, 0, key, "new")
	})
}

// A refusal is word from a peer too, but no reason to ask again at once.
func TestHintsAreNotPressedOnWhoeverRefusesThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		im := newImpostor(t)
		var asked atomic.Int64
		b := &shoalpb.Sender{Id: []byte("b"), Incarnation: 7}
		refused := says(503, mediaType, delimited(t, &shoalpb.Reply{Sender: b, Answer: &shoalpb.Reply_Refused{
			Refused: &shoalpb.Refused{Reason: shoalpb.Refused_OVERLOADED},
		}}))
		im.answers(func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			refused(w, r)
		})
		if got := peersOf(im.group.Set(t.Context(), im.key, "value"), "set"); !slices.Equal(got, []string{"http://b"}) {
			t.Errorf("not told: %v", got)
		}
		time.Sleep(time.Minute)
		if n := asked.Load(); n > 60 {
			t.Errorf("it was asked %d times in a minute", n)
		}
		im.answers(says(200, mediaType, delimited(t, &shoalpb.Reply{Sender: b, Answer: &shoalpb.Reply_Dropped{Dropped: &shoalpb.Dropped{Keys: []*shoalpb.Holders{{}}}}})))
		time.Sleep(time.Minute)
	})
}

// Once nothing is new, writes do not depend on who holds nothing, even if nobody has spoken for long.
func TestDeadBystanderIsNoError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 3, nil, nil, nil)
		time.Sleep(10 * time.Minute)
		f.Down(2)
		for i := range 2 {
			must(t, f.groups[0].Set(t.Context(), ownedBy(f.Cluster, i, 0), "value"))
			must(t, f.groups[0].Remove(t.Context(), ownedBy(f.Cluster, i, 0)))
		}
	})
}

// Who saw other owners when it died is told of writes once more, in vain, and then not waited for any more.
func TestDeadPeerThatSawOtherOwnersIsNoErrorForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3, nil, upper, nil)
		f.calm(t)
		key := ownedBy(f.Cluster, 0, 0)
		f.See(2, 0, 2)
		f.groups[2].Get(t.Context(), key)
		f.Down(2)
		if got := peersOf(f.groups[0].Set(t.Context(), key, "value"), "set"); !slices.Equal(got, []string{"http://cache-2"}) {
			t.Errorf("not told: %v", got)
		}
		time.Sleep(6 * time.Second)
		must(t, f.groups[0].Set(t.Context(), key, "value"))
	})
}

func TestAddTellsTheSumThoughSomebodyWasNotTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[int](t, 3, nil, nil, nil)
		for i := range 2 {
			_, err := shoal.Add(t.Context(), f.groups[0], ownedBy(f.Cluster, i, 0), 0)
			must(t, err)
		}
		f.Down(2)
		for i := range 2 {
			for n := range 3 {
				sum, err := shoal.Add(t.Context(), f.groups[0], ownedBy(f.Cluster, i, 0), 1)
				if sum != n+1 || !slices.Equal(peersOf(err, "add"), []string{"http://cache-2"}) || !strings.Contains(err.Error(), "to tell it of key") {
					t.Errorf("%d, %v", sum, err)
				}
			}
		}
	})
}

func TestErrorOfManyKeysSaysHowMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 2, nil, nil, nil)
		f.Down(0)
		err := f.groups[1].Remove(t.Context(), allOwnedBy(f.Cluster, 0, 3)...)
		if err == nil || !strings.Contains(err.Error(), "and 2 more of group") {
			t.Error(err)
		}
	})
}

func TestEndedContextEndsTheWaitAndNotTheWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 3, nil, nil, nil)
		key := ownedBy(f.Cluster, 0, 0)
		must(t, f.groups[1].Set(t.Context(), key, "old"))
		f.Delay(1, 0, 100*time.Millisecond)
		f.Delay(1, 2, 100*time.Millisecond)
		for n, write := range []func(context.Context) error{
			func(ctx context.Context) error { return f.groups[1].Set(ctx, key, "new") },
			func(ctx context.Context) error { return f.groups[1].Remove(ctx, key) },
			func(ctx context.Context) error { return f.groups[1].Purge(ctx) },
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			start := time.Now()
			if err := write(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 10*time.Millisecond {
				t.Errorf("write %d: %v after %v", n, err, time.Since(start))
			}
			cancel()
			time.Sleep(time.Second)
			v, err := f.groups[0].Get(t.Context(), key)
			if n == 0 && v != "new" || n > 0 && !errors.Is(err, shoal.ErrNotFound) {
				t.Errorf("after write %d: %q, %v", n, v, err)
			}
			must(t, f.groups[0].Set(t.Context(), key, "newer"))
		}
		done, cancel := context.WithCancel(t.Context())
		cancel()
		if err := f.groups[1].Set(done, key, "latest"); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		time.Sleep(time.Second)
		wantEverywhere(t, f, key, "latest")
	})
}

// Whatever becomes of a write, the process that writes does not go on with its own copy.
func TestWriterDropsItsOwnCopyFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, upper, nil)
		done, cancel := context.WithCancel(t.Context())
		cancel()
		for name, write := range map[string]func(key string) error{
			"set":    func(key string) error { return f.groups[1].Set(done, key, "new") },
			"remove": func(key string) error { return f.groups[1].Remove(done, key) },
			"purge":  func(string) error { return f.groups[1].Purge(done) },
		} {
			key := ownedBy(f.Cluster, 0, 0)
			f.heat(t, 1, key)
			f.Delay(1, 0, 100*time.Millisecond)
			if err := write(key); !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v", name, err)
			}
			if n := f.groups[1].Stats().HotEntries; n != 0 {
				t.Errorf("%s: %d copies are left", name, n)
			}
			f.Delay(1, 0, 0)
			time.Sleep(time.Second)
		}
	})
}

func TestShutdownWaitsForWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 2, nil, nil, nil)
		key := ownedBy(f.Cluster, 0, 0)
		f.Delay(1, 0, 100*time.Millisecond)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		f.groups[1].Set(ctx, key, "value")
		must(t, f.Cache(1).Shutdown(t.Context()))
		if s := f.groups[0].Stats(); s.Writes != 1 {
			t.Errorf("%+v", s)
		}
		must(t, f.groups[1].Set(t.Context(), key, "as a client"))
		want(t, f, 0, key, "as a client")
	})
}

// exchanges returns how many messages the caches have sent each other.
func (f *fleet[V]) exchanges() (n int64) {
	for i := range f.groups {
		for _, p := range f.Cache(i).Stats().Peers {
			n += p.Exchanges
		}
	}
	return n
}

// wantExchanges checks how many messages do sends.
func (f *fleet[V]) wantExchanges(t *testing.T, what string, want int64, do func()) {
	t.Helper()
	before := f.exchanges()
	do()
	if n := f.exchanges() - before; n != want {
		t.Errorf("%s: %d exchanges, want %d", what, n, want)
	}
}

// Who owned a key before, or thought so, may hold it, or have lent it.
func TestEverybodyIsToldOfAKeyThatIsNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 4, nil, upper, nil)
		key, other := ownedBy(f.Cluster, 0, 0), ownedBy(f.Cluster, 0, 1)
		set := func() { must(t, f.groups[0].Set(t.Context(), key, "value")) }
		for i := range f.groups { // each hears that the others agree
			for j := range f.groups {
				f.groups[i].Get(t.Context(), ownedBy(f.Cluster, j, 0))
			}
		}
		f.wantExchanges(t, "just started", 3, set)
		time.Sleep(50 * time.Second)
		f.wantExchanges(t, "50 s old", 3, set)
		time.Sleep(12 * time.Second)
		f.wantExchanges(t, "a minute old", 0, set)

		for i := range f.groups {
			f.See(i, 0, 1, 2)
			f.See(i, 0, 1, 2, 3) // 0 had some of 3's keys for a while, and lost none
		}
		for i := range f.groups {
			for j := range f.groups {
				f.groups[i].Get(t.Context(), ownedBy(f.Cluster, j, 0))
			}
		}
		time.Sleep(6 * time.Second)
		f.wantExchanges(t, "nothing but that another has come", 0, set)
		f.wantExchanges(t, "the same", 0, func() { must(t, f.groups[0].Remove(t.Context(), other)) })
		theirs := ownedBy(f.Cluster, 3, 0)
		f.wantExchanges(t, "back at its owner", 3, func() { must(t, f.groups[3].Set(t.Context(), theirs, "value")) })
	})
}

func TestEverybodyIsToldWhileSomebodyDiffers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3, nil, upper, nil)
		f.calm(t)
		key := ownedBy(f.Cluster, 0, 0)
		set := func() { must(t, f.groups[0].Set(t.Context(), key, "value")) }
		f.wantExchanges(t, "calm", 0, set)
		f.See(2, 0, 2)
		f.groups[2].Get(t.Context(), key) // lets 0 know
		f.wantExchanges(t, "one does not see another", 2, set)
		f.See(2, 0, 1, 2)
		f.groups[2].Get(t.Context(), ownedBy(f.Cluster, 0, 1))
		f.wantExchanges(t, "it does again, but did not just now", 2, set)
		time.Sleep(6 * time.Second)
		f.wantExchanges(t, "calm again", 0, set)
	})
}

// Of history 9: who is told names those it has lent the key, whom neither the writer nor the owner may know.
func TestWhoIsToldNamesItsHolders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, &shoal.GroupOptions[string]{HotLease: 5 * time.Second})
		f.See(0, 0, 2)
		f.See(1, 0, 1)
		f.See(2, 0, 2)
		owner := func(a, b int, key string) int {
			members := []consistenthash.Member{{ID: fmt.Sprint("http://cache-", a)}, {ID: fmt.Sprint("http://cache-", b)}}
			return []int{a, b}[consistenthash.New(members).Owner(key)]
		}
		key := ""
		for n := 0; key == "" || owner(0, 2, key) != 0 || owner(0, 1, key) != 1; n++ {
			key = fmt.Sprint("key ", n)
		}
		s.set(key, "old")
		f.heat(t, 2, key) // lent by 0
		s.set(key, "new")
		must(t, f.groups[1].Set(t.Context(), key, "new")) // owns it, and does not know of 2
		wantEverywhere(t, f, key, "new")
	})
}

// … and forgets what it remembers in place of a value.
func TestWhoIsToldForgetsWhatWasAbsent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 2, nil, s.get, &shoal.GroupOptions[string]{NotFoundTTL: time.Hour})
		key := ownedBy(f.Cluster, 1, 0)
		f.See(0, 0) // and owns all
		f.groups[0].Get(t.Context(), key)
		s.set(key, "new")
		must(t, f.groups[1].Set(t.Context(), key, "new"))
		wantEverywhere(t, f, key, "new")
	})
}

// History 5: an owner lends a key, restarts, and is written to at once.
func TestRestartedOwnerTellsThoseWhomItLentItsKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h hosts
		var s source
		start := func(name string) (*shoal.Cache, *shoal.Group[string]) {
			c := newPeer(t, &h, shoal.Options{Self: "http://" + name, Discovery: shoal.Static("http://owner", "http://holder")}, name)
			return c, shoal.NewGroup(c, "g", s.get, &shoal.GroupOptions[string]{HotLease: 5 * time.Second})
		}
		owner, _ := start("owner")
		holder, copies := start("holder")
		time.Sleep(time.Second)
		wantIDs(t, owner, "http://holder http://owner")
		wantIDs(t, holder, "http://holder http://owner")
		var key string
		for n := 0; copies.Stats().HotHits == 0; n++ { // a key of the owner's
			key = fmt.Sprint("key ", n)
			s.set(key, "old")
			for range 20 {
				copies.Get(t.Context(), key)
			}
		}
		restarted, group := start("owner")
		ready(t, restarted)
		s.set(key, "new")
		must(t, group.Set(t.Context(), key, "new"))
		if v, err := copies.Get(t.Context(), key); v != "new" || err != nil {
			t.Errorf("%q, %v", v, err)
		}
		owner.Shutdown(t.Context())
	})
}

// History 17, where one has heard of more purges than the one that purges next.
func TestPurgeGoesAboveThoseItHasNotHeardOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, nil)
		key := ownedBy(f.Cluster, 0, 0)
		f.Partition([]int{0, 1}, []int{2})
		for range 3 {
			if got := peersOf(f.groups[1].Purge(t.Context()), "purge"); !slices.Equal(got, []string{"http://cache-2"}) {
				t.Errorf("not told: %v", got)
			}
		}
		s.set(key, "old")
		want(t, f, 0, key, "old")
		f.Heal()
		time.Sleep(2 * time.Second) // until they have been greeted again
		s.set(key, "new")
		must(t, f.groups[2].Purge(t.Context()))
		wantEverywhere(t, f, key, "new")
	})
}

// When nothing moves, a write is one exchange, and one for each holder.
func TestMessagesOfAWriteWhenAllIsCalm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 5, nil, upper, nil)
		key := ownedBy(f.Cluster, 0, 0)
		f.calm(t)
		for _, test := range []struct {
			by, holders int
			want        int64
		}{{1, 0, 1}, {0, 0, 0}, {1, 2, 3}, {0, 2, 2}} {
			for h := range test.holders {
				f.heat(t, 2+h, key)
			}
			f.wantExchanges(t, fmt.Sprintf("%d holders, by cache %d", test.holders, test.by), test.want, func() {
				must(t, f.groups[test.by].Set(t.Context(), key, "value"))
			})
			time.Sleep(10 * time.Second)
		}
	})
}

// History 1, where the answer is that there is no value: that is as old as a value.
func TestNotFoundOnItsWayIsNotForLaterCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 3, nil, nil, nil)
		key := ownedBy(f.Cluster, 0, 0)
		f.calm(t)
		f.Delay(0, 2, 200*time.Millisecond)
		var wg sync.WaitGroup
		wg.Go(func() { f.groups[2].Get(t.Context(), key) })
		time.Sleep(50 * time.Millisecond)
		must(t, f.groups[1].Set(t.Context(), key, "new"))
		want(t, f, 2, key, "new")
		wg.Wait()
	})
}

func TestRememberedNotFoundOnItsWayIsNotForLaterCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, &shoal.GroupOptions[string]{NotFoundTTL: time.Hour, HotBytes: -1})
		key := ownedBy(f.Cluster, 0, 0)
		f.calm(t)
		f.groups[0].Get(t.Context(), key) // remembered: not found
		f.Delay(0, 2, 200*time.Millisecond)
		var wg sync.WaitGroup
		start := time.Now()
		wg.Go(func() { f.groups[2].Get(t.Context(), key) })
		time.Sleep(50 * time.Millisecond)
		s.set(key, "new")
		must(t, f.groups[1].Set(t.Context(), key, "new"))
		v, err := f.groups[2].Get(t.Context(), key) // starts after nil
		if v != "new" {
			t.Error(v, err, time.Since(start))
		}
		wg.Wait()
	})
}

// Of history 6: what began when nobody told this process of writes.
func TestLoadOfANonOwnerIsNotKeptWhenItBecomesTheOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, nil)
		key := ownedBy(f.Cluster, 0, 0)
		f.calm(t)
		s.set(key, "old")
		s.slow(10 * time.Second)
		f.Partition([]int{0}, []int{1, 2})
		var wg sync.WaitGroup
		for _, i := range []int{1, 2} {
			wg.Go(func() { f.groups[i].Get(t.Context(), key) })
		}
		time.Sleep(time.Second)
		f.Heal()
		s.set(key, "new")
		s.slow(0)
		must(t, f.groups[0].Set(t.Context(), key, "new"))
		want(t, f, 1, key, "new")
		want(t, f, 2, key, "new")
		f.See(1, 1, 2)
		f.See(2, 1, 2)
		f.See(0, 1, 2)
		wg.Wait()
		want(t, f, 1, key, "new")
		want(t, f, 2, key, "new")
	})
}

func TestRemoveNamesADeadPeerOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 3, nil, nil, nil)
		f.Down(0)
		keys := allOwnedBy(f.Cluster, 0, 100)
		err := f.groups[1].Remove(t.Context(), keys...)
		if n := len(peersOf(err, "remove")); n != 1 {
			t.Errorf("%d PeerErrors", n)
		}
	})
}

func TestPurgeIsHeardOfInAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 3, nil, nil, nil)
		f.calm(t) // nobody waits for a greeting, which would now come too late
		mine := ownedBy(f.Cluster, 2, 0)
		must(t, f.groups[2].Set(t.Context(), mine, "old"))
		f.Delay(0, 2, time.Hour)
		f.Delay(1, 2, time.Hour)
		f.groups[0].Purge(t.Context())
		f.Heal()
		f.groups[2].Get(t.Context(), ownedBy(f.Cluster, 1, 0))
		if v, err := f.groups[2].Get(t.Context(), mine); err == nil {
			t.Error(v)
		}
	})
}

// Who purges is told of those whom others know.
func TestPurgeReachesWhomOnlyOthersKnow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, nil)
		f.Kill(1)
		f.See(1, 0, 1)
		f.See(2, 0) // a client
		f.See(0, 0)
		time.Sleep(5 * time.Minute)
		restart(t, f, 1, s.get, nil)
		key := keyWhere(func(key string) bool { return ownerAmong(key, 0, 1) == 1 })
		s.set(key, "old")
		want(t, f, 1, key, "old")
		s.set(key, "new")
		must(t, f.groups[2].Purge(t.Context()))
		want(t, f, 1, key, "new")
	})
}

// An owner that the writer knows by a refusal only, and so not by its incarnation, may be named as a holder.
func TestOwnerThatIsNamedAsAHolderKeepsWhatItHasTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 4, nil, nil, &shoal.GroupOptions[string]{HotLease: 5 * time.Second})
		key := keyWhere(func(key string) bool {
			return ownerAmong(key, 0, 1, 2) == 0 && ownerAmong(key, 1, 2) == 1 && ownerAmong(key, 2, 3) == 2
		})
		for i := range 3 {
			f.See(i, 0, 1, 2)
		}
		f.See(3, 2, 3)
		time.Sleep(5 * time.Minute)
		must(t, f.groups[0].Set(t.Context(), key, "old"))
		time.Sleep(10 * time.Second)
		f.heat(t, 1, key)
		f.See(1, 1, 2)
		f.See(2, 1, 2)
		must(t, f.groups[3].Set(t.Context(), key, "new"))
		for i := 1; i < 3; i++ {
			want(t, f, i, key, "new")
		}
	})
}
