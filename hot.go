package shoal

// hot.go: copies of hot keys. An owner measures how often each peer asks for a key, grants a lease on it to those that
// ask often, and remembers them: until the lease has ended, a write is told to them.

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
)

// maxLease bounds all leases. It belongs to the wire: no process believes in a longer one.
const maxLease = 5 * time.Second

// grant notes how often a peer asks for key, and gives it a lease on it if that is often enough. It returns how long the
// lease is, or 0.
func (g *group) grant(key string, q question) time.Duration {
	if q.from == nil || !q.lease || !g.cache.peers.view.Load().owns(key) {
		return 0
	}
	now := g.cache.clock.now()
	if g.rates.note(key, q.from.incarnation, q.perSecond(), now) < g.hotRate {
		return 0
	}
	// The holder counts from when it asked, which is earlier; clocks may run at rates that differ by a little.
	if until := now + g.hotLease + g.hotLease/100 + 10*time.Millisecond; !g.leases.add(key, q.from, now, until) {
		return 0
	}
	return g.hotLease
}

// leaseOf returns how long f, which is to be sent to a peer, may be served there if the lease is that long.
func (g *group) leaseOf(f found, lease time.Duration) time.Duration {
	if lease == 0 || !f.kept || f.err != nil && !errors.Is(f.err, ErrNotFound) {
		return 0
	}
	if f.stale {
		return min(lease, firstReload) // it is being replaced
	}
	now := g.cache.clock.now()
	if left := f.remaining(now); left > 0 {
		lease = min(lease, left)
	}
	if ahead := f.ahead(); g.stale > 0 && ahead > now {
		lease = min(lease, ahead-now) // so that the owner is asked in time to load it anew
	}
	g.counts.leases.Add(1)
	return lease
}

// tableSizes returns how large the tables of a group may become beside its values: together up to 3% of its memory.
func tableSizes(maxBytes int64) (leases, rates, records, written, given, touched int) {
	size := func(each, least, most int64) int { return int(min(max(maxBytes/200/each, least), most)) }
	return size(bytesPerLease, 16, 16_384), size(bytesPerRate, 64, 8_192), size(bytesPerRecord, 16, 16_384), size(bytesPerWritten, 16, 16_384),
		size(bytesPerGiven, 64, 131_072), size(8, 64, 32_768)
}

const bytesPerLease, bytesPerRate = 160, 24

// rates estimate how many calls a second each peer has for each key, in a table of fixed size.
//
// Two places of the table are open to each pair of key and peer. Each keeps the rate of one pair, which decays, and
// gives way to another pair only at random, the less likely the higher the rate: so a million keys that are asked for
// once do not push out one that is asked for always, and, unlike in a sketch of counters, do not look hot together.
// (HeavyKeeper, Gong et al., "HeavyKeeper: An Accurate Algorithm for Finding Top-k Elephant Flows", 2018, with decay in
// time.)
type rates struct {
	most int // places

	mu    sync.Mutex // guards table
	table []rate
}

type rate struct {
	pair  uint64
	calls float64 // in about the last second, as of
	at    time.Duration
}

// note adds calls of a peer for key, and returns their rate a second.
func (r *rates) note(key string, peer uint64, calls float64, now time.Duration) float64 {
	pair := xxhash.Sum64String(key) ^ peer*0x9e3779b97f4a7c15
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.table == nil {
		r.table = make([]rate, r.most)
	}
	n := uint64(len(r.table))
	first, second := &r.table[pair%n], &r.table[(pair>>32)%n]
	for _, p := range [...]*rate{first, second} {
		p.calls *= math.Exp(-(now - p.at).Seconds())
		p.at = now
	}
	place := first
	switch {
	case first.pair == pair:
	case second.pair == pair:
		place = second
	default:
		if second.calls < first.calls {
			place = second
		}
		if place.calls >= 1 && rand.Float64() > math.Pow(1.08, -place.calls) {
			return calls
		}
		*place = rate{pair: pair, at: now}
	}
	place.calls += calls
	return place.calls
}

// leases are who may hold copies of which keys, until when. A write does not end them, for the process that has to tell
// the holders may die before it does: they end by time alone.
type leases struct {
	most int

	mu    sync.Mutex          // guards what follows
	held  map[uint64][]holder // by the key's hash
	order []ending            // in which they were given, and, nearly, end
}

// A holder is a process that may serve a copy of a key without asking, and until when.
type holder struct {
	*peer
	until time.Duration
}

type ending struct {
	key   uint64
	until time.Duration
}

// add notes that p may hold key. It reports false if the table is full.
func (l *leases) add(key string, p *peer, now, until time.Duration) bool {
	hash := xxhash.Sum64String(key)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endLocked(now)
	if len(l.order) >= l.most {
		return false
	}
	if l.held == nil {
		l.held = make(map[uint64][]holder)
	}
	l.order = append(l.order, ending{hash, until})
	holders := l.held[hash]
	for i, h := range holders {
		if h.ID == p.ID {
			holders[i] = holder{p, max(h.until, until)}
			return true
		}
	}
	l.held[hash] = append(holders, holder{p, until})
	return true
}

// forget ends what a process holds that has left.
func (l *leases) forget(incarnation uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for hash, holders := range l.held {
		live := slices.DeleteFunc(holders, func(h holder) bool { return h.incarnation == incarnation })
		if len(live) == 0 {
			delete(l.held, hash)
		} else {
			l.held[hash] = live
		}
	}
}

// of returns who may hold key.
func (l *leases) of(key string, now time.Duration) []holder {
	l.mu.Lock()
	defer l.mu.Unlock()
	var live []holder
	for _, h := range l.held[xxhash.Sum64String(key)] {
		if h.until > now {
			live = append(live, h)
		}
	}
	return live
}

func (l *leases) endLocked(now time.Duration) {
	n := 0
	for n < len(l.order) && l.order[n].until <= now {
		hash := l.order[n].key
		live := l.held[hash][:0]
		for _, h := range l.held[hash] {
			if h.until > now {
				live = append(live, h)
			}
		}
		if len(live) == 0 {
			delete(l.held, hash)
		} else {
			l.held[hash] = live
		}
		n++
	}
	l.order = l.order[n:]
}
