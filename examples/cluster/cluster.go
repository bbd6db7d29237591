package main

// cluster.go: the peers as their parent sees them, processes that it starts, asks and stops.

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/shoalcache/shoal"
)

// A cluster is the peers that this process has started.
type cluster struct {
	processes []process
	cancel    context.CancelCauseFunc
	running   sync.WaitGroup
}

// A process is a peer. It lives no longer than its standard input, which its parent cannot outlive: so none is left
// behind, whatever the parent dies of.
type process struct {
	addr  string
	stdin io.Writer
}

// startPeers starts n peers and tells them of each other. The context that it returns ends with ctx, and also when one
// of them does.
func startPeers(ctx context.Context, n int, database string, changes bool, maxBytes int64) (*cluster, context.Context, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	c := &cluster{cancel: cancel}
	args := []string{peerMode, database, strconv.FormatBool(changes), strconv.FormatInt(maxBytes, 10)}
	if err := c.startAll(ctx, n, self, args...); err != nil {
		c.stop()
		return nil, nil, fmt.Errorf("starting the peers: %w", err)
	}
	return c, ctx, nil
}

// startAll starts n processes, and tells each the addresses of all.
func (c *cluster) startAll(ctx context.Context, n int, name string, args ...string) error {
	for range n {
		if err := c.start(ctx, name, args...); err != nil {
			return err
		}
	}
	addrs := strings.Join(c.addrs(), " ")
	for _, p := range c.processes {
		if _, err := fmt.Fprintln(p.stdin, addrs); err != nil {
			return err
		}
	}
	return nil
}

// start starts one process and waits for its address.
func (c *cluster) start(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Cancel = stdin.Close         // asks it to end,
	cmd.WaitDelay = 10 * time.Second // and after that, makes it
	if err := cmd.Start(); err != nil {
		return err
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	addr := strings.TrimSpace(line)
	c.processes = append(c.processes, process{addr, stdin})
	c.running.Go(func() {
		err := cmd.Wait()
		if ctx.Err() == nil {
			c.cancel(fmt.Errorf("peer %s has ended by itself: %v", addr, cmd.ProcessState))
		} else if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			log.Printf("peer %s: %v", addr, err)
		}
	})
	if err != nil {
		return fmt.Errorf("a peer ended before it gave its address: %w", err)
	}
	return nil
}

// stop ends the peers and returns when they are gone.
func (c *cluster) stop() {
	c.cancel(nil)
	c.running.Wait()
}

func (c *cluster) addrs() []string { return c.urls("") }

// urls returns path at each peer.
func (c *cluster) urls(path string) []string {
	urls := make([]string, len(c.processes))
	for i, p := range c.processes {
		urls[i] = p.addr + path
	}
	return urls
}

// ready waits until every peer sees all of them: before that, two could take themselves for the owner of a key, and each
// would load it.
func (c *cluster) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("this takes too long"))
	defer cancel()
	for _, url := range c.urls("/ready") {
		for {
			_, err := fetch(ctx, url)
			if err == nil {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("waiting for the peers to see each other: %w: %w", context.Cause(ctx), err)
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	return nil
}

// stats returns what the peers have counted, summed.
func (c *cluster) stats(ctx context.Context) (sum shoal.GroupStats, err error) {
	for _, url := range c.urls("/stats") {
		body, err := fetch(ctx, url)
		if err != nil {
			return sum, err
		}
		var st shoal.GroupStats
		if err := json.Unmarshal(body, &st); err != nil {
			return sum, fmt.Errorf("%s: %w", url, err)
		}
		sum.Gets += st.Gets
		sum.Hits += st.Hits
		sum.HotHits += st.HotHits
		sum.PeerHits += st.PeerHits
		sum.Loads += st.Loads
		sum.Errors += st.Errors
	}
	return sum, nil
}

// fetch returns the body at url.
func fetch(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, resp.Status, strings.TrimSpace(string(body)))
	}
	return body, err
}
