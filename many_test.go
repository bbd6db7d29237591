package shoal_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
)

// batch is a source of batches that counts its calls.
type batch struct {
	mu    sync.Mutex
	calls [][]string
	get   func(ctx context.Context, keys []string) (map[string]string, error)
}

func (b *batch) getMany(ctx context.Context, keys []string) (map[string]string, error) {
	b.mu.Lock()
	b.calls = append(b.calls, slices.Clone(keys))
	b.mu.Unlock()
	return b.get(ctx, keys)
}

// uppers is upper for many keys. Those that begin with "no" have no value.
func uppers(_ context.Context, keys []string) (map[string]string, error) {
	values := make(map[string]string)
	for _, key := range keys {
		if !strings.HasPrefix(key, "no") {
			values[key] = strings.ToUpper(key)
		}
	}
	return values, nil
}

func manyKeys(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprint("key ", i)
	}
	return keys
}

func TestGetManyAsksEachOwnerOnce(t *testing.T) {
	for _, getter := range []shoal.Getter[string]{nil, upper} {
		synctest.Test(t, func(t *testing.T) {
			b := &batch{get: uppers}
			f := newFleet(t, 5, nil, getter, &shoal.GroupOptions[string]{GetMany: b.getMany})
			for i := range 4 {
				f.See(i, 0, 1, 2, 3) // the fifth owns nothing
			}
			f.See(4, 0, 1, 2, 3)
			keys := append(manyKeys(1000), "no value", "key 0")
			for round := range 2 {
				before := f.groups[4].Stats().Fetches
				values, err := f.groups[4].GetMany(t.Context(), keys)
				if err != nil || len(values) != 1000 {
					t.Fatalf("%d values, %v", len(values), err)
				}
				for key, v := range values {
					if v != strings.ToUpper(key) {
						t.Errorf("%q: %q", key, v)
					}
				}
				if n := f.groups[4].Stats().Fetches - before; n != 4 {
					t.Errorf("round %d: %d exchanges", round, n)
				}
			}
			if len(b.calls) > 5 { // four, and one for the key without a value, which is not remembered
				t.Errorf("%d calls of the batch getter", len(b.calls))
			}
			if getter == nil {
				want(t, f, 0, "single", "SINGLE")
			}
		})
	}
}

// T19. A key that fails takes no other along; what is not there is no error.
func TestGetManyReturnsWhatItHasBesideWhatFailed(t *testing.T) {
	bad := errors.New("bad")
	for name, opts := range map[string]struct {
		get  shoal.Getter[string]
		many func(context.Context, []string) (map[string]string, error)
	}{
		"batch": {nil, func(ctx context.Context, keys []string) (map[string]string, error) {
			values, failed := make(map[string]string), make(shoal.KeyErrors)
			for _, key := range keys {
				if strings.HasPrefix(key, "bad") {
					failed[key] = bad
				} else if !strings.HasPrefix(key, "no") {
					values[key] = strings.ToUpper(key)
				}
			}
			return values, failed
		}},
		"single": {func(_ context.Context, key string) (string, error) {
			if strings.HasPrefix(key, "bad") {
				return "", bad
			} else if strings.HasPrefix(key, "no") {
				return "", fmt.Errorf("wrapped: %w", shoal.ErrNotFound)
			}
			return strings.ToUpper(key), nil
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, 3, nil, opts.get, &shoal.GroupOptions[string]{GetMany: opts.many})
				keys := manyKeys(100)
				for n := range 20 {
					keys = append(keys, fmt.Sprint("bad ", n), fmt.Sprint("no ", n))
				}
				values, err := f.groups[0].GetMany(t.Context(), keys)
				failed, ok := errors.AsType[shoal.KeyErrors](err)
				if len(values) != 100 || !ok || len(failed) != 20 {
					t.Fatalf("%d values, %v", len(values), err)
				}
				for key, err := range failed {
					p, remote := errors.AsType[*shoal.PeerError](err)
					if mine := f.Owner(key) == 0; mine != errors.Is(err, bad) || mine == (remote && p.Op == "load") {
						t.Errorf("%q: %v", key, err)
					}
				}
				if text := err.Error(); !strings.HasPrefix(text, "20 keys failed") || len(text) > 1000 {
					t.Error(text)
				}
			})
		})
	}
}

func TestErrorOfABatchIsThatOfEveryKeyItLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := errors.New("bad")
		f := newFleet[string](t, 1, nil, nil, &shoal.GroupOptions[string]{GetMany: func(context.Context, []string) (map[string]string, error) {
			return map[string]string{"a": "A"}, bad
		}})
		values, err := f.groups[0].GetMany(t.Context(), []string{"a", "b", "c"})
		if failed, _ := errors.AsType[shoal.KeyErrors](err); len(failed) != 2 || !errors.Is(failed["b"], bad) || values["a"] != "A" {
			t.Errorf("%v, %v", values, err)
		}
		panics := newFleet[string](t, 2, nil, nil, &shoal.GroupOptions[string]{GetMany: func(context.Context, []string) (map[string]string, error) {
			panic("bad")
		}})
		_, err = panics.groups[0].GetMany(t.Context(), manyKeys(10))
		failed, _ := errors.AsType[shoal.KeyErrors](err)
		for key, err := range failed {
			if p, ok := errors.AsType[*shoal.PanicError](err); !ok || fmt.Sprint(p.Value) != "bad" {
				t.Errorf("%q: %v", key, err)
			}
		}
		if len(failed) != 10 {
			t.Error(err)
		}
	})
}

func TestGetManyJoinsLoadsThatAreUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &batch{get: func(ctx context.Context, keys []string) (map[string]string, error) {
			time.Sleep(time.Second)
			return uppers(ctx, keys)
		}}
		f := newFleet(t, 2, nil, slow(time.Second), &shoal.GroupOptions[string]{GetMany: b.getMany})
		keys := []string{ownedBy(f.Cluster, 0, 0), ownedBy(f.Cluster, 0, 1)}
		var wg sync.WaitGroup
		wg.Go(func() { f.groups[0].Get(t.Context(), keys[0]) })
		time.Sleep(100 * time.Millisecond)
		for _, g := range f.groups {
			wg.Go(func() {
				if values, err := g.GetMany(t.Context(), keys); len(values) != 2 || err != nil {
					t.Errorf("%v, %v", values, err)
				}
			})
		}
		time.Sleep(100 * time.Millisecond)
		wg.Go(func() { f.groups[1].Get(t.Context(), keys[1]) }) // joins the batch
		wg.Wait()
		if f.wantLoads(t, 1); len(b.calls) != 1 || len(b.calls[0]) != 1 {
			t.Errorf("batches %q", b.calls)
		}
	})
}

func TestGetManyWithoutABatchGetterLoadsSomeAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most atomic.Int64
		f := newFleet(t, 1, nil, func(ctx context.Context, key string) (string, error) {
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			return slow(time.Second)(ctx, key)
		}, nil)
		values, err := f.groups[0].GetMany(t.Context(), manyKeys(100))
		if len(values) != 100 || err != nil || most.Load() != 32 {
			t.Errorf("%d values, %v, %d at once", len(values), err, most.Load())
		}
	})
}

func TestGetManyUsesWhatIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, upper, nil)
		mine, hot := ownedBy(f.Cluster, 0, 0), ownedBy(f.Cluster, 1, 0)
		want(t, f, 0, mine, strings.ToUpper(mine))
		f.heat(t, 0, hot)
		before := f.groups[0].Stats().Fetches
		values, err := f.groups[0].GetMany(t.Context(), []string{mine, hot})
		if len(values) != 2 || err != nil || f.groups[0].Stats().Fetches != before {
			t.Errorf("%v, %v, %d fetches", values, err, f.groups[0].Stats().Fetches-before)
		}
		f.wantLoads(t, 2)
	})
}

// An owner that cannot be reached costs its keys one batch at each of the next owners.
func TestGetManyWithoutAnOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &batch{get: uppers}
		f := newFleet[string](t, 3, nil, nil, &shoal.GroupOptions[string]{GetMany: b.getMany})
		f.Partition([]int{0, 1}, []int{2})
		start := time.Now()
		values, err := f.groups[0].GetMany(t.Context(), manyKeys(100))
		if len(values) != 100 || err != nil || time.Since(start) > 600*time.Millisecond {
			t.Errorf("%d values, %v, after %v", len(values), err, time.Since(start))
		}
		if len(b.calls) != 4 {
			t.Errorf("%d batches", len(b.calls))
		}
	})
}

func TestGetManyOfAKeyValueGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 3, nil, nil, nil)
		all := make(map[string]string)
		for _, key := range manyKeys(50) {
			all[key] = strings.ToUpper(key)
			must(t, f.groups[0].Set(t.Context(), key, all[key]))
		}
		values, err := f.groups[1].GetMany(t.Context(), append(manyKeys(60), "nothing"))
		if !maps.Equal(values, all) || err != nil {
			t.Errorf("%d values, %v", len(values), err)
		}
		time.Sleep(2 * time.Minute) // or what is nowhere might be where it was before the others had come
		f.Down(2)
		values, err = f.groups[1].GetMany(t.Context(), manyKeys(60))
		failed, _ := errors.AsType[shoal.KeyErrors](err)
		for _, key := range manyKeys(60) {
			_, ok := values[key]
			p, down := errors.AsType[*shoal.PeerError](failed[key])
			if theirs := f.Owner(key) == 2; theirs == ok && all[key] != "" || theirs != down || down && p.Op != "get" {
				t.Errorf("%q, of cache %d: %v, %v", key, f.Owner(key), ok, failed[key])
			}
		}
	})
}

// Where the views differ, keys of one message may belong to different owners.
func TestGetManyFollowsARefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3, nil, upper, nil)
		f.See(0, 0, 1) // and does not know of 2
		values, err := f.groups[0].GetMany(t.Context(), manyKeys(100))
		if len(values) != 100 || err != nil {
			t.Errorf("%d values, %v", len(values), err)
		}
	})
}

func TestGetManyLeavesByItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, slow(time.Minute), nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		values, err := f.groups[0].GetMany(ctx, manyKeys(10))
		if len(values) != 0 || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("%v, %v after %v", values, err, time.Since(start))
		}
	})
}

// More than fits into one message.
func TestGetManyOfLargeValues(t *testing.T) {
	f := newFleet(t, 2, &shoal.Options{MaxValueBytes: 64 << 10, MaxBodyBytes: 128 << 10}, func(context.Context, string) ([]byte, error) {
		return make([]byte, 40<<10), nil
	}, nil)
	keys := make([]string, 200)
	for i := range keys {
		keys[i] = fmt.Sprint(strings.Repeat("k", 1000), i)
	}
	for range 2 {
		values, err := f.groups[0].GetMany(t.Context(), keys)
		if len(values) != 200 || err != nil {
			t.Errorf("%d values, %v", len(values), err)
		}
	}
	must(t, f.groups[1].Remove(t.Context(), keys...))
}

func TestAddCountsEverythingOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[int64](t, 4, nil, nil, nil)
		var wg sync.WaitGroup
		for i, g := range f.groups {
			for n := range 50 {
				wg.Go(func() {
					for k := range 5 {
						if _, err := shoal.Add(t.Context(), g, fmt.Sprint("counter ", k), int64(i+n%2*10)); err != nil {
							t.Error(err)
						}
					}
				})
			}
		}
		wg.Wait()
		for k := range 5 {
			for _, g := range f.groups {
				if v, err := g.Get(t.Context(), fmt.Sprint("counter ", k)); v != 50*(0+1+2+3)+4*25*10 || err != nil {
					t.Errorf("counter %d: %d, %v", k, v, err)
				}
			}
		}
	})
}

type count int

func TestAddStartsAtTheGettersValueOrZeroAndItsTTLRunsFromThere(t *testing.T) {
	for _, getter := range []shoal.Getter[count]{nil, func(_ context.Context, key string) (count, error) {
		if key == "none" {
			return 0, shoal.ErrNotFound
		}
		return 100, nil
	}} {
		synctest.Test(t, func(t *testing.T) {
			f := newFleet(t, 2, nil, getter, &shoal.GroupOptions[count]{TTL: 10 * time.Second, Stale: time.Minute})
			key, start := "some", count(0)
			if getter != nil {
				start = 100
			}
			for range 2 {
				for n := range 10 {
					v, err := shoal.Add(t.Context(), f.groups[n%2], key, 1)
					if v != start+count(n)+1 || err != nil {
						t.Errorf("after %d seconds: %d, %v", n, v, err)
					}
					time.Sleep(time.Second)
				}
			}
			if v, err := shoal.Add(t.Context(), f.groups[0], "none", -5); v != -5 || err != nil {
				t.Errorf("%d, %v", v, err)
			}
		})
	}
}

func TestAddThatFailsSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := errors.New("bad")
		f := newFleet(t, 2, nil, func(_ context.Context, key string) (int64, error) {
			if strings.HasPrefix(key, "max") {
				return 1<<63 - 1, nil
			}
			return 0, bad
		}, nil)
		for i, g := range f.groups {
			_, err := shoal.Add(t.Context(), g, ownedBy(f.Cluster, 0, 0), 1)
			p, remote := errors.AsType[*shoal.PeerError](err)
			if i == 0 && !errors.Is(err, bad) || i == 1 && (!remote || p.Op != "load") {
				t.Errorf("cache %d: %v", i, err)
			}
			for n := range 10 { // some here, some there
				key := fmt.Sprint("max ", n)
				if v, err := shoal.Add(t.Context(), g, key, 1); err == nil {
					t.Errorf("cache %d: %d", i, v)
				}
				if v, err := g.Get(t.Context(), key); v != 1<<63-1 || err != nil {
					t.Errorf("cache %d: %d, %v", i, v, err)
				}
			}
		}
		f.Down(0)
		if _, err := shoal.Add(t.Context(), f.groups[1], ownedBy(f.Cluster, 0, 0), 1); !slices.Equal(peersOf(err, "add"), []string{"http://cache-0"}) {
			t.Error(err)
		}
	})
}

// A load that is to replace a counter must not take away what was added meanwhile.
func TestAddDuringALoadIsNotUndone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 1, nil, func(context.Context, string) (int, error) {
			time.Sleep(time.Second)
			return 100, nil
		}, nil)
		g := f.groups[0]
		if v, err := shoal.Add(t.Context(), g, "key", 1); v != 101 || err != nil {
			t.Fatal(v, err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { g.GetEntry(t.Context(), "key", &shoal.GetOptions{Fresh: true}) })
		time.Sleep(time.Second / 2)
		if v, err := shoal.Add(t.Context(), g, "key", 1); v != 102 || err != nil {
			t.Error(v, err)
		}
		wg.Wait()
		if v, err := g.Get(t.Context(), "key"); v != 102 || err != nil {
			t.Error(v, err)
		}
	})
}

// A counter whose load was under way when it was removed starts from a new load.
func TestAddAfterARemoveDoesNotStartFromBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stored atomic.Int64
		stored.Store(100)
		f := newFleet(t, 1, nil, func(context.Context, string) (int, error) {
			v := stored.Load()
			time.Sleep(time.Second)
			return int(v), nil
		}, nil)
		g := f.groups[0]
		var wg sync.WaitGroup
		wg.Go(func() {
			if v, err := shoal.Add(t.Context(), g, "key", 1); v != 1001 || err != nil {
				t.Error(v, err)
			}
		})
		time.Sleep(time.Second / 2)
		stored.Store(1000)
		must(t, g.Remove(t.Context(), "key"))
		wg.Wait()
		if v, err := g.Get(t.Context(), "key"); v != 1001 || err != nil {
			t.Error(v, err)
		}
	})
}

// Loads one after the other may take longer than one may; who waits hears of each.
func TestGetManyHearsOfEachLoadInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, func(ctx context.Context, key string) (string, error) {
			time.Sleep(time.Second)
			return key, nil
		}, &shoal.GroupOptions[string]{LoadTimeout: 2 * time.Second})
		keys := allOwnedBy(f.Cluster, 0, 200)
		values, err := f.groups[1].GetMany(t.Context(), keys)
		if len(values) != 200 || err != nil {
			t.Errorf("%d values, %v", len(values), err)
		}
		f.wantLoads(t, 200)
	})
}

// A hookCodec encodes counters, and calls its hook when it comes to a zero.
type hookCodec struct{ hook func() }

func (c *hookCodec) Append(b []byte, v int) ([]byte, error) {
	if v == 0 && c.hook != nil {
		c.hook()
	}
	return strconv.AppendInt(b, int64(v), 10), nil
}
func (c *hookCodec) Decode(b []byte) (int, error) { return strconv.Atoi(string(b)) }

func TestAddStartsAgainIfTheKeyWasWrittenMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stored atomic.Int64
		codec := new(hookCodec)
		f := newFleet(t, 1, nil, func(context.Context, string) (int, error) {
			if v := stored.Load(); v != 0 {
				return int(v), nil
			}
			return 0, shoal.ErrNotFound
		}, &shoal.GroupOptions[int]{Codec: codec})
		g := f.groups[0]
		codec.hook = func() {
			codec.hook = nil
			stored.Store(100)
			must(t, g.Remove(t.Context(), "key"))
			if v, err := g.Get(t.Context(), "key"); v != 100 || err != nil {
				t.Error(v, err)
			}
			must(t, g.Remove(t.Context(), "key"))
		}
		sum, err := shoal.Add(t.Context(), g, "key", 1)
		v, err2 := g.Get(t.Context(), "key")
		if v < 100 {
			t.Error(sum, err, v, err2)
		}
	})
}

// A getter that has failed is not run again, by whoever asked.
func TestPanicOfABatchFitsIntoItsAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var batches atomic.Int64
		f := newFleet[string](t, 2, &shoal.Options{MaxValueBytes: 64 << 10}, nil, &shoal.GroupOptions[string]{
			GetMany: func(ctx context.Context, keys []string) (map[string]string, error) {
				batches.Add(1)
				panic("x")
			}})
		keys := allOwnedBy(f.Cluster, 0, 1000)
		_, err := f.groups[1].GetMany(t.Context(), keys)
		if batches.Load() != 1 {
			t.Errorf("%d batches: %.300v", batches.Load(), err)
		}
	})
}

func TestOverflowAtAnotherPeerIsAnErrorOfTheAdd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[int](t, 2, nil, nil, nil)
		key := ownedBy(f.Cluster, 0, 0)
		must(t, f.groups[0].Set(t.Context(), key, math.MaxInt))
		_, err := shoal.Add(t.Context(), f.groups[1], key, 1)
		p, _ := errors.AsType[*shoal.PeerError](err)
		if p == nil || p.Op != "add" {
			t.Errorf("%v", err)
		}
	})
}

func TestGetManyOfAKeyValueGroupFollowsARefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 3, nil, nil, nil)
		for n := range 100 {
			must(t, f.groups[1].Set(t.Context(), fmt.Sprint("k", n), "v"))
		}
		f.See(0, 0, 1) // and does not know of 2
		var keys []string
		ok := 0
		for n := range 100 {
			key := fmt.Sprint("k", n)
			if f.Owner(key) != 2 {
				continue
			}
			keys = append(keys, key)
			if _, err := f.groups[0].Get(t.Context(), key); err == nil {
				ok++
			}
		}
		values, err := f.groups[0].GetMany(t.Context(), keys)
		if len(values) != ok {
			t.Errorf("Get finds %d of %d, GetMany %d: %.200v", ok, len(keys), len(values), err)
		}
	})
}
