package shoal_test

// givenup_test.go: writes that are given up, since nothing comes from the owner.

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
)

// A link holds back what is written to its connections while it is cut, as a kernel does, and sends it later: unless they are closed.
type link struct {
	mu  sync.Mutex // guards what follows
	cut bool
	all []*heldConn
}

type heldConn struct {
	net.Conn
	link   *link
	held   []byte
	closed bool
}

func (c *heldConn) Write(data []byte) (int, error) {
	c.link.mu.Lock()
	if c.link.cut {
		defer c.link.mu.Unlock()
		c.held = append(c.held, data...)
		return len(data), nil
	}
	c.link.mu.Unlock()
	return c.Conn.Write(data)
}

func (c *heldConn) Close() error {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	c.closed = true
	return c.Conn.Close()
}

// over has the connections of t go over the link.
func (l *link) over(t *http.Transport) {
	dial := t.DialContext
	t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		held := &heldConn{Conn: conn, link: l}
		l.all = append(l.all, held)
		return held, nil
	}
}

// cuts cuts the link or, if it is not to be any more, sends what has been held back.
func (l *link) cuts(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	for _, c := range l.all {
		if !cut && !c.closed {
			c.Conn.Write(c.held)
			c.held = nil
		}
	}
}

// newPairOver is a pair with a link between them, and a stream for what is asked. What is slow takes 20 seconds to load.
func newPairOver(t *testing.T) (*pair, *link) {
	t.Helper()
	var l link
	load := func(ctx context.Context, key string) (string, error) {
		if strings.HasPrefix(key, "slow") {
			return slow(20*time.Second)(ctx, key)
		}
		return upper(ctx, key)
	}
	p := newPairBetween(t, load, nil, func(next http.RoundTripper) http.RoundTripper {
		l.over(next.(*http.Transport))
		return next
	}, nil)
	p.warm(t)
	p.warm(t)
	if p.wire() != "stream" {
		t.Fatalf("asked by %q", p.wire())
	}
	return p, &l
}

// A write that has been given up is not done when the link is back, whatever else has been waited for.
func TestWriteThatIsGivenUpDoesNotComeLater(t *testing.T) {
	type counters = *shoal.Group[int64]
	for name, meanwhile := range map[string]func(context.Context, *pair, counters){
		"others get": func(ctx context.Context, p *pair, _ counters) { p.group.Get(ctx, "slow") },
		"others add": func(ctx context.Context, _ *pair, c counters) { shoal.Add(ctx, c, "slow", 1) },
		"somebody leaves": func(ctx context.Context, p *pair, _ counters) {
			ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
			defer cancel()
			p.group.Get(ctx, "slow")
		},
		"there is nobody else": func(context.Context, *pair, counters) {},
	} {
		for _, way := range []string{"stream", "batch"} {
			t.Run(name+", by "+way, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p, l := newPairOver(t)
					var writes int64
					if way == "stream" { // else it is the first
						must(t, p.group.Set(t.Context(), "key", "early"))
						synctest.Wait()
						writes = 1
					}
					shoal.NewGroup(p.owner, "totals", func(context.Context, string) (int64, error) {
						time.Sleep(20 * time.Second)
						return 0, nil
					}, nil)
					go meanwhile(t.Context(), p, shoal.NewGroup[int64](p.asker, "totals", nil, nil))
					time.Sleep(10 * time.Millisecond)
					l.cuts(true)
					if err := p.group.Set(t.Context(), "key", "late"); err == nil {
						t.Error("no error")
					}
					time.Sleep(5 * time.Second)
					l.cuts(false)
					time.Sleep(time.Minute)
					if n := p.owner.Stats().Groups[0].Writes; n != writes {
						t.Errorf("the owner has taken %d writes, want %d", n, writes)
					}
				})
			})
		}
	}
}

// A link that is held up for a little longer than PeerTimeout costs a write, and no load that is under way.
func TestWriteThatIsGivenUpEndsNoLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, l := newPairOver(t)
		must(t, p.group.Set(t.Context(), "key", "early"))
		got := make(chan error)
		go func() {
			_, err := p.group.Get(t.Context(), "slow")
			got <- err
		}()
		time.Sleep(time.Second)
		l.cuts(true)
		time.AfterFunc(600*time.Millisecond, func() { l.cuts(false) })
		if err := p.group.Set(t.Context(), "key", "late"); err == nil {
			t.Error("no error")
		}
		if err := <-got; err != nil {
			t.Error(err)
		}
		if n := p.owner.Stats().Groups[0].Loads; n != 2 {
			t.Errorf("%d loads, want that and the first", n)
		}
	})
}

// Who asks a silent peer beside a write waits for PeerTimeout, and then gets the value from the next owner.
func TestGetBesideAWriteThatIsGivenUpIsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3, nil, slow(300*time.Millisecond), nil)
		var keys []string
		for _, key := range allOwnedBy(f.Cluster, 0, 20) {
			if nextAmong(key, 0, 1, 2) == 1 {
				keys = append(keys, key)
			}
		}
		f.calm(t)
		f.groups[2].Get(t.Context(), keys[0])
		must(t, f.groups[2].Set(t.Context(), keys[0], "value"))
		time.Sleep(time.Second) // there are streams
		f.Partition([]int{0}, []int{1, 2})
		go f.groups[2].Set(t.Context(), keys[1], "value")
		time.Sleep(20 * time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), 900*time.Millisecond)
		defer cancel()
		if _, err := f.groups[2].Get(ctx, keys[2]); err != nil {
			t.Error(err)
		}
	})
}

// A write is taken though its owner must wait for a peer that is silent: it says that it waits.
func TestWriteThatWaitsForAGreetingIsNotGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 4, nil, upper, nil)
		f.calm(t)
		key := keyWhere(func(key string) bool { return f.Owner(key) == 2 && nextAmong(key, 0, 1, 2, 3) == 0 })
		f.See(1, 0, 1, 3)
		time.Sleep(2 * time.Second)
		f.Delay(0, 1, 20*time.Millisecond)
		f.Delay(1, 0, 20*time.Millisecond)
		f.Delay(0, 3, time.Hour)
		f.Delay(3, 0, time.Hour)
		go f.See(0, 0, 1, 3)
		time.Sleep(45 * time.Millisecond) // it sees that 5 ms later
		must(t, f.groups[1].Set(t.Context(), key, "new"))
		want(t, f, 1, key, "new")
	})
}

// A write goes to the owner that another names also if that was silent lately: nobody else can take it.
func TestWriteToAnOwnerThatIsBackIsNotGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3, nil, upper, nil)
		f.calm(t)
		key := keyWhere(func(key string) bool { return f.Owner(key) == 0 && ownerAmong(key, 1, 2) == 2 })
		f.noLink(0, 1)
		f.See(1, 1, 2)
		time.Sleep(time.Second)
		f.Heal()
		time.Sleep(time.Second)
		must(t, f.groups[1].Set(t.Context(), key, "new"))
	})
}

// An owner that asks others what a counter was, one of whom is silent, says that it does: who waits for another Add loses nothing.
func TestAddThatWaitsForOthersIsNotGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[int64](t, 4, nil, nil, nil)
		var totals []*shoal.Group[int64] // which take 5 seconds to load
		for i := range f.groups {
			totals = append(totals, shoal.NewGroup(f.Cache(i), "totals", func(context.Context, string) (int64, error) {
				time.Sleep(5 * time.Second)
				return 0, nil
			}, nil))
		}
		time.Sleep(3 * time.Minute)
		for i := range 4 {
			f.See(i, 0, 1, 2)
		}
		time.Sleep(time.Second)
		slow := ownedBy(f.Cluster, 2, 0)
		if _, err := shoal.Add(t.Context(), f.groups[1], slow, 1); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // there is a stream
		done := make(chan error)
		go func() {
			_, err := shoal.Add(t.Context(), totals[1], slow, 1)
			done <- err
		}()
		time.Sleep(200 * time.Millisecond)
		f.noLink(2, 3)
		f.noLink(1, 3)
		key := keyWhere(func(key string) bool { return f.Owner(key) == 3 && ownerAmong(key, 0, 1, 2) == 2 })
		shoal.Add(t.Context(), f.groups[1], key, 1)
		if n, err := f.groups[2].Get(t.Context(), key); n != 1 {
			t.Errorf("%d, %v", n, err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// … and if it falls silent itself meanwhile, it is not waited for as long as a load may take, for there is none.
func TestAddWithoutALoadDoesNotWaitForOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[int64](t, 4, nil, nil, nil)
		time.Sleep(3 * time.Minute)
		key := keyWhere(func(key string) bool { return f.Owner(key) == 2 && nextAmong(key, 0, 1, 2, 3) == 0 })
		f.See(1, 0, 1, 3)
		time.Sleep(2 * time.Second)
		f.Delay(0, 1, 20*time.Millisecond)
		f.Delay(1, 0, 20*time.Millisecond)
		f.noLink(0, 3)
		go f.See(0, 0, 1, 3)
		time.Sleep(45 * time.Millisecond) // it sees that 5 ms later
		time.AfterFunc(200*time.Millisecond, func() { f.noLink(0, 1) })
		began := time.Now()
		shoal.Add(t.Context(), f.groups[1], key, 1)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
		f.Heal()
		time.Sleep(time.Minute) // until the lists have been seen
	})
}
