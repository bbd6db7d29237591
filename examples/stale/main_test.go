package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{listeners: make(map[string]*listener)}
		var out strings.Builder
		began := time.Now()
		if err := run(&out, n.listen, &http.Transport{DialContext: n.dial, MaxIdleConnsPerHost: fronts * callers}); err != nil {
			t.Errorf("%v\n%s", err, &out)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("took %v", took)
		}
		lines := strings.Split(out.String(), "\n")
		if len(lines) < 6 || !strings.HasPrefix(lines[2], "origin down") || !strings.HasPrefix(lines[5], "While the origin was down, ") {
			t.Errorf("printed\n%s", &out)
		}
	})
}

func TestAnswered(t *testing.T) {
	p := &phase{edition: 2}
	line := &timeline{phase: p}
	line.answered(2, false, nil)
	line.answered(2, true, nil)
	line.answered(1, true, nil)
	if p.fresh != 1 || p.stale != 2 || p.errors != 0 || p.lastOld == 0 || line.firstErr != nil {
		t.Errorf("%+v, %v", p, line.firstErr)
	}
	line.answered(1, false, nil)
	line.answered(0, false, errors.New("down"))
	if p.requests() != 5 || p.errors != 2 || line.firstErr == nil || line.firstErr.Error() != "edition 1 is not marked stale, while the origin has 2" {
		t.Errorf("%+v, %v", p, line.firstErr)
	}
}

func TestVerify(t *testing.T) {
	for want, spoil := range map[string]func(t *timeline, up, down, back *phase){
		"": func(t *timeline, up, down, back *phase) {},
		"2 callers got no good answer, the first: down": func(t *timeline, up, down, back *phase) {
			up.errors, back.errors, t.firstErr = 1, 1, errors.New("down")
		},
		"the origin was asked for one key 2 times at once": func(t *timeline, up, down, back *phase) { t.most = 2 },
		"nothing was fresh while the origin was up":        func(t *timeline, up, down, back *phase) { up.fresh = 0 },
		"nothing was stale while the origin was down":      func(t *timeline, up, down, back *phase) { down.stale = 0 },
		"old values were served to the end":                func(t *timeline, up, down, back *phase) { back.lastOld = back.lasts },
	} {
		phases := []*phase{{fresh: 9}, {fresh: 1, stale: 8}, {fresh: 5, stale: 4, lasts: 3 * time.Second, lastOld: time.Second}}
		line := &timeline{most: 1}
		spoil(line, phases[0], phases[1], phases[2])
		if err := verify(line, phases); err == nil && want != "" || err != nil && err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// A network is one in memory, so that time is the test's own.
type network struct {
	mu        sync.Mutex // guards listeners
	listeners map[string]*listener
}

func (n *network) listen() (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := &listener{
		addr:   fmt.Sprintf("host:%d", 1000+len(n.listeners)),
		conns:  make(chan net.Conn),
		closed: make(chan struct{}),
	}
	n.listeners[l.addr] = l
	return l, nil
}

func (n *network) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[addr]
	n.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("nobody listens at %s", addr)
	}
	here, there := net.Pipe()
	select {
	case l.conns <- there:
		return here, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type listener struct {
	addr   string
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *listener) Addr() net.Addr  { return l }
func (l *listener) Network() string { return "memory" }
func (l *listener) String() string  { return l.addr }
