package cachetest

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// faults are what goes wrong between the caches of a Cluster.
type faults struct {
	mu sync.Mutex // guards all of it
	fault
	rand  *rand.Rand
	under map[*exchange]bool // exchanges under way
}

// A fault is what is wrong now.
type fault struct {
	down  map[int]bool
	dead  map[int]bool // no process is there
	side  map[int]int  // of a partition; those that differ hear nothing of each other
	delay map[link]time.Duration
	loss  map[link]float64
}

// A link is one direction between two caches.
type link struct{ from, to int }

// An exchange is a question under way, or its answer.
type exchange struct {
	link
	by     *faulty
	cancel context.CancelCauseFunc
}

var (
	errDown = errors.New("cachetest: connection refused")
	errLost = errors.New("cachetest: lost")
)

func newFaults() *faults {
	return &faults{
		fault: fault{map[int]bool{}, map[int]bool{}, map[int]int{}, map[link]time.Duration{}, map[link]float64{}},
		rand:  rand.New(rand.NewPCG(1, 2)),
		under: make(map[*exchange]bool),
	}
}

// set changes what is wrong, and ends exchanges of caches that are down.
func (f *faults) set(change func(*fault)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.fault)
	for e := range f.under {
		if f.cut(e.link) {
			e.cancel(errDown)
		}
	}
}

// kill ends for ever what t carries, and what goes to where t is, until started.
func (f *faults) kill(t *faulty) {
	f.set(func(f *fault) {
		if !t.dead {
			t.dead, f.dead[t.from] = true, true
		}
	})
}

// started takes note that there is a process at i again.
func (f *faults) started(i int) { f.set(func(f *fault) { delete(f.dead, i) }) }

// cut reports whether nothing goes over l, and whoever tries hears so at once.
func (f *fault) cut(l link) bool {
	return f.down[l.from] || f.down[l.to] || f.dead[l.from] || f.dead[l.to]
}

// begin notes that an exchange is under way, until end.
func (f *faults) begin(e *exchange) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.under[e] = true
	if e.by.dead {
		e.cancel(errDown)
	}
}

func (f *faults) end(e *exchange) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.under, e)
}

// travel takes as long as what is said on l needs to arrive: for what does not, until ctx ends.
func (f *faults) travel(ctx context.Context, l link) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	delay, err := f.fate(l, true)
	if err == nil && delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
			_, err = f.fate(l, false)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if err == errLost {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return err
}

// fate says what becomes of something said on l: how long it takes, or why it does not arrive.
func (f *faults) fate(l link, starting bool) (time.Duration, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.cut(l):
		return 0, errDown
	case f.side[l.from] != f.side[l.to]:
		return 0, errLost
	case starting && f.loss[l] > 0 && f.rand.Float64() < f.loss[l]:
		return 0, errLost
	}
	return f.delay[l], nil
}

// faulty is the transport of one process, with the faults between it and others.
type faulty struct {
	faults *faults
	from   int
	index  func(*url.URL) int
	next   http.RoundTripper
	dead   bool // guarded by that of faults
}

func (t *faulty) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	e := &exchange{link{t.from, t.index(req.URL)}, t, cancel}
	t.faults.begin(e)
	over := func() {
		t.faults.end(e)
		cancel(nil)
	}
	if err := t.faults.travel(ctx, e.link); err != nil {
		over()
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, err
	}
	req = req.WithContext(ctx)
	stream := req.Body != nil && req.GetBody == nil // what is said on it comes bit by bit
	if stream {
		req.Body = &faultyBody{req.Body, ctx, t.faults, e.link, func() {}, true}
	}
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		over()
		return nil, err
	}
	back := link{e.to, e.from}
	if err := t.faults.travel(ctx, back); err != nil {
		over()
		resp.Body.Close()
		return nil, err
	}
	resp.Body = &faultyBody{resp.Body, ctx, t.faults, back, over, stream}
	return resp, nil
}

// CloseIdleConnections closes those of the transport behind.
func (t *faulty) CloseIdleConnections() {
	if next, ok := t.next.(interface{ CloseIdleConnections() }); ok {
		next.CloseIdleConnections()
	}
}

// faultyBody is the rest of an answer, which has the same way to go as its beginning, or what is said on a stream. What
// comes later takes as long. If some of a stream is lost, nothing comes any more, as on a connection that has died.
type faultyBody struct {
	io.ReadCloser
	ctx    context.Context
	faults *faults
	link   link
	over   func()
	stream bool
}

func (b *faultyBody) Read(p []byte) (n int, err error) {
	began := time.Now()
	n, err = b.ReadCloser.Read(p)
	delay, fate := b.faults.fate(b.link, b.stream)
	if fate == nil && delay > 0 && (b.stream || time.Now().After(began)) {
		fate = b.faults.travel(b.ctx, b.link)
	}
	if fate == errLost {
		<-b.ctx.Done()
	} else if fate != nil {
		return 0, fate
	}
	if b.ctx.Err() != nil {
		return 0, context.Cause(b.ctx)
	}
	return n, err
}

func (b *faultyBody) Close() error {
	b.over()
	return b.ReadCloser.Close()
}
