package main

// peer.go: a peer, as a process of its own. This is what an application that embeds Shoal looks like; only where its
// settings come from is the demo's: it reads them from its standard input.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/discovery/memberlist"
)

// peerMode is the first argument that makes a process a peer. Its settings come from its standard input, in JSON. When it
// listens, it says so by a line, and reads whom to look for: a list of addresses.
const peerMode = "peer"

// settings are what a peer is told.
type settings struct {
	ID       string        // its own name
	Addr     string        // where it serves users and peers, a base URL
	Gossip   string        // where it gossips, host:port; if empty, the peers are a static list
	Database string        // the file
	Changes  bool          // whether that is updated
	Latency  time.Duration // what a query takes longer than this file does
	Ledger   string        // where to write down what is loaded, if not empty
	Owners   int           // how many peers keep each product
	MaxBytes int64         // memory for the group
}

// shutdownTime is how long a peer may take to hand over what it holds, and then to answer the users it has.
const shutdownTime = 10 * time.Second

func runPeer() error {
	signal.Ignore(os.Interrupt) // Ctrl-C reaches the parent too, and that decides what becomes of its peers
	terminated, end := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer end()

	stdin := json.NewDecoder(os.Stdin)
	var s settings
	if err := stdin.Decode(&s); err != nil {
		return fmt.Errorf("this mode is for processes that the demo starts: reading the settings: %w", err)
	}
	log.SetPrefix(s.ID + ": ")
	db, err := openDatabase(s.Database, s.Changes)
	if err != nil {
		return err
	}
	db.latency = s.Latency
	load := db.product
	if s.Ledger != "" {
		ledger, err := openLedger(s.Ledger, s.ID)
		if err != nil {
			return err
		}
		load = ledger.of(load)
	}
	listener, err := net.Listen("tcp", strings.TrimPrefix(s.Addr, "http://"))
	if err != nil {
		return err
	}
	fmt.Println(s.ID, "listens at", s.Addr)
	var known []string
	if err := stdin.Decode(&known); err != nil {
		return fmt.Errorf("reading whom to look for: %w", err)
	}

	discovery := shoal.Static(known...)
	if s.Gossip != "" {
		if discovery, err = memberlist.New(&memberlist.Options{Bind: s.Gossip, Seeds: known}); err != nil {
			return err
		}
	}
	cache, err := shoal.New(&shoal.Options{ID: s.ID, Self: s.Addr, Discovery: discovery})
	if err != nil {
		return err
	}
	products := shoal.NewGroup(cache, "products", load, &shoal.GroupOptions[Product]{
		MaxBytes: s.MaxBytes, Owners: s.Owners,
	})

	// An update is first in the database, and then nowhere else an older product. Only when that is so does the client
	// hear of it: no peer answers with an older one from then on.
	update := func(ctx context.Context, id string) (Product, error) {
		product, err := db.update(ctx, id)
		if err != nil {
			return Product{}, err
		}
		return product, products.Remove(ctx, id)
	}

	mux := http.NewServeMux()
	mux.Handle("/_shoal/", cache)
	mux.Handle("GET /product/{id}", serve(products.Get))
	mux.Handle("POST /product/{id}", serve(update))
	mux.Handle("GET /direct/{id}", serve(db.product))
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, r *http.Request) { writeJSON(w, products.Stats()) })
	mux.HandleFunc("GET /peers", func(w http.ResponseWriter, r *http.Request) { writeJSON(w, cache.Peers()) })
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, r *http.Request) {
		if err := cache.Ready(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})

	server := &http.Server{Handler: mux}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	alone := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin) // until the parent closes it, or is no more
		close(alone)
	}()
	select {
	case <-terminated.Done():
	case <-alone: // all peers end, and there is nobody to hand over to
		return nil
	}

	// The cache first: it hands over what it holds, and goes on to answer users.
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTime)
	defer cancel()
	err = cache.Shutdown(ctx)
	ctx, cancel = context.WithTimeout(context.Background(), shutdownTime)
	defer cancel()
	err = errors.Join(err, server.Shutdown(ctx))
	if serveErr := <-served; serveErr != http.ErrServerClosed {
		err = errors.Join(err, serveErr)
	}
	return err
}

// serve answers requests for a product with what get returns for it: the group's Get, the database's and an update have
// one form.
func serve(get shoal.Getter[Product]) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		product, err := get(r.Context(), r.PathValue("id"))
		switch {
		case errors.Is(err, shoal.ErrNotFound):
			http.NotFound(w, r)
		case err != nil:
			http.Error(w, err.Error(), http.StatusInternalServerError)
		default:
			writeJSON(w, product)
		}
	})
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v) // an error means that the client has gone
}
