package dns_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/discovery/dns"
)

// often looks at s as often as can be.
func often(s *server) *dns.Options {
	return &dns.Options{Interval: time.Millisecond, Resolver: s.resolver()}
}

// eventually waits until condition holds.
func eventually(t *testing.T, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); !condition(); <-tick.C {
		if time.Now().After(end) {
			t.Fatal("it does not come to that")
		}
	}
}

// start calls discover, and returns the lists that it sets, and its error.
func start(t *testing.T, discover shoal.Discovery) (lists <-chan []string, ended <-chan error) {
	set, end := make(chan []string), make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		end <- discover(t.Context(), shoal.Peer{}, func(peers []shoal.Peer) {
			list := []string{}
			for _, p := range peers {
				list = append(list, p.Addr)
			}
			select {
			case set <- list:
			case <-t.Context().Done():
			}
		})
	}()
	t.Cleanup(func() { <-done })
	return set, end
}

func wantList(t *testing.T, lists <-chan []string, want ...string) {
	t.Helper()
	select {
	case got := <-lists:
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("it lists %q, want %q", got, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("it lists nothing, want %q", want)
	}
}

func TestPeersAreWhatTheNameStandsFor(t *testing.T) {
	s := newServer(t)
	s.tell(typeA, "four.test.", "10.0.0.1", "10.0.0.2", "10.0.0.1")
	s.tell(typeAAAA, "six.test.", "fd00::1")
	s.tell(typeA, "both.test.", "10.0.0.1")
	s.tell(typeAAAA, "both.test.", "fd00::1")
	s.tell(typeSRV, "_peers._tcp.test.", "pod-0.test.:8080", "pod-1.test.:8081")
	for url, want := range map[string][]string{
		"four.test.":                       {"http://10.0.0.1", "http://10.0.0.2"},
		"four.test.:8080":                  {"http://10.0.0.1:8080", "http://10.0.0.2:8080"},
		"https://four.test.:8443/cache":    {"https://10.0.0.1:8443/cache", "https://10.0.0.2:8443/cache"},
		"http://six.test.":                 {"http://[fd00::1]"},
		"http://both.test.:8080":           {"http://10.0.0.1:8080", "http://[fd00::1]:8080"},
		"https://_peers._tcp.test./cache":  {"https://pod-0.test:8080/cache", "https://pod-1.test:8081/cache"},
		"http://_peers._tcp.test.:80":      {"http://pod-0.test:8080", "http://pod-1.test:8081"},
		"http://192.0.2.1:8080":            {"http://192.0.2.1:8080"},
		"http://[2001:db8::1%25eth0]:8080": {"http://[2001:db8::1%25eth0]:8080"},
		"unix:///run/shoal.sock":           {"unix:///run/shoal.sock"},
	} {
		t.Run(url, func(t *testing.T) {
			lists, _ := start(t, dns.New(url, often(s)))
			wantList(t, lists, want...)
		})
	}
}

func TestHostsFileCounts(t *testing.T) {
	s := newServer(t)
	s.tell(typeA, "localhost.", "127.0.0.1") // should there be no such file
	lists, _ := start(t, dns.New("localhost", often(s)))
	if list := <-lists; !slices.Contains(list, "http://127.0.0.1") {
		t.Errorf("it lists %q", list)
	}
}

func TestLongAnswersAreComplete(t *testing.T) {
	s := newServer(t)
	var all, want []string
	for i := range 1000 {
		all = append(all, fmt.Sprintf("10.0.%d.%d", i/250, i%250))
		want = append(want, "http://"+all[i])
	}
	slices.Sort(want)
	s.tell(typeA, "shoal.test.", all...)
	lists, _ := start(t, dns.New("shoal.test.", often(s)))
	wantList(t, lists, want...)
}

func TestOnlyChangesAreSet(t *testing.T) {
	s := newServer(t)
	s.tell(typeA, "shoal.test.", "10.0.0.1", "10.0.0.2", "10.0.0.3")
	lists, _ := start(t, dns.New("shoal.test.", often(s)))
	wantList(t, lists, "http://10.0.0.1", "http://10.0.0.2", "http://10.0.0.3")
	s.looks(t, 20) // in any order; a list that nobody takes would hold them up
	s.tell(typeA, "shoal.test.", "10.0.0.3", "10.0.0.1")
	wantList(t, lists, "http://10.0.0.1", "http://10.0.0.3")
}

func TestFailureIsNoList(t *testing.T) {
	for name, fails := range map[string]func(*server){
		"of the server":          func(s *server) { s.fail(typeA, "shoal.test.", servFail); s.fail(typeAAAA, "shoal.test.", servFail) },
		"for one family":         func(s *server) { s.fail(typeAAAA, "shoal.test.", servFail) },
		"for the other family":   func(s *server) { s.tell(typeAAAA, "shoal.test.", "fd00::1"); s.fail(typeA, "shoal.test.", servFail) },
		"with nothing beside it": func(s *server) { s.tell(typeA, "shoal.test."); s.fail(typeAAAA, "shoal.test.", servFail) },
		"to want to answer":      func(s *server) { s.fail(typeA, "shoal.test.", refused); s.fail(typeAAAA, "shoal.test.", refused) },
		"to be reached":          func(s *server) { s.addr = "" },
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			s.tell(typeA, "shoal.test.", "10.0.0.1")
			fails(s)
			lists, ended := start(t, dns.New("http://shoal.test.:8080", often(s)))
			select {
			case err := <-ended:
				if err == nil || !strings.Contains(err.Error(), "http://shoal.test.:8080") {
					t.Errorf("its error is %v, want one that says where it looked", err)
				}
			case list := <-lists:
				t.Errorf("it lists %q", list)
			}
		})
	}
}

func TestNobodyIsAnEmptyListAndToldOf(t *testing.T) {
	s := newServer(t)
	s.tell(typeSRV, "other.test.", "pod-0.test.:8080")
	s.tell(typeSRV, "_none._tcp.test.", ".:0")
	for name, url := range map[string]string{
		"no such name":          "http://shoal.test.",
		"no address":            "http://other.test.",
		"no such service":       "http://_peers._tcp.test.",
		"a service without any": "http://_none._tcp.test.",
	} {
		t.Run(name, func(t *testing.T) {
			lists, ended := start(t, dns.New(url, often(s)))
			wantList(t, lists)
			if err := <-ended; err == nil || !strings.Contains(err.Error(), url) {
				t.Errorf("its error is %v, want one that says where it looked", err)
			}
		})
	}
}

func TestReadyTellsOfAURLThatIsNone(t *testing.T) {
	for _, url := range []string{"", "http://", ":8080", "ftp://shoal", "http://me@shoal", "http://shoal?a", "http://shoal#a", "http://shoal:http"} {
		c, err := shoal.New(&shoal.Options{Discovery: dns.New(url, nil), Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), url) {
			t.Errorf("Ready with %q: %v", url, err)
		}
		c.Shutdown(context.Background())
	}
}

func TestNewNamesTheOptionThatIsOutOfRange(t *testing.T) {
	defer func() {
		if r := recover(); !strings.Contains(fmt.Sprint(r), "Options.Interval:") {
			t.Errorf("want a panic that names Interval, not %v", r)
		}
	}()
	dns.New("http://shoal", &dns.Options{Interval: -1})
}

func TestLooksAreAboutAnIntervalApart(t *testing.T) {
	s := unheard()
	s.tell(typeA, "shoal.test.", "10.0.0.1")
	r := s.resolver()
	r.Dial = func(context.Context, string, string) (net.Conn, error) {
		here, there := net.Pipe()
		go s.serve(there)
		return here, nil
	}
	// What net knows of resolv.conf is shared by all, and must not be made in a bubble.
	if _, err := r.LookupHost(t.Context(), "shoal.test."); err != nil {
		t.Fatal(err)
	}
	for opts, interval := range map[*dns.Options]time.Duration{
		{Resolver: r}:                        5 * time.Second,
		{Resolver: r, Interval: time.Minute}: time.Minute,
	} {
		synctest.Test(t, func(t *testing.T) {
			s.asked.Store(0)
			ctx, cancel := context.WithTimeout(t.Context(), 100*interval)
			defer cancel()
			dns.New("shoal.test.", opts)(ctx, shoal.Peer{}, func([]shoal.Peer) {})
			if n := s.asked.Load(); n < 105 || n > 130 {
				t.Errorf("%d looks in 100 intervals of %v, each cut by up to a quarter", n, interval)
			}
		})
	}
}
