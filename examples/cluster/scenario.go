package main

// scenario.go: what happens to the peers while users ask, and what it costs them. Everything is done as Kubernetes does
// it, or an operator by hand; nothing waits for what only the inside of a peer could tell.

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/shoalcache/shoal"
)

// changes are the scenarios, by name.
var changes = map[string]func(*scenario) error{
	"rolling": (*scenario).rolling,
	"kill":    (*scenario).kill,
	"scale":   (*scenario).scale,
}

const (
	steady   = 3 * time.Second  // users ask for so long before anything happens
	downTime = 10 * time.Second // a peer that was killed is started again so much later
)

// A scenario is a change while it happens.
type scenario struct {
	*cluster
	users    *users
	minReady time.Duration

	loads int              // of all peers, since the first began
	stats shoal.GroupStats // of all peers, summed

	mu    sync.Mutex // guards what follows
	steps []*step
}

// A step is a part of a scenario, with what came of the requests that were answered in it.
type step struct {
	name  string
	begin time.Time
	again int // loads of what had been loaded before
	outcome
}

// runScenario has each product loaded once, and then lets users ask for what the workload says, again and again, while the
// change happens. In the end they ask once more for each product: what was lost is loaded again then, if not before.
func runScenario(c *cluster, u *users, opts options) (*scenario, error) {
	s := &scenario{cluster: c, users: u, minReady: opts.minReady}
	once := u.once()
	replay := func(label string) (outcome, error) {
		var done atomic.Int64
		defer showProgress(label, &done, len(once))()
		return u.replay(c.alive, "/product/", once, make([]bool, len(once)), &done)
	}
	first := s.step("each product once")
	var err error
	if first.outcome, err = replay(first.name); err != nil {
		return nil, err
	}
	if err := first.failure(); err != nil {
		return nil, err
	}
	loaded, err := readLedger(c.Ledger)
	if err != nil {
		return nil, err
	}
	if known := len(loaded) - len(again(loaded)); known != len(once) {
		return nil, fmt.Errorf("%d of %d products were loaded when each had been asked for", known, len(once))
	}

	s.step("before the change")
	stop := s.load(chooseUpdates(len(u.requests), opts.writes))
	err = s.wait(steady)
	if err == nil {
		err = changes[opts.scenario](s)
	}
	stop()
	if err != nil {
		return nil, err
	}
	last := s.step("each product once more")
	if last.outcome, err = replay(last.name); err != nil {
		return nil, err
	}
	return s, s.finish()
}

// rolling replaces every peer by a new process, the last first, as a rolling update of a StatefulSet does.
func (s *scenario) rolling() error {
	for _, p := range slices.Backward(s.places) {
		if err := s.end(p); err != nil {
			return err
		}
		if err := s.begin(p); err != nil {
			return err
		}
	}
	return nil
}

// kill ends a peer without a word, as a system does that is short of memory, and starts it again later.
func (s *scenario) kill() error {
	p := s.places[len(s.places)/2]
	s.step(p.ID + " is killed")
	err := s.cluster.end(p, os.Kill)
	s.users.balancer.remove(p.Addr) // the kubelet has seen that it ended
	if err == nil {
		err = s.wait(downTime)
	}
	if err != nil {
		return err
	}
	return s.begin(p)
}

// scale starts two peers more, one after the other, and ends them again.
func (s *scenario) scale() error {
	var added []*place
	for range 2 {
		p, err := s.newPlace()
		if err != nil {
			return err
		}
		s.places = append(s.places, p)
		added = append(added, p)
		if err := s.begin(p); err != nil {
			return err
		}
	}
	for _, p := range slices.Backward(added) {
		if err := s.end(p); err != nil {
			return err
		}
		s.places = s.places[:len(s.places)-1]
		if err := s.settle(); err != nil {
			return err
		}
	}
	return nil
}

// end takes p from those that users are sent to, and tells it to end, which Kubernetes does at once, too.
func (s *scenario) end(p *place) error {
	s.step(p.ID + " ends")
	s.users.balancer.remove(p.Addr)
	return s.cluster.end(p, syscall.SIGTERM)
}

// begin starts p and sends users there when it is ready, and lets some time pass, as minReadySeconds does.
func (s *scenario) begin(p *place) error {
	s.step(p.ID + " starts")
	if err := s.cluster.begin(p); err != nil {
		return err
	}
	s.users.balancer.add(p.Addr)
	return s.settle()
}

func (s *scenario) settle() error {
	s.step(fmt.Sprintf("the next %v", s.minReady))
	return s.wait(s.minReady)
}

func (s *scenario) wait(d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-s.alive.Done():
		return context.Cause(s.alive)
	}
}

// load lets users ask for what the workload says, again and again, until stop is called.
func (s *scenario) load(updates []bool) (stop func()) {
	var stopped atomic.Bool
	requests := s.users.requests
	var running sync.WaitGroup
	running.Go(func() {
		s.users.send(s.alive, "/product/", func(i int) (request, bool) {
			return request{requests[i%len(requests)], updates[i%len(updates)]}, !stopped.Load()
		}, s.count)
	})
	return func() {
		stopped.Store(true)
		running.Wait()
	}
}

// count counts a request in the step in which it is answered.
func (s *scenario) count(r request, took time.Duration, failed, stale error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps[len(s.steps)-1].count(r.update, took, failed, stale)
}

// step begins the next step.
func (s *scenario) step(name string) *step {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := &step{name: name, begin: time.Now()}
	if n := len(s.steps); n > 0 {
		s.steps[n-1].elapsed = next.begin.Sub(s.steps[n-1].begin)
	}
	s.steps = append(s.steps, next)
	return next
}

// at returns the step of that time.
func (s *scenario) at(t time.Time) *step {
	for _, st := range slices.Backward(s.steps) {
		if !st.begin.After(t) {
			return st
		}
	}
	return s.steps[0]
}

// finish finds out in which steps products were loaded that had been loaded before.
func (s *scenario) finish() error {
	loaded, err := readLedger(s.Ledger)
	if err != nil {
		return err
	}
	s.loads = len(loaded)
	for _, l := range again(loaded) {
		s.at(l.at).again++
	}
	for _, st := range s.steps {
		slices.Sort(st.reads)
		slices.Sort(st.writes)
	}
	s.stats, err = s.cluster.stats()
	return err
}
