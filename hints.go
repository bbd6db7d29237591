package shoal

import (
	"context"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoalcache/shoal/shoalpb"
)

// hints are what peers could not be told of writes and purges, and are told again: after a while, after longer and
// longer, and as soon as something comes from them. For each peer there is one goroutine that tells it, as long as there
// is something to tell.
type hints struct {
	cache   *Cache
	pending atomic.Int64 // peers

	mu    sync.Mutex // guards peers, and each hint
	peers map[string]*hint
}

// maxHints and maxHintBytes are how many keys are kept for one peer. Where there are more, it has to drop their groups.
const maxHints, maxHintBytes = 1024, 128 << 10

// hintLife is how long a peer that has left the view is remembered for what it has missed.
const hintLife = 10 * time.Minute

// A hint is what one peer has missed.
type hint struct {
	peer *peer
	keys int // in all groups
	size int // bytes of them
	owed map[*group]*owed
	wake chan struct{}
}

// owed is what one peer has missed of one group.
type owed struct {
	keys   map[string]uint64 // versions of the writes
	all    int               // writes since there were too many
	purges int
}

// keep takes note that p has not been told of a write of key.
func (h *hints) keep(g *group, p *peer, key string, version uint64) {
	h.note(g, p, func(hint *hint, o *owed) {
		if o.all > 0 {
			o.all++
			return
		}
		if _, known := o.keys[key]; !known {
			if hint.keys == maxHints || hint.size+len(key) > maxHintBytes {
				for key := range o.keys {
					hint.forget(key)
				}
				o.keys, o.all = nil, 1
				g.counts.hintsLost.Add(1)
				return
			}
			hint.keys++
			hint.size += len(key)
		}
		if o.keys == nil {
			o.keys = make(map[string]uint64)
		}
		o.keys[key] = max(o.keys[key], version)
	})
}

// forget takes note that key is not kept any more.
func (h *hint) forget(key string) {
	h.keys--
	h.size -= len(key)
}

// keepPurge takes note that p has not been told of a purge.
func (h *hints) keepPurge(g *group, p *peer) {
	h.note(g, p, func(hint *hint, o *owed) { o.purges++ })
}

func (h *hints) note(g *group, p *peer, what func(*hint, *owed)) {
	g.counts.hints.Add(1)
	h.mu.Lock()
	defer h.mu.Unlock()
	of := h.peers[p.ID]
	if of == nil {
		of = &hint{peer: p, owed: make(map[*group]*owed), wake: make(chan struct{}, 1)}
		if h.peers == nil {
			h.peers = make(map[string]*hint)
		}
		h.peers[p.ID] = of
		h.pending.Add(1)
		h.cache.opts.Logger.Warn("shoal: a peer could not be told of writes, and will be told again", "peer", p.ID, "addr", p.Addr, "group", g.name)
		go h.deliver(h.cache.life, of)
	}
	if of.owed[g] == nil {
		of.owed[g] = new(owed)
	}
	what(of, of.owed[g])
}

// heard takes note that the peer of that ID is there.
func (h *hints) heard(id string) {
	if h.pending.Load() == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if of := h.peers[id]; of != nil {
		select {
		case of.wake <- struct{}{}:
		default:
		}
	}
}

// deliver tells a peer what it has missed, until nothing is left or nobody expects it back.
func (h *hints) deliver(ctx context.Context, of *hint) {
	seen := h.cache.clock.now()
	for retry := firstRetry; ctx.Err() == nil; retry = min(2*retry, lastRetry) {
		pause(ctx, firstRetry, nil)
		if retry > firstRetry && pause(ctx, retry-firstRetry, of.wake) {
			retry = firstRetry
		}
		v, now := h.cache.peers.view.Load(), h.cache.clock.now()
		to := of.peer
		if i, ok := v.find(to.ID); ok {
			to, seen = v.members[i], now
		} else if now-seen > hintLife {
			h.forget(of)
			return
		}
		if h.tell(ctx, of, to) {
			return
		}
	}
}

// tell tells the peer, and reports whether nothing is left.
func (h *hints) tell(ctx context.Context, of *hint, to *peer) bool {
	h.mu.Lock()
	todo := make(map[*group]owed, len(of.owed))
	for g, o := range of.owed {
		todo[g] = owed{maps.Clone(o.keys), o.all, o.purges}
	}
	h.mu.Unlock()
	for g, o := range todo {
		if !h.tellGroup(ctx, g, o, to) {
			return false
		}
		h.told(of, g, o)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(of.owed) > 0 {
		return false
	}
	delete(h.peers, of.peer.ID)
	h.pending.Add(-1)
	h.cache.opts.Logger.Info("shoal: a peer has been told of the writes it had missed", "peer", to.ID, "addr", to.Addr)
	return true
}

func (h *hints) tellGroup(ctx context.Context, g *group, o owed, to *peer) bool {
	if o.purges > 0 {
		ahead, _, _, err := h.cache.purge(ctx, to, g)
		if err != nil {
			return false
		}
		if ahead {
			g.goOn() // all others hear of it by the next message
			return false
		}
		// What this process has heard of meanwhile may be a purge of before, which the other side of a cut has gone through.
		if g.generation.isOvertaken() {
			past := g.journal.purgesSince(g.generation.began(), h.cache.clock.now())
			if h.cache.dropAll(ctx, to, g, &shoalpb.Drop{Purges: past}) != nil {
				return false
			}
		}
	}
	if o.all > 0 {
		return h.cache.dropAll(ctx, to, g, &shoalpb.Drop{All: true}) == nil
	}
	drops := make([]dropping, 0, len(o.keys))
	for key, version := range o.keys {
		drops = append(drops, dropping{key: key, version: version})
	}
	_, err := h.cache.drop(ctx, to, g, drops)
	return err == nil
}

// told takes from what the peer has missed what it has been told.
func (h *hints) told(of *hint, g *group, o owed) {
	h.mu.Lock()
	defer h.mu.Unlock()
	left := of.owed[g]
	g.counts.hintsTold.Add(1)
	if left.purges == o.purges {
		left.purges = 0
	}
	if left.all == o.all {
		left.all = 0
	}
	for key, version := range o.keys {
		if left.keys[key] == version {
			delete(left.keys, key)
			of.forget(key)
		}
	}
	if left.purges == 0 && left.all == 0 && len(left.keys) == 0 {
		delete(of.owed, g)
	}
}

func (h *hints) forget(of *hint) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.peers, of.peer.ID)
	h.pending.Add(-1)
}
