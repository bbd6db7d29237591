// Engines measures what holding a value here costs, beside other caches:
//
//	go run ./bench/engines [-cache regexp] [-entries 1000000,5000000] [-svg prefix]
//
// The first table is the time of a call: 100,000 entries, keys of 16 bytes, values of 128, asked for by a zipf of 0.99, of
// which the first byte is looked at. A time is that of all goroutines together by the number of their calls, the fastest of
// five runs; with 95/5, one call in twenty is a set. Allocations are those of a get.
//
// The second is memory: keys of 16 bytes, values of 100, and the heap that an entry takes beyond these 116; and the time of
// one runtime.GC() with all of them there, the fastest of three.
//
// Each cache is measured in a process of its own, twice or more, so that none meets what another left behind. Times can
// be compared with those of the same run, on a machine that does nothing else.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/Yiling-J/theine-go"
	"github.com/allegro/bigcache/v3"
	"github.com/coocood/freecache"
	"github.com/dgraph-io/ristretto/v2"
	"github.com/golang/groupcache"
	hlru "github.com/hashicorp/golang-lru/v2"
	"github.com/maypok86/otter/v2"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/bench/internal/plot"
	"github.com/shoalcache/shoal/packed"
)

// A cache is what is measured. It is made for n entries with values of size bytes.
type cache struct {
	name string
	make func(n, size int) engine
}

// An engine is a cache in use. A get returns the first byte of the value, for who reads a value looks at it. What is set
// is the caller's: engines that keep a slice copy it first.
type engine struct {
	get    func(key string) (first byte, ok bool)
	set    func(key string, value []byte)
	settle func() // waits until what was set is there; nil where it is at once
	loads  bool   // set only loads what is not there: it cannot replace a value
}

var caches = []cache{
	{"Shoal, Group[ByteView]", func(n, size int) engine { return newGroup(n, size, false) }},
	{"Shoal, LRU", func(n, size int) engine { return newGroup(n, size, true) }},
	{"Shoal's packed alone", func(n, size int) engine {
		c := packed.New(int64(n)*int64(size+150)+1<<20, func() int64 { return 0 }, nil)
		return engine{
			get: func(key string) (byte, bool) {
				v, _, ok := c.Value(key)
				return first(v), ok
			},
			set: func(key string, value []byte) {
				c.Put(key, value, func(packed.Meta, bool) (packed.Meta, bool) { return packed.Meta{Version: 1}, true })
				c.Shrink(1 << 20)
			},
		}
	}},
	{"groupcache, ByteViewSink", func(n, size int) engine {
		var source []byte
		load := func(_ context.Context, _ string, dest groupcache.Sink) error { return dest.SetBytes(source) }
		g := groupcache.NewGroup(fmt.Sprint("g", rand.Uint64()), 1<<40, groupcache.GetterFunc(load))
		ctx := context.Background()
		get := func(key string) (byte, bool) {
			var v groupcache.ByteView
			if err := g.Get(ctx, key, groupcache.ByteViewSink(&v)); err != nil || v.Len() == 0 {
				return 0, false
			}
			return v.At(0), true
		}
		set := func(key string, value []byte) {
			source = value
			get(key)
			source = nil // so that a get of what is not there is none
		}
		return engine{get: get, set: set, loads: true}
	}},
	{"otter", func(n, _ int) engine {
		c := otter.Must(&otter.Options[string, []byte]{MaximumSize: n})
		return engine{
			get: func(key string) (byte, bool) {
				v, ok := c.GetIfPresent(key)
				return first(v), ok
			},
			set: func(key string, value []byte) { c.Set(key, slices.Clone(value)) },
		}
	}},
	{"ristretto", func(n, _ int) engine {
		c := must(ristretto.NewCache(&ristretto.Config[string, []byte]{
			NumCounters: int64(10 * n), MaxCost: int64(n), BufferItems: 64, IgnoreInternalCost: true,
		}))
		return engine{
			get: func(key string) (byte, bool) {
				v, ok := c.Get(key)
				return first(v), ok
			},
			set: func(key string, value []byte) {
				for kept := slices.Clone(value); !c.Set(key, kept, 1); { // it is too busy
					c.Wait()
				}
			},
			settle: c.Wait,
		}
	}},
	{"theine", func(n, _ int) engine {
		c := must(theine.NewBuilder[string, []byte](int64(n)).Build())
		return engine{
			get: func(key string) (byte, bool) {
				v, ok := c.Get(key)
				return first(v), ok
			},
			set:    func(key string, value []byte) { c.Set(key, slices.Clone(value), 1) },
			settle: c.Wait,
		}
	}},
	{"freecache, GetFn", func(n, size int) engine {
		c := freecache.NewCache(256 * fullest(n, 256) * (keySize + size + 24)) // 256 segments, and headers of 24 bytes
		return engine{
			get: func(key string) (b byte, ok bool) {
				err := c.GetFn([]byte(key), func(v []byte) error {
					b = first(v)
					return nil
				})
				return b, err == nil
			},
			set: func(key string, value []byte) { check(c.Set([]byte(key), value, 0)) },
		}
	}},
	{"bigcache", func(n, size int) engine {
		config := bigcache.DefaultConfig(24 * time.Hour)
		config.CleanWindow, config.Verbose = 0, false
		config.MaxEntriesInWindow = config.Shards * fullest(n, config.Shards)
		config.MaxEntrySize = keySize + size + 20 // with its headers
		c := must(bigcache.New(context.Background(), config))
		return engine{
			get: func(key string) (byte, bool) {
				v, err := c.Get(key)
				return first(v), err == nil
			},
			set: func(key string, value []byte) { check(c.Set(key, value)) },
		}
	}},
	{"hashicorp LRU", func(n, _ int) engine {
		c := must(hlru.New[string, []byte](n))
		return engine{
			get: func(key string) (byte, bool) {
				v, ok := c.Get(key)
				return first(v), ok
			},
			set: func(key string, value []byte) { c.Add(key, slices.Clone(value)) },
		}
	}},
	{"sync.Map", func(int, int) engine {
		var m sync.Map
		return engine{
			get: func(key string) (byte, bool) {
				v, ok := m.Load(key)
				if !ok {
					return 0, false
				}
				return first(v.([]byte)), true
			},
			set: func(key string, value []byte) { m.Store(key, slices.Clone(value)) },
		}
	}},
	{"map, sync.RWMutex", func(int, int) engine {
		var mu sync.RWMutex
		m := make(map[string][]byte)
		return engine{
			get: func(key string) (byte, bool) {
				mu.RLock()
				v, ok := m[key]
				mu.RUnlock()
				return first(v), ok
			},
			set: func(key string, value []byte) {
				kept := slices.Clone(value)
				mu.Lock()
				m[key] = kept
				mu.Unlock()
			},
		}
	}},
}

const keySize = 16

// fullest returns how many of n entries hash to the fullest of some parts, where each has memory of its own from the start,
// and is to have enough.
func fullest(n, parts int) int {
	mean := float64(n) / float64(parts)
	return int(mean + 4*math.Sqrt(mean) + 1)
}

func newGroup(n, size int, lru bool) engine {
	c := must(shoal.New(nil))
	opts := &shoal.GroupOptions[shoal.ByteView]{MaxBytes: int64(n)*int64(size+500) + 1<<20, LRU: lru}
	g := shoal.NewGroup(c, "g", nil, opts)
	ctx := context.Background()
	return engine{
		get: func(key string) (byte, bool) {
			v, err := g.Get(ctx, key)
			if err != nil {
				return 0, false
			}
			return v.At(0), true
		},
		set: func(key string, value []byte) { check(g.Set(ctx, key, shoal.NewByteView(value))) }, // copies it
	}
}

func first(value []byte) byte {
	if len(value) == 0 {
		return 0
	}
	return value[0]
}

func must[T any](v T, err error) T {
	check(err)
	return v
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func key(i int) string { return fmt.Sprintf("key %012d", i) }

// kinds are the calls that are timed.
var kinds = []struct {
	name       string
	goroutines int
	sets       bool
}{
	{"reads, 1 goroutine", 1, false},
	{"reads, 16 goroutines", 16, false},
	{"95/5, 1 goroutine", 1, true},
	{"95/5, 16 goroutines", 16, true},
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("engines: ")
	only := flag.String("cache", "", "measure the caches whose names match this `regexp`")
	list := flag.String("entries", "1000000,5000000", "measure memory with so many `entries`")
	svg := flag.String("svg", "", "draw charts to files with this `prefix`: -speed.svg, -memory.svg, -gc.svg")
	flag.Parse()
	if flag.NArg() == 3 && flag.Arg(0) == "alone" { // a process that another has started below
		measure(flag.Arg(1), flag.Arg(2))
		return
	}
	wanted := must(regexp.Compile(*only))
	chosen := slices.DeleteFunc(caches, func(c cache) bool { return !wanted.MatchString(c.name) })
	var names []string
	for _, c := range chosen {
		names = append(names, c.name)
	}

	var times []plot.Series
	fmt.Print("| nanoseconds a call |")
	for _, k := range kinds {
		times = append(times, plot.Series{Name: k.name})
		fmt.Printf(" %s |", k.name)
	}
	fmt.Println(" allocations a get | bytes |\n|---|--:|--:|--:|--:|--:|--:|")
	for _, name := range names {
		m := alone(name, "speed")
		fmt.Printf("| %s |", name)
		for i := range kinds {
			times[i].Values = append(times[i].Values, m[i])
			if math.IsNaN(m[i]) {
				fmt.Print(" |")
			} else {
				fmt.Printf(" %.0f |", m[i])
			}
		}
		fmt.Printf(" %.1f | %.0f |\n", m[len(kinds)], m[len(kinds)+1])
	}

	var heaps, gcs []plot.Series
	fmt.Print("\n| beyond key and value |")
	counts := strings.Split(*list, ",")
	for _, count := range counts {
		label := strings.TrimSuffix(count, "000000") + "M entries"
		if !strings.HasSuffix(count, "000000") {
			label = count + " entries"
		}
		heaps, gcs = append(heaps, plot.Series{Name: label}), append(gcs, plot.Series{Name: label})
		fmt.Printf(" bytes an entry, %s | runtime.GC() |", label)
	}
	fmt.Print("\n|---|", strings.Repeat("--:|--:|", len(counts)), "\n")
	for _, name := range names {
		fmt.Printf("| %s |", name)
		for i, count := range counts {
			m := alone(name, count)
			heaps[i].Values, gcs[i].Values = append(heaps[i].Values, m[0]), append(gcs[i].Values, m[1])
			fmt.Printf(" %.0f | %.1f ms |", m[0], m[1])
		}
		fmt.Println()
	}

	if *svg != "" {
		check(plot.Bars(*svg+"-speed.svg", "Time of a call, 100,000 entries, zipf 0.99", "nanoseconds", names, times...))
		check(plot.Bars(*svg+"-memory.svg", "Heap beyond key and value", "bytes an entry", names, heaps...))
		check(plot.Bars(*svg+"-gc.svg", "One garbage collection with all entries there", "milliseconds", names, gcs...))
	}
}

// alone has a cache measured by a process of its own, and returns the numbers it prints.
func alone(name, what string) []float64 {
	cmd := exec.Command(must(os.Executable()), "alone", name, what)
	cmd.Stderr = os.Stderr
	out := must(cmd.Output())
	var numbers []float64
	for _, field := range strings.Fields(string(out)) {
		numbers = append(numbers, must(strconv.ParseFloat(field, 64)))
	}
	return numbers
}

// measure is what that process does: what is "speed", or a number of entries for the memory they take.
func measure(name, what string) {
	i := slices.IndexFunc(caches, func(c cache) bool { return c.name == name })
	if i < 0 {
		log.Fatalf("no cache is called %q", name)
	}
	if what == "speed" {
		speed(caches[i])
	} else {
		memory(caches[i], must(strconv.Atoi(what)))
	}
}

// fill makes a cache and sets n entries, and sees to it that they are there.
func fill(c cache, n, size int) engine {
	e := c.make(n, size)
	value := make([]byte, size)
	for i := range n {
		value[0] = byte(i)
		e.set(key(i), value)
	}
	if e.settle != nil {
		e.settle()
	}
	held := 0
	for i := range n {
		if b, ok := e.get(key(i)); ok && b == byte(i) {
			held++
		}
	}
	if held < n-n/1000 {
		log.Fatalf("%s holds %d of %d entries", c.name, held, n)
	}
	return e
}

// memory prints how many bytes of heap an entry takes beyond its key and value, and how many milliseconds a collection.
func memory(c cache, n int) {
	const size = 100
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	e := fill(c, n, size)
	after := heap()
	gc := time.Duration(math.MaxInt64)
	for range 3 {
		begin := time.Now()
		runtime.GC()
		gc = min(gc, time.Since(begin))
	}
	e.get(key(0)) // keeps it alive
	fmt.Println(float64(after-before)/float64(n)-keySize-size, gc.Seconds()*1000)
}

// speed prints the nanoseconds of a call of each kind, and the allocations of a get and their bytes.
func speed(c cache) {
	const n, size, calls = 100_000, 128, 1 << 20
	e := fill(c, n, size)
	keys, value := make([]string, n), make([]byte, size)
	for i := range keys {
		keys[i] = key(i)
	}
	order := zipf(n, calls)
	run := func(goroutines int, sets bool) time.Duration {
		begin := time.Now()
		var wg sync.WaitGroup
		for g := range goroutines {
			wg.Go(func() {
				for i := range calls / goroutines {
					k := keys[order[(i+g*(calls/16))%calls]]
					if sets && i%20 == 0 {
						e.set(k, value)
					} else {
						e.get(k)
					}
				}
			})
		}
		wg.Wait()
		return time.Since(begin)
	}
	for _, k := range kinds {
		if k.sets && e.loads {
			fmt.Println(math.NaN())
			continue
		}
		best := time.Duration(math.MaxInt64)
		for range 5 {
			runtime.GC()
			best = min(best, run(k.goroutines, k.sets))
		}
		fmt.Println(float64(best.Nanoseconds()) / calls)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	run(1, false)
	runtime.ReadMemStats(&after)
	fmt.Println(float64(after.Mallocs-before.Mallocs)/calls, float64(after.TotalAlloc-before.TotalAlloc)/calls)
}

// zipf returns which of n entries each call asks for: by a zipf of 0.99, whose most popular are not those set first.
func zipf(n, calls int) []uint32 {
	rng := rand.New(rand.NewPCG(1, 2))
	upTo, sum := make([]float64, n), 0.
	for i := range upTo {
		sum += math.Pow(float64(i+1), -0.99)
		upTo[i] = sum
	}
	ranking := rng.Perm(n)
	order := make([]uint32, calls)
	for i := range order {
		rank, _ := slices.BinarySearch(upTo, rng.Float64()*sum)
		order[i] = uint32(ranking[min(rank, n-1)])
	}
	return order
}
