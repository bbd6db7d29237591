package consistenthash_test

import (
	"fmt"
	"runtime"
	"testing"
)

var benchmarkSizes = []int{3, 10, 100, 1000}

func BenchmarkOwner(b *testing.B) {
	keys := make([]string, 1<<14)
	for i := range keys {
		keys[i] = fmt.Sprintf("user:%08d", i)
	}
	for _, c := range constructors {
		for _, n := range benchmarkSizes {
			m := c.new(urls(n))
			b.Run(fmt.Sprintf("%s/%d", c.name, n), func(b *testing.B) {
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					m.Owner(keys[i%len(keys)])
					i++
				}
			})
		}
	}
}

func BenchmarkOwners(b *testing.B) {
	for _, c := range constructors {
		m := c.new(urls(100))
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				m.Owners("user:42", 3)
			}
		})
	}
}

// BenchmarkBuild reports as held-B what a map keeps, beside what is allocated
// to build it.
func BenchmarkBuild(b *testing.B) {
	for _, c := range constructors {
		for _, n := range benchmarkSizes {
			members := urls(n)
			b.Run(fmt.Sprintf("%s/%d", c.name, n), func(b *testing.B) {
				b.ReportAllocs()
				var m Map
				for b.Loop() {
					m = c.new(members)
				}
				b.ReportMetric(held(func() Map { return c.new(members) }), "held-B")
				runtime.KeepAlive(m)
			})
		}
	}
}

// held returns how many bytes of heap the map that build returns keeps.
func held(build func() Map) float64 {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	m := build()
	runtime.GC()
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(m)
	return float64(after.HeapAlloc) - float64(before.HeapAlloc)
}
