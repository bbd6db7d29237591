package shoal

// call.go: a question to another process, and its answers. line.go finds a way for it.

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shoalcache/shoal/shoalpb"
)

// A call is a question to the process at an address, and its answers.
type call struct {
	cache       *Cache
	line        *line
	peer        *peer  // whom it asks; nil: whoever is there
	group       *group // nil: none
	longestLoad time.Duration
	alone       bool          // it needs a POST of its own
	many        bool          // it may have several answers
	hasNext     bool          // another process can be asked instead
	patience    time.Duration // how long it waits for a word: PeerTimeout, or less

	req    shoalpb.Request
	fetch  shoalpb.Fetch
	op     shoalpb.Request_Fetch
	reader shoalpb.ReplyReader

	sent     time.Duration // when it was made, on the clock
	wire     *wire         // that carries it now
	again    bool          // it has been sent a second time
	answered bool          // something has come
	left     bool          // next was left while it waited
	counted  bool          // among the line's

	in  chan arrival
	few chan arrival // in, unless many answers may come

	id     uint32        // on the wire. It and what follows are guarded by the wire's lock
	due    time.Duration // when it is given up
	load   time.Duration // how long it may be silent beyond PeerTimeout
	upTo   int64         // with it, so many bytes had been added to the wire
	worded bool          // something has come
	done   bool          // all has come
}

// An arrival is what the wire has for a call: a Reply, or the reason why there will be none.
type arrival struct {
	data []byte
	err  error
}

// newCall returns a call whose req has no Op yet. It must be ended.
func (c *Cache) newCall(l *line, p *peer, g *group, longestLoad time.Duration) *call {
	k, _ := c.calls.Get().(*call)
	if k == nil {
		k = &call{few: make(chan arrival, 3)}
	}
	k.in = k.few
	k.cache, k.line, k.peer, k.group, k.longestLoad, k.sent = c, l, p, g, longestLoad, c.clock.now()
	k.patience = c.opts.PeerTimeout
	if g != nil {
		k.req.Group, k.req.Generation = g.nameBytes, g.generation.message()
	}
	return k
}

// setMany says that n answers may come.
func (k *call) setMany(n int) {
	k.many = true
	k.in = make(chan arrival, n+2)
}

// end must be called once nobody waits for answers any more. What next has returned is not good any longer, but for the
// bytes in it.
func (k *call) end() {
	if k.wire != nil {
		k.wire.drop(k)
	}
	for len(k.few) > 0 {
		<-k.few
	}
	if k.counted {
		k.line.underWay.Add(-1)
		k.counted = false
	}
	c := k.cache
	k.line, k.peer, k.group, k.wire = nil, nil, nil, nil
	k.alone, k.many, k.hasNext, k.again, k.answered, k.left, k.worded, k.done = false, false, false, false, false, false, false, false
	k.req.Op, k.req.Group, k.req.Generation, k.req.Sender, k.req.Within = nil, nil, nil, nil, 0
	k.fetch.Key = nil
	c.calls.Put(k)
}

// allIn says that no more answers are to come.
func (k *call) allIn() {
	k.wire.mu.Lock()
	defer k.wire.mu.Unlock()
	k.done = true
	if k.wire.holdsLocked(k) {
		k.wire.freeLocked(k)
	}
}

// blame counts err, if it is one, as the peer's.
func (k *call) blame(err error) error {
	if err != nil {
		k.peer.counts.failed(err)
	}
	return err
}

// next sends the question, if that has not been done, and returns the next answer. It gives up when nothing has come from
// there for PeerTimeout; after word that something is being loaded, for as long as that may take, at most longestLoad, and
// PeerTimeout. Refusals are errors.
func (k *call) next(ctx context.Context) (*shoalpb.Reply, error) {
	p := k.peer
	if p != nil && k.wire == nil && p.counts.breaker.isOpen(k.sent) {
		if p.counts.breaker.isDueAgain(k.sent) {
			k.cache.peers.noticed(sighting{id: p.ID})
		}
		return nil, errSilent
	}
	reply, err := k.receive(ctx)
	if p != nil && err != nil && ctx.Err() == nil { // it is no fault of the peer's that nobody waits any more
		p.counts.failed(err)
		if !k.answered && err != errBusy {
			k.unanswered(errors.Is(err, errHurried))
		}
	}
	return reply, err
}

// unanswered takes note that nothing has come from the peer. A member is greeted then, until it answers: callers who have little
// time do not find out by themselves that it is silent.
func (k *call) unanswered(hurried bool) {
	b, now, member := &k.peer.counts.breaker, k.cache.clock.now(), k.cache.peers.isMember(k.peer)
	if hurried {
		b.missed(now - k.sent)
	} else {
		b.failed(k.sent, now, member)
	}
	if member && (b.isSilent(k.cache.shortWait()) || b.isDueAgain(now)) {
		k.cache.peers.noticed(sighting{id: k.peer.ID})
	}
}

// shortWait is how long an answer may take that needs nothing but a look at memory.
func (c *Cache) shortWait() time.Duration { return c.opts.PeerTimeout / 5 }

// errHurried is why a question has no answer whose caller could not wait for it as long as PeerTimeout.
var errHurried = errors.New("there is no more time for it")

func (k *call) receive(ctx context.Context) (*shoalpb.Reply, error) {
	if k.wire == nil {
		if deadline, ok := ctx.Deadline(); ok {
			left := max(time.Until(deadline), 1)
			k.req.Within = int64(left)
			if k.hasNext { // half of the time is for the next owner
				k.patience = min(k.patience, left/2)
			}
		}
		if err := k.line.send(k); err != nil {
			return nil, err
		}
	}
	for {
		var a arrival
		select {
		case a = <-k.in:
		case <-ctx.Done():
			k.left = true
			return nil, ctx.Err()
		}
		if a.err != nil {
			// Asking twice does no harm, but where something is written.
			once := errors.Is(a.err, errEnded) && k.req.GetWrite() == nil || a.err == errNotUnderstood
			if once && !k.answered && !k.again {
				if err := k.sendAlone(); err != nil {
					return nil, err
				}
				k.again = true
				continue
			}
			return nil, a.err
		}
		reply, err := k.reader.Read(a.data)
		if err != nil {
			return nil, fmt.Errorf("read the answer: %w", err)
		}
		k.answered = true
		if loading := reply.GetLoading(); loading != nil && k.longestLoad > 0 { // once
			k.wire.patient(k, min(max(time.Duration(loading.Longest), 0), k.longestLoad))
			k.longestLoad = 0
			continue
		}
		if reply.GetApart() != nil && !k.alone {
			if err := k.sendAlone(); err != nil {
				return nil, err
			}
			continue
		}
		return reply, k.check(reply)
	}
}

// sendAlone sends k once more, in a POST of its own.
func (k *call) sendAlone() error {
	k.wire.drop(k)
	k.alone, k.sent = true, k.cache.clock.now()
	return k.line.send(k)
}

// check does what is to be done with any reply, and returns the error that it is, if it is one.
func (k *call) check(reply *shoalpb.Reply) error {
	if k.peer == nil {
		return nil
	}
	if was := k.wire.incarnation.Load(); was != k.peer.incarnation && k.peer.incarnation != 0 {
		k.cache.peers.noticed(sighting{id: k.peer.ID, incarnation: was}) // somebody else is there now
	}
	if r := reply.GetRefused(); r != nil {
		return k.cache.refusal(r)
	}
	k.cache.isThere(k.peer, true)
	if k.group != nil {
		k.group.meet(reply.GetGeneration())
	}
	return nil
}

// arrive gives k what has come for it. It does not wait: there is room for all that may come.
func (k *call) arrive(a arrival) {
	select {
	case k.in <- a:
	default:
	}
}
