// Hitratio replays traces of requests through Shoal's ways of choosing what to keep, and through those of other caches,
// and prints what share of the best possible hit ratio each reaches:
//
//	go run ./bench/hitratio [-policy regexp] [-svg file] trace.gz…
//	go run ./bench/hitratio -bytes [-policy regexp] [-svg file] trace.gz…
//
// A trace is lines of a key, or a key and a size, in gzip. The best possible is OPT: Belady's choice, which knows the
// future, and need not keep what it is asked for.
//
// All caches keep the same number of entries, 0.1, 1, 5, 10 and 25% of the trace's keys, whatever their sizes. Loads are
// generated beside the traces given.
//
// With -bytes, all have the same budget of bytes: these shares of what all objects of the trace take, where a key with
// another size is another object. Only traces with sizes are replayed. Packed pays for keys and for its overhead out of
// its budget, as it does in use; the others, and OPT, count the bytes of values alone. OPT goes by the same rule, what is
// needed last goes first, and lets objects above the budget pass by: with sizes that is a strong reference, not a bound.
// Hits are counted by objects, not by bytes. Caches that know only entries are left out.
package main

import (
	"bufio"
	"compress/gzip"
	"flag"
	"fmt"
	"log"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/shoalcache/shoal/bench/internal/plot"
)

var shares = []float64{0.001, 0.01, 0.05, 0.10, 0.25}

// A trace is requests for keys, which are numbered from 0.
type trace struct {
	name     string
	requests []int32
	keys     int
	sizes    []int64 // of the keys; nil where entries are counted
}

// budget returns what a cache may hold of a trace: a share of its entries, or of its bytes.
func (tr *trace) budget(share float64) budget {
	all := int64(tr.keys)
	if tr.sizes != nil {
		all = 0
		for _, size := range tr.sizes {
			all += size
		}
	}
	most := max(int64(share*float64(all)), 1)
	return budget{most, max(int(float64(most)*float64(tr.keys)/float64(all)), 1), tr.sizes}
}

// A budget is what a cache may hold.
type budget struct {
	max     int64   // entries, or bytes if there are sizes
	entries int     // how many these are about
	sizes   []int64 // of the keys, or nil
}

func (b budget) size(key int32) int64 {
	if b.sizes == nil {
		return 1
	}
	return b.sizes[key]
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("hitratio: ")
	most := flag.Int("requests", math.MaxInt, "replay at most so many `requests` of each trace")
	only := flag.String("policy", "", "replay through the policies whose names match this `regexp`")
	bytes := flag.Bool("bytes", false, "budgets are in bytes: replay traces with sizes")
	svg := flag.String("svg", "", "draw mean and worst share of OPT to this `file`")
	flag.Parse()
	wanted := must(regexp.Compile(*only))
	if !*bytes {
		policies = append(policies, byEntries...)
	}
	policies = slices.DeleteFunc(policies, func(p policy) bool { return !wanted.MatchString(p.name) })
	var traces []trace
	for _, path := range flag.Args() {
		tr := must(read(path, *most, *bytes))
		if *bytes && tr.sizes == nil {
			log.Printf("%s has no sizes: left out", path)
			continue
		}
		traces = append(traces, tr)
	}
	if !*bytes {
		traces = append(traces, generated(min(*most, 2_000_000))...)
	}
	if len(policies) == 0 || len(traces) == 0 {
		log.Fatal("nothing to replay")
	}

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
				b := tr.budget(shares[j.share])
				if j.policy < 0 {
					best[j.trace][j.share] = opt(tr, b)
				} else {
					ratios[j.trace][j.policy][j.share] = replay(tr, policies[j.policy].make(b))
				}
			}
		})
	}
	for _, j := range jobs {
		queue <- j
	}
	close(queue)
	wg.Wait()
	of := "keys"
	if *bytes {
		of = "bytes"
	}
	means, worsts := print(traces, ratios, best, of)
	if *svg != "" {
		var names, loads []string
		for _, p := range policies {
			names = append(names, p.name)
		}
		for _, tr := range traces {
			loads = append(loads, tr.name)
		}
		title := fmt.Sprintf("Hit ratio with 0.1 to 25%% of the %s: %s", of, strings.Join(loads, ", "))
		mean, worst := plot.Series{Name: "mean", Values: means}, plot.Series{Name: "worst", Values: worsts}
		if err := plot.Bars(*svg, title, "% of OPT's", names, mean, worst); err != nil {
			log.Fatal(err)
		}
	}
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

// print writes the hit ratios of each policy, their mean share of OPT's, and the worst, and returns the latter two.
func print(traces []trace, ratios [][][]float64, best [][]float64, of string) (means, worsts []float64) {
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
				share := ratios[t][p][s] / best[t][s]
				sum, n, worst = sum+share, n+1, min(worst, share)
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
		means, worsts = append(means, 100*sum/n), append(worsts, 100*worst)
	}
	fmt.Print("| OPT | 100 | 100 |")
	for t := range traces {
		for s := range shares {
			fmt.Printf("%s%.1f", []string{" ", " / "}[min(s, 1)], 100*best[t][s])
		}
		fmt.Print(" |")
	}
	fmt.Printf("\n\nEach cell: hit ratios in per cent at 0.1 / 1 / 5 / 10 / 25%% of the %s.\n", of)
	return means, worsts
}

// read returns the first requests of a file. Only with bytes does it look at sizes; then a key of another size is another
// object.
func read(path string, most int, bytes bool) (trace, error) {
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
	lines := bufio.NewScanner(plain)
	for len(tr.requests) < most && lines.Scan() {
		object, sized, hasSize := strings.Cut(lines.Text(), " ")
		if bytes {
			object = lines.Text()
		}
		i, ok := index[object]
		if !ok {
			i = int32(len(index))
			index[object] = i
		}
		tr.requests = append(tr.requests, i)
		if !ok && bytes && hasSize {
			size, err := strconv.ParseInt(sized, 10, 64)
			if err != nil {
				return trace{}, fmt.Errorf("%s: line %d: %w", path, len(tr.requests), err)
			}
			tr.sizes = append(tr.sizes, max(size, 1)) // who holds something holds a byte
		}
	}
	tr.keys = len(index)
	if tr.sizes != nil && len(tr.sizes) != tr.keys {
		return trace{}, fmt.Errorf("%s: only some lines have sizes", path)
	}
	return tr, lines.Err()
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
