package main

import (
	"compress/gzip"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestOPTKnowsTheFuture(t *testing.T) {
	for _, test := range []struct {
		requests []int32
		sizes    []int64
		max      int64
		hits     int
	}{
		{[]int32{0, 1, 2, 0, 1, 2}, nil, 3, 3},
		{[]int32{0, 1, 2, 0, 1, 2}, nil, 1, 1}, // keeps 0, and lets the others pass by
		{[]int32{0, 1, 2, 0, 1, 2}, nil, 2, 2},
		{[]int32{0, 0, 0, 0}, nil, 1, 3},
		{[]int32{0, 1, 2, 3}, nil, 4, 0},

		{[]int32{0, 1, 2, 0, 1, 2}, []int64{5, 5, 5}, 15, 3},
		{[]int32{0, 1, 2, 0, 1, 2}, []int64{5, 5, 5}, 14, 2},
		{[]int32{0, 1, 2, 0, 1, 2}, []int64{15, 5, 5}, 14, 2}, // 0 passes by, and nothing goes for it
		{[]int32{0, 1, 2, 1, 2, 0}, []int64{8, 3, 3}, 10, 2},  // 0 is needed last
		{[]int32{1, 2, 0, 0, 1, 2}, []int64{8, 3, 3}, 10, 1},  // by the rule; without 0 there would be two
	} {
		tr := &trace{requests: test.requests, keys: int(slices.Max(test.requests)) + 1, sizes: test.sizes}
		if got := opt(tr, budget{max: test.max, sizes: test.sizes}) * float64(len(test.requests)); int(got+0.5) != test.hits {
			t.Errorf("%v of sizes %v in %d: %v hits, want %d", test.requests, test.sizes, test.max, got, test.hits)
		}
	}
}

// All caches are used so that they keep what there is room for.
func TestCachesKeepWhatThereIsRoomFor(t *testing.T) {
	sizes := make([]int64, 500)
	for i := range sizes {
		sizes[i] = 1000 + int64(i*7919%1000)
	}
	test := func(p policy, b budget) {
		has := p.make(b)
		for range 5 {
			for key := range int32(500) {
				has(key)
			}
		}
		hits := 0
		for key := range int32(500) {
			if has(key) {
				hits++
			}
		}
		if hits < 400 {
			t.Errorf("%s, %d for 500 keys: %d hits", p.name, b.max, hits)
		}
	}
	for _, p := range slices.Concat(policies, byEntries) {
		test(p, budget{1000, 1000, nil})
	}
	for _, p := range policies {
		test(p, budget{1_000_000, 600, sizes})
	}
}

// No cache keeps more bytes than it may. Each key is asked for once at last, so hits are what was there.
func TestCachesKeepTheirBudgetOfBytes(t *testing.T) {
	const keys, most = 2000, 300_000
	sizes := make([]int64, keys+1)
	for i := range sizes {
		sizes[i] = 500 + int64(i*7919%1000)
	}
	sizes[keys] = most + 1
	for _, p := range policies {
		has := p.make(budget{most, most / 1000, sizes})
		for range 3 {
			for key := range int32(keys) {
				has(key)
			}
		}
		for range 2 {
			if has(keys) {
				t.Errorf("%s keeps what is larger than all it may keep", p.name)
			}
		}
		var bytes int64
		for key := int32(keys - 1); key >= 0; key-- {
			if has(key) {
				bytes += sizes[key]
			}
		}
		if bytes > most || bytes == 0 {
			t.Errorf("%s keeps %d bytes of %d", p.name, bytes, most)
		}
	}
}

func TestReadTellsObjectsByKeyOrBySizeToo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.gz")
	file := must(os.Create(path))
	plain := gzip.NewWriter(file)
	fmt.Fprint(plain, "7 100\n8 50\n7 100\n7 200\n8 50\n")
	if err := plain.Close(); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	tr := must(read(path, math.MaxInt, false))
	if tr.name != "t" || tr.keys != 2 || !slices.Equal(tr.requests, []int32{0, 1, 0, 0, 1}) || tr.sizes != nil {
		t.Errorf("by keys: %+v", tr)
	}
	if b := tr.budget(0.5); b.max != 1 || b.entries != 1 {
		t.Errorf("half of it: %+v", b)
	}
	tr = must(read(path, math.MaxInt, true))
	if tr.keys != 3 || !slices.Equal(tr.requests, []int32{0, 1, 0, 2, 1}) || !slices.Equal(tr.sizes, []int64{100, 50, 200}) {
		t.Errorf("by sizes too: %+v", tr)
	}
	if b := tr.budget(0.5); b.max != 175 || b.entries != 1 {
		t.Errorf("half of its bytes: %+v", b)
	}
}
