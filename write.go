package shoal

// write.go: what a write is. The originator drops what it holds itself, and sends the write to the owner, which forgets
// the load that may be under way, orders the write by a version, and says who must be told: those who hold leases, or,
// while it cannot be sure who holds what, everybody. The originator tells them, and when each has answered, or its lease
// has run out, the write has happened: nobody holds an older value, and nothing that is under way will store one.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/shoalcache/shoal/shoalpb"
)

// A change is what is to be done to one key.
type change struct {
	key   string
	value []byte        // to set
	ttl   time.Duration // … 0: for ever; negative: it is not kept
	delta int64         // to add
	above uint64        // if not 0: nothing changes, but what there is gets a higher version
}

// accepted is what has come of a change at its owner.
type accepted struct {
	version  uint64
	acceptor *peer    // who took it; nil: this process, or nobody
	sum      int64    // of an add
	holders  []holder // who may hold an older value
	all      bool     // everybody may
	known    []*peer  // … whom the owner knows,
	past     []*peer  // and who need not be there any more
	replicas []*peer  // who else keeps the key
	now      entry    // … and what they must have of it,
	gone     bool     // or that it is not there
	err      error    // why it was not done
	spared   bool     // … and what there is stays, but for copies
}

func (g *group) set(ctx context.Context, key string, data []byte, ttl time.Duration) error {
	g.counts.sets.Add(1)
	if most := g.cache.opts.MaxValueBytes; int64(len(data)) > most {
		// What there is of key is old all the same.
		_, err := g.change(ctx, shoalpb.Write_REMOVE, []change{{key: key}})
		return errors.Join(fmt.Errorf("set %.80q in group %q: the value of %d bytes is longer than MaxValueBytes, %d", key, g.name, len(data), most), err)
	}
	_, err := g.change(ctx, shoalpb.Write_SET, []change{{key: key, value: data, ttl: ttl}})
	return err
}

func (g *group) remove(ctx context.Context, keys []string) error {
	g.counts.removes.Add(int64(len(keys)))
	changes := make([]change, 0, len(keys))
	named := make(map[string]bool, len(keys))
	var errs []error
	for _, key := range keys {
		if err := g.cache.checkKey(key); err != nil {
			errs = append(errs, fmt.Errorf("remove from group %q: %w", g.name, err))
		} else if !named[key] {
			named[key] = true
			changes = append(changes, change{key: key})
		}
	}
	_, err := g.change(ctx, shoalpb.Write_REMOVE, changes)
	return errors.Join(append(errs, err)...)
}

func (g *group) addTo(ctx context.Context, key string, delta int64) (int64, error) {
	g.counts.adds.Add(1)
	done, err := g.change(ctx, shoalpb.Write_ADD, []change{{key: key, delta: delta}})
	if len(done) == 0 {
		return 0, err
	}
	return done[0].sum, err
}

// change carries out changes of one kind, of different keys. If ctx ends, it goes on without the caller.
func (g *group) change(ctx context.Context, op shoalpb.Write_Op, changes []change) ([]accepted, error) {
	for _, c := range changes {
		if err := g.cache.checkKey(c.key); err != nil {
			return nil, fmt.Errorf("%s in group %q: %w", opName(op), g.name, err)
		}
	}
	w := &writing{g: g, op: op, changes: changes, done: make([]accepted, len(changes)), version: g.cache.clock.version()}
	if w.mustWait = w.isUngreeted(); !w.mustWait {
		w.here(ctx)
	}
	if len(w.elsewhere) == 0 && !w.mustTell() && !w.mustWait {
		return w.done, errors.Join(w.errs...)
	}
	over := false
	err := g.cache.carryOut(ctx, fmt.Sprintf("%s in group %q", opName(op), g.name), func(ctx context.Context) error {
		if w.mustWait {
			w.here(ctx)
		}
		w.there(ctx)
		w.replicate(ctx)
		w.tell(ctx)
		return errors.Join(w.errs...)
	}, func() { over = true })
	if !over {
		return nil, err // what is done is not known yet
	}
	return w.done, err
}

func opName(op shoalpb.Write_Op) string {
	switch op {
	case shoalpb.Write_SET:
		return "set"
	case shoalpb.Write_REMOVE:
		return "remove"
	default:
		return "add"
	}
}

// writing is a write under way, at its originator.
type writing struct {
	g         *group
	op        shoalpb.Write_Op
	changes   []change
	done      []accepted      // in the order of changes
	version   uint64          // below all that owners give it: of what a hint about it may drop
	elsewhere map[*peer][]int // by owner, indexes of changes
	mustWait  bool            // for a greeting, before this process may act as an owner
	errs      []error
	missed    map[string]*missed // of errs, by the peer's ID
}

// missed is the error of a peer that has not done its part for some keys.
type missed struct {
	tell  bool   // the owner has done it, but this peer could not be told
	key   string // the first of them
	group string
	more  int
	err   error // what was wrong with the first
}

func (e *missed) Error() string {
	what, more := "key", ""
	if e.tell {
		what = "to tell it of key"
	}
	if e.more > 0 {
		more = fmt.Sprintf(" and %d more", e.more)
	}
	return fmt.Sprintf("%s %.80q%s of group %q: %v", what, e.key, more, e.group, e.err)
}

func (e *missed) Unwrap() error { return e.err }

// isUngreeted reports whether a key has come to this process just now, and not everybody has been greeted yet.
func (w *writing) isUngreeted() bool {
	v := w.g.cache.peers.view.Load()
	return slices.ContainsFunc(w.changes, func(c change) bool { return v.owns(c.key) && v.ungreeted(c.key) != nil })
}

// here does what can be done in this process: it drops copies, and changes what this process owns.
func (w *writing) here(ctx context.Context) {
	v := w.g.cache.peers.view.Load()
	w.elsewhere = make(map[*peer][]int)
	for i, c := range w.changes {
		owner, mine := v.owner(c.key)
		if mine {
			w.done[i] = w.g.accept(ctx, w.op, c, func(time.Duration) {})
			if other, ok := w.done[i].err.(*notOwner); ok {
				owner, mine = other.owner, false // since just now
			} else if err := w.done[i].err; err != nil {
				w.errs = append(w.errs, fmt.Errorf("%s %.80q in group %q: %w", opName(w.op), c.key, w.g.name, err))
			}
		} else {
			w.g.drop(c.key, w.version, w.g.getter == nil) // without a getter, what this process keeps may be the last there is
		}
		if owner != nil {
			w.elsewhere[owner] = append(w.elsewhere[owner], i)
		} else if !mine {
			w.fail(i, nil, errNoOwner)
		}
	}
}

// copiesOnly is a version below all: nothing is older than that, so only copies are dropped for it.
const copiesOnly = 1

// fail takes note that the change of index i did not reach its owner.
func (w *writing) fail(i int, owner *peer, err error) {
	// What cannot be loaded, or has been counted, is left where it is kept: it may be all there is. If the owner has taken the
	// write all the same, copies are old, and an Add's end with their leases.
	d := accepted{version: w.version, all: true, err: err}
	if w.g.getter == nil || w.op == shoalpb.Write_ADD {
		d.version, d.all, d.spared = copiesOnly, w.op != shoalpb.Write_ADD && !isNotDone(err), true
	}
	w.done[i] = d
	if owner == nil {
		w.blame(new(peer), i, false, err)
		return
	}
	w.blame(owner, i, false, err)
	if _, ok := errors.AsType[*notOwner](err); !ok {
		w.done[i].acceptor = owner // it is not told now
		if !d.spared {
			w.g.cache.hints.keep(w.g, owner, w.changes[i].key, d.version)
		}
	}
}

// isNotDone reports whether err says for sure that a write has not been taken: it was not sent, or refused.
func isNotDone(err error) bool {
	_, refused := errors.AsType[*refusedError](err)
	_, elsewhere := errors.AsType[*notOwner](err)
	return refused || elsewhere || errors.Is(err, errSilent) || errors.Is(err, errBusy) || errors.Is(err, errNoOwner)
}

// blame adds to the errors what p has not done.
func (w *writing) blame(p *peer, i int, tell bool, err error) {
	if m := w.missed[p.ID]; m != nil {
		m.more++
		return
	}
	if w.missed == nil {
		w.missed = make(map[string]*missed)
	}
	m := &missed{tell: tell, key: w.changes[i].key, group: w.g.name, err: err}
	w.missed[p.ID] = m
	w.errs = append(w.errs, &PeerError{Peer: p.Peer, Op: opName(w.op), Err: m})
}

// there sends changes to their owners. An owner that says whose a key is, is believed once.
func (w *writing) there(ctx context.Context) {
	for turn := range 2 {
		var (
			mu   sync.Mutex // guards next, and fail
			next = make(map[*peer][]int)
			wg   sync.WaitGroup
		)
		for owner, all := range w.elsewhere {
			size := func(i int) int { return len(w.changes[i].key) + len(w.changes[i].value) }
			for some := range batches(w.g.cache, all, size) {
				wg.Go(func() {
					done, err := w.g.cache.write(ctx, owner, w.g, w.op, w.changes, some)
					mu.Lock()
					defer mu.Unlock()
					for j, i := range some {
						err := err
						if err == nil {
							w.done[i] = done[j]
							err = done[j].err
						}
						if other, ok := errors.AsType[*notOwner](err); ok && turn == 0 && other.owner != nil && other.owner.ID != w.g.cache.peers.self.ID {
							next[other.owner] = append(next[other.owner], i)
							continue
						}
						if not, ok := errors.AsType[*notDone](err); ok {
							w.errs = append(w.errs, &PeerError{Peer: owner.Peer, Op: not.op, Err: fmt.Errorf("key %.80q of group %q: %w", w.changes[i].key, w.g.name, not.err)})
						} else if err != nil {
							w.fail(i, owner, err)
						}
					}
				})
			}
		}
		wg.Wait()
		w.elsewhere = next
	}
}

// drop makes sure that nothing older than the write of key of that version is served here, nor stored by what is under
// way. Where this process has taken that write itself, that means copies only.
func (g *group) drop(key string, version uint64, own bool) {
	g.fetches.Overtake(key, func() { g.copies.remove(key, 0) })
	if own || version == copiesOnly {
		return
	}
	if version != 0 {
		g.noteWritten(key, version, true)
	}
	kept := false
	g.loads.Overtake(key, func() {
		g.touch(key)
		g.copies.remove(key, 0)              // of a stand-in
		if version == 0 || g.getter != nil { // it can be loaded again
			if e, ok := g.main.engine.peek(key); ok && version != 0 && e.version == version && g.remembersWrites() {
				kept = true // it is what was written, which a replica has been given
			} else {
				g.main.remove(key, 0)
			}
		} else {
			g.main.remove(key, version-1)
		}
		g.absent.remove(key, 0)
	})
	if g.owners > 1 && !kept && g.keeps(key) && !g.cache.peers.view.Load().owns(key) {
		g.fill(strings.Clone(key))
	}
}

// changed counts writes of key, and of others that have its hash. It is changed under the lock of loads.
func (g *group) changed(key string) *atomic.Uint64 { return &g.changes[changeOf(key)] }

func changeOf(key string) uint64 { return xxhash.Sum64String(key) % changeCounts }

const changeCounts = 256

// accept does what a write asks of the owner. It calls loading before it waits: for others to be greeted, or, in an add, for a load.
func (g *group) accept(ctx context.Context, op shoalpb.Write_Op, c change, loading func(longest time.Duration)) accepted {
	v, err := g.cache.peers.greetedFor(ctx, c.key, func() {
		if op == shoalpb.Write_ADD {
			loading(g.longestStart()) // which may come then
		} else {
			loading(g.cache.opts.PeerTimeout)
		}
	})
	if err != nil {
		return accepted{err: &notDone{opName(op), err}}
	}
	if owner, mine := v.owner(c.key); !mine {
		return accepted{err: &notOwner{owner: owner}}
	}
	if c.above != 0 {
		return g.raise(c.key, c.above)
	}
	g.counts.writes.Add(1)
	var e entry
	var cost, sum int64
	if op == shoalpb.Write_ADD {
		var err error
		if e, sum, err = g.increase(ctx, c.key, c.delta, loading); err != nil {
			return accepted{err: err}
		}
	} else {
		if op == shoalpb.Write_REMOVE {
			c.ttl = -1
		}
		data := trimmed(c.value)
		e = g.aged(entry{born: g.cache.clock.now()}, c.ttl)
		g.loads.Overtake(c.key, func() {
			g.touch(c.key)
			e, cost = g.keep(g.main, c.key, data, e, c.ttl)
		})
		g.main.shrink(cost)
	}
	if now := g.cache.peers.view.Load(); now != v {
		if owner, mine := now.owner(c.key); !mine { // the swap may have missed what was just stored
			g.drop(c.key, 0, false)
			return accepted{err: &notOwner{owner: owner}}
		}
		v = now
	}
	g.journal.note(strings.Clone(c.key), e.version, g.cache.clock.now(), g.cache.peers.owns)
	advance(&g.cache.peers.wrote, g.cache.clock.now())
	g.noteWritten(c.key, e.version, false)
	w := accepted{version: e.version, sum: sum, replicas: g.replicas(v, c.key), now: e, gone: c.ttl < 0, holders: g.leases.of(c.key, g.cache.clock.now())}
	p := &g.cache.peers
	if w.all = p.tellAll(c.key, g.owners); !w.all {
		advance(&p.toldFew, g.cache.clock.now())
		w.all = p.tellAll(c.key, g.owners) // somebody may have been met just before that was noted
	}
	if w.all {
		w.known, w.past = p.everybody()
	}
	return w
}
