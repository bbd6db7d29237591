// Package lru is a map that knows what was used least recently, and drops it when the cost of all exceeds a bound.
package lru

import (
	"iter"
	"maps"
)

// A Cache is a map from K to V, bounded by the sum of its entries' costs. The zero value is ready to use and has no
// bound. It is not safe for concurrent use. Every method but All takes constant time, Add that for each entry it evicts;
// now and then a Cache that has shrunk to half is copied, to give memory back.
type Cache[K comparable, V any] struct {
	// MaxCost is the largest sum of costs, in whatever unit the caller counts. If zero or less, there is no limit. It
	// is looked at by Add alone: after lowering it, call RemoveOldest while Cost exceeds it.
	MaxCost int64

	// OnEvicted, if not nil, is called with each entry that Add or RemoveOldest drops to make room, after it has gone.
	// It must not change the Cache.
	OnEvicted func(key K, value V)

	entries map[K]*entry[K, V]
	most    int         // the largest that entries has been
	ring    entry[K, V] // sentinel: ring.next is the most recently used, ring.prev the least; nil until the first Add
	cost    int64
}

type entry[K comparable, V any] struct {
	prev, next *entry[K, V]
	cost       int64
	key        K
	value      V
}

// Add stores value under key at the given cost, in place of any older value, makes it the most recently used, and
// evicts the least recently used until the bound is kept. A value that alone exceeds the bound is not stored and evicts
// nothing, but the older value goes; Add then reports false. A negative cost counts as zero.
func (c *Cache[K, V]) Add(key K, value V, cost int64) bool {
	cost = max(cost, 0)
	c.Remove(key)
	if c.MaxCost > 0 && cost > c.MaxCost {
		return false
	}
	for c.MaxCost > 0 && c.cost > c.MaxCost-cost {
		c.RemoveOldest()
	}
	if c.entries == nil {
		c.entries = make(map[K]*entry[K, V])
		c.ring.prev, c.ring.next = &c.ring, &c.ring
	}
	e := &entry[K, V]{key: key, value: value, cost: cost}
	c.entries[key] = e
	c.most = max(c.most, len(c.entries))
	c.cost += cost
	c.pushFront(e)
	return true
}

// Get returns the value of key and makes it the most recently used.
func (c *Cache[K, V]) Get(key K) (value V, ok bool) {
	e := c.entries[key]
	if e == nil {
		return value, false
	}
	if c.ring.next != e {
		e.unlink()
		c.pushFront(e)
	}
	return e.value, true
}

// Peek returns the value of key and leaves it where it is.
func (c *Cache[K, V]) Peek(key K) (value V, ok bool) {
	e := c.entries[key]
	if e == nil {
		return value, false
	}
	return e.value, true
}

// Oldest returns the least recently used entry and leaves it where it is; ok is false if there is none.
func (c *Cache[K, V]) Oldest() (key K, value V, ok bool) {
	if len(c.entries) == 0 {
		return key, value, false
	}
	return c.ring.prev.key, c.ring.prev.value, true
}

// Remove drops key and reports whether it was there. OnEvicted is not called.
func (c *Cache[K, V]) Remove(key K) bool {
	e := c.entries[key]
	if e == nil {
		return false
	}
	c.drop(e)
	return true
}

// RemoveOldest drops the least recently used entry and returns it; ok is false if there is none.
func (c *Cache[K, V]) RemoveOldest() (key K, value V, ok bool) {
	if len(c.entries) == 0 {
		return key, value, false
	}
	e := c.ring.prev
	c.drop(e)
	if c.OnEvicted != nil {
		c.OnEvicted(e.key, e.value)
	}
	return e.key, e.value, true
}

// Len returns the number of entries.
func (c *Cache[K, V]) Len() int { return len(c.entries) }

// Cost returns the sum of the entries' costs.
func (c *Cache[K, V]) Cost() int64 { return c.cost }

// All iterates over the entries from the most to the least recently used. The Cache must not be changed meanwhile.
func (c *Cache[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		if c.entries == nil {
			return
		}
		for e := c.ring.next; e != &c.ring; e = e.next {
			if !yield(e.key, e.value) {
				return
			}
		}
	}
}

func (c *Cache[K, V]) drop(e *entry[K, V]) {
	e.unlink()
	delete(c.entries, e.key)
	c.cost -= e.cost
	if c.most >= 1024 && len(c.entries) <= c.most/2 {
		c.entries, c.most = shrunk(c.entries), len(c.entries) // a Go map does not give memory back
	}
}

func shrunk[K comparable, V any](m map[K]V) map[K]V {
	smaller := make(map[K]V, len(m))
	maps.Copy(smaller, m)
	return smaller
}

func (c *Cache[K, V]) pushFront(e *entry[K, V]) {
	e.prev, e.next = &c.ring, c.ring.next
	e.prev.next, e.next.prev = e, e
}

func (e *entry[K, V]) unlink() {
	e.prev.next, e.next.prev = e.next, e.prev
}
