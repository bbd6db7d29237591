package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestPercentile(t *testing.T) {
	for _, test := range []struct {
		n    int
		p    float64
		want time.Duration
	}{
		{1, 0.50, 1}, {1, 0.99, 1}, {2, 0.50, 1}, {3, 0.50, 2}, {10, 0.99, 10}, {100, 0.99, 99}, {101, 0.99, 100},
		{1000, 0.99, 990}, {10, 0, 1}, {10, 1, 10},
	} {
		if got := millisUpTo(test.n).percentile(test.p); got != test.want*time.Millisecond {
			t.Errorf("p%v of 1 to %d is %v", 100*test.p, test.n, got)
		}
	}
	if got := latencies(nil).percentile(0.50); got != 0 {
		t.Errorf("p50 of none is %v", got)
	}
}

func TestReplay(t *testing.T) {
	var (
		mu    sync.Mutex
		asked = make(map[string]int) // what each server was asked for
		urls  []string
	)
	for i := range 2 {
		mux := http.NewServeMux()
		mux.HandleFunc("GET /product/{id}", func(w http.ResponseWriter, r *http.Request) {
			id := r.PathValue("id")
			mu.Lock()
			asked[fmt.Sprintf("%d %s", i, id)]++
			mu.Unlock()
			switch id {
			case "missing":
				http.NotFound(w, r)
			case "mistaken":
				writeJSON(w, Product{ID: "other"})
			default:
				writeJSON(w, Product{ID: id})
			}
		})
		server := httptest.NewServer(mux)
		defer server.Close()
		urls = append(urls, server.URL)
	}

	w := &workload{items: []item{{id: "a"}, {id: "b/c d"}, {id: "missing"}, {id: "mistaken"}}}
	var done atomic.Int64
	o, err := newUsers(w, newBalancer(3, urls...), 3).replay(t.Context(), "/product/", []int{0, 1, 1, 0, 2, 3}, make([]bool, 6), &done)
	if err != nil {
		t.Fatal(err)
	}
	if o.requests != 6 || o.errors != 2 || o.firstErr == nil || len(o.reads) != 6 || o.reads[0] <= 0 || done.Load() != 6 {
		t.Errorf("%+v, %d done", o, done.Load())
	}
	if got, want := fmt.Sprint(asked), "map[0 a:1 0 b/c d:1 0 missing:1 1 a:1 1 b/c d:1 1 mistaken:1]"; got != want {
		t.Errorf("asked %s, want %s", got, want)
	}

	stopped := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stopped)
	if _, err := newUsers(w, newBalancer(1, urls...), 1).replay(ctx, "/product/", []int{0, 1}, make([]bool, 2), &done); err != stopped {
		t.Errorf("an ended context: %v", err)
	}
}

// A forgetful server counts updates, and answers reads without them, as a cache does that was not told.
func forgetful(t *testing.T) (url string) {
	var updates atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("GET /product/{id}", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, Product{ID: r.PathValue("id"), Revision: 1})
	})
	mux.HandleFunc("POST /product/{id}", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("id") == "broken" {
			http.Error(w, "broken", http.StatusInternalServerError)
			return
		}
		writeJSON(w, Product{ID: r.PathValue("id"), Revision: updates.Add(1)})
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL
}

func TestReplayNoticesStaleReads(t *testing.T) {
	w := &workload{items: []item{{id: "a"}, {id: "b"}, {id: "broken"}}}
	requests := []int{0, 0, 0, 0, 0, 1, 2, 2}
	updates := []bool{false, true, false, true, false, false, true, false}
	// Of product a, revision 1 is right after the first update and stale after the second. Nobody was promised more of
	// the others.
	var done atomic.Int64
	o, err := newUsers(w, newBalancer(1, forgetful(t)), 1).replay(t.Context(), "/product/", requests, updates, &done)
	if err != nil {
		t.Fatal(err)
	}
	if o.requests != 8 || o.updates != 3 || len(o.reads) != 5 || len(o.writes) != 3 || o.errors != 1 || o.staleReads != 1 {
		t.Errorf("%+v", o)
	}
	const want = `product "a" at revision 1, when an update to 2 had been acknowledged`
	if o.firstStale == nil || o.firstStale.Error() != want {
		t.Errorf("stale: %v, want %s", o.firstStale, want)
	}
}

func TestPromisesOnlyGrow(t *testing.T) {
	p := make(promises, 2)
	var running sync.WaitGroup
	for revision := range int64(100) {
		running.Go(func() { p.keep(1, revision) })
	}
	running.Wait()
	if p[0].Load() != 0 || p[1].Load() != 99 {
		t.Errorf("promised %d and %d", p[0].Load(), p[1].Load())
	}
}

func TestCheck(t *testing.T) {
	for body, want := range map[string]int64{
		`{"id":"a\"b","revision":0,"name":""}`:  0,
		`{"id":"a\"b","revision":12,"name":""}`: 12,
		`{"id":"a\"b","revision":12`:            -1,
		`{"id":"a\"b","revision":,"name":""}`:   -1,
		`{"id":"a\"b","name":""}`:               -1,
		`{"id":"a","revision":12,"name":""}`:    -1,
		``:                                      -1,
	} {
		if got, err := check([]byte(body), `a"b`); got != max(want, 0) || (err != nil) != (want < 0) {
			t.Errorf("%s: revision %d, %v", body, got, err)
		}
	}
}
