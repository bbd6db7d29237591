package checker

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

var (
	lasting = flag.Duration("for", 8*time.Second, "run seeds for `so long`, if -seeds is not given")
	seeds   = flag.Uint64("seeds", 0, "run `so many` seeds, from -first")
	first   = flag.Uint64("first", 0, "the first seed; 0: one by the time of day")
	times   = flag.Int("times", 1, "run each seed `so often`")

	membership = flag.Bool("membership", true, "in three of four seeds processes come and go")
	exact      = flag.Bool("exact", false, "where processes only join and leave, report writes that fail, and values without a source that get lost")
)

// TestRandomHistories makes clusters work, a seed each, and checks what came of it. To see a failure again:
//
//	go test ./checker -run RandomHistories -first SEED -seeds 1
//
// with the other flags it was found with, and -times 20: what Shoal draws at random, and what happens at the same instant,
// is not the seed's.
func TestRandomHistories(t *testing.T) {
	next := *first
	if next == 0 {
		next = uint64(time.Now().UnixNano() >> 20)
	}
	last := ^uint64(0)
	if *seeds > 0 {
		last = next + *seeds - 1
	}
	end := time.Now().Add(*lasting)
	var (
		mu      sync.Mutex // guards what follows
		runs    = make(map[peers]int)
		all     result
		workers sync.WaitGroup
	)
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for {
				mu.Lock()
				seed := next
				next++
				mu.Unlock()
				if seed > last || *seeds == 0 && time.Now().After(end) || t.Failed() {
					return
				}
				r := runSeed(t, seed)
				res := r.check()
				for n := 1; n < *times && len(res.bad) == 0; n++ {
					r = runSeed(t, seed)
					res = r.check()
				}
				for _, b := range res.bad[:min(len(res.bad), 3)] {
					t.Errorf("seed %d (%v): %s", seed, r.peers, b)
				}
				if len(res.bad) > 0 {
					t.Errorf("seed %d: %d violations; again: go test ./checker -run RandomHistories -first %d -seeds 1 -times 20 -membership=%v -exact=%v",
						seed, len(res.bad)+res.more, seed, *membership, *exact)
				}
				mu.Lock()
				runs[r.peers]++
				all.bad = append(all.bad, res.bad...)
				all.more += res.more
				all.calls += res.calls
				all.undecided += res.undecided
				all.refused += res.refused
				all.missing += res.missing
				all.kept += res.kept
				all.losing += res.losing
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	for _, p := range slices.Sorted(maps.Keys(runs)) {
		fmt.Printf("%d seeds in which %v\n", runs[p], p)
	}
	fmt.Printf("%d calls, %d violations, %d orders of a key not decided\n", all.calls, len(all.bad)+all.more, all.undecided)
	if *membership {
		fmt.Printf("where processes only joined and left, %d writes failed, and %d gets missed a value without a source\n", all.refused, all.missing)
		fmt.Printf("of %d seeds in which several processes keep each value, some were lost in %d\n", all.kept, all.losing)
	}
}

const s = time.Second

// The rules must find what is wrong, or nothing they find means anything.
func TestRulesFindWhatIsWrong(t *testing.T) {
	err := errors.New("not told")
	loaded := func(calls ...call) *history {
		return &history{calls: calls, faded: map[string]map[int]time.Duration{"k": {1: 10 * s, 2: never}}}
	}
	write := call{kind: remove, key: "k", start: 11 * s, end: 12 * s}
	failed := call{kind: remove, key: "k", start: 11 * s, end: 12 * s, err: err}
	for name, test := range map[string]struct {
		h     *history
		stale int
	}{
		"old after a write":        {loaded(write, call{kind: get, key: "k", value: 1, start: 13 * s, end: 14 * s}), 1},
		"new after a write":        {loaded(write, call{kind: get, key: "k", value: 2, start: 13 * s, end: 14 * s}), 0},
		"old during a write":       {loaded(write, call{kind: get, key: "k", value: 1, start: 11 * s, end: 14 * s}), 0},
		"old after one that fails": {loaded(failed, call{kind: get, key: "k", value: 1, start: 13 * s, end: 14 * s}), 0},
		"old when all has healed":  {loaded(failed, call{kind: get, key: "k", value: 1, start: 13 * s, end: 14 * s, final: true}), 1},
		"of another key":           {loaded(write, call{kind: get, key: "other", value: 1, start: 13 * s, end: 14 * s}), 0},
		"old after a purge":        {loaded(call{kind: purge, start: 11 * s, end: 12 * s}, call{kind: get, key: "k", value: 1, start: 13 * s, end: 14 * s}), 1},
		"set again meanwhile":      {loaded(write, call{kind: set, key: "k", value: 1, start: 9 * s, end: 12 * s}, call{kind: get, key: "k", value: 1, start: 13 * s, end: 14 * s}), 0},
		"loaded while cut off": {&history{
			calls:  []call{write, {kind: get, key: "k", value: 1, start: 13 * s, end: 14 * s, source: "getter"}},
			faded:  map[string]map[int]time.Duration{"k": {1: 10 * s}},
			faults: []interval{{13 * s, 14 * s}},
		}, 0},
		"loaded long after that": {&history{
			calls:  []call{write, {kind: get, key: "k", value: 1, start: 23 * s, end: 24 * s, source: "getter"}},
			faded:  map[string]map[int]time.Duration{"k": {1: 10 * s}},
			faults: []interval{{13 * s, 14 * s}},
		}, 1},
		"a copy while cut off": {&history{
			calls:  []call{write, {kind: get, key: "k", value: 1, start: 13 * s, end: 14 * s, source: "memory"}},
			faded:  map[string]map[int]time.Duration{"k": {1: 10 * s}},
			faults: []interval{{13 * s, 14 * s}},
		}, 1},
	} {
		if bad, _ := test.h.stale(); len(bad) != test.stale {
			t.Errorf("%s: %v", name, bad)
		}
	}

	sides := split{interval{5 * s, 60 * s}, 30 * s, []int{0, 0, 1}}
	for name, test := range map[string]struct {
		cache      int // that asks
		start      time.Duration
		written    time.Duration
		value      int
		stale, few int
	}{
		"the same side":               {1, 13 * s, 11 * s, 1, 1, 0},
		"the other side":              {2, 13 * s, 11 * s, 1, 0, 0},
		"written before":              {2, 13 * s, 2 * s, 1, 1, 0},
		"healed, not all told":        {1, 40 * s, 11 * s, 1, 0, 0},
		"healed, all told, own side":  {1, 70 * s, 11 * s, 1, 1, 0},
		"healed, all told, other one": {2, 70 * s, 11 * s, 1, 1, 0},
		"lost":                        {1, 70 * s, 11 * s, 0, 0, 1},
	} {
		h := &history{splits: []split{sides}, forgets: true, calls: []call{
			{kind: set, key: "k", value: 1, start: s / 2, end: s},
			{kind: set, key: "k", value: 2, start: test.written, end: test.written + s},
			{kind: get, key: "k", cache: test.cache, value: test.value, start: test.start, end: test.start + s},
		}}
		if bad, few := h.stale(); len(bad) != test.stale || len(few) != test.few {
			t.Errorf("%s: %v, %v", name, bad, few)
		}
	}

	for name, test := range map[string]struct {
		err error
		set time.Duration
		few int
	}{
		"set while a remove goes on": {context.DeadlineExceeded, 13 * s, 0},
		"set long after that":        {context.DeadlineExceeded, 18 * s, 1},
		"set after one that fails":   {err, 13 * s, 1},
	} {
		h := &history{forgets: true, calls: []call{
			{kind: remove, key: "k", start: 11 * s, end: 12 * s, err: test.err},
			{kind: set, key: "k", value: 1, start: test.set, end: test.set + s},
			{kind: get, key: "k", start: 24 * s, end: 25 * s},
		}}
		if bad, few := h.stale(); len(bad) != 0 || len(few) != test.few {
			t.Errorf("%s: %v, %v", name, bad, few)
		}
	}

	slow := &history{calls: []call{
		{limit: 2 * s, end: 2 * s}, {limit: 2 * s, end: 2*s + slack + 1}, {limit: 30 * s, end: 30 * s},
	}}
	if bad := slow.late(30 * s); len(bad) != 2 {
		t.Errorf("late: %v", bad)
	}
	failing := &history{calls: []call{
		{kind: set, end: s, limit: 2 * s, err: err}, {kind: set, end: s, limit: s, err: err}, {kind: set, end: s, limit: 2 * s, err: err, leaving: true}, {kind: set},
	}}
	if bad := failing.refused(); len(bad) != 1 {
		t.Errorf("refused: %v", bad)
	}
	gone := loaded(failed, call{kind: get, key: "k", value: 1, start: 13 * s, end: 14 * s, final: true})
	gone.calls[0].orphan = true
	if bad, _ := gone.stale(); len(bad) != 0 {
		t.Errorf("a write that nobody is there to tell of: %v", bad)
	}

	for name, test := range map[string]struct {
		value int
		write call
		bad   int
	}{
		"what had gone is there in the end": {1, failed, 1},
		"what there is, too":                {2, failed, 0},
		"nobody is there to tell of it":     {1, gone.calls[0], 0},
	} {
		h := loaded(test.write, call{kind: set, key: "k", value: 1, start: 9 * s, end: 10 * s, err: err}, call{kind: get, key: "k", value: test.value, start: 13 * s, end: 14 * s, final: true})
		if bad := h.unhealed(); len(bad) != test.bad {
			t.Errorf("%s: %v", name, bad)
		}
	}
	overlapping := loaded(call{kind: remove, key: "k", start: 10 * s, end: 12 * s}, call{kind: set, key: "k", value: 1, start: 9 * s, end: 11 * s},
		call{kind: get, key: "k", value: 1, start: 13 * s, end: 14 * s, final: true})
	if bad := overlapping.unhealed(); len(bad) != 0 {
		t.Errorf("set while it was replaced: %v", bad)
	}

	lent := loaded(write, call{kind: get, key: "k", value: 1, start: 13 * s, end: 14 * s, source: "peer"})
	lent.lends, lent.faults = true, []interval{{8 * s, 9 * s}}
	if bad, _ := lent.stale(); len(bad) != 0 {
		t.Errorf("lent by who stood in: %v", bad)
	}

	adds := func(sums ...int) (calls []call) {
		for i, sum := range sums {
			calls = append(calls, call{kind: add, key: "k", value: 1, sum: sum, start: time.Duration(i) * s, end: time.Duration(i)*s + 1})
		}
		return calls
	}
	for name, test := range map[string]struct {
		calls     []call
		unordered bool
	}{
		"counted":          {adds(1, 2, 3), false},
		"lost":             {adds(1, 2, 2), true},
		"counted twice":    {adds(1, 3, 4), true},
		"may have counted": {append(adds(1, 3, 4), call{kind: add, key: "k", value: 1, start: s / 2, end: s, err: err}), false},
		"read after it was set": {[]call{
			{kind: set, key: "k", value: 1, start: 0, end: s}, {kind: get, key: "k", value: 1, start: 2 * s, end: 3 * s},
		}, false},
		"read before it was set": {[]call{
			{kind: get, key: "k", value: 1, start: 0, end: s}, {kind: set, key: "k", value: 1, start: 2 * s, end: 3 * s},
		}, true},
		"back and forth": {[]call{
			{kind: set, key: "k", value: 1, start: 0, end: s}, {kind: set, key: "k", value: 2, start: 2 * s, end: 9 * s},
			{kind: get, key: "k", value: 2, start: 3 * s, end: 4 * s}, {kind: get, key: "k", value: 1, start: 5 * s, end: 6 * s},
		}, true},
	} {
		h := history{calls: slices.Clone(test.calls)}
		bad, unknown := h.unordered(10 * time.Second)
		if (len(bad) > 0) != test.unordered || unknown > 0 {
			t.Errorf("%s: %v", name, bad)
		}
	}

	h := history{calls: append(adds(1, 2), call{kind: get, key: "k", value: 1, start: 3 * s, end: 4 * s})}
	if bad, _ := h.lost(); len(bad) != 1 {
		t.Error("an add that was lost was not noticed")
	}
	h = history{calls: []call{{kind: get, key: "k", value: 1, final: true}, {kind: get, key: "k", value: 2, final: true}}}
	if len(h.differ()) != 1 {
		t.Error("that two caches differ was not noticed")
	}
}
