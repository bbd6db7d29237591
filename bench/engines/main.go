// Engines measures what holding a value here costs, beside other caches: the bytes of heap that an entry takes beside its
// key and value, one garbage collection with all of them there, and the time of a get.
//
//	go run ./bench/engines
//
// Keys are of 16 bytes, values of 100. Times are those of all goroutines together, the fastest of five runs; those of one
// run can be compared, on a machine that does nothing else.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
	"runtime"
	"sync"
	"time"

	"github.com/dgraph-io/ristretto/v2"
	"github.com/golang/groupcache"
	"github.com/maypok86/otter/v2"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/packed"
)

// A cache is what is measured: made for n entries.
type cache struct {
	name string
	make func(n int) (get func(key string) bool, set func(key string, value []byte))
}

var caches = []cache{
	{"Shoal, Group[ByteView]", func(n int) (func(string) bool, func(string, []byte)) { return newGroup(n, false) }},
	{"Shoal, LRU", func(n int) (func(string) bool, func(string, []byte)) { return newGroup(n, true) }},
	{"Shoal's packed alone", func(n int) (func(string) bool, func(string, []byte)) {
		c := packed.New(int64(n)*250+1<<20, func() int64 { return 0 }, nil)
		get := func(key string) bool {
			_, _, ok := c.Value(key)
			return ok
		}
		return get, func(key string, value []byte) {
			c.Put(key, value, func(packed.Meta, bool) (packed.Meta, bool) { return packed.Meta{Version: 1}, true })
			c.Shrink()
		}
	}},
	{"groupcache, ByteViewSink", func(n int) (func(string) bool, func(string, []byte)) {
		value := make([]byte, valueSize)
		g := groupcache.NewGroup(fmt.Sprint("g", rand.Uint64()), 1<<40, groupcache.GetterFunc(func(_ context.Context, _ string, dest groupcache.Sink) error {
			return dest.SetBytes(value)
		}))
		get := func(key string) bool {
			var v groupcache.ByteView
			return g.Get(context.Background(), key, groupcache.ByteViewSink(&v)) == nil
		}
		return get, func(key string, _ []byte) { get(key) }
	}},
	{"otter", func(n int) (func(string) bool, func(string, []byte)) {
		c := otter.Must(&otter.Options[string, []byte]{MaximumSize: 2 * n})
		get := func(key string) bool {
			_, ok := c.GetIfPresent(key)
			return ok
		}
		return get, func(key string, value []byte) { c.Set(key, append([]byte(nil), value...)) }
	}},
	{"ristretto", func(n int) (func(string) bool, func(string, []byte)) {
		c, err := ristretto.NewCache(&ristretto.Config[string, []byte]{NumCounters: int64(10 * n), MaxCost: int64(2 * n), BufferItems: 64, IgnoreInternalCost: true})
		if err != nil {
			log.Fatal(err)
		}
		get := func(key string) bool {
			_, ok := c.Get(key)
			return ok
		}
		return get, func(key string, value []byte) {
			c.Set(key, append([]byte(nil), value...), 1)
			c.Wait()
		}
	}},
}

const keySize, valueSize = 16, 100

func newGroup(n int, lru bool) (func(string) bool, func(string, []byte)) {
	c, err := shoal.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	g := shoal.NewGroup[shoal.ByteView](c, "g", nil, &shoal.GroupOptions[shoal.ByteView]{MaxBytes: int64(n)*600 + 1<<20, LRU: lru})
	ctx := context.Background()
	get := func(key string) bool {
		_, err := g.Get(ctx, key)
		return err == nil
	}
	return get, func(key string, value []byte) {
		if err := g.Set(ctx, key, shoal.NewByteView(value)); err != nil {
			log.Fatal(err)
		}
	}
}

func key(i int) string { return fmt.Sprintf("key %012d", i) }

func main() {
	log.SetFlags(0)
	log.SetPrefix("engines: ")
	entries := flag.Int("entries", 1_000_000, "how many `entries` the heap is measured with")
	flag.Parse()
	fmt.Printf("| cache | overhead, bytes an entry | runtime.GC() | reads: 1 / 16 goroutines | 95/5: 1 / 16 |\n|---|--:|--:|--:|--:|\n")
	for _, c := range caches {
		overhead, gc := memory(c, *entries)
		fmt.Printf("| %s | %.0f | %.1f ms | %s | %s |\n", c.name, overhead, float64(gc.Microseconds())/1000, times(c, 0), times(c, 5))
	}
}

// memory returns how many bytes of heap an entry takes beside its key and value, and how long a collection takes.
func memory(c cache, n int) (overhead float64, gc time.Duration) {
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	get, set := c.make(n)
	value := make([]byte, valueSize)
	for i := range n {
		set(key(i), value)
	}
	held := 0
	for i := range n {
		if get(key(i)) {
			held++
		}
	}
	if held < n*99/100 {
		log.Fatalf("%s holds %d of %d entries", c.name, held, n)
	}
	after := heap()
	begin := time.Now()
	runtime.GC()
	gc = time.Since(begin)
	get(key(0)) // keeps it alive
	return float64(after-before)/float64(held) - keySize - valueSize, gc
}

// times returns the nanoseconds that a get takes from one goroutine and from 16, if some of 100 calls are sets.
func times(c cache, sets int) string {
	const n, calls = 100_000, 1 << 20
	get, set := c.make(n)
	keys, value := make([]string, n), make([]byte, valueSize)
	for i := range keys {
		keys[i] = key(i)
		set(keys[i], value)
	}
	zipf := rand.NewZipf(rand.New(rand.NewPCG(1, 2)), 1.01, 1, n-1)
	order := make([]uint32, calls)
	for i := range order {
		order[i] = uint32(zipf.Uint64())
	}
	var text string
	for _, goroutines := range []int{1, 16} {
		best := time.Duration(1 << 62)
		for range 5 {
			begin := time.Now()
			var wg sync.WaitGroup
			for g := range goroutines {
				wg.Go(func() {
					for i := range calls / goroutines {
						k := keys[order[(i+g*7919)%calls]]
						if i%100 < sets {
							set(k, value)
						} else {
							get(k)
						}
					}
				})
			}
			wg.Wait()
			best = min(best, time.Since(begin))
		}
		text += fmt.Sprintf("%s%d", []string{"", " / "}[min(goroutines-1, 1)], best.Nanoseconds()/calls)
	}
	return text
}
