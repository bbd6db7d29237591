package checker

// peer_linux_test.go: the process that TestProcessesOverTCP starts, which is this binary again. It does what it is told
// on its standard input, as JSON, and says on its standard output what came of it.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoalcache/shoal"
)

// spawnEnv is set for a process that is to be a peer: to its spawn.
const spawnEnv = "SHOAL_CHECKER_PEER"

// A spawn is what a peer is told at its start.
type spawn struct {
	Seed   uint64 // of the options
	Owners int
	Self   string // host and port
	List   []string
	Begin  time.Duration // of the run, on the clock that all processes of a machine have in common
}

// An order is what a peer is told to do.
type order struct {
	ID     int
	Do     string // a kind, or many, list, seen, ready, shutdown; or loaded, for what it has asked for
	Group  string
	Key    string
	Keys   []string
	Value  int
	Limit  time.Duration // of its context
	Opts   *shoal.GetOptions
	Values []int // loaded; 0: there is none
	Err    string
}

// A report is what came of an order, or of a load what is to be loaded.
type report struct {
	ID         int
	Load       bool
	Keys       []string
	Value      int
	Values     map[string]int
	Source     string
	Err        string
	Start, End time.Duration // since the run began
}

func TestMain(m *testing.M) {
	if text := os.Getenv(spawnEnv); text != "" {
		if err := bePeer(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// A remote is this process as a peer.
type remote struct {
	spawn
	cache  *shoal.Cache
	groups map[string]*shoal.Group[int]
	lists  chan []shoal.Peer

	mu    sync.Mutex // guards what follows, and writing
	out   *json.Encoder
	loads map[int]chan order
	last  int // load
}

// bePeer does what it is told until there is nobody any more to tell it.
func bePeer(text string) error {
	p := &remote{loads: make(map[int]chan order), out: json.NewEncoder(os.Stdout), lists: make(chan []shoal.Peer, 1)}
	if err := json.Unmarshal([]byte(text), &p.spawn); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", p.Self)
	if err != nil {
		return err
	}
	p.lists <- listOf(p.List)
	p.cache, err = shoal.New(&shoal.Options{Self: p.Self, Discovery: p.discover, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	p.open()
	mux := http.NewServeMux()
	mux.Handle("/_shoal/", p.cache)
	go http.Serve(listener, mux)
	for orders := json.NewDecoder(os.Stdin); ; {
		var o order
		if err := orders.Decode(&o); err != nil {
			return nil // whoever has started this process has ended it, or has ended
		}
		if o.Do == "loaded" {
			p.mu.Lock()
			loaded := p.loads[o.ID]
			delete(p.loads, o.ID)
			p.mu.Unlock()
			loaded <- o
		} else {
			go p.obey(o)
		}
	}
}

func (p *remote) discover(ctx context.Context, _ shoal.Peer, set func([]shoal.Peer)) error {
	for {
		select {
		case list := <-p.lists:
			set(list)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func listOf(addrs []string) (list []shoal.Peer) {
	for _, addr := range addrs {
		list = append(list, shoal.Peer{Addr: addr})
	}
	return list
}

// open makes the groups, which are those of any run.
func (p *remote) open() {
	o := drawOptions(rand.New(rand.NewPCG(p.Seed, 3)))
	o.keepAt(p.Owners)
	if o.batches {
		o.loaded.GetMany = func(ctx context.Context, keys []string) (map[string]int, error) {
			values, err := p.load(ctx, keys...)
			found := make(map[string]int)
			for i, v := range values {
				if v != 0 {
					found[keys[i]] = v
				}
			}
			return found, err
		}
	}
	p.groups = map[string]*shoal.Group[int]{
		"loaded": shoal.NewGroup(p.cache, "loaded", func(ctx context.Context, key string) (int, error) {
			values, err := p.load(ctx, key)
			if err != nil {
				return 0, err
			} else if values[0] == 0 {
				return 0, shoal.ErrNotFound
			}
			return values[0], nil
		}, &o.loaded),
		"held":     shoal.NewGroup(p.cache, "held", nil, &o.held),
		"counters": shoal.NewGroup(p.cache, "counters", nil, &o.held),
		"mixed":    shoal.NewGroup(p.cache, "mixed", nil, &o.held),
	}
}

// load asks whoever gives the orders, who has the source.
func (p *remote) load(ctx context.Context, keys ...string) ([]int, error) {
	loaded := make(chan order, 1)
	p.mu.Lock()
	p.last++
	id := p.last
	p.loads[id] = loaded
	p.mu.Unlock()
	p.say(report{ID: id, Load: true, Keys: keys})
	select {
	case o := <-loaded:
		if o.Err != "" {
			return nil, errors.New(o.Err)
		}
		return o.Values, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *remote) say(r report) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out.Encode(r) // if nobody listens, orders end too
}

func (p *remote) obey(o order) {
	r := report{ID: o.ID, Start: monotonic() - p.Begin}
	ctx, cancel := context.WithTimeout(context.Background(), o.Limit)
	defer cancel()
	g := p.groups[o.Group]
	var err error
	switch o.Do {
	case string(get):
		var e shoal.Entry[int]
		e, err = g.GetEntry(ctx, o.Key, o.Opts)
		r.Value, r.Source = e.Value, e.Source
		if errors.Is(err, shoal.ErrNotFound) {
			err = nil
		}
	case "many":
		r.Values, err = g.GetMany(ctx, o.Keys)
	case string(set):
		err = g.Set(ctx, o.Key, o.Value)
	case string(remove):
		err = g.Remove(ctx, o.Keys...)
	case string(purge):
		err = g.Purge(ctx)
	case string(add):
		r.Value, err = shoal.Add(ctx, g, o.Key, o.Value)
	case "ready":
		err = p.cache.Ready(ctx)
	case "list":
		p.lists <- listOf(o.Keys)
	case "seen":
		for _, peer := range p.cache.Peers() {
			r.Keys = append(r.Keys, peer.ID)
		}
	default:
		err = fmt.Errorf("what is %q?", o.Do)
	}
	r.End = monotonic() - p.Begin
	if err != nil {
		r.Err = err.Error()
	}
	p.say(r)
}

// monotonic is the clock that all processes of a machine have in common.
func monotonic() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		panic(err) // there is no system without it
	}
	return time.Duration(now.Nano())
}
