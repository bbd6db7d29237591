package shoal

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
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
	ttl   func(key string, v V) time.Duration

	decoded *decoded[V] // nil: each caller gets one of its own
}

// Get returns the value of key: from memory, from its owner, or from the [Getter]. The error is ErrNotFound, the
// context's, the Getter's own if it ran here, or a [*PeerError] if it ran elsewhere; use errors.Is and errors.As, for it
// may be wrapped. A load that panicked or took longer than LoadTimeout is an error that wraps [*PanicError] or
// [context.DeadlineExceeded]; a key or value that is too large, or cannot be encoded or decoded, one that says so. What
// is in memory is returned even if ctx has ended. Get is a Getter itself.
func (g *Group[V]) Get(ctx context.Context, key string) (V, error) {
	if g.decoded != nil {
		f, err := g.group.get(ctx, key, want{})
		if err != nil {
			return *new(V), err
		}
		return g.valueOf(key, f)
	}
	value, err := g.group.value(ctx, key)
	if err != nil {
		return *new(V), err
	}
	return g.decode(key, value)
}

// GetOptions are the conditions of [Group.GetEntry].
type GetOptions struct {
	MaxAge     time.Duration // if positive, an older value is loaded anew
	Fresh      bool          // the value must come from a load that begins after the call
	CachedOnly bool          // no Getter runs: ErrNotCached if the owner holds nothing, or, with Fresh, whatever it holds
}

// An Entry is a value and what is known of it.
type Entry[V any] struct {
	Value  V
	Age    time.Duration // since its load, or its Set, began
	Stale  bool          // it is past its TTL
	Source string        // "memory" of this process, "peer", or "getter", here or at a peer
}

// GetEntry is Get on conditions, and tells what it found. The conditions hold even where Stale and StaleIfError
// would allow more: if a load fails that they ask for, its error is returned. In a group without a getter nothing can be
// loaded, and a value that does not meet them is ErrNotFound. Nil options are none.
func (g *Group[V]) GetEntry(ctx context.Context, key string, opts *GetOptions) (Entry[V], error) {
	var w want
	if opts != nil {
		w = want{maxAge: max(opts.MaxAge, 0), fresh: opts.Fresh, cachedOnly: opts.CachedOnly}
	}
	f, err := g.group.get(ctx, key, w)
	if err != nil {
		return Entry[V]{}, err
	}
	e := Entry[V]{Age: g.group.cache.clock.now() - f.born, Stale: f.stale, Source: "memory"}
	if f.loaded {
		e.Source = "getter"
	} else if f.fetched {
		e.Source = "peer"
	}
	e.Value, err = g.valueOf(key, f)
	return e, err
}

// GetMany returns the values of keys. A key without a value is left out and is no error. If others failed, the error
// is a [KeyErrors] and the map has the rest. GroupOptions.GetMany has the same form: it leaves out keys without a
// value and may return KeyErrors beside values; any other error is that of every key it left out.
//
// Each owner is asked once, for all its keys that are not in memory here, and all at the same time; an owner loads with
// GroupOptions.GetMany what it does not hold and is not loading yet, or key by key, some at a time, with the Getter.
func (g *Group[V]) GetMany(ctx context.Context, keys []string) (map[string]V, error) {
	values := make(map[string]V, len(keys))
	failed := make(KeyErrors)
	for key, f := range g.group.many(ctx, keys) {
		v, err := *new(V), f.err
		if err == nil {
			v, err = g.valueOf(key, f.found)
		}
		if err == nil {
			values[key] = v
		} else if !errors.Is(err, ErrNotFound) {
			failed[key] = err
		}
	}
	if len(failed) > 0 {
		return values, failed
	}
	return values, nil
}

// Set makes v the value of key. After it has returned nil, no Get that starts later, on any peer, returns an older
// value. Otherwise its error joins a [*PeerError] for each peer that did not confirm and will be told again: to forget
// what it holds, as soon as it is heard of and every ten seconds at the latest. If that is the owner of the key, v may not
// have been stored; in a group without a getter what was there is left, if so, and v may be found or not: set it again.
// In a group with a getter, change the source first. An ended ctx ends the wait, not the
// write. That v takes more than an eighth of MaxBytes, and so is not kept, is no error:
// GroupStats.Oversized counts it.
//
// A process that does not answer costs a write PeerTimeout if it owns the key, holds a copy, or must be told since the
// key is new to its owner: for the first minute after that started, or other processes came or went.
func (g *Group[V]) Set(ctx context.Context, key string, v V) error {
	return g.set(ctx, key, v, g.ttl(key, v))
}

// SetWithTTL is Set with a TTL for v alone. If ttl is zero or less, v has expired: older values go, v is not kept.
func (g *Group[V]) SetWithTTL(ctx context.Context, key string, v V, ttl time.Duration) error {
	if ttl <= 0 {
		ttl = -1
	}
	return g.set(ctx, key, v, ttl)
}

func (g *Group[V]) set(ctx context.Context, key string, v V, ttl time.Duration) error {
	data, err := g.codec.Append(nil, v)
	if err != nil {
		return fmt.Errorf("encode the value of %.80q in group %q: %w", key, g.group.name, err)
	}
	return g.group.set(ctx, key, data, ttl)
}

// Remove forgets keys on all peers, with the promise and the errors of Set. In a group with a getter they are loaded
// when they are asked for again.
func (g *Group[V]) Remove(ctx context.Context, keys ...string) error {
	return g.group.remove(ctx, keys)
}

// Purge forgets all keys on all peers, with the promise and the errors of Set. It costs each peer the same, however much
// it holds.
func (g *Group[V]) Purge(ctx context.Context) error { return g.group.purge(ctx) }

// Add adds delta to the counter at key and returns the sum. The owner does it in one step; nothing is lost, whoever
// else adds. Only while processes see different owners, as lists have reached one and not yet another, may two that add at the same
// time to two owners count as one. A counter that is not held starts at what the Getter returns, else at zero, unless its
// last owner may hold it and does not answer, which is an error; its TTL runs from there, whatever is added later. It lasts
// as long as the memory that holds it, and an Add that failed may have counted: it has if the sum is not zero, which says
// that only others could not be told. A sum that V cannot hold is an error, and is not kept.
func Add[V ~int | ~int64](ctx context.Context, g *Group[V], key string, delta V) (V, error) {
	sum, err := g.group.addTo(ctx, key, int64(delta))
	return V(sum), err
}

// SetMaxBytes changes GroupOptions.MaxBytes, and HotBytes in the same proportion. Here zero is zero: nothing is kept. Into
// how many parts memory is cut, so that writers do not wait for each other, was decided by MaxBytes at first.
func (g *Group[V]) SetMaxBytes(n int64) { g.group.setMaxBytes(n) }

// Stats returns a snapshot of the group's numbers in this process.
func (g *Group[V]) Stats() GroupStats { return g.group.stats() }

// valueOf returns the value that was found: with Share the one that others have got, if there is one, and else keeps it
// for them if it was in memory already.
func (g *Group[V]) valueOf(key string, f found) (V, error) {
	if g.decoded == nil || f.version == 0 {
		return g.decode(key, f.value)
	}
	if v, ok := g.decoded.get(key, f.version); ok {
		return v, nil
	}
	v, err := g.decode(key, f.value)
	if err == nil && !f.loaded && !f.fetched {
		length := f.value.Len()
		if c, ok := g.codec.(interface{ DecodedLen(data []byte) int }); ok {
			length = c.DecodedLen(f.value.bytes())
		}
		g.group.main.shrink(g.decoded.put(key, f.version, v, length))
	}
	return v, err
}

func (g *Group[V]) decode(key string, value ByteView) (V, error) {
	v, err := g.codec.Decode(value.bytes())
	if err != nil {
		g.group.counts.errors.Add(1)
		return v, fmt.Errorf("decode the value of %.80q in group %q: %w", key, g.group.name, err)
	}
	return v, nil
}

// A group is what a Group[V] is without V: keys and bytes. This is the story of a Get; that of a write is in write.go.
type group struct {
	name      string
	nameBytes []byte // the same, for messages
	cache     *Cache
	settings

	getter func(ctx context.Context, key string) loaded          // nil: none
	batch  func(ctx context.Context, keys []string) []loaded     // nil: keys are loaded one by one
	zero   func(key string) loaded                               // what a counter starts at; nil: values are no counters
	add    func(data []byte, delta int64) ([]byte, int64, error) // adds to one

	max    atomic.Int64 // MaxBytes
	main   *store       // what this process owns
	absent *store       // … and the getter has said in place of values
	copies *store       // of others' hot keys, under lease

	// There are two kinds of flight. A load is done here, for callers of this process and of others; a fetch asks
	// another process. A load never waits for a fetch: so whatever two processes believe about who owns a key, they
	// never wait for each other.
	loads   singleflight.Group[string, found]
	fetches singleflight.Group[string, found]
	asks    func(context.Context, *fetchFlight) (found, error) // ask for all who have gathered

	// Of decoded values, for GroupOptions.Share.
	decodedBytes  func() int64
	forgetDecoded func()

	changes   [changeCounts]atomic.Uint64 // writes of keys, by a hash
	refilling atomic.Int64                // how often it has had to drop what others may have, until that has been asked for again
	touched   touched                     // … when
	purged    atomic.Int64                // how often all was dropped; changed under the lock of loads
	journal   journal                     // writes that this process has taken, and purges

	written lastWrites // where there are replicas, or no getter
	given   given      // where there are replicas
	fills   fills

	freezing sync.Mutex    // guards thawAt, and is held while what is frozen is dropped
	thawAt   time.Duration // when that is to be; 0: never

	standing   standsIn
	rates      rates  // how often peers ask for a key
	leases     leases // who may hold a copy of one
	generation generation

	counts groupCounts
}

// want is what a caller asks of a value.
type want struct {
	maxAge     time.Duration // if positive
	fresh      bool
	cachedOnly bool
	anew       bool // what there is must be replaced
}

// takes reports whether e will do for a call that began then, whether past its TTL or not. What has been loaded since
// does, however long that took.
func (w want) takes(e *entry, began, now time.Duration) bool {
	return e.born >= began || !w.fresh && (w.maxAge == 0 || now-e.born <= w.maxAge)
}

// found is what came of looking for a key.
type found struct {
	entry
	stale   bool          // it is past its TTL
	loaded  bool          // a getter ran for it
	fetched bool          // it is another process's
	kept    bool          // it is in memory
	asked   time.Duration // when another process was asked for it, on the clock
	over    bool          // … it is not, since something was written after its load had begun
	failed  error         // what came of the load that was to replace it
	lease   time.Duration // how long the peer that asks may serve it without asking again
}

// value answers a caller of this process who wants no more than the value.
func (g *group) value(ctx context.Context, key string) (ByteView, error) {
	if value, due, ok := g.main.get(key); ok {
		if due {
			g.loadAnew(key)
		}
		return value, nil
	}
	f, err := g.getElse(ctx, key, want{})
	return f.value, err
}

// get answers a caller of this process who wants to know more.
func (g *group) get(ctx context.Context, key string, w want) (found, error) {
	if w == (want{}) {
		if e, due, ok := g.main.use(key, 1, false); ok {
			return g.hit(key, e, due), nil
		}
	}
	return g.getElse(ctx, key, w)
}

// getElse gets what main does not have, or what was not looked for there since it must meet conditions.
func (g *group) getElse(ctx context.Context, key string, w want) (found, error) {
	f, ok := g.held(key, w)
	if !ok {
		var err error
		f, err = g.find(ctx, key, w)
		g.counts.missed(f, err)
		return f, err
	}
	if f.err != nil {
		g.counts.missed(f, f.err)
	}
	return f, f.err
}

// hit makes the result of what memory has of a key of this process.
func (g *group) hit(key string, e entry, due bool) found {
	if due {
		g.loadAnew(key)
	}
	return found{entry: e, stale: e.fresh != 0 && e.isStale(g.cache.clock.now()), kept: true}
}

// loadAnew loads key in the background, to replace what there is.
func (g *group) loadAnew(key string) {
	g.counts.reloads.Add(1)
	key = strings.Clone(key) // it may be part of a message
	go g.load(context.Background(), key, want{anew: true})
}

// held looks at what memory has of key, but for main if there are no conditions: that has been looked at.
func (g *group) held(key string, w want) (found, bool) {
	if w.fresh {
		return found{}, false
	}
	now := g.cache.clock.now()
	if w.cachedOnly { // which has no load replace anything, and serves what waits for one
		if e, ok := g.main.peek(key); ok && w.takes(&e, now, now) {
			return g.hit(key, e, false), true
		}
	}
	look := func(s *store) (e entry, due, ok bool) {
		if s.inUse() == 0 {
			return entry{}, false, false
		}
		if w != (want{}) {
			if e, ok := s.peek(key); !ok || !w.takes(&e, now, now) {
				return entry{}, false, false
			}
		}
		return s.use(key, 1, false)
	}
	if w != (want{}) && !w.cachedOnly {
		if e, due, ok := look(g.main); ok {
			return g.hit(key, e, due), true
		}
	}
	if e, _, ok := look(g.absent); ok {
		return found{entry: e, kept: true}, true
	}
	if e, _, ok := look(g.copies); ok {
		e.uses.Add(1)
		return found{entry: e, stale: e.late}, true
	}
	return found{}, false
}

// find gets what memory does not have: from the owner, or by a load if this process owns key or cannot ask who does.
func (g *group) find(ctx context.Context, key string, w want) (found, error) {
	if err := g.cache.checkKey(key); err != nil {
		return found{}, fmt.Errorf("get from group %q: %w", g.name, err)
	}
	if owner, _ := g.cache.peers.view.Load().owner(key); owner != nil {
		f, err := g.fetch(ctx, key, w)
		if !g.fallsBack(err) || w.cachedOnly {
			return f, err
		}
	}
	return g.loadHere(ctx, key, w)
}

// fallsBack reports whether err says that no owner has looked for the key, so that it may be loaded here.
func (g *group) fallsBack(err error) bool {
	if errors.Is(err, errNoOwner) {
		return true
	}
	p, ok := errors.AsType[*PeerError](err)
	return ok && p.Op == "get" && g.getter != nil
}

// hasNext reports whether err says that the owner did not look for the key, and that others may have it, or load it.
func (g *group) hasNext(err error) bool {
	p, ok := errors.AsType[*PeerError](err)
	return ok && p.Op == "get" && (g.getter != nil || g.owners > 1)
}

var errNoOwner = errors.New("nobody is known who could own the key")

// loadHere loads key in this process, which may not own it.
func (g *group) loadHere(ctx context.Context, key string, w want) (found, error) {
	if g.getter == nil && !g.cache.peers.view.Load().owns(key) {
		return found{}, &PeerError{Op: "get", Err: fmt.Errorf("key %.80q of group %q: %w", key, g.name, errNoOwner)}
	}
	if w.cachedOnly {
		return found{}, ErrNotCached
	}
	f, err := g.load(ctx, key, w)
	if _, moved := err.(*notOwner); moved { // while it waited to act as the owner
		return g.fetch(ctx, key, w)
	}
	return f, err
}

// fetch asks the owner of key. Nobody joins a question that has been sent, for the answer may have been made before a
// write that a later caller must see: later callers gather in the next. A question on conditions is asked for one caller.
func (g *group) fetch(ctx context.Context, key string, w want) (found, error) {
	var f found
	var err error
	if w != (want{}) {
		f, err = g.ask(ctx, nil, key, question{want: w, callers: 1})
	} else {
		f, err = g.fetches.Ask(ctx, key, g.asks)
	}
	if err == nil {
		err = f.err // no error of the flight's, which would be one for later callers too
	}
	return f, err
}

// A fetchFlight is a question to an owner, for all who have gathered.
type fetchFlight = singleflight.Flight[string, found]

// ask asks the owner of key, in flight if there is one, and keeps a copy if the owner gives a lease. That there is no
// value is no error here.
func (g *group) ask(ctx context.Context, flight *fetchFlight, key string, q question) (found, error) {
	owner, _ := g.cache.peers.view.Load().owner(key)
	if owner == nil {
		return found{}, errNoOwner // there was one when these callers began to gather
	}
	var before entry
	if q.lease && g.copies.inUse() > 0 {
		var ok bool
		if before, ok = g.copies.peek(key); ok {
			q.have = before.version
			q.callers += before.uses.Load()
			q.over = g.cache.clock.now() - (before.fresh - g.hotLease)
		}
	}
	if near := g.replicaNear(owner, key, q); near != nil {
		if f, err := g.cache.fetch(ctx, flight, near, g, key, question{want: want{cachedOnly: true}, callers: q.callers, standIn: true}, entry{}); err == nil {
			return f, nil
		}
	}
	g.counts.fetches.Add(1)
	asked := g.cache.clock.now()
	f, err := g.fetchHedged(ctx, flight, owner, key, q, before)
	if other, ok := errors.AsType[*notOwner](err); ok && other.owner != nil && other.owner.ID != g.cache.peers.self.ID {
		// The views differ. The owner's word is taken once; after that the key is loaded here.
		g.counts.fetches.Add(1)
		q.lease, q.have = false, 0
		there := g.cache.peers.lately(other.incarnation, other.owner)
		f, err = g.cache.fetch(ctx, flight, there, g, key, q, entry{})
		if _, again := errors.AsType[*notOwner](err); !again {
			owner = there
		}
	} else if f.lease > 0 && q.lease {
		copy := f.entry
		copy.fresh = f.asked + min(f.lease, maxLease) // the owner counts from later
		copy.ends, copy.late, copy.uses = copy.fresh+maxLease, f.stale, new(atomic.Int64)
		var cost int64
		flight.Commit(func() { _, cost = g.copies.put(key, f.value.bytes(), copy) })
		g.shrink(g.copies, cost)
	}
	// Who has waited for a load that fell silent is not sent to another who would load.
	if g.hasNext(err) && !q.cachedOnly && g.cache.clock.now()-asked <= 2*g.cache.opts.PeerTimeout {
		return g.askNext(ctx, flight, owner, key, q, err)
	}
	return f, err
}

// forgetLoaded drops what can be loaded again, since writes of it may have been missed.
func (g *group) forgetLoaded() {
	if g.getter != nil {
		g.fetches.ForgetAll()
		g.copies.clear()
		g.loads.OvertakeAll(func() {
			g.main.clear()
			g.absent.clear()
		})
	}
}
