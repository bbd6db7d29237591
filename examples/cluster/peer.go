package main

// peer.go: a peer, as a process of its own. This is what an application that embeds Shoal looks like; only how it comes
// to know its peers is the demo's: it prints its address, and reads those of all from its standard input.

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"github.com/shoalcache/shoal"
)

// peerMode is the first argument that makes a process a peer. The database, whether it changes, and the memory for the
// group follow it.
const peerMode = "peer"

func runPeer(args []string) error {
	signal.Ignore(os.Interrupt) // Ctrl-C reaches the parent too, and that decides what becomes of its peers
	if len(args) != 3 {
		return errors.New("this mode is for processes that the demo starts")
	}
	changes, err := strconv.ParseBool(args[1])
	if err != nil {
		return err
	}
	db, err := openDatabase(args[0], changes)
	if err != nil {
		return err
	}
	maxBytes, err := strconv.ParseInt(args[2], 10, 64)
	if err != nil {
		return err
	}

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	self := "http://" + listener.Addr().String()
	fmt.Println(self)
	stdin := bufio.NewReader(os.Stdin)
	line, err := stdin.ReadString('\n')
	if err != nil {
		return fmt.Errorf("reading the peers' addresses: %w", err)
	}
	peers := strings.Fields(line)

	cache, err := shoal.New(&shoal.Options{Self: self, Discovery: shoal.Static(peers...)})
	if err != nil {
		return err
	}
	products := shoal.NewGroup(cache, "products", db.product, &shoal.GroupOptions[Product]{MaxBytes: maxBytes})

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
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, products.Stats())
	})
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, r *http.Request) {
		err := cache.Ready(r.Context())
		if n := len(cache.Peers()); err == nil && n != len(peers) {
			err = fmt.Errorf("%d of %d peers seen", n, len(peers))
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})

	server := &http.Server{Handler: mux}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()

	io.Copy(io.Discard, stdin) // until the parent closes it, or is no more
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err = errors.Join(cache.Shutdown(ctx), server.Shutdown(ctx))
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
