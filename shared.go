package shoal

import (
	"hash/maphash"
	"sync"
	"sync/atomic"

	"github.com/shoalcache/shoal/lru"
)

// decoded keeps values of a group as they were decoded, beside their encodings, for GroupOptions.Share: those that have
// been read again. A value is right as long as the entry has the version that it was decoded from. They take no more
// than half of the group's memory, and go by least recent use.
type decoded[V any] struct {
	sizeOf func(v V, encoded int) int64
	most   func() int64
	used   atomic.Int64
	seed   maphash.Seed
	shards [16]decodedShard[V]
}

type decodedShard[V any] struct {
	mu     sync.Mutex // guards values
	values lru.Cache[string, decodedValue[V]]
}

type decodedValue[V any] struct {
	version uint64
	value   V
}

// decodedOverhead is what a decoded value costs besides itself: its key, and its place in lru.
const decodedOverhead = 160

func (d *decoded[V]) shardOf(key string) *decodedShard[V] {
	return &d.shards[maphash.String(d.seed, key)%uint64(len(d.shards))]
}

// get returns the value of key that was decoded from that version.
func (d *decoded[V]) get(key string, version uint64) (v V, ok bool) {
	sh := d.shardOf(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if held, ok := sh.values.Get(key); ok && held.version == version {
		return held.value, true
	}
	return v, false
}

// put keeps v, and returns what that costs the group's memory.
func (d *decoded[V]) put(key string, version uint64, v V, encoded int) (cost int64) {
	cost = d.sizeOf(v, encoded) + int64(len(key)) + decodedOverhead // outside the lock: it is the user's function
	share := d.most() / 2 / int64(len(d.shards))
	sh := d.shardOf(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	before := sh.values.Cost()
	sh.values.Remove(key)
	if cost >= 0 && cost <= share/4 {
		sh.values.Add(key, decodedValue[V]{version, v}, cost)
	}
	for sh.values.Cost() > share {
		if _, _, ok := sh.values.RemoveOldest(); !ok {
			break
		}
	}
	d.used.Add(sh.values.Cost() - before)
	return max(sh.values.Cost()-before, 0)
}

func (d *decoded[V]) clear() {
	for i := range d.shards {
		sh := &d.shards[i]
		sh.mu.Lock()
		d.used.Add(-sh.values.Cost())
		sh.values = lru.Cache[string, decodedValue[V]]{}
		sh.mu.Unlock()
	}
}
