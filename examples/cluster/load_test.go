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
		if got := (outcome{latencies: latencies(test.n)}).percentile(test.p); got != test.want*time.Millisecond {
			t.Errorf("p%v of 1 to %d is %v", 100*test.p, test.n, got)
		}
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
		urls = append(urls, server.URL+"/product/")
	}

	w := &workload{items: []item{{id: "a"}, {id: "b/c d"}, {id: "missing"}, {id: "mistaken"}}}
	var done atomic.Int64
	o, err := w.replay(t.Context(), http.DefaultClient, urls, []int{0, 1, 1, 0, 2, 3}, 3, &done)
	if err != nil {
		t.Fatal(err)
	}
	if o.requests != 6 || o.errors != 2 || o.firstErr == nil || len(o.latencies) != 6 || o.latencies[0] <= 0 || done.Load() != 6 {
		t.Errorf("%+v, %d done", o, done.Load())
	}
	if got, want := fmt.Sprint(asked), "map[0 a:1 0 b/c d:1 0 missing:1 1 a:1 1 b/c d:1 1 mistaken:1]"; got != want {
		t.Errorf("asked %s, want %s", got, want)
	}

	stopped := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stopped)
	if _, err := w.replay(ctx, http.DefaultClient, urls, []int{0, 1}, 1, &done); err != stopped {
		t.Errorf("an ended context: %v", err)
	}
}
