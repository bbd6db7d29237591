package shoal

// answers.go: how a process answers the questions of questions.go.

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/shoalcache/shoal/shoalpb"
)

// A question is what a peer asks.
type question struct {
	want
	from    *peer         // nil: nobody in the view
	callers int64         // how many calls it answers there
	over    time.Duration // … within this time, those that a copy has answered; 0: at once
	lease   bool          // a copy would be kept
	standIn bool          // the owner cannot be reached there, or a replica will do
	have    uint64        // the version of the one that has been
}

// perSecond is how many of the calls were made in a second.
func (q *question) perSecond() float64 { return float64(q.callers) / max(q.over.Seconds(), 1) }

// answerNow answers a peer that takes this process for the owner of key, if that takes no load; else answerLater does. It
// keeps nothing of key.
func (g *group) answerNow(key string, q question) (f found, lease time.Duration, err error, ok bool) {
	g.counts.requests.Add(1)
	// The lease is noted before memory is looked at. So a write that comes after the look finds it, and one that came
	// before has left what is looked at.
	lease = g.grant(key, q)
	if f, ok := g.serve(key, q); ok {
		f.lease = g.leaseOf(f, lease)
		return f, 0, f.err, true
	}
	if f, err, ok := g.notMine(key, q); ok {
		return f, 0, err, true
	}
	if q.cachedOnly && !q.standIn {
		return found{}, 0, ErrNotCached, true
	}
	return found{}, lease, nil, false
}

// answerLater loads key for a peer. It never asks another process.
func (g *group) answerLater(ctx context.Context, key string, q question, lease time.Duration) (found, error) {
	if q.cachedOnly { // of a stand-in
		return g.peekFor(ctx, key)
	}
	f, err := g.load(ctx, key, q.want)
	f.lease = g.leaseOf(f, lease) // none if it was written to meanwhile, for then it is not kept
	return f, err
}

// serve returns what memory has for a peer.
func (g *group) serve(key string, q question) (found, bool) {
	if q.fresh {
		return found{}, false
	}
	if q.maxAge > 0 || q.cachedOnly {
		now := g.cache.clock.now()
		e, ok := g.peek(key)
		if !ok || !q.takes(&e, now, now) {
			return found{}, false
		}
		if q.cachedOnly {
			return g.hit(key, e, false), true
		}
	}
	if e, due, ok := g.main.use(key, q.perSecond(), true); ok {
		return g.hit(key, e, due), true
	}
	if e, _, ok := g.absent.use(key, 1, true); ok {
		return found{entry: e, kept: true}, true
	}
	return found{}, false
}

// peek returns what there is of key, and leaves no trace.
func (g *group) peek(key string) (entry, bool) {
	if e, ok := g.main.peek(key); ok {
		return e, true
	}
	return g.absent.peek(key)
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
		standIn: f.StandIn,
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
		if err == nil || ctx.Err() == nil {
			a.found(&q, result, err)
		} else if errors.Is(ctx.Err(), context.DeadlineExceeded) { // else nobody is there any more
			a.refuse(http.StatusServiceUnavailable, shoalpb.Refused_OVERLOADED, "the load takes longer than who asked first could wait")
		}
	}
}

// found answers with what has come of looking for a key.
func (a *answering) found(q *question, result found, err error) {
	other, isOther := err.(*notOwner) // not one that a getter has come across and wrapped
	switch {
	case isOther:
		a.refuseWith(http.StatusMisdirectedRequest, other.message())
	case err == ErrNotCached && (q.cachedOnly || q.standIn):
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

func (a *answering) value(f *found, v *shoalpb.Value) { a.c.value(f, v) }

// value says in v what was found.
func (c *Cache) value(f *found, v *shoalpb.Value) {
	now := c.clock.now()
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
		r.OwnerId, r.OwnerAddr, r.OwnerIncarnation = []byte(e.owner.ID), []byte(e.owner.Addr), e.owner.incarnation
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
	itemsBytes = 64 << 10
	itemsTime  = 50 * time.Millisecond
)

// mostNow is for how many keys others wait who have asked after who asks for them.
const mostNow = 1000

// manyNow answers with those of the values that memory has, if the answer goes to a stream, and returns what is left to do.
func (a *answering) manyNow(keys [][]byte, standIn bool) (rest func(context.Context, *answering)) {
	var left []string
	var indexes []uint32
	now := a.in != nil && len(keys) <= mostNow
	if now {
		a.in.many = a.in.many[:0]
		for _, key := range keys {
			a.in.many = append(a.in.many, NewByteView(key).String())
		}
		a.group.main.near(a.in.many)
	}
	for i, key := range keys {
		if now {
			if f, ok := a.group.serve(a.in.many[i], question{callers: 1}); ok && f.err == nil && !a.isTooLong(&f) {
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
	return func(ctx context.Context, a *answering) { a.fetchMany(ctx, left, indexes, standIn) }
}

// fetchMany answers with the values of many keys, as they are found.
func (a *answering) fetchMany(ctx context.Context, keys []string, indexes []uint32, standIn bool) {
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
	a.group.answerMany(ctx, keys, standIn, func() { // loading
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
			key: NewByteView(ch.Key).String(), value: ch.Value, ttl: time.Duration(ch.Ttl), delta: ch.Delta, above: ch.Above,
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
		for _, p := range done.replicas {
			r.Replicas = append(r.Replicas, &shoalpb.Peer{Id: []byte(p.ID), Addr: []byte(p.Addr)})
		}
		if !done.gone && len(done.replicas) > 0 {
			r.Now = new(shoalpb.Value)
			a.value(&found{entry: done.now}, r.Now)
			if w.Op == shoalpb.Write_SET && ch.Above == 0 {
				r.Now.Value = nil // which the other side has
			}
		}
		if done.all && answer.Peers == nil {
			answer.Peers = named(done.known, done.past)
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
	a.c.peers.hearsay.note(a.sender.GetIncarnation(), d.Behind, a.c.clock.now())
	emptied := a.group.goThrough(d.Purges)
	if d.All {
		v := a.c.peers.view.Load()
		if !d.Owned || a.sender.GetView() != v.digest {
			v = nil
		}
		a.group.dropAll(v, string(a.sender.GetId()))
		emptied = true
	}
	if emptied {
		a.c.refill(a.group)
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

// peek answers with what there is of a key, whoever owns it.
func (a *answering) peek(p *shoalpb.Peek) {
	key := string(p.Key)
	v, now := a.c.peers.view.Load(), a.c.clock.now()
	var lease time.Duration
	if p.Hold && a.from != nil && v.owns(key) && a.group.leases.add(key, a.from, now, now+maxLease+maxLease/100+10*time.Millisecond) {
		lease = maxLease
	}
	reply := &shoalpb.Reply{Answer: &shoalpb.Reply_NotCached{NotCached: &shoalpb.NotCached{Held: lease > 0, Written: a.group.written.of(key).version}}}
	if e, ok := a.group.main.engine.peek(key); ok && e.err == nil {
		f := found{entry: e, stale: e.isStale(now), kept: true, lease: lease}
		if left := e.remaining(now); left > 0 {
			f.lease = min(lease, left)
		}
		if a.isTooLong(&f) {
			reply.Answer = &shoalpb.Reply_Apart{Apart: &shoalpb.Apart{}}
		} else {
			v := new(shoalpb.Value)
			a.value(&f, v)
			reply.Answer = &shoalpb.Reply_Value{Value: v}
		}
	}
	a.send(200, reply)
}
