package shoal

// leave.go: how a process leaves. It tells the others, owns nothing from then on, and waits until those to whom its keys go
// have pulled what it holds of them.

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
	"github.com/shoalcache/shoal/consistenthash"
	"github.com/shoalcache/shoal/shoalpb"
)

// leave stops looking for peers, and makes this process one that owns nothing, once the others know. It returns those to whom
// its keys go.
func (p *peers) leave(ctx context.Context) (heirs []*peer, err error) {
	p.stop()
	stopped := make(chan struct{})
	go func() {
		p.running.Wait()
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-ctx.Done():
		if p.ran != nil {
			<-p.ran
		}
		p.swap(p.others(), false) // what comes to others now, they are not told, nor is this process told of their writes
		return nil, fmt.Errorf("shoal: discovery has not ended yet: %w", ctx.Err())
	}
	p.pullsEnd(ctx)
	told := make(map[*peer]bool)
	for news := true; news; { // until they have heard, they ask this process, which answers
		news = false
		var wg sync.WaitGroup
		must, may := p.everybody()
		for _, m := range slices.Concat(must, may) {
			if !told[m] { // it may have come while others were told
				told[m], news = true, true
				wg.Go(func() { p.goodbye(ctx, m) }) // who does not answer finds out
			}
		}
		wg.Wait()
	}
	heirs = p.heirs()
	peers := p.others()
	if len(peers) == 0 { // it has seen none of them listed yet
		peers = slices.CompactFunc(slices.Clone(heirs), func(a, b *peer) bool { return a.ID == b.ID })
	}
	p.swap(peers, false)
	return heirs, nil
}

// heirs returns to whom keys may go when this process leaves: the other members, and strangers. These own keys by their own
// views: they may be there for so short a time that this process has not seen them listed.
func (p *peers) heirs() []*peer {
	heirs := p.others()
	for _, s := range p.known.strangers(p.clock.now()) {
		if !s.counts.breaker.open.Load() && s.ID != p.self.ID {
			heirs = append(heirs, s)
		}
	}
	slices.SortFunc(heirs, func(a, b *peer) int { return strings.Compare(a.ID, b.ID) })
	return heirs
}

// those returns which of some processes were members a while ago.
func (p *peers) those(some map[uint64]bool) (known []*peer) {
	for m := range p.view.Load().formerMembers(p.clock.now(), p.window) {
		if some[m.incarnation] {
			known = append(known, m)
		}
	}
	return known
}

// parts takes out of the view a member that leaves. From a stranger, which has had keys by its own view, it only takes over.
func (p *peers) parts(ctx context.Context, incarnation uint64) {
	if s := p.known.stranger(incarnation, p.clock.now()); s != nil {
		p.pullsFrom(s)
	}
	p.forgets(incarnation, math.MaxUint64)
	absent, away := p.known.absence(incarnation)
	if !away || p.bringsUp(ctx, &peer{Peer: absent.Peer, incarnation: incarnation, counts: new(peerCounts)}, absent.since) {
		p.known.ends(incarnation)
	}
	if p.parting == nil {
		return
	}
	done := make(chan struct{})
	select {
	case p.parting <- parting{incarnation, done}:
		<-done
	case <-p.done:
	case <-ctx.Done():
	}
}

// A handover is what a process that leaves still has to do: to let others pull what was its own.
type handover struct {
	mu    sync.Mutex              // guards what follows, but begun
	done  map[handed][]uint64     // who has pulled all, and whom it saw then, by incarnation
	gone  map[uint64]bool         // who has left, by incarnation
	seen  map[uint64][]uint64     // members of the views that have been pulled by, by digest: they have been added to
	later map[uint64]bool         // heirs of whom only others know, by incarnation
	views map[uint64]func() *view // of those who pull, by what they say of them
	news  chan struct{}
	begun atomic.Bool
}

type handed struct {
	incarnation uint64
	group       *group
}

// pulled takes note that somebody has pulled from a group what is its own by v, and whether that was all.
func (h *handover) pulled(incarnation uint64, g *group, v *view, all bool) {
	if !h.begun.Load() {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	members := h.seen[v.digest]
	if members == nil {
		for _, m := range v.members {
			members = append(members, m.incarnation)
		}
		if len(h.seen) < maxSeen { // to whom the sender leaves the rest
			h.seen[v.digest] = members
			for _, incarnation := range members {
				h.later[incarnation] = true
			}
		}
	}
	if all && !h.anyGoneLocked(members) {
		h.done[handed{incarnation, g}] = members
	} else {
		delete(h.done, handed{incarnation, g}) // it has begun anew, or will
	}
	h.newsLocked()
}

// parts takes note that another has left: it pulls nothing, and what others have taken for its own they have still to pull. It
// may have left before this process does.
func (h *handover) parts(incarnation uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gone == nil || len(h.gone) >= maxStrangers {
		h.gone = make(map[uint64]bool)
	}
	h.gone[incarnation] = true
	if !h.begun.Load() {
		return
	}
	maps.DeleteFunc(h.done, func(_ handed, members []uint64) bool { return slices.Contains(members, incarnation) })
	h.newsLocked()
}

func (h *handover) anyGoneLocked(members []uint64) bool {
	return slices.ContainsFunc(members, func(incarnation uint64) bool { return h.gone[incarnation] })
}

func (h *handover) newsLocked() {
	select {
	case h.news <- struct{}{}:
	default:
	}
}

// mostViews bounds the views that are remembered, each of which takes some time to make, and some memory, and maxSeen those whose
// members are waited for.
const mostViews, maxSeen = 8, 1000

// viewOf returns the view of members, which is made once for all who see the same.
func (h *handover) viewOf(members []*shoalpb.Peer, place func([]consistenthash.Member) consistenthash.Map) (*view, error) {
	if len(members) > maxStrangers {
		return nil, fmt.Errorf("%d members are too many", len(members))
	}
	all, digest := make([]*peer, len(members)), xxhash.New()
	for i, m := range members {
		switch {
		case !validWeight(m.Weight):
			return nil, fmt.Errorf("a weight of %v", m.Weight)
		case i > 0 && string(m.Id) <= all[i-1].ID:
			return nil, fmt.Errorf("%q after %q", m.Id, all[i-1].ID)
		}
		all[i] = &peer{Peer: Peer{ID: string(m.Id), Zone: string(m.Zone), Weight: m.Weight}, incarnation: m.Incarnation}
		fmt.Fprintf(digest, "%q %v %q %x\n", m.Id, m.Weight, m.Zone, m.Incarnation)
	}
	h.mu.Lock()
	known := h.views[digest.Sum64()]
	if known == nil {
		if h.views == nil {
			h.views = make(map[uint64]func() *view)
		}
		for other := range h.views {
			if len(h.views) >= mostViews {
				delete(h.views, other)
			}
		}
		sum := digest.Sum64()
		known = sync.OnceValue(func() *view {
			v := newView(place, all)
			v.digest = sum // other incarnations, another view
			return v
		})
		h.views[sum] = known
	}
	h.mu.Unlock()
	return known(), nil
}

// isDone reports whether all have pulled from all groups.
func (h *handover) isDone(all []*peer, groups []*group) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range all {
		delete(h.later, p.incarnation) // this process knows whether it answers
		if !p.counts.breaker.open.Load() && !h.hasAllLocked(p.incarnation, groups) {
			return false
		}
	}
	for incarnation := range h.later {
		if !h.hasAllLocked(incarnation, groups) {
			return false
		}
	}
	return true
}

// others returns heirs of whom only others know, which have pulled nothing yet, by incarnation.
func (h *handover) others(heirs []*peer) (some map[uint64]bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	some = maps.Clone(h.later)
	for _, p := range heirs {
		delete(some, p.incarnation)
	}
	return some
}

// hasAll reports whether one has pulled all of those groups, or has left.
func (h *handover) hasAll(incarnation uint64, groups ...*group) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.hasAllLocked(incarnation, groups)
}

func (h *handover) hasAllLocked(incarnation uint64, groups []*group) bool {
	return h.gone[incarnation] || !slices.ContainsFunc(groups, func(g *group) bool { return h.done[handed{incarnation, g}] == nil })
}

func (h *handover) begin() {
	h.done, h.news = make(map[handed][]uint64), make(chan struct{}, 1)
	h.seen, h.later = make(map[uint64][]uint64), make(map[uint64]bool)
	h.begun.Store(true)
}

// handOver answers peers until its heirs have pulled what was this process's, or nobody has for a while. For one that answers it
// waits for longer, where nothing can be loaded: that one may learn late that keys are its own. Before it left, this process saw v. Its
// error is that of ctx, or says that one has not come.
func (c *Cache) handOver(ctx context.Context, heirs []*peer, v *view) error {
	var groups []*group
	for _, g := range c.allGroups() {
		if g.main.numbers().entries > 0 {
			groups = append(groups, g)
		}
	}
	nobodyComes := c.clock.now() + c.peers.window
	for !c.handover.isDone(heirs, groups) {
		idle, cancel := context.WithTimeout(ctx, 2*c.opts.PeerTimeout)
		select {
		case <-c.handover.news:
		case <-idle.Done():
			late := c.lateHeir(ctx, slices.Concat(heirs, c.peers.those(c.handover.others(heirs))), groups, v)
			if ctx.Err() != nil || late == nil {
				cancel()
				return ctx.Err()
			}
			if c.clock.now() >= nobodyComes {
				cancel()
				return fmt.Errorf("peer %s, at %s, has not taken over what was written here", late.ID, late.Addr)
			}
		}
		cancel()
	}
	return nil
}

// lateHeir returns an heir that is there, and has not pulled yet what it could not load.
func (c *Cache) lateHeir(ctx context.Context, heirs []*peer, groups []*group, v *view) *peer {
	for _, p := range heirs {
		if v.self < 0 && p.counts.shown.Load() == v.digest {
			continue // it has seen for as long that this process owns nothing, and has taken over what is its own
		}
		for _, g := range groups {
			if g.getter != nil || c.handover.hasAll(p.incarnation, g) {
				continue
			}
			if _, _, _, err := c.peek(ctx, p, g, "", false); holdsNothing(err) || p.counts.breaker.open.Load() {
				continue // it does not have the group, or is silent
			}
			if m, err := c.hello(ctx, p.Addr); err == nil && (m.incarnation != p.incarnation || m.left) {
				break // another is in its place, or it leaves as well
			}
			return p
		}
	}
	return nil
}
