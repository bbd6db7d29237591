package shoal

// questions.go: what a process asks others, in the order of shoal.proto. Their answers are in answers.go.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"time"

	"github.com/shoalcache/shoal/shoalpb"
)

// hello asks the process at addr who it is.
func (c *Cache) hello(ctx context.Context, addr string) (m met, err error) {
	k := c.newCall(c.lineTo(addr), nil, nil, 0)
	defer k.end()
	k.alone = true
	k.req.Op = &shoalpb.Request_Hello{Hello: c.introduction(func(m *peer) bool { return m.Addr == addr })}
	reply, err := k.next(ctx)
	if err != nil {
		return m, err
	}
	if r := reply.GetRefused(); r != nil {
		return m, c.refusal(r)
	}
	h, s := reply.GetHello(), reply.GetSender()
	if h == nil || !validWeight(h.Weight) {
		return m, unexpected(reply)
	}
	c.clock.follow(h.Clock)
	c.peers.hearsay.note(s.GetIncarnation(), h.Behind, c.clock.now())
	if h.Untold {
		for _, g := range c.allGroups() {
			g.forgetLoaded()
		}
	}
	c.meet(h.GetGroups())
	c.hints.heard(string(s.GetId()))
	m = met{uptime: max(time.Duration(h.Uptime), 0), owns: h.Owns, acted: max(time.Duration(h.Acted), 0), left: h.Left, views: h.Views, peer: &peer{
		Peer:        Peer{ID: cmp.Or(string(s.GetId()), addr), Addr: addr, Zone: string(h.Zone), Weight: h.Weight},
		incarnation: s.GetIncarnation(),
		counts:      new(peerCounts),
	}}
	for _, p := range h.Peers {
		if addr, err := normalAddr(string(p.Addr)); err == nil {
			m.names = append(m.names, Peer{ID: string(p.Id), Addr: addr})
		}
	}
	return m, nil
}

// tell returns a call of p about group g, which must be ended.
func (c *Cache) tell(p *peer, g *group, longestLoad time.Duration) *call {
	p.counts.exchanges.Add(1)
	if p.line == nil {
		k := c.newCall(c.lineTo(p.Addr), p, g, longestLoad)
		k.alone = true
		return k
	}
	return c.newCall(p.line, p, g, longestLoad)
}

// told sends p a message about group g that has one answer, and gives it that.
func (c *Cache) told(ctx context.Context, p *peer, g *group, req *shoalpb.Request, longestLoad time.Duration, answer func(*shoalpb.Reply) error) error {
	k := c.tell(p, g, longestLoad)
	defer k.end()
	k.req.Op = req.Op
	reply, err := k.next(ctx)
	if err == nil {
		err = k.blame(answer(reply))
	}
	return err
}

// batches cuts all into parts that fit into a message each, given how many bytes each of them takes.
func batches[T any](c *Cache, all []T, size func(T) int) iter.Seq[[]T] {
	return func(yield func([]T) bool) {
		for len(all) > 0 {
			n, sum := 0, int64(0)
			for n < len(all) && (n == 0 || sum+int64(size(all[n])) < c.opts.MaxBodyBytes/4) {
				sum += int64(size(all[n])) + 64 // what goes with it
				n++
			}
			if !yield(all[:n:n]) {
				return
			}
			all = all[n:]
		}
	}
}

// fetch asks p for the value of key. Its error is that of ctx, ErrNotCached, a *PeerError, or a *PeerError that wraps
// *notOwner. That there is no value is no error, but in what is found. The question names the version of before, a copy
// whose lease has ended, if q does.
func (c *Cache) fetch(ctx context.Context, flight *fetchFlight, p *peer, g *group, key string, q question, before entry) (found, error) {
	k, goesOn := c.tell(p, g, g.longestLoad(q.want)), false
	defer func() {
		if !goesOn {
			k.end()
		}
	}()
	f := &k.fetch
	f.Key, f.Callers, f.Over = NewByteView(key).bytes(), uint32(min(q.callers, 1<<30)), int64(q.over)
	f.Lease, f.Have, f.MaxAge, f.Fresh, f.CachedOnly = q.lease, q.have, int64(q.maxAge), q.fresh, q.cachedOnly
	f.StandIn = q.standIn
	k.op.Fetch, k.req.Op = f, &k.op
	k.hasNext = !q.standIn || q.cachedOnly
	sent := k.sent
	reply, err := k.next(ctx)
	var result found
	var failed error
	switch same := reply.GetSame(); {
	case err != nil:
	case same != nil && q.have != 0:
		g.counts.renewed.Add(1)
		result = found{entry: before, fetched: true}
		result.times(sent, same.Ttl, same.Age)
		result.stale, result.lease = same.Stale, time.Duration(same.Lease)
		result.asked = sent
	case reply.GetNotCached() != nil:
		return found{}, ErrNotCached
	default:
		result, failed, err = said(reply, sent)
		result.asked = sent
		k.blame(err)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		inTime := !errors.Is(ctx.Err(), context.DeadlineExceeded) // else the owner gives up, too
		isAnswered := context.Cause(ctx) == errAnswered
		goesOn = flight != nil && k.left && inTime && !isAnswered && flight.GoOn(func(ctx context.Context) error { // the owner is at work for others too
			defer k.end()
			_, err := k.next(ctx)
			if _, ok := errors.AsType[*notOwner](err); ok || err == nil {
				return nil // the next asks for itself
			}
			return &PeerError{Peer: p.Peer, Op: "get", Err: fmt.Errorf("key %.80q of group %q: %w", key, g.name, err)}
		})
		return found{}, ctx.Err()
	case err != nil:
		return found{}, &PeerError{Peer: p.Peer, Op: "get", Err: fmt.Errorf("key %.80q of group %q: %w", key, g.name, err)}
	case failed != nil:
		return found{}, &PeerError{Peer: p.Peer, Op: "load", Err: fmt.Errorf("key %.80q of group %q: %w", key, g.name, failed)}
	}
	return result, nil
}

// fetchMany asks p for the values of keys, and calls got for those it answers, by their indexes, one at a time. Its
// error is why it does not answer the others. If alone is true, they are asked for in a POST of its own.
func (c *Cache) fetchMany(ctx context.Context, p *peer, g *group, keys []string, standIn, alone bool, got func(i int, f found, err error)) error {
	sent := c.clock.now()
	many := &shoalpb.FetchMany{Keys: make([][]byte, len(keys)), StandIn: standIn}
	for i, key := range keys {
		many.Keys[i] = NewByteView(key).bytes()
	}
	k := c.tell(p, g, g.loadTimeout)
	defer k.end()
	k.setMany(len(keys))
	k.hasNext = !standIn
	k.alone = k.alone || alone
	k.req.Op = &shoalpb.Request_FetchMany{FetchMany: many}
	answered, left := make([]bool, len(keys)), len(keys)
	var tooLong []int
	var err error
	for left > 0 && err == nil {
		var reply *shoalpb.Reply
		if reply, err = k.next(ctx); err != nil {
			break
		}
		items := reply.GetItems().GetItems()
		if len(items) == 0 {
			err = k.blame(unexpected(reply))
		}
		for _, item := range items {
			if uint64(item.Index) >= uint64(len(keys)) || answered[item.Index] {
				err = k.blame(fmt.Errorf("its answer to key %d of %d is not the first", item.Index, len(keys)))
				break
			}
			answered[item.Index] = true
			left--
			if item.GetApart() != nil {
				tooLong = append(tooLong, int(item.Index))
				continue
			}
			f, failed, err := said(item, sent)
			op := "get"
			if failed != nil {
				op, err = "load", failed
			} else if r := item.GetRefused(); r != nil {
				err = c.refusal(r)
			} else if err == nil {
				err = f.err
			}
			if err != nil && f.err == nil {
				err = &PeerError{Peer: p.Peer, Op: op, Err: fmt.Errorf("key %.80q of group %q: %w", keys[item.Index], g.name, err)}
			}
			got(int(item.Index), f, err)
		}
	}
	if err == nil {
		k.allIn()
	} else if ctx.Err() == nil {
		err = &PeerError{Peer: p.Peer, Op: "get", Err: fmt.Errorf("%d keys of group %q: %w", left, g.name, err)}
	}
	if len(tooLong) > 0 && err == nil && alone {
		err = k.blame(fmt.Errorf("its answers to %d keys of group %q do not come apart either", len(tooLong), g.name))
		return &PeerError{Peer: p.Peer, Op: "get", Err: err}
	}
	if len(tooLong) > 0 && err == nil {
		long := make([]string, len(tooLong))
		for j, i := range tooLong {
			long[j] = keys[i]
		}
		err = c.fetchMany(ctx, p, g, long, standIn, true, func(j int, f found, err error) { got(tooLong[j], f, err) })
	}
	return err
}

// said returns what the owner of a key, asked at that time, has found; or why its getter failed. Its error is that of an
// answer that is neither.
func said(a interface {
	GetValue() *shoalpb.Value
	GetNotFound() *shoalpb.NotFound
	GetFailed() *shoalpb.Failed
}, sent time.Duration) (f found, failed, err error) {
	f.fetched = true
	if v := a.GetValue(); v != nil {
		f.value, f.version = NewByteView(v.Value), v.Version
		f.times(sent, v.Ttl, v.Age)
		f.stale, f.loaded, f.lease = v.Stale, v.Loaded, time.Duration(v.Lease)
	} else if n := a.GetNotFound(); n != nil {
		f.err, f.lease = ErrNotFound, time.Duration(n.Lease)
		f.times(sent, 0, n.Age)
	} else if x := a.GetFailed(); x != nil {
		failed = failure(x)
	} else {
		err = fmt.Errorf("its answer, %T, is none to this question", a)
	}
	return f, failed, err
}

// times sets the times of what a peer has sent, as if it had been as old and had as long to live when it was asked for.
func (e *entry) times(sent time.Duration, ttl, age int64) {
	e.born = sent - time.Duration(min(max(age, 0), 1<<61))
	if ttl > 0 {
		e.fresh = sent + min(time.Duration(ttl), math.MaxInt64-sent)
	}
}

// write sends those changes whose indexes are given to their owner, p, and returns what has come of them.
func (c *Cache) write(ctx context.Context, p *peer, g *group, op shoalpb.Write_Op, changes []change, indexes []int) ([]accepted, error) {
	sent := c.clock.now()
	w := &shoalpb.Write{Op: op, Changes: make([]*shoalpb.Change, len(indexes))}
	for j, i := range indexes {
		ch := changes[i]
		w.Changes[j] = &shoalpb.Change{Key: []byte(ch.key), Value: ch.value, Ttl: int64(ch.ttl), Delta: ch.delta, Above: ch.above}
	}
	var done []accepted
	err := c.told(ctx, p, g, &shoalpb.Request{Op: &shoalpb.Request_Write{Write: w}}, g.loadTimeout, func(reply *shoalpb.Reply) error {
		answer := reply.GetWritten()
		if answer == nil || len(answer.Results) != len(indexes) {
			return unexpected(reply)
		}
		known, past := c.peers.allNamed(answer.Peers)
		for _, r := range answer.Results {
			d := accepted{version: r.Version, acceptor: p, sum: r.Sum, holders: c.holders(r.Holders), all: r.All}
			if d.all {
				d.known, d.past = known, past
			}
			for _, p := range r.Replicas {
				d.replicas = append(d.replicas, c.peers.named(p.Id, p.Addr))
			}
			if now := r.Now; now != nil {
				d.now = g.handed(now, sent)
				if i := indexes[len(done)]; op == shoalpb.Write_SET && changes[i].above == 0 {
					d.now.value = NewByteView(changes[i].value)
				}
			} else {
				d.gone = true
			}
			if r.Failed != nil {
				d = accepted{err: &notDone{"load", failure(r.Failed)}}
			} else if len(r.Error) > 0 {
				d = accepted{err: &notDone{"add", errors.New(string(clip(string(r.Error))))}}
			} else if r.Refused != nil {
				d = accepted{err: c.refusal(r.Refused)}
			}
			done = append(done, d)
		}
		return nil
	})
	return done, err
}

// A dropping is a key to drop, after a write of that version which that process has taken; 0 if none has.
type dropping struct {
	key      string
	version  uint64
	acceptor uint64
}

// drop makes p drop keys, and returns who holds each by the leave of p.
func (c *Cache) drop(ctx context.Context, p *peer, g *group, drops []dropping) ([][]holder, error) {
	var all [][]holder
	for some := range batches(c, drops, func(d dropping) int { return len(d.key) }) {
		d := &shoalpb.Drop{Keys: make([]*shoalpb.Dropping, len(some)), Behind: c.peers.behind(p.incarnation)}
		for i, s := range some {
			d.Keys[i] = &shoalpb.Dropping{Key: []byte(s.key), Version: s.version, Acceptor: s.acceptor}
		}
		err := c.told(ctx, p, g, &shoalpb.Request{Op: &shoalpb.Request_Drop{Drop: d}}, 0, func(reply *shoalpb.Reply) error {
			dropped := reply.GetDropped()
			if dropped == nil || len(dropped.Keys) != len(some) {
				return unexpected(reply)
			}
			for _, k := range dropped.Keys {
				all = append(all, c.holders(k.Holders))
			}
			return nil
		})
		if holdsNothing(err) {
			all, err = append(all, make([][]holder, len(some))...), nil
		}
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// dropAll makes p drop whatever the group holds there, or what d says of it.
func (c *Cache) dropAll(ctx context.Context, p *peer, g *group, d *shoalpb.Drop) error {
	d.Behind = c.peers.behind(p.incarnation)
	err := c.told(ctx, p, g, &shoalpb.Request{Op: &shoalpb.Request_Drop{Drop: d}}, 0, func(reply *shoalpb.Reply) error {
		if reply.GetDropped() == nil {
			return unexpected(reply)
		}
		return nil
	})
	if holdsNothing(err) {
		return nil
	}
	return err
}

// purge tells p the generation of g, and reports whether p was ahead of it, and whom else p would tell.
func (c *Cache) purge(ctx context.Context, p *peer, g *group) (ahead bool, known, past []*peer, err error) {
	err = c.told(ctx, p, g, &shoalpb.Request{Op: &shoalpb.Request_Purge{Purge: &shoalpb.Purge{}}}, 0, func(reply *shoalpb.Reply) error {
		purged := reply.GetPurged()
		if purged == nil {
			return unexpected(reply)
		}
		ahead = purged.Behind
		known, past = c.peers.allNamed(purged.Peers)
		return nil
	})
	if holdsNothing(err) {
		err = nil
	}
	return ahead, known, past, err
}

// peek asks p for what it holds of key, which it does not own if hold is false, and returns that with its version. If there is
// nothing, e.err says so, and e.version is that of the last write that p knows of, where nothing older is to be taken. If
// hold is true, the process asks p as the owner of key, in whose place it would keep a copy for as long as the lease lasts; held
// says that p tells it of writes meanwhile.
func (c *Cache) peek(ctx context.Context, p *peer, g *group, key string, hold bool) (e entry, lease time.Duration, held bool, err error) {
	sent := c.clock.now()
	k := c.tell(p, g, 0)
	defer k.end()
	if hold || g.getter != nil {
		k.patience = c.shortWait()
	}
	k.req.Op = &shoalpb.Request_Peek{Peek: &shoalpb.Peek{Key: []byte(key), Hold: hold}}
	reply, err := k.next(ctx)
	if err != nil {
		return e, 0, false, err
	}
	if none := reply.GetNotCached(); none != nil {
		return entry{err: ErrNotCached, version: none.Written}, 0, none.Held, nil
	}
	v := reply.GetValue()
	if v.GetVersion() == 0 {
		return e, 0, false, k.blame(unexpected(reply))
	}
	if !g.generation.is(reply.GetGeneration()) {
		return entry{err: ErrNotCached}, 0, false, nil
	}
	lease = min(time.Duration(v.Lease), maxLease)
	return g.handed(v, sent), lease, lease > 0, nil
}

// goodbye tells p that this process leaves.
func (c *Cache) goodbye(ctx context.Context, p *peer) error {
	return c.told(ctx, p, nil, &shoalpb.Request{Op: &shoalpb.Request_Leave{Leave: &shoalpb.Leave{}}}, c.opts.PeerTimeout, func(reply *shoalpb.Reply) error {
		if reply.GetLeft() == nil {
			return unexpected(reply)
		}
		return nil
	})
}

// isNoGroup reports whether a peer has refused since it does not have the group, and so holds nothing of it.
func isNoGroup(err error) bool {
	r, ok := errors.AsType[*refusedError](err)
	return ok && r.reason == shoalpb.Refused_NO_GROUP
}

// holdsNothing reports whether a peer has refused since there is nothing that it could drop: it does not have the group, or has
// left, and neither keeps anything nor lets anybody join what it loads.
func holdsNothing(err error) bool {
	r, ok := errors.AsType[*refusedError](err)
	return ok && (r.reason == shoalpb.Refused_NO_GROUP || r.reason == shoalpb.Refused_SHUT_DOWN)
}

// holders are those that another process has named.
func (c *Cache) holders(named []*shoalpb.Holder) []holder {
	now := c.clock.now()
	var all []holder
	for _, h := range named {
		all = append(all, holder{c.peers.named(h.Id, h.Addr), now + min(max(time.Duration(h.Remaining), 0), 2*maxLease)})
	}
	return all
}
