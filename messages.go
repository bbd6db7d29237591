package shoal

// messages.go: what processes say to each other, in the order of shoal.proto: first the questions of the one side, then
// the answers of the other.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"net/http"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/shoalcache/shoal/shoalpb"
)

// hello asks the process at addr who it is.
func (c *Cache) hello(ctx context.Context, addr string) (met *peer, err error) {
	k := c.newCall(c.lineTo(addr), nil, nil, 0)
	defer k.end()
	k.alone = true
	k.req.Op = &shoalpb.Request_Hello{Hello: c.introduction()}
	reply, err := k.next(ctx)
	if err != nil {
		return nil, err
	}
	if r := reply.GetRefused(); r != nil {
		return nil, c.refusal(r)
	}
	h := reply.GetHello()
	if h == nil || !validWeight(h.Weight) {
		return nil, unexpected(reply)
	}
	c.meet(h.GetGroups())
	c.hints.heard(string(reply.GetSender().GetId()))
	return &peer{
		Peer:        Peer{ID: string(reply.GetSender().GetId()), Addr: addr, Zone: string(h.Zone), Weight: h.Weight},
		incarnation: reply.GetSender().GetIncarnation(),
	}, nil
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

// parts cuts all into parts that fit into a message each, given how many bytes each of them takes.
func parts[T any](c *Cache, all []T, size func(T) int) iter.Seq[[]T] {
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
	k.op.Fetch, k.req.Op = f, &k.op
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
		goesOn = flight != nil && k.left && flight.GoOn(func(ctx context.Context) error { // the owner is at work for others too
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
func (c *Cache) fetchMany(ctx context.Context, p *peer, g *group, keys []string, alone bool, got func(i int, f found, err error)) error {
	sent := c.clock.now()
	many := &shoalpb.FetchMany{Keys: make([][]byte, len(keys))}
	for i, key := range keys {
		many.Keys[i] = NewByteView(key).bytes()
	}
	k := c.tell(p, g, g.loadTimeout)
	defer k.end()
	k.setMany(len(keys))
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
			f.value = NewByteView(bytes.Clone(f.value.bytes())) // or it would keep all that came with it
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
	if len(tooLong) > 0 && err == nil {
		long := make([]string, len(tooLong))
		for j, i := range tooLong {
			long[j] = keys[i]
		}
		err = c.fetchMany(ctx, p, g, long, true, func(j int, f found, err error) { got(tooLong[j], f, err) })
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
	w := &shoalpb.Write{Op: op, Changes: make([]*shoalpb.Change, len(indexes))}
	for j, i := range indexes {
		ch := changes[i]
		w.Changes[j] = &shoalpb.Change{Key: []byte(ch.key), Value: ch.value, Ttl: int64(ch.ttl), Delta: ch.delta}
	}
	var done []accepted
	err := c.told(ctx, p, g, &shoalpb.Request{Op: &shoalpb.Request_Write{Write: w}}, g.loadTimeout, func(reply *shoalpb.Reply) error {
		answer := reply.GetWritten()
		if answer == nil || len(answer.Results) != len(indexes) {
			return unexpected(reply)
		}
		var known []*peer
		for _, k := range answer.Peers {
			known = append(known, c.peers.named(k.Id, k.Addr))
		}
		for _, r := range answer.Results {
			d := accepted{version: r.Version, acceptor: p, sum: r.Sum, holders: c.holders(r.Holders), all: r.All}
			if d.all {
				d.known = known
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
	for some := range parts(c, drops, func(d dropping) int { return len(d.key) }) {
		d := &shoalpb.Drop{Keys: make([]*shoalpb.Dropping, len(some))}
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
		if isNoGroup(err) {
			all, err = append(all, make([][]holder, len(some))...), nil
		}
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// dropAll makes p drop whatever the group holds there.
func (c *Cache) dropAll(ctx context.Context, p *peer, g *group) error {
	err := c.told(ctx, p, g, &shoalpb.Request{Op: &shoalpb.Request_Drop{Drop: &shoalpb.Drop{All: true}}}, 0, func(reply *shoalpb.Reply) error {
		if reply.GetDropped() == nil {
			return unexpected(reply)
		}
		return nil
	})
	if isNoGroup(err) {
		return nil
	}
	return err
}

// purge tells p the generation of g, and reports whether p was ahead of it.
func (c *Cache) purge(ctx context.Context, p *peer, g *group) (ahead bool, err error) {
	err = c.told(ctx, p, g, &shoalpb.Request{Op: &shoalpb.Request_Purge{Purge: &shoalpb.Purge{}}}, 0, func(reply *shoalpb.Reply) error {
		purged := reply.GetPurged()
		if purged == nil {
			return unexpected(reply)
		}
		ahead = purged.Behind
		return nil
	})
	if isNoGroup(err) {
		return false, nil
	}
	return ahead, err
}

// isNoGroup reports whether a peer has refused since it does not have the group, and so holds nothing of it.
func isNoGroup(err error) bool {
	r, ok := errors.AsType[*refusedError](err)
	return ok && r.reason == shoalpb.Refused_NO_GROUP
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

// fetch answers with the value of a key, or returns what is left to do.
func (a *answering) fetch(f *shoalpb.Fetch) (rest func(context.Context, *answering)) {
	key := NewByteView(f.Key).String()
	if err := a.c.checkKey(key); err != nil {
		a.refuse(http.StatusRequestEntityTooLarge, shoalpb.Refused_TOO_LARGE, "%v", err)
		return nil
	}
	q := question{
		want:    want{maxAge: max(time.Duration(f.MaxAge), 0), fresh: f.Fresh, cachedOnly: f.CachedOnly},
		from:    a.from,
		callers: int64(max(f.Callers, 1)),
		over:    max(time.Duration(f.Over), 0),
		lease:   f.Lease,
		have:    f.Have,
	}
	result, lease, err, ok := a.group.answerNow(key, q)
	if ok {
		a.found(&q, result, err)
		return nil
	}
	return later(strings.Clone(key), q, lease)
}

// later returns what is left to do where key must be loaded.
func later(key string, q question, lease time.Duration) func(context.Context, *answering) {
	return func(ctx context.Context, a *answering) {
		a.loading(a.group.longestLoad(q.want))
		result, err := a.group.answerLater(ctx, key, q, lease)
		if err == nil || ctx.Err() == nil { // else nobody is there any more
			a.found(&q, result, err)
		}
	}
}

// found answers with what has come of looking for a key.
func (a *answering) found(q *question, result found, err error) {
	other, isOther := err.(*notOwner) // not one that a getter has come across and wrapped
	switch {
	case isOther:
		a.refuseWith(http.StatusMisdirectedRequest, other.message())
	case err == ErrNotCached && q.cachedOnly:
		a.send(http.StatusOK, &shoalpb.Reply{Answer: &shoalpb.Reply_NotCached{NotCached: &shoalpb.NotCached{}}})
	case errors.Is(err, ErrNotFound):
		a.send(http.StatusOK, &shoalpb.Reply{Answer: &shoalpb.Reply_NotFound{NotFound: a.notFound(result)}})
	case err != nil:
		a.send(http.StatusOK, &shoalpb.Reply{Answer: &shoalpb.Reply_Failed{Failed: failed(err)}})
	case q.have != 0 && result.version == q.have && !result.loaded:
		var v shoalpb.Value
		a.value(&result, &v)
		a.send(http.StatusOK, &shoalpb.Reply{Answer: &shoalpb.Reply_Same{Same: &shoalpb.Same{
			Ttl: v.Ttl, Age: v.Age, Stale: v.Stale, Lease: v.Lease,
		}}})
	case a.isTooLong(&result):
		a.send(http.StatusOK, &shoalpb.Reply{Answer: &shoalpb.Reply_Apart{Apart: &shoalpb.Apart{}}})
	case a.in != nil:
		a.in.value(a, &result)
	default:
		v := new(shoalpb.Value)
		a.value(&result, v)
		a.send(http.StatusOK, &shoalpb.Reply{Answer: &shoalpb.Reply_Value{Value: v}})
	}
}

// isTooLong reports whether f would hold up others where the answer goes. What is not kept must be given all the same.
func (a *answering) isTooLong(f *found) bool { return a.in != nil && f.kept && f.value.Len() > apart }

// value says in v what was found.
func (a *answering) value(f *found, v *shoalpb.Value) {
	now := a.c.clock.now()
	v.Value, v.Loaded, v.Version = f.value.bytes(), f.loaded, f.version
	v.Age, v.Stale, v.Lease, v.Ttl = int64(now-f.born), f.stale, int64(f.lease), 0
	if f.fresh != 0 {
		v.Ttl = int64(max(f.fresh-now, 1))
	}
}

func (a *answering) notFound(f found) *shoalpb.NotFound {
	return &shoalpb.NotFound{Lease: int64(f.lease), Age: int64(a.c.clock.now() - f.born)}
}

// message says whose the key is.
func (e *notOwner) message() *shoalpb.Refused {
	r := &shoalpb.Refused{Reason: shoalpb.Refused_NOT_OWNER, Text: []byte(e.Error())}
	if e.owner != nil {
		r.OwnerId, r.OwnerAddr = []byte(e.owner.ID), []byte(e.owner.Addr)
	}
	return r
}

// loading says that something is loaded before the answer comes, and how long that may take.
func (a *answering) loading(longest time.Duration) {
	if a.announced {
		return
	}
	a.announced = true
	a.patient()
	a.send(http.StatusOK, &shoalpb.Reply{Answer: &shoalpb.Reply_Loading{Loading: &shoalpb.Loading{Longest: int64(longest)}}})
}

// Answers to a FetchMany are sent when there are about itemsBytes of them, or itemsTime after the last: whoever waits for
// loads hears of each.
const (
	itemsBytes = 32 << 10
	itemsTime  = 50 * time.Millisecond
)

// mostNow is for how many keys others wait who have asked after who asks for them.
const mostNow = 1000

// manyNow answers with those of the values that memory has, if the answer goes to a stream, and returns what is left to do.
func (a *answering) manyNow(keys [][]byte) (rest func(context.Context, *answering)) {
	var left []string
	var indexes []uint32
	for i, key := range keys {
		if a.in != nil && len(keys) <= mostNow {
			if f, ok := a.group.serve(NewByteView(key).String(), question{callers: 1}); ok && f.err == nil && !a.isTooLong(&f) {
				a.group.counts.requests.Add(1)
				a.in.item(a, uint32(i), &f)
				continue
			}
		}
		left, indexes = append(left, string(key)), append(indexes, uint32(i))
	}
	if a.in != nil {
		a.in.sendItems(a)
	}
	if len(left) == 0 && len(keys) > 0 {
		return nil
	}
	return func(ctx context.Context, a *answering) { a.fetchMany(ctx, left, indexes) }
}

// fetchMany answers with the values of many keys, as they are found.
func (a *answering) fetchMany(ctx context.Context, keys []string, indexes []uint32) {
	for _, key := range keys {
		if err := a.c.checkKey(key); err != nil {
			a.refuse(http.StatusRequestEntityTooLarge, shoalpb.Refused_TOO_LARGE, "%v", err)
			return
		}
	}
	var items shoalpb.Items
	var size int
	var toldStack bool
	flushed := time.Now()
	flush := func() {
		if len(items.Items) > 0 {
			a.send(http.StatusOK, &shoalpb.Reply{Answer: &shoalpb.Reply_Items{Items: &items}})
		}
		items, size, flushed = shoalpb.Items{}, 0, time.Now()
	}
	a.group.answerMany(ctx, keys, func() { // loading
		flush()
		a.loading(a.group.loadTimeout)
	}, func(i int, found found, err error) {
		item := &shoalpb.Item{Index: indexes[i]}
		other, isOther := err.(*notOwner)
		switch {
		case isOther:
			item.Answer = &shoalpb.Item_Refused{Refused: other.message()}
		case errors.Is(err, ErrNotFound):
			item.Answer = &shoalpb.Item_NotFound{NotFound: a.notFound(found)}
		case err != nil:
			item.Answer = &shoalpb.Item_Failed{Failed: failed(err)}
		case a.isTooLong(&found):
			item.Answer = &shoalpb.Item_Apart{Apart: &shoalpb.Apart{}}
		default:
			v := new(shoalpb.Value)
			a.value(&found, v)
			item.Answer = &shoalpb.Item_Value{Value: v}
		}
		if x := item.GetFailed(); x != nil && len(x.Stack) > 0 {
			if toldStack { // of one call for all of them
				x.Stack = nil
			}
			toldStack = true
		}
		more := proto.Size(item)
		if size+more > itemsBytes {
			flush()
		}
		items.Items = append(items.Items, item)
		size += more
		if a.announced && time.Since(flushed) > itemsTime {
			flush()
		}
	})
	flush()
}

// write does what others want changed of keys that this process owns.
func (a *answering) write(ctx context.Context, w *shoalpb.Write) {
	if w.Op < shoalpb.Write_SET || w.Op > shoalpb.Write_ADD {
		a.refuse(http.StatusBadRequest, shoalpb.Refused_UNKNOWN, "a Write of an operation that this version does not know")
		return
	}
	if w.Op == shoalpb.Write_ADD && a.group.add == nil {
		a.refuse(http.StatusBadRequest, shoalpb.Refused_OPERATION, "%v", errNoCounter)
		return
	}
	for _, ch := range w.Changes {
		err := a.c.checkKey(NewByteView(ch.Key).String())
		if most := a.c.opts.MaxValueBytes; err == nil && int64(len(ch.Value)) > most {
			err = fmt.Errorf("a value of %d bytes is longer than MaxValueBytes, %d", len(ch.Value), most)
		}
		if err != nil {
			a.refuse(http.StatusRequestEntityTooLarge, shoalpb.Refused_TOO_LARGE, "%v", err)
			return
		}
	}
	answer := &shoalpb.Written{Results: make([]*shoalpb.Result, len(w.Changes))}
	for i, ch := range w.Changes {
		done := a.group.accept(ctx, w.Op, change{
			key: NewByteView(ch.Key).String(), value: ch.Value, ttl: time.Duration(ch.Ttl), delta: ch.Delta,
		}, a.loading)
		r := &shoalpb.Result{Version: done.version, Sum: done.sum, All: done.all, Holders: a.c.holdersMessage(done.holders)}
		if other, ok := done.err.(*notOwner); ok {
			r.Refused = other.message()
			a.c.refused[shoalpb.Refused_NOT_OWNER].Add(1)
		} else if not, ok := done.err.(*notDone); ok && not.op == "add" {
			r.Error = clip(not.Error())
		} else if done.err != nil {
			r.Failed = failed(done.err)
		}
		if done.all && answer.Peers == nil {
			for _, p := range done.known {
				answer.Peers = append(answer.Peers, &shoalpb.Peer{Id: []byte(p.ID), Addr: []byte(p.Addr)})
			}
		}
		answer.Results[i] = r
	}
	a.send(http.StatusOK, &shoalpb.Reply{Answer: &shoalpb.Reply_Written{Written: answer}})
}

func (c *Cache) holdersMessage(holders []holder) []*shoalpb.Holder {
	now := c.clock.now()
	var all []*shoalpb.Holder
	for _, h := range holders {
		all = append(all, &shoalpb.Holder{Id: []byte(h.ID), Addr: []byte(h.Addr), Remaining: int64(h.until - now)})
	}
	return all
}

// drop drops what a write elsewhere has made old.
func (a *answering) drop(d *shoalpb.Drop) {
	answer := new(shoalpb.Dropped)
	if d.All {
		a.group.empty()
	}
	for _, k := range d.Keys {
		key := NewByteView(k.Key).String()
		a.group.counts.drops.Add(1)
		a.group.drop(key, k.Version, k.Acceptor == a.c.peers.incarnation)
		holders := a.group.leases.of(key, a.c.clock.now())
		answer.Keys = append(answer.Keys, &shoalpb.Holders{Holders: a.c.holdersMessage(holders)})
	}
	a.send(http.StatusOK, &shoalpb.Reply{Answer: &shoalpb.Reply_Dropped{Dropped: answer}})
}
