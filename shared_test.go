package shoal_test

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
)

// A slowJSON is a codec that counts how often it decodes.
type slowJSON struct{ decoded *atomic.Int64 }

type thing struct{ Name string }

func (c slowJSON) Append(b []byte, v *thing) ([]byte, error) {
	data, err := json.Marshal(v)
	return append(b, data...), err
}

func (c slowJSON) Decode(data []byte) (*thing, error) {
	c.decoded.Add(1)
	v := new(thing)
	return v, json.Unmarshal(data, v)
}

func newThings(t *testing.T, n int, decodings *atomic.Int64, opts shoal.GroupOptions[*thing]) *fleet[*thing] {
	opts.Codec, opts.Share = slowJSON{decodings}, true
	return newFleet(t, n, nil, func(_ context.Context, key string) (*thing, error) { return &thing{key}, nil }, &opts)
}

func TestSharedValuesAreDecodedOnceTheyAreReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var decodings atomic.Int64
		f := newThings(t, 2, &decodings, shoal.GroupOptions[*thing]{HotRate: 0.5})
		key := ownedBy(f.Cluster, 0, 0)
		for i, g := range f.groups {
			before := decodings.Load()
			var last *thing
			for n := range 10 {
				v, err := g.Get(t.Context(), key)
				if err != nil || v.Name != key || n > 1 && v != last {
					t.Errorf("cache %d: get %d: %+v, %v, another than before: %v", i, n, v, err, v != last)
				}
				last = v
			}
			if e, err := g.GetEntry(t.Context(), key, nil); e.Value != last || err != nil {
				t.Errorf("%+v, %v", e, err)
			}
			if m, err := g.GetMany(t.Context(), []string{key}); m[key] != last || err != nil {
				t.Errorf("%+v, %v", m, err)
			}
			if n := decodings.Load() - before; n != 2 {
				t.Errorf("cache %d: decoded %d times", i, n)
			}
		}
	})
}

func TestSharedValuesAreNoOlderThanOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var decodings atomic.Int64
		f := newThings(t, 2, &decodings, shoal.GroupOptions[*thing]{HotRate: 0.5, TTL: time.Minute})
		key := ownedBy(f.Cluster, 0, 0)
		for n := range 20 {
			for i, g := range f.groups {
				name := fmt.Sprint("name ", n, i)
				must(t, f.groups[n%2].Set(t.Context(), key, &thing{name}))
				for range 3 {
					if v, err := g.Get(t.Context(), key); err != nil || v.Name != name {
						t.Errorf("%+v, %v, want %s", v, err, name)
					}
				}
			}
		}
		must(t, f.groups[1].Purge(t.Context()))
		for _, g := range f.groups {
			if v, err := g.Get(t.Context(), key); err != nil || v.Name != key {
				t.Errorf("%+v, %v", v, err)
			}
		}
	})
}

func TestSharedValuesAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var decodings atomic.Int64
		const most = 4 << 20
		f := newThings(t, 1, &decodings, shoal.GroupOptions[*thing]{MaxBytes: most, SizeOf: func(*thing) int64 { return 2000 }})
		for range 3 {
			for n := range 1500 {
				if _, err := f.groups[0].Get(t.Context(), fmt.Sprint("key ", n)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if s := f.groups[0].Stats(); s.Bytes < most/3 || s.Bytes > most {
			t.Errorf("%d bytes of %d", s.Bytes, most)
		}
		f.groups[0].SetMaxBytes(most / 8)
		if s := f.groups[0].Stats(); s.Bytes > most/8 {
			t.Errorf("%d bytes of %d", s.Bytes, most/8)
		}
	})
}

// Of half the memory, a value may take a half, however the keys are spread.
func TestLargeValuesAreSharedToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var decodings atomic.Int64
		f := newThings(t, 1, &decodings, shoal.GroupOptions[*thing]{MaxBytes: 2 << 20})
		key := strings.Repeat("k", 4000)
		for i := range 100 {
			if _, err := f.groups[0].Get(t.Context(), fmt.Sprint(key, i%10)); err != nil {
				t.Fatal(err)
			}
		}
		if n := decodings.Load(); n > 30 {
			t.Errorf("decoded %d times", n)
		}
	})
}

// What is shared does not keep what its key was cut from.
func TestSharedValuesDoNotKeepTheCallersKeys(t *testing.T) {
	if testing.Short() {
		t.Skip("measures the heap")
	}
	synctest.Test(t, func(t *testing.T) {
		var decodings atomic.Int64
		f := newThings(t, 1, &decodings, shoal.GroupOptions[*thing]{MaxBytes: 8 << 20})
		for i := range 100 {
			large := fmt.Sprintf("%04d", i) + strings.Repeat("x", 1<<20)
			for range 3 {
				f.groups[0].Get(t.Context(), large[:4])
			}
		}
		var m runtime.MemStats
		runtime.GC()
		if runtime.ReadMemStats(&m); m.HeapAlloc > 64<<20 {
			t.Errorf("%d MiB of heap", m.HeapAlloc>>20)
		}
	})
}
