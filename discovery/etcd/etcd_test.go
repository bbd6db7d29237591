package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/discovery/etcd"
)

// A process is a Discovery at work.
type process struct {
	t      *testing.T
	client *clientv3.Client
	lists  chan string // the IDs that it has listed
	logged records
	stop   context.CancelFunc
	ended  chan error
}

// records is a slog.Handler that passes on what is logged.
type records chan string

func (r records) Handle(_ context.Context, record slog.Record) error {
	text := record.Message
	record.Attrs(func(a slog.Attr) bool {
		text += " " + a.String()
		return true
	})
	r <- text
	return nil
}
func (r records) Enabled(context.Context, slog.Level) bool { return true }
func (r records) WithAttrs([]slog.Attr) slog.Handler       { return r }
func (r records) WithGroup(string) slog.Handler            { return r }

// join starts a process with that ID, which finds others by a server's endpoint. Without an ID it is a client.
func join(t *testing.T, endpoint, id string, opts etcd.Options) *process {
	p := &process{t: t, client: newClient(t, endpoint), lists: make(chan string, 1000), logged: make(records, 1000), ended: make(chan error, 1)}
	opts.Logger = slog.New(p.logged)
	discover := etcd.New(p.client, &opts)
	self := shoal.Peer{Weight: 1}
	if id != "" {
		self = shoal.Peer{ID: id, Addr: "http://" + id, Zone: "east", Weight: 2}
	}
	ctx, stop := context.WithCancel(context.Background())
	p.stop = stop
	go func() {
		p.ended <- discover(ctx, self, func(list []shoal.Peer) {
			ids := make([]string, len(list))
			for i, peer := range list {
				ids[i] = peer.ID
			}
			p.lists <- strings.Join(ids, " ")
		})
		close(p.ended)
	}()
	t.Cleanup(func() {
		stop()
		<-p.ended
	})
	return p
}

// sees waits until the process lists want, and returns what it has listed before.
func (p *process) sees(want string) (before []string) {
	p.t.Helper()
	tooLate := time.After(30 * time.Second)
	for {
		select {
		case list := <-p.lists:
			if list == want {
				return before
			}
			before = append(before, list)
		case <-tooLate:
			p.t.Fatalf("it has listed %q, want %q", before, want)
		}
	}
}

// says waits until the process logs what contains want.
func (p *process) says(want string) {
	p.t.Helper()
	tooLate := time.After(30 * time.Second)
	for {
		select {
		case text := <-p.logged:
			if strings.Contains(text, want) {
				return
			}
		case <-tooLate:
			p.t.Fatalf("it has not logged %q", want)
		}
	}
}

// leaves ends the process, and returns what its Discovery did.
func (p *process) leaves() error {
	p.stop()
	return <-p.ended
}

// keys returns the number of keys that begin with the prefix.
func keys(t *testing.T, client *clientv3.Client, prefix string) int64 {
	t.Helper()
	found, err := client.Get(t.Context(), prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		t.Fatal(err)
	}
	return found.Count
}

// prefix is that of the test's own fleet.
func prefix(t *testing.T) string { return "/" + t.Name() + "/" }

const shortTTL = 5 * time.Second

// It comes first, for it counts goroutines, and the tests below run side by side.
func TestNoGoroutineIsLeft(t *testing.T) {
	client := newClient(t, endpoint)
	keys(t, client, prefix(t)) // it has connected
	before := runtime.NumGoroutine()
	for _, self := range []shoal.Peer{{Addr: "http://a"}, {}} {
		ctx, stop := context.WithCancel(t.Context())
		err := etcd.New(client, &etcd.Options{Prefix: prefix(t)})(ctx, self, func([]shoal.Peer) { stop() })
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); runtime.Gosched() {
		if runtime.NumGoroutine() <= before { // some have been told to end, and need a moment
			return
		}
	}
	stacks := make([]byte, 1<<20)
	t.Errorf("%d goroutines more than before:\n%s", runtime.NumGoroutine()-before, stacks[:runtime.Stack(stacks, true)])
}

func TestPeersFindEachOtherAndLeave(t *testing.T) {
	t.Parallel()
	a := join(t, endpoint, "a", etcd.Options{Prefix: prefix(t)})
	a.sees("a")
	b := join(t, endpoint, "b", etcd.Options{Prefix: prefix(t)})
	b.sees("a b")
	a.sees("a b")
	if err := b.leaves(); !errors.Is(err, context.Canceled) {
		t.Errorf("its end: %v", err)
	}
	if n := keys(t, a.client, prefix(t)); n != 1 {
		t.Errorf("when one of two has left, there are %d", n)
	}
	a.sees("a")
}

func TestListSaysAllThatAPeerSaysOfItself(t *testing.T) {
	t.Parallel()
	self := shoal.Peer{ID: "a", Addr: "http://10.0.0.1:8080", Zone: "east", Weight: 2.5}
	ctx, stop := context.WithCancel(t.Context())
	etcd.New(newClient(t, endpoint), &etcd.Options{Prefix: prefix(t)})(ctx, self, func(list []shoal.Peer) {
		if !slices.Equal(list, []shoal.Peer{self}) {
			t.Errorf("it has listed %v, want %v", list, self)
		}
		stop()
	})
}

func TestClientSeesPeersAndIsNotListed(t *testing.T) {
	t.Parallel()
	client := join(t, endpoint, "", etcd.Options{Prefix: prefix(t)})
	client.sees("")
	a := join(t, endpoint, "a", etcd.Options{Prefix: prefix(t)})
	client.sees("a")
	if before := a.sees("a"); before != nil {
		t.Errorf("before, it listed %q", before)
	}
}

func TestPeerThatHasFallenSilentLeavesTheListWithItsLease(t *testing.T) {
	t.Parallel()
	a := join(t, endpoint, "a", etcd.Options{Prefix: prefix(t), TTL: shortTTL})
	road := newRoad(t, endpoint)
	b := join(t, road.addr(), "b", etcd.Options{Prefix: prefix(t), TTL: shortTTL})
	b.sees("a b")
	a.sees("a b")
	road.close()
	a.sees("a")
	road.open()
	a.sees("a b")
	if len(b.lists) > 0 {
		t.Errorf("the one that was away has listed %q", <-b.lists)
	}
}

func TestDiscoveryEndsWhenItsClientIsClosed(t *testing.T) {
	t.Parallel()
	a := join(t, endpoint, "a", etcd.Options{Prefix: prefix(t)})
	a.sees("a")
	a.client.Close()
	if err := <-a.ended; err == nil {
		t.Error("it has ended without an error")
	}
}

func TestOfTwoProcessesWithOneIDNeitherWithdrawsTheOther(t *testing.T) {
	t.Parallel()
	for _, leaving := range []string{"the older", "the newer"} {
		t.Run(leaving, func(t *testing.T) {
			t.Parallel()
			a := join(t, endpoint, "a", etcd.Options{Prefix: prefix(t)})
			older := join(t, endpoint, "b", etcd.Options{Prefix: prefix(t)})
			a.sees("a b")
			newer := join(t, endpoint, "b", etcd.Options{Prefix: prefix(t)})
			newer.sees("a b")
			if leaving == "the older" {
				older.leaves()
			} else {
				newer.leaves()
			}
			join(t, endpoint, "", etcd.Options{Prefix: prefix(t)}).sees("a b")
			join(t, endpoint, "c", etcd.Options{Prefix: prefix(t)})
			if before := a.sees("a b c"); before != nil {
				t.Errorf("in between, it listed %q", before)
			}
		})
	}
}

func TestFleetsWithOtherPrefixesAreNotSeen(t *testing.T) {
	t.Parallel()
	for id, prefix := range map[string]string{"b": prefix(t) + "b", "c": strings.TrimSuffix(prefix(t), "/") + "2"} {
		join(t, endpoint, id, etcd.Options{Prefix: prefix}).sees(id)
	}
	a := join(t, endpoint, "a", etcd.Options{Prefix: strings.TrimSuffix(prefix(t), "/")})
	if before := a.sees("a"); before != nil {
		t.Errorf("it listed %q", before)
	}
}

func TestValueThatIsNoPeerIsPassedOverAndLogged(t *testing.T) {
	t.Parallel()
	client := newClient(t, endpoint)
	t.Cleanup(func() { client.Delete(context.Background(), prefix(t), clientv3.WithPrefix()) })
	for key, value := range map[string]string{"x": "\xff", "y": "{}", "z": `{"Addr":["http://z"]}`, "deep/w": "?"} {
		if _, err := client.Put(t.Context(), prefix(t)+key, value); err != nil {
			t.Fatal(err)
		}
	}
	a := join(t, endpoint, "a", etcd.Options{Prefix: prefix(t)})
	a.sees("a")
	if _, err := client.Put(t.Context(), prefix(t)+"b", `{"ID":"b","Addr":"http://b","Of":"a later version"}`); err != nil {
		t.Fatal(err)
	}
	a.sees("a b")
	a.leaves()
	close(a.logged)
	var all []string
	for text := range a.logged {
		all = append(all, text)
	}
	if len(all) != 3 {
		t.Errorf("of three bad values it has said: %q", all)
	}
}

func TestKeyThatSomebodyHasDeletedIsPutBack(t *testing.T) {
	t.Parallel()
	a := join(t, endpoint, "a", etcd.Options{Prefix: prefix(t)})
	b := join(t, endpoint, "b", etcd.Options{Prefix: prefix(t)})
	a.sees("a b")
	b.sees("a b")
	if _, err := a.client.Delete(t.Context(), prefix(t), clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	c := join(t, endpoint, "", etcd.Options{Prefix: prefix(t)})
	c.sees("a b")
	join(t, endpoint, "d", etcd.Options{Prefix: prefix(t)})
	if before := a.sees("a b d"); before != nil {
		t.Errorf("in between, it listed %q", before)
	}
}

func TestEtcdThatCannotBeReachedAtFirstIsAnError(t *testing.T) {
	t.Parallel()
	nowhere := newRoad(t, endpoint)
	nowhere.close()
	a := join(t, nowhere.addr(), "a", etcd.Options{Prefix: prefix(t), TTL: shortTTL})
	if err := <-a.ended; err == nil || !strings.HasPrefix(err.Error(), "etcd: grant a lease: ") {
		t.Errorf("it ended with: %v", err)
	}
	select {
	case list := <-a.lists:
		t.Errorf("it listed %q", list)
	default:
	}
}

func TestLeavingIsPossibleWhileEtcdIsSilent(t *testing.T) {
	t.Parallel()
	road := newRoad(t, endpoint)
	a := join(t, road.addr(), "a", etcd.Options{Prefix: prefix(t)})
	a.sees("a")
	road.gate.Lock()
	defer road.gate.Unlock()
	began := time.Now()
	if err := a.leaves(); !errors.Is(err, context.Canceled) {
		t.Errorf("its end: %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it has taken %v", took)
	}
	a.says("stays listed")
}

func TestWatchThatHasMissedACompactionReadsTheListAgain(t *testing.T) {
	t.Parallel()
	server, err := serve(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	road := newRoad(t, server.Clients[0].Addr().String())
	a := join(t, road.addr(), "a", etcd.Options{TTL: time.Hour})
	a.sees("a")

	road.close()
	direct := newClient(t, server.Clients[0].Addr().String())
	for range 3 {
		put, err := direct.Put(t.Context(), "/shoal/b", `{"ID":"b","Addr":"http://b"}`)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := direct.Compact(t.Context(), put.Header.Revision); err != nil {
			t.Fatal(err)
		}
	}
	road.open()
	a.says("compacted")
	if before := a.sees("a b"); before != nil {
		t.Errorf("in between, it listed %q", before)
	}
}

// Whatever keeps etcd away for longer than a TTL, peers keep their list; and when it is back, only who has really gone
// goes, not those who announce themselves a little later.
func TestOutageTakesNobodyAwayWhoIsStillThere(t *testing.T) {
	t.Parallel()
	type outage struct{ begin, end func() }
	for name, of := range map[string]func(t *testing.T, r *road) outage{
		"refused": func(t *testing.T, r *road) outage { return outage{r.close, r.open} },
		"silent":  func(t *testing.T, r *road) outage { return outage{r.gate.Lock, r.gate.Unlock} },
		"restarted": func(t *testing.T, r *road) outage {
			dir := t.TempDir()
			start := func() func() {
				server, err := serve(dir)
				if err != nil {
					t.Fatal(err)
				}
				r.to.Store(server.Clients[0].Addr().String())
				return server.Close
			}
			stop := start()
			t.Cleanup(func() { stop() })
			return outage{
				func() {
					r.close() // or the server would wait for those who are connected
					stop()
				},
				func() {
					stop = start()
					r.open()
				},
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			road := newRoad(t, endpoint)
			outage := of(t, road)
			peers := make(map[string]*process)
			for _, id := range []string{"a", "b", "c", "d"} {
				peers[id] = join(t, road.addr(), id, etcd.Options{Prefix: prefix(t), TTL: shortTTL})
			}
			for _, p := range peers {
				p.sees("a b c d")
			}

			outage.begin()
			peers["d"].client.Close()
			<-peers["d"].ended
			delete(peers, "d")
			for _, p := range peers {
				p.says("out of touch with etcd")
			}
			if name != "restarted" { // which gives all leases a TTL more
				watching := newClient(t, endpoint)
				ctx, stop := context.WithTimeout(t.Context(), 4*shortTTL)
				defer stop()
				changes := watching.Watch(ctx, prefix(t), clientv3.WithPrefix())
				for keys(t, watching, prefix(t)) > 0 {
					if _, ok := <-changes; !ok {
						t.Fatal("leases that nobody keeps alive do not end")
					}
				}
			}
			outage.end()

			for id, p := range peers {
				if before := p.sees("a b c"); before != nil {
					t.Errorf("in between, %s listed %q", id, before)
				}
			}
			client := join(t, road.addr(), "", etcd.Options{Prefix: prefix(t)})
			if before := client.sees("a b c"); before != nil {
				t.Errorf("in between, a new one listed %q", before)
			}
		})
	}
}

func TestCachesFindEachOtherAndServeWhenOneHasLeft(t *testing.T) {
	t.Parallel()
	caches, groups := make([]*shoal.Cache, 3), make([]*shoal.Group[string], 3)
	for i := range caches {
		var handler atomic.Pointer[shoal.Cache]
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if cache := handler.Load(); cache != nil {
				cache.ServeHTTP(w, r)
			}
		}))
		t.Cleanup(server.Close)
		cache, err := shoal.New(&shoal.Options{
			Self:      server.URL,
			Discovery: etcd.New(newClient(t, endpoint), &etcd.Options{Prefix: prefix(t)}),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cache.Shutdown(context.Background()) })
		handler.Store(cache)
		caches[i] = cache
		groups[i] = shoal.NewGroup(cache, "g", func(_ context.Context, key string) (string, error) {
			return strings.ToUpper(key), nil
		}, nil)
	}
	serve := func(peers int) {
		t.Helper()
		for i, cache := range caches[:peers] {
			if err := cache.Ready(t.Context()); err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(10 * time.Second); len(cache.Peers()) != peers; runtime.Gosched() {
				if time.Now().After(end) {
					t.Fatalf("cache %d sees %v", i, cache.Peers())
				}
			}
		}
		for i, g := range groups[:peers] {
			for k := range 100 {
				key := fmt.Sprint("key ", k)
				if v, err := g.Get(t.Context(), key); v != strings.ToUpper(key) || err != nil {
					t.Errorf("cache %d of %d: %q, %v", i, peers, v, err)
				}
			}
		}
	}
	serve(3)
	if err := caches[2].Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	serve(2)
}

func TestNewPanicsNamingWhatIsWrong(t *testing.T) {
	client := newClient(t, endpoint)
	for want, call := range map[string]func(){
		"client":      func() { etcd.New(nil, nil) },
		"Options.TTL": func() { etcd.New(client, &etcd.Options{TTL: time.Second}) },
	} {
		func() {
			defer func() {
				if text := fmt.Sprint(recover()); !strings.Contains(text, want) {
					t.Errorf("the panic says %q, and not %q", text, want)
				}
			}()
			call()
		}()
	}
}
