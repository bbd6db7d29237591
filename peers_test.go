package shoal_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
)

// hosts is a RoundTripper to handlers in memory, by host. Who is not there refuses; who is nil is silent.
type hosts struct {
	mu       sync.Mutex // guards handlers
	handlers map[string]http.Handler
	asked    atomic.Int64
	open     atomic.Bool  // bodies do not end
	slowly   atomic.Int64 // if not zero, how long each byte of an answer takes
}

func (h *hosts) set(host string, handler http.Handler) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.handlers == nil {
		h.handlers = make(map[string]http.Handler)
	}
	h.handlers[host] = handler
}

func (h *hosts) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Header.Get("Upgrade") != "" || r.Header.Get("Content-Type") == streamType {
		w := httptest.NewRecorder() // as an older version, or what has come in between, might
		w.Header().Set("Content-Type", mediaType)
		w.WriteHeader(http.StatusUnsupportedMediaType)
		return w.Result(), nil
	}
	h.asked.Add(1)
	h.mu.Lock()
	handler, there := h.handlers[r.URL.Host]
	h.mu.Unlock()
	if !there {
		return nil, errors.New("connection refused")
	}
	if handler == nil {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	resp := w.Result()
	if every := h.slowly.Load(); every != 0 {
		resp.Body = &trickle{w.Body.Bytes(), r.Context(), time.Duration(every)}
	}
	if h.open.Load() {
		resp.Body = endless{w.Body, r.Context()}
	}
	return resp, nil
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// newPeer makes a cache that is reached at http://host, and at other names.
func newPeer(t *testing.T, h *hosts, opts shoal.Options, names ...string) *shoal.Cache {
	t.Helper()
	opts.Transport = h
	opts.Logger = quiet
	var c *shoal.Cache
	made := make(chan struct{})
	for _, name := range names { // before it greets anybody, who might ask back
		h.set(name, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-made
			c.ServeHTTP(w, r)
		}))
	}
	c, err := shoal.New(&opts)
	if err != nil {
		t.Fatal(err)
	}
	close(made)
	t.Cleanup(func() { c.Shutdown(context.Background()) })
	return c
}

func ready(t *testing.T, c *shoal.Cache) {
	t.Helper()
	if err := c.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// ids returns the IDs of those whom c sees.
func ids(c *shoal.Cache) string {
	var all []string
	for _, p := range c.Peers() {
		all = append(all, p.ID)
	}
	return strings.Join(all, " ")
}

func wantIDs(t *testing.T, c *shoal.Cache, want string) {
	t.Helper()
	if got := ids(c); got != want {
		t.Errorf("it sees %q, want %q", got, want)
	}
}

// lists is a Discovery that says what is sent to it.
func lists(said <-chan []string) shoal.Discovery {
	return func(ctx context.Context, _ shoal.Peer, set func([]shoal.Peer)) error {
		for {
			select {
			case addrs := <-said:
				list := make([]shoal.Peer, len(addrs))
				for i, addr := range addrs {
					list[i].Addr = addr
				}
				set(list)
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// tell makes a Discovery of lists say who is there, and waits for what comes of it at once.
func tell(said chan<- []string, list ...string) {
	said <- list
	synctest.Wait()
}

func TestCacheWithoutPeersOwnsEveryKey(t *testing.T) {
	for name, opts := range map[string]*shoal.Options{
		"nil options":  nil,
		"no discovery": {Self: "http://a", Logger: quiet},
		"empty list":   {Self: "http://a", Discovery: shoal.Static(), Logger: quiet},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, err := shoal.New(opts)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Shutdown(t.Context())
				ready(t, c)
				defer func() {
					c.Shutdown(t.Context())
					if err := c.Ready(t.Context()); err == nil {
						t.Error("ready after Shutdown")
					}
				}()
				g := shoal.NewGroup(c, "g", upper, nil)
				for range 2 {
					if v, err := g.Get(t.Context(), "key"); v != "KEY" || err != nil {
						t.Errorf("%q, %v", v, err)
					}
				}
				if s := g.Stats(); s.Loads != 1 || s.Hits != 1 {
					t.Errorf("%+v", s)
				}
				if peers := c.Peers(); len(peers) != 1 {
					t.Errorf("it sees %v", peers)
				}
			})
		})
	}
}

func TestGroupsWorkBeforePeersAreKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		said := make(chan []string)
		c := newPeer(t, new(hosts), shoal.Options{Self: "a", Discovery: lists(said)}, "a")
		g := shoal.NewGroup(c, "g", upper, nil)
		began := time.Now()
		if v, err := g.Get(t.Context(), "key"); v != "KEY" || err != nil || time.Since(began) > 500*time.Millisecond {
			t.Errorf("%q, %v, after %v", v, err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := c.Ready(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Ready without any word of discovery: %v", err)
		}
		tell(said, "a")
		ready(t, c)
	})
}

// Lists that name ever new peers before these can be reached do not keep a process from its work.
func TestListsThatDoNotSettleHoldUpNobodyForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		said, h := make(chan []string), new(hosts)
		for n := range 101 {
			h.set(fmt.Sprint("dead-", n), nil)
		}
		c := newPeer(t, h, shoal.Options{Self: "a", Discovery: lists(said)}, "a")
		g := shoal.NewGroup(c, "g", upper, nil)
		var wg sync.WaitGroup
		wg.Go(func() {
			for n := range 10 {
				said <- []string{"a", fmt.Sprint("dead-", n), fmt.Sprint("dead-", n+1)}
				time.Sleep(300 * time.Millisecond)
			}
		})
		time.Sleep(time.Millisecond)
		began := time.Now()
		if v, err := g.Get(t.Context(), "key"); v != "KEY" || err != nil || time.Since(began) > 1500*time.Millisecond {
			t.Errorf("%q, %v, after %v", v, err, time.Since(began))
		}
		wg.Wait()
	})
}

func TestPeerTellsItsIDZoneAndWeight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := new(hosts)
		both := shoal.Static("10.0.0.1:80", "http://10.0.0.2:8080/cache/")
		a := newPeer(t, h, shoal.Options{Self: "10.0.0.1:80", ID: "a", Zone: "east", Weight: 2, Discovery: both}, "10.0.0.1")
		b := newPeer(t, h, shoal.Options{Self: "http://10.0.0.2:8080/cache", Discovery: both}, "10.0.0.2:8080")
		time.Sleep(time.Second)
		want := []shoal.Peer{
			{ID: "a", Addr: "http://10.0.0.1", Zone: "east", Weight: 2},
			{ID: "http://10.0.0.2:8080/cache", Addr: "http://10.0.0.2:8080/cache", Weight: 1},
		}
		for _, c := range []*shoal.Cache{a, b} {
			if got := c.Peers(); !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		}
	})
}

func TestListedAddressIsACandidateUntilItAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := new(hosts)
		all := shoal.Static("a", "b", "silent", "refuses")
		h.set("silent", nil)
		a := newPeer(t, h, shoal.Options{Self: "a", Discovery: all, PeerTimeout: time.Second}, "a")
		newPeer(t, h, shoal.Options{Self: "b", Discovery: all}, "b")
		began := time.Now()
		ready(t, a)
		if took := time.Since(began); took != time.Second {
			t.Errorf("ready after %v, though the silent one may take PeerTimeout", took)
		}
		wantIDs(t, a, "http://a http://b")

		newPeer(t, h, shoal.Options{Self: "silent", Discovery: all}, "silent")
		newPeer(t, h, shoal.Options{Self: "refuses", Discovery: all}, "refuses")
		time.Sleep(200 * time.Millisecond) // they have greeted, so they are asked back at once
		wantIDs(t, a, "http://a http://b http://refuses http://silent")
	})
}

func TestCandidatesAreAskedAgainWithBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := new(hosts)
		newPeer(t, h, shoal.Options{Self: "a", Discovery: shoal.Static("a", "refuses")}, "a")
		time.Sleep(10 * time.Minute)
		if n := h.asked.Load(); n < 60 || n > 140 {
			t.Errorf("asked %d times in ten minutes", n)
		}
	})
}

func TestPeerFindsItselfHoweverItIsSpelled(t *testing.T) {
	for name, self := range map[string]string{"spelled differently": "http://127.0.0.1:8080", "not said": ""} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := new(hosts)
				c := newPeer(t, h, shoal.Options{Self: self, Discovery: shoal.Static("localhost:8080", "LOCALHOST:8080", "my-host:8080")},
					"localhost:8080", "my-host:8080")
				ready(t, c)
				if peers := c.Peers(); len(peers) != 1 {
					t.Fatalf("it sees %v", peers)
				}
				greetings := h.asked.Load()
				g := shoal.NewGroup(c, "g", upper, nil)
				for k := range 100 {
					if _, err := g.Get(t.Context(), fmt.Sprint(k)); err != nil {
						t.Error(err)
					}
				}
				if s := g.Stats(); s.Fetches != 0 || s.Entries != 100 || h.asked.Load() != greetings {
					t.Errorf("it asks itself: %+v", s)
				}
			})
		})
	}
}

func TestRestartedPeerIsGreetedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := new(hosts)
		both := shoal.Static("a", "b")
		a := newPeer(t, h, shoal.Options{Self: "a", Discovery: both}, "a")
		newPeer(t, h, shoal.Options{Self: "b", Discovery: both}, "b")
		time.Sleep(time.Second)
		newPeer(t, h, shoal.Options{Self: "b", Zone: "moved", Discovery: both}, "b")
		time.Sleep(time.Second)
		if p := a.Peers(); len(p) != 2 || p[1].Zone != "moved" {
			t.Errorf("it sees %v", p)
		}
	})
}

func TestRestartIsNoticedByAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := new(hosts)
		a := newPeer(t, h, shoal.Options{Self: "a", Discovery: shoal.Static("a", "b")}, "a")
		newPeer(t, h, shoal.Options{Self: "b", Discovery: shoal.Static("b")}, "b") // does not know a, so does not greet it
		time.Sleep(time.Second)
		newPeer(t, h, shoal.Options{Self: "b", Zone: "moved", Discovery: shoal.Static("b")}, "b")
		g := shoal.NewGroup(a, "g", upper, nil)
		for k := range 20 {
			g.Get(t.Context(), fmt.Sprint(k))
		}
		synctest.Wait()
		if p := a.Peers(); len(p) != 2 || p[1].Zone != "moved" {
			t.Errorf("it sees %v", p)
		}
	})
}

// heard is a RoundTripper whose questions arrive, and whose answers do not.
type heard struct{ *hosts }

func (h heard) RoundTrip(r *http.Request) (*http.Response, error) {
	if _, err := h.hosts.RoundTrip(r); err != nil {
		return nil, err
	}
	return nil, errors.New("connection reset")
}

func TestPeersThatCannotHearEachOtherDoNotWakeEachOtherWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := new(hosts)
		for _, name := range []string{"a", "b"} {
			c, err := shoal.New(&shoal.Options{Self: name, Discovery: shoal.Static("a", "b"), Transport: heard{h}, Logger: quiet})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Shutdown(t.Context())
			h.set(name, c)
		}
		time.Sleep(time.Minute)
		if n := h.asked.Load(); n > 3000 {
			t.Errorf("%d greetings in a minute", n)
		}
	})
}

func TestNewAddressOfAnOldIDReplacesTheOldOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, said := new(hosts), make(chan []string)
		a := newPeer(t, h, shoal.Options{Self: "a", Discovery: lists(said)}, "a")
		newPeer(t, h, shoal.Options{Self: "old", ID: "pod-0", Discovery: shoal.Static("a", "old")}, "old")
		tell(said, "a", "old")
		ready(t, a)
		newPeer(t, h, shoal.Options{Self: "new", ID: "pod-0", Discovery: shoal.Static("a", "new")}, "new")
		for _, list := range [][]string{{"a", "old", "new"}, {"a", "new"}} { // the list may lag
			tell(said, list...)
			ready(t, a)
			wantIDs(t, a, "http://a pod-0")
			if p := a.Peers()[1]; p.Addr != "http://new" {
				t.Errorf("with list %v, pod-0 is at %s", list, p.Addr)
			}
		}
	})
}

func TestAnotherProcessWithTheSameIDDoesNotReplaceThisOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := new(hosts)
		both := shoal.Static("a", "b")
		caches := []*shoal.Cache{
			newPeer(t, h, shoal.Options{Self: "a", ID: "x", Discovery: both}, "a"),
			newPeer(t, h, shoal.Options{Self: "b", ID: "x", Discovery: both}, "b"),
		}
		time.Sleep(time.Second)
		for i, addr := range []string{"http://a", "http://b"} {
			if p := caches[i].Peers(); len(p) != 1 || p[0].Addr != addr {
				t.Errorf("the process at %s sees %v", addr, p)
			}
		}
	})
}

func TestEmptyListFromAFailingSourceTakesNobodyAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, said := new(hosts), make(chan []string)
		a := newPeer(t, h, shoal.Options{Self: "a", Discovery: lists(said)}, "a")
		newPeer(t, h, shoal.Options{Self: "b", Discovery: shoal.Static("a", "b")}, "b")
		for _, list := range [][]string{{}, {"a", "b"}, {}} {
			tell(said, list...)
			ready(t, a)
		}
		wantIDs(t, a, "http://a http://b")
	})
}

func TestListOfNothingButBadAddressesTakesNobodyAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, said := new(hosts), make(chan []string)
		a := newPeer(t, h, shoal.Options{Self: "a", Discovery: lists(said)}, "a")
		newPeer(t, h, shoal.Options{Self: "b", Discovery: shoal.Static("a", "b")}, "b")
		tell(said, "a", "b")
		ready(t, a)
		tell(said, "")
		wantIDs(t, a, "http://a http://b")
	})
}

func TestAnotherPeerAtAnOldAddressIsNoticed(t *testing.T) {
	for name, itsList := range map[string]shoal.Discovery{
		"by its greeting": shoal.Static("a", "b"),
		"by its answer":   shoal.Static("b"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := new(hosts)
				a := newPeer(t, h, shoal.Options{Self: "a", Discovery: shoal.Static("a", "b")}, "a")
				newPeer(t, h, shoal.Options{Self: "b", ID: "one", Discovery: itsList}, "b")
				time.Sleep(time.Second)
				wantIDs(t, a, "http://a one")
				newPeer(t, h, shoal.Options{Self: "b", ID: "two", Discovery: itsList}, "b")
				g := shoal.NewGroup(a, "g", upper, nil)
				for k := range 20 {
					g.Get(t.Context(), fmt.Sprint(k))
				}
				time.Sleep(time.Second)
				wantIDs(t, a, "http://a two")
			})
		})
	}
}

func TestDiscoveryThatEndsIsCalledAgainAndItsListStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		a := newPeer(t, new(hosts), shoal.Options{Self: "a", Discovery: func(_ context.Context, self shoal.Peer, set func([]shoal.Peer)) error {
			if calls++; calls == 1 {
				set([]shoal.Peer{self})
			}
			return errors.New("connection lost")
		}}, "a")
		ready(t, a)
		time.Sleep(time.Minute)
		synctest.Wait()
		wantIDs(t, a, "http://a")
		if calls < 5 || calls > 30 {
			t.Errorf("called %d times in a minute", calls)
		}
	})
}

func TestReadyTellsWhatIsNoAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer(t, new(hosts), shoal.Options{Self: "a", Discovery: shoal.Static("a", "ftp://b")}, "a")
		if err := a.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "ftp://b") {
			t.Errorf("Ready: %v", err)
		}
		wantIDs(t, a, "http://a")
	})
}

func TestPeerThatLeavesTheListLeavesTheView(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, said := new(hosts), make(chan []string)
		a := newPeer(t, h, shoal.Options{Self: "a", Discovery: lists(said)}, "a")
		newPeer(t, h, shoal.Options{Self: "b", Discovery: shoal.Static("a", "b")}, "b")
		tell(said, "a", "b")
		ready(t, a)
		wantIDs(t, a, "http://a http://b")
		tell(said, "a")
		ready(t, a)
		wantIDs(t, a, "http://a")
		time.Sleep(time.Minute) // b, which lists it, has told it so
		asked := h.asked.Load()
		time.Sleep(time.Hour)
		if h.asked.Load() != asked {
			t.Error("it is still being asked")
		}
	})
}

func TestSilentPeerDoesNotHoldUpTheNextList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, said := new(hosts), make(chan []string)
		h.set("silent", nil)
		a := newPeer(t, h, shoal.Options{Self: "a", Discovery: lists(said)}, "a")
		newPeer(t, h, shoal.Options{Self: "b", Discovery: shoal.Static("a", "b")}, "b")
		tell(said, "a", "b")
		ready(t, a)
		tell(said, "a", "silent")
		time.Sleep(time.Second / 10)
		wantIDs(t, a, "http://a")
	})
}

func TestViewsOfTheSameMembersAgree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, said := new(hosts), make(chan []string)
		a := newPeer(t, h, shoal.Options{Self: "a", Discovery: lists(said)}, "a")
		b := newPeer(t, h, shoal.Options{Self: "b", Discovery: shoal.Static("b", "a")}, "b")
		tell(said, "a", "b")
		ready(t, a)
		time.Sleep(time.Second)
		ga, gb := shoal.NewGroup(a, "g", upper, nil), shoal.NewGroup(b, "g", upper, nil)
		exchange := func() {
			for k := range 20 {
				ga.Get(t.Context(), fmt.Sprint(k))
				gb.Get(t.Context(), fmt.Sprint(k))
			}
		}
		exchange()
		if !a.Stats().Peers[0].Agrees || !b.Stats().Peers[0].Agrees {
			t.Errorf("%+v\n%+v", a.Stats().Peers, b.Stats().Peers)
		}
		tell(said, "a", "b", "c")
		newPeer(t, h, shoal.Options{Self: "c", Discovery: shoal.Static("a", "b", "c")}, "c")
		time.Sleep(time.Second)
		exchange()
		if a.Stats().Peers[0].Agrees || b.Stats().Peers[0].Agrees {
			t.Errorf("of views that differ: %+v\n%+v", a.Stats().Peers, b.Stats().Peers)
		}
	})
}

func TestNewNamesTheOptionThatIsOutOfRange(t *testing.T) {
	for field, opts := range map[string]shoal.Options{
		"Self":          {Self: "ftp://a"},
		"Weight":        {Weight: -1},
		"PeerTimeout":   {PeerTimeout: -1},
		"MaxKeyBytes":   {MaxKeyBytes: -1},
		"MaxValueBytes": {MaxValueBytes: -1},
		"MaxBodyBytes":  {MaxBodyBytes: 1000},
		"MaxRequests":   {MaxRequests: -1},
	} {
		if _, err := shoal.New(&opts); err == nil || !strings.Contains(err.Error(), "Options."+field+":") {
			t.Errorf("want an error that names %s, not %v", field, err)
		}
	}
}

var addrTests = []struct{ addr, normal string }{ // normal is empty where addr is refused
	{"10.0.0.1", "http://10.0.0.1"},
	{"10.0.0.1:8000", "http://10.0.0.1:8000"},
	{"http://10.0.0.1:80", "http://10.0.0.1"},
	{"HTTP://Host:8000/", "http://host:8000"},
	{"https://host:443//", "https://host"},
	{"https://host:80", "https://host:80"},
	{"http://host/a%2fb/", "http://host/a%2fb"},
	{"[::1]:80", "http://[::1]"},
	{"http://[::1]:8000", "http://[::1]:8000"},
	{"http://[fe80::1%25eth0]:8000", "http://[fe80::1%25eth0]:8000"},
	{"unix:///run/shoal.sock", "unix:///run/shoal.sock"},
	{"unix:///run/a b", "unix:///run/a%20b"},
	{"", ""},
	{"http://", ""},
	{"http://:80", ""},
	{"ftp://host", ""},
	{"http://user@host", ""},
	{"http://host?q", ""},
	{"http://host#f", ""},
	{"unix://run/shoal.sock", ""},
	{"unix://", ""},
	{"http://a b", ""},
	{"[::%25\xf0]", ""},
}

func TestAddressesAreComparedInNormalForm(t *testing.T) {
	for _, test := range addrTests {
		if got, err := shoal.NormalAddr(test.addr); got != test.normal || (err == nil) != (test.normal != "") {
			t.Errorf("NormalAddr(%q) = %q, %v; want %q", test.addr, got, err, test.normal)
		}
	}
}

func FuzzNormalAddr(f *testing.F) {
	for _, test := range addrTests {
		f.Add(test.addr)
	}
	f.Fuzz(func(t *testing.T, addr string) {
		normal, err := shoal.NormalAddr(addr)
		if err != nil {
			return
		}
		if again, err := shoal.NormalAddr(normal); again != normal || err != nil {
			t.Errorf("NormalAddr(%q) = %q, but NormalAddr of that = %q, %v", addr, normal, again, err)
		}
		if _, err := http.NewRequest("POST", normal, nil); err != nil {
			t.Errorf("NormalAddr(%q) = %q: %v", addr, normal, err)
		}
	})
}

func TestLogSaysWhoComesGoesAndFallsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		f := newFleet(t, 2, &shoal.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}, upper, nil)
		key := ownedBy(f.Cluster, 1, 0)
		ask := func() {
			t.Helper()
			_, err := f.groups[0].Get(t.Context(), key)
			must(t, err)
			time.Sleep(20 * time.Second)
		}
		said := func(when string, want ...string) {
			t.Helper()
			synctest.Wait()
			lines := strings.FieldsFunc(log.String(), func(r rune) bool { return r == '\n' })
			log.Reset()
			if len(lines) != len(want) {
				t.Fatalf("%s: %d lines, not %d: %q", when, len(lines), len(want), lines)
			}
			for i, w := range want {
				if !strings.Contains(lines[i], w) {
					t.Errorf("%s: %s does not contain %s", when, lines[i], w)
				}
			}
		}
		both := `msg="shoal: the peers have changed" peers=2 new="[http://cache-0 http://cache-1]" gone=[]`
		said("all have come", both, both)

		silent := `msg="shoal: a listed peer does not answer, and will be asked again" addr=http://cache-1`
		f.Down(1)
		ask()
		said("it is silent", silent)
		f.Up(1)
		ask()
		said("it answers", `msg="shoal: a listed peer answers now" id=http://cache-1 addr=http://cache-1 after=`)

		for range 10 { // once a minute
			f.Down(1)
			ask()
			f.Up(1)
			ask()
		}
		synctest.Wait()
		again := strings.Count(log.String(), silent)
		if log.Reset(); again < 5 || again > 7 {
			t.Errorf("of one that comes and goes for 400 seconds the log says %d times that it does not answer", again)
		}

		time.Sleep(2 * time.Minute)
		f.Down(1)
		ask()
		f.Up(1)
		ask()
		f.Down(1)
		ask() // too soon to be said
		time.Sleep(2 * time.Minute)
		said("it is silent for good", silent, "answers now", silent)

		f.Kill(1)
		synctest.Wait()
		log.Reset() // of what it has said to the last
		f.See(0, 0)
		time.Sleep(time.Second)
		said("it is gone", `peers=1 new=[] gone=[http://cache-1]`)
	})
}
