package shoal

// behind.go: whom others could not tell of writes. Each process names those when it tells of a write, and when it is greeted; from them
// nothing is taken over until they have been told: what they hold may have been overwritten, or removed.

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoalcache/shoal/shoalpb"
)

// hearsay is what others say of who may have missed their writes.
type hearsay struct {
	any atomic.Bool // has been said

	mu        sync.Mutex // guards what follows
	by        map[uint64]*saying
	questions map[uint64]repeat
}

// A saying is the last word of one process.
type saying struct {
	said   time.Duration // on its clock
	heard  time.Duration // … on this one
	behind map[uint64]bool
}

// A repeat is a question for another word.
type repeat struct {
	asked chan struct{} // closed when it has been answered, or could not be
	at    time.Duration
}

// mostNamed is how many a message names at most.
const mostNamed = 64

// note takes note of what the process of that incarnation says.
func (h *hearsay) note(by uint64, b *shoalpb.Behind, now time.Duration) {
	if b == nil || len(b.Incarnations) == 0 && !h.any.Load() {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	said := time.Duration(b.At)
	was := h.by[by]
	if was != nil && was.said >= said {
		return
	}
	if len(b.Incarnations) == 0 {
		if was != nil {
			was.said, was.behind = said, nil // an earlier word may be under way
		}
		return
	}
	next := &saying{said: said, heard: now, behind: make(map[uint64]bool)}
	for _, incarnation := range b.Incarnations[:min(len(b.Incarnations), mostNamed)] {
		next.behind[incarnation] = true
	}
	if h.by == nil || was == nil && len(h.by) >= maxStrangers {
		h.by = make(map[uint64]*saying)
	}
	h.by[by] = next
	h.any.Store(true)
}

// of returns who says that the process of that incarnation may have missed writes, and when that was heard.
func (h *hearsay) of(incarnation uint64) (by map[uint64]time.Duration) {
	if !h.any.Load() {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for other, said := range h.by {
		if said.behind[incarnation] {
			if by == nil {
				by = make(map[uint64]time.Duration)
			}
			by[other] = said.heard
		}
	}
	return by
}

// asks returns what is closed when the process of that incarnation has been asked for another word, and whether the caller is the
// one to ask: if nobody has for a while.
func (h *hearsay) asks(by uint64, now time.Duration) (asked chan struct{}, first bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	q := h.questions[by]
	if q.asked == nil || now-q.at >= firstRetry {
		if h.questions == nil || len(h.questions) >= maxStrangers {
			h.questions = make(map[uint64]repeat)
		}
		q, first = repeat{make(chan struct{}), now}, true
		h.questions[by] = q
	}
	return q.asked, first
}

// isSaidToBeBehind reports whether somebody says that m may have missed writes who owns keys, or has said so just now, and is about to
// be known, maybe. Who has ended tells nobody of anything.
func (p *peers) isSaidToBeBehind(m *peer) bool {
	now := p.clock.now()
	for by, heard := range p.hearsay.of(m.incarnation) {
		if p.at(by) != nil || now-heard < 4*p.timeout && !p.known.hasEnded(by) {
			return true
		}
	}
	return false
}

// isStillSaidToBeBehind asks those who say so, once for all who want to know at the same time. Who does not answer has not taken it back.
func (p *peers) isStillSaidToBeBehind(ctx context.Context, m *peer) bool {
	for by := range p.hearsay.of(m.incarnation) {
		other := p.at(by)
		if other == nil || other.counts.breaker.open.Load() {
			continue
		}
		asked, first := p.hearsay.asks(by, p.clock.now())
		if first {
			go func() {
				defer close(asked)
				ctx, cancel := context.WithTimeout(p.life, p.timeout)
				defer cancel()
				p.hello(ctx, other.Addr)
			}()
		}
		select {
		case <-asked:
		case <-ctx.Done():
		}
	}
	return p.isSaidToBeBehind(m)
}

// at returns the member or stranger of that incarnation, or nil: nobody whom this process knows.
func (p *peers) at(incarnation uint64) *peer {
	for _, m := range p.view.Load().members {
		if m.incarnation == incarnation {
			return m
		}
	}
	return p.known.at(incarnation)
}

// behind says who may have missed writes that this process knows of, but to. One that owns nothing takes no writes, and says nothing.
func (p *peers) behind(to uint64) *shoalpb.Behind {
	v, now := p.view.Load(), p.clock.now()
	if v.self < 0 && !v.alone {
		return nil
	}
	return &shoalpb.Behind{At: int64(now), Incarnations: p.known.behind(v, to, time.Duration(p.wrote.Load()), now)}
}
