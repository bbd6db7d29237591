package shoal

// replicas.go: keys that several processes keep (GroupOptions.Owners). The first of them loads and orders the writes; the
// others have what it has: what was loaded comes to them in the background, and a write before it is acknowledged.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/shoalcache/shoal/shoalpb"
)

// keepers returns the n members that keep key, by their indexes, its owner first, and of the rest those first that are in other
// zones.
func (v *view) keepers(key string, n int) []int {
	if len(v.members) == 0 || !v.zoned || n == 1 {
		return v.ring(key, n)
	}
	order := v.ring(key, min(4*n, len(v.members)))
	if len(order) < len(v.members) && v.zonesOf(order) < n {
		order = v.ring(key, len(v.members))
	}
	some := order[:1:1]
	for _, other := range []bool{true, false} {
		for _, i := range order[1:] {
			if len(some) == n {
				return some
			}
			elsewhere := !slices.ContainsFunc(some, func(j int) bool { return v.members[j].Zone == v.members[i].Zone })
			if elsewhere == other && !slices.Contains(some, i) {
				some = append(some, i)
			}
		}
	}
	return some
}

func (v *view) ring(key string, n int) []int {
	if len(v.members) == 0 {
		return nil
	}
	return v.owners.Owners(key, n)
}

func (v *view) zonesOf(members []int) int {
	zones := make(map[string]bool)
	for _, i := range members {
		zones[v.members[i].Zone] = true
	}
	return len(zones)
}

// keeps reports whether this process is among the n that keep key.
func (v *view) keeps(key string, n int) bool {
	if n == 1 || v.self < 0 {
		return v.owns(key)
	}
	return slices.Contains(v.keepers(key, n), v.self)
}

// keeps reports whether this process keeps key for good, as its owner or as a replica.
func (g *group) keeps(key string) bool { return g.cache.peers.view.Load().keeps(key, g.owners) }

// servesFor reports whether what this process keeps of key is for its own callers too. What a replica has may lag behind what
// its owner has, by what has not been copied yet.
func (g *group) servesFor(key string) bool {
	v := g.cache.peers.view.Load()
	owner, mine := v.owner(key)
	return mine || g.cache.opts.ZoneReads && owner != nil && owner.Zone != g.cache.opts.Zone && v.keeps(key, g.owners)
}

// replicaNear returns a replica of key in this process's zone, if that is to be asked first.
func (g *group) replicaNear(owner *peer, key string, q question) *peer {
	zone := g.cache.opts.Zone
	if !g.cache.opts.ZoneReads || g.owners == 1 || owner.Zone == zone || q.want != (want{}) {
		return nil
	}
	v := g.cache.peers.view.Load()
	for _, i := range v.keepers(key, g.owners)[1:] {
		if m := v.members[i]; i != v.self && m.Zone == zone && !m.counts.breaker.open.Load() {
			return m
		}
	}
	return nil
}

// keptBy reports whether the member of index i is among those who keep key.
func (g *group) keptBy(v *view, key string, i int) bool {
	if g.owners == 1 {
		return v.owners.Owner(key) == i
	}
	return slices.Contains(v.keepers(key, g.owners), i)
}

// replicas returns who keeps key beside its owner.
func (g *group) replicas(v *view, key string) (all []*peer) {
	if g.owners == 1 || len(v.members) < 2 {
		return nil
	}
	for _, i := range v.keepers(key, g.owners)[1:] {
		all = append(all, v.members[i])
	}
	return all
}

// A replica is what another owner must have of a key: a value, or the word that it has none.
type replica struct {
	key  string
	e    entry // with its version
	gone bool
}

// replicate does what another owner says of a key: fill says that it was loaded there, and not written, when there had been so
// many purges. It returns the version of what is newer here, or 0.
func (g *group) replicate(r replica, fill bool, purges int64) (newer uint64) {
	g.cache.clock.saw(r.e.version >> 16)
	if owns := g.cache.peers.view.Load().owns(r.key); fill && (owns || !g.keeps(r.key)) {
		return 0 // that process sees other owners; what was loaded does not replace what this one has
	}
	// What was written is kept by whoever is told to: if it is no replica by its own view, frozen, for those who are.
	var cost int64
	store := func() {
		if fill && g.purged.Load() != purges {
			return // it was loaded before that
		}
		// Versions do not tell whether a load by one that sees others had begun before a write that this process knows.
		if loaded := r.e.born + maxLease - g.cache.opts.PeerTimeout; fill && g.getter != nil && loaded <= g.touched.last(r.key) {
			return
		}
		have := g.written.last(r.key)
		if old, ok := g.main.engine.peek(r.key); ok {
			have = max(have, old.version)
		}
		if have > r.e.version {
			newer = have
			return
		}
		if !fill {
			g.touch(r.key)
			g.noteWritten(r.key, r.e.version, false)
		}
		g.absent.remove(r.key, 0)
		if r.gone {
			g.main.remove(r.key, 0)
		} else {
			_, cost = g.main.put(r.key, r.e.value.bytes(), r.e)
		}
	}
	if fill {
		g.loads.Unless(r.key, store)
	} else {
		g.fetches.Overtake(r.key, func() { g.copies.remove(r.key, 0) })
		g.loads.Overtake(r.key, store)
	}
	g.main.shrink(cost)
	g.counts.replicated.Add(1)
	if !g.keeps(r.key) {
		now := g.cache.clock.now()
		if g.cache.opts.Warm >= 0 {
			g.given.note(r.key, now)
		}
		g.freeze(now + g.cache.peers.window/2)
	}
	return newer
}

// raise gives what this process, which owns key, has of it now a version above that, and returns it.
func (g *group) raise(key string, above uint64) accepted {
	v := g.cache.peers.view.Load()
	if owner, mine := v.owner(key); !mine {
		return accepted{err: &notOwner{owner: owner}}
	}
	g.cache.clock.saw(above >> 16)
	var a accepted
	g.loads.Overtake(key, func() {
		if e, ok := g.main.peek(key); ok {
			if e.version < above {
				e.version = g.cache.clock.version()
				e, _ = g.main.put(key, e.value.bytes(), e)
			}
			a.now, a.version = e, e.version
		} else if last := g.written.of(key); last.version != 0 && !last.elsewhere {
			if a.version, a.gone = g.written.last(key), true; a.version < above {
				a.version = g.cache.clock.version()
			}
		} else {
			a.err = errForgotten
			return
		}
		g.noteWritten(key, a.version, false)
	})
	a.replicas = g.replicas(v, key)
	return a
}

var errForgotten = errors.New("the owner holds nothing of the key any more, and a replica has something newer")

// replicate gives the other owners what was written. What is newer there, as the owner's clock may be behind, is overtaken.
func (w *writing) replicate(ctx context.Context) {
	type duty struct {
		to *peer
		i  int
	}
	var todo []duty
	for i, d := range w.done {
		for _, p := range d.replicas {
			if d.err == nil {
				todo = append(todo, duty{p, i})
			}
		}
	}
	var mu sync.Mutex // guards errs and what blame does
	var wg sync.WaitGroup
	for _, d := range todo {
		wg.Go(func() {
			if err := w.replicateTo(ctx, d.to, d.i); err != nil {
				mu.Lock()
				defer mu.Unlock()
				w.g.cache.hints.keep(w.g, d.to, w.changes[d.i].key, w.done[d.i].version)
				w.blame(d.to, d.i, true, err)
			}
		})
	}
	wg.Wait()
}

func (w *writing) replicateTo(ctx context.Context, to *peer, i int) error {
	c, d := w.g.cache, w.done[i]
	for range 3 {
		r := replica{w.changes[i].key, d.now, d.gone}
		r.e.version = d.version
		var newer uint64
		if to.ID == c.peers.self.ID {
			newer = w.g.replicate(r, false, 0)
		} else if all, err := c.replicate(ctx, to, w.g, w.g.generation.message(), []replica{r}, false); err != nil {
			return err
		} else {
			newer = all[0]
		}
		if newer == 0 {
			return nil
		}
		was := d
		if d.acceptor == nil {
			d = w.g.raise(w.changes[i].key, newer)
		} else if raised, err := c.write(ctx, d.acceptor, w.g, w.op, []change{{key: w.changes[i].key, above: newer}}, []int{0}); err != nil {
			return err
		} else {
			d = raised[0]
		}
		if d.err != nil {
			return d.err
		}
		d.acceptor = was.acceptor
		if d.version == newer {
			return nil // it is this very write, or a later one, that is there
		}
	}
	return fmt.Errorf("it always has something newer")
}

// fills are keys that were loaded here, and are to go to the replicas.
type fills struct {
	begun atomic.Bool
	keys  chan string
}

// mostFills is how many wait. Those for whom there is no room are not copied.
const mostFills = 4096

// fill has what was loaded of key copied to the replicas, in the background; or, in a replica that had to drop it, from its
// owner.
func (g *group) fill(key string) {
	if g.owners == 1 || len(g.cache.peers.view.Load().members) < 2 {
		return
	}
	if g.fills.begun.CompareAndSwap(false, true) {
		go g.fillAll(g.cache.life)
	}
	select {
	case g.fills.keys <- key:
	default:
	}
}

// fillAll copies keys to their replicas, those together that have come together.
func (g *group) fillAll(ctx context.Context) {
	for {
		to := make(map[*peer][]replica)
		size := 0
		var generation *shoalpb.Generation // of all of it: what is purged meanwhile is not taken
		add := func(key string) {
			v := g.cache.peers.view.Load()
			if owner, _ := v.owner(key); owner != nil {
				g.restore(ctx, owner, key)
			} else if e, ok := g.main.peek(key); ok {
				size += len(key) + e.value.Len()
				for _, p := range g.replicas(v, key) {
					to[p] = append(to[p], replica{key: key, e: e})
				}
			}
		}
		select {
		case key := <-g.fills.keys:
			generation = g.generation.message()
			add(key)
		case <-ctx.Done():
			return
		}
		for more := true; more && size < pullBytes; {
			select {
			case key := <-g.fills.keys:
				add(key)
			default:
				more = false
			}
		}
		for p, all := range to {
			size := func(r replica) int { return len(r.key) + r.e.value.Len() }
			for some := range batches(g.cache, all, size) {
				g.cache.replicate(ctx, p, g, generation, some, true) // what does not arrive is loaded again when it is needed
			}
		}
	}
}

// restore gets key from its owner, for which this process is a replica.
func (g *group) restore(ctx context.Context, owner *peer, key string) {
	purges, v := g.purged.Load(), g.cache.peers.view.Load()
	if g.cache.peers.isStillSaidToBeBehind(ctx, owner) {
		return
	}
	if e, _, _, err := g.cache.peek(ctx, owner, g, key, false); err == nil && e.err == nil && !e.isStale(g.cache.clock.now()) {
		g.adopt(key, e, v, purges)
	}
}

// replicate gives p what it must have of keys in that generation of g, and returns for each the version of what is newer there,
// or 0.
func (c *Cache) replicate(ctx context.Context, p *peer, g *group, generation *shoalpb.Generation, all []replica, fill bool) ([]uint64, error) {
	r := &shoalpb.Replicate{Entries: make([]*shoalpb.Entry, len(all)), Fill: fill}
	for i, one := range all {
		r.Entries[i] = &shoalpb.Entry{Key: []byte(one.key), Version: one.e.version}
		if !one.gone {
			v := new(shoalpb.Value)
			c.value(&found{entry: one.e}, v)
			r.Entries[i].Value = v
		}
	}
	k := c.tell(p, g, 0)
	defer k.end()
	k.req.Generation, k.req.Op = generation, &shoalpb.Request_Replicate{Replicate: r}
	reply, err := k.next(ctx)
	if isNoGroup(err) {
		return make([]uint64, len(all)), nil
	} else if err != nil {
		return nil, err
	}
	answer := reply.GetReplicated()
	if answer == nil || len(answer.Newer) != len(all) {
		return nil, k.blame(unexpected(reply))
	}
	return answer.Newer, nil
}

// replicate takes over what another owner says of keys.
func (a *answering) replicate(r *shoalpb.Replicate, generation *shoalpb.Generation) {
	answer := &shoalpb.Replicated{Newer: make([]uint64, len(r.Entries))}
	purges := a.group.purged.Load()
	if r.Fill && !a.group.generation.is(generation) {
		purges = -1
	}
	now := a.c.clock.now()
	for i, e := range r.Entries {
		one := replica{key: string(e.Key), gone: e.Value == nil}
		if e.Value != nil {
			one.e = a.group.handed(e.Value, now)
			one.e.born -= maxLease // for it cannot be told how long it was under way, and it must not seem younger than it is
		}
		one.e.version = e.Version
		answer.Newer[i] = a.group.replicate(one, r.Fill, purges)
	}
	a.send(200, &shoalpb.Reply{Answer: &shoalpb.Reply_Replicated{Replicated: answer}})
}
