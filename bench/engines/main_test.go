package main

import (
	"slices"
	"testing"
)

// Each cache is used so that it holds what was set, all of it, and nothing else.
func TestCachesHoldWhatWasSet(t *testing.T) {
	const n = 500
	for _, c := range caches {
		e := fill(c, n, 100) // which looks at all but one in a thousand
		for i := range n {
			if b, ok := e.get(key(i)); !ok || b != byte(i) {
				t.Errorf("%s, entry %d: %d, %t", c.name, i, b, ok)
			}
		}
		if _, ok := e.get("key of nothing !"); ok {
			t.Errorf("%s holds what was not set", c.name)
		}
		if e.loads {
			continue
		}
		e.set(key(7), []byte{77})
		if e.settle != nil {
			e.settle()
		}
		if b, ok := e.get(key(7)); !ok || b != 77 {
			t.Errorf("%s, entry set again: %d, %t", c.name, b, ok)
		}
	}
}

func TestZipfAsksForSomeMoreThanForOthers(t *testing.T) {
	asked := make([]int, 1000)
	for _, i := range zipf(len(asked), 100_000) {
		asked[i]++
	}
	slices.Sort(asked)
	if most := asked[len(asked)-1]; most < 12_000 || most > 15_000 { // 13.1%
		t.Errorf("the first is asked for %d times of 100,000", most)
	}
}
