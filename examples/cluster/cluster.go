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
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoalcache/shoal"
)

// A cluster is the peers that this process has started. Its methods are for one goroutine.
type cluster struct {
	settings                  // of all peers: no ID, no addresses
	gossips  bool             // they find each other so
	places   []*place         // of peers that should be there
	retired  shoal.GroupStats // of peers that are not there any more

	program string
	args    []string
	alive   context.Context // ends with what was given, and when a peer ends that should not
	cancel  context.CancelCauseFunc
	running sync.WaitGroup
}

// A place is what stays of a peer when its process is another: its name and its addresses.
type place struct {
	settings
	*process
}

// A process is that of a peer. It lives no longer than its standard input, which its parent cannot outlive: so none is
// left behind, whatever the parent dies of.
type process struct {
	*os.Process
	stdin    io.WriteCloser
	expected atomic.Bool   // its end is
	gone     chan struct{} // closed when it has ended
}

// startPeers starts n peers that see each other. The context of the cluster ends with ctx, and also when one of them does.
func startPeers(ctx context.Context, n int, gossips bool, s settings) (*cluster, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &cluster{settings: s, gossips: gossips, program: self, args: []string{peerMode}}
	c.alive, c.cancel = context.WithCancelCause(ctx)
	if err := c.startAll(n); err != nil {
		c.stop()
		return nil, fmt.Errorf("starting the peers: %w", err)
	}
	return c, nil
}

func (c *cluster) startAll(n int) error {
	for range n {
		p, err := c.newPlace()
		if err != nil {
			return err
		}
		if err := c.start(p); err != nil {
			return err
		}
		c.places = append(c.places, p)
	}
	for i, p := range c.places {
		if err := p.tell(c.known(c.places[:i])); err != nil {
			return err
		}
		if !c.gossips {
			continue // it waits for those that are told after it
		}
		if err := c.ready(p); err != nil {
			return err
		}
	}
	return c.seeEachOther()
}

// newPlace returns one that no peer has.
func (c *cluster) newPlace() (*place, error) {
	p := &place{settings: c.settings}
	p.ID = fmt.Sprintf("peer-%d", len(c.places)+1)
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	p.Addr = "http://" + addr
	if c.gossips {
		p.Gossip, err = freeAddr()
	}
	return p, err
}

// freeAddr returns an address of this machine at which nobody listens, and from which nobody calls while it is not in use:
// systems choose the ports of outgoing connections above those of which this one is.
func freeAddr() (addr string, err error) {
	for range 100 {
		addr = fmt.Sprintf("127.0.0.1:%d", 20_000+rand.N(12_000))
		var l net.Listener
		if l, err = net.Listen("tcp", addr); err != nil {
			continue
		}
		var p net.PacketConn
		p, err = net.ListenPacket("udp", addr) // memberlist needs both
		l.Close()
		if err == nil {
			p.Close()
			return addr, nil
		}
	}
	return "", fmt.Errorf("looking for a free port: %w", err)
}

// known returns what a peer is told of others: where those that are up gossip, or who all are.
func (c *cluster) known(up []*place) []string {
	known := []string{}
	if !c.gossips {
		return append(known, c.addrs()...)
	}
	for _, p := range up {
		known = append(known, p.Gossip)
	}
	return known
}

// start starts the process of p, and waits until it listens.
func (c *cluster) start(p *place) error {
	cmd := exec.CommandContext(c.alive, c.program, c.args...)
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
	process := &process{Process: cmd.Process, stdin: stdin, gone: make(chan struct{})}
	told := json.NewEncoder(stdin).Encode(p.settings)
	_, err = bufio.NewReader(stdout).ReadString('\n')
	c.running.Go(func() {
		defer close(process.gone)
		err := cmd.Wait()
		if c.alive.Err() == nil && !process.expected.Load() {
			c.cancel(fmt.Errorf("%s has ended by itself: %v", p.ID, cmd.ProcessState))
		} else if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
			log.Printf("%s: %v", p.ID, err)
		}
	})
	if err = errors.Join(told, err); err != nil {
		return fmt.Errorf("%s ended before it listened: %w", p.ID, err)
	}
	p.process = process
	return nil
}

// tell tells p whom to look for.
func (p *place) tell(known []string) error { return json.NewEncoder(p.stdin).Encode(known) }

// up returns the places of which the peers are up.
func (c *cluster) up() []*place {
	var up []*place
	for _, p := range c.places {
		if p.process != nil {
			up = append(up, p)
		}
	}
	return up
}

// begin starts p among the others, and waits until it is ready, as it says itself.
func (c *cluster) begin(p *place) error {
	others := c.up()
	if err := c.start(p); err != nil {
		return err
	}
	if err := p.tell(c.known(others)); err != nil {
		return err
	}
	return c.ready(p)
}

// end ends the process of p by a signal, and waits until it is gone.
func (c *cluster) end(p *place, by os.Signal) error {
	stats, err := p.stats(c.alive)
	if err != nil {
		return err
	}
	add(&c.retired, stats)
	p.expected.Store(true)
	if err := p.Signal(by); err != nil {
		p.stdin.Close() // Windows knows no such signal
	}
	select {
	case <-p.gone:
		p.process = nil
		return nil
	case <-time.After(3 * shutdownTime):
		return fmt.Errorf("%s does not end", p.ID)
	}
}

// stop ends the peers and returns when they are gone.
func (c *cluster) stop() {
	c.cancel(nil)
	c.running.Wait()
}

// addrs returns the base URLs of all peers.
func (c *cluster) addrs() []string {
	var addrs []string
	for _, p := range c.places {
		addrs = append(addrs, p.Addr)
	}
	return addrs
}

// ready waits until p says that it is ready.
func (c *cluster) ready(p *place) error {
	return c.await(p.ID+" to be ready", func(ctx context.Context) error {
		_, err := fetch(ctx, p.Addr+"/ready")
		return err
	})
}

// seeEachOther waits until every peer sees all of them: before that, two could take themselves for the owner of a key, and
// each would load it.
func (c *cluster) seeEachOther() error {
	for _, p := range c.places {
		if err := c.ready(p); err != nil {
			return err
		}
	}
	return c.await("the peers to see each other", func(ctx context.Context) error {
		for _, p := range c.places {
			body, err := fetch(ctx, p.Addr+"/peers")
			var seen []shoal.Peer
			if err == nil {
				err = json.Unmarshal(body, &seen)
			}
			if err == nil && len(seen) != len(c.places) {
				err = fmt.Errorf("%s sees %d of %d", p.ID, len(seen), len(c.places))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// await tries until it succeeds, or this takes too long.
func (c *cluster) await(what string, try func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(c.alive, 30*time.Second, errors.New("this takes too long"))
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w: %w", what, context.Cause(ctx), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stats returns what the peers have counted, summed: all of it up to now, that of peers that have ended up to just before.
func (c *cluster) stats() (shoal.GroupStats, error) {
	sum := c.retired
	for _, p := range c.places {
		st, err := p.stats(c.alive)
		if err != nil {
			return sum, err
		}
		add(&sum, st)
	}
	return sum, nil
}

// stats returns what the process of p has counted.
func (p *place) stats(ctx context.Context) (st shoal.GroupStats, err error) {
	body, err := fetch(ctx, p.Addr+"/stats")
	if err == nil {
		err = json.Unmarshal(body, &st)
	}
	return st, err
}

func add(sum *shoal.GroupStats, st shoal.GroupStats) {
	sum.Gets += st.Gets
	sum.Hits += st.Hits
	sum.HotHits += st.HotHits
	sum.PeerHits += st.PeerHits
	sum.Loads += st.Loads
	sum.Errors += st.Errors
	sum.Inherited += st.Inherited
	sum.Pulled += st.Pulled
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
