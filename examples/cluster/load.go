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
	"strings"
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

// replay lets clients ask for what requests names, or update it where updates says so, in that order and below urls in
// turn, and adds to done what has been answered. It fails only if ctx ends; requests that fail, and answers that are
// older than they may be, are counted.
func (w *workload) replay(ctx context.Context, client *http.Client, urls []string, requests []int, updates []bool, clients int, done *atomic.Int64) (outcome, error) {
	o := outcome{requests: len(requests)}
	var (
		took     = make([]time.Duration, len(requests))
		promised = make(promises, len(w.items))
		next     atomic.Int64
		running  sync.WaitGroup
		mu       sync.Mutex // guards what o counts
	)
	begin := time.Now()
	for range clients {
		running.Go(func() {
			var body bytes.Buffer
			for i := int(next.Add(1)) - 1; i < len(requests) && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				product, method := requests[i], http.MethodGet
				if updates[i] {
					method = http.MethodPost
				}
				id := w.items[product].id
				least := promised[product].Load() // what is acknowledged from now on binds later requests
				sent := time.Now()
				err := ask(ctx, client, method, urls[i%len(urls)]+url.PathEscape(id), &body)
				took[i] = time.Since(sent)
				var revision int64
				if err == nil {
					revision, err = check(body.Bytes(), id)
				}
				var stale error
				switch {
				case err != nil:
				case updates[i]:
					promised.keep(product, revision)
				case revision < least:
					stale = fmt.Errorf("product %q at revision %d, when an update to %d had been acknowledged", id, revision, least)
				}
				if err != nil || stale != nil {
					mu.Lock()
					o.count(err, stale)
					mu.Unlock()
				}
				done.Add(1)
			}
		})
	}
	running.Wait()
	o.elapsed = time.Since(begin)
	for i, update := range updates {
		if update {
			o.writes = append(o.writes, took[i])
		} else {
			o.reads = append(o.reads, took[i])
		}
	}
	o.updates = len(o.writes)
	slices.Sort(o.reads)
	slices.Sort(o.writes)
	return o, context.Cause(ctx)
}

// count counts a request that has failed, or whose answer was stale.
func (o *outcome) count(failed, stale error) {
	if failed != nil {
		o.errors++
		o.firstErr = cmp.Or(o.firstErr, failed)
	}
	if stale != nil {
		o.staleReads++
		o.firstStale = cmp.Or(o.firstStale, stale)
	}
}

// ask sends a request and reads the answer into body, as its last user leaves it.
func ask(ctx context.Context, client *http.Client, method, url string, body *bytes.Buffer) error {
	body.Reset()
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := body.ReadFrom(resp.Body); err != nil {
		return fmt.Errorf("%s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", url, resp.Status, strings.TrimSpace(body.String()))
	}
	return nil
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
