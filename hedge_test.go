package shoal_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
)

// sometimesSlow is a transport whose answers from one host take 1 ms, and some of them 200.
type sometimesSlow struct {
	*hosts
	host string
	n    atomic.Int64
	on   atomic.Bool
}

func (s *sometimesSlow) RoundTrip(r *http.Request) (*http.Response, error) {
	if s.on.Load() && r.URL.Host == s.host && r.Header.Get("Upgrade") == "" && r.Header.Get("Content-Type") != streamType {
		d := time.Millisecond
		if s.n.Add(1)%10 == 0 {
			d = 200 * time.Millisecond
		}
		select {
		case <-time.After(d):
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	return s.hosts.RoundTrip(r)
}

// timed returns how long Gets take that go to an owner one in ten of whose answers is slow, in order, and the asker's numbers.
// Keys of which the asker is the next owner itself are left out.
func timed(t *testing.T, hedge float64, opts *shoal.GroupOptions[string]) (took []time.Duration, stats shoal.GroupStats) {
	h := &sometimesSlow{hosts: new(hosts), host: "cache-0"}
	var all []string
	for i := range 3 {
		all = append(all, fmt.Sprint("http://cache-", i))
	}
	var caches []*shoal.Cache
	var groups []*shoal.Group[string]
	for i, self := range all {
		made := make(chan struct{})
		var c *shoal.Cache
		h.set(fmt.Sprint("cache-", i), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-made
			c.ServeHTTP(w, r)
		}))
		o := shoal.Options{Self: self, Hedge: hedge, Discovery: shoal.Static(all...), Transport: h.hosts, Logger: quiet}
		if i == 1 {
			o.Transport = h
		}
		var err error
		if c, err = shoal.New(&o); err != nil {
			t.Fatal(err)
		}
		close(made)
		t.Cleanup(func() { c.Shutdown(t.Context()) })
		caches = append(caches, c)
		groups = append(groups, shoal.NewGroup(c, "g", upper, opts))
	}
	seeAll(t, caches)
	for k := range 300 {
		if _, err := groups[2].Get(t.Context(), fmt.Sprint("key ", k)); err != nil {
			t.Error(err)
		}
	}
	time.Sleep(time.Second)
	var keys []string
	for k := range 300 {
		if key := fmt.Sprint("key ", k); ownerAmong(key, 0, 1, 2) == 0 && nextAmong(key, 0, 1, 2) == 2 {
			keys = append(keys, key)
		}
	}
	h.on.Store(true)
	for k := range 500 {
		key := keys[k%len(keys)]
		began := time.Now()
		if v, err := groups[1].Get(t.Context(), key); v != strings.ToUpper(key) || err != nil {
			t.Errorf("%q, %v", v, err)
		}
		took = append(took, time.Since(began))
	}
	h.on.Store(false)
	slices.Sort(took)
	var loads int64
	for _, g := range groups {
		loads += g.Stats().Loads
	}
	if loads != 300 {
		t.Errorf("%d loads of 300 keys", loads)
	}
	return took, groups[1].Stats()
}

// With Hedge, an owner that is slow now and then is so for nobody.
func TestHedgeCutsTheTail(t *testing.T) {
	for name, opts := range map[string]*shoal.GroupOptions[string]{
		"replica": {Owners: 2, HotBytes: -1},
		// Who has nothing peeks at the owner, which is not slow to it.
		"next owner": {HotBytes: -1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				took, stats := timed(t, 85, opts)
				if p99 := took[len(took)*99/100]; p99 > 10*time.Millisecond {
					t.Errorf("p99 of %d is %v", len(took), p99)
				}
				if n := int(stats.Hedged); n < len(took)/20 || n > len(took)/3 {
					t.Errorf("%d of %d were asked twice", n, len(took))
				}
			})
		})
	}
}

// … without it, it is for one in ten.
func TestWithoutHedgeTheTailIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		took, stats := timed(t, 0, &shoal.GroupOptions[string]{HotBytes: -1})
		if p99 := took[len(took)*99/100]; p99 < 200*time.Millisecond || stats.Hedged != 0 {
			t.Errorf("p99 is %v, and %d were asked twice", p99, stats.Hedged)
		}
	})
}

// A hedge loads nothing, and a value that is written meanwhile is not old when the write has returned.
func TestHedgeGivesNothingOlder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 3, &shoal.Options{Hedge: 50}, s.get, &shoal.GroupOptions[string]{Owners: 2})
		key := keyWhere(func(key string) bool { return f.Owner(key) == 0 && nextAmong(key, 0, 1, 2) == 1 })
		f.Delay(0, 2, 10*time.Millisecond)
		for n := range 100 {
			value := fmt.Sprint("value ", n)
			s.set(key, value)
			if n%2 == 0 {
				must(t, f.groups[n%3].Set(t.Context(), key, value))
			} else {
				must(t, f.groups[n%3].Remove(t.Context(), key))
			}
			f.Delay(0, 2, time.Duration(10+n%3*30)*time.Millisecond)
			for range 3 {
				want(t, f, 2, key, value)
				want(t, f, 1, key, value)
			}
		}
		if f.groups[2].Stats().Hedged == 0 {
			t.Error("nothing was asked twice")
		}
	})
}

// Who holds a replica itself does not wait for an owner that is slow, where it would ask another replica.
func TestHedgeUsesTheAskersOwnReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, &shoal.Options{Hedge: 85}, upper, &shoal.GroupOptions[string]{Owners: 2, HotBytes: -1})
		key := ownedBy(f.Cluster, 0, 0)
		want(t, f, 0, key, "KEY "+key[4:])
		time.Sleep(time.Second)
		f.Delay(0, 1, time.Millisecond)
		for range 50 {
			want(t, f, 1, key, "KEY "+key[4:])
		}
		f.Delay(0, 1, 200*time.Millisecond)
		began := time.Now()
		want(t, f, 1, key, "KEY "+key[4:])
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("it took %v", took)
		}
	})
}

// The load that the first caller has begun goes on for those behind it when that leaves.
func TestHedgedLoadGoesOnForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, &shoal.Options{Hedge: 95}, slow(2*time.Second), nil)
		f.calm(t)
		keys := allOwnedBy(f.Cluster, 0, 12)
		for _, key := range keys {
			ctx, cancel := context.WithCancel(t.Context())
			go f.groups[1].Get(ctx, key)
			time.Sleep(100 * time.Millisecond)
			done := make(chan error)
			go func() {
				_, err := f.groups[1].Get(t.Context(), key)
				done <- err
			}()
			time.Sleep(time.Second)
			cancel()
			must(t, <-done)
		}
		f.wantLoads(t, int64(len(keys)))
	})
}
