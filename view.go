package shoal

// view.go: who owns a key, as far as this process knows.

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/shoalcache/shoal/consistenthash"
	"github.com/shoalcache/shoal/shoalpb"
)

// A view is what this process takes for the truth about who is there. It is immutable.
type view struct {
	members []*peer // by ID, this process included if it is one
	self    int     // its index among members, or -1
	alone   bool    // nobody is listed: this process owns every key
	owners  consistenthash.Map
	digest  uint64 // the same in all processes whose views give the same owners
	number  uint64 // of the views that this process has had
	former  []formerView
}

// A formerView is one that this process had within the last window.
type formerView struct {
	view                // without former ones of its own
	until time.Duration // when the window closes that opened with its end
}

// window is how long after a key has come to this process others may hold what they loaded or were lent when it was
// not yet: as owners by their own views, or by the leave of such.
const window = time.Minute

// A peer is a member of a view.
type peer struct {
	Peer
	incarnation uint64
	counts      *peerCounts
	line        *line // nil: none is kept
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

// find returns the index of the member of that ID, if there is one.
func (v *view) find(id string) (int, bool) {
	return slices.BinarySearchFunc(v.members, id, func(p *peer, id string) int { return strings.Compare(p.ID, id) })
}

// newlyMine reports whether key is this process's, and was not throughout the last window.
func (v *view) newlyMine(key string, now time.Duration) bool {
	for i := range v.former {
		if f := &v.former[i]; f.until > now && !f.owns(key) {
			return true
		}
	}
	return false
}

// swap makes members, which are in the order of their IDs, the view.
func (p *peers) swap(members []*peer, alone bool) {
	old := p.view.Load()
	v := &view{members: make([]*peer, len(members)), self: -1, alone: alone, number: old.number + 1}
	ring, digest := make([]consistenthash.Member, len(members)), xxhash.New()
	for i, m := range members {
		if m.incarnation == p.incarnation {
			v.self = i
		}
		ring[i] = consistenthash.Member{ID: m.ID, Weight: m.Weight}
		fmt.Fprintf(digest, "%q %v\n", m.ID, m.Weight)

		member := &peer{Peer: m.Peer, incarnation: m.incarnation, counts: new(peerCounts)}
		if j, known := old.find(m.ID); known {
			member.counts = old.members[j].counts
			if same := old.members[j]; same.Addr == m.Addr {
				member.line = same.line
			}
		}
		if member.line == nil && i != v.self {
			member.line = p.lineTo(m.Addr)
		}
		v.members[i] = member
	}
	if len(members) > 0 {
		v.owners, v.digest = p.place(ring), digest.Sum64()
	}
	now := p.clock.now()
	for _, f := range old.former {
		if f.until > now {
			v.former = append(v.former, f)
		}
	}
	last := formerView{*old, now + window}
	last.former = nil
	v.former = append(v.former, last)
	p.view.Store(v)
	p.swapped(old, v)
	for _, m := range old.members {
		if i, ok := v.find(m.ID); m.line != nil && (!ok || v.members[i].line != m.line) {
			m.line.close()
		}
	}
}

// others returns the members of the view but this process.
func (p *peers) others() []*peer {
	v := p.view.Load()
	others := make([]*peer, 0, len(v.members))
	for i, m := range v.members {
		if i != v.self {
			others = append(others, m)
		}
	}
	return others
}

// sender returns the member of the view that sent a message, or nil.
func (p *peers) sender(s *shoalpb.Sender) *peer {
	v := p.view.Load()
	if i, ok := v.find(string(s.GetId())); ok && i != v.self && v.members[i].incarnation == s.GetIncarnation() {
		return v.members[i]
	}
	return nil
}

// named returns the peer that another process has named: as this one knows it, or else as the other does.
func (p *peers) named(id, addr []byte) *peer {
	v := p.view.Load()
	if i, ok := v.find(string(id)); ok {
		return v.members[i]
	}
	return &peer{Peer: Peer{ID: string(id), Addr: string(addr)}, counts: new(peerCounts)}
}

// tellAll reports whether everybody may hold older values of key, which this process owns: since the key came to it
// lately, or somebody sees other owners, or did less than a lease ago.
func (p *peers) tellAll(key string) bool {
	v, now := p.view.Load(), p.clock.now()
	for i, m := range v.members {
		if i != v.self && m.counts.shown.Load() != v.digest && !m.counts.silent.Load() {
			return true
		}
	}
	differed := p.differs.Load()
	return differed != 0 && now < time.Duration(differed)+maxLease || v.newlyMine(key, now)
}
