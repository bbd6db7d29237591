// Cluster shows Shoal at work: it starts a few peers as processes of their own around one SQLite database, sends them
// what many users would ask for, first past the cache and then through it, and prints what came of both.
//
//	go run ./examples/cluster
//	go run ./examples/cluster -writes 0.05
//	go run ./examples/cluster -scenario rolling
//
// With -writes, some requests are updates, and no answer may be older than an update that was acknowledged before. With
// -scenario, peers end and begin under load, and it prints what that cost.
// It needs nothing else, stops by itself and leaves no process behind. The database is filled at the first start and
// kept in the user's cache directory.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	defaultRequests = 60_000
	directRequests  = 100_000 // at most so many go straight to the database: a long trace need not run twice
	warmUpRequests  = 2_000
)

type options struct {
	peers, owners              int
	requests, clients          int
	writes                     float64
	trace, discovery, scenario string
	latency, minReady          time.Duration
	keep, json                 bool
}

// invalid says what is wrong with opts.
func (opts *options) invalid() error {
	switch {
	case opts.peers < 1 || opts.clients < 1 || opts.owners < 1:
		return errors.New("-peers, -clients and -owners are 1 or more")
	case opts.owners > opts.peers:
		return fmt.Errorf("there are no %d -owners among %d -peers", opts.owners, opts.peers)
	case opts.requests < 0 || opts.latency < 0 || opts.minReady < 0:
		return errors.New("-requests, -latency and -min-ready are not negative")
	case !(opts.writes >= 0 && opts.writes <= 1):
		return errors.New("-writes is from 0 to 1")
	case opts.discovery != "static" && opts.discovery != "memberlist":
		return fmt.Errorf("-discovery is static or memberlist, not %q", opts.discovery)
	case opts.scenario == "":
		return nil
	case changes[opts.scenario] == nil:
		return fmt.Errorf("-scenario is %s, not %q", strings.Join(slices.Sorted(maps.Keys(changes)), ", "), opts.scenario)
	case opts.keep:
		return errors.New("-keep is not for a -scenario")
	case opts.peers < 2:
		return errors.New("a -scenario takes at least 2 -peers, of which one is always up")
	case opts.scenario == "scale" && opts.discovery == "static":
		return errors.New("-scenario scale is not for -discovery static: a list that stands cannot tell of new peers")
	}
	return nil
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("cluster: ")
	if len(os.Args) > 1 && os.Args[1] == peerMode {
		if err := runPeer(); err != nil {
			log.Fatal("peer: ", err)
		}
		return
	}

	var opts options
	flag.IntVar(&opts.peers, "peers", 3, "`number` of processes that share the cache")
	flag.IntVar(&opts.owners, "owners", 1, "`number` of peers that keep each product")
	flag.IntVar(&opts.requests, "requests", 0, "`number` of requests; if 0, 60,000 or the whole trace. In a -scenario they come again and again")
	flag.IntVar(&opts.clients, "clients", 16, "`number` of requests on their way at once")
	flag.Float64Var(&opts.writes, "writes", 0, "`share` of the requests through Shoal that are updates, from 0 to 1")
	flag.StringVar(&opts.trace, "trace", "", "gzip `file` of requests to replay, a line each: key, or key and size in bytes")
	flag.DurationVar(&opts.latency, "latency", time.Millisecond, "`time` that a query of the database takes longer than one of a file in memory")
	flag.StringVar(&opts.discovery, "discovery", "memberlist", "how peers find each other: static or memberlist")
	flag.StringVar(&opts.scenario, "scenario", "", "what happens to the peers under load: rolling, kill or scale")
	flag.DurationVar(&opts.minReady, "min-ready", 3*time.Second, "`time` between the changes of a scenario")
	flag.BoolVar(&opts.keep, "keep", false, "leave the peers running after the load, until Ctrl-C")
	flag.BoolVar(&opts.json, "json", false, "print one JSON object in place of the table")
	flag.Parse()
	err := opts.invalid()
	if flag.NArg() > 0 {
		err = fmt.Errorf("%q is not expected: there are flags only", flag.Arg(0))
	}
	if err != nil {
		log.Printf("%v; -h lists the flags", err)
		os.Exit(2)
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait for the peers
	if err := run(ctx, opts); err != nil {
		log.Fatal(err)
	}
}

// run is the whole story: a workload, a database that has what it asks for, peers before the database, the same
// requests past the cache and through it, and the numbers.
func run(ctx context.Context, opts options) error {
	w, err := newWorkload(opts)
	if err != nil {
		return err
	}
	database, err := prepareDatabase(ctx, w.items)
	if err != nil {
		return err
	}
	maxBytes, err := memoryFor(database)
	if err != nil {
		return err
	}
	r := report{options: opts, workload: w, database: database}
	s := settings{Changes: opts.writes > 0, Latency: opts.latency, Owners: opts.owners, MaxBytes: maxBytes, Database: database}
	dir, err := os.MkdirTemp("", "shoal-cluster-*") // one that the system clears, should this process not live to do it
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if s.Changes {
		s.Database = filepath.Join(dir, "products.db")
		if err := copyDatabase(ctx, s.Database, database); err != nil {
			return fmt.Errorf("copying the database: %w", err)
		}
	}
	if opts.scenario != "" {
		s.Ledger = filepath.Join(dir, "loads")
	}

	peers, err := startPeers(ctx, opts.peers, opts.discovery == "memberlist", s)
	if err != nil {
		return err
	}
	defer peers.stop()
	balancer := newBalancer(opts.clients, peers.addrs()...)
	defer balancer.client.CloseIdleConnections() // those that were never used, a peer that is to end would wait for
	if opts.scenario != "" {
		s, err := runScenario(peers, newUsers(w, balancer, opts.clients), opts)
		if err != nil {
			return err
		}
		c := cost{s, opts, database}
		if opts.json {
			err = c.writeJSON(os.Stdout)
		} else {
			err = c.writeTable(os.Stdout)
		}
		return cmp.Or(err, c.failure())
	}

	replay := func(label, path string, requests []int, writes float64) (outcome, error) {
		var done atomic.Int64
		defer showProgress(label, &done, len(requests))()
		updates := chooseUpdates(len(requests), writes)
		return newUsers(w, balancer, opts.clients).replay(peers.alive, path, requests, updates, &done)
	}
	direct := w.requests[:min(len(w.requests), directRequests)]
	if _, err := replay("warming up", "/direct/", direct[:min(len(direct), warmUpRequests)], 0); err != nil {
		return err
	}
	if r.direct, err = replay("straight to the database", "/direct/", direct, 0); err != nil {
		return err
	}
	if r.cached, err = replay("through Shoal", "/product/", w.requests, opts.writes); err != nil {
		return err
	}
	if r.stats, err = peers.stats(); err != nil {
		return err
	}

	if opts.json {
		err = r.writeJSON(os.Stdout)
	} else {
		err = r.writeTable(os.Stdout)
	}
	if err != nil {
		return err
	}
	if opts.keep {
		fmt.Fprint(os.Stderr, howToQuery(peers.addrs(), w.items[0].id, s.Changes))
		<-peers.alive.Done()
		if ctx.Err() == nil {
			return context.Cause(peers.alive)
		}
	}
	return r.failure()
}

func newWorkload(opts options) (*workload, error) {
	if opts.trace == "" {
		n := opts.requests
		if n == 0 {
			n = defaultRequests
		}
		return zipfWorkload(n), nil
	}
	w, err := traceWorkload(opts.trace)
	if err != nil {
		return nil, err
	}
	if n := opts.requests; n > 0 && n < len(w.requests) {
		w.requests = w.requests[:n]
	}
	return w, nil
}

// memoryFor returns how much memory lets every peer keep the whole database, were all of it its own: so nothing is
// evicted, and every load beyond the first of a key would be a fault.
func memoryFor(database string) (int64, error) {
	info, err := os.Stat(database)
	if err != nil {
		return 0, err
	}
	return 64<<20 + 2*info.Size(), nil
}
