package shoal

// acquaintances.go: what this process knows of others beside their membership: who owns keys though it is not listed here, who sees
// other owners, who may have missed writes; and so whom a write must be told to.

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoalcache/shoal/shoalpb"
)

// everybody returns who must be told of a write that may be news to anybody: the other members, and strangers who answer; and who
// may be told, as the rest of past.
func (p *peers) everybody() (must, may []*peer) {
	strangers := p.known.strangers(p.clock.now()) // before the view, or who becomes a member meanwhile would be neither
	v := p.view.Load()
	must = v.others()
	for _, m := range p.past(v, strangers) {
		if p.known.isStranger(m) && !m.counts.breaker.open.Load() {
			must = append(must, m)
		} else {
			may = append(may, m)
		}
	}
	return must, may
}

// past returns those who may own keys by their own views, and are not in v: strangers, and members of former views.
func (p *peers) past(v *view, strangers []*peer) []*peer {
	past := slices.DeleteFunc(strangers, v.has)
	for m := range v.formerMembers(p.clock.now(), p.window) {
		j, ok := v.find(m.ID)
		isThere := ok && v.members[j].Addr == m.Addr || m.incarnation == p.incarnation
		if !isThere && !slices.ContainsFunc(past, func(s *peer) bool { return s.ID == m.ID && s.Addr == m.Addr }) {
			past = append(past, m)
		}
	}
	return past
}

// knows returns the member of the view, or the stranger, that sent a message, or nil.
func (p *peers) knows(s *shoalpb.Sender) *peer {
	if m := p.sender(s); m != nil {
		return m
	}
	return p.known.stranger(s.GetIncarnation(), p.clock.now())
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

// lately returns the stranger, or the member until a while ago, of that incarnation, or else as, which somebody has named so: whether
// it answers is known.
func (p *peers) lately(incarnation uint64, as *peer) *peer {
	v, now := p.view.Load(), p.clock.now()
	if incarnation == 0 || v.has(as) {
		return as
	}
	if s := p.known.at(incarnation); s != nil {
		return s
	}
	for m := range v.formerMembers(now, p.window) {
		if m.incarnation == incarnation {
			return m
		}
	}
	return as
}

// allNamed returns those whom another process has named: whom it must tell of a write, and whom it may.
func (p *peers) allNamed(all []*shoalpb.Peer) (must, may []*peer) {
	for _, m := range all {
		addr, err := normalAddr(string(m.Addr))
		if err != nil {
			continue
		}
		if named := p.named(m.Id, []byte(addr)); m.Past {
			may = append(may, named)
		} else {
			must = append(must, named)
		}
	}
	return must, may
}

// current returns the member or stranger that is where p was, under its ID, or else p.
func (p *peers) current(m *peer) *peer {
	v := p.view.Load()
	if i, ok := v.find(m.ID); ok && v.members[i].Addr == m.Addr {
		return v.members[i]
	}
	for _, s := range p.known.strangers(p.clock.now()) {
		if s.ID == m.ID && s.Addr == m.Addr {
			return s
		}
	}
	return m
}

// compare takes note of whether somebody agrees with the view.
func (p *peers) compare(agrees bool) {
	if agrees && p.differing.Load() != 0 && p.allAgree() {
		p.differing.Store(0)
		agrees = p.allAgree() // or another has been seen to differ in between
	}
	if !agrees {
		p.differing.CompareAndSwap(0, int64(p.clock.now()))
	}
}

// allAgree reports whether all were last seen to have the view, and nobody owns keys who is not in it.
func (p *peers) allAgree() bool {
	v := p.view.Load()
	for i, m := range v.members {
		if i != v.self && m.counts.shown.Load() != v.digest {
			return false
		}
	}
	return len(p.known.strangers(p.clock.now())) == 0
}

// misses reports whether m is silent, and so is told of a write only when it is back.
func (p *peers) misses(m *peer, now time.Duration) bool {
	if !m.counts.breaker.open.Load() {
		return false
	}
	p.known.leaves(m, max(now-p.timeout, 0)) // the write may have been taken before it fell silent
	return m.counts.breaker.open.Load()      // or it has just come back, and has been told all but this
}

// tellAll reports whether everybody may hold older values of key, which this process owns: since the key came to it
// lately, or somebody sees other owners, or did less than a lease ago, or did not see this process lately.
func (p *peers) tellAll(key string, n int) bool {
	v, now := p.view.Load(), p.clock.now()
	for i, m := range v.members {
		differs := m.counts.shown.Load() != v.digest || int64(now) < m.counts.keepsUntil.Load()
		if i != v.self && differs && !p.misses(m, now) {
			return true
		}
	}
	for _, m := range p.known.strangers(now) {
		if m.counts.shown.Load() != v.digest && !p.misses(m, now) {
			return true
		}
	}
	differed := p.differs.Load()
	return differed != 0 && now < time.Duration(differed)+maxLease || p.newKeepers(v, key, n, now)
}

// acquaintances are the processes of which this one knows beside the members of its view.
type acquaintances struct {
	count atomic.Int64 // of strangers

	mu            sync.Mutex // guards what follows
	byIncarnation map[uint64]*stranger
	away          map[uint64]absence       // by incarnation
	ended         map[uint64]bool          // who has left and had been told all, or has another in its place
	knew          map[uint64]time.Duration // up to when a process has been told of all
}

// An absence is of a process that may have missed writes.
type absence struct {
	Peer
	since time.Duration
}

// A stranger owns keys by its own view, and is not in this process's.
type stranger struct {
	*peer
	heard time.Duration
	views uint64
	told  bool // what was written before it was met
}

// maxStrangers bounds the maps. Who is not in away any more is told as if it had always been away.
const maxStrangers = 10_000

// meet takes note of m, which is not in the view.
func (a *acquaintances) meet(m met, now time.Duration, lineTo func(string) *line) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.byIncarnation[m.incarnation]; s != nil {
		s.heard, s.views = now, max(s.views, m.views)
		return
	}
	for incarnation, s := range a.byIncarnation {
		if s.ID == m.ID && s.Addr == m.Addr { // another process is in its place
			delete(a.byIncarnation, incarnation)
			a.count.Add(-1)
		}
	}
	if len(a.byIncarnation) >= maxStrangers {
		return
	}
	if a.byIncarnation == nil {
		a.byIncarnation = make(map[uint64]*stranger)
	}
	known := *m.peer
	known.counts, known.line = cmp.Or(m.counts, new(peerCounts)), lineTo(m.Addr)
	a.byIncarnation[m.incarnation] = &stranger{peer: &known, heard: now, views: m.views}
	a.count.Add(1)
}

// forget takes note that a stranger is told of writes no longer, if it has had so many views, and reports whether it was one.
func (a *acquaintances) forget(incarnation, views uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.byIncarnation[incarnation]; s == nil || s.views > views {
		return false
	}
	delete(a.byIncarnation, incarnation)
	delete(a.knew, incarnation)
	a.count.Add(-1)
	return true
}

// joins takes note that a stranger is a member.
func (a *acquaintances) joins(incarnation uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.byIncarnation[incarnation] != nil {
		delete(a.byIncarnation, incarnation)
		a.count.Add(-1)
	}
}

// strangers returns those that have been heard of lately.
func (a *acquaintances) strangers(now time.Duration) []*peer {
	if a.count.Load() == 0 {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []*peer
	for incarnation, s := range a.byIncarnation {
		if now-s.heard > strangerLife && s.counts.breaker.open.Load() {
			delete(a.byIncarnation, incarnation)
			delete(a.knew, incarnation)
			a.count.Add(-1)
			continue
		}
		all = append(all, s.peer)
	}
	return all
}

func (a *acquaintances) isStranger(p *peer) bool { return a.at(p.incarnation) != nil }

// at returns the stranger of that incarnation, or nil.
func (a *acquaintances) at(incarnation uint64) *peer {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.byIncarnation[incarnation]; s != nil {
		return s.peer
	}
	return nil
}

// heard returns when the stranger of that incarnation was heard of last.
func (a *acquaintances) heard(incarnation uint64) (then time.Duration, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.byIncarnation[incarnation]; s != nil {
		return s.heard, true
	}
	return 0, false
}

// stranger is at, for what has just come from there.
func (a *acquaintances) stranger(incarnation uint64, now time.Duration) *peer {
	if a.count.Load() == 0 {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.byIncarnation[incarnation]; s != nil {
		s.heard = now
		return s.peer
	}
	return nil
}

// untold returns the stranger of that incarnation if it has not been told yet what was written before it was met, or nil.
func (a *acquaintances) untold(incarnation uint64) *stranger {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.byIncarnation[incarnation]; s != nil && !s.told {
		return s
	}
	return nil
}

// isTold takes note that it has been.
func (a *acquaintances) isTold(s *stranger) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s.told = true
}

// strangerLife is how long a process that is in no view is remembered though it does not answer.
const strangerLife = 10 * time.Minute

// leaves takes note that a process may miss writes from then on.
func (a *acquaintances) leaves(p *peer, then time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, already := a.away[p.incarnation]; already {
		return
	}
	maps.DeleteFunc(a.away, func(other uint64, absent absence) bool { return a.ended[other] && then-absent.since > hintLife })
	if len(a.away) >= maxStrangers {
		var oldest uint64
		for other, absent := range a.away {
			if oldest == 0 || absent.since < a.away[oldest].since {
				oldest = other
			}
		}
		delete(a.away, oldest)
	}
	if a.away == nil {
		a.away = make(map[uint64]absence)
	}
	a.away[p.incarnation] = absence{p.Peer, then}
}

// ends takes note that a process has left and had been told all, or that another is in its place: nobody gets anything old from it.
func (a *acquaintances) ends(incarnation uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.endsLocked(incarnation)
}

// hasEnded reports whether a process has left, or another is in its place.
func (a *acquaintances) hasEnded(incarnation uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ended[incarnation]
}

// replaces takes note that p is where another process was, which has ended.
func (a *acquaintances) replaces(p *peer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for incarnation, other := range a.away {
		if other.ID == p.ID && other.Addr == p.Addr && incarnation != p.incarnation {
			a.endsLocked(incarnation)
		}
	}
}

func (a *acquaintances) endsLocked(incarnation uint64) {
	if a.ended == nil || len(a.ended) >= maxStrangers {
		a.ended = make(map[uint64]bool)
	}
	a.ended[incarnation] = true
}

// firstAway returns since when anybody who may still be there may have missed writes.
func (a *acquaintances) firstAway(now time.Duration) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	first := now
	for incarnation, absent := range a.away {
		if absent.since < first && !a.ended[incarnation] {
			first = absent.since
		}
	}
	return first
}

// behind returns who may have missed writes, the last of which was then: whoever was away, but to, and those that have been for so
// long that nobody expects them back.
func (a *acquaintances) behind(v *view, to uint64, then, now time.Duration) (all []uint64) {
	if then == 0 {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for incarnation, absent := range a.away {
		if incarnation == to || a.ended[incarnation] || then < absent.since || len(all) >= mostNamed {
			continue
		}
		i, ok := v.find(absent.ID)
		isThere := ok && v.members[i].incarnation == incarnation || a.byIncarnation[incarnation] != nil
		if isThere || now-absent.since < hintLife {
			all = append(all, incarnation)
		}
	}
	for incarnation, s := range a.byIncarnation {
		if _, away := a.away[incarnation]; !away && !s.told && incarnation != to && len(all) < mostNamed {
			all = append(all, incarnation)
		}
	}
	return all
}

// absence returns since when a process may have missed writes, if it has been a member.
func (a *acquaintances) absence(incarnation uint64) (absent absence, away bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	absent, away = a.away[incarnation]
	return absent, away
}

// briefed returns up to when a process has been told of all writes, or 0: later ones that everybody is told of it has heard of,
// unless it is away.
func (a *acquaintances) briefed(incarnation uint64) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.knew[incarnation]
}

func (a *acquaintances) isBriefed(incarnation uint64, then time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.knew == nil || len(a.knew) >= maxStrangers {
		a.knew = make(map[uint64]time.Duration)
	}
	a.knew[incarnation] = max(a.knew[incarnation], then, 1)
}

// isBack takes note that the process has been told what it had missed, unless it has gone away again since then.
func (a *acquaintances) isBack(incarnation uint64, since time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.away[incarnation].since == since {
		delete(a.away, incarnation)
	}
}
