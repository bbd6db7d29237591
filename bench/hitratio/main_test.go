package main

import "testing"

func TestOPTKnowsTheFuture(t *testing.T) {
	for _, test := range []struct {
		requests []int32
		keys, n  int
		hits     int
	}{
		{[]int32{0, 1, 2, 0, 1, 2}, 3, 3, 3},
		{[]int32{0, 1, 2, 0, 1, 2}, 3, 1, 1}, // keeps 0, and lets the others pass by
		{[]int32{0, 1, 2, 0, 1, 2}, 3, 2, 2},
		{[]int32{0, 0, 0, 0}, 1, 1, 3},
		{[]int32{0, 1, 2, 3}, 4, 4, 0},
	} {
		tr := &trace{requests: test.requests, keys: test.keys}
		if got := opt(tr, test.n) * float64(len(test.requests)); int(got+0.5) != test.hits {
			t.Errorf("%v in %d: %v hits, want %d", test.requests, test.n, got, test.hits)
		}
	}
}

// All caches are used so that they keep what there is room for.
func TestCachesKeepWhatThereIsRoomFor(t *testing.T) {
	for _, p := range policies {
		has := p.make(1000)
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
			t.Errorf("%s: %d hits of 500", p.name, hits)
		}
	}
}
