package main

// cost.go: what is printed of a scenario.

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// A cost is what a scenario has cost.
type cost struct {
	*scenario
	options
	database string
}

// change returns the steps of the change itself: neither what was before it, nor what is asked for after it.
func (s *scenario) change() []*step { return s.steps[1 : len(s.steps)-1] }

// total returns what came of all requests, or of those of some steps.
func total(steps []*step) outcome {
	var o outcome
	for _, st := range steps {
		o.add(st.outcome)
		o.elapsed += st.elapsed
	}
	slices.Sort(o.reads)
	slices.Sort(o.writes)
	return o
}

// again returns how many loads brought what had been loaded before.
func (s *scenario) again() (n int) {
	for _, st := range s.steps {
		n += len(st.again)
	}
	return n
}

// failure returns an error if a request failed, or an answer was stale.
func (s *cost) failure() error { return total(s.steps).failure() }

// writeTable writes what each step has cost, and all of them.
func (s *cost) writeTable(w io.Writer) error {
	var b strings.Builder
	row := func(label string, cells ...string) {
		fmt.Fprintf(&b, "%-24s", label)
		for _, cell := range cells {
			fmt.Fprintf(&b, "%12s", cell)
		}
		b.WriteString("\n")
	}
	updates := s.writes > 0
	fmt.Fprintf(&b, "Requests: %s, from %s to %s that find each other by %s, all on this machine\nDatabase: %s, %v a query",
		s.users.name, plural(s.options.clients, "client"), plural(s.peers, "peer"), s.discovery, s.database, s.latency)
	if updates {
		b.WriteString(", in a copy that is gone after this run")
	}
	b.WriteString("\n\n")
	row("", "took", "requests", "extra loads", "errors", "stale reads", "p99", "slowest")
	line := func(label string, o outcome, extra int) {
		row(label, o.elapsed.Round(10*time.Millisecond).String(), count(o.requests), count(extra), count(o.errors), count(o.staleReads),
			millis(o.reads.percentile(0.99)), millis(o.slowest()))
	}
	for _, st := range s.steps {
		line(st.name, st.outcome, len(st.again))
	}
	o, unique := total(s.steps), s.users.unique(len(s.users.requests))
	line("all", o, s.again())

	fmt.Fprintf(&b, "\nExtra loads: %s, %.2f%% of the %s that were loaded once before. ", count(s.again()), 100*float64(s.again())/float64(unique), plural(unique, "key"))
	if updates {
		b.WriteString("After an update its product is loaded once more; that is none.\n")
	} else {
		b.WriteString("They are all loads since then.\n")
	}
	fmt.Fprintf(&b, "Taken over from other peers: %s, and %s when they were asked for.\n", plural(int(s.stats.Pulled), "key"), count(s.stats.Inherited))
	fmt.Fprintf(&b, "Sent to another peer, by who balances the load, since there was no answer: %s.\n", plural(int(s.users.balancer.retried.Load()), "request"))
	_, err := io.WriteString(w, b.String())
	return err
}

// writeJSON writes one object, with the names of that of a run without a scenario.
func (c *cost) writeJSON(w io.Writer) error {
	all := total(c.steps)
	return json.NewEncoder(w).Encode(summary{
		Peers:      c.peers,
		Clients:    c.options.clients,
		UniqueKeys: c.users.unique(len(c.users.requests)),
		Loads:      int64(c.loads),
		HitsLocal:  c.stats.Hits + c.stats.HotHits,
		HitsPeer:   c.stats.PeerHits,
		Updates:    all.updates,
		StaleReads: all.staleReads,
		figures:    all.figures(),
		changed: &changed{
			Scenario:   c.options.scenario,
			ExtraLoads: c.again(),
			SlowestMS:  total(c.change()).slowest().Milliseconds(),
			Retried:    c.users.balancer.retried.Load(),
		},
	})
}
