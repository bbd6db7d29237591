package memberlist_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	gossip "github.com/hashicorp/memberlist"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/discovery/memberlist"
)

// The tests in this file run over real sockets.

// freePort returns an address of this machine at which nobody listens.
func freePort(t *testing.T) string {
	t.Helper()
	for {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().String()
		p, err := net.ListenPacket("udp", addr)
		l.Close()
		if err == nil {
			p.Close()
			return addr
		}
	}
}

// fast is for a network without distances, on a machine that has much else to do.
func fast() *gossip.Config {
	config := gossip.DefaultLocalConfig()
	config.ProbeInterval, config.ProbeTimeout, config.GossipInterval = 200*time.Millisecond, 150*time.Millisecond, 20*time.Millisecond
	return config
}

func newDiscovery(t *testing.T, opts memberlist.Options) shoal.Discovery {
	t.Helper()
	if opts.Config == nil {
		opts.Config = fast()
	}
	opts.Logger = slog.New(slog.DiscardHandler)
	d, err := memberlist.New(&opts)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// leavesNothing runs test, and checks that it leaves no goroutine behind.
func leavesNothing(t *testing.T, test func(t *testing.T)) {
	before := runtime.NumGoroutine()
	t.Run("test", test)
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); runtime.Gosched() {
		if runtime.NumGoroutine() <= before { // some have been told to end, and need a moment
			return
		}
	}
	stacks := make([]byte, 1<<20)
	t.Errorf("%d goroutines more than before:\n%s", runtime.NumGoroutine()-before, stacks[:runtime.Stack(stacks, true)])
}

func TestPortThatIsTakenIsAnErrorAndIsFreeInTheEnd(t *testing.T) {
	leavesNothing(t, func(t *testing.T) {
		addr := freePort(t)
		d := newDiscovery(t, memberlist.Options{Bind: addr})
		taken, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		err = d(t.Context(), shoal.Peer{Addr: "http://aa"}, func([]shoal.Peer) { t.Error("it is listed") })
		if _, port, _ := net.SplitHostPort(addr); err == nil || !strings.Contains(err.Error(), port) {
			t.Errorf("%v, want one that tells of port %s", err, port)
		}
		taken.Close()
		for range 3 { // called again, it works
			p := run(t, "aa", d)
			p.wants(t, "aa")
			p.kill()
			if err := <-p.ended; !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		}
	})
}

func TestConfigThatRefusesTheProcessItselfIsAnError(t *testing.T) {
	leavesNothing(t, func(t *testing.T) {
		config := fast()
		var err error
		if config.CIDRsAllowed, err = gossip.ParseCIDRs([]string{"192.0.2.0/24"}); err != nil {
			t.Fatal(err)
		}
		d := newDiscovery(t, memberlist.Options{Bind: "127.0.0.1:0", Config: config})
		err = d(t.Context(), shoal.Peer{Addr: "http://aa"}, func([]shoal.Peer) { t.Error("it is listed") })
		if err == nil || !strings.Contains(err.Error(), "Options.Config") {
			t.Errorf("%v, want one that names Options.Config", err)
		}
	})
}

func TestSilentSeedDoesNotHoldUpTheEnd(t *testing.T) {
	leavesNothing(t, func(t *testing.T) {
		silent, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		config := fast()
		config.TCPTimeout = time.Hour
		p := run(t, "aa", newDiscovery(t, memberlist.Options{Bind: freePort(t), Seeds: []string{silent.Addr().String()}, Config: config}))
		conn, err := silent.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		p.kill()
		if err := <-p.ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		p.quiet(t)
	})
}

func TestSeedMayBeAName(t *testing.T) {
	leavesNothing(t, func(t *testing.T) {
		addr := freePort(t)
		_, port, _ := net.SplitHostPort(addr)
		a := run(t, "aa", newDiscovery(t, memberlist.Options{Bind: addr}))
		b := run(t, "bb", newDiscovery(t, memberlist.Options{Bind: freePort(t), Seeds: []string{"localhost:" + port}}))
		a.wants(t, "aa", "bb")
		b.wants(t, "aa", "bb")
	})
}

// A node is a Cache that serves and gossips over loopback.
type node struct {
	*shoal.Cache
	server *httptest.Server
	gossip *gossip.NetTransport
	names  *shoal.Group[string]
}

// newNode starts a node. What it loads says by which node it was.
func newNode(t *testing.T, id, name string, seeds ...string) *node {
	t.Helper()
	config := fast()
	config.PushPullInterval = 0 // or one that has lost its listeners would go on to tell that it is alive
	var transport *gossip.NetTransport
	var err error
	for transport == nil { // a port that is free for TCP may not be for UDP
		transport, err = gossip.NewNetTransport(&gossip.NetTransportConfig{
			BindAddrs: []string{"127.0.0.1"},
			Logger:    slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
		})
		if err != nil && !strings.Contains(err.Error(), "in use") {
			t.Fatal(err)
		}
	}
	config.Transport = transport

	n := &node{gossip: transport}
	var made sync.WaitGroup
	made.Add(1)
	n.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		made.Wait()
		n.ServeHTTP(w, r)
	}))
	n.Cache, err = shoal.New(&shoal.Options{
		Self: n.server.URL, ID: id, PeerTimeout: 10 * time.Second,
		Discovery: newDiscovery(t, memberlist.Options{Seeds: seeds, Config: config}),
		Logger:    slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	n.names = shoal.NewGroup(n.Cache, "names", func(_ context.Context, key string) (string, error) {
		return key + " from " + name, nil
	}, nil)
	made.Done()
	t.Cleanup(func() {
		n.Shutdown(context.Background())
		n.server.Close()
	})
	return n
}

func (n *node) at() string { return fmt.Sprintf("127.0.0.1:%d", n.gossip.GetAutoBindPort()) }

// die ends a node as if it were killed: nobody is told, and nothing answers any more.
func (n *node) die() {
	n.gossip.Shutdown()
	n.server.Listener.Close()
	n.server.CloseClientConnections()
}

// sees waits until n sees exactly these peers.
func (n *node) sees(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); runtime.Gosched() {
		got = got[:0]
		for _, p := range n.Peers() {
			got = append(got, p.String())
		}
		if fmt.Sprint(got) == fmt.Sprint(want) {
			return
		}
	}
	t.Fatalf("it sees %q, want %q", got, want)
}

// loadedBy returns who has loaded some keys that n asks for.
func (n *node) loadedBy(t *testing.T, prefix string) map[string]bool {
	t.Helper()
	by := make(map[string]bool)
	for k := range 100 {
		v, err := n.names.Get(t.Context(), fmt.Sprint(prefix, k))
		if err != nil {
			t.Error(err)
		}
		_, name, _ := strings.Cut(v, " from ")
		by[name] = true
	}
	return by
}

func TestCachesThatGossipAreEachOthersPeers(t *testing.T) {
	leavesNothing(t, func(t *testing.T) {
		a := newNode(t, "a", "a")
		old := newNode(t, "pod-0", "old", a.at())
		if err := old.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		both := []string{fmt.Sprintf("a (%s)", a.server.URL), fmt.Sprintf("pod-0 (%s)", old.server.URL)}
		old.sees(t, both...) // Ready waits for seeds
		a.sees(t, both...)
		for _, n := range []*node{a, old} {
			if by := n.loadedBy(t, "first "); len(by) != 2 || !by["a"] || !by["old"] {
				t.Errorf("keys were loaded by %v", by)
			}
		}

		old.die()
		young := newNode(t, "pod-0", "young", a.at())
		both[1] = fmt.Sprintf("pod-0 (%s)", young.server.URL)
		a.sees(t, both...)
		young.sees(t, both...)
		for _, n := range []*node{a, young} {
			if by := n.loadedBy(t, "second "); len(by) != 2 || !by["a"] || !by["young"] {
				t.Errorf("keys were loaded by %v, after a restart elsewhere", by)
			}
		}

		if err := young.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		a.sees(t, both[0])
	})
}
