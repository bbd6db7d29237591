package main

// load.go: the users. Each sends a request, waits for the answer, and sends the next.

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// An outcome is what came of a number of requests.
type outcome struct {
	requests   int
	updates    int // of the requests; the others are reads
	errors     int
	firstErr   error
	staleReads int // answers older than an update that had been acknowledged before they were asked for
	firstStale error
	elapsed    time.Duration
	reads      latencies
	writes     latencies // of updates
}

// perSecond returns the requests a second, over all clients.
func (o outcome) perSecond() float64 { return float64(o.requests) / o.elapsed.Seconds() }

// failure returns an error if a request failed, or an answer was stale.
func (o outcome) failure() error {
	switch {
	case o.errors > 0:
		return fmt.Errorf("%d requests failed, the first with: %w", o.errors, o.firstErr)
	case o.staleReads > 0:
		return fmt.Errorf("%d reads were stale, the first: %w", o.staleReads, o.firstStale)
	}
	return nil
}

// slowest returns the latency of the slowest request.
func (o outcome) slowest() time.Duration { return max(o.reads.percentile(1), o.writes.percentile(1)) }

// latencies are those of requests, sorted.
type latencies []time.Duration

// percentile returns the latency that the share p of the requests did not exceed: a measured one, without interpolation.
// It is 0 if there were none.
func (l latencies) percentile(p float64) time.Duration {
	if len(l) == 0 {
		return 0
	}
	return l[max(int(math.Ceil(p*float64(len(l)))), 1)-1]
}

// promises are the latest revisions of products that clients have been told of, by index of the product: since an
// update to each was acknowledged, no answer to a later question may be older.
type promises []atomic.Int64

// keep takes note that an update to revision was acknowledged. Of two updates at once, either may be heard of first.
func (p promises) keep(product int, revision int64) {
	for latest := &p[product]; ; {
		known := latest.Load()
		if known >= revision || latest.CompareAndSwap(known, revision) {
			return
		}
	}
}

// users are those who ask.
type users struct {
	*workload
	balancer *balancer
	clients  int
	promised promises
}

func newUsers(w *workload, b *balancer, clients int) *users {
	return &users{w, b, clients, make(promises, len(w.items))}
}

// A request is for a product, by its index.
type request struct {
	product int
	update  bool
}

// replay lets users ask for what requests names, or update it where updates says so, in that order, and adds to done what
// has been answered.
func (u *users) replay(ctx context.Context, path string, requests []int, updates []bool, done *atomic.Int64) (outcome, error) {
	o := u.send(ctx, path, func(i int) (request, bool) {
		if i >= len(requests) {
			return request{}, false
		}
		return request{requests[i], updates[i]}, true
	}, func(request, time.Duration, error, error) { done.Add(1) })
	return o, context.Cause(ctx)
}

// send lets users ask below path for what nth names, by the number of the request, for as long as it does and ctx has not
// ended, and calls answered after each. Requests that fail, and answers that are older than they may be, are counted.
func (u *users) send(ctx context.Context, path string, nth func(int) (request, bool), answered func(r request, took time.Duration, failed, stale error)) outcome {
	var (
		o       outcome
		next    atomic.Int64
		running sync.WaitGroup
		mu      sync.Mutex // guards o
	)
	begin := time.Now()
	for range u.clients {
		running.Go(func() {
			var mine outcome
			var body bytes.Buffer
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				r, ok := nth(i)
				if !ok {
					break
				}
				took, failed, stale := u.ask(ctx, i, path, r, &body)
				if failed != nil && ctx.Err() != nil {
					break // nobody waits for it any more
				}
				mine.count(r.update, took, failed, stale)
				answered(r, took, failed, stale)
			}
			mu.Lock()
			defer mu.Unlock()
			o.add(mine)
		})
	}
	running.Wait()
	o.elapsed = time.Since(begin)
	slices.Sort(o.reads)
	slices.Sort(o.writes)
	return o
}

// ask sends the request of that number, and checks the answer.
func (u *users) ask(ctx context.Context, number int, path string, r request, body *bytes.Buffer) (took time.Duration, failed, stale error) {
	id, method := u.items[r.product].id, http.MethodGet
	if r.update {
		method = http.MethodPost
	}
	least := u.promised[r.product].Load() // what is acknowledged from now on binds later requests
	sent := time.Now()
	err := u.balancer.ask(ctx, number, method, path+url.PathEscape(id), body)
	took = time.Since(sent)
	if err != nil {
		return took, err, nil
	}
	revision, err := check(body.Bytes(), id)
	switch {
	case err != nil:
		return took, err, nil
	case r.update:
		u.promised.keep(r.product, revision)
	case revision < least:
		stale = fmt.Errorf("product %q at revision %d, when an update to %d had been acknowledged", id, revision, least)
	}
	return took, nil, stale
}

// count counts a request, which may have failed, or its answer be stale.
func (o *outcome) count(update bool, took time.Duration, failed, stale error) {
	o.requests++
	if update {
		o.updates++
		o.writes = append(o.writes, took)
	} else {
		o.reads = append(o.reads, took)
	}
	if failed != nil {
		o.errors++
		o.firstErr = cmp.Or(o.firstErr, failed)
	}
	if stale != nil {
		o.staleReads++
		o.firstStale = cmp.Or(o.firstStale, stale)
	}
}

// add adds what is in other, but for its time.
func (o *outcome) add(other outcome) {
	o.requests += other.requests
	o.updates += other.updates
	o.errors += other.errors
	o.firstErr = cmp.Or(o.firstErr, other.firstErr)
	o.staleReads += other.staleReads
	o.firstStale = cmp.Or(o.firstStale, other.firstStale)
	o.reads = append(o.reads, other.reads...)
	o.writes = append(o.writes, other.writes...)
}

// check returns the revision of an answer, or an error if it is not the product asked for. Decoding it would cost the
// users more than the peers, so it looks at the beginning only.
func check(body []byte, id string) (revision int64, err error) {
	begin, err := json.Marshal(id)
	if err != nil {
		return 0, err
	}
	begin = append([]byte(`{"id":`), append(begin, `,"revision":`...)...)
	rest, ok := bytes.CutPrefix(body, begin)
	digits, _, ended := bytes.Cut(rest, []byte(","))
	revision, err = strconv.ParseInt(string(digits), 10, 64)
	if !ok || !ended || err != nil {
		return 0, fmt.Errorf("asked for product %q, answered %.60q", id, body)
	}
	return revision, nil
}
