//go:build unix

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/consistenthash"
)

// peersEnv has the number of peers, in the process that is them.
const peersEnv = "SHOAL_BENCH_SCALE"

const (
	streams   = 200 // peers, each a Cache of its own
	longValue = 64 << 10
)

// bePeers is the life of that process. It says where its peers are, and what it uses whenever it reads a line.
func bePeers() {
	n, err := strconv.Atoi(os.Getenv(peersEnv))
	check(err)
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		check(err)
		self := "http://" + l.Addr().String()
		c, err := shoal.New(&shoal.Options{Self: self, Discovery: shoal.Static(self), Logger: slog.New(slog.DiscardHandler)})
		check(err)
		go http.Serve(l, c)
		check(c.Ready(context.Background()))
		newGroup(c)
		fmt.Println(self)
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		u := useHere(lines.Text() == "memory")
		fmt.Println(u.heap, u.stacks, u.goroutines, u.cpu.Nanoseconds())
	}
}

// newGroup makes a group of values that are not kept.
func newGroup(c *shoal.Cache) *shoal.Group[shoal.ByteView] {
	return shoal.NewGroup(c, "g", func(_ context.Context, key string) (shoal.ByteView, error) {
		if strings.HasPrefix(key, "short") {
			return shoal.NewByteView(key), nil
		}
		return shoal.NewByteView(make([]byte, longValue)), nil
	}, &shoal.GroupOptions[shoal.ByteView]{TTL: -1, HotBytes: -1})
}

// use is what a process uses.
type use struct {
	heap, stacks, goroutines float64
	cpu                      time.Duration
}

func (u use) since(before use) use {
	return use{u.heap - before.heap, u.stacks - before.stacks, u.goroutines - before.goroutines, u.cpu - before.cpu}
}

// memory returns what this process uses of memory when its garbage has been collected.
func memory() use {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return use{heap: float64(m.HeapAlloc), stacks: float64(m.StackInuse), goroutines: float64(runtime.NumGoroutine())}
}

// others is the process that is the peers, as seen from here.
type others struct {
	cmd   *exec.Cmd
	ask   io.WriteCloser
	lines *bufio.Scanner
	addrs []string
}

// startOthers starts the process of n peers, and returns when they listen.
func startOthers(n int) *others {
	program, err := os.Executable()
	check(err)
	o := &others{cmd: exec.Command(program)}
	o.cmd.Env = append(os.Environ(), peersEnv+"="+strconv.Itoa(n))
	o.cmd.Stderr = os.Stderr
	o.ask, err = o.cmd.StdinPipe()
	check(err)
	out, err := o.cmd.StdoutPipe()
	check(err)
	check(o.cmd.Start())
	o.lines = bufio.NewScanner(out)
	for range n {
		o.addrs = append(o.addrs, o.line())
	}
	return o
}

func (o *others) line() string {
	if !o.lines.Scan() {
		check(fmt.Errorf("the process of the peers has ended: %w", o.cmd.Wait()))
	}
	return o.lines.Text()
}

// useHere is what this process has used so far. To tell its memory, it collects garbage.
func useHere(withMemory bool) use {
	var u use
	if withMemory {
		u = memory()
	}
	u.cpu = cpuTime()
	return u
}

// use returns what this process and that one have used so far.
func (o *others) use(withMemory bool) (here, there use) {
	what := "cpu"
	if withMemory {
		what = "memory"
	}
	_, err := fmt.Fprintln(o.ask, what)
	check(err)
	var cpu int64
	_, err = fmt.Sscan(o.line(), &there.heap, &there.stacks, &there.goroutines, &cpu)
	check(err)
	there.cpu = time.Duration(cpu)
	return useHere(withMemory), there
}

func (o *others) end() {
	o.ask.Close()
	check(o.cmd.Wait())
}

// counted counts the bytes of connections, and those opened.
type counted struct{ bytes, opened atomic.Int64 }

type countedConn struct {
	net.Conn
	*counted
}

func (c countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.bytes.Add(int64(n))
	return n, err
}

func (c countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.bytes.Add(int64(n))
	return n, err
}

func (c *counted) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c.opened.Add(1)
	return countedConn{conn, c}, nil
}

// An asker is a process that asks peers and owns nothing.
type asker struct {
	cache     *shoal.Cache
	group     *shoal.Group[shoal.ByteView]
	set       func([]shoal.Peer)
	transport *http.Transport
	count     counted
}

func newAsker() *asker {
	a := new(asker)
	a.transport = &http.Transport{DialContext: a.count.dial, MaxIdleConnsPerHost: 256, DisableCompression: true} // as Shoal's own
	sets := make(chan func([]shoal.Peer))
	var err error
	a.cache, err = shoal.New(&shoal.Options{
		Transport: a.transport,
		Discovery: func(ctx context.Context, _ shoal.Peer, set func([]shoal.Peer)) error {
			sets <- set
			<-ctx.Done()
			return ctx.Err()
		},
		Logger: slog.New(slog.DiscardHandler),
	})
	check(err)
	a.group, a.set = newGroup(a.cache), <-sets
	return a
}

// see has discovery list addrs, and waits until all there have been greeted that are to be.
func (a *asker) see(addrs []string) {
	list := make([]shoal.Peer, len(addrs))
	for i := range list {
		list[i].Addr = addrs[i]
	}
	a.set(list)
	check(a.cache.Ready(context.Background()))
	waitFor(func() bool { return len(a.cache.Peers()) == len(addrs) })
	for last := int64(-1); last != a.count.bytes.Load(); time.Sleep(100 * time.Millisecond) {
		last = a.count.bytes.Load()
	}
}

// getAll gets a value from each peer.
func (a *asker) getAll(what string) {
	var members []consistenthash.Member
	for _, p := range a.cache.Peers() {
		members = append(members, consistenthash.Member{ID: p.ID})
	}
	m, asked := consistenthash.New(members), make(map[int]bool)
	for i := 0; len(asked) < len(members); i++ {
		key := fmt.Sprint(what, i)
		if owner := m.Owner(key); !asked[owner] {
			asked[owner] = true
			_, err := a.group.Get(context.Background(), key)
			check(err)
		}
	}
}

// leave closes connections that nobody uses.
func (a *asker) leave() {
	a.transport.CloseIdleConnections()
	time.Sleep(500 * time.Millisecond) // until the other side has seen it
}

func (a *asker) onStreams() bool {
	for _, p := range a.cache.Stats().Peers {
		if p.Wire != "stream" {
			return false
		}
	}
	return true
}

func printStreams() {
	o := startOthers(streams)
	defer o.end()
	a := newAsker()
	defer func() { check(a.cache.Shutdown(context.Background())) }()

	fmt.Printf("| of %d peers, each | asking: heap | stacks | goroutines | answering: heap | stacks | goroutines |\n|---|--:|--:|--:|--:|--:|--:|\n", streams)
	here, there := o.use(true)
	row := func(what string) {
		nowHere, nowThere := o.use(true)
		fmt.Printf("| %s |", what)
		for _, u := range []use{nowHere.since(here), nowThere.since(there)} {
			fmt.Printf(" %s | %s | %.1f |", amount(u.heap/streams), amount(u.stacks/streams), u.goroutines/streams)
		}
		fmt.Println()
	}
	a.see(o.addrs)
	row("is known, and a connection is kept from greeting it")
	a.leave()
	row("is known")
	here, there = o.use(true)
	waitFor(func() bool {
		a.getAll("short")
		return a.onStreams()
	})
	a.leave()
	row("has a stream, after short values")
	for range 20 {
		a.getAll("long")
	}
	a.leave()
	row("has a stream, after values of 64 KiB")

	fmt.Println("\n| a greeting | CPU, both ends | bytes |\n|---|--:|--:|")
	for _, kept := range []bool{false, true} {
		const rounds = 10
		var cpu time.Duration
		var sent int64
		greetings := 0
		for round := range rounds {
			if !kept {
				a.leave()
			}
			addrs := o.addrs[:streams-1+round%2]
			before := a.count.bytes.Load()
			here, there := o.use(false)
			a.see(addrs)
			nowHere, nowThere := o.use(false)
			cpu += nowHere.cpu - here.cpu + nowThere.cpu - there.cpu
			sent += a.count.bytes.Load() - before
			greetings += len(addrs)
			if round%2 == 1 {
				greetings++ // who has come is asked who it is
			}
		}
		what := "on a new connection"
		if kept {
			what = "on one that was kept"
		}
		fmt.Printf("| %s | %s | %d |\n", what, short(cpu/time.Duration(greetings)), sent/int64(greetings))
	}
}

func waitFor(done func() bool) {
	for !done() {
		time.Sleep(10 * time.Millisecond)
	}
}
