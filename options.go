package shoal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"math/rand/v2"
	"reflect"
	"time"

	"golang.org/x/sync/semaphore"
)

// GroupOptions are the options of [NewGroup], the same in all processes, but while a deploy is under way: then V and Codec must read
// what the others write, or the group needs another name. The zero value of each field is its default.
type GroupOptions[V any] struct {
	MaxBytes int64         // memory in this process, overhead included; if zero, 64 MiB
	TTL      time.Duration // how long a value is fresh; if zero, for ever; if negative, it is not kept
	Jitter   float64       // largest share of a TTL by which it is cut, at random
	// TTLFor, if not nil, replaces TTL. Unlike a field's zero, a result of zero or less means that v is not kept:
	// it answers those who wait for it.
	TTLFor func(key string, v V) time.Duration
	// Stale is how long past its TTL a value may be served while one load replaces it; with it, hot keys are also
	// loaded anew in the last tenth of their TTL: those that have been asked for at HotRate or more since they were loaded.
	Stale time.Duration
	// StaleIfError is how long past its TTL a value may be served since that load fails, which is tried again after
	// a while, and after longer and longer, up to 30 s; at least Stale.
	StaleIfError time.Duration
	NotFoundTTL  time.Duration // how long ErrNotFound is remembered; if zero, it is not
	ErrorTTL     time.Duration // … any other error but a panic; if zero, it is not
	// GetMany loads many keys at once, as Group.GetMany says.
	GetMany     func(ctx context.Context, keys []string) (map[string]V, error)
	LoadTimeout time.Duration // longest load, with the wait for its turn; if zero, 30 s
	MaxLoads    int           // at once in this process, others wait their turn; if zero, any number
	Codec       Codec[V]      // if nil, see Codec
	// Share keeps decoded values of keys that are read again, beside their encodings, and gives all callers the same: it
	// must not be changed. It is for types that take long to decode. Those whose cost is more than about an eighth of
	// MaxBytes are decoded for each caller.
	Share bool
	// SizeOf is the memory of a decoded value, for Share. If nil, it is taken for twice the length of its encoding.
	SizeOf func(v V) int64
	// Owners is how many processes keep each key; if zero, 1. With more, what the owner has is copied to the next ones: what it
	// loads in the background, what is written before the write returns. When it dies the next has it. What was written is not
	// lost if one dies, and no other before Stats.Repairing has ended, as long as lists differ for no longer than half of
	// Options.Warm. A write needs all of them: while one does not answer, those of its keys fail, until it is not listed any more.
	Owners   int
	LRU      bool          // evict the least recently used, in place of S3-FIFO
	HotBytes int64         // of MaxBytes, for copies of others' hot keys; if zero, an eighth; if negative, none
	HotRate  float64       // gets a second from one peer that make a key hot; if zero, 10
	HotLease time.Duration // how long a copy is served without asking its owner, at most 5 s; if zero, 2 s
}

// NewGroup makes the group that all peers know by name. If get is nil, opts.GetMany loads single keys too; without
// that either, the group is a plain key-value cache, in which a key that is not held is [ErrNotFound], and one whose
// owner cannot be reached, and that nobody in its place has, is a [*PeerError]. Every process that owns keys must have the
// group: another that is asked for them refuses, so a new group takes two deploys, one that makes it and one that writes to it. NewGroup panics if the name is taken, V would lose parts when encoded, or an
// option is out of range; the message names the field.
func NewGroup[V any](c *Cache, name string, get Getter[V], opts *GroupOptions[V]) *Group[V] {
	o, err := opts.withDefaults()
	if err != nil {
		panic(fmt.Sprintf("shoal: NewGroup(%q): %v", name, err))
	}
	g := newGroup(c, name, o.settings())
	if get != nil {
		g.getter = func(ctx context.Context, key string) loaded {
			v, err := get(ctx, key)
			if err != nil {
				return loaded{err: err}
			}
			return o.loaded(name, key, v)
		}
	}
	if o.GetMany != nil {
		g.batch = func(ctx context.Context, keys []string) []loaded {
			values, err := o.GetMany(ctx, keys)
			return o.loadedMany(name, keys, values, err)
		}
		if get == nil {
			g.getter = func(ctx context.Context, key string) loaded { return g.batch(ctx, []string{key})[0] }
		}
	}
	switch reflect.TypeFor[V]().Kind() {
	case reflect.Int, reflect.Int64:
		g.zero = func(key string) loaded { return o.loaded(name, key, *new(V)) }
		g.add = o.add
	}
	group := &Group[V]{group: g, codec: o.Codec, ttl: o.ttl}
	if o.Share {
		group.decoded = &decoded[V]{sizeOf: o.sizeOf, most: g.forDecoded, seed: maphash.MakeSeed()}
		g.decodedBytes, g.forgetDecoded = group.decoded.used.Load, group.decoded.clear
	}
	if !c.register(g) {
		panic(fmt.Sprintf("shoal: NewGroup(%q): name is taken", name))
	}
	return group
}

func (o *GroupOptions[V]) sizeOf(v V, encoded int) int64 {
	if o.SizeOf != nil {
		return o.SizeOf(v)
	}
	return 2 * int64(encoded)
}

// withDefaults fills in what is zero. Its error names the field that is out of range.
func (opts *GroupOptions[V]) withDefaults() (o GroupOptions[V], err error) {
	if opts != nil {
		o = *opts
	}
	o.MaxBytes = cmp.Or(o.MaxBytes, 64<<20)
	o.LoadTimeout = cmp.Or(o.LoadTimeout, 30*time.Second)
	o.HotBytes = cmp.Or(o.HotBytes, o.MaxBytes/8)
	o.Owners = cmp.Or(o.Owners, 1)
	o.HotRate = cmp.Or(o.HotRate, 10)
	o.HotLease = cmp.Or(o.HotLease, 2*time.Second)
	if o.Codec == nil {
		if o.Codec, err = codecFor[V](); err != nil {
			return o, fmt.Errorf("type V: %w; give GroupOptions.Codec", err)
		}
	}
	bad := func(field, why string) { err = fmt.Errorf("GroupOptions.%s %s", field, why) }
	switch {
	case o.MaxBytes < 0:
		bad("MaxBytes", "is negative")
	case !(o.Jitter >= 0 && o.Jitter <= 1):
		bad("Jitter", "is not between 0 and 1")
	case o.Stale < 0:
		bad("Stale", "is negative")
	case o.StaleIfError != 0 && o.StaleIfError < o.Stale:
		bad("StaleIfError", "is less than Stale")
	case o.NotFoundTTL < 0:
		bad("NotFoundTTL", "is negative")
	case o.ErrorTTL < 0:
		bad("ErrorTTL", "is negative")
	case o.LoadTimeout < 0:
		bad("LoadTimeout", "is negative")
	case o.MaxLoads < 0:
		bad("MaxLoads", "is negative")
	case o.Owners < 0:
		bad("Owners", "is negative")
	case o.HotBytes > o.MaxBytes:
		bad("HotBytes", "is more than MaxBytes")
	case !(o.HotRate > 0 && o.HotRate <= math.MaxFloat64):
		bad("HotRate", "is not a positive number")
	case o.HotLease < 0 || o.HotLease > maxLease:
		bad("HotLease", "is not between 0 and 5 s")
	}
	return o, err
}

// settings are what a group takes over from its options.
func (o *GroupOptions[V]) settings() settings {
	s := settings{
		maxBytes:    o.MaxBytes,
		lru:         o.LRU,
		hotShare:    max(float64(o.HotBytes), 0) / float64(max(o.MaxBytes, 1)),
		loadTimeout: o.LoadTimeout,
		stale:       o.Stale,
		grace:       max(o.Stale, o.StaleIfError),
		notFoundTTL: o.NotFoundTTL,
		errorTTL:    o.ErrorTTL,
		jitter:      o.Jitter,
		owners:      o.Owners,
		hotRate:     o.HotRate,
		hotLease:    o.HotLease,
	}
	if o.MaxLoads > 0 {
		s.turns = semaphore.NewWeighted(int64(o.MaxLoads))
	}
	return s
}

// ttl returns how long v is kept: zero means for ever, less that it is not.
func (o *GroupOptions[V]) ttl(key string, v V) time.Duration {
	ttl := o.TTL
	if o.TTLFor != nil {
		if ttl = o.TTLFor(key, v); ttl <= 0 {
			return -1
		}
	}
	return cut(ttl, o.Jitter)
}

// cut returns ttl less a random part of it, of which jitter is the largest share.
func cut(ttl time.Duration, jitter float64) time.Duration {
	if ttl <= 0 {
		return ttl
	}
	return max(ttl-time.Duration(jitter*rand.Float64()*float64(ttl)), 1)
}

// loaded is what has come of a getter for key.
func (o *GroupOptions[V]) loaded(group, key string, v V) loaded {
	data, err := o.Codec.Append(nil, v)
	if err != nil {
		return loaded{err: fmt.Errorf("encode the value of %.80q in group %q: %w", key, group, err)}
	}
	return loaded{data: data, ttl: o.ttl(key, v)}
}

// loadedMany is what has come of a batch getter, in the order of keys.
func (o *GroupOptions[V]) loadedMany(group string, keys []string, values map[string]V, err error) []loaded {
	failed, partly := errors.AsType[KeyErrors](err)
	all := make([]loaded, len(keys))
	for i, key := range keys {
		if v, ok := values[key]; ok {
			all[i] = o.loaded(group, key, v)
		} else if partly {
			all[i].err = cmp.Or(failed[key], ErrNotFound)
		} else {
			all[i].err = cmp.Or(err, ErrNotFound)
		}
	}
	return all
}

// add returns the encoding of the counter that data encodes and delta together, and their sum.
func (o *GroupOptions[V]) add(data []byte, delta int64) ([]byte, int64, error) {
	v, err := o.Codec.Decode(data)
	if err != nil {
		return nil, 0, err
	}
	counter := reflect.ValueOf(&v).Elem()
	sum := counter.Int() + delta
	if (sum < delta) != (counter.Int() < 0) || counter.OverflowInt(sum) {
		return nil, 0, fmt.Errorf("%d and %d together overflow %v", counter.Int(), delta, counter.Type())
	}
	counter.SetInt(sum)
	data, err = o.Codec.Append(nil, v)
	return data, sum, err
}

// settings are the options of a group that do not depend on V.
type settings struct {
	maxBytes    int64
	lru         bool    // evicts the least recently used
	hotShare    float64 // of maxBytes, for copies
	loadTimeout time.Duration
	stale       time.Duration
	grace       time.Duration // how long past its TTL a value is kept: for Stale, or StaleIfError
	notFoundTTL time.Duration
	errorTTL    time.Duration
	jitter      float64
	turns       *semaphore.Weighted // of loads; nil: any number runs at once
	owners      int
	hotRate     float64
	hotLease    time.Duration
}

// absentShare is what part of a group's memory is for what getters say in place of values.
const absentShare = 1. / 64

func newGroup(c *Cache, name string, s settings) *group {
	g := &group{name: name, nameBytes: []byte(name), cache: c, settings: s, decodedBytes: func() int64 { return 0 }, forgetDecoded: func() {}}
	g.max.Store(s.maxBytes)
	g.asks = func(ctx context.Context, f *fetchFlight) (found, error) {
		return g.ask(ctx, f, f.Key(), question{callers: int64(f.Seal()), lease: g.hotShare > 0 && !g.cache.left.Load()})
	}
	s.hotShare = min(s.hotShare, 1-absentShare)
	g.hotShare = s.hotShare
	small := func(share float64) *store {
		return &store{engine: newLRUEngine(&c.clock, int64(share*float64(s.maxBytes)), nil), aging: aging{clock: &c.clock}}
	}
	g.absent, g.copies = small(absentShare), small(s.hotShare)
	lent := func() int64 { return g.absent.inUse() + g.copies.inUse() + g.decodedBytes() }
	g.main = &store{aging: aging{clock: &c.clock, stale: s.stale, loadTimeout: s.loadTimeout}}
	if s.lru {
		g.main.engine = newLRUEngine(&c.clock, s.maxBytes, lent)
	} else {
		g.main.engine = newPackedEngine(&c.clock, s.maxBytes, lent)
	}
	if s.stale > 0 {
		g.main.hotRate = s.hotRate
	}
	g.main.replicas, g.main.serves = s.owners > 1, g.servesFor
	g.leases.most, g.rates.most, g.journal.most, g.written.most, g.given.most, g.touched.most = tableSizes(s.maxBytes)
	g.fills.keys = make(chan string, mostFills)
	g.main.rates.most = g.rates.most
	return g
}

// forDecoded is how much of the memory decoded values may take: half of what is sure to be there for entries of this
// process.
func (g *group) forDecoded() int64 {
	return int64((1 - absentShare - g.hotShare) / 2 * float64(g.max.Load()))
}

func (g *group) setMaxBytes(n int64) {
	g.max.Store(max(n, 0))
	g.forgetDecoded()
	g.copies.setMax(int64(g.hotShare * float64(n)))
	g.absent.setMax(int64(absentShare * float64(n)))
	g.main.setMax(n)
}
