package shoal

// greetings.go: how processes that see different peers get to know of each other. After each change of view a process greets
// everybody, before it acts on the keys that have come to it: from then on whoever takes a write tells it, though it may be
// in nobody else's view yet, and it tells them. Who has been away is told first what it has missed.

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoalcache/shoal/shoalpb"
)

// A met is what a process says of itself when it is greeted.
type met struct {
	*peer
	uptime time.Duration
	owns   bool          // keys, by its own view
	acted  time.Duration // for how long it may have owned some by views without this process, if it has done so lately
	left   bool          // it owns nothing any more
	views  uint64        // how many it had had, which says what of it is the later word
	names  []Peer        // who may own keys, by views it has had
}

// A rollCall is the greeting of everybody that follows a change of view.
type rollCall struct {
	done  chan struct{} // closed when all have answered, or failed
	over  atomic.Int64  // when that was, on the clock; 0: it is not
	taken chan struct{} // closed when what has come with the change has been taken over
}

func newRollCall() *rollCall {
	return &rollCall{done: make(chan struct{}), taken: make(chan struct{})}
}

// end takes note that all have answered, or failed, if that is news.
func (r *rollCall) end(now time.Duration) {
	if r.over.CompareAndSwap(0, int64(max(now, 1))) {
		close(r.done)
	}
}

// callRoll greets the members of both views, and whomever they name, until all have answered or failed.
func (p *peers) callRoll(ctx context.Context, old, v *view, r *rollCall) {
	defer func() { r.end(p.clock.now()) }()
	if v.self < 0 {
		return // nothing has come to this process
	}
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex // guards greeted
		greeted = map[string]bool{p.self.Addr: true}
		greet   func(addr string, counts *peerCounts)
	)
	greet = func(addr string, counts *peerCounts) {
		mu.Lock()
		defer mu.Unlock()
		if addr == "" || greeted[addr] || len(greeted) > maxStrangers {
			return
		}
		greeted[addr] = true
		wg.Go(func() {
			m, err := p.hello(ctx, addr)
			if err == nil {
				p.meets(m)
				if p.known.untold(m.incarnation) != nil { // who is in no view any more may be there for long, and is told of each write from now on
					p.tellMet(ctx, m)
				}
				for _, named := range m.names {
					greet(named.Addr, new(peerCounts))
				}
			} else if p.life.Err() == nil {
				counts.breaker.failed(0, p.clock.now(), false)
			}
			select {
			case p.greeted <- greeting{addr: addr, met: m.peer, err: err, roll: true}:
			case <-p.done:
			}
		})
	}
	for _, m := range v.members {
		greet(m.Addr, m.counts)
	}
	for _, m := range old.members {
		greet(m.Addr, m.counts)
	}
	for _, m := range p.known.strangers(p.clock.now()) {
		greet(m.Addr, m.counts)
	}
	wg.Wait()
}

// meets takes note of a process that has said of itself who it is.
func (p *peers) meets(m met) {
	if m.incarnation == p.incarnation {
		return
	}
	v := p.view.Load()
	if i, ok := v.find(m.ID); ok && v.members[i].incarnation == m.incarnation {
		if m.acted > 0 {
			v.members[i].counts.keepsUntil.Store(int64(p.clock.now() + p.window/2)) // as long as what is frozen there
		}
		return
	}
	if m.left {
		p.pullsFrom(m.peer)
	}
	if !m.owns || m.Addr == "" {
		p.forgets(m.incarnation, m.views)
		return
	}
	p.known.meet(m, p.clock.now(), p.lineTo)
}

// forgets takes note that a stranger owns nothing any more, or nothing yet, when it has had so many views.
func (p *peers) forgets(incarnation, views uint64) {
	if p.known.forget(incarnation, views) {
		p.differs.Store(int64(p.clock.now()))
	}
}

// welcome tells a process that is not a member, could not be greeted, or has acted by views without this one, what it has missed:
// before it is asked anything.
func (p *peers) welcome(ctx context.Context, m met) error {
	if m.incarnation == p.incarnation || !m.owns && m.Addr == "" {
		return nil
	}
	p.meets(m) // from now on it is told of writes
	return p.tellMet(ctx, m)
}

// tellMet tells a process that has said who it is what it has missed.
func (p *peers) tellMet(ctx context.Context, m met) error {
	now := p.clock.now()
	absent, away := p.known.absence(m.incarnation)
	s := p.known.untold(m.incarnation)
	since := now
	switch {
	case s != nil, !away && !p.view.Load().has(m.peer):
		since = 0
	case away:
		since = absent.since
	case m.acted == 0:
		return nil
	}
	if m.acted > 0 {
		since = min(since, now-m.acted-p.timeout)
	}
	// What it has of its own is no older than itself, nor what it has from others, but for those who have missed writes. (What it
	// says of itself has been on its way for a while.)
	since = max(since, min(now-m.uptime-p.timeout, p.known.firstAway(now)), 0)
	if known := p.known.briefed(m.incarnation); s == nil && !away && known > 0 {
		if time.Duration(p.toldFew.Load()) < max(since, known) {
			return nil // each write since then has been told to everybody
		}
		since = max(since, known-p.timeout)
	}
	if err := p.tellMissed(ctx, m.peer, since); err != nil {
		return err
	}
	p.known.isBriefed(m.incarnation, now)
	if away {
		p.known.isBack(m.incarnation, absent.since)
	}
	if s != nil {
		p.known.isTold(s)
	}
	return nil
}

// mayHaveMissed reports whether a process may have missed writes of which this one knows.
func (p *peers) mayHaveMissed(m met) bool {
	_, away := p.known.absence(m.incarnation)
	return away || m.acted > 0 || !p.view.Load().has(m.peer)
}

// brief tells a process that has greeted what it has missed, and reports whether it could: before it has its answer, for it acts
// when it has those of all.
func (p *peers) brief(ctx context.Context, m met) bool {
	ctx, cancel := context.WithTimeout(ctx, p.timeout/2) // it does not wait for longer than p.timeout
	defer cancel()
	return p.tellMet(ctx, m) == nil
}

// catchesUp tells m, which was silent and is not any more, of what it has missed, in the background.
func (p *peers) catchesUp(m *peer) {
	if absent, away := p.known.absence(m.incarnation); away {
		go p.bringsUp(p.life, m, absent.since)
	}
}

// bringsUp tells m what it has missed since then, and reports whether it could.
func (p *peers) bringsUp(ctx context.Context, m *peer, since time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	if p.tellMissed(ctx, m, since) != nil {
		return false
	}
	p.known.isBack(m.incarnation, since)
	return true
}

// introduction is what this process says of itself to whom it greets, and who greets it: to tells which of the peers that is.
func (c *Cache) introduction(to func(*peer) bool) *shoalpb.Hello {
	self, v := &c.peers.self, c.peers.view.Load()
	h := &shoalpb.Hello{
		Addr: []byte(self.Addr), Zone: []byte(self.Zone), Weight: self.Weight,
		Owns: v.self >= 0 && !c.left.Load(), Views: v.number, Uptime: int64(c.clock.now()),
		Acted: int64(c.peers.hasActedWithout(to)), Clock: c.clock.timeOfDay(), Left: c.left.Load(),
		Behind: c.peers.behind(0),
	}
	for _, g := range c.allGroups() {
		h.Groups = append(h.Groups, &shoalpb.Group{Name: []byte(g.name), Generation: g.generation.message()})
	}
	return h
}

// answerTo is the introduction to a process that greets, and names to it whom it may not know.
func (c *Cache) answerTo(greeter *shoalpb.Sender) *shoalpb.Hello {
	h := c.introduction(func(m *peer) bool { return m.ID == string(greeter.GetId()) })
	h.Peers = c.unknownTo(greeter)
	return h
}

// unknownTo names those whom this process would tell of a write, and the sender of a message may not.
func (c *Cache) unknownTo(sender *shoalpb.Sender) []*shoalpb.Peer {
	must, may := c.peers.everybody()
	if v := c.peers.view.Load(); sender.GetView() == v.digest { // it has the same
		must = slices.DeleteFunc(must, v.has)
	}
	return named(must, may)
}

// message names the members of v for who is to know by them who owns a key.
func (v *view) message() (all []*shoalpb.Peer) {
	for _, m := range v.members {
		all = append(all, &shoalpb.Peer{Id: []byte(m.ID), Zone: []byte(m.Zone), Weight: m.Weight, Incarnation: m.incarnation})
	}
	return all
}

func named(must, may []*peer) (all []*shoalpb.Peer) {
	for i, p := range slices.Concat(must, may) {
		all = append(all, &shoalpb.Peer{Id: []byte(p.ID), Addr: []byte(p.Addr), Past: i >= len(must)})
	}
	return all
}
