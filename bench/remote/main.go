//go:build unix

// Remote measures what a get costs when another process holds the value:
//
//	go run ./bench/remote [-systems regexp] [-only gets|batches|mixed] [-rounds n] [-time d] [-svg prefix]
//		[-sizes bytes,…] [-callers n,…]
//
// Two processes talk over TCP on the loopback: this one asks, and one that it starts holds the values. The asker of Shoal
// and of groupcache owns nothing and keeps no copies, so that every get goes to the peer. memcached and redis are measured
// where their servers are installed. Limit is no cache but a yardstick, see limit.go: what one connection that all callers
// share can do, when an exchange has nothing in it but the key and the value.
//
// Callers ask without pause, each for keys of its own, drawn uniformly: no two wait for the same exchange. There are as
// many keys as have 128 MiB of values, but no more than 100,000. A batch is 100 keys in one call; groupcache has no such
// call, and is asked by 100 goroutines. Every value is compared with what it should be. The asker, too, holds 128 MiB,
// as a process that owns keys would, so that its garbage is collected as often as in such a process.
//
// Each cell is the median of the rounds, and in each round all systems have their turn, so that noise of the machine hits
// all alike. A turn is a warm-up and then an interval, of which this is printed:
//
//   - gets/s, or keys/s: those that were begun in the interval, by the time until the last had its answer;
//   - p50, p99: of the time that a call takes, as its caller sees it; of a batch, that is a call for 100 keys;
//   - CPU: seconds of both processes, user and system, that a million gets, or keys, take;
//   - allocations a get, or key, in the asking process and in the answering one, if that is written in Go.
//
// In the last table, small gets share the peer with callers that do nothing but get values of 1 MiB.
package main

import (
	"flag"
	"fmt"
	"log"
	"math"
	"math/bits"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoalcache/shoal/bench/internal/plot"
)

const (
	batch       = 100
	mostKeys    = 100_000
	valueBytes  = 128 << 20 // of all values of a size
	mostBatched = 1 << 20   // bytes of values in one call

	smallSize, smallCallers = 128, 16 // of the mixed load
	largeSize, largeCallers = 1 << 20, 2
)

// values are what a server holds: n of a size, all different but for a repetition after some thousands.
type values struct {
	size  int
	keys  []string
	bytes []byte
}

func newValues(size, n int) values {
	v := values{size: size, keys: make([]string, n), bytes: make([]byte, size+5000)}
	rand.NewChaCha8([32]byte{}).Read(v.bytes)
	for i := range v.keys {
		v.keys[i] = fmt.Sprintf("%07d.%08d", size, i) // 16 bytes, none of which a URL escapes
	}
	return v
}

// at returns the value of key i. It must not be changed.
func (v values) at(i int) []byte { return v.bytes[i%5000:][:v.size:v.size] }

// keysOf is how many keys there are of a size. All callers, and batches, must find some of their own.
func keysOf(size int) int { return min(max(valueBytes/size, 1), mostKeys) }

// A load is callers that ask for values without pause.
type load struct {
	values
	callers int
	batch   int // keys a call
}

func main() {
	if what := os.Getenv(serverEnv); what != "" {
		serve(what)
		return
	}
	log.SetFlags(0)
	log.SetPrefix("remote: ")
	pattern := flag.String("systems", "", "measure only systems whose names match this `regexp`, ignoring case")
	only := flag.String("only", "", "measure only `gets|batches|mixed`")
	sizes, callers := numbers{128, 1 << 10, 64 << 10}, numbers{1, 16, 256}
	flag.Var(&sizes, "sizes", "of values, in `bytes,…`")
	flag.Var(&callers, "callers", "`n,…` of them; batches have the first two")
	rounds := flag.Int("rounds", 3, "of which the median is printed")
	interval := flag.Duration("time", time.Second, "that is measured in each turn, after a warm-up of a quarter of it")
	svg := flag.String("svg", "", "draw gets/s and CPU in files whose names begin with this `prefix`")
	flag.Parse()
	if !slices.Contains([]string{"", "gets", "batches", "mixed"}, *only) {
		log.Fatalf("-only %q is not gets, batches or mixed", *only)
	}
	match, err := regexp.Compile("(?i)" + *pattern)
	if err != nil {
		log.Fatal(err)
	}
	var chosen []system
	for _, s := range systems {
		if !match.MatchString(s.name) {
			continue
		}
		if _, err := exec.LookPath(s.binary); s.binary != "" && err != nil {
			fmt.Printf("%s is skipped: %v.\n\n", s.name, err)
			continue
		}
		chosen = append(chosen, s)
	}
	held := make([]byte, valueBytes) // takes no memory as long as it is not touched, but the garbage collector counts it
	defer runtime.KeepAlive(held)

	var tables []*table
	for _, size := range sizes {
		v := newValues(size, keysOf(size))
		gets, batches := &table{title: "Gets of " + sizeText(size)}, &table{title: "100 keys a call of " + sizeText(size)}
		for i, n := range callers {
			if *only != "batches" && *only != "mixed" && n <= len(v.keys) {
				gets.loads = append(gets.loads, load{v, n, 1})
			}
			if *only != "gets" && *only != "mixed" && i < 2 && n*batch <= len(v.keys) && batch*size <= mostBatched {
				batches.loads = append(batches.loads, load{v, n, batch})
			}
		}
		if len(gets.loads)+len(batches.loads) == 0 {
			continue
		}
		clients := connect(chosen, v)
		for _, t := range []*table{gets, batches} {
			if len(t.loads) == 0 {
				continue
			}
			t.measure(clients, *rounds, *interval)
			t.print()
			if *svg != "" {
				t.draw(*svg)
			}
			tables = append(tables, t)
		}
		disconnect(clients)
	}
	if len(tables) > 0 {
		printRatios(tables)
	}
	if *only == "" || *only == "mixed" {
		printMixed(chosen, *rounds, *interval)
	}
}

// numbers are a flag's value.
type numbers []int

func (n *numbers) String() string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(*n), " ", ","), "[]")
}

func (n *numbers) Set(text string) error {
	*n = nil
	for field := range strings.SplitSeq(text, ",") {
		i, err := strconv.Atoi(field)
		if err != nil || i < 1 || i > largeSize {
			return fmt.Errorf("%q is not a number from 1 to %d", field, largeSize)
		}
		*n = append(*n, i)
	}
	return nil
}

// run puts loads on c, all at once, for as long as d, and returns for each what its calls took. The time it returns has
// passed until the last of them was over.
func run(c *client, d time.Duration, loads ...load) ([]times, time.Duration) {
	begin := time.Now()
	var stop atomic.Bool
	time.AfterFunc(d, func() { stop.Store(true) })
	all := make([]times, len(loads))
	var mu sync.Mutex // guards all
	var wg sync.WaitGroup
	for i, l := range loads {
		for caller := range l.callers {
			wg.Go(func() {
				var mine times
				if err := l.call(c, caller, &stop, &mine); err != nil {
					log.Fatalf("%s, %d callers, %d keys a call: %v", c.name, l.callers, l.batch, err)
				}
				mu.Lock()
				defer mu.Unlock()
				all[i].add(&mine)
			})
		}
	}
	wg.Wait()
	return all, time.Since(begin)
}

// call is one caller's part of l.
func (l load) call(c *client, caller int, stop *atomic.Bool, took *times) error {
	from, to := caller*len(l.keys)/l.callers, (caller+1)*len(l.keys)/l.callers
	rng := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	keys, want := make([]string, l.batch), make([][]byte, l.batch)
	for !stop.Load() {
		at := rng.IntN(to - from)
		for i := range keys {
			k := from + (at+i*7919)%(to-from) // a prime, so that no key comes twice
			keys[i], want[i] = l.keys[k], l.at(k)
		}
		begin := time.Now()
		var err error
		if l.batch == 1 {
			err = c.get(keys[0], want[0])
		} else {
			err = c.many(keys, want)
		}
		if err != nil {
			return err
		}
		took.took(time.Since(begin))
	}
	return nil
}

// times counts calls by the time that they took, to within 3%.
type times [64 * 32]int

func (t *times) took(d time.Duration) {
	power := max(bits.Len64(uint64(d))-6, 0)
	t[power<<5+int(d>>power)]++
}

func (t *times) add(u *times) {
	for i, n := range u {
		t[i] += n
	}
}

func (t *times) calls() (n int) {
	for _, m := range t {
		n += m
	}
	return n
}

// below returns the time, in milliseconds, that this share of calls took at most.
func (t *times) below(share float64) float64 {
	left := int(math.Ceil(share * float64(t.calls())))
	for i, n := range t {
		if left -= n; left <= 0 {
			power := max(i>>5-1, 0)
			return float64((i-power<<5)<<power+1<<power>>1) / 1e6
		}
	}
	return math.NaN()
}

// A result is what came of a load in one interval; all but the times is of a get, or of a key of a batch.
type result struct {
	rate              float64 // a second
	p50, p99          float64 // milliseconds a call
	cpu               float64 // seconds a million
	asking, answering float64 // allocations
}

// measure gives c its turn. With more than one load, CPU and allocations are those of all, by the first one's gets.
func measure(c *client, d time.Duration, loads ...load) []result {
	run(c, d/4, loads...)
	runtime.GC() // others' garbage, too
	here, there := usageHere(), c.server.usage()
	all, elapsed := run(c, d, loads...)
	here, there = usageHere().since(here), c.server.usage().since(there)
	results := make([]result, len(loads))
	for i, l := range loads {
		n := float64(all[i].calls() * l.batch)
		results[i] = result{
			rate: n / elapsed.Seconds(), p50: all[i].below(0.5), p99: all[i].below(0.99),
			cpu: (here.cpu + there.cpu).Seconds() / n * 1e6, asking: here.mallocs / n, answering: there.mallocs / n,
		}
	}
	return results
}

// median returns of each field the median, of rounds.
func median(rounds []result) result {
	of := func(field func(result) float64) float64 {
		var all []float64
		for _, r := range rounds {
			all = append(all, field(r))
		}
		slices.Sort(all)
		return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
	}
	return result{
		rate: of(func(r result) float64 { return r.rate }),
		p50:  of(func(r result) float64 { return r.p50 }), p99: of(func(r result) float64 { return r.p99 }),
		cpu:    of(func(r result) float64 { return r.cpu }),
		asking: of(func(r result) float64 { return r.asking }), answering: of(func(r result) float64 { return r.answering }),
	}
}

// A table is what is printed of loads that differ in their number of callers.
type table struct {
	title   string
	loads   []load
	systems []string
	results [][]result // of each load, in the order of systems
}

func (t *table) measure(clients []*client, rounds int, d time.Duration) {
	for _, c := range clients {
		t.systems = append(t.systems, c.name)
	}
	for _, l := range t.loads {
		all := make([][]result, len(clients))
		for range rounds {
			for i, c := range clients {
				all[i] = append(all[i], measure(c, d, l)...)
			}
		}
		var medians []result
		for _, rounds := range all {
			medians = append(medians, median(rounds))
		}
		t.results = append(t.results, medians)
	}
}

func (t *table) print() {
	unit := "gets"
	if t.loads[0].batch > 1 {
		unit = "keys"
	}
	fmt.Printf("### %s\n\n| callers | system | %s/s | p50, ms | p99, ms | CPU, s a million %[2]s ", t.title, unit)
	fmt.Println("| allocations: asking / answering |")
	fmt.Println("|--:|---|--:|--:|--:|--:|--:|")
	for i, l := range t.loads {
		for j, name := range t.systems {
			r := t.results[i][j]
			answering := "–"
			if !math.IsNaN(r.answering) {
				answering = fmt.Sprintf("%.1f", r.answering)
			}
			fmt.Printf("| %d | %s | %.0f | %.3f | %.3f | %.1f | %.1f / %s |\n",
				l.callers, name, r.rate, r.p50, r.p99, r.cpu, r.asking, answering)
		}
	}
	fmt.Println()
}

// draw writes two charts: what is got a second, and the CPU that it takes.
func (t *table) draw(prefix string) {
	unit := "gets"
	if t.loads[0].batch > 1 {
		unit = "keys"
	}
	rates, cpu := make([]plot.Series, len(t.loads)), make([]plot.Series, len(t.loads))
	for i, l := range t.loads {
		rates[i].Name = fmt.Sprintf("%d callers", l.callers)
		cpu[i].Name = rates[i].Name
		for _, r := range t.results[i] {
			rates[i].Values = append(rates[i].Values, r.rate/1000)
			cpu[i].Values = append(cpu[i].Values, r.cpu)
		}
	}
	name := fmt.Sprintf("%s-%s-%d", prefix, unit, t.loads[0].size)
	if err := plot.Bars(name+"-rate.svg", t.title, "thousand "+unit+" a second", t.systems, rates...); err != nil {
		log.Fatal(err)
	}
	if err := plot.Bars(name+"-cpu.svg", t.title, "CPU seconds of both processes, a million "+unit, t.systems, cpu...); err != nil {
		log.Fatal(err)
	}
}

// printRatios prints how Shoal compares with those that matter.
func printRatios(tables []*table) {
	others := []string{tuned, pipelined, limit}
	fmt.Print("### Shoal by others\n\n|  | callers |")
	for _, of := range []string{"gets/s, or keys/s", "CPU"} {
		for _, other := range others {
			fmt.Printf(" %s: by %s |", of, other)
		}
	}
	fmt.Println("\n|---|--:|" + strings.Repeat("--:|", 2*len(others)))
	for _, t := range tables {
		for i, l := range t.loads {
			fmt.Printf("| %s | %d |", t.title, l.callers)
			of := func(name string, field func(result) float64) float64 {
				if j := slices.Index(t.systems, name); j >= 0 {
					return field(t.results[i][j])
				}
				return math.NaN()
			}
			for _, field := range []func(result) float64{
				func(r result) float64 { return r.rate },
				func(r result) float64 { return r.cpu },
			} {
				for _, other := range others {
					if ratio := of(shoals, field) / of(other, field); math.IsNaN(ratio) {
						fmt.Print(" – |")
					} else {
						fmt.Printf(" %.2f |", ratio)
					}
				}
			}
			fmt.Println()
		}
	}
	fmt.Println()
}

// printMixed measures small gets alone, and beside large ones.
func printMixed(chosen []system, rounds int, d time.Duration) {
	chosen = slices.DeleteFunc(slices.Clone(chosen), func(s system) bool { return !s.mixed })
	if len(chosen) == 0 {
		return
	}
	small := load{newValues(smallSize, keysOf(smallSize)), smallCallers, 1}
	large := load{newValues(largeSize, keysOf(largeSize)), largeCallers, 1}
	clients := connect(chosen, small.values, large.values)
	defer disconnect(clients)
	alone, beside, larger := make([][]result, len(clients)), make([][]result, len(clients)), make([][]result, len(clients))
	for range rounds {
		for i, c := range clients {
			alone[i] = append(alone[i], measure(c, d, small)...)
			both := measure(c, d, small, large)
			beside[i], larger[i] = append(beside[i], both[0]), append(larger[i], both[1])
		}
	}
	fmt.Printf("### Gets of %s by %d callers, beside gets of %s by %d\n\n",
		sizeText(smallSize), smallCallers, sizeText(largeSize), largeCallers)
	fmt.Println("| system |  | gets/s | p50, ms | p99, ms | large gets/s |\n|---|---|--:|--:|--:|--:|")
	for i, c := range clients {
		r := median(alone[i])
		fmt.Printf("| %s | alone | %.0f | %.3f | %.3f | – |\n", c.name, r.rate, r.p50, r.p99)
		r = median(beside[i])
		fmt.Printf("| %s | beside | %.0f | %.3f | %.3f | %.0f |\n", c.name, r.rate, r.p50, r.p99, median(larger[i]).rate)
	}
}

func sizeText(bytes int) string {
	switch {
	case bytes >= 1<<20 && bytes%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", bytes>>20)
	case bytes >= 1<<10 && bytes%(1<<10) == 0:
		return fmt.Sprintf("%d KiB", bytes>>10)
	}
	return fmt.Sprintf("%d B", bytes)
}
