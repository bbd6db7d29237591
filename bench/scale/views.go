//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log"
	"log/slog"
	"net/http"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/consistenthash"
	"github.com/shoalcache/shoal/shoalpb"
)

const mediaType = "application/vnd.shoal.v1+protobuf"

// stand answers greetings in the place of peers that are not there.
type stand struct{ greetings atomic.Int64 }

func (s *stand) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body == nil {
		return nil, errors.New("nobody is there to upgrade to a stream")
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	var question shoalpb.Request
	if err := proto.Unmarshal(body, &question); err != nil {
		return nil, err
	}
	if question.GetHello() == nil {
		return nil, fmt.Errorf("nobody is there to answer a %T", question.GetOp())
	}
	addr := "http://" + req.URL.Host
	answer, err := shoalpb.AppendReply(nil, &shoalpb.Reply{
		Sender: sender(addr),
		Answer: &shoalpb.Reply_Hello{Hello: &shoalpb.Hello{Addr: []byte(addr), Weight: 1}},
	})
	if err != nil {
		return nil, err
	}
	s.greetings.Add(1)
	return &http.Response{
		StatusCode: http.StatusOK,
		Header:     http.Header{"Content-Type": {mediaType}},
		Body:       io.NopCloser(bytes.NewReader(answer)),
		Request:    req,
	}, nil
}

// sender is who is at addr.
func sender(addr string) *shoalpb.Sender {
	incarnation := fnv.New64a()
	incarnation.Write([]byte(addr))
	return &shoalpb.Sender{Id: []byte(addr), Incarnation: incarnation.Sum64()}
}

// A viewer is a process that sees peers, of which it alone is there.
type viewer struct {
	cache *shoal.Cache
	stand *stand
	set   func([]shoal.Peer)
	place atomic.Int64 // nanoseconds that the last Placement took
}

// newViewer returns a process whose discovery says nothing yet.
func newViewer() *viewer {
	v := new(viewer)
	return v.start(func(members []consistenthash.Member) consistenthash.Map {
		began := time.Now()
		m := consistenthash.New(members)
		v.place.Store(int64(time.Since(began)))
		return m
	})
}

// start starts v with a placement.
func (v *viewer) start(place func([]consistenthash.Member) consistenthash.Map) *viewer {
	v.stand = new(stand)
	sets := make(chan func([]shoal.Peer))
	var err error
	v.cache, err = shoal.New(&shoal.Options{
		Self:      address(0),
		Transport: v.stand,
		Discovery: func(ctx context.Context, _ shoal.Peer, set func([]shoal.Peer)) error {
			sets <- set
			<-ctx.Done()
			return ctx.Err()
		},
		Placement: place,
		Logger:    slog.New(slog.DiscardHandler),
	})
	check(err)
	v.set = <-sets
	return v
}

// see has discovery list n processes, and returns how long it takes until they are seen.
func (v *viewer) see(n int) time.Duration {
	list := make([]shoal.Peer, n)
	for i := range list {
		list[i].Addr = address(i)
	}
	began := time.Now()
	v.set(list)
	for len(v.cache.Peers()) != n {
		time.Sleep(20 * time.Microsecond)
	}
	return time.Since(began)
}

// settle waits until so many greetings have been answered in all, and nothing has been going on for a second.
func (v *viewer) settle(greetings int) {
	quiet, last := 0, cpuTime()
	for range time.Tick(100 * time.Millisecond) {
		now := cpuTime()
		if v.stand.greetings.Load() >= int64(greetings) && now-last < 5*time.Millisecond {
			quiet++
		} else {
			quiet = 0
		}
		if quiet == 10 {
			return
		}
		last = now
	}
}

func (v *viewer) end() { check(v.cache.Shutdown(context.Background())) }

// receive has the process greeted by the processes from 1 to n.
func (v *viewer) receive(n int) {
	for i := 1; i < n; i++ {
		body, err := proto.Marshal(&shoalpb.Request{
			Sender: sender(address(i)),
			Op:     &shoalpb.Request_Hello{Hello: &shoalpb.Hello{Addr: []byte(address(i)), Weight: 1}},
		})
		check(err)
		req, err := http.NewRequest(http.MethodPost, "http://here/_shoal/", bytes.NewReader(body))
		check(err)
		req.Header.Set("Content-Type", mediaType)
		v.cache.ServeHTTP(new(nowhere), req)
	}
}

// nowhere is a ResponseWriter that nobody reads.
type nowhere struct{ header http.Header }

func (n *nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (n *nowhere) WriteHeader(int)             {}
func (n *nowhere) Header() http.Header {
	if n.header == nil {
		n.header = make(http.Header)
	}
	return n.header
}

func printViews(sizes []int) {
	fmt.Println("| peers | Ready after | heap a peer | … for each view of the last minute | stacks a peer | a new view is seen after | … of that, Placement | CPU until all are greeted | CPU to be greeted by all | a million entries are looked through in |\n|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
	for _, n := range sizes {
		v := newViewer()
		before := memory()
		began := time.Now()
		v.see(n - 1)
		check(v.cache.Ready(context.Background()))
		ready := time.Since(began)
		v.settle(2 * (n - 2))
		after := memory()

		used := cpuTime()
		swap := v.see(n)
		place := time.Duration(v.place.Load())
		v.settle(3*(n-2) + 2)
		greet := cpuTime() - used
		former := memory()

		used = cpuTime()
		v.receive(n)
		v.settle(0)
		greeted := cpuTime() - used
		v.end()

		fmt.Printf("| %d | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", n, short(ready),
			amount((after.heap-before.heap)/float64(n)), amount((former.heap-after.heap)/float64(n)), amount((after.stacks-before.stacks)/float64(n)),
			short(swap), short(place), short(greet), short(greeted), short(through(n, 1_000_000)))
	}
	fmt.Println()
}

// through returns how long a process with so many entries takes to look whose they are in a view of n. They all stay.
func through(n, entries int) time.Duration {
	var began time.Time
	took := make(chan time.Duration, 1)
	v := new(viewer).start(func(members []consistenthash.Member) consistenthash.Map {
		self := slices.IndexFunc(members, func(m consistenthash.Member) bool { return m.ID == address(0) })
		looks := 0
		return kept{consistenthash.New(members), self, func() {
			if looks++; len(members) < n {
				return
			}
			switch looks {
			case 1:
				began = time.Now()
			case entries:
				took <- time.Since(began)
			}
		}}
	})
	defer v.end()
	g := shoal.NewGroup[shoal.ByteView](v.cache, "g", nil, &shoal.GroupOptions[shoal.ByteView]{MaxBytes: 1 << 30})
	value := shoal.NewByteView(make([]byte, 100))
	for i := range entries {
		check(g.Set(context.Background(), fmt.Sprintf("user:%08d", i), value))
	}
	v.see(n)
	return <-took
}

// kept is a Map that looks for a key's owner, and then says that it is self.
type kept struct {
	consistenthash.Map
	self int
	look func()
}

func (k kept) Owner(key string) int {
	k.Map.Owner(key)
	k.look()
	return k.self
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// cpuTime is what this process has used so far.
func cpuTime() time.Duration {
	var r syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &r))
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
