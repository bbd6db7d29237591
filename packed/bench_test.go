package packed

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
)

// BenchmarkGet reads 100,000 entries of 128 bytes, some more often than others, from one goroutine and from many.
func BenchmarkGet(b *testing.B) {
	const n = 100_000
	keys := make([]string, n)
	c := New(256<<20, new(atomic.Int64).Load, nil)
	for i := range keys {
		keys[i] = fmt.Sprintf("key %012d", i)
		c.Put(keys[i], make([]byte, 128), func(Meta, bool) (Meta, bool) { return Meta{Version: 1}, true })
	}
	zipf := rand.NewZipf(rand.New(rand.NewPCG(1, 2)), 1.01, 1, n-1)
	order := make([]uint32, 1<<20)
	for i := range order {
		order[i] = uint32(zipf.Uint64())
	}
	for _, writes := range []int{0, 5} {
		for _, goroutines := range []int{1, 16} {
			b.Run(fmt.Sprintf("%d%% writes/%d", writes, goroutines), func(b *testing.B) {
				b.ReportAllocs()
				b.SetParallelism((goroutines + 1) / 2)
				var started atomic.Int64
				work := func(next func() bool) {
					i := int(started.Add(1)) * 7919
					value := make([]byte, 128)
					for next() {
						i++
						key := keys[order[i&(1<<20-1)]]
						if writes > 0 && i%100 < writes {
							c.Put(key, value, func(Meta, bool) (Meta, bool) { return Meta{Version: 1}, true })
						} else if _, ok := c.Get(key); !ok {
							b.Error("gone")
							return
						}
					}
				}
				if goroutines == 1 {
					work(b.Loop)
				} else {
					b.RunParallel(func(pb *testing.PB) { work(pb.Next) })
				}
			})
		}
	}
}

// BenchmarkNear reads 64 entries of 1 KiB at a time, of 100,000, each as often as any other.
func BenchmarkNear(b *testing.B) {
	const n, some = 100_000, 64
	keys := make([]string, n)
	c := New(256<<20, new(atomic.Int64).Load, nil)
	for i := range keys {
		keys[i] = fmt.Sprintf("key %012d", i)
		c.Put(keys[i], make([]byte, 1<<10), func(Meta, bool) (Meta, bool) { return Meta{Version: 1}, true })
	}
	rand.Shuffle(n, func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	for _, near := range []bool{false, true} {
		b.Run(fmt.Sprint(near), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				keys := keys[i*some%(n-some):][:some]
				if near {
					c.Near(keys)
				}
				for _, key := range keys {
					if _, ok := c.Get(key); !ok {
						b.Fatal("gone")
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/some, "ns/key")
		})
	}
}
