package shoal

// peers.go: who is there. A Discovery lists addresses; each is a candidate (candidates.go) until the process behind it has told
// who it is; those that have are the members of the view, which says who owns a key (view.go). The candidates belong to one
// goroutine, peers.run. The view is immutable, and everybody reads it through one atomic pointer.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoalcache/shoal/consistenthash"
)

// peers is what a Cache knows of who is there.
type peers struct {
	self        Peer
	incarnation uint64 // of this process, drawn at its start
	place       func([]consistenthash.Member) consistenthash.Map
	hello       func(ctx context.Context, addr string) (met, error)           // asks who is there
	tellMissed  func(ctx context.Context, p *peer, since time.Duration) error // … of writes since then
	goodbye     func(ctx context.Context, p *peer) error                      // tells it that this process leaves
	pulls       func(ctx context.Context, t *takeover, taken func())
	pullsEnd    func(ctx context.Context) // waits for those that life has ended
	swapped     func(old, new *view)      // called after each change of view
	lineTo      func(addr string) *line
	closeIdle   func(addr string) // ends connections to there that carry nothing
	timeout     time.Duration     // PeerTimeout
	window      time.Duration     // Warm, or as long as it must be
	log         *slog.Logger
	clock       *clock

	birth   *rollCall // ends when this process knows whether it is alone
	view    atomic.Pointer[view]
	differs atomic.Int64 // when, on the clock, a peer was last seen to differ, but now agrees
	wrote   atomic.Int64 // when this process last took a write, or dropped all of a group
	toldFew atomic.Int64 // when a write was last told to those alone who hold leases
	known   acquaintances
	hearsay hearsay

	takeover  atomic.Pointer[takeover] // the last
	repairing atomic.Int64             // changes of view of which not all has been taken over
	// differing is when somebody was first seen to differ since the last change of view, or since all agreed; 0: nobody has been.
	differing atomic.Int64

	lists   chan []Peer       // what discovery has said
	greeted chan greeting     // what has come of a greeting
	waiting chan chan<- error // who waits for ready
	seen    chan sighting     // who has been seen
	parting chan parting      // who wants to own nothing any more
	life    context.Context   // ends with stop
	done    <-chan struct{}   // closed by stop
	stop    context.CancelFunc
	ran     <-chan struct{} // closed when the view is changed by nobody but who leaves
	running sync.WaitGroup
}

// A parting is the word of a member that it leaves.
type parting struct {
	incarnation uint64
	done        chan<- struct{} // closed when it is out of the view
}

// A sighting is somebody who greets, or answers in another's place.
type sighting struct {
	id          string // its own, or that of whom it stands in the place of
	addr        string // by its own account; may be empty
	incarnation uint64
}

// start looks for peers until stop is called. Without a Discovery there are none.
func (p *peers) start(discover Discovery) {
	// Before it was there, this process owned nothing; and it waits for a while for the word that it is not alone.
	p.birth = newRollCall()
	close(p.birth.taken)
	birth := formerView{view: view{self: -1}, after: p.birth}
	p.view.Store(&view{self: -1, alone: true, former: []formerView{birth}})
	ctx, stop := context.WithCancel(context.Background())
	p.life, p.done, p.stop = ctx, ctx.Done(), stop
	if discover == nil {
		p.birth.end(p.clock.now())
		return
	}
	p.lists, p.greeted, p.waiting = make(chan []Peer), make(chan greeting), make(chan chan<- error)
	p.seen, p.parting = make(chan sighting, 16), make(chan parting)
	ran := make(chan struct{})
	p.ran = ran
	p.running.Go(func() {
		defer close(ran)
		p.run(ctx)
	})
	p.running.Go(func() { p.discover(ctx, discover) })
}

func (p *peers) discover(ctx context.Context, discover Discovery) {
	set := func(list []Peer) {
		select {
		case p.lists <- slices.Clone(list):
		case <-ctx.Done():
		}
	}
	for retry := firstRetry; ctx.Err() == nil; retry = min(2*retry, lastRetry) {
		began := p.clock.now()
		if err := discover(ctx, p.self, set); ctx.Err() == nil {
			if p.clock.now()-began > lastRetry {
				retry = firstRetry
			}
			p.log.Warn("shoal: discovery has ended and will be started again", "error", err)
			pause(ctx, retry, nil)
		}
	}
}

// run keeps the candidates, and makes a view of those that have answered: the first when all have been asked, for which others
// that are listed meanwhile have to wait after some time.
func (p *peers) run(ctx context.Context) {
	var (
		candidates map[string]*candidate // by address; nil before the first list
		bad        error                 // what is wrong with the list
		waiting    []chan<- error
	)
	var (
		began   bool             // there has been a view of those who are listed
		pending []Peer           // the newest list, if it has not been taken over
		pause   <-chan time.Time // … and when that is to be

		parted = make(map[uint64]bool) // who has left, by incarnation: their answers may be under way

		unlisted = time.After(p.timeout) // who is born into no list is alone
		late     <-chan time.Time        // it should have been settled who is there
		tooLong  bool                    // … and no other list is heard of before that is
	)
	defer func() { p.birth.end(p.clock.now()) }()
	for turn := 0; ; turn++ {
		listed, changed := false, false
		select {
		case <-ctx.Done():
			return
		case pending = <-p.lists:
			if candidates == nil {
				listed, late = true, time.After(2*p.timeout)
			} else if pause == nil {
				pause = time.After(debounce)
			}
		case <-pause:
			if listed = began || !tooLong; !listed {
				pause = time.After(debounce) // first those who are listed already
			}
		case <-unlisted:
			if candidates == nil {
				p.birth.end(p.clock.now())
			}
		case <-late:
			tooLong = true
		case g := <-p.greeted:
			if c := candidates[g.addr]; c != nil {
				if g.err == nil && !g.roll && parted[g.met.incarnation] {
					g.err = errHasLeft
					c.leaves(g.met.incarnation)
				}
				changed = p.answered(c, g, turn)
			}
		case s := <-p.seen:
			wake(candidates, s)
		case who := <-p.parting:
			if len(parted) >= maxStrangers {
				clear(parted)
			}
			parted[who.incarnation] = true
			for _, c := range candidates {
				if c.met != nil && c.met.incarnation == who.incarnation {
					c.leaves(who.incarnation)
				}
			}
			p.look(candidates)
			close(who.done)
		case w := <-p.waiting:
			waiting = append(waiting, w)
		}
		if listed {
			candidates, bad = p.list(ctx, candidates, pending)
			pending, pause = nil, nil
		}
		settled := candidates != nil
		for _, c := range candidates {
			settled = settled && c.asked
		}
		// A view takes some time to make: while first answers are coming in, one is made of them all.
		if settled && (listed || changed) || listed && began {
			p.look(candidates)
			p.birth.end(p.clock.now())
			began = true
		}
		if settled && pause == nil {
			for _, w := range waiting {
				w <- bad
			}
			waiting = nil
		}
	}
}

// debounce is how long a list is kept back, as another may follow at once: each change of the view costs a greeting of all.
const debounce = 50 * time.Millisecond

// list returns the candidates of a new list: those of the old one that stay, and new ones, which are being greeted.
func (p *peers) list(ctx context.Context, old map[string]*candidate, list []Peer) (map[string]*candidate, error) {
	if len(list) == 0 && len(old) > 0 {
		return old, nil // a source that fails must not take everybody away
	}
	var bad []error
	candidates := make(map[string]*candidate, len(list))
	for _, listed := range list {
		addr, err := normalAddr(listed.Addr)
		if err != nil {
			bad = append(bad, err)
			p.log.Error("shoal: discovery has listed what is no address", "error", err)
			continue
		}
		if candidates[addr] != nil {
			continue
		}
		c := old[addr]
		if c == nil {
			c = &candidate{wake: make(chan struct{}, 1)}
			greeting, cancel := context.WithCancel(ctx)
			c.cancel = cancel
			if addr == p.self.Addr {
				c.asked, c.met = true, &peer{Peer: p.self, incarnation: p.incarnation}
			} else {
				p.running.Go(func() { p.greet(greeting, addr, c) })
			}
		}
		candidates[addr] = c
	}
	if len(candidates) == 0 && len(old) > 0 {
		return old, errors.Join(bad...)
	}
	for addr, c := range old {
		if candidates[addr] != c {
			c.cancel()
			p.closeIdle(addr)
		}
	}
	return candidates, errors.Join(bad...)
}

// look makes the view that the candidates give, and swaps it in if it is another than the one there is.
func (p *peers) look(candidates map[string]*candidate) {
	byProcess := make(map[uint64]*candidate)
	for _, c := range candidates {
		if c.met == nil {
			continue
		}
		if other := byProcess[c.met.incarnation]; other == nil || c.met.Addr < other.met.Addr { // one process may be listed twice
			byProcess[c.met.incarnation] = c
		}
	}
	byID := make(map[string]*candidate)
	for _, c := range byProcess {
		other := byID[c.met.ID]
		if other == nil || c.met.incarnation == p.incarnation ||
			other.met.incarnation != p.incarnation && c.turn > other.turn { // the later has replaced the earlier
			byID[c.met.ID] = c
		}
	}
	members := make([]*peer, 0, len(byID))
	for _, c := range byID {
		members = append(members, c.met)
	}
	slices.SortFunc(members, func(a, b *peer) int { return strings.Compare(a.ID, b.ID) })

	old, alone := p.view.Load(), len(candidates) == 0
	if alone != old.alone || !slices.EqualFunc(members, old.members, func(a, b *peer) bool {
		return a.Peer == b.Peer && a.incarnation == b.incarnation
	}) {
		p.swap(members, alone)
	}
}

// noticed tells run who has been seen.
func (p *peers) noticed(s sighting) {
	if s.incarnation == p.incarnation {
		return
	}
	select {
	case p.seen <- s:
	default: // there is no run, or enough for it to do: what is missed is seen again
	}
}

var errShutDown = errors.New("shoal: the cache has been shut down")

// ready waits until every listed address has been asked who it is, and all have been greeted, and returns what was wrong with
// the list. If it must, it also waits until what has come to this process has been taken over.
func (p *peers) ready(ctx context.Context, mustTakeOver func() bool) error {
	select {
	case <-p.done:
		return errShutDown
	default:
	}
	if p.waiting == nil {
		return nil // without discovery
	}
	tooLate := func() error { return fmt.Errorf("shoal: not all peers have been asked yet: %w", ctx.Err()) }
	ready := make(chan error, 1)
	select {
	case p.waiting <- ready:
	case <-p.done:
		return errShutDown
	case <-ctx.Done():
		return tooLate()
	}
	var err error
	select {
	case err = <-ready:
	case <-p.done:
		return errShutDown
	case <-ctx.Done():
		return tooLate()
	}
	for _, f := range p.view.Load().former {
		over := f.after.done
		if mustTakeOver() {
			over = f.after.taken
		}
		select {
		case <-over:
		case <-p.done:
			return errShutDown
		case <-ctx.Done():
			return tooLate()
		}
	}
	return err
}
