package main

// balancer.go: what stands between the users and the peers, as a load balancer does: it sends each request to a peer that
// is up.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// A balancer knows the peers that are up, which one goroutine adds and removes, and spreads requests over them. A request
// that finds no connection goes to another peer, and so does a read whose connection breaks before its answer has begun:
// as with nginx, unless it is told otherwise, or a proxy of Kubernetes' that retries.
type balancer struct {
	client    *http.Client
	endpoints atomic.Pointer[[]string]
	retried   atomic.Int64
}

// mostWait is how long a user waits for an answer.
const mostWait = 10 * time.Second

// newBalancer returns the balancer of clients that ask the peers at addrs.
func newBalancer(clients int, addrs ...string) *balancer {
	b := &balancer{client: &http.Client{
		// A client holds on to its connections, and so must the pool: as many to each peer as there are clients.
		Transport: &http.Transport{MaxIdleConnsPerHost: clients, DisableCompression: true},
		Timeout:   mostWait,
	}}
	b.endpoints.Store(&addrs)
	return b
}

func (b *balancer) add(addr string) {
	endpoints := append(slices.Clone(*b.endpoints.Load()), addr)
	b.endpoints.Store(&endpoints)
}

func (b *balancer) remove(addr string) {
	endpoints := slices.DeleteFunc(slices.Clone(*b.endpoints.Load()), func(a string) bool { return a == addr })
	b.endpoints.Store(&endpoints)
}

// ask sends the request of that number, the number telling to which peer, and reads the answer into body, as its last user
// leaves it.
func (b *balancer) ask(ctx context.Context, number int, method, path string, body *bytes.Buffer) error {
	for try := 0; ; try++ {
		endpoints := *b.endpoints.Load()
		if len(endpoints) == 0 {
			return errors.New("no peer is up")
		}
		err := ask(ctx, b.client, method, endpoints[(number+try)%len(endpoints)]+path, body)
		if err == nil || try+1 >= len(endpoints) || !isForAnother(method, err) || ctx.Err() != nil {
			return err
		}
		b.retried.Add(1)
	}
}

// isForAnother reports whether a request that has failed with err is sent to another peer.
func isForAnother(method string, err error) bool {
	unanswered, ok := errors.AsType[*url.Error](err)
	if !ok || unanswered.Timeout() {
		return false
	}
	connecting, ok := errors.AsType[*net.OpError](err)
	return method == http.MethodGet || ok && connecting.Op == "dial"
}

// ask sends a request and reads the answer into body. Its error is an *url.Error if no answer has begun.
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
