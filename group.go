package shoal

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/shoalcache/shoal/singleflight"
)

// A Getter loads the value of a key from its source. For a key without a value it returns [ErrNotFound], bare or
// wrapped. It runs in the process that owns the key, whichever was asked, and serves every caller that waits. So ctx
// is not a caller's: it has none of their values, and ends when the last of them has left or LoadTimeout has passed;
// what a Getter must know belongs in the key. Of its error only the text reaches other processes, ErrNotFound
// excepted; what callers must tell apart belongs in V. It must not come to ask for its own key.
type Getter[V any] func(ctx context.Context, key string) (V, error)

// A Group is a set of keys whose values have one type and one source. Its methods may be called concurrently.
type Group[V any] struct {
	group *group
	codec Codec[V]
}

// GroupOptions are the options of [NewGroup], the same in all processes. The zero value of each field is its default.
type GroupOptions[V any] struct {
	MaxBytes int64         // memory in this process, overhead included; if zero, 64 MiB
	TTL      time.Duration // how long a value is fresh; if zero, for ever; if negative, it is not kept
	Jitter   float64       // largest share of a TTL by which it is cut, at random
	// TTLFor, if not nil, replaces TTL. Unlike a field's zero, a result of zero or less means that v is not kept:
	// it answers those who wait for it.
	TTLFor      func(key string, v V) time.Duration
	LoadTimeout time.Duration // longest load; if zero, 30 s
	Codec       Codec[V]      // if nil, see Codec
}

// NewGroup makes the group that all peers know by name. If get is nil, the group is a plain key-value cache, in which a
// key that is not held is [ErrNotFound], and one whose owner cannot be reached is a [*PeerError]. NewGroup panics if
// the name is taken, V would lose parts when encoded, or an option is out of range; the message names the field.
func NewGroup[V any](c *Cache, name string, get Getter[V], opts *GroupOptions[V]) *Group[V] {
	var o GroupOptions[V]
	if opts != nil {
		o = *opts
	}
	bad := func(field string, why any) {
		panic(fmt.Sprintf("shoal: NewGroup(%q): %s %v", name, field, why))
	}
	o.MaxBytes = cmp.Or(o.MaxBytes, 64<<20)
	o.LoadTimeout = cmp.Or(o.LoadTimeout, 30*time.Second)
	if o.Codec == nil {
		var err error
		if o.Codec, err = codecFor[V](); err != nil {
			bad("V:", fmt.Errorf("%w; give GroupOptions.Codec", err))
		}
	}
	switch {
	case o.MaxBytes < 0:
		bad("GroupOptions.MaxBytes", "is negative")
	case !(o.Jitter >= 0 && o.Jitter <= 1):
		bad("GroupOptions.Jitter", "is not between 0 and 1")
	case o.LoadTimeout < 0:
		bad("GroupOptions.LoadTimeout", "is negative")
	}
	g := &group{name: name, cache: c, loadTimeout: o.LoadTimeout, store: newStore(o.MaxBytes)}
	if get != nil {
		g.getter = func(ctx context.Context, key string) ([]byte, time.Duration, error) {
			v, err := get(ctx, key)
			if err != nil {
				return nil, 0, err
			}
			data, err := o.Codec.Append(nil, v)
			if err != nil {
				return nil, 0, fmt.Errorf("encode the value of %.80q in group %q: %w", key, name, err)
			}
			return data, o.ttl(key, v), nil
		}
	}
	if !c.register(g) {
		bad("name", "is taken")
	}
	return &Group[V]{group: g, codec: o.Codec}
}

// ttl returns how long v is kept: zero means for ever, less that it is not.
func (o *GroupOptions[V]) ttl(key string, v V) time.Duration {
	ttl := o.TTL
	if o.TTLFor != nil {
		if ttl = o.TTLFor(key, v); ttl <= 0 {
			return -1
		}
	}
	if ttl <= 0 {
		return ttl
	}
	return max(ttl-time.Duration(o.Jitter*rand.Float64()*float64(ttl)), 1)
}

// Get returns the value of key: from memory, from its owner, or from the [Getter]. The error is ErrNotFound, the
// context's, the Getter's own if it ran here, or a [*PeerError] if it ran elsewhere; use errors.Is and errors.As, for it
// may be wrapped. A load that panicked or took longer than LoadTimeout is an error that wraps [*PanicError] or
// [context.DeadlineExceeded]; a key or value that is too large, or cannot be encoded or decoded, one that says so. What
// is in memory is returned even if ctx has ended. Get is a Getter itself.
func (g *Group[V]) Get(ctx context.Context, key string) (V, error) {
	value, err := g.group.get(ctx, key)
	if err != nil {
		var zero V
		return zero, err
	}
	v, err := g.codec.Decode(value.bytes())
	if err != nil {
		g.group.counts.errors.Add(1)
		return v, fmt.Errorf("decode the value of %.80q in group %q: %w", key, g.group.name, err)
	}
	return v, nil
}

// SetMaxBytes changes GroupOptions.MaxBytes. Here zero is zero: nothing is kept.
func (g *Group[V]) SetMaxBytes(n int64) { g.group.store.setMax(n) }

// Stats returns a snapshot of the group's numbers in this process.
func (g *Group[V]) Stats() GroupStats { return g.group.stats() }

// A group is what a Group[V] is without V: keys and bytes. This is the story of a Get.
type group struct {
	name        string
	cache       *Cache
	getter      func(ctx context.Context, key string) (data []byte, ttl time.Duration, err error) // nil: none
	loadTimeout time.Duration
	store       *store

	// There are two kinds of flight. A load is done here, for callers of this process and of others; a fetch asks
	// another process. A load never waits for a fetch: so whatever two processes believe about who owns a key, they
	// never wait for each other.
	loads   singleflight.Group[string, found]
	fetches singleflight.Group[string, found]

	counts groupCounts
}

// found is what came of looking for a key.
type found struct {
	value   ByteView
	ttl     time.Duration // how long it stays fresh; 0: for ever; negative: it is not kept
	loaded  bool          // a getter ran for it
	fetched bool          // it is another process's
	missing bool          // of a fetch: there is no value
}

// get answers a caller of this process.
func (g *group) get(ctx context.Context, key string) (ByteView, error) {
	if e, ok := g.store.get(key); ok {
		return e.value, nil
	}
	f, err := g.find(ctx, key)
	g.counts.missed(f, err)
	return f.value, err
}

// find gets what memory does not have: from the owner, or by a load if this process owns key or cannot ask who does.
func (g *group) find(ctx context.Context, key string) (found, error) {
	if err := g.cache.checkKey(key); err != nil {
		return found{}, fmt.Errorf("get from group %q: %w", g.name, err)
	}
	if owner, _ := g.cache.peers.view.Load().owner(key); owner != nil {
		f, err := g.fetch(ctx, key)
		if f.missing {
			return f, ErrNotFound
		}
		if !notAsked(err) || g.getter == nil && !errors.Is(err, errNoOwner) {
			return f, err
		}
	}
	if g.getter == nil && !g.cache.peers.view.Load().owns(key) {
		return found{}, &PeerError{Op: "get", Err: fmt.Errorf("key %.80q of group %q: nobody is known who could own it", key, g.name)}
	}
	return g.load(ctx, key)
}

// answer answers a peer that takes this process for the owner of key. It calls loading before it waits for a load. It
// never asks another process.
func (g *group) answer(ctx context.Context, key string, loading func(longest time.Duration)) (found, error) {
	g.counts.requests.Add(1)
	if e, ok := g.store.serve(key); ok {
		return found{value: e.value, ttl: g.store.remaining(e)}, nil
	}
	if owner, mine := g.cache.peers.view.Load().owner(key); !mine {
		return found{}, &notOwner{owner}
	}
	loading(g.loadTimeout)
	return g.load(ctx, key)
}

// fetch asks the owner of key. Nobody joins a question that has been sent, for the answer may have been made before a
// write that a later caller must see: later callers gather in the next.
func (g *group) fetch(ctx context.Context, key string) (found, error) {
	return g.fetches.Do(ctx, key, 0, func(ctx context.Context, f *singleflight.Flight[string, found]) (found, error) {
		f.Seal()
		owner, _ := g.cache.peers.view.Load().owner(key)
		if owner == nil {
			return found{}, errNoOwner // there was one when these callers began to gather
		}
		g.counts.fetches.Add(1)
		result, err := g.cache.fetch(ctx, owner, g.name, key, g.loadTimeout)
		if other, ok := errors.AsType[*notOwner](err); ok && other.owner != nil && other.owner.ID != g.cache.peers.self.ID {
			// The views differ. The owner's word is taken once; after that the key is loaded here.
			g.counts.fetches.Add(1)
			result, err = g.cache.fetch(ctx, other.owner, g.name, key, g.loadTimeout)
		}
		return result, err
	})
}

// notAsked reports whether err says that no owner has looked for the key.
func notAsked(err error) bool {
	if errors.Is(err, errNoOwner) {
		return true
	}
	p, ok := errors.AsType[*PeerError](err)
	return ok && p.Op == "get"
}

var errNoOwner = errors.New("nobody else owns the key")

// load runs the getter, once for all who wait, here and at peers. What it returns is kept if this process owns key.
func (g *group) load(ctx context.Context, key string) (found, error) {
	f, err := g.loads.Do(ctx, key, g.loadTimeout, func(ctx context.Context, f *singleflight.Flight[string, found]) (found, error) {
		// Another load may have ended between the caller's look at memory and this flight's start.
		if e, ok := g.store.peek(key); ok {
			return found{value: e.value, ttl: g.store.remaining(e)}, nil
		}
		if g.getter == nil {
			return found{}, ErrNotFound
		}
		data, ttl, err := g.run(ctx, key)
		if err != nil {
			return found{}, err
		}
		if ttl >= 0 {
			g.keep(f, key, data, ttl)
		}
		return found{value: NewByteView(data), ttl: ttl, loaded: true}, nil
	})
	if _, ok := errors.AsType[*PanicError](err); ok || ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("load %.80q of group %q: %w", key, g.name, err)
	}
	return f, err
}

// run runs the getter.
func (g *group) run(ctx context.Context, key string) (data []byte, ttl time.Duration, err error) {
	g.counts.loads.Add(1)
	if !g.cache.peers.view.Load().owns(key) {
		g.counts.unownedLoads.Add(1)
	}
	panicked := true
	defer func() {
		if panicked {
			g.counts.loadPanics.Add(1)
		}
		if panicked || err != nil && !errors.Is(err, ErrNotFound) {
			g.counts.loadErrors.Add(1)
		}
	}()
	data, ttl, err = g.getter(ctx, key)
	panicked = false
	if most := g.cache.opts.MaxValueBytes; err == nil && int64(len(data)) > most {
		err = fmt.Errorf("the value of %.80q in group %q has %d bytes, more than MaxValueBytes, %d", key, g.name, len(data), most)
	}
	return data, ttl, err
}

// keep puts what flight f has loaded into memory, if key is this process's and the flight has not been forgotten. It is
// forgotten if the key goes to another process just now: see viewSwapped.
func (g *group) keep(f *singleflight.Flight[string, found], key string, data []byte, ttl time.Duration) {
	if !g.cache.peers.view.Load().owns(key) {
		return
	}
	if cap(data)-len(data) > len(data)/8 {
		data = bytes.Clone(data)
	}
	f.Commit(func() { g.store.set(key, data, ttl) })
}

// viewSwapped forgets what this process owned under the old view and does not own under the new one: first the loads,
// which then keep nothing any more, then what they have kept. Who asks from now on asks an owner of the new view, and
// does not gather behind a question to one of the old.
func (g *group) viewSwapped(old, new *view) {
	for _, key := range g.fetches.Keys() {
		g.fetches.Forget(key)
	}
	for _, key := range g.loads.Keys() {
		if old.owns(key) && !new.owns(key) {
			g.loads.Forget(key)
		}
	}
	g.store.retain(new.owns)
}
