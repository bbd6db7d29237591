package main

// policies.go: the caches that are compared.

import (
	"fmt"
	"log"
	"slices"

	"github.com/Yiling-J/theine-go"
	"github.com/dgraph-io/ristretto/v2"
	gclru "github.com/golang/groupcache/lru"
	arc "github.com/hashicorp/golang-lru/arc/v2"
	hlru "github.com/hashicorp/golang-lru/v2"
	"github.com/maypok86/otter/v2"

	"github.com/shoalcache/shoal/lru"
	"github.com/shoalcache/shoal/packed"
)

// A policy makes a cache of a budget: a function that reports whether a key is there, and puts it there if not.
type policy struct {
	name string
	make func(b budget) func(key int32) bool
}

var policies = []policy{
	{"Shoal: packed", newPacked},
	{"Shoal: lru", func(b budget) func(int32) bool {
		c := lru.Cache[int32, struct{}]{MaxCost: b.max}
		return func(key int32) bool {
			if _, ok := c.Get(key); ok {
				return true
			}
			c.Add(key, struct{}{}, b.size(key))
			return false
		}
	}},
	{"groupcache", func(b budget) func(int32) bool {
		c, used := gclru.New(0), int64(0)
		c.OnEvicted = func(key gclru.Key, _ any) { used -= b.size(key.(int32)) }
		return func(key int32) bool {
			if _, ok := c.Get(key); ok {
				return true
			}
			if size := b.size(key); size <= b.max {
				c.Add(key, nil)
				used += size
			}
			for used > b.max {
				c.RemoveOldest()
			}
			return false
		}
	}},
	{"otter", func(b budget) func(int32) bool {
		c := otter.Must(&otter.Options[int32, struct{}]{
			MaximumWeight: uint64(b.max),
			Weigher:       func(key int32, _ struct{}) uint32 { return uint32(b.size(key)) },
			Executor:      func(fn func()) { fn() },
		})
		return func(key int32) bool {
			_, ok := c.GetIfPresent(key)
			if !ok {
				c.Set(key, struct{}{})
			}
			return ok
		}
	}},
	{"theine", func(b budget) func(int32) bool {
		c := must(theine.NewBuilder[int32, struct{}](b.max).Build())
		return func(key int32) bool {
			_, ok := c.Get(key)
			if !ok {
				c.Set(key, struct{}{}, b.size(key))
				c.Wait()
			}
			return ok
		}
	}},
	{"ristretto", func(b budget) func(int32) bool {
		c := must(ristretto.NewCache(&ristretto.Config[int32, struct{}]{
			NumCounters: int64(10 * b.entries), MaxCost: b.max, BufferItems: 64, IgnoreInternalCost: true,
		}))
		return func(key int32) bool {
			_, ok := c.Get(key)
			if !ok {
				c.Set(key, struct{}{}, b.size(key))
				c.Wait()
			}
			return ok
		}
	}},
}

// byEntries are the policies that know no sizes.
var byEntries = []policy{
	{"hashicorp LRU", func(b budget) func(int32) bool {
		c := must(hlru.New[int32, struct{}](b.entries))
		return func(key int32) bool {
			_, ok := c.Get(key)
			if !ok {
				c.Add(key, struct{}{})
			}
			return ok
		}
	}},
	{"hashicorp ARC", func(b budget) func(int32) bool {
		c := must(arc.NewARC[int32, struct{}](b.entries))
		return func(key int32) bool {
			_, ok := c.Get(key)
			if !ok {
				c.Add(key, struct{}{})
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
	c.Shrink(1 << 20)
}

// newPacked makes a packed cache. Its bound is in bytes, and with a budget of bytes that is it: keys and overhead count.
func newPacked(b budget) func(int32) bool {
	most, value := b.max, make([]byte, packedValue)
	if b.sizes == nil {
		most = packedBound(b.entries, value)
	} else {
		value = make([]byte, slices.Max(b.sizes))
	}
	c := packed.New(most, func() int64 { return 0 }, nil)
	return func(key int32) bool {
		if _, ok := c.Get(packedKey(key)); ok {
			return true
		}
		if b.sizes == nil {
			putPacked(c, key, value)
		} else {
			putPacked(c, key, value[:b.size(key)])
		}
		return false
	}
}

// packedBound returns the bound with which a packed cache keeps n entries on average: what an entry takes of it depends
// on how many there are.
func packedBound(n int, value []byte) int64 {
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
	return low
}
