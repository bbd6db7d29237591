package shoal

// view.go: who owns a key, as far as this process knows.

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/shoalcache/shoal/consistenthash"
)

// A view is what this process takes for the truth about who is there. It is immutable.
type view struct {
	members []*peer // by ID, this process included if it is one
	self    int     // its index among members, or -1
	alone   bool    // nobody is listed: this process owns every key
	zoned   bool    // its members are in several zones
	owners  consistenthash.Map
	digest  uint64 // the same in all processes whose views give the same owners
	number  uint64 // of the views that this process has had
	former  []formerView
	since   time.Duration // when it became the view
}

// A formerView is one that this process had within the last window. A window opens when a key has come to this process, and
// closes when Warm has passed since everybody was greeted: as long as it is open, others may hold what they loaded or were
// lent as owners by their own views, or by the leave of such.
type formerView struct {
	view            // without former ones of its own
	after *rollCall // the greeting after its end
	ended time.Duration
	thaws time.Duration // when what it kept, and no later one did, is dropped
}

// isOpen reports whether the window is open that opened with the end of f.
func (f *formerView) isOpen(now, window time.Duration) bool {
	over := time.Duration(f.after.over.Load())
	return over == 0 || now < over+window
}

// formerMembers goes through the members of the views that this process had within the last window, the last first.
func (v *view) formerMembers(now, window time.Duration) iter.Seq[*peer] {
	return func(yield func(*peer) bool) {
		for _, f := range slices.Backward(v.former) {
			if !f.isOpen(now, window) {
				continue
			}
			for _, m := range f.members {
				if !yield(m) {
					return
				}
			}
		}
	}
}

// A peer is a member of a view.
type peer struct {
	Peer
	incarnation uint64
	counts      *peerCounts
	line        *line // nil: none is kept
	hadLeft     bool  // when this process met it, which nobody tells what it has been told
}

// owner returns the peer that owns key, or nil: then this process does if mine is true, and else nobody is known to.
func (v *view) owner(key string) (p *peer, mine bool) {
	if len(v.members) == 0 {
		return nil, v.alone
	}
	i := v.owners.Owner(key)
	if i == v.self {
		return nil, true
	}
	return v.members[i], false
}

func (v *view) owns(key string) bool {
	_, mine := v.owner(key)
	return mine
}

// next returns who stands in for the owner of key, which n processes keep: a peer, or this process if mine is true, or nobody.
func (v *view) next(key string, n int) (p *peer, mine bool) {
	if len(v.members) < 2 {
		return nil, false
	}
	i := v.keepers(key, max(n, 2))[1]
	if n == 1 {
		i = v.ring(key, 2)[1]
	}
	if i == v.self {
		return nil, true
	}
	return v.members[i], false
}

// find returns the index of the member of that ID, if there is one.
func (v *view) find(id string) (int, bool) {
	return slices.BinarySearchFunc(v.members, id, func(p *peer, id string) int { return strings.Compare(p.ID, id) })
}

// has reports whether p, and no other process in its place, is a member.
func (v *view) has(p *peer) bool {
	i, ok := v.find(p.ID)
	return ok && v.members[i].incarnation == p.incarnation
}

// without names members of v that are not in other: if they are many, some.
func (v *view) without(other *view) (ids []string) {
	for _, m := range v.members {
		if len(ids) < 10 && !other.has(m) {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

// newlyMine returns the last of the views within the last window in which key, which is this process's, was not; or nil.
func (p *peers) newlyMine(v *view, key string, now time.Duration) *formerView {
	for i := len(v.former) - 1; i >= 0; i-- {
		if f := &v.former[i]; f.isOpen(now, p.window) && !f.owns(key) {
			return f
		}
	}
	return nil
}

// hasActedWithout returns how long ago this process began to own keys by views in which somebody was not, if it has done so
// lately, or 0.
func (p *peers) hasActedWithout(is func(*peer) bool) (ago time.Duration) {
	v, now := p.view.Load(), p.clock.now()
	for i := range v.former {
		if f := &v.former[i]; f.self >= 0 && f.isOpen(now, p.window) && !slices.ContainsFunc(f.members, is) {
			ago = max(ago, now-f.since, 1)
		}
	}
	if ago == 0 {
		return 0
	}
	for i := range v.former { // views before may be forgotten, but not that somebody has been away
		for _, m := range v.former[i].members {
			if absent, away := p.known.absence(m.incarnation); away && is(m) {
				ago = max(ago, now-absent.since)
			}
		}
	}
	return ago
}

// newKeepers reports whether others were to keep key, which is this process's, in a view within the last window.
func (p *peers) newKeepers(v *view, key string, n int, now time.Duration) bool {
	if n == 1 || len(v.former) == 0 {
		return p.newlyMine(v, key, now) != nil
	}
	var keepers []int
	for i := range v.former {
		f := &v.former[i]
		if !f.isOpen(now, p.window) {
			continue
		}
		if keepers == nil {
			keepers = v.keepers(key, n)
		}
		before := f.keepers(key, n)
		if !slices.EqualFunc(keepers, before, func(i, j int) bool { return v.members[i].ID == f.members[j].ID }) {
			return true
		}
	}
	return false
}

// ungreeted returns the greeting that has to end before this process acts on key, which is its own, or nil.
func (v *view) ungreeted(key string) *rollCall {
	for i := range v.former {
		if f := &v.former[i]; f.after.over.Load() == 0 && !f.owns(key) {
			return f.after
		}
	}
	return nil
}

// warmingSince returns when the first of the windows opened that are open, or the beginning if none is.
func (p *peers) warmingSince() time.Duration {
	v, now := p.view.Load(), p.clock.now()
	for i := range v.former {
		if f := &v.former[i]; f.isOpen(now, p.window) {
			return f.ended
		}
	}
	return 0
}

// newView returns who owns what if these are the members, which are in the order of their IDs. This process is none of them.
func newView(place func([]consistenthash.Member) consistenthash.Map, members []*peer) *view {
	v := &view{members: members, self: -1}
	if len(members) == 0 {
		return v
	}
	ring, digest := make([]consistenthash.Member, len(members)), xxhash.New()
	for i, m := range members {
		ring[i] = consistenthash.Member{ID: m.ID, Weight: m.Weight}
		fmt.Fprintf(digest, "%q %v %q\n", m.ID, m.Weight, m.Zone)
		v.zoned = v.zoned || m.Zone != members[0].Zone
	}
	v.owners, v.digest = place(ring), digest.Sum64()
	return v
}

// swap makes members, which are in the order of their IDs, the view.
func (p *peers) swap(members []*peer, alone bool) {
	old := p.view.Load()
	v := newView(p.place, members)
	v.members, v.alone, v.number, v.since = make([]*peer, len(members)), alone, old.number+1, p.clock.now()
	for i, m := range members {
		if m.incarnation == p.incarnation {
			v.self = i
		}
		member := &peer{Peer: m.Peer, incarnation: m.incarnation, counts: new(peerCounts)}
		if j, known := old.find(m.ID); known {
			member.counts = old.members[j].counts
			same := old.members[j]
			if same.Addr == m.Addr {
				member.line = same.line
			}
			if same.incarnation != m.incarnation || same.Addr != m.Addr {
				member.counts.breaker.reset() // it has just answered
			}
		}
		if member.line == nil && i != v.self {
			member.line = p.lineTo(m.Addr)
		}
		v.members[i] = member
	}
	for _, f := range old.former {
		if f.isOpen(v.since, p.window) {
			v.former = append(v.former, f)
		}
	}
	last := formerView{*old, newRollCall(), v.since, v.since + p.window/2}
	if differed := time.Duration(p.differing.Load()); differed > 0 { // others may have acted for so long
		last.thaws = max(differed+p.window/2, v.since+maxLease/2) // and tell everybody for a lease after they see that this process agrees
	}
	last.former = nil
	last.alone = false // with nobody there, nobody told this process of writes: it owned nothing that it may keep acting on
	v.former = append(v.former, last)
	p.view.Store(v)
	for i, m := range v.members {
		if i != v.self && p.known.isStranger(m) {
			p.differs.Store(int64(v.since)) // it may just have been told by that name
			p.known.joins(m.incarnation)
		}
	}
	p.swapped(old, v)
	if came, gone := v.without(old), old.without(v); len(came)+len(gone) > 0 {
		p.log.Info("shoal: the peers have changed", "peers", len(v.members), "new", came, "gone", gone)
	}
	p.differing.Store(0)
	for _, m := range old.members {
		if m.incarnation != p.incarnation && !v.has(m) {
			p.known.leaves(m, v.since)
			m.counts.breaker.unattended(v.since)
		}
	}
	for _, m := range v.members {
		if !old.has(m) {
			p.known.replaces(m)
		}
	}
	follow := p.running.Go
	if v.self < 0 { // it is about to end, maybe; and nothing comes to it
		follow = func(f func()) { go f() }
	}
	follow(func() {
		p.repairing.Add(1)
		defer p.repairing.Add(-1)
		p.callRoll(p.life, old, v, last.after)
		p.takeOver(old, v, func() { close(last.after.taken) })
		for _, m := range old.members {
			if !v.has(m) { // a connection that has never been used, as net/http dials some in vain, holds up an http.Server's Shutdown for 5 s
				p.closeIdle(m.Addr)
			}
		}
	})
	for _, m := range old.members {
		if i, ok := v.find(m.ID); m.line != nil && (!ok || v.members[i].line != m.line) {
			m.line.close()
		}
	}
}

// owns reports whether key is this process's now.
func (p *peers) owns(key string) bool { return p.view.Load().owns(key) }

// others returns the members of the view but this process.
func (p *peers) others() []*peer { return p.view.Load().others() }

func (v *view) others() []*peer {
	others := make([]*peer, 0, len(v.members))
	for i, m := range v.members {
		if i != v.self {
			others = append(others, m)
		}
	}
	return others
}
