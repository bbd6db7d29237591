package cachetest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoalcache/shoal"
)

// The tests in this file need no time to pass, and so run over every wire: what holds in memory must hold there.

var wires = map[string]network{
	"memory": inMemory,
	"tcp":    overTCP,
	"tls":    overTLS,
	"h2c":    overH2C,
	"unix":   overUnix,
}

// overHTTP returns the network of hosts that listen as listen says and are served as change says. The first result of
// change is the transport to them; nil means the caches' own.
func overHTTP(listen func(testing.TB) net.Listener, change func(*httptest.Server) http.RoundTripper) network {
	return func(t testing.TB, n int) []host {
		hosts := make([]host, n)
		for i := range hosts {
			var handler atomic.Pointer[http.Handler]
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				(*handler.Load()).ServeHTTP(w, r)
			}))
			server.Listener.Close()
			server.Listener = listen(t)
			hosts[i].transport = change(server)
			if hosts[i].addr = server.URL; server.Listener.Addr().Network() == "unix" {
				hosts[i].addr = "unix://" + server.Listener.Addr().String()
			}
			hosts[i].serve = func(h http.Handler) { handler.Store(&h) }
			t.Cleanup(func() { // after the caches' Shutdown, which is asked for later
				server.Close()
				if t, ok := hosts[i].transport.(*http.Transport); ok {
					t.CloseIdleConnections()
				}
			})
		}
		return hosts
	}
}

func listenTCP(t testing.TB) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

var overTCP = overHTTP(listenTCP, func(s *httptest.Server) http.RoundTripper {
	s.Start()
	return &http.Transport{MaxIdleConnsPerHost: 100}
})

var overTLS = overHTTP(listenTCP, func(s *httptest.Server) http.RoundTripper {
	s.EnableHTTP2 = true
	s.StartTLS()
	// All servers of httptest have the same certificate.
	return &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}, ForceAttemptHTTP2: true}
})

var overH2C = overHTTP(listenTCP, func(s *httptest.Server) http.RoundTripper {
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t := &http.Transport{Protocols: new(http.Protocols)}
	t.Protocols.SetUnencryptedHTTP2(true)
	return t
})

var overUnix = overHTTP(func(t testing.TB) net.Listener {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	return l
}, func(s *httptest.Server) http.RoundTripper {
	s.Start()
	return nil
})

// overEach runs test over each wire, and checks that it leaves no goroutine behind.
func overEach(t *testing.T, test func(t *testing.T, between network)) {
	for name, between := range wires {
		t.Run(name, func(t *testing.T) {
			before := runtime.NumGoroutine()
			t.Run("cluster", func(t *testing.T) { test(t, between) })
			for end := time.Now().Add(10 * time.Second); time.Now().Before(end); runtime.Gosched() {
				if runtime.NumGoroutine() <= before { // some have been told to end, and need a moment
					return
				}
			}
			stacks := make([]byte, 1<<20)
			t.Errorf("%d goroutines more than before:\n%s", runtime.NumGoroutine()-before, stacks[:runtime.Stack(stacks, true)])
		})
	}
}

// groupsOf makes a group in each cache of c, with a getter that counts its runs.
func groupsOf(c *Cluster, get shoal.Getter[string]) (groups []*shoal.Group[string], loads *atomic.Int64) {
	loads = new(atomic.Int64)
	for _, p := range c.processes {
		groups = append(groups, groupOf(p.cache, loads, get))
	}
	return groups, loads
}

func groupOf(cache *shoal.Cache, loads *atomic.Int64, get shoal.Getter[string]) *shoal.Group[string] {
	return shoal.NewGroup(cache, "g", func(ctx context.Context, key string) (string, error) {
		loads.Add(1)
		return get(ctx, key)
	}, nil)
}

// patient is for machines that have much else to do.
var patient = &shoal.Options{PeerTimeout: time.Minute}

// keyOf returns a key that cache i owns.
func keyOf(c *Cluster, i int) string {
	for k := 0; ; k++ {
		if key := fmt.Sprint("key ", k); c.Owner(key) == i {
			return key
		}
	}
}

func TestHerdLoadsEachKeyOnceOverEachWire(t *testing.T) {
	overEach(t, func(t *testing.T, between network) {
		c := newCluster(t, 3, patient, between)
		const keys, callers = 30, 10
		var asked sync.WaitGroup
		asked.Add(1)
		groups, loads := groupsOf(c, func(_ context.Context, key string) (string, error) {
			asked.Wait()
			return "<" + key + ">", nil
		})
		var wg sync.WaitGroup
		for _, g := range groups {
			for k := range keys * callers {
				wg.Go(func() {
					key := fmt.Sprint("key ", k%keys)
					if v, err := g.Get(t.Context(), key); v != "<"+key+">" || err != nil {
						t.Errorf("Get(%q) = %q, %v", key, v, err)
					}
				})
			}
		}
		asked.Done()
		wg.Wait()
		if n := loads.Load(); n != keys {
			t.Errorf("%d loads of %d keys", n, keys)
		}
	})
}

func TestOutcomesOfAGetterOverEachWire(t *testing.T) {
	overEach(t, func(t *testing.T, between network) {
		c := newCluster(t, 2, patient, between)
		var outcome func() (string, error)
		groups, loads := groupsOf(c, func(context.Context, string) (string, error) { return outcome() })
		key := keyOf(c, 0)
		get := func(why string, f func() (string, error)) error {
			t.Helper()
			outcome = f
			loads.Store(0)
			v, err := groups[1].Get(t.Context(), key)
			if v != "" || err == nil || loads.Load() != 1 {
				t.Errorf("%s: Get = %q, %v after %d loads", why, v, err, loads.Load())
			}
			return err
		}
		err := get("not found", func() (string, error) { return "", fmt.Errorf("no row: %w", shoal.ErrNotFound) })
		if !errors.Is(err, shoal.ErrNotFound) {
			t.Errorf("not found: %v", err)
		}
		err = get("error", func() (string, error) { return "", errors.New("the text") })
		if failed, ok := errors.AsType[*shoal.PeerError](err); !ok || failed.Op != "load" || !strings.Contains(err.Error(), "the text") {
			t.Errorf("error: %v", err)
		}
		err = get("panic", func() (string, error) { panic("the value") })
		if p, ok := errors.AsType[*shoal.PanicError](err); !ok || p.Value != "the value" || len(p.Stack) == 0 {
			t.Errorf("panic: %v", err)
		}
		err = get("exit", func() (string, error) { runtime.Goexit(); return "", nil })
		if p, ok := errors.AsType[*shoal.PanicError](err); !ok || p.Value != nil {
			t.Errorf("exit: %v", err)
		}
		outcome = func() (string, error) { return "fine", nil }
		for range 2 {
			if v, err := groups[1].Get(t.Context(), key); v != "fine" || err != nil {
				t.Errorf("right after: %q, %v", v, err)
			}
		}
	})
}

func TestAnyKeyAndAnySizeOverEachWire(t *testing.T) {
	overEach(t, func(t *testing.T, between network) {
		c := newCluster(t, 2, patient, between)
		size := 0
		groups, _ := groupsOf(c, func(_ context.Context, key string) (string, error) {
			return key + strings.Repeat("\xff", size), nil
		})
		for _, key := range []string{"", ".", "..", "a b+c%2Fd", "//", "\x00\xff\n", strings.Repeat("k", 4<<10)} {
			for _, size = range []int{0, 1, 100, 10_000, 3 << 20} {
				key := fmt.Sprint(key, size)
				if len(key) > 4<<10 {
					key = key[len(key)-4<<10:]
				}
				for i, g := range groups {
					if v, err := g.Get(t.Context(), key); v != key+strings.Repeat("\xff", size) || err != nil {
						t.Errorf("cache %d: Get(%q), %d bytes: %d bytes, %v", i, key, size, len(v), err)
					}
				}
			}
		}
	})
}

func TestCancelledCallerOverEachWire(t *testing.T) {
	overEach(t, func(t *testing.T, between network) {
		c := newCluster(t, 2, patient, between)
		begun, ended := make(chan struct{}), make(chan struct{})
		groups, _ := groupsOf(c, func(ctx context.Context, _ string) (string, error) {
			close(begun)
			<-ctx.Done()
			close(ended)
			return "", ctx.Err()
		})
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-begun
			cancel()
		}()
		if _, err := groups[1].Get(ctx, keyOf(c, 0)); !errors.Is(err, context.Canceled) {
			t.Errorf("Get: %v", err)
		}
		<-ended // the owner has heard of it
	})
}

func TestOwnerThatIsGoneOverEachWire(t *testing.T) {
	overEach(t, func(t *testing.T, between network) {
		c := newCluster(t, 3, patient, between)
		groups, loads := groupsOf(c, func(_ context.Context, key string) (string, error) { return key, nil })
		if err := c.Cache(0).Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		key := keyOf(c, 0)
		for _, g := range groups[1:] {
			if v, err := g.Get(t.Context(), key); v != key || err != nil {
				t.Errorf("Get = %q, %v", v, err)
			}
		}
		if n := loads.Load(); n != 1 { // by whoever owns it now
			t.Errorf("%d loads", n)
		}
	})
}
