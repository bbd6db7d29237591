package shoal

// candidates.go: how a listed address becomes a member: it is asked who is there until somebody has answered, and again when
// another seems to be in that place.

import (
	"cmp"
	"context"
	"errors"
	"sync/atomic"
	"time"
)

// A candidate is a listed address.
type candidate struct {
	asked  bool          // once at least, whatever has come of it
	met    *peer         // who has answered, if somebody has
	left   atomic.Uint64 // the incarnation that has said that it leaves
	turn   int           // the higher, the later this process was met
	wake   chan struct{} // asks again
	cancel context.CancelFunc
	silent time.Duration // since when, on the clock, it has not answered; 0: it has
	said   time.Duration // when the log last said that it does not
	warned bool          // … this time
}

// A greeting is what has come of asking the process at addr who it is.
type greeting struct {
	addr string
	met  *peer
	err  error
	roll bool // after a change of view, and not by the candidate's own goroutine
}

// A candidate that does not answer is asked again after firstRetry, then twice that, and so on up to lastRetry, each
// time cut at random by up to a half; one that has answered before, up to lastProbe, for callers are kept from it meanwhile.
// Discovery that has ended is started again as the first are.
const firstRetry, lastProbe, lastRetry = 100 * time.Millisecond, time.Second, 10 * time.Second

// greet asks the process at addr who it is: until it has answered, and then when it is woken.
func (p *peers) greet(ctx context.Context, addr string, c *candidate) {
	last := lastRetry
	for retry := firstRetry; ; retry = min(2*retry, last) {
		asked := p.clock.now()
		met, err := p.hello(ctx, addr)
		switch {
		case err != nil:
		case met.left || met.incarnation == c.left.Load():
			p.meets(met)
			err = errHasLeft
		default:
			err = p.welcome(ctx, met)
		}
		select {
		case p.greeted <- greeting{addr: addr, met: met.peer, err: err}:
		case <-ctx.Done():
			return
		}
		var woken bool
		if err == nil {
			last = lastProbe
			select {
			case <-c.wake:
				woken = true
				sleep(ctx, firstRetry-(p.clock.now()-asked)) // each caller that waits in vain wakes it
			case <-ctx.Done():
			}
		} else if woken = pause(ctx, retry, c.wake); woken {
			pause(ctx, firstRetry, nil) // two that cannot hear each other must not wake each other without end
		}
		if ctx.Err() != nil {
			return
		}
		if woken {
			retry = firstRetry / 2
		}
	}
}

var errHasLeft = errors.New("it has left its peers")

// answered takes note of what has come of greeting c, and reports whether the view may be another now. Who has been met stays
// a member if it does not answer later.
func (p *peers) answered(c *candidate, g greeting, turn int) (changed bool) {
	if g.roll {
		switch {
		case c.met == nil:
		case g.err != nil:
			p.fellSilent(c.met, true)
			c.again()
		case c.met.incarnation != g.met.incarnation:
			c.again() // it must be told first what it may have missed
		}
		return false
	}
	p.report(c, g)
	first := !c.asked
	c.asked = true
	if g.err != nil {
		if _, refused := errors.AsType[*refusedError](g.err); g.met == nil && c.met != nil && !refused {
			p.fellSilent(c.met, false)
		}
		return first
	}
	if c.met == nil || c.met.incarnation != g.met.incarnation {
		c.turn = turn
		if g.met.ID == p.self.ID && g.met.incarnation != p.incarnation {
			p.log.Error("shoal: another process has the ID of this one, which must be unique", "id", g.met.ID, "addr", g.addr)
		}
	}
	changed = first || c.met == nil || c.met.incarnation != g.met.incarnation || c.met.Peer != g.met.Peer
	c.met = g.met
	return changed
}

// reportAgain is how long nothing is said of a peer that has just been said to be silent.
const reportAgain = time.Minute

// report has the log say when c stops answering, and when it answers again. Who has said that it leaves is not missed.
func (p *peers) report(c *candidate, g greeting) {
	now := max(p.clock.now(), 1)
	switch {
	case g.err == nil && c.warned:
		p.log.Info("shoal: a listed peer answers now", "id", g.met.ID, "addr", g.addr, "after", now-c.silent)
		fallthrough
	case g.err == nil:
		c.silent, c.warned = 0, false
	case c.met != nil || !c.asked:
		c.silent = cmp.Or(c.silent, now)
		if !c.warned && (c.said == 0 || now-c.said >= reportAgain) {
			c.said, c.warned = now, true
			p.log.Warn("shoal: a listed peer does not answer, and will be asked again", "addr", g.addr, "error", g.err)
		}
	}
}

// fellSilent takes note that a member has not answered a greeting, unless it has given a word since it was asked in vain; and that
// it may miss writes from now on, if that was to tell it of a change of view.
func (p *peers) fellSilent(m *peer, rolled bool) {
	v := p.view.Load()
	i, ok := v.find(m.ID)
	if !ok || v.members[i].incarnation != m.incarnation {
		return
	}
	switch b, now := &v.members[i].counts.breaker, p.clock.now(); {
	case b.open.Load():
		b.attended(now)
	case rolled || !b.isHere():
		b.failed(now, now, true)
	}
	if rolled {
		p.known.leaves(m, v.since)
	}
}

// isMember reports whether m is in the view, and so is greeted until it answers.
func (p *peers) isMember(m *peer) bool {
	v := p.view.Load()
	i, ok := v.find(m.ID)
	return ok && i != v.self
}

// wake asks again who may be the one that has been seen, unless that one is known: a candidate of the same ID or address
// that was another process, and those that have not answered yet.
func wake(candidates map[string]*candidate, s sighting) {
	for _, c := range candidates {
		if c.met != nil && c.met.incarnation == s.incarnation {
			return
		}
	}
	for addr, c := range candidates {
		if c.met == nil && s.incarnation != 0 || c.met != nil && c.met.ID == s.id || addr == s.addr {
			c.again()
		}
	}
}

// leaves takes note that who answers at c has left: it is asked until somebody else answers there, or it is not listed any more.
func (c *candidate) leaves(incarnation uint64) {
	c.met = nil
	c.left.Store(incarnation)
	c.again()
}

// again has c asked once more who it is.
func (c *candidate) again() {
	select {
	case c.wake <- struct{}{}:
	default: // it has been asked for already
	}
}
