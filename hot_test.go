package shoal_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
)

// A hot key is asked of its owner now and then, whoever wants it, and a write reaches all its copies.
func TestHotKeyIsServedByEveryPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 5, nil, s.get, nil)
		key := ownedBy(f.Cluster, 0, 0)
		s.set(key, "old")
		f.calm(t)
		var wg sync.WaitGroup
		before := f.groups[0].Stats().Requests
		for i := 1; i < 5; i++ {
			wg.Go(func() {
				for range 10_000 {
					want(t, f, i, key, "old")
					time.Sleep(time.Millisecond)
				}
			})
		}
		wg.Wait()
		asked := f.groups[0].Stats().Requests - before
		t.Logf("the owner was asked %d times for 40,000 gets", asked)
		if asked > 400 {
			t.Errorf("the owner was asked %d times", asked)
		}
		s.set(key, "new")
		must(t, f.groups[1].Set(t.Context(), key, "new"))
		wantEverywhere(t, f, key, "new")
	})
}

// Only what is hot is copied: not what is asked for once, however much of it there is.
func TestOnlyHotKeysAreCopied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		others := 100_000
		if testing.Short() || shoal.RaceEnabled {
			others = 20_000
		}
		f := newFleet(t, 2, nil, upper, nil)
		key := ownedBy(f.Cluster, 0, 0)
		for n := range others {
			if n%100 == 0 {
				f.groups[1].Get(t.Context(), key)
				time.Sleep(10 * time.Millisecond) // 100 gets of key a second, and 10,000 of others
			}
			other := fmt.Sprint("other ", n)
			if f.Owner(other) != 0 {
				continue
			}
			if _, err := f.groups[1].Get(t.Context(), other); err != nil {
				t.Fatal(err)
			}
		}
		s := f.groups[1].Stats()
		if gets := int64(others / 100); s.HotHits < gets*9/10 {
			t.Errorf("%d of %d gets of the hot key from its copy", s.HotHits, gets)
		}
		if granted := f.groups[0].Stats().Leases; s.HotEntries > 1 || granted > int64(others)/10_000+10 {
			t.Errorf("%d copies, %d leases", s.HotEntries, granted)
		}
	})
}

func TestHotCopiesAreOffOrWithinTheirShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, test := range []struct{ hotBytes, most int64 }{{-1, 0}, {0, 32 << 20 / 8}, {2 << 20, 2 << 20}} {
			f := newFleet(t, 2, nil, func(context.Context, string) ([]byte, error) { return make([]byte, 32<<10), nil },
				&shoal.GroupOptions[[]byte]{MaxBytes: 32 << 20, HotBytes: test.hotBytes, HotRate: 0.5})
			for _, key := range allOwnedBy(f.Cluster, 0, 200) {
				f.groups[1].Get(t.Context(), key)
			}
			s := f.groups[1].Stats()
			if s.HotEntries > test.most/33_000 || s.HotEntries < test.most/34_000 || s.Bytes > test.most+8<<10 { // and empty tables
				t.Errorf("%d bytes for copies: there are %d, of %d bytes", test.hotBytes, s.HotEntries, s.Bytes)
			}
			if s := f.groups[0].Stats(); test.hotBytes < 0 && s.Leases > 0 {
				t.Errorf("%d leases were given, and none was wanted", s.Leases)
			}
		}
	})
}

// Copies take memory from what a process owns, and no more than there is.
func TestCopiesAndOwnKeysShareOneBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, func(context.Context, string) ([]byte, error) { return make([]byte, 32<<10), nil },
			&shoal.GroupOptions[[]byte]{MaxBytes: 32 << 20, HotRate: 0.5})
		get := func(owner int) {
			for _, key := range allOwnedBy(f.Cluster, owner, 1000) {
				f.groups[1].Get(t.Context(), key)
			}
		}
		get(1)
		full := f.groups[1].Stats()
		get(0)
		if s := f.groups[1].Stats(); s.Bytes > 32<<20 || s.HotEntries < 100 || s.Entries >= full.Entries {
			t.Errorf("before %+v, after %+v", full, s)
		}
	})
}

// Whoever lent them may not hear of writes any more.
func TestCopiesGoWhenTheViewChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3, nil, upper, nil)
		f.heat(t, 1, ownedBy(f.Cluster, 0, 0))
		f.See(1, 0, 1)
		if n := f.groups[1].Stats().HotEntries; n != 0 {
			t.Errorf("%d copies are left", n)
		}
	})
}

func TestLeaseEndsWithTheTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, upper, &shoal.GroupOptions[string]{TTL: time.Second, HotRate: 0.5, HotLease: 5 * time.Second})
		key := ownedBy(f.Cluster, 0, 0)
		f.groups[1].Get(t.Context(), key)
		f.groups[1].Get(t.Context(), key)
		time.Sleep(time.Second)
		f.groups[1].Get(t.Context(), key)
		f.wantLoads(t, 2)
	})
}

func TestNotFoundIsLentToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, nil, s.get, &shoal.GroupOptions[string]{NotFoundTTL: time.Hour, HotRate: 0.5})
		key := ownedBy(f.Cluster, 0, 0)
		f.groups[2].Get(t.Context(), key)
		before := f.groups[0].Stats().Requests
		for range 100 {
			f.groups[2].Get(t.Context(), key)
		}
		if n := f.groups[0].Stats().Requests - before; n > 1 {
			t.Errorf("the owner was asked %d times for what is not there", n)
		}
		must(t, f.groups[1].Set(t.Context(), key, "there"))
		wantEverywhere(t, f, key, "there")
	})
}

// A copy whose lease has ended is not sent again if it is still right.
func TestCopyIsRenewedWithoutItsValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		value := make([]byte, 100_000)
		f := newFleet(t, 2, nil, func(context.Context, string) ([]byte, error) { return value, nil },
			&shoal.GroupOptions[[]byte]{HotRate: 0.5, HotLease: time.Second})
		key := ownedBy(f.Cluster, 0, 0)
		for range 10 {
			for range 10 {
				v, err := f.groups[1].Get(t.Context(), key)
				if len(v) != len(value) || err != nil {
					t.Fatal(len(v), err)
				}
			}
			time.Sleep(1100 * time.Millisecond)
		}
		if n := f.groups[1].Stats().Fetches; n < 10 || n > 12 {
			t.Errorf("%d fetches", n)
		}
		if n := f.groups[1].Stats().Renewed; n < 8 {
			t.Errorf("%d of the copies were renewed without their value", n)
		}
	})
}

func TestKeyThatIsHotThroughCopiesIsLoadedAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 2, nil, s.get, &shoal.GroupOptions[string]{TTL: 20 * time.Second, Stale: time.Minute, HotLease: 5 * time.Second})
		key := ownedBy(f.Cluster, 0, 0)
		s.set(key, "v")
		for range 30 * 199 / 10 {
			want(t, f, 1, key, "v")
			time.Sleep(time.Second / 30)
		}
		f.wantLoads(t, 2) // 30 gets a second, HotRate is 10
	})
}
