package dns_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/discovery/dns"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// pods are processes that find each other by what a server tells of them. Each has an IP address of its own, at port 8080;
// in truth they listen on loopback.
type pods struct {
	t      *testing.T
	server *server

	mu sync.Mutex // guards at
	at map[string]string
}

func newPods(t *testing.T) *pods {
	return &pods{t: t, server: newServer(t), at: make(map[string]string)}
}

// start starts a pod at ip that looks for its peers at url. It runs until t ends, or it is stopped.
func (p *pods) start(ip, url string, opts shoal.Options) (c *shoal.Cache, stop func()) {
	p.t.Helper()
	var handler http.Handler
	made := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-made
		handler.ServeHTTP(w, r)
	}))
	p.mu.Lock()
	p.at[net.JoinHostPort(ip, "8080")] = s.Listener.Addr().String()
	p.mu.Unlock()

	transport := &http.Transport{DialContext: p.dial, MaxIdleConnsPerHost: 100}
	opts.Discovery = dns.New(url, often(p.server))
	opts.Transport = transport
	opts.PeerTimeout = time.Minute // for machines that have much else to do
	if opts.Logger == nil {
		opts.Logger = quiet
	}
	c, err := shoal.New(&opts)
	if err != nil {
		p.t.Fatal(err)
	}
	handler = c
	close(made)
	stop = sync.OnceFunc(func() {
		if err := c.Shutdown(context.Background()); err != nil {
			p.t.Error(err)
		}
		transport.CloseIdleConnections()
		s.Close()
	})
	p.t.Cleanup(stop)
	return c, stop
}

// dial looks hosts up as a process in the cluster would, and finds the pods at their addresses.
func (p *pods) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	ips, err := p.server.resolver().LookupHost(ctx, host+".")
	if net.ParseIP(host) != nil {
		ips, err = []string{host}, nil
	}
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	at, there := p.at[net.JoinHostPort(ips[0], port)]
	p.mu.Unlock()
	if !there {
		return nil, errors.New("connection refused")
	}
	return new(net.Dialer).DialContext(ctx, network, at)
}

// sees reports whether c sees peers, as "id=address" each.
func sees(c *shoal.Cache, peers ...string) bool {
	var all []string
	for _, p := range c.Peers() {
		all = append(all, p.ID+"="+strings.TrimPrefix(p.Addr, "http://"))
	}
	return fmt.Sprint(all) == fmt.Sprint(peers)
}

func ready(t *testing.T, c *shoal.Cache) {
	t.Helper()
	if err := c.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestPodsShareTheKeys(t *testing.T) {
	p := newPods(t)
	p.server.tell(typeA, "shoal.test.", "10.0.0.1", "10.0.0.2", "10.0.0.3")
	var caches []*shoal.Cache
	var loads sync.Map
	var groups []*shoal.Group[string]
	for i := range 3 {
		c, _ := p.start(fmt.Sprint("10.0.0.", i+1), "shoal.test.:8080", shoal.Options{ID: fmt.Sprint("pod-", i)})
		caches = append(caches, c)
		groups = append(groups, shoal.NewGroup(c, "g", func(_ context.Context, key string) (string, error) {
			if _, again := loads.LoadOrStore(key, i); again {
				return "", errors.New("it is loaded twice")
			}
			return "<" + key + ">", nil
		}, nil))
	}
	for _, c := range caches {
		eventually(t, func() bool { return sees(c, "pod-0=10.0.0.1:8080", "pod-1=10.0.0.2:8080", "pod-2=10.0.0.3:8080") })
	}
	for k := range 30 {
		for _, g := range groups {
			key := fmt.Sprint("key ", k)
			if v, err := g.Get(t.Context(), key); v != "<"+key+">" || err != nil {
				t.Errorf("Get(%q) = %q, %v", key, v, err)
			}
		}
	}
}

func TestReplacedPodIsFoundAtItsNewAddress(t *testing.T) {
	p := newPods(t)
	p.server.tell(typeA, "shoal.test.", "10.0.0.1", "10.0.0.2")
	a, _ := p.start("10.0.0.1", "shoal.test.:8080", shoal.Options{ID: "pod-0"})
	_, stop := p.start("10.0.0.2", "shoal.test.:8080", shoal.Options{ID: "pod-1"})
	eventually(t, func() bool { return sees(a, "pod-0=10.0.0.1:8080", "pod-1=10.0.0.2:8080") })
	stop()
	p.start("10.0.0.3", "shoal.test.:8080", shoal.Options{ID: "pod-1"})
	p.server.tell(typeA, "shoal.test.", "10.0.0.1", "10.0.0.3")
	eventually(t, func() bool { return sees(a, "pod-0=10.0.0.1:8080", "pod-1=10.0.0.3:8080") })
}

func TestReplacedPodIsFoundAtTheNewAddressOfItsName(t *testing.T) {
	p := newPods(t)
	p.server.tell(typeSRV, "_peers._tcp.test.", "pod-0.test.:8080", "pod-1.test.:8080")
	p.server.tell(typeA, "pod-0.test.", "10.0.0.1")
	p.server.tell(typeA, "pod-1.test.", "10.0.0.2")
	a, _ := p.start("10.0.0.1", "_peers._tcp.test.", shoal.Options{Self: "pod-0.test:8080"})
	_, stop := p.start("10.0.0.2", "_peers._tcp.test.", shoal.Options{Self: "pod-1.test:8080", Zone: "old"})
	peer := func() string {
		if peers := a.Peers(); len(peers) == 2 && peers[1].ID == "http://pod-1.test:8080" {
			return peers[1].Zone
		}
		return ""
	}
	eventually(t, func() bool { return peer() == "old" })
	stop()
	p.server.tell(typeA, "pod-1.test.", "10.0.0.3")
	p.start("10.0.0.3", "_peers._tcp.test.", shoal.Options{Self: "pod-1.test:8080", Zone: "new"})
	eventually(t, func() bool { return peer() == "new" })
}

func TestPeersStayWhileTheDNSNamesNobody(t *testing.T) {
	for name, change := range map[string]func(*server){
		"no such name":   func(s *server) { s.fail(typeA, "shoal.test.", nxDomain) },
		"no addresses":   func(s *server) { s.tell(typeA, "shoal.test.") },
		"a failure":      func(s *server) { s.fail(typeA, "shoal.test.", servFail) },
		"half an answer": func(s *server) { s.tell(typeAAAA, "shoal.test.", "fd00::3"); s.fail(typeA, "shoal.test.", servFail) },
		"a refusal":      func(s *server) { s.fail(typeA, "shoal.test.", refused) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // with much waiting for a next try
			p := newPods(t)
			p.server.tell(typeA, "shoal.test.", "10.0.0.1", "10.0.0.2")
			a, _ := p.start("10.0.0.1", "shoal.test.:8080", shoal.Options{ID: "pod-0"})
			p.start("10.0.0.2", "shoal.test.:8080", shoal.Options{ID: "pod-1"})
			both := func() bool { return sees(a, "pod-0=10.0.0.1:8080", "pod-1=10.0.0.2:8080") }
			eventually(t, both)
			change(p.server)
			p.server.looks(t, 8) // of two pods
			if !both() {
				t.Errorf("it sees %v", a.Peers())
			}
		})
	}
}

func TestFirstPodIsReadyAndFindsTheSecond(t *testing.T) {
	p := newPods(t)
	var log bytes.Buffer
	a, stop := p.start("10.0.0.1", "shoal.test.:8080", shoal.Options{ID: "pod-0", Logger: slog.New(slog.NewTextHandler(&log, nil))})
	ready(t, a)
	p.server.looks(t, 2)
	p.start("10.0.0.2", "shoal.test.:8080", shoal.Options{ID: "pod-1"})
	p.server.tell(typeA, "shoal.test.", "10.0.0.1", "10.0.0.2")
	eventually(t, func() bool { return sees(a, "pod-0=10.0.0.1:8080", "pod-1=10.0.0.2:8080") })
	stop()
	if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "no such host") {
		t.Errorf("that there was no such name is not logged:\n%s", &log)
	}
}

func TestFailureIsNotTakenForNobody(t *testing.T) {
	p := newPods(t)
	p.server.tell(typeA, "shoal.test.", "10.0.0.1", "10.0.0.2")
	p.server.fail(typeA, "shoal.test.", servFail)
	var log bytes.Buffer
	a, stop := p.start("10.0.0.1", "shoal.test.:8080", shoal.Options{ID: "pod-0", Logger: slog.New(slog.NewTextHandler(&log, nil))})
	ctx, cancel := context.WithCancel(t.Context())
	became := make(chan error, 1)
	go func() { became <- a.Ready(ctx) }()
	p.server.looks(t, 2)
	cancel()
	if err := <-became; !errors.Is(err, context.Canceled) {
		t.Errorf("Ready: %v", err)
	}
	p.start("10.0.0.2", "shoal.test.:8080", shoal.Options{ID: "pod-1"})
	p.server.tell(typeA, "shoal.test.", "10.0.0.1", "10.0.0.2")
	ready(t, a)
	if !sees(a, "pod-0=10.0.0.1:8080", "pod-1=10.0.0.2:8080") {
		t.Errorf("it sees %v", a.Peers())
	}
	stop()
	if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "lookup shoal.test.") {
		t.Errorf("that the DNS fails is not logged:\n%s", &log)
	}
}
