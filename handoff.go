package shoal

// handoff.go: how values follow their keys when these go to another process. The one that has lost them keeps what it holds
// for a while, frozen: it does not serve it any more, but the new owner finds it there: by a peek, before it runs the getter,
// and by pulls, in the background, which pull.go has.

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
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
	t.places(*table, key, func(at *atomic.Int64) { advance(at, now) })
}

// advance makes at no earlier than now.
func advance(at *atomic.Int64, now time.Duration) {
	for was := at.Load(); was < int64(now); was = at.Load() {
		at.CompareAndSwap(was, int64(now))
	}
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

// greetedFor waits until this process may act as the owner of key, and returns the view in which it is, or is not. It calls waits
// if it has to, for PeerTimeout at most after each change of view.
func (p *peers) greetedFor(ctx context.Context, key string, waits func()) (*view, error) {
	for {
		v := p.view.Load()
		if len(v.former) == 0 || !v.owns(key) {
			return v, nil
		}
		roll := v.ungreeted(key)
		if roll == nil {
			return v, nil
		}
		waits()
		select {
		case <-roll.done:
		case <-ctx.Done():
			return v, ctx.Err()
		}
	}
}

// inherit gets key, which f is to load, from those who had it before it came to this process. It fails where nothing can be
// loaded, and who must have had the key does not say.
func (g *group) inherit(ctx context.Context, f *loadFlight) (result found, ok bool, err error) {
	p, now := &g.cache.peers, g.cache.clock.now()
	v := p.view.Load()
	if g.cache.opts.Warm < 0 || !v.owns(f.Key()) {
		return found{}, false, nil
	}
	former := p.newlyMine(v, f.Key(), now)
	last := g.written.of(f.Key())
	dropped := g.refilling.Load() > 0
	elsewhere := g.getter == nil && (last.elsewhere || dropped)
	if former == nil && !elsewhere {
		return found{}, false, nil
	}
	var unanswered error
	var gone uint64 // the version of the last write of which those know who do not have it
	answered, isOpen := g.getter != nil, false
	all := v.predecessors(former, f.Key(), g.owners, g.getter == nil)
	keepers := min(g.owners, len(all))
	if g.getter == nil { // who own key by views of their own may have taken a write
		all = p.andStrangers(all, f.Key(), 2*mostPeeksForGood, now)
	}
	isNowhere := true // so far as anybody says who might have it
	for i, before := range all {
		g.counts.peeks.Add(1)
		e, _, _, err := g.cache.peek(ctx, before, g, f.Key(), false)
		if err == nil && e.err == nil && !g.isPast(f.Key(), &e) && p.isStillSaidToBeBehind(ctx, before) {
			unanswered, isOpen, gone = errBehind, true, max(gone, e.version) // nor anything older than that
			continue
		}
		if i < keepers { // it is one of those who kept it
			answered = answered || err == nil && (e.err != nil || !g.isPast(f.Key(), &e))
			if err != nil && !isOpen && !holdsNothing(err) && v.has(before) {
				unanswered = err
			}
		}
		if (last.elsewhere || gone > 0) && err != nil && !holdsNothing(err) { // it may have taken the write that somebody knows of
			isNowhere = false
			heard, isStranger := p.known.heard(before.incarnation)
			if isStranger && now-heard < p.window/4 || last.elsewhere && i >= keepers && v.has(before) {
				unanswered, isOpen = err, true
			}
		}
		if err == nil && e.err != nil { // what others have may be older than what it had
			gone = max(gone, e.version)
		}
		if err != nil || e.err != nil || g.isPast(f.Key(), &e) || g.remembersWrites() && e.version < gone {
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
			return result, true, nil
		}
	}
	if g.getter == nil {
		if result, ok := g.here(f.Key()); ok { // it has been pulled meanwhile
			return result, true, nil
		}
	}
	if unanswered != nil && (!answered || isOpen && g.getter == nil) {
		return found{}, false, fmt.Errorf("whether it is still where it was: %w", unanswered)
	}
	if g.getter == nil && last.elsewhere && isNowhere {
		g.written.isNowhere(f.Key(), last.version) // or here, from now on
	}
	return found{}, false, nil
}

// mayBeElsewhere reports whether others are asked for key before it is loaded, or taken to be absent.
func (g *group) mayBeElsewhere(key string) bool {
	p := &g.cache.peers
	return g.refilling.Load() > 0 || g.written.of(key).elsewhere || p.newlyMine(p.view.Load(), key, g.cache.clock.now()) != nil
}

var errBehind = errors.New("it may have missed writes")

// mostPeeks is how many processes are asked for what they hold of a key before it is loaded, and mostPeeksForGood before it is
// taken for lost, since nothing can be loaded.
const mostPeeks, mostPeeksForGood = 2, 8

// andStrangers adds strangers to all, up to most in all: if not all of them, those that are most likely to own key by views of their own.
func (p *peers) andStrangers(all []*peer, key string, most int, now time.Duration) []*peer {
	is := func(p *peer) func(*peer) bool {
		return func(other *peer) bool { return other.incarnation == p.incarnation && other.Addr == p.Addr }
	}
	strangers := slices.DeleteFunc(p.known.strangers(now), func(s *peer) bool { return slices.ContainsFunc(all, is(s)) })
	if room := max(most-len(all), 0); len(strangers) > room {
		byID := func(a, b *peer) int { return strings.Compare(a.ID, b.ID) }
		everyone := slices.SortedFunc(slices.Values(slices.Concat(p.view.Load().members, strangers)), byID)
		everyone = slices.CompactFunc(everyone, func(a, b *peer) bool { return a.ID == b.ID })
		v := newView(p.place, everyone)
		var some []*peer
		for _, i := range v.ring(key, len(everyone)) {
			if len(some) < room && slices.ContainsFunc(strangers, is(everyone[i])) {
				some = append(some, everyone[i])
			}
		}
		strangers = some
	}
	return append(all, strangers...)
}

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
	most := max(mostPeeks, n)
	if all {
		most = max(most, mostPeeksForGood)
		for i := range v.former { // who keeps it by a view of a while ago may see that still
			f := &v.former[len(v.former)-1-i]
			for _, j := range f.ring(key, n+1) {
				if j != f.self && len(some) < most {
					add(f.members[j])
				}
			}
		}
	}
	for _, i := range v.ring(key, most+1) {
		if len(some) < most {
			add(v.members[i])
		}
	}
	return some
}

// viewSwapped takes from service what this process owned under the old view and does not own under the new one: first the
// loads, which then keep nothing any more, then what they have kept. Loads of keys that have come to it began when nobody told
// it of writes, and are forgotten too. Copies go all, for who gave their leases may not know of writes any more. Who asks from
// now on asks an owner of the new view, and does not gather behind a question to one of the old.
func (g *group) viewSwapped(old, new *view) {
	g.fetches.ForgetAll()
	for _, key := range g.loads.Keys() {
		if !old.owns(key) || !new.owns(key) {
			g.loads.Forget(key)
		}
	}
	g.copies.clear()
	g.thawLate(old)
	g.freeze(new.former[len(new.former)-1].thaws)
	g.journal.moved()
	g.absent.retain(new.owns)
}

// freeze keeps until then what this process holds of keys that have gone to others: for those, as long as they may need it.
func (g *group) freeze(until time.Duration) {
	if g.cache.opts.Warm < 0 {
		g.main.retain(g.keeps)
		return
	}
	g.freezing.Lock()
	defer g.freezing.Unlock()
	g.main.frozen.Store(true)
	if g.thawAt == 0 || until < g.thawAt {
		g.thawAtLocked(until)
	}
}

func (g *group) thawAtLocked(then time.Duration) {
	g.thawAt = then
	time.AfterFunc(max(then-g.cache.clock.now(), 1), g.thaw)
}

// thaw drops what has been frozen for long enough, unless it is just being handed over.
func (g *group) thaw() {
	g.freezing.Lock()
	defer g.freezing.Unlock()
	v, now := g.cache.peers.view.Load(), g.cache.clock.now()
	if g.thawAt == 0 || now < g.thawAt || g.cache.left.Load() {
		return
	}
	given := g.retainLately(v, now)
	var next time.Duration
	for i := range v.former {
		if thaws := v.former[i].thaws; thaws > now && (next == 0 || thaws < next) {
			next = thaws
		}
	}
	if soon := now + g.cache.peers.window/8; given && (next == 0 || soon < next) {
		next = soon
	}
	if next == 0 {
		g.main.frozen.Store(false)
		g.thawAt = 0
		return
	}
	g.thawAtLocked(max(next, now+maxLease/4)) // it goes through all that there is
}

// thawLate does what thaw should have done already.
func (g *group) thawLate(old *view) {
	g.freezing.Lock()
	defer g.freezing.Unlock()
	if now := g.cache.clock.now(); g.thawAt != 0 && now >= g.thawAt {
		g.retainLately(old, now)
	}
}

// retainLately drops what this process neither keeps by v, nor kept by another view, nor was given by somebody who takes it for a
// replica, so short a time ago that others may need it. It reports whether there is any of the last.
func (g *group) retainLately(v *view, now time.Duration) (given bool) {
	given = g.given.forget(now - g.cache.peers.window/2)
	g.main.retain(func(key string) bool { return v.keptLately(key, g.owners, now) || given && g.given.has(key) })
	return given
}

// keptLately reports whether this process is among the n that keep key, or was so short a time ago that they may need it.
func (v *view) keptLately(key string, n int, now time.Duration) bool {
	if v.keeps(key, n) {
		return true
	}
	for i := range v.former {
		if f := &v.former[i]; f.thaws > now && f.keeps(key, n) {
			return true
		}
	}
	return false
}
