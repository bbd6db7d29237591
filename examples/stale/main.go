// Stale shows what callers see of an origin that fails for a while: values all the time, old ones marked as such. It
// starts an origin and, in front of it, three servers that share a cache, has many callers ask the three without end,
// makes the origin fail and work again, and prints what came of it:
//
//	go run ./examples/stale
//
// It stops by itself after some seconds, and fails if an answer was not what is claimed here.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoalcache/shoal"
)

const (
	fronts    = 3
	callers   = 8                     // at each front
	pause     = 10 * time.Millisecond // of a caller between two questions
	keys      = 6
	ttl       = 500 * time.Millisecond
	originLag = 20 * time.Millisecond // of each answer
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("stale: ")
	listen := func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }
	if err := run(os.Stdout, listen, &http.Transport{MaxIdleConnsPerHost: fronts * callers}); err != nil {
		log.Fatal(err)
	}
}

// A phase is a time in the origin's life, and what was counted in it.
type phase struct {
	name    string
	fails   bool
	edition int // of what the origin has to say
	lasts   time.Duration

	fresh, stale, errors int           // answers to callers
	loads                int           // requests that reached the origin
	lastOld              time.Duration // how long into the phase the last older edition was answered
}

func (p *phase) requests() int { return p.fresh + p.stale + p.errors }

// run is the whole story: an origin, the fronts, callers, three phases, and what came of them. Every server listens
// where listen says, and is reached by transport.
func run(out io.Writer, listen func() (net.Listener, error), transport *http.Transport) error {
	phases := []*phase{
		{name: "origin up", edition: 1, lasts: 1500 * time.Millisecond},
		{name: "origin down", edition: 1, fails: true, lasts: 1500 * time.Millisecond},
		// A load that has failed is tried again at growing intervals, after so long a failure of 2 s at most.
		{name: "origin back", edition: 2, lasts: 3 * time.Second},
	}
	t := &timeline{phase: phases[0], loading: make(map[string]int)}

	listeners, addrs, err := listenAll(listen, 1+fronts)
	if err != nil {
		return err
	}
	var servers []*http.Server
	defer func() {
		transport.CloseIdleConnections()
		for _, server := range servers {
			server.Shutdown(context.Background()) // the origin may still be asked, to replace old values
		}
	}()
	serve := func(handler http.Handler) {
		server := &http.Server{Handler: handler}
		go server.Serve(listeners[len(servers)])
		servers = append(servers, server)
	}
	serve(origin(t))
	source, addrs := addrs[0], addrs[1:]
	caches := make([]*shoal.Cache, fronts)
	for i, addr := range addrs {
		caches[i], err = shoal.New(&shoal.Options{Self: addr, Discovery: shoal.Static(addrs...), Transport: transport})
		if err != nil {
			return err
		}
		defer caches[i].Shutdown(context.Background())
		serve(front(caches[i], source, transport))
	}
	for _, cache := range caches {
		if err := ready(cache); err != nil {
			return err
		}
	}

	stop := startCallers(t, addrs, &http.Client{Transport: transport})
	fmt.Fprintf(out, "%-12s%9s%9s%9s%9s%9s\n", "", "requests", "fresh", "stale", "errors", "loads")
	over := func(p *phase) {
		fmt.Fprintf(out, "%-12s%9d%9d%9d%9d%9d\n", p.name, p.requests(), p.fresh, p.stale, p.errors, p.loads)
	}
	for i, p := range phases {
		t.enter(p)
		if i > 0 {
			over(phases[i-1]) // in which nothing is counted any more
		}
		time.Sleep(p.lasts)
	}
	stop()
	t.enter(new(phase)) // old values may still be replaced
	over(phases[len(phases)-1])
	if err := verify(t, phases); err != nil {
		return err
	}
	down, back := phases[1], phases[2]
	fmt.Fprintf(out, "\nWhile the origin was down, %d of %d answers were old values, marked stale, the others not yet past their TTL of\n"+
		"%v; none was an error. The origin was asked %d times meanwhile, and never twice at once for one key. After it was\n"+
		"back, old values were served for another %.1f s, and then none.\n",
		down.stale, down.requests(), ttl, down.loads, back.lastOld.Seconds())
	return nil
}

// verify reports what of this program's claims did not hold.
func verify(t *timeline, phases []*phase) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	up, down, back := phases[0], phases[1], phases[2]
	switch {
	case t.firstErr != nil:
		return fmt.Errorf("%d callers got no good answer, the first: %w", up.errors+down.errors+back.errors, t.firstErr)
	case t.most != 1:
		return fmt.Errorf("the origin was asked for one key %d times at once", t.most)
	case up.fresh == 0:
		return errors.New("nothing was fresh while the origin was up")
	case down.stale == 0:
		return errors.New("nothing was stale while the origin was down")
	case back.fresh == 0 || back.lastOld > back.lasts-ttl:
		return errors.New("old values were served to the end")
	}
	return nil
}

// A timeline counts what happens, in the phase in which it does.
type timeline struct {
	mu       sync.Mutex // guards what follows, and the phases
	phase    *phase
	began    time.Time      // the phase
	loading  map[string]int // requests at the origin, by path
	most     int            // … at once for one
	firstErr error
}

func (t *timeline) enter(p *phase) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.phase, t.began = p, time.Now()
}

// load counts a request at the origin, and returns what it is to do with it.
func (t *timeline) load(path string) *phase {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.phase.loads++
	t.loading[path]++
	t.most = max(t.most, t.loading[path])
	return t.phase
}

func (t *timeline) loaded(path string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.loading[path]--
}

// answered counts an answer to a caller.
func (t *timeline) answered(edition int, stale bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.phase
	old := err == nil && edition < p.edition
	if old && !stale {
		err = fmt.Errorf("edition %d is not marked stale, while the origin has %d", edition, p.edition)
	}
	switch {
	case err != nil:
		p.errors++
		t.firstErr = cmp.Or(t.firstErr, err)
	case stale:
		p.stale++
	default:
		p.fresh++
	}
	if old {
		p.lastOld = time.Since(t.began)
	}
}

// origin is where values come from. It takes its time, and fails when the phase says so.
func origin(t *timeline) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := t.load(r.URL.Path)
		time.Sleep(originLag)
		t.loaded(r.URL.Path)
		if p.fails {
			http.Error(w, "out of order", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, p.edition)
	})
}

// front is a server before the origin at source. It shares what it has with the other fronts.
func front(cache *shoal.Cache, source string, transport http.RoundTripper) http.Handler {
	load := func(ctx context.Context, key string) (string, error) {
		_, body, err := get(ctx, &http.Client{Transport: transport}, source+"/"+key)
		return body, err
	}
	// Past its TTL, a value is served while one load replaces it, for ten seconds, and for a minute if that load fails.
	pages := shoal.NewGroup(cache, "pages", load, &shoal.GroupOptions[string]{
		TTL:          ttl,
		Stale:        10 * time.Second,
		StaleIfError: time.Minute,
	})

	mux := http.NewServeMux()
	mux.Handle("/_shoal/", cache)
	mux.HandleFunc("GET /{key}", func(w http.ResponseWriter, r *http.Request) {
		page, err := pages.GetEntry(r.Context(), r.PathValue("key"), nil)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		status := "shoal; hit"
		if page.Source == "getter" {
			status = "shoal; fwd=miss"
		}
		if page.Stale {
			status += "; detail=stale"
		}
		w.Header().Set("Age", strconv.Itoa(int(page.Age.Seconds()))) // RFC 9111
		w.Header().Set("Cache-Status", status)                       // RFC 9211
		io.WriteString(w, page.Value)
	})
	return mux
}

// startCallers lets callers ask the fronts at addrs for one key after the other, until stop is called.
func startCallers(t *timeline, addrs []string, client *http.Client) (stop func()) {
	var running sync.WaitGroup
	var stopped atomic.Bool
	for i := range fronts * callers {
		running.Go(func() {
			for n := i; !stopped.Load(); n++ {
				t.answered(ask(client, fmt.Sprintf("%s/page-%d", addrs[i%fronts], n%keys)))
				time.Sleep(pause)
			}
		})
	}
	return func() {
		stopped.Store(true)
		running.Wait()
	}
}

// ask returns the edition that a front answers, and whether it is marked stale.
func ask(client *http.Client, url string) (edition int, stale bool, err error) {
	header, body, err := get(context.Background(), client, url)
	if err != nil {
		return 0, false, err
	}
	edition, err = strconv.Atoi(body)
	return edition, strings.HasSuffix(header.Get("Cache-Status"), "; detail=stale"), err
}

// get returns the header and the body at url.
func get(ctx context.Context, client *http.Client, url string) (http.Header, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, resp.Status, strings.TrimSpace(string(body)))
	}
	return resp.Header, string(body), err
}

// listenAll returns n listeners and their addresses.
func listenAll(listen func() (net.Listener, error), n int) (listeners []net.Listener, addrs []string, err error) {
	for range n {
		l, err := listen()
		if err != nil {
			return nil, nil, err
		}
		listeners, addrs = append(listeners, l), append(addrs, "http://"+l.Addr().String())
	}
	return listeners, addrs, nil
}

// ready waits until cache sees all fronts. Those that it greeted before they served, it greets again.
func ready(cache *shoal.Cache) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := cache.Ready(ctx); err != nil {
		return err
	}
	for len(cache.Peers()) != fronts {
		select {
		case <-ctx.Done():
			return fmt.Errorf("a front sees %d of %d", len(cache.Peers()), fronts)
		case <-time.After(pause):
		}
	}
	return nil
}
