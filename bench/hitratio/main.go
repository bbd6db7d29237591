// Hitratio replays traces of requests through Shoal's ways of choosing what to keep, and through those of other caches,
// and prints what share of the best possible hit ratio each reaches:
//
//	go run ./bench/hitratio trace.gz…
//
// A trace is lines of a key, or a key and a size, in gzip. Without one, loads are generated. The best possible is OPT:
// Belady's choice, which knows the future, and need not keep what it is asked for. All caches keep the same number of
// entries: 0.1, 1, 5, 10 and 25% of the trace's keys.
package main

import (
	"bufio"
	"compress/gzip"
	"container/heap"
	"flag"
	"fmt"
	"log"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/Yiling-J/theine-go"
	"github.com/dgraph-io/ristretto/v2"
	gclru "github.com/golang/groupcache/lru"
	arc "github.com/hashicorp/golang-lru/arc/v2"
	hlru "github.com/hashicorp/golang-lru/v2"
	"github.com/maypok86/otter/v2"

	"github.com/shoalcache/shoal/lru"
	"github.com/shoalcache/shoal/packed"
)

var shares = []float64{0.001, 0.01, 0.05, 0.10, 0.25}

// A trace is requests for keys, which are numbered from 0.
type trace struct {
	name     string
	requests []int32
	keys     int
}

// A policy makes a cache of n entries: a function that reports whether a key is there, and puts it there if not.
type policy struct {
	name string
	make func(n int) func(key int32) bool
}

var policies = []policy{
	{"Shoal: packed", func(n int) func(int32) bool { return newPacked(n) }},
	{"Shoal: lru", func(n int) func(int32) bool {
		var c lru.Cache[int32, struct{}]
		return func(key int32) bool {
			if _, ok := c.Get(key); ok {
				return true
			}
			c.Add(key, struct{}{}, 1)
			for c.Len() > n {
				c.RemoveOldest()
			}
			return false
		}
	}},
	{"groupcache", func(n int) func(int32) bool {
		c := gclru.New(n)
		return func(key int32) bool {
			_, ok := c.Get(key)
			if !ok {
				c.Add(key, nil)
			}
			return ok
		}
	}},
	{"hashicorp LRU", func(n int) func(int32) bool {
		c := must(hlru.New[int32, struct{}](n))
		return func(key int32) bool {
			_, ok := c.Get(key)
			if !ok {
				c.Add(key, struct{}{})
			}
			return ok
		}
	}},
	{"hashicorp ARC", func(n int) func(int32) bool {
		c := must(arc.NewARC[int32, struct{}](n))
		return func(key int32) bool {
			_, ok := c.Get(key)
			if !ok {
				c.Add(key, struct{}{})
			}
			return ok
		}
	}},
	{"otter", func(n int) func(int32) bool {
		c := otter.Must(&otter.Options[int32, struct{}]{MaximumSize: n, Executor: func(fn func()) { fn() }})
		return func(key int32) bool {
			_, ok := c.GetIfPresent(key)
			if !ok {
				c.Set(key, struct{}{})
			}
			return ok
		}
	}},
	{"theine", func(n int) func(int32) bool {
		c := must(theine.NewBuilder[int32, struct{}](int64(n)).Build())
		return func(key int32) bool {
			_, ok := c.Get(key)
			if !ok {
				c.Set(key, struct{}{}, 1)
				c.Wait()
			}
			return ok
		}
	}},
	{"ristretto", func(n int) func(int32) bool {
		c := must(ristretto.NewCache(&ristretto.Config[int32, struct{}]{NumCounters: int64(10 * n), MaxCost: int64(n), BufferItems: 64, IgnoreInternalCost: true}))
		return func(key int32) bool {
			_, ok := c.Get(key)
			if !ok {
				c.Set(key, struct{}{}, 1)
				c.Wait()
			}
			return ok
		}
	}},
}

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}

// packedKey makes a key of 16 bytes, as packed entries have at least.
func packedKey(key int32) string { return fmt.Sprintf("key %012d", key) }

const packedValue = 100

func putPacked(c *packed.Cache, key int32, value []byte) {
	c.Put(packedKey(key), value, func(packed.Meta, bool) (packed.Meta, bool) { return packed.Meta{Version: 1}, true })
	c.Shrink()
}

// newPacked makes a packed cache that keeps n entries on average: its bound is in bytes, and what an entry takes of it
// depends on how many there are.
func newPacked(n int) func(int32) bool {
	value := make([]byte, packedValue)
	holds := func(bytes int64) float64 {
		c := packed.New(bytes, func() int64 { return 0 }, nil)
		var sum, looks float64
		for i := range 3*n + 100 {
			putPacked(c, int32(i), value)
			if i > 2*n && (n < 1000 || i%64 == 0) {
				sum += float64(c.Stats().Entries)
				looks++
			}
		}
		return sum / looks
	}
	low, high := int64(0), int64(n)*1000+4096
	for range 12 {
		if mid := (low + high) / 2; holds(mid) > float64(n) {
			high = mid
		} else {
			low = mid
		}
	}
	c := packed.New(low, func() int64 { return 0 }, nil)
	return func(key int32) bool {
		if _, ok := c.Get(packedKey(key)); ok {
			return true
		}
		putPacked(c, key, value)
		return false
	}
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("hitratio: ")
	most := flag.Int("requests", math.MaxInt, "replay at most so many `requests` of each trace")
	flag.Parse()
	var traces []trace
	for _, path := range flag.Args() {
		traces = append(traces, must(read(path, *most)))
	}
	traces = append(traces, generated(min(*most, 2_000_000))...)

	type cell struct{ trace, policy, share int }
	ratios := make([][][]float64, len(traces))
	best := make([][]float64, len(traces))
	var jobs []cell
	for t := range traces {
		best[t] = make([]float64, len(shares))
		ratios[t] = make([][]float64, len(policies))
		for p := -1; p < len(policies); p++ {
			if p >= 0 {
				ratios[t][p] = make([]float64, len(shares))
			}
			for s := range shares {
				jobs = append(jobs, cell{t, p, s})
			}
		}
	}
	var wg sync.WaitGroup
	queue := make(chan cell)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for j := range queue {
				tr := &traces[j.trace]
				n := max(int(shares[j.share]*float64(tr.keys)), 1)
				if j.policy < 0 {
					best[j.trace][j.share] = opt(tr, n)
				} else {
					ratios[j.trace][j.policy][j.share] = replay(tr, policies[j.policy].make(n))
				}
			}
		})
	}
	for _, j := range jobs {
		queue <- j
	}
	close(queue)
	wg.Wait()
	print(traces, ratios, best)
}

func replay(tr *trace, has func(int32) bool) float64 {
	hits := 0
	for _, key := range tr.requests {
		if has(key) {
			hits++
		}
	}
	return float64(hits) / float64(len(tr.requests))
}

// print writes, for each policy, the share of OPT in each cell, the mean, and the worst.
func print(traces []trace, ratios [][][]float64, best [][]float64) {
	fmt.Print("| policy | mean of OPT | worst |")
	for _, tr := range traces {
		fmt.Printf(" %s |", tr.name)
	}
	fmt.Print("\n|---|--:|--:|", strings.Repeat("---|", len(traces)), "\n")
	for p, pol := range policies {
		var sum, n float64
		worst := math.Inf(1)
		var cells strings.Builder
		for t := range traces {
			for s := range shares {
				of := ratios[t][p][s] / best[t][s]
				sum, n, worst = sum+of, n+1, min(worst, of)
				if s > 0 {
					cells.WriteString(" / ")
				} else {
					cells.WriteString(" ")
				}
				fmt.Fprintf(&cells, "%.1f", 100*ratios[t][p][s])
			}
			cells.WriteString(" |")
		}
		fmt.Printf("| %s | %.1f | %.1f |%s\n", pol.name, 100*sum/n, 100*worst, cells.String())
	}
	fmt.Print("| OPT | 100 | 100 |")
	for t := range traces {
		for s := range shares {
			fmt.Printf("%s%.1f", []string{" ", " / "}[min(s, 1)], 100*best[t][s])
		}
		fmt.Print(" |")
	}
	fmt.Println("\n\nEach cell: hit ratios in per cent at 0.1 / 1 / 5 / 10 / 25% of the keys.")
}

func read(path string, most int) (trace, error) {
	file, err := os.Open(path)
	if err != nil {
		return trace{}, err
	}
	defer file.Close()
	plain, err := gzip.NewReader(file)
	if err != nil {
		return trace{}, err
	}
	tr := trace{name: strings.TrimSuffix(filepath.Base(path), ".gz")}
	index := make(map[string]int32)
	for lines := bufio.NewScanner(plain); lines.Scan() && len(tr.requests) < most; {
		line := lines.Text() // a key of another size is another object
		i, ok := index[line]
		if !ok {
			i = int32(len(index))
			index[line] = i
		}
		tr.requests = append(tr.requests, i)
	}
	tr.keys = len(index)
	return tr, nil
}

// generated are loads as web caches see them: a zipf; one with a quarter of requests for what is asked for once; and one
// whose ranking moves by a quarter to new keys every 100,000 requests.
func generated(n int) []trace {
	load := func(name string, s float64, keys int, once float64, shift int) trace {
		rng := rand.New(rand.NewPCG(1, uint64(keys)))
		upTo, sum := make([]float64, keys), 0.
		ranking := make([]int32, keys)
		for i := range upTo {
			sum += math.Pow(float64(i+1), -s)
			upTo[i], ranking[i] = sum, int32(i)
		}
		next := int32(keys)
		tr := trace{name: name}
		numbers := make(map[int32]int32) // by first appearance
		for i := range n {
			if shift > 0 && i%shift == shift-1 {
				for range keys / 4 {
					ranking[rng.IntN(keys)] = next
					next++
				}
			}
			var key int32
			if rng.Float64() < once {
				key = next
				next++
			} else {
				rank, _ := slices.BinarySearch(upTo, rng.Float64()*sum)
				key = ranking[min(rank, keys-1)]
			}
			number, ok := numbers[key]
			if !ok {
				number = int32(len(numbers))
				numbers[key] = number
			}
			tr.requests = append(tr.requests, number)
		}
		tr.keys = len(numbers)
		return tr
	}
	return []trace{
		load("zipf", 0.99, 1_000_000, 0, 0),
		load("scans", 0.9, 200_000, 0.25, 0),
		load("shifting", 0.99, 500_000, 0, 100_000),
	}
}

// opt returns the best possible hit ratio with n entries: what is needed last goes first, or does not come in.
func opt(tr *trace, n int) float64 {
	const never = math.MaxInt32
	next := make([]int32, len(tr.requests))
	last := make([]int32, tr.keys)
	for i := range last {
		last[i] = never
	}
	for i := len(tr.requests) - 1; i >= 0; i-- {
		next[i] = last[tr.requests[i]]
		last[tr.requests[i]] = int32(i)
	}
	held := make([]int32, tr.keys) // when it is needed next, if it is there; else 0
	var farthest needs
	hits, entries := 0, 0
	for i, key := range tr.requests {
		if held[key] != 0 {
			hits++
		} else {
			entries++
		}
		held[key] = next[i]
		heap.Push(&farthest, need{next[i], key})
		for entries > n {
			f := heap.Pop(&farthest).(need)
			if held[f.key] == f.at {
				held[f.key] = 0
				entries--
			}
		}
	}
	return float64(hits) / float64(len(tr.requests))
}

type need struct{ at, key int32 }

type needs []need

func (h needs) Len() int           { return len(h) }
func (h needs) Less(i, j int) bool { return h[i].at > h[j].at }
func (h needs) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *needs) Push(x any)        { *h = append(*h, x.(need)) }
func (h *needs) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}
