package shoal

// pull.go: how a process takes over, in the background, what others hold of keys that have come to it. Whom it pulls from after
// each change of view, how it goes about that, what it keeps of what it gets; and, at the other end, what is given to whom.

import (
	"context"
	"errors"
	"maps"
	"math"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/shoalcache/shoal/shoalpb"
)

// A takeover is whom this process pulls from what has come to it with a change of view.
type takeover struct {
	owners   []*peer       // who may have had keys that it owns now
	everyone []*peer       // … or that it keeps as a replica
	met      []*peer       // of both, those that had left before this process knew them
	until    time.Duration // but for what nobody else has of those that see other owners: longestLag later
}

// takeOver pulls what has come to this process with v. It calls taken when it has what can be had at once.
func (p *peers) takeOver(old, v *view, taken func()) {
	if v.self < 0 || p.pulls == nil {
		taken()
		return
	}
	now := p.clock.now()
	t := &takeover{until: now + p.window}
	for m := range v.formerMembers(now, p.window) {
		// All that it had has gone to others: some of it, maybe, to one that has left now, before that could have it.
		_, ok := v.find(m.ID)
		here := !m.counts.breaker.open.Load() || old.has(m)
		if !ok && here && !slices.ContainsFunc(t.owners, func(o *peer) bool { return o.incarnation == m.incarnation }) {
			t.owners = append(t.owners, m)
		}
	}
	if last := p.takeover.Load(); last != nil && now < last.until {
		t.met = slices.DeleteFunc(slices.Clone(last.met), func(m *peer) bool { return m.counts.breaker.open.Load() })
		t.owners = append(t.owners, t.met...)
	}
	gone := len(t.owners)
	was, member := old.find(p.self.ID)
	young := v.since < p.window // and so discovery may tell it of those only now who have been there for long
	for i, m := range v.members {
		j, ok := old.find(m.ID)
		switch {
		case i == v.self:
			continue
		case !member || !ok && young || ok && old.members[j].Weight > m.Weight || old.members[was].Weight < v.members[v.self].Weight:
			t.owners = append(t.owners, m)
		}
		t.everyone = append(t.everyone, m)
	}
	if t.everyone = append(t.everyone, t.owners[:gone]...); len(t.owners) == 0 {
		taken()
		return
	}
	p.takeover.Store(t) // for groups that are yet to be made
	p.pulls(p.life, t, taken)
}

// pullsFrom takes over what a process has that has left, unless this one has seen it as a member, and so does that anyway, or has
// begun already.
func (p *peers) pullsFrom(m *peer) {
	v, now := p.view.Load(), p.clock.now()
	if v.self < 0 || p.pulls == nil || m.Addr == "" {
		return
	}
	for former := range v.formerMembers(now, p.window) {
		if former.incarnation == m.incarnation {
			return
		}
	}
	left := *m
	left.hadLeft = !p.known.isStranger(m)
	some := []*peer{&left}
	t := &takeover{owners: some, everyone: some, met: some, until: now + p.window}
	all, last := *t, p.takeover.Load()
	if last != nil && now < last.until {
		if slices.ContainsFunc(last.met, func(o *peer) bool { return o.incarnation == m.incarnation }) {
			return
		}
		all.owners, all.everyone, all.met = slices.Concat(last.owners, some), slices.Concat(last.everyone, some), slices.Concat(last.met, some)
	}
	p.takeover.CompareAndSwap(last, &all) // for groups that are yet to be made
	p.repairing.Add(1)
	go func() {
		defer p.repairing.Add(-1)
		p.pulls(p.life, t, nil)
	}()
}

const (
	// pullBytes is about how much comes with one Pull, and pullSight how many entries are looked at for it at most.
	pullBytes, pullSight = 512 << 10, 20_000
	// pullRate is how many bytes a second a process pulls.
	pullRate = 64 << 20
)

// pulls gets what this process keeps now from those who have had it, in the background. It calls taken when it has got all but
// from those who see other owners for long, or do not answer, which it goes on asking.
func (c *Cache) pulls(ctx context.Context, t *takeover, groups []*group, taken func()) {
	ctx, cancel := context.WithTimeout(ctx, t.until-c.clock.now()+longestLag)
	defer cancel()
	enough := c.clock.now() + 4*c.opts.PeerTimeout // who lags or is silent for longer is not waited for
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
				for retry := firstRetry; ; retry = min(2*retry, lastProbe) {
					err := c.pullOnce(ctx, p, g)
					if err == nil || holdsNothing(err) || ctx.Err() != nil {
						return
					}
					late, waits := c.clock.now() > enough, err == errLags || err == errBehind
					if late || !waits && !g.mustKeep() {
						got()
					}
					gone := late && !waits && !c.peers.view.Load().has(p)
					if gone && (err != errSilent || g.getter != nil || !c.answersNow(ctx, p, g)) {
						return
					}
					if c.clock.now() > t.until && (err != errLags || g.getter != nil) {
						return
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

// answersNow asks a process that is taken for silent, and that nobody greets, and reports whether it is there: one greeting may have
// come to nothing though it was.
func (c *Cache) answersNow(ctx context.Context, p *peer, g *group) bool {
	asked := *p
	asked.counts = new(peerCounts) // with a breaker that is closed
	if c.peek(ctx, &asked, g, "", false); ctx.Err() != nil || asked.counts.breaker.open.Load() {
		return false
	}
	c.isThere(p, true)
	return true
}

// longestLag is for how long after takeover.until a process that sees other owners is asked again for what nobody else may have.
const longestLag = 10 * time.Minute

// errLags is why nothing can be pulled from a process yet.
var errLags = errors.New("it sees other owners")

// refill gets again what this process has had to drop since it may have missed a write of it, and others may keep, where that cannot
// be had anew: in the background, once for all who say so at the same time.
func (c *Cache) refill(g *group) {
	if !g.mustKeep() || c.peers.pulls == nil || c.peers.view.Load().self < 0 || g.refilling.Add(1) > 1 {
		return
	}
	c.peers.repairing.Add(1)
	go func() {
		defer c.peers.repairing.Add(-1)
		for more := true; more; {
			n := g.refilling.Load()
			pause(c.life, firstRetry, nil)
			all := c.peers.others()
			t := &takeover{owners: all, everyone: all, until: c.clock.now() + c.peers.window}
			taken := make(chan struct{})
			c.peers.repairing.Add(1)
			go func() {
				defer c.peers.repairing.Add(-1)
				c.pulls(c.peers.life, t, []*group{g}, func() { close(taken) })
			}()
			<-taken // from who does not answer it is still asked for
			more = g.refilling.Add(-n) > 0
		}
	}()
}

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
	over   chan struct{}
	view   *view // by which all has been pulled; nil: it has failed
	purges int64 // how often all had been dropped before
}

// begin has the caller pull, as mine, or returns another that does already. It returns neither when ctx has ended.
func (r *pullers) begin(ctx context.Context, from pulledFrom) (mine, other *puller) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if other := r.running[from]; other != nil || ctx.Err() != nil {
		return nil, other
	}
	mine = &puller{over: make(chan struct{})}
	r.running[from] = mine
	return mine, nil
}

func (r *pullers) ended(from pulledFrom, mine *puller) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.running, from)
	close(mine.over)
}

// pullOnce is pullAll, or waits for one that is under way and sees the same in the end.
func (c *Cache) pullOnce(ctx context.Context, p *peer, g *group) (err error) {
	r, from := &c.pullers, pulledFrom{p.incarnation, g}
	mine, other := r.begin(ctx, from)
	for ; other != nil; mine, other = r.begin(ctx, from) {
		select {
		case <-other.over:
		case <-ctx.Done():
			return ctx.Err()
		}
		if other.view == c.peers.view.Load() && other.purges == g.purged.Load() {
			return nil
		}
	}
	if mine == nil {
		return ctx.Err()
	}
	defer r.ended(from, mine)
	select {
	case r.places <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-r.places }()
	mine.view, mine.purges, err = c.pullAll(ctx, p, g)
	if err != nil && err != errLags && err != errBehind && !isNoGroup(err) && ctx.Err() == nil {
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

// pullAll gets from p what it has of g that this process keeps: from the beginning again when others keep it, or all has been
// dropped. It returns the view by which it has got that, and how often all had been dropped.
func (c *Cache) pullAll(ctx context.Context, p *peer, g *group) (v *view, purges int64, err error) {
	var (
		members []*shoalpb.Peer
		cursor  uint64
	)
	for more := true; more || c.peers.view.Load() != v || g.purged.Load() != purges; {
		if now, n := c.peers.view.Load(), g.purged.Load(); now != v || n != purges {
			v, purges, cursor, members = now, n, 0, nil
			if !v.has(p) {
				members = v.message()
			}
		}
		if c.peers.isStillSaidToBeBehind(ctx, p) {
			return nil, 0, errBehind
		}
		var n int64
		// A page that is on its way is waited for, even if this process is about to leave: who gives it may have no other.
		if cursor, more, n, err = c.pull(context.WithoutCancel(ctx), p, g, cursor, members); err != nil {
			return nil, 0, err
		}
		if sleep(ctx, c.pullers.rest(c.clock.now(), n)); ctx.Err() != nil {
			return nil, 0, ctx.Err()
		}
	}
	return v, purges, nil
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
	if c.peers.isSaidToBeBehind(p) {
		return 0, false, 0, errBehind
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

// mustKeep reports whether what is not taken over cannot be had anew: it cannot be loaded, or is to be kept several times.
func (g *group) mustKeep() bool { return g.getter == nil || g.owners > 1 }

// adopt keeps what another process has had of key, unless this one has it, runs the getter for it, or has seen a write of it
// since the key has come to it, or a purge since it was asked for, when there had been so many. What has gone to others since then, by
// the view of then, is frozen: for them, as who gave it may be there no more.
func (g *group) adopt(key string, e entry, then *view, purges int64) {
	keeps := func() bool {
		if v := g.cache.peers.view.Load(); v.keeps(key, g.owners) {
			return true
		} else if g.cache.opts.Warm < 0 || !then.keeps(key, g.owners) {
			return false
		}
		g.freeze(g.cache.clock.now() + g.cache.peers.window/2) // as the swap is about to
		return true
	}
	if !keeps() {
		return
	}
	var cost int64
	store := func() {
		if !g.isPast(key, &e) && g.purged.Load() == purges {
			cost = g.main.adopt(key, e.value.bytes(), e, g.remembersWrites())
		}
	}
	if g.getter != nil {
		g.loads.Unless(key, store)
	} else {
		g.loads.Overtake(key, store) // what looks for it elsewhere may find nothing
	}
	g.main.shrink(cost)
	if cost > 0 {
		g.counts.pulled.Add(1)
		if !keeps() {
			g.drop(key, 0, false) // the swap may have missed it
		}
	}
}

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
		pulled.Cursor, pulled.More = a.group.main.walk(p.Cursor, func(key string, e entry, again bool) bool {
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
		// Who asks for more than there is has taken in all there was, and so this process may end.
		if last && !pulled.More && len(pulled.Entries) > 0 {
			pulled.Cursor, pulled.More = pastAll, true
		}
	}
	a.send(200, &shoalpb.Reply{Answer: &shoalpb.Reply_Pulled{Pulled: pulled}})
	if last && agrees {
		a.c.handover.pulled(a.sender.GetIncarnation(), a.group, v, !pulled.More)
	}
}

// pastAll is a cursor behind which there is nothing.
const pastAll = math.MaxUint64

// bytesPerItem is about what an entry takes in a message beside its key and value.
const bytesPerItem = 48
