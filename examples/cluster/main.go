// Cluster shows Shoal at work: it starts a few peers as processes of their own around one SQLite database, sends them
// what many users would ask for, first past the cache and then through it, and prints what came of both.
//
//	go run ./examples/cluster
//	go run ./examples/cluster -writes 0.05
//
// With -writes, some requests are updates, and no answer may be older than an update that was acknowledged before.
// It needs nothing else, stops by itself and leaves no process behind. The database is filled at the first start and
// kept in the user's cache directory.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
)

const (
	defaultRequests = 60_000
	directRequests  = 100_000 // at most so many go straight to the database: a long trace need not run twice
	warmUpRequests  = 2_000
)

type options struct {
	peers, requests, clients int
	writes                   float64
	trace                    string
	keep, json               bool
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("cluster: ")
	if len(os.Args) > 1 && os.Args[1] == peerMode {
		if err := runPeer(os.Args[2:]); err != nil {
			log.Fatal("peer: ", err)
		}
		return
	}

	var opts options
	flag.IntVar(&opts.peers, "peers", 3, "`number` of processes that share the cache")
	flag.IntVar(&opts.requests, "requests", 0, "`number` of requests; if 0, 60,000 or the whole trace")
	flag.IntVar(&opts.clients, "clients", 16, "`number` of requests on their way at once")
	flag.Float64Var(&opts.writes, "writes", 0, "`share` of the requests through Shoal that are updates, from 0 to 1")
	flag.StringVar(&opts.trace, "trace", "", "gzip `file` of requests to replay, a line each: key, or key and size in bytes")
	flag.BoolVar(&opts.keep, "keep", false, "leave the peers running after the load, until Ctrl-C")
	flag.BoolVar(&opts.json, "json", false, "print one JSON object in place of the table")
	flag.Parse()
	if flag.NArg() > 0 || opts.peers < 1 || opts.requests < 0 || opts.clients < 1 || !(opts.writes >= 0 && opts.writes <= 1) {
		flag.Usage()
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
	r := report{workload: w, peers: opts.peers, clients: opts.clients, database: database}
	changes := opts.writes > 0
	if changes {
		var remove func()
		if database, remove, err = copyDatabase(ctx, database); err != nil {
			return fmt.Errorf("copying the database: %w", err)
		}
		defer remove()
	}

	// alive ends with ctx, and if a peer dies.
	peers, alive, err := startPeers(ctx, opts.peers, database, changes, maxBytes)
	if err != nil {
		return err
	}
	defer peers.stop()
	if err := peers.ready(alive); err != nil {
		return err
	}

	// A client holds on to its connections, and so must the pool: as many to each peer as there are clients.
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: opts.clients, DisableCompression: true}}
	defer client.CloseIdleConnections() // those that were never used, a peer that is to end would wait for
	replay := func(label, path string, requests []int, writes float64) (outcome, error) {
		var done atomic.Int64
		defer showProgress(label, &done, len(requests))()
		updates := chooseUpdates(len(requests), writes)
		return w.replay(alive, client, peers.urls(path), requests, updates, opts.clients, &done)
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
	if r.stats, err = peers.stats(alive); err != nil {
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
		fmt.Fprint(os.Stderr, howToQuery(peers.addrs(), w.items[0].id, changes))
		<-alive.Done()
		if ctx.Err() == nil {
			return context.Cause(alive)
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
