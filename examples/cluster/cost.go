package main

// cost.go: what is printed of a scenario.

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// A cost is what a scenario has cost.
type cost struct {
	*scenario
	options
	database string
}

// change returns the steps since the change began: that before it, and that in which each product was first loaded, are
// not its cost.
func (c *cost) change() []*step { return c.steps[2:] }

// total returns what came of the requests of some steps, and how many of their loads were of what had been loaded before.
func total(steps []*step) (o outcome, again int) {
	for _, st := range steps {
		o.add(st.outcome)
		o.elapsed += st.elapsed
		again += st.again
	}
	slices.Sort(o.reads)
	slices.Sort(o.writes)
	return o, again
}

// failure returns an error if a request failed, or an answer was stale.
func (c *cost) failure() error {
	all, _ := total(c.steps)
	return all.failure()
}

// writeTable writes what each step has cost, and the whole change.
func (c *cost) writeTable(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Requests: %s, from %s to %s (-discovery %s), all on this machine\nDatabase: %s, %v a query",
		c.users.name, plural(c.options.clients, "client"), plural(c.options.peers, "peer"), c.discovery, c.database, c.latency)
	if c.options.writes > 0 {
		b.WriteString(", in a copy that is gone after this run")
	}
	b.WriteString("\n\n")
	row := func(label string, cells ...string) {
		fmt.Fprintf(&b, "%-24s", label)
		for _, cell := range cells {
			fmt.Fprintf(&b, "%13s", cell)
		}
		b.WriteString("\n")
	}
	sums := func(label string, o outcome, again int) {
		row(label, fmt.Sprintf("%.2f s", o.elapsed.Seconds()), count(o.requests), count(again), count(o.errors), count(o.staleReads),
			millis(o.reads.percentile(0.99)), millis(o.slowest()))
	}
	row("", "took", "requests", "extra loads", "errors", "stale reads", "p99", "slowest")
	for _, st := range c.steps {
		sums(st.name, st.outcome, st.again)
	}
	o, again := total(c.change())
	sums("the change, and after it", o, again)

	unique := len(c.users.once())
	fmt.Fprintf(&b, "\nExtra loads are those of products that some peer had loaded before: %s, %.2f%% of the %s. ",
		count(again), 100*float64(again)/float64(unique), plural(unique, "product"))
	if c.options.writes > 0 {
		b.WriteString("What an\nupdate makes be loaded again is none. Loads that an update has overtaken are, also when nothing changes.\n")
	} else {
		b.WriteString("They are\nall loads since then.\n")
	}
	fmt.Fprintf(&b, "What peers took over from each other: %s in the background, and %s when they were asked for.\n",
		plural(int(c.stats.Pulled), "product"), count(c.stats.Inherited))
	fmt.Fprintf(&b, "Sent to another peer since one did not answer: %s. That is no error: a load balancer does it.\n",
		plural(int(c.users.balancer.retried.Load()), "request"))
	_, err := io.WriteString(w, b.String())
	return err
}

// writeJSON writes one object, with the names of that of a run without a scenario.
func (c *cost) writeJSON(w io.Writer) error {
	all, _ := total(c.steps)
	since, again := total(c.change())
	return json.NewEncoder(w).Encode(summary{
		Peers:      c.options.peers,
		Clients:    c.options.clients,
		UniqueKeys: len(c.users.once()),
		Loads:      int64(c.loads),
		HitsLocal:  c.stats.Hits + c.stats.HotHits,
		HitsPeer:   c.stats.PeerHits,
		Updates:    all.updates,
		StaleReads: all.staleReads,
		figures:    all.figures(),
		Change: &Change{
			Scenario:   c.options.scenario,
			ExtraLoads: again,
			SlowestMS:  since.slowest().Milliseconds(),
			Retried:    c.users.balancer.retried.Load(),
		},
	})
}
