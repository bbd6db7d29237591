package shoal

import (
	"hash/maphash"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/shoalcache/shoal/lru"
)

// decoded keeps values of a group as they were decoded, beside their encodings, for GroupOptions.Share: those that have
// been read again. A value is right as long as the entry has the version that it was decoded from. They take no more
// than most, and go by least recent use.
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

// put keeps v, and returns what that costs the group's memory. What costs more than a quarter of what all may is not kept.
func (d *decoded[V]) put(key string, version uint64, v V, encoded int) (cost int64) {
	cost = d.sizeOf(v, encoded) + int64(len(key)) + decodedOverhead // outside the lock: it is the user's function
	most := d.most()
	if cost < 0 || cost > most/4 {
		return 0
	}
	before := d.used.Load()
	mine := maphash.String(d.seed, key) % uint64(len(d.shards))
	for i := range uint64(len(d.shards)) { // its own shard first, and others only if they hold what it has no room for
		sh := &d.shards[(mine+i)%uint64(len(d.shards))]
		sh.mu.Lock()
		was := sh.values.Cost()
		if i == 0 {
			sh.values.Add(strings.Clone(key), decodedValue[V]{version, v}, cost) // key may be part of something large
		}
		for d.used.Load()+sh.values.Cost()-was > most && sh.values.Len() > int(1-min(i, 1)) {
			sh.values.RemoveOldest()
		}
		all := d.used.Add(sh.values.Cost() - was)
		sh.mu.Unlock()
		if all <= most {
			break
		}
	}
	return max(d.used.Load()-before, 0)
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
