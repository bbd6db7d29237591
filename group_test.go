package shoal_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/cachetest"
)

// A fleet is a group in each cache of a cluster, with one source that counts its loads.
type fleet[V any] struct {
	*cachetest.Cluster
	groups []*shoal.Group[V]
	loads  atomic.Int64
}

func newFleet[V any](t *testing.T, n int, opts *shoal.Options, get shoal.Getter[V], groupOpts *shoal.GroupOptions[V]) *fleet[V] {
	t.Helper()
	f := &fleet[V]{Cluster: cachetest.New(t, n, opts)}
	var counted shoal.Getter[V]
	if get != nil {
		counted = func(ctx context.Context, key string) (V, error) {
			f.loads.Add(1)
			return get(ctx, key)
		}
	}
	for i := range n {
		f.groups = append(f.groups, shoal.NewGroup(f.Cache(i), "things", counted, groupOpts))
	}
	return f
}

// ownedBy returns a key that cache i owns, the nth of them.
func ownedBy(c *cachetest.Cluster, i, nth int) string {
	for k := 0; ; k++ {
		if key := fmt.Sprintf("key %d", k); c.Owner(key) == i {
			if nth == 0 {
				return key
			}
			nth--
		}
	}
}

// allOwnedBy returns the first n keys that cache i owns.
func allOwnedBy(c *cachetest.Cluster, i, n int) (keys []string) {
	for k := 0; len(keys) < n; k++ {
		if key := fmt.Sprintf("key %d", k); c.Owner(key) == i {
			keys = append(keys, key)
		}
	}
	return keys
}

// wantGets checks that a Get of key in each group gives want, and how often the getter has run after that.
func (f *fleet[V]) wantGets(t *testing.T, key string, loads int64) {
	t.Helper()
	for i, g := range f.groups {
		if _, err := g.Get(t.Context(), key); err != nil {
			t.Errorf("cache %d: Get(%q): %v", i, key, err)
		}
	}
	f.wantLoads(t, loads)
}

func (f *fleet[V]) wantLoads(t *testing.T, want int64) {
	t.Helper()
	if n := f.loads.Load(); n != want {
		t.Errorf("the getter has run %d times, want %d", n, want)
	}
}

// upper is the plainest source.
func upper(_ context.Context, key string) (string, error) { return strings.ToUpper(key), nil }

// slow is a source that takes d, or until ctx ends.
func slow(d time.Duration) shoal.Getter[string] {
	return func(ctx context.Context, key string) (string, error) {
		select {
		case <-time.After(d):
			return upper(ctx, key)
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

func TestEachKeyIsLoadedOnceByItsOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3, nil, upper, nil)
		for k := range 99 {
			key := fmt.Sprint("key ", k)
			for i, g := range f.groups {
				if v, err := g.Get(t.Context(), key); v != strings.ToUpper(key) || err != nil {
					t.Errorf("cache %d: Get(%q) = %q, %v", i, key, v, err)
				}
			}
		}
		var got, want []string
		owned := make([]int, 3)
		for k := range 99 {
			owned[f.Owner(fmt.Sprint("key ", k))]++
		}
		for i, g := range f.groups {
			s := g.Stats()
			got = append(got, fmt.Sprintf("loads = %d, entries = %d, requests = %d", s.Loads, s.Entries, s.Requests))
			want = append(want, fmt.Sprintf("loads = %d, entries = %d, requests = %d", owned[i], owned[i], 2*owned[i]))
		}
		if !slices.Equal(got, want) {
			t.Errorf("\n got %q\nwant %q", got, want)
		}
	})
}

func TestHerdLoadsEachKeyOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3, nil, slow(10*time.Millisecond), nil)
		herd := 300
		if shoal.RaceEnabled { // each goroutine takes 30 KB more
			herd = 30
		}
		var wg sync.WaitGroup
		for _, g := range f.groups {
			for range herd {
				wg.Go(func() {
					var wg sync.WaitGroup
					defer wg.Wait()
					for k := range 100 {
						wg.Go(func() {
							key := fmt.Sprint("key ", k)
							if v, err := g.Get(t.Context(), key); v != strings.ToUpper(key) || err != nil {
								t.Errorf("Get(%q) = %q, %v", key, v, err)
							}
						})
					}
				})
			}
		}
		wg.Wait()
		f.wantLoads(t, 100)
	})
}

func TestCancelledCallerLeavesOthersTheirLoad(t *testing.T) {
	for _, at := range []string{"owner", "peer"} {
		t.Run(at, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, 2, nil, slow(time.Second), nil)
				key := ownedBy(f.Cluster, 0, 0)
				g := f.groups[0]
				if at == "peer" {
					g = f.groups[1]
				}
				first, cancel := context.WithCancel(t.Context())
				go func() {
					if _, err := g.Get(first, key); !errors.Is(err, context.Canceled) {
						t.Errorf("the cancelled caller got %v", err)
					}
				}()
				synctest.Wait()
				for range 99 {
					go func() {
						if _, err := g.Get(t.Context(), key); err != nil {
							t.Errorf("one who waited got %v", err)
						}
					}()
				}
				time.Sleep(100 * time.Millisecond)
				cancel()
				time.Sleep(3 * time.Second)
				f.wantLoads(t, 1)
			})
		})
	}
}

func TestQuestionThatHasBeenSentIsNotJoined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, slow(time.Second), &shoal.GroupOptions[string]{TTL: -1})
		key := ownedBy(f.Cluster, 0, 0)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if _, err := f.groups[1].Get(t.Context(), key); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		wg.Wait()
		// The first is alone, the others have gathered behind it. What is not kept is loaded for each question.
		f.wantLoads(t, 2)
	})
}

func TestWaiterLeavesAtItsOwnDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, slow(time.Second), nil)
		key := ownedBy(f.Cluster, 0, 0)
		for _, g := range f.groups {
			go g.Get(t.Context(), key)
		}
		synctest.Wait()
		for i, g := range f.groups {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			began := time.Now()
			_, err := g.Get(ctx, key)
			if took := time.Since(began); took != 20*time.Millisecond || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("cache %d: %v after %v", i, err, took)
			}
		}
		time.Sleep(2 * time.Second)
		f.wantLoads(t, 1)
	})
}

func TestLoadEndsWhenTheLastWaiterHasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ended time.Time
		f := newFleet(t, 2, nil, func(ctx context.Context, key string) (string, error) {
			<-ctx.Done()
			ended = time.Now()
			return "", ctx.Err()
		}, nil)
		began := time.Now()
		for i, g := range f.groups { // one leaves after a second, here, the other after two, at a peer
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i+1)*time.Second)
				defer cancel()
				g.Get(ctx, ownedBy(f.Cluster, 0, 0))
			}()
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if took := ended.Sub(began); took != 2*time.Second {
			t.Errorf("the load's context ended after %v", took)
		}
		f.wantLoads(t, 1)
	})
}

func TestLoadCarriesNoValuesOfItsCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type tag struct{}
		f := newFleet(t, 2, nil, func(ctx context.Context, key string) (string, error) {
			if v := ctx.Value(tag{}); v != nil {
				t.Errorf("the getter sees a caller's %v", v)
			}
			return "", nil
		}, nil)
		ctx := context.WithValue(t.Context(), tag{}, "value")
		for i, g := range f.groups {
			g.Get(ctx, ownedBy(f.Cluster, 0, i))
		}
		f.wantLoads(t, 2)
	})
}

func TestLoadHasADeadline(t *testing.T) {
	for name, getter := range map[string]shoal.Getter[string]{
		"heeded": slow(time.Hour),
		"not heeded": func(context.Context, string) (string, error) {
			time.Sleep(time.Hour)
			return "late", nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, 2, nil, getter, &shoal.GroupOptions[string]{LoadTimeout: 3 * time.Second})
				key := ownedBy(f.Cluster, 0, 0)
				began := time.Now()
				_, err := f.groups[0].Get(t.Context(), key)
				if took := time.Since(began); took != 3*time.Second || !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("here: %v after %v", err, took)
				}
				began = time.Now()
				_, err = f.groups[1].Get(t.Context(), key)
				if failed, ok := errors.AsType[*shoal.PeerError](err); !ok || failed.Op != "load" || time.Since(began) != 3*time.Second {
					t.Errorf("at a peer: %v after %v", err, time.Since(began))
				}
				time.Sleep(2 * time.Hour)
				if s := f.groups[0].Stats(); s.Entries != 0 {
					t.Error("what came after the deadline was kept")
				}
			})
		})
	}
}

func TestPanicReachesEveryWaiterAndTheKeyWorksRightAfter(t *testing.T) {
	for name, test := range map[string]struct {
		fail  func()
		value any
	}{
		"panic":  {func() { panic("boom") }, "boom"},
		"error":  {func() { panic(shoal.ErrNotFound) }, shoal.ErrNotFound},
		"nil":    {func() { panic(nil) }, new(runtime.PanicNilError)},
		"goexit": {runtime.Goexit, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broken := true
				f := newFleet(t, 3, nil, func(context.Context, string) (string, error) {
					time.Sleep(time.Second)
					if broken {
						test.fail()
					}
					return "fine", nil
				}, nil)
				key := ownedBy(f.Cluster, 0, 0)
				for i, g := range f.groups {
					for range 2 {
						go func() {
							_, err := g.Get(t.Context(), key)
							p, ok := errors.AsType[*shoal.PanicError](err)
							if !ok || errors.Is(err, shoal.ErrNotFound) || !strings.Contains(string(p.Stack), "group_test.go") && i == 0 {
								t.Errorf("cache %d: %v", i, err)
								return
							}
							want := test.value
							if i > 0 && want != nil { // elsewhere it is its text
								want = fmt.Sprint(want)
							}
							if fmt.Sprint(p.Value) != fmt.Sprint(want) || (p.Value == nil) != (want == nil) {
								t.Errorf("cache %d: the value is %v, want %v", i, p.Value, want)
							}
							if failed, ok := errors.AsType[*shoal.PeerError](err); ok != (i > 0) || ok && failed.Op != "load" {
								t.Errorf("cache %d: %v", i, err)
							}
						}()
					}
				}
				time.Sleep(1500 * time.Millisecond)
				synctest.Wait()
				f.wantLoads(t, 1)
				broken = false
				f.wantGets(t, key, 2)
			})
		})
	}
}

func TestGettersErrorCrossesAsItsTextAndIsNotTriedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		text := "no such table\xff" + strings.Repeat(".", 100_000) // not UTF-8, and long
		mine := errors.New(text)
		f := newFleet(t, 2, nil, func(context.Context, string) (string, error) { return "", mine }, nil)
		key := ownedBy(f.Cluster, 0, 0)
		if _, err := f.groups[0].Get(t.Context(), key); err != mine {
			t.Errorf("where the getter ran: %.100v", err)
		}
		f.wantLoads(t, 1)
		_, err := f.groups[1].Get(t.Context(), key)
		f.wantLoads(t, 2)
		failed, ok := errors.AsType[*shoal.PeerError](err)
		if !ok || failed.Op != "load" || failed.Peer != f.Cache(0).Peers()[0] {
			t.Fatalf("at the peer that asked: %.100v", err)
		}
		if len(err.Error()) > 20_000 {
			t.Errorf("%d bytes of error", len(err.Error()))
		}
		for _, part := range []string{text[:1000], key, "things", failed.Peer.Addr} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("the error does not tell %.20q: %.200v", part, err)
			}
		}
	})
}

func TestNotFoundCrossesAsItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, func(_ context.Context, key string) (string, error) {
			return "", fmt.Errorf("row %s: %w", key, shoal.ErrNotFound)
		}, nil)
		key := ownedBy(f.Cluster, 0, 0)
		for i, g := range f.groups {
			if v, err := g.Get(t.Context(), key); v != "" || !errors.Is(err, shoal.ErrNotFound) {
				t.Errorf("cache %d: %q, %v", i, v, err)
			}
			if s := g.Stats(); s.NotFound != 1 || s.Errors != 0 || s.LoadErrors != 0 {
				t.Errorf("cache %d counts %+v", i, s)
			}
		}
		f.wantLoads(t, 2) // none of them by the peer
	})
}

func TestWhatHasACallerIsNotLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		f := newFleet(t, 2, &shoal.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}, func(_ context.Context, key string) (string, error) {
			if strings.HasSuffix(key, "0") {
				panic("boom")
			}
			return "", shoal.ErrNotFound
		}, nil)
		synctest.Wait()
		log.Reset() // of who is there
		for k := range 20 {
			for _, g := range f.groups {
				g.Get(t.Context(), fmt.Sprint(k))
			}
		}
		if log.Len() > 0 {
			t.Errorf("the log says: %s", &log)
		}
		f.Down(0)
		key := ownedBy(f.Cluster, 0, 0)
		f.groups[1].Get(t.Context(), key)
		synctest.Wait()
		if s := log.String(); strings.Contains(s, key) || strings.Count(s, "\n") > 1 { // that the peer does not answer
			t.Errorf("the log says: %s", s)
		}
	})
}

func TestGroupWithoutGetter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 2, nil, nil, nil)
		key := ownedBy(f.Cluster, 0, 0)
		for i, g := range f.groups {
			if _, err := g.Get(t.Context(), key); err != shoal.ErrNotFound {
				t.Errorf("cache %d: %v", i, err)
			}
		}
		f.Down(0)
		_, err := f.groups[1].Get(t.Context(), key)
		if failed, ok := errors.AsType[*shoal.PeerError](err); !ok || failed.Op != "get" || errors.Is(err, shoal.ErrNotFound) {
			t.Errorf("with the owner out of reach: %v", err)
		}
	})
}

func TestGroupWithoutGetterDoesNotSayNotFoundForWantOfAnOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newPeer(t, new(hosts), shoal.Options{Discovery: shoal.Static("dead")})
		ready(t, c)
		_, err := shoal.NewGroup[string](c, "g", nil, nil).Get(t.Context(), "key")
		if failed, ok := errors.AsType[*shoal.PeerError](err); !ok || failed.Op != "get" || errors.Is(err, shoal.ErrNotFound) {
			t.Errorf("%v", err)
		}
	})
}

func TestGetAfterAChangeOfViewDoesNotWaitForTheFormerOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3, nil, slow(2*time.Second), nil)
		key := ownedBy(f.Cluster, 0, 0)
		go f.groups[1].Get(t.Context(), key)
		time.Sleep(time.Second) // the owner has said that it loads
		f.Partition([]int{0}, []int{1, 2})
		f.See(1, 1, 2)
		f.See(2, 1, 2)
		began := time.Now()
		_, err := f.groups[1].Get(t.Context(), key)
		if took := time.Since(began) - 2*time.Second; err != nil || took > 100*time.Millisecond { // a peek, if it is not known yet that nobody answers
			t.Errorf("%v, %v later than a load", err, took)
		}
	})
}

func TestErrorOfAnotherGroupInAGetterIsTheGettersError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := cachetest.New(t, 3, nil)
		key := ownedBy(cluster, 0, 0)
		var outer []*shoal.Group[string]
		for i := range 3 {
			inner := shoal.NewGroup[string](cluster.Cache(i), "inner", nil, nil)
			outer = append(outer, shoal.NewGroup(cluster.Cache(i), "outer", func(ctx context.Context, _ string) (string, error) {
				_, err := inner.Get(ctx, ownedBy(cluster, 1, 0))
				return "", fmt.Errorf("inner: %w", err)
			}, nil))
		}
		cluster.See(1, 2) // so that cache 1 refuses, and names one that refuses too
		cluster.See(2, 1)
		_, err := outer[0].Get(t.Context(), key)
		if err == nil || !strings.Contains(err.Error(), "inner") {
			t.Fatalf("at the owner: %v", err)
		}
		w := httptest.NewRecorder()
		cluster.Cache(0).ServeHTTP(w, newPost(marshal(t, fetchRequest("outer", key))))
		if reply := lastReply(t, w); !strings.Contains(string(reply.GetFailed().GetText()), "inner") {
			t.Errorf("to a peer: %v", reply)
		}
	})
}

func TestValueExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, upper, &shoal.GroupOptions[string]{TTL: time.Minute})
		key := ownedBy(f.Cluster, 0, 0)
		f.wantGets(t, key, 1)
		time.Sleep(time.Minute - 1)
		f.wantGets(t, key, 1)
		time.Sleep(time.Nanosecond)
		f.wantGets(t, key, 2)
	})
}

func TestTTLForDecidesByValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 1, nil, upper, &shoal.GroupOptions[string]{
			TTL: time.Hour,
			TTLFor: func(key, v string) time.Duration {
				if v != strings.ToUpper(key) {
					t.Errorf("TTLFor(%q, %q)", key, v)
				}
				return map[string]time.Duration{"A": time.Second, "B": 0, "C": -1}[v]
			},
		})
		f.wantGets(t, "a", 1)
		f.wantGets(t, "a", 1)
		time.Sleep(time.Second)
		f.wantGets(t, "a", 2)
		f.wantGets(t, "b", 3) // zero and less: not kept
		f.wantGets(t, "b", 4)
		f.wantGets(t, "c", 5)
		f.wantGets(t, "c", 6)
	})
}

func TestNegativeTTLAnswersAndKeepsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, upper, &shoal.GroupOptions[string]{TTL: -1})
		f.wantGets(t, "a", 2)
		if s := f.groups[f.Owner("a")].Stats(); s.Entries != 0 {
			t.Errorf("%d entries", s.Entries)
		}
	})
}

func TestJitterOnlyShortensTTLs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const keys = 1000
		f := newFleet(t, 1, nil, upper, &shoal.GroupOptions[string]{TTL: 100 * time.Second, Jitter: 0.5})
		get := func() {
			for k := range keys {
				f.groups[0].Get(t.Context(), fmt.Sprint(k))
			}
		}
		get()
		time.Sleep(50 * time.Second)
		get()
		f.wantLoads(t, keys)
		time.Sleep(25 * time.Second)
		get()
		if n := f.loads.Load() - keys; n < keys/3 || n > keys*2/3 {
			t.Errorf("after three quarters of the TTL, %d of %d had expired", n, keys)
		}
		time.Sleep(25 * time.Second) // those of the first load are gone; of the second, some may be too
		get()
		if n := f.loads.Load(); n < 2*keys {
			t.Errorf("%d loads after a whole TTL", n)
		}
	})
}

func TestUnreachableOwnersKeyIsLoadedHereOnceAndNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, slow(time.Second), nil)
		key := ownedBy(f.Cluster, 0, 0)
		f.Down(0)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if v, err := f.groups[1].Get(t.Context(), key); v != strings.ToUpper(key) || err != nil {
					t.Errorf("Get = %q, %v", v, err)
				}
			})
		}
		wg.Wait()
		f.wantLoads(t, 1)
		if s := f.groups[1].Stats(); s.Entries != 0 || s.UnownedLoads != 1 || s.Errors != 0 {
			t.Errorf("cache 1 counts %+v", s)
		}
		if p := f.Cache(1).Stats().Peers[0]; p.Failures == 0 || !strings.Contains(p.LastError, "refused") {
			t.Errorf("cache 1 says of cache 0: %+v", p)
		}
		f.Up(0)
		f.wantGets(t, key, 2)
	})
}

func TestSilentOwnerCostsPeerTimeout(t *testing.T) {
	for name, cut := range map[string]func(*cachetest.Cluster){
		"black hole":       func(c *cachetest.Cluster) { c.Delay(1, 0, time.Hour) },
		"answers too late": func(c *cachetest.Cluster) { c.Delay(0, 1, time.Hour) },
		"questions lost":   func(c *cachetest.Cluster) { c.Loss(1, 0, 1) },
		"partition":        func(c *cachetest.Cluster) { c.Partition([]int{0}, []int{1}) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, 2, &shoal.Options{PeerTimeout: 300 * time.Millisecond}, upper, nil)
				cut(f.Cluster)
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				began := time.Now()
				_, err := f.groups[1].Get(ctx, ownedBy(f.Cluster, 0, 1))
				if took := time.Since(began); took != 50*time.Millisecond || err != nil { // half of it
					t.Errorf("a caller with less time: %v after %v", err, took)
				}
				began = time.Now()
				var wg sync.WaitGroup
				for range 10 {
					wg.Go(func() {
						if _, err := f.groups[1].Get(t.Context(), ownedBy(f.Cluster, 0, 0)); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
				if took := time.Since(began); took != 300*time.Millisecond {
					t.Errorf("took %v", took)
				}
				if p := f.Cache(1).Stats().Peers[0]; !strings.Contains(p.LastError, "PeerTimeout") {
					t.Errorf("%+v", p)
				}
				began = time.Now()
				for k := range 100 {
					if _, err := f.groups[1].Get(t.Context(), ownedBy(f.Cluster, 0, k)); err != nil {
						t.Error(err)
					}
				}
				if took := time.Since(began); took != 0 {
					t.Errorf("a hundred more took %v", took)
				}
			})
		})
	}
}

func TestSlowGetterIsNotTakenForADeadPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, slow(20*time.Second), nil)
		f.wantGets(t, ownedBy(f.Cluster, 0, 0), 1)
		f.loads.Store(0)
		if _, err := f.groups[1].Get(t.Context(), ownedBy(f.Cluster, 0, 1)); err != nil {
			t.Error(err)
		}
		f.wantLoads(t, 1)
	})
}

func TestOwnerThatDiesWhileLoading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, slow(10*time.Second), nil)
		key := ownedBy(f.Cluster, 0, 0)
		began := time.Now()
		go func() {
			time.Sleep(time.Second)
			f.Down(0)
		}()
		if _, err := f.groups[1].Get(t.Context(), key); err != nil || time.Since(began) != 11*time.Second {
			t.Errorf("its connection ended: %v after %v", err, time.Since(began))
		}
		f.Up(0)
		time.Sleep(15 * time.Second) // until it has been greeted again
		began = time.Now()
		go func() {
			time.Sleep(time.Second)
			f.Partition([]int{0}, []int{1})
		}()
		// The owner said that it may take LoadTimeout; then it is peeked at.
		if _, err := f.groups[1].Get(t.Context(), key); err != nil || time.Since(began) != 30*time.Second+600*time.Millisecond+10*time.Second {
			t.Errorf("it fell silent: %v after %v", err, time.Since(began))
		}
	})
}

func TestPeersWhoseRingsDisagreeBothAnswerAndNeitherWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, views := range [][2][]int{
			{{1}, {0}}, // each takes the other for the only owner
			{{0}, {1}}, // each takes itself
			{{0, 1}, {1}},
			{{0, 1}, {0}},
			{{1}, {0, 1}},
		} {
			f := newFleet(t, 2, nil, slow(10*time.Millisecond), nil)
			f.See(0, views[0]...)
			f.See(1, views[1]...)
			began := time.Now()
			var wg sync.WaitGroup
			for range 10 {
				for k := range 20 {
					for i, g := range f.groups {
						wg.Go(func() {
							key := fmt.Sprint("key ", k)
							if v, err := g.Get(t.Context(), key); v != strings.ToUpper(key) || err != nil {
								t.Errorf("views %v: cache %d: Get(%q) = %q, %v", views, i, key, v, err)
							}
						})
					}
				}
			}
			wg.Wait()
			if took := time.Since(began); took > 30*time.Millisecond {
				t.Errorf("views %v: took %v", views, took)
			}
		}
	})
}

func TestOwnerByAnothersWordIsAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3, nil, upper, nil)
		f.See(0, 0, 1) // cache 0 does not know cache 2
		var key string
		for k := 0; key == ""; k++ { // one that cache 0 takes for cache 1's, and cache 1 knows to be cache 2's
			c := ownedBy(f.Cluster, 2, k)
			f.groups[0].Get(t.Context(), c)
			if f.groups[2].Stats().Requests == 1 {
				key = c
			}
		}
		before, loads := f.groups[0].Stats(), f.loads.Load()
		if _, err := f.groups[0].Get(t.Context(), key); err != nil {
			t.Error(err)
		}
		f.wantLoads(t, loads)
		if s := f.groups[0].Stats(); s.Fetches != before.Fetches+2 || s.PeerHits != before.PeerHits+1 {
			t.Errorf("before %+v\nafter %+v", before, s)
		}
		if f.Cache(1).Stats().Refused.NotOwner == 0 {
			t.Error("the refusal was not counted")
		}
	})
}

func TestCacheThatIsNotInItsOwnListOwnsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3, nil, upper, nil)
		for i := range 3 {
			f.See(i, 0, 1)
		}
		for k := range 50 {
			f.wantGets(t, fmt.Sprint(k), int64(k+1))
		}
		if s := f.groups[2].Stats(); s.Entries != 0 || s.Loads != 0 || s.PeerHits != 50 {
			t.Errorf("the client counts %+v", s)
		}
	})
}

func TestGroupThatTheOwnerDoesNotHaveYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := cachetest.New(t, 2, nil)
		key := ownedBy(cluster, 0, 0)
		g := shoal.NewGroup(cluster.Cache(1), "new", upper, nil)
		if v, err := g.Get(t.Context(), key); v != strings.ToUpper(key) || err != nil {
			t.Errorf("Get = %q, %v", v, err)
		}
		if s := cluster.Cache(0).Stats(); s.Refused.NoGroup == 0 {
			t.Errorf("%+v", s)
		}
		shoal.NewGroup(cluster.Cache(0), "new", upper, nil)
		if _, err := g.Get(t.Context(), key); err != nil {
			t.Error(err)
		}
		if s := g.Stats(); s.UnownedLoads != 1 || s.Loads != 1 {
			t.Errorf("%+v", s)
		}
	})
}

func TestWhatIsNotOwnedAnyMoreIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, slow(time.Second), nil)
		kept, flying := ownedBy(f.Cluster, 0, 0), ownedBy(f.Cluster, 0, 1)
		f.groups[0].Get(t.Context(), kept)
		go f.groups[0].Get(t.Context(), flying)
		synctest.Wait()
		f.See(0, 1)
		time.Sleep(time.Second)
		if s := f.groups[0].Stats(); s.Entries != 1 {
			t.Errorf("%d entries are kept for the new owner", s.Entries)
		}
		f.groups[0].Get(t.Context(), kept)
		if s := f.groups[0].Stats(); s.Hits != 0 || s.Fetches != 1 {
			t.Errorf("what is kept was served: %+v", s)
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if s := f.groups[0].Stats(); s.Entries != 0 {
			t.Errorf("%d entries are left in a cache that owns nothing", s.Entries)
		}
	})
}

func TestLoadOfAKeyThatWasLostMeanwhileIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, slow(time.Second), nil)
		key := ownedBy(f.Cluster, 0, 0)
		go f.groups[0].Get(t.Context(), key)
		synctest.Wait()
		f.See(0, 1)
		f.See(0, 0, 1) // the key is back, but may have been another's, and been written to there
		time.Sleep(2 * time.Second)
		if s := f.groups[0].Stats(); s.Loads != 1 || s.Entries != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestShutDownCacheGoesOnAsOneThatOwnsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, upper, nil)
		mine, other := ownedBy(f.Cluster, 0, 0), ownedBy(f.Cluster, 1, 0)
		f.wantGets(t, mine, 1)
		f.wantGets(t, other, 2)
		if err := f.Cache(0).Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := f.Cache(0).Shutdown(t.Context()); err != nil {
			t.Errorf("the second time: %v", err)
		}
		if err := f.Cache(0).Ready(t.Context()); err == nil {
			t.Error("it is ready after Shutdown")
		}
		if peers := f.Cache(0).Peers(); len(peers) != 1 || peers[0].Addr != f.Cache(1).Peers()[0].Addr {
			t.Errorf("it sees %v", peers)
		}
		f.wantGets(t, other, 2)
		synctest.Wait() // for the last that it has handed over
		f.wantGets(t, mine, 2)
		if s := f.groups[0].Stats(); s.Entries != 0 {
			t.Errorf("%d entries", s.Entries)
		}
	})
}

func TestKeysAndValuesOverTheirLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, &shoal.Options{MaxKeyBytes: 10, MaxValueBytes: 100}, func(_ context.Context, key string) (string, error) {
			return strings.Repeat("v", len(key)*20), nil
		}, nil)
		for i, g := range f.groups {
			if _, err := g.Get(t.Context(), strings.Repeat("k", 11)); err == nil || !strings.Contains(err.Error(), "MaxKeyBytes") {
				t.Errorf("cache %d, long key: %v", i, err)
			}
			if _, err := g.Get(t.Context(), "123456"); err == nil || !strings.Contains(err.Error(), "MaxValueBytes") {
				t.Errorf("cache %d, large value: %v", i, err)
			}
			if v, err := g.Get(t.Context(), "12345"); len(v) != 100 || err != nil {
				t.Errorf("cache %d, largest value: %q, %v", i, v, err)
			}
			if v, err := g.Get(t.Context(), ""); v != "" || err != nil {
				t.Errorf("cache %d, empty key and value: %q, %v", i, v, err)
			}
		}
	})
}

func TestStatsMayBeReadAtAnyTime(t *testing.T) {
	f := newFleet(t, 2, nil, upper, &shoal.GroupOptions[string]{MaxBytes: 10_000})
	var wg sync.WaitGroup
	for i, g := range f.groups {
		wg.Go(func() {
			for k := range 500 {
				g.Get(t.Context(), fmt.Sprint(k))
				if k%10 == 0 {
					g.SetMaxBytes(int64(5000 + rand.IntN(5000)))
				}
			}
		})
		wg.Go(func() {
			var last shoal.GroupStats
			for range 500 {
				s := f.Cache(i).Stats().Groups[0]
				if s.Gets < last.Gets || s.Loads < last.Loads || s.Hits < 0 || s.Requests < last.Requests {
					t.Errorf("a counter went back: %+v after %+v", s, last)
				}
				last = s
			}
		})
	}
	wg.Wait()
	for i, g := range f.groups {
		if s := g.Stats(); s.Gets != 500 || s.Bytes > s.MaxBytes {
			t.Errorf("cache %d: %+v", i, s)
		}
	}
}

func TestNewGroupRefusesWhatCannotBe(t *testing.T) {
	cache, err := shoal.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	shoal.NewGroup(cache, "taken", upper, nil)
	for want, make := range map[string]func(){
		"name":                     func() { shoal.NewGroup(cache, "taken", upper, nil) },
		"V: ":                      func() { shoal.NewGroup[struct{ hidden int }](cache, "a", nil, nil) },
		"GroupOptions.MaxBytes":    func() { shoal.NewGroup(cache, "b", upper, &shoal.GroupOptions[string]{MaxBytes: -1}) },
		"GroupOptions.Jitter":      func() { shoal.NewGroup(cache, "c", upper, &shoal.GroupOptions[string]{Jitter: 1.1}) },
		"GroupOptions.LoadTimeout": func() { shoal.NewGroup(cache, "d", upper, &shoal.GroupOptions[string]{LoadTimeout: -1}) },
		"GroupOptions.Stale ":      func() { shoal.NewGroup(cache, "e", upper, &shoal.GroupOptions[string]{Stale: -1}) },
		"GroupOptions.StaleIfError": func() {
			shoal.NewGroup(cache, "f", upper, &shoal.GroupOptions[string]{Stale: 2, StaleIfError: 1})
		},
		"GroupOptions.NotFoundTTL": func() { shoal.NewGroup(cache, "g", upper, &shoal.GroupOptions[string]{NotFoundTTL: -1}) },
		"GroupOptions.ErrorTTL":    func() { shoal.NewGroup(cache, "h", upper, &shoal.GroupOptions[string]{ErrorTTL: -1}) },
		"GroupOptions.MaxLoads":    func() { shoal.NewGroup(cache, "i", upper, &shoal.GroupOptions[string]{MaxLoads: -1}) },
		"GroupOptions.HotBytes": func() {
			shoal.NewGroup(cache, "j", upper, &shoal.GroupOptions[string]{MaxBytes: 10, HotBytes: 11})
		},
		"GroupOptions.HotRate":  func() { shoal.NewGroup(cache, "k", upper, &shoal.GroupOptions[string]{HotRate: -1}) },
		"GroupOptions.HotLease": func() { shoal.NewGroup(cache, "l", upper, &shoal.GroupOptions[string]{HotLease: time.Minute}) },
	} {
		func() {
			defer func() {
				if text := fmt.Sprint(recover()); !strings.Contains(text, want) {
					t.Errorf("want a panic that names %q, not %v", want, text)
				}
			}()
			make()
		}()
	}
	if n := len(cache.Stats().Groups); n != 1 {
		t.Errorf("%d groups are there", n)
	}
}

func TestHitsDoNotAllocate(t *testing.T) {
	cache, err := shoal.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, ttl := range []time.Duration{0, time.Hour} {
		opts := func(name string) string { return fmt.Sprint(name, ttl) }
		views := shoal.NewGroup(cache, opts("views"), func(ctx context.Context, key string) (shoal.ByteView, error) {
			return shoal.NewByteView("value"), nil
		}, &shoal.GroupOptions[shoal.ByteView]{TTL: ttl})
		texts := shoal.NewGroup(cache, opts("strings"), upper, &shoal.GroupOptions[string]{TTL: ttl})
		ctx := t.Context()
		for name, hit := range map[string]func(){
			"ByteView": func() { views.Get(ctx, "a key") },
			"string":   func() { texts.Get(ctx, "a key") },
		} {
			hit()
			if n := testing.AllocsPerRun(1000, hit); n != 0 {
				t.Errorf("a hit of a Group[%s] with TTL %v: %v allocations", name, ttl, n)
			}
		}
	}
}

func TestBytesAreTheCallersToWrite(t *testing.T) {
	cache, err := shoal.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	source := []byte("value")
	g := shoal.NewGroup(cache, "bytes", func(context.Context, string) ([]byte, error) { return source, nil }, nil)
	for range 3 {
		v, err := g.Get(t.Context(), "key")
		if string(v) != "value" || err != nil {
			t.Errorf("Get = %q, %v", v, err)
		}
		clear(v)
		clear(source)
	}
}

// brokenCodec cannot read what it has written.
type brokenCodec struct{ write error }

func (c brokenCodec) Append(b []byte, v string) ([]byte, error) { return append(b, v...), c.write }
func (c brokenCodec) Decode(data []byte) (string, error)        { return "", errors.New("cannot read") }

func TestCodecThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for want, codec := range map[string]brokenCodec{
			"cannot read":  {},
			"cannot write": {errors.New("cannot write")},
		} {
			f := newFleet(t, 2, nil, upper, &shoal.GroupOptions[string]{Codec: codec})
			for i, g := range f.groups {
				if _, err := g.Get(t.Context(), "key"); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "things") {
					t.Errorf("cache %d: %v, want %q", i, err, want)
				}
			}
		}
	})
}
