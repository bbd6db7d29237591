package shoal

// tell.go: how all who may hold something older hear of a write, before it has happened.

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

// mustTell reports whether somebody must be told of changes that this process has taken.
func (w *writing) mustTell() bool {
	for _, d := range w.done {
		if len(d.holders) > 0 || d.all && len(d.known)+len(d.past) > 0 {
			return true
		}
		if d.all && d.err != nil || len(d.replicas) > 0 { // nobody has taken it, and everybody is told
			return true
		}
	}
	return false
}

// A duty is one key that one peer has to be told of.
type duty struct {
	must  bool          // it is a member, and may hold more than a copy
	until time.Duration // a mere holder's lease
}

// round is whom to tell what next: by peer's ID and address, by index of the change.
type round map[[2]string]*recipient

type recipient struct {
	*peer
	keys map[int]duty
}

// patience returns a context that ends when nothing depends on t's answer any more: with its last lease, if it has no
// more than leases. Who is in no view is told if it answers.
func (t *recipient) patience(ctx context.Context, now time.Duration) (context.Context, context.CancelFunc) {
	var last time.Duration
	for _, d := range t.keys {
		if d.must || d.until == 0 {
			return ctx, func() {}
		}
		last = max(last, d.until)
	}
	return context.WithTimeout(ctx, last-now)
}

func (r round) add(p *peer, i int, d duty) {
	at := [2]string{p.ID, p.Addr}
	t := r[at]
	if t == nil {
		t = &recipient{p, make(map[int]duty)}
		r[at] = t
	}
	old := t.keys[i]
	t.keys[i] = duty{old.must || d.must, max(old.until, d.until)}
}

// tell makes everybody drop what they may hold of what was written. Whoever is told names those that hold something by
// its own leave, and they are told too, again if they were told before.
func (w *writing) tell(ctx context.Context) {
	c := w.g.cache
	self := c.peers.self.ID
	everybody, past := c.peers.everybody()
	next := make(round)
	for i, d := range w.done {
		for _, h := range d.holders {
			if h.ID != self {
				next.add(c.peers.current(h.peer), i, duty{until: h.until})
			}
		}
		if d.all {
			all := func(peers []*peer, must bool) {
				for _, p := range peers {
					isReplica := slices.ContainsFunc(d.replicas, func(r *peer) bool { return r.ID == p.ID }) // which has been told already
					if p.ID != self && (d.acceptor == nil || p.ID != d.acceptor.ID) && !isReplica {
						next.add(c.peers.current(p), i, duty{must: must})
					}
				}
			}
			all(d.known, true)
			all(everybody, true)
			all(d.past, false)
			all(past, false)
		}
	}
	type naming struct {
		by, holder string
		i          int
	}
	named := make(map[naming]bool)
	var leases time.Duration // when the last lease of those that do not answer has run out
	for len(next) > 0 {
		now := next
		next = make(round)
		var mu sync.Mutex // guards what answers change
		var wg sync.WaitGroup
		for _, t := range now {
			wg.Go(func() {
				keys := slices.Collect(maps.Keys(t.keys))
				drops := make([]dropping, len(keys))
				for j, i := range keys {
					drops[j] = dropping{w.changes[i].key, w.done[i].version, w.acceptor(i)}
				}
				ctx, cancel := t.patience(ctx, c.clock.now())
				defer cancel()
				holders, err := c.drop(ctx, t.peer, w.g, drops)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					for j, i := range keys {
						for _, h := range holders[j] {
							n := naming{t.ID, h.ID, i}
							if h.ID != self && !named[n] {
								named[n] = true
								next.add(c.peers.current(h.peer), i, duty{until: h.until})
							}
						}
					}
					return
				}
				for i, d := range t.keys {
					leases = max(leases, d.until)
					if !d.must {
						continue
					}
					c.hints.keep(w.g, t.peer, w.changes[i].key, w.done[i].version)
					w.blame(t.peer, i, w.done[i].err == nil, err)
				}
			})
		}
		wg.Wait()
	}
	if wait := leases - c.clock.now(); wait > 0 {
		w.g.counts.leaseWaits.Add(1)
		sleep(ctx, wait)
	}
	for i, change := range w.changes { // for the fetches that were answered meanwhile
		d := w.done[i]
		keeps := d.spared || slices.ContainsFunc(d.replicas, func(r *peer) bool { return r.ID == self })
		w.g.drop(change.key, d.version, keeps || w.acceptor(i) == w.g.cache.peers.incarnation)
	}
}

// acceptor returns the incarnation of the process that has taken the change of index i, or 0.
func (w *writing) acceptor(i int) uint64 {
	switch d := w.done[i]; {
	case d.err != nil:
		return 0
	case d.acceptor != nil:
		return d.acceptor.incarnation
	default:
		return w.g.cache.peers.incarnation
	}
}
