package main

// report.go: all that is printed: the progress, the table, the JSON object.

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/shoalcache/shoal"
)

// showProgress says on standard error how far done has come on its way to total, until stop is called. On a terminal
// that is one line, drawn again and again and removed at the end; anywhere else a new line now and then.
func showProgress(label string, done *atomic.Int64, total int) (stop func()) {
	every, before, after := 2*time.Second, "", "\n"
	info, err := os.Stderr.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0
	if terminal {
		every, before, after = 100*time.Millisecond, "\r\x1b[K", ""
	}
	stopped, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		ticks := time.NewTicker(every)
		defer ticks.Stop()
		for {
			select {
			case <-ticks.C:
				fmt.Fprintf(os.Stderr, "%s%s: %s of %s%s", before, label, count(done.Load()), count(total), after)
			case <-stopped:
				if terminal {
					fmt.Fprint(os.Stderr, before)
				}
				return
			}
		}
	}()
	return func() {
		close(stopped)
		<-gone
	}
}

// A report is the result of a run.
type report struct {
	options
	workload       *workload
	database       string
	direct, cached outcome
	stats          shoal.GroupStats // of all peers, summed
}

func (r *report) unique() int { return r.workload.unique(r.cached.requests) }

// failure returns an error if a request failed, or an answer was stale.
func (r *report) failure() error {
	return cmp.Or(r.direct.failure(), r.cached.failure())
}

// writeTable writes what a newcomer wants to know, losses as plainly as wins.
func (r *report) writeTable(w io.Writer) error {
	var b strings.Builder
	row := func(label, direct, cached, note string) {
		b.WriteString(strings.TrimRight(fmt.Sprintf("%-20s%12s%12s   %s", label, direct, cached, note), " ") + "\n")
	}
	d, c, s := r.direct, r.cached, r.stats
	share := func(n int64, what string) string {
		return fmt.Sprintf("%.1f%%: %s", 100*float64(n)/float64(max(len(c.reads), 1)), what)
	}
	here := s.Hits + s.HotHits
	shared := s.Gets - here - s.PeerHits - s.Loads - s.Errors
	unique, least := r.unique(), "no cache that starts empty can load less"
	if c.updates > 0 {
		least = "products that the requests name"
	}

	fmt.Fprintf(&b, "Requests: %s over %s, from %s to %s, all on this machine\nDatabase: %s", r.workload.name,
		plural(len(r.workload.items), "product"), plural(r.clients, "client"), plural(r.peers, "peer"), r.database)
	if c.updates > 0 {
		b.WriteString(", in a copy that is gone after this run")
	}
	b.WriteString("\n\n")
	row("", "database", "Shoal", "")
	row("requests", count(d.requests), count(c.requests), "")
	if c.updates > 0 {
		row("updates", "–", count(c.updates), "of these; the shares below are of the others")
	}
	row("hits here", "–", count(here), share(here, "in the memory of the peer that was asked"))
	row("hits at a peer", "–", count(s.PeerHits), share(s.PeerHits, "in the memory of the peer that owns the key"))
	row("shared loads", "–", count(shared), share(shared, "waited for a load that was under way"))
	row("database loads", count(d.requests), count(s.Loads), share(s.Loads, "read from the database"))
	row("unique keys", count(r.workload.unique(d.requests)), count(unique), least)
	row("failed", count(d.errors), count(c.errors), "")
	if c.updates > 0 {
		row("stale reads", "–", count(c.staleReads), "older than an update that was acknowledged before they began")
	}
	row("requests a second", count(int(d.perSecond())), count(int(c.perSecond())),
		fmt.Sprintf("%.2f times the database's", c.perSecond()/d.perSecond()))
	asked := "requests"
	if c.updates > 0 {
		asked = "reads"
	}
	for _, p := range []float64{0.50, 0.99} {
		if len(c.reads) == 0 {
			break
		}
		direct, cached := d.reads.percentile(p), c.reads.percentile(p)
		row(fmt.Sprintf("latency p%.0f", 100*p), millis(direct), millis(cached),
			fmt.Sprintf("%.2f times; %.0f of 100 %s took no longer", float64(cached)/float64(direct), 100*p, asked))
	}
	if c.updates > 0 {
		for _, p := range []float64{0.50, 0.99} {
			row(fmt.Sprintf("updates p%.0f", 100*p), "–", millis(c.writes.percentile(p)), "until they were acknowledged")
		}
	}

	b.WriteString("\nThe users and the peers that answer them over HTTP are the same in both columns. In the first, a peer reads each\n" +
		"product from the database; in the second, from the cache, which began empty.\n")
	if d.requests < c.requests {
		fmt.Fprintf(&b, "The first column stops after %s requests.\n", count(d.requests))
	}
	if extra := s.Loads - int64(unique); c.updates > 0 {
		b.WriteString("An update is acknowledged when it is in the database and no peer holds an older product any more. Each makes the\n" +
			"product be loaded again when it is next asked for.\n")
	} else if extra == 0 {
		b.WriteString("Each key was loaded once, whichever peer was asked for it.\n")
	} else {
		fmt.Fprintf(&b, "Loads beyond one for each key: %s.\n", count(extra))
	}
	if r.latency > 0 {
		fmt.Fprintf(&b, "\nThe database is a file in the memory of this machine, of which each query takes %v more, as over a network. It is\n"+
			"never busy: one that others ask, too, is slower.\n", r.latency)
	} else {
		b.WriteString("\nThis database is as fast as they come, a file in the memory of the machine that answers within microseconds: the\n" +
			"way to another peer costs more. One behind a network takes longer for each query: see -latency.\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// A summary is the form of a report that programs read.
type summary struct {
	Peers      int      `json:"peers"`
	Clients    int      `json:"clients"`
	UniqueKeys int      `json:"unique_keys"`
	Loads      int64    `json:"loads"`
	HitsLocal  int64    `json:"hits_local"`
	HitsPeer   int64    `json:"hits_peer"`
	Updates    int      `json:"updates"`
	StaleReads int      `json:"stale_reads"`
	figures             // of the requests through the cache
	Direct     *figures `json:"direct,omitempty"` // of those straight to the database
	*Change
}

// A Change is what a scenario adds.
type Change struct {
	Scenario   string `json:"scenario"`
	ExtraLoads int    `json:"extra_loads"`
	SlowestMS  int64  `json:"slowest_ms"`
	Retried    int64  `json:"retried"`
}

// figures are what clients can tell.
type figures struct {
	Requests          int   `json:"requests"`
	Errors            int   `json:"errors"`
	RequestsPerSecond int64 `json:"requests_per_second"`
	P50               int64 `json:"p50_us"` // of reads
	P99               int64 `json:"p99_us"`
}

func (o outcome) figures() figures {
	return figures{o.requests, o.errors, int64(o.perSecond()), o.reads.percentile(0.50).Microseconds(), o.reads.percentile(0.99).Microseconds()}
}

func (r *report) writeJSON(w io.Writer) error {
	direct := r.direct.figures()
	return json.NewEncoder(w).Encode(summary{
		Peers:      r.peers,
		Clients:    r.clients,
		UniqueKeys: r.unique(),
		Loads:      r.stats.Loads,
		HitsLocal:  r.stats.Hits + r.stats.HotHits,
		HitsPeer:   r.stats.PeerHits,
		Updates:    r.cached.updates,
		StaleReads: r.cached.staleReads,
		figures:    r.cached.figures(),
		Direct:     &direct,
	})
}

// howToQuery says what can be asked of peers that stay.
func howToQuery(addrs []string, id string, changes bool) string {
	var b strings.Builder
	b.WriteString("\nThe peers stay until Ctrl-C:\n")
	for _, addr := range addrs {
		fmt.Fprintf(&b, "  %s\n", addr)
	}
	b.WriteString("Ask any of them:\n")
	ask := func(url, answer string) { fmt.Fprintf(&b, "  curl %-40s # %s\n", url, answer) }
	ask(addrs[0]+"/product/"+id, "a product, through the cache")
	ask(addrs[0]+"/direct/"+id, "the same, straight from the database")
	if changes {
		ask("-X POST "+addrs[0]+"/product/"+id, "an update of it")
	}
	ask(addrs[0]+"/stats", "what this peer has counted")
	return b.String()
}

// count returns n with commas between thousands.
func count[N int | int64](n N) string {
	digits := strconv.FormatInt(int64(n), 10)
	sign := ""
	if n < 0 {
		sign, digits = "-", digits[1:]
	}
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return sign + digits
}

func millis(d time.Duration) string { return fmt.Sprintf("%.2f ms", d.Seconds()*1000) }

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return count(n) + " " + noun + "s"
}
