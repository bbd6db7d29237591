package main

// load.go: the users. Each sends a request, waits for the answer, and sends the next.

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// An outcome is what came of a number of requests.
type outcome struct {
	requests  int
	errors    int
	firstErr  error
	elapsed   time.Duration
	latencies []time.Duration // of all requests, sorted
}

// perSecond returns the requests a second, over all clients.
func (o outcome) perSecond() float64 { return float64(o.requests) / o.elapsed.Seconds() }

// percentile returns the latency that the share p of all requests did not exceed: a measured one, without interpolation.
func (o outcome) percentile(p float64) time.Duration {
	return o.latencies[max(int(math.Ceil(p*float64(len(o.latencies)))), 1)-1]
}

// replay lets clients ask for what requests names, in that order and below urls in turn, and adds to done what has been
// answered. It fails only if ctx ends; requests that fail are counted.
func (w *workload) replay(ctx context.Context, client *http.Client, urls []string, requests []int, clients int, done *atomic.Int64) (outcome, error) {
	o := outcome{requests: len(requests), latencies: make([]time.Duration, len(requests))}
	var (
		next    atomic.Int64
		running sync.WaitGroup
		mu      sync.Mutex // guards o.errors and o.firstErr
	)
	begin := time.Now()
	for range clients {
		running.Go(func() {
			var body bytes.Buffer
			for i := int(next.Add(1)) - 1; i < len(requests) && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				id := w.items[requests[i]].id
				sent := time.Now()
				err := ask(ctx, client, urls[i%len(urls)]+url.PathEscape(id), &body)
				o.latencies[i] = time.Since(sent)
				if err == nil {
					err = check(body.Bytes(), id)
				}
				if err != nil {
					mu.Lock()
					o.errors++
					if o.firstErr == nil {
						o.firstErr = err
					}
					mu.Unlock()
				}
				done.Add(1)
			}
		})
	}
	running.Wait()
	o.elapsed = time.Since(begin)
	slices.Sort(o.latencies)
	return o, context.Cause(ctx)
}

// ask gets url and reads the answer into body, as its last user leaves it.
func ask(ctx context.Context, client *http.Client, url string, body *bytes.Buffer) error {
	body.Reset()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
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

// check reports an answer that is not the product asked for. Decoding it would cost the users more than the peers, so it
// looks at the beginning only.
func check(body []byte, id string) error {
	quoted, err := json.Marshal(id)
	if err != nil {
		return err
	}
	rest, ok := bytes.CutPrefix(body, []byte(`{"id":`))
	if !ok || !bytes.HasPrefix(rest, quoted) {
		return fmt.Errorf("asked for product %q, answered %.60q", id, body)
	}
	return nil
}
