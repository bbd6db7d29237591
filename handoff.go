package shoal

// handoff.go: how values follow their keys when these go to another process. The one that has lost them keeps what it holds
// for a while, frozen: it does not serve it any more, but the new owner finds it there: by a peek, before it runs the getter,
// and by pulls, in the background.

import (
	"context"
	"errors"
	"maps"
	"math"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/shoalcache/shoal/shoalpb"
)

// touched says when keys were last written or dropped. What others hold of them is older, if its load began before. It is a
// table of fixed size, in which several places have the time of a key, or of a later touch of another that shares the place: so
// the first of them is no earlier than the key's.
type touched struct {
	most int // places
	at   atomic.Pointer[[]atomic.Int64]
}

// touchedPlaces is how many places a key has.
const touchedPlaces = 4

func (t *touched) places(table []atomic.Int64, key string, each func(at *atomic.Int64)) {
	h := xxhash.Sum64String(key)
	for i := range uint64(touchedPlaces) {
		each(&table[(h+i*(h>>32|1))%uint64(len(table))])
	}
}

func (t *touched) add(key string, now time.Duration) {
	table := t.at.Load()
	if table == nil {
		fresh := make([]atomic.Int64, t.most)
		t.at.CompareAndSwap(nil, &fresh)
		table = t.at.Load()
	}
	t.places(*table, key, func(at *atomic.Int64) {
		for was := at.Load(); was < int64(now); was = at.Load() {
			at.CompareAndSwap(was, int64(now))
		}
	})
}

// last returns when key was touched last; before the first time, that was before everything.
func (t *touched) last(key string) time.Duration {
	table := t.at.Load()
	if table == nil {
		return math.MinInt64
	}
	last := int64(math.MaxInt64)
	t.places(*table, key, func(at *atomic.Int64) { last = min(last, at.Load()) })
	if last == 0 {
		return math.MinInt64
	}
	return time.Duration(last)
}

// touch takes note of a write or a drop of key, under the lock of loads.
func (g *group) touch(key string) {
	g.changed(key).Add(1)
	if g.cache.opts.Discovery != nil {
		g.touched.add(key, max(g.cache.clock.now(), 1))
	}
}

// isPast reports whether what another process has had of key may be older than what was written. Where it can be loaded, a
// load that began after this process was told of a write has seen what was written, by durations alone; where nothing can be
// loaded, versions tell: what was written may be just what the other has, if it took the write.
func (g *group) isPast(key string, e *entry) bool {
	if g.getter != nil {
		// A write that this process was told of before may not have reached the other yet; one long before has.
		last := g.touched.last(key)
		if e.born <= last && last >= g.cache.peers.warmingSince()-2*g.cache.opts.PeerTimeout {
			return true
		}
	}
	return g.remembersWrites() && g.written.of(key).version > e.version
}

// greetedFor waits until this process may act as the owner of key, and returns the view in which it is, or is not.
func (p *peers) greetedFor(ctx context.Context, key string) (*view, error) {
	for {
		v := p.view.Load()
		if len(v.former) == 0 || !v.owns(key) {
			return v, nil
		}
		roll := v.ungreeted(key)
		if roll == nil {
			return v, nil
		}
		select {
		case <-roll.done:
		case <-ctx.Done():
			return v, ctx.Err()
		}
	}
}

// inherit gets key, which f is to load, from those who had it before it came to this process.
func (g *group) inherit(ctx context.Context, f *loadFlight) (found, bool) {
	p, now := &g.cache.peers, g.cache.clock.now()
	v := p.view.Load()
	if len(v.former) == 0 || !v.owns(f.Key()) {
		return found{}, false
	}
	if g.cache.opts.Warm < 0 {
		return found{}, false
	}
	former := p.newlyMine(v, f.Key(), now)
	last := g.written.of(f.Key())
	switch elsewhere := g.getter == nil && last.elsewhere; {
	case former == nil && !elsewhere:
		return found{}, false
	case elsewhere:
		defer g.written.isNowhere(f.Key(), last.version) // or here, from now on
	}
	for _, before := range v.predecessors(former, f.Key(), g.owners, g.getter == nil) {
		g.counts.peeks.Add(1)
		e, _, _, err := g.cache.peek(ctx, before, g, f.Key(), false)
		if err != nil || e.version == 0 || g.isPast(f.Key(), &e) {
			continue
		}
		result := found{entry: e, fetched: true, stale: e.isStale(g.cache.clock.now())}
		var cost int64
		f.Commit(func() {
			if !g.isPast(f.Key(), &e) {
				result.entry, cost = g.main.put(f.Key(), e.value.bytes(), e)
			}
		})
		result.kept = cost > 0
		g.main.shrink(cost)
		if !result.stale { // else it is there for the case that the getter fails
			g.counts.inherited.Add(1)
			return result, true
		}
	}
	return found{}, false
}

// mostPeeks is how many processes are asked for what they hold of a key before it is loaded, and mostPeeksForGood before it is
// taken for lost, since nothing can be loaded.
const mostPeeks, mostPeeksForGood = 2, 8

// predecessors returns who may have had key before it came to this process: its owner by the former view, or, since it was
// started, those who own it when this process is not there. If nothing can be loaded, they are all that might.
func (v *view) predecessors(former *formerView, key string, n int, all bool) []*peer {
	var some []*peer
	add := func(m *peer) {
		i, ok := v.find(m.ID)
		if ok && v.members[i].incarnation == m.incarnation {
			m = v.members[i] // which has a line
		}
		if !(ok && i == v.self) && !slices.Contains(some, m) {
			some = append(some, m)
		}
	}
	if former != nil {
		for _, i := range former.keepers(key, n) {
			add(former.members[i])
		}
	}
	if len(v.members) == 0 {
		return some
	}
	most := max(mostPeeks, n)
	if all {
		most = max(most, mostPeeksForGood)
	}
	for _, i := range v.owners.Owners(key, most+1) {
		if len(some) < most {
			add(v.members[i])
		}
	}
	return some
}

// freeze keeps what this process holds of keys that have gone to others, for those, as long as they may need it.
func (g *group) freeze() {
	warm := g.cache.opts.Warm
	if warm < 0 {
		g.main.retain(g.keeps)
		return
	}
	g.freezing.Lock()
	defer g.freezing.Unlock()
	g.main.frozen.Store(true)
	if now := g.cache.clock.now(); g.thawAt == 0 {
		wait := warm / 2
		if differed := time.Duration(g.cache.peers.differing.Load()); differed > 0 { // others may have acted for so long
			wait -= now - differed
		}
		g.thawAt = now + max(wait, 1)
		time.AfterFunc(max(wait, 1), g.thaw)
	}
}

// thaw drops what is frozen, unless it is just being handed over.
func (g *group) thaw() {
	g.freezing.Lock()
	defer g.freezing.Unlock()
	if g.cache.left.Load() && !g.cache.closed.Load() {
		return
	}
	g.main.retain(g.keeps)
	g.main.frozen.Store(false)
	g.thawAt = 0
}

// thawLate does what thaw should have done already.
func (g *group) thawLate(old *view) {
	g.freezing.Lock()
	defer g.freezing.Unlock()
	if g.thawAt != 0 && g.cache.clock.now() >= g.thawAt {
		g.main.retain(func(key string) bool { return old.keeps(key, g.owners) })
	}
}

// handed returns the entry that another process has given up, as it was there.
func (g *group) handed(v *shoalpb.Value, sent time.Duration) entry {
	e := entry{value: NewByteView(v.Value), version: v.Version}
	e.times(sent, v.Ttl, v.Age)
	if v.Stale { // its TTL has ended, but not its use
		e.fresh = max(sent-1, 1)
	}
	if e.fresh != 0 {
		e.ends = e.fresh + g.grace
	}
	return e
}

const (
	// pullBytes is about how much comes with one Pull, and pullSight how many entries are looked at for it at most.
	pullBytes, pullSight = 512 << 10, 20_000
	// pullRate is how many bytes a second a process pulls.
	pullRate = 64 << 20
)

// pull answers with what there is of keys that the sender keeps: by the view that both have. A process that has left goes by the
// sender's, as soon as it is not in that.
func (a *answering) pull(p *shoalpb.Pull) {
	pulled := new(shoalpb.Pulled)
	v := a.c.peers.view.Load()
	last := len(p.Members) > 0 && v.self < 0 && a.c.left.Load()
	if last {
		var err error
		if v, err = a.c.handover.viewOf(p.Members, a.c.peers.place); err != nil {
			a.refuse(http.StatusBadRequest, shoalpb.Refused_MALFORMED, "whom the sender of a Pull sees: %v", err)
			return
		}
	}
	i, agrees := v.find(string(a.sender.GetId()))
	agrees = agrees && v.members[i].incarnation == a.sender.GetIncarnation() && (last || a.sender.GetView() == v.digest)
	if !agrees {
		pulled.Wait = true // or it would not get what this process takes for its own
	} else {
		// There is room for what comes with it, and for the last entry, however long its value is.
		most, sight := min(max(p.MaxBytes, 1), a.c.opts.MaxBodyBytes-a.c.opts.MaxValueBytes-32<<10), pullSight
		now := a.c.clock.now()
		next, more := a.group.main.walk(p.Cursor, func(key string, e entry, again bool) bool {
			sight--
			again = again && !a.group.mustKeep() // what has been missed nevertheless is loaded, or peeked at
			if e.err == nil && !again && a.group.keptBy(v, key, i) {
				f := found{entry: e, stale: e.isStale(now)}
				entry := &shoalpb.Entry{Key: []byte(key), Value: new(shoalpb.Value)}
				a.value(&f, entry.Value)
				pulled.Entries = append(pulled.Entries, entry)
				most -= int64(len(key)+e.value.Len()) + bytesPerItem
			}
			return most > 0 && sight > 0
		})
		pulled.Cursor, pulled.More = next, more
	}
	a.send(200, &shoalpb.Reply{Answer: &shoalpb.Reply_Pulled{Pulled: pulled}})
	if last && agrees {
		a.c.handover.pulled(a.sender.GetIncarnation(), a.group, v, !pulled.More)
	}
}

// bytesPerItem is about what an entry takes in a message beside its key and value.
const bytesPerItem = 48

// pulls gets what this process keeps now from those who have had it, in the background. It calls taken when it has got all but
// from those who see other owners for long, which it goes on asking.
func (c *Cache) pulls(ctx context.Context, t *takeover, groups []*group, taken func()) {
	ctx, cancel := context.WithTimeout(ctx, t.until-c.clock.now())
	defer cancel()
	enough := c.clock.now() + 4*c.opts.PeerTimeout // who lags for longer is not waited for
	var all, had sync.WaitGroup
	for _, g := range groups {
		from := t.owners
		if g.owners > 1 {
			from = t.everyone
		}
		for _, p := range from {
			had.Add(1)
			all.Go(func() {
				got := sync.OnceFunc(had.Done)
				defer got()
				for retry := firstRetry; c.pullOnce(ctx, p, g) == errLags; retry = min(2*retry, lastProbe) {
					if c.clock.now() > enough {
						got()
					}
					pause(ctx, retry, nil)
				}
			})
		}
	}
	had.Wait()
	if taken != nil {
		taken()
	}
	all.Wait()
}

// errLags is why nothing can be pulled from a process yet.
var errLags = errors.New("it sees other owners")

// pullNew is pulls for a group that was made after them. It returns a channel that is closed when that is over, or nil.
func (c *Cache) pullNew(g *group) chan struct{} {
	t := c.peers.takeover.Load()
	if t == nil || t.until <= c.clock.now() {
		return nil
	}
	over := make(chan struct{})
	c.peers.repairing.Add(1)
	go func() {
		defer c.peers.repairing.Add(-1)
		c.pulls(c.peers.life, t, []*group{g}, func() { close(over) })
	}()
	return over
}

// pullers keep two changes of view that follow each other from pulling the same twice at once.
type pullers struct {
	places chan struct{} // has an element for each process that is being asked

	mu      sync.Mutex // guards what follows
	running map[pulledFrom]*puller
	free    time.Duration // when, on the clock, what has been pulled has taken the time it may
}

// mostPullers is how many processes are asked at once: one that does not answer must not hold up those that leave now.
const mostPullers = 16

type pulledFrom struct {
	incarnation uint64
	group       *group
}

// A puller is somebody who pulls.
type puller struct {
	over chan struct{}
	view *view // by which all has been pulled; nil: it has failed
}

// pullOnce is pullAll, or waits for one that is under way and sees the same in the end.
func (c *Cache) pullOnce(ctx context.Context, p *peer, g *group) (err error) {
	r, from, mine := &c.pullers, pulledFrom{p.incarnation, g}, &puller{over: make(chan struct{})}
	for {
		r.mu.Lock()
		other := r.running[from]
		if other == nil {
			if ctx.Err() != nil {
				r.mu.Unlock()
				return ctx.Err()
			}
			if r.running == nil {
				r.running = make(map[pulledFrom]*puller)
			}
			r.running[from] = mine
		}
		r.mu.Unlock()
		if other == nil {
			break
		}
		select {
		case <-other.over:
		case <-ctx.Done():
			return ctx.Err()
		}
		if other.view == c.peers.view.Load() {
			return nil
		}
	}
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.running, from)
		close(mine.over)
	}()
	select {
	case r.places <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-r.places }()
	mine.view, err = c.pullAll(ctx, p, g)
	if err != nil && err != errLags && !isNoGroup(err) && ctx.Err() == nil {
		c.opts.Logger.Debug("shoal: not all could be taken over from a peer", "peer", p.ID, "group", g.name, "error", err)
	}
	return err
}

// rest returns how long to pause after n bytes.
func (r *pullers) rest(now time.Duration, n int64) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.free = max(r.free, now) + time.Duration(n)*time.Second/pullRate
	return r.free - now
}

// end waits until nobody pulls any more, when pulls have been given up.
func (r *pullers) end(ctx context.Context) {
	r.mu.Lock()
	running := slices.Collect(maps.Values(r.running))
	r.mu.Unlock()
	for _, p := range running {
		select {
		case <-p.over:
		case <-ctx.Done():
		}
	}
}

// pullAll gets from p what it has of g that this process keeps: from the beginning again when others keep it. It returns the
// view by which it has got that.
func (c *Cache) pullAll(ctx context.Context, p *peer, g *group) (v *view, err error) {
	var (
		members []*shoalpb.Peer
		cursor  uint64
	)
	for more := true; more || c.peers.view.Load() != v; {
		if now := c.peers.view.Load(); now != v {
			v, cursor, members = now, 0, nil
			if !v.has(p) {
				members = v.message()
			}
		}
		var n int64
		// A page that is on its way is waited for, even if this process is about to leave: who gives it may have no other.
		if cursor, more, n, err = c.pull(context.WithoutCancel(ctx), p, g, cursor, members); err != nil {
			return nil, err
		}
		if sleep(ctx, c.pullers.rest(c.clock.now(), n)); ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return v, nil
}

// pull gets some of it, n bytes.
func (c *Cache) pull(ctx context.Context, p *peer, g *group, cursor uint64, members []*shoalpb.Peer) (next uint64, more bool, n int64, err error) {
	sent, v := c.clock.now(), c.peers.view.Load()
	purges := g.purged.Load()
	k := c.tell(p, g, 0)
	defer k.end()
	k.alone = true
	k.req.Op = &shoalpb.Request_Pull{Pull: &shoalpb.Pull{Cursor: cursor, MaxBytes: pullBytes, Members: members}}
	reply, err := k.next(ctx)
	if err != nil {
		return 0, false, 0, err
	}
	pulled := reply.GetPulled()
	if pulled == nil {
		return 0, false, 0, k.blame(unexpected(reply))
	}
	if pulled.Wait {
		return 0, false, 0, errLags
	}
	if !g.generation.is(reply.GetGeneration()) {
		return 0, false, 0, errors.New("it has not heard of a purge")
	}
	for _, e := range pulled.Entries {
		n += int64(len(e.Key) + len(e.GetValue().GetValue()))
		if len(e.Key) <= c.opts.MaxKeyBytes && e.GetValue().GetVersion() != 0 {
			key, e := string(e.Key), g.handed(e.Value, sent)
			if p.hadLeft && g.getter != nil && e.born <= g.touched.last(key) {
				continue // it may have missed that write, however long ago it was
			}
			g.adopt(key, e, v, purges)
		}
	}
	return pulled.Cursor, pulled.More, n, nil
}

// mustKeep reports whether what is not taken over cannot be had anew: it cannot be loaded, or is to be kept several times.
func (g *group) mustKeep() bool { return g.getter == nil || g.owners > 1 }

// adopt keeps what another process has had of key, unless this one has it, loads it, or has seen a write of it since the
// key has come to it, or a purge since it was asked for, when there had been so many. What has gone to others since then, by
// the view of then, is frozen: for them, as who gave it may be there no more.
func (g *group) adopt(key string, e entry, then *view, purges int64) {
	keeps := func() bool {
		if v := g.cache.peers.view.Load(); v.keeps(key, g.owners) {
			return true
		} else if g.cache.opts.Warm < 0 || !then.keeps(key, g.owners) {
			return false
		}
		if !g.main.frozen.Load() {
			g.freeze() // as the swap is about to
		}
		return true
	}
	if !keeps() {
		return
	}
	var cost int64
	g.loads.Unless(key, func() {
		if !g.isPast(key, &e) && g.purged.Load() == purges {
			cost = g.main.adopt(key, e.value.bytes(), e, g.remembersWrites())
		}
	})
	g.main.shrink(cost)
	if cost > 0 {
		g.counts.pulled.Add(1)
		if !keeps() {
			g.drop(key, 0, false) // the swap may have missed it
		}
	}
}
