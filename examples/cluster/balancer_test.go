package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
)

// servers starts one that is up, one that breaks each connection, one that breaks each answer, and one that is down.
func servers(t *testing.T) (up, breaks, cuts, down string) {
	start := func(answer http.HandlerFunc) *httptest.Server {
		s := httptest.NewServer(answer)
		t.Cleanup(s.Close)
		return s
	}
	up = start(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "up") }).URL
	breaks = start(func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }).URL
	cuts = start(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		fmt.Fprint(w, "cut")
	}).URL
	gone := start(nil)
	down = gone.URL
	gone.Close()
	return up, breaks, cuts, down
}

func TestBalancerSendsToAnotherPeerWhatNobodyHasAnswered(t *testing.T) {
	up, breaks, cuts, down := servers(t)
	for _, test := range []struct {
		name, method, first string
		fails               bool
		retried             int64
	}{
		{"a read that finds no connection", http.MethodGet, down, false, 1},
		{"an update that finds no connection", http.MethodPost, down, false, 1},
		{"a read whose connection breaks", http.MethodGet, breaks, false, 1},
		{"an update whose connection breaks", http.MethodPost, breaks, true, 0}, // it may have happened
		{"a read whose answer breaks", http.MethodGet, cuts, true, 0},
		{"a read", http.MethodGet, up, false, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBalancer(1, test.first, up)
			defer b.client.CloseIdleConnections()
			var body bytes.Buffer
			err := b.ask(t.Context(), 0, test.method, "/", &body)
			if (err != nil) != test.fails || err == nil && body.String() != "up" || b.retried.Load() != test.retried {
				t.Errorf("%q, %v, sent to another %d times", &body, err, b.retried.Load())
			}
		})
	}
}

func TestBalancerAsksEachPeerOnce(t *testing.T) {
	_, breaks, _, down := servers(t)
	b := newBalancer(1, down, breaks)
	defer b.client.CloseIdleConnections()
	if err := b.ask(t.Context(), 0, http.MethodGet, "/", new(bytes.Buffer)); err == nil || b.retried.Load() != 1 {
		t.Errorf("%v, sent to another %d times", err, b.retried.Load())
	}
}

func TestBalancerAsksThoseThatAreUp(t *testing.T) {
	up, breaks, _, _ := servers(t)
	b := newBalancer(1, breaks)
	defer b.client.CloseIdleConnections()
	b.add(up)
	b.remove(breaks)
	for i := range 4 {
		if err := b.ask(t.Context(), i, http.MethodPost, "/", new(bytes.Buffer)); err != nil {
			t.Error(err)
		}
	}
	b.remove(up)
	if err := b.ask(t.Context(), 0, http.MethodGet, "/", new(bytes.Buffer)); err == nil {
		t.Error("no error where nobody is up")
	}
}
