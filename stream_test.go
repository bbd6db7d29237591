package shoal_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/shoalpb"
)

// A roundTrip is a RoundTripper, between a cache and a transport.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A pair is a cache that owns every key behind a real http.Server, and a client of it with a real http.Transport.
type pair struct {
	asker, owner *shoal.Cache
	group        *shoal.Group[string] // the asker's
	server       *http.Server
	posts        atomic.Int64 // that the server has been sent, streams included
}

// between makes what the two speak through: next leads to the server, and handler is what answers there.
func newPairBetween(t *testing.T, get shoal.Getter[string], opts *shoal.Options, transport func(next http.RoundTripper) http.RoundTripper, handler func(http.Handler) http.Handler) *pair {
	t.Helper()
	p := &pair{server: new(http.Server)}
	listener := newPipes()
	pipes := &http.Transport{DialContext: listener.dial, MaxIdleConnsPerHost: 100}
	var through http.RoundTripper = pipes
	if transport != nil {
		through = transport(pipes)
	}
	var o shoal.Options
	if opts != nil {
		o = *opts
	}
	o.Discovery, o.Logger = shoal.Static("owner"), quiet
	o.Self = "owner"
	p.owner = must1(t, shoal.New, &o)
	o.Self, o.Transport = "", through
	p.asker = must1(t, shoal.New, &o)
	shoal.NewGroup(p.owner, "g", get, nil)
	var h http.Handler = p.owner
	if handler != nil {
		h = handler(h)
	}
	p.server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.posts.Add(1)
		h.ServeHTTP(w, r)
	})
	go p.server.Serve(listener)
	t.Cleanup(func() {
		p.asker.Shutdown(context.Background())
		p.owner.Shutdown(context.Background())
		pipes.CloseIdleConnections()
		p.server.Close()
	})
	ready(t, p.asker)
	p.group = shoal.NewGroup[string](p.asker, "g", nil, &shoal.GroupOptions[string]{HotBytes: -1})
	return p
}

func must1[A, T any](t *testing.T, f func(A) (T, error), a A) T {
	t.Helper()
	v, err := f(a)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// warm has the asker open its stream.
func (p *pair) warm(t *testing.T) {
	t.Helper()
	if _, err := p.group.Get(t.Context(), "warm"); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

// ask gets n keys at once, and checks what comes.
func (p *pair) ask(t *testing.T, n int) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			key := fmt.Sprint("key ", i)
			if v, err := p.group.Get(t.Context(), key); v != strings.ToUpper(key) || err != nil {
				t.Errorf("Get(%q) = %q, %v", key, v, err)
			}
		})
	}
	wg.Wait()
}

func (p *pair) wire() string { return p.asker.Stats().Peers[0].Wire }

var isStream = func(r *http.Request) bool {
	return r.Header.Get("Upgrade") != "" || r.Header.Get("Content-Type") == streamType && r.GetBody == nil
}

// Whatever lies between two processes, they find a way, and the best there is.
func TestWayOfAskingIsTheBestThereIs(t *testing.T) {
	for name, test := range map[string]struct {
		transport func(http.RoundTripper) http.RoundTripper
		handler   func(http.Handler) http.Handler
		want      string
		most      int64 // POSTs, for 200 calls at once, greetings and whatever else included
	}{
		"nothing": {nil, nil, "stream", 3},
		"no upgrade": {func(next http.RoundTripper) http.RoundTripper {
			return roundTrip(func(r *http.Request) (*http.Response, error) {
				r = r.Clone(r.Context())
				r.Header.Del("Upgrade")
				r.Header.Del("Connection")
				return next.RoundTrip(r)
			})
		}, nil, "stream", 4},
		"requests are passed on when they are whole": {func(next http.RoundTripper) http.RoundTripper {
			return roundTrip(func(r *http.Request) (*http.Response, error) {
				if isStream(r) && r.Body != nil {
					if _, err := io.ReadAll(r.Body); err != nil {
						return nil, err
					}
				}
				if r.Header.Get("Upgrade") != "" {
					return nil, errors.New("not here")
				}
				return next.RoundTrip(r)
			})
		}, nil, "batch", 30},
		"answers are passed on when they are whole": {func(next http.RoundTripper) http.RoundTripper {
			return roundTrip(func(r *http.Request) (*http.Response, error) {
				r = r.Clone(r.Context())
				r.Header.Del("Upgrade")
				resp, err := next.RoundTrip(r)
				if err == nil {
					var all []byte
					all, err = io.ReadAll(resp.Body)
					resp.Body.Close()
					resp.Body = io.NopCloser(bytes.NewReader(all))
				}
				return resp, err
			})
		}, nil, "batch", 30},
		"a ResponseWriter that has been wrapped": {nil, func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				next.ServeHTTP(struct{ http.ResponseWriter }{w}, r)
			})
		}, "batch", 30},
		"a ResponseWriter that has been wrapped, and flushes": {nil, func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				next.ServeHTTP(struct {
					http.ResponseWriter
					http.Flusher
				}{w, w.(http.Flusher)}, r)
			})
		}, "batch", 30},
		"an older version": {nil, func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if isStream(r) || r.Header.Get("Content-Type") == streamType {
					w.Header().Set("Content-Type", mediaType)
					w.WriteHeader(http.StatusUnsupportedMediaType)
					return
				}
				next.ServeHTTP(w, r)
			})
		}, "single", 1000},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPairBetween(t, upper, nil, test.transport, test.handler)
				p.ask(t, 1)
				time.Sleep(2 * time.Second)
				before := p.posts.Load()
				p.ask(t, 200)
				if n := p.posts.Load() - before; p.wire() != test.want || n > test.most {
					t.Errorf("asked by %q, in %d POSTs, want %q, %d at most", p.wire(), n, test.want, test.most)
				}
			})
		})
	}
}

func TestStreamIsTriedAgainLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var open atomic.Bool
		p := newPairBetween(t, upper, nil, func(next http.RoundTripper) http.RoundTripper {
			return roundTrip(func(r *http.Request) (*http.Response, error) {
				if isStream(r) && !open.Load() {
					return nil, errors.New("not now")
				}
				return next.RoundTrip(r)
			})
		}, nil)
		p.ask(t, 10)
		if p.wire() != "batch" {
			t.Errorf("asked by %q", p.wire())
		}
		open.Store(true)
		for range 60 {
			time.Sleep(time.Second)
			p.ask(t, 1)
		}
		if p.wire() != "stream" {
			t.Errorf("asked by %q after a minute", p.wire())
		}
	})
}

func TestCallerThatLeavesAStreamEndsTheLoadAtTheOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running atomic.Int64
		p := newPairBetween(t, func(ctx context.Context, key string) (string, error) {
			if key == "warm" {
				return "", nil
			}
			running.Add(1)
			defer running.Add(-1)
			<-ctx.Done()
			return "", ctx.Err()
		}, nil, nil, nil)
		p.warm(t)
		for name, ctx := range map[string]func() (context.Context, context.CancelFunc){
			"cancelled": func() (context.Context, context.CancelFunc) {
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(time.Second, cancel)
				return ctx, cancel
			},
			"deadline": func() (context.Context, context.CancelFunc) { return context.WithTimeout(t.Context(), time.Second) },
		} {
			ctx, cancel := ctx()
			var wg sync.WaitGroup
			for i := range 10 {
				wg.Go(func() {
					if _, err := p.group.Get(ctx, fmt.Sprint(name, i)); err == nil || ctx.Err() == nil || !errors.Is(err, ctx.Err()) {
						t.Errorf("%s: %v", name, err)
					}
				})
			}
			time.Sleep(time.Second / 2)
			if n := running.Load(); n != 10 {
				t.Errorf("%s: %d loads, want 10", name, n)
			}
			wg.Wait()
			synctest.Wait()
			if n := running.Load(); n != 0 {
				t.Errorf("%s: %d loads go on for nobody", name, n)
			}
			cancel()
		}
		p.warm(t)
		if p.wire() != "stream" {
			t.Errorf("asked by %q", p.wire())
		}
	})
}

func TestEveryCallEndsWhenThePeerDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPairBetween(t, slow(10*time.Second), nil, nil, nil)
		p.warm(t)
		began := time.Now()
		time.AfterFunc(time.Second, func() { p.server.Close() })
		time.AfterFunc(time.Second, func() { p.owner.Shutdown(ended(t)) })
		keys := make([]string, 1000)
		for i := range keys {
			keys[i] = fmt.Sprint("key ", i)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if m, err := p.group.GetMany(t.Context(), keys); err == nil || len(m) > 0 {
				t.Errorf("%d values, %v", len(m), err)
			}
		})
		for i := range 1000 {
			wg.Go(func() {
				if v, err := p.group.Get(t.Context(), fmt.Sprint("single ", i)); err == nil {
					t.Errorf("got %q", v)
				}
			})
		}
		if wg.Wait(); time.Since(began) > 2*time.Second {
			t.Errorf("the last call ended after %v", time.Since(began))
		}
	})
}

func ended(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

// A connection that has died without a word costs PeerTimeout once; after that there is another.
func TestSilentStreamIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 2, nil, upper, nil)
		keys := allOwnedBy(f.Cluster, 1, 5)
		want(t, f, 0, keys[0], strings.ToUpper(keys[0]))
		synctest.Wait()
		if wire := f.Cache(0).Stats().Peers[0].Wire; wire != "batch" && wire != "stream" {
			t.Fatalf("asked by %q", wire)
		}
		f.Loss(0, 1, 1)
		began := time.Now()
		want(t, f, 0, keys[1], strings.ToUpper(keys[1])) // here
		if took := time.Since(began); took != 500*time.Millisecond {
			t.Errorf("a lost question took %v", took)
		}
		f.Loss(0, 1, 0)
		time.Sleep(time.Second)
		began = time.Now()
		for _, key := range keys[2:] {
			want(t, f, 0, key, strings.ToUpper(key))
		}
		if took := time.Since(began); took != 0 || f.groups[1].Stats().Loads != 4 {
			t.Errorf("after %v, %d loads at the owner", took, f.groups[1].Stats().Loads)
		}
	})
}

// What is no answer ends a stream, and those who have waited ask once more, alone.
func TestGarbageOnAStreamIsNoAnswer(t *testing.T) {
	long := binary.AppendUvarint(nil, 1<<40)
	for name, garbage := range map[string][]byte{
		"not a Reply":        {3, 0xff, 0xff, 0xff},
		"a cut Reply":        delimited(t, &shoalpb.Reply{Id: 1<<16 | 1})[:1],
		"an endless length":  bytes.Repeat([]byte{0xff}, 20),
		"a very long length": long,
		"nothing":            nil,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var bad atomic.Int64
				p := newPairBetween(t, upper, nil, nil, func(next http.Handler) http.Handler {
					return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if r.Header.Get("Upgrade") == "" {
							next.ServeHTTP(w, r)
							return
						}
						bad.Add(1)
						conn, buf, _ := http.NewResponseController(w).Hijack()
						defer conn.Close()
						buf.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: shoal.v1\r\n\r\n")
						buf.Write(delimited(t, &shoalpb.Reply{}))
						buf.Flush()
						if buf.ReadByte(); bad.Load() == 1 {
							buf.Write(garbage)
							buf.Flush()
						}
					})
				})
				p.warm(t)
				p.ask(t, 100)
				if bad.Load() == 0 {
					t.Error("there was no stream")
				}
			})
		})
	}
}

// A rawStream is a stream to a cache of its own, whose other end is the test.
type rawStream struct {
	net.Conn
	r *bufio.Reader
	c *shoal.Cache
}

func newRawStream(t *testing.T, get shoal.Getter[string]) *rawStream {
	t.Helper()
	c, _ := alone(t, nil, get)
	listener := newPipes()
	server := &http.Server{Handler: c}
	go server.Serve(listener)
	conn, err := listener.dial(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		c.Shutdown(ended(t))
		server.Close()
	})
	io.WriteString(conn, "POST /_shoal/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: shoal.v1\r\n\r\n")
	r := bufio.NewReader(conn)
	if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp, err)
	}
	return &rawStream{conn, r, c}
}

func (s *rawStream) ask(id int, key string) error {
	req := fetchRequest("g", key)
	req.Id = uint32(id)
	b, _ := shoalpb.AppendRequest(nil, req)
	_, err := s.Write(b)
	return err
}

func (s *rawStream) next(t *testing.T) *shoalpb.Reply {
	t.Helper()
	size, err := binary.ReadUvarint(s.r)
	b := make([]byte, size)
	if err == nil {
		_, err = io.ReadFull(s.r, b)
	}
	reply := new(shoalpb.Reply)
	if err == nil {
		err = proto.Unmarshal(b, reply)
	}
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

// A peer that sends questions and does not read the answers is not answered without end.
func TestPeerThatDoesNotReadIsNotWrittenToWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newRawStream(t, func(context.Context, string) (string, error) { return strings.Repeat("v", 64<<10), nil })
		var sent atomic.Int64
		go func() {
			for i := 1; i < 100_000 && s.ask(i, "key") == nil; i++ {
				sent.Add(1)
			}
		}()
		synctest.Wait()
		if n := sent.Load(); n > 2000 {
			t.Errorf("%d questions were taken, for answers of 64 KiB each that nobody reads", n)
		}
	})
}

// Answers that have waited until somebody read are those to the questions that they answer.
func TestAnswersThatHaveWaitedAreNotMixedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 200
		begin := make(chan struct{})
		s := newRawStream(t, func(_ context.Context, key string) (string, error) {
			<-begin
			return strings.Repeat(key, 30_000), nil
		})
		go func() {
			for i := 1; i <= n; i++ {
				s.ask(i, fmt.Sprintf("%03d", i))
			}
		}()
		for got, loading := 0, 0; got < n; {
			reply := s.next(t)
			if reply.GetLoading() != nil {
				if loading++; loading == n { // all are under way, and nobody reads for a while
					close(begin)
					synctest.Wait()
				}
			}
			if v := reply.GetValue(); v != nil {
				got++
				if want := strings.Repeat(fmt.Sprintf("%03d", reply.Id), 30_000); string(v.Value) != want {
					t.Fatalf("the answer to %d is %d bytes, %.9q", reply.Id, len(v.Value), v.Value)
				}
			}
		}
	})
}

func TestLoadsEndWhenTheAskerDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running atomic.Int64
		s := newRawStream(t, func(ctx context.Context, key string) (string, error) {
			running.Add(1)
			defer running.Add(-1)
			<-ctx.Done()
			return "", ctx.Err()
		})
		go io.Copy(io.Discard, s.r)
		s.ask(1, "key")
		synctest.Wait()
		if n := running.Load(); n != 1 {
			t.Fatalf("%d loads", n)
		}
		s.Close()
		synctest.Wait()
		if n := running.Load(); n != 0 {
			t.Errorf("%d loads go on for nobody", n)
		}
	})
}

// A call that has been given up, though other answers kept coming, leaves nothing behind.
func TestCallThatIsGivenUpEndsItsLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPairBetween(t, upper, nil, nil, nil)
		var running atomic.Int64
		shoal.NewGroup(p.owner, "h", func(ctx context.Context, key string) (string, error) {
			running.Add(1)
			defer running.Add(-1)
			<-ctx.Done()
			return "", ctx.Err()
		}, &shoal.GroupOptions[string]{LoadTimeout: time.Hour})
		quick := shoal.NewGroup[string](p.asker, "h", nil, &shoal.GroupOptions[string]{LoadTimeout: time.Second})
		p.warm(t)
		over := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				select {
				case <-over:
					return
				case <-time.After(50 * time.Millisecond):
					p.group.Get(t.Context(), "warm")
				}
			}
		})
		began := time.Now()
		if _, err := quick.Get(t.Context(), "slow"); err == nil || time.Since(began) > 4*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		synctest.Wait()
		if n := running.Load(); n != 0 {
			t.Errorf("%d loads go on for nobody", n)
		}
		close(over)
		wg.Wait()
	})
}

// Whoever gathers behind a caller that leaves gets a value, however that one's question ends.
func TestThoseBehindACallerThatLeavesAreNotLeftAlone(t *testing.T) {
	for _, deadline := range []time.Duration{100 * time.Millisecond, 500 * time.Millisecond} { // the second is PeerTimeout
		for range 20 {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet[string](t, 2, nil, upper, nil)
				key := allOwnedBy(f.Cluster, 1, 1)[0]
				f.Loss(0, 1, 1)
				ctx, cancel := context.WithTimeout(t.Context(), deadline)
				defer cancel()
				var wg sync.WaitGroup
				wg.Go(func() { f.groups[0].Get(ctx, key) })
				synctest.Wait()
				wg.Go(func() {
					began := time.Now()
					if v, err := f.groups[0].Get(t.Context(), key); v != strings.ToUpper(key) || err != nil || time.Since(began) > 2*time.Second {
						t.Errorf("deadline %v: %q, %v after %v", deadline, v, err, time.Since(began))
					}
				})
				wg.Wait()
			})
		}
	}
}

// A refusal of a whole batch is one to each of its calls, and others follow it.
func TestBatchesGoOnAfterRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var refusals atomic.Int64
		refusals.Store(3)
		p := newPairBetween(t, upper, nil, func(next http.RoundTripper) http.RoundTripper {
			return roundTrip(func(r *http.Request) (*http.Response, error) {
				if isStream(r) {
					return nil, errors.New("not here")
				}
				return next.RoundTrip(r)
			})
		}, func(next http.Handler) http.Handler {
			refused := says(http.StatusServiceUnavailable, mediaType, delimited(t, &shoalpb.Reply{Answer: &shoalpb.Reply_Refused{
				Refused: &shoalpb.Refused{Reason: shoalpb.Refused_OVERLOADED},
			}}))
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Content-Type") == streamType && refusals.Add(-1) >= 0 {
					refused(w, r)
					return
				}
				next.ServeHTTP(w, r)
			})
		})
		for i := range 8 {
			began := time.Now()
			_, err := p.group.Get(t.Context(), fmt.Sprint("key ", i))
			if refused := i < 3; time.Since(began) > 0 || (err != nil) != refused {
				t.Errorf("call %d: %v after %v", i, err, time.Since(began))
			}
		}
		p.ask(t, 100)
	})
}

// What would have to wait without end because nobody reads there is refused at once.
func TestTooMuchUnderWayIsRefusedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		over := make(chan struct{})
		defer close(over)
		p := newPairBetween(t, upper, nil, nil, func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Upgrade") == "" {
					next.ServeHTTP(w, r)
					return
				}
				conn, buf, _ := http.NewResponseController(w).Hijack()
				defer conn.Close()
				buf.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: shoal.v1\r\n\r\n")
				buf.Write(delimited(t, &shoalpb.Reply{}))
				buf.Flush()
				<-over // and nothing is read
			})
		})
		must(t, p.group.Set(t.Context(), "first", "value"))
		synctest.Wait() // there is a stream
		var wg sync.WaitGroup
		var atOnce, later atomic.Int64
		for i := range 100 {
			wg.Go(func() {
				began := time.Now()
				err := p.group.Set(t.Context(), fmt.Sprint(i), strings.Repeat("v", 100<<10))
				if err == nil {
					t.Error("no error")
				} else if time.Since(began) == 0 {
					atOnce.Add(1)
				} else {
					later.Add(1)
				}
			})
		}
		wg.Wait()
		if atOnce.Load() < 40 || later.Load() < 1 {
			t.Errorf("%d were refused at once, %d later", atOnce.Load(), later.Load())
		}
	})
}

// Values that would hold up others come by a way of their own, one by one or among many.
func TestLargeValuesComeApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPairBetween(t, func(_ context.Context, key string) (string, error) {
			if strings.HasPrefix(key, "large") {
				return strings.Repeat(key, 50_000), nil
			}
			return key, nil
		}, nil, nil, nil)
		p.warm(t)
		before := p.posts.Load()
		m, err := p.group.GetMany(t.Context(), []string{"a", "large 1", "b", "large 2"})
		if err != nil || len(m) != 4 || m["a"] != "a" || m["large 2"] != strings.Repeat("large 2", 50_000) {
			t.Errorf("%d values, %v", len(m), err)
		}
		if v, err := p.group.Get(t.Context(), "large 3"); v != strings.Repeat("large 3", 50_000) || err != nil {
			t.Errorf("%d bytes, %v", len(v), err)
		}
		if n := p.posts.Load() - before; n != 2 || p.wire() != "stream" {
			t.Errorf("%d POSTs for one large value and two together, asked by %q", n, p.wire())
		}
		must(t, p.group.Set(t.Context(), "a", strings.Repeat("long ", 50_000)))
		if v, err := p.group.Get(t.Context(), "a"); v != strings.Repeat("long ", 50_000) || err != nil {
			t.Errorf("%d bytes, %v", len(v), err)
		}
	})
}

// Streams that nobody uses are closed, and do not keep a peer's server from ending.
func TestStreamsThatNobodyUsesAreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var open atomic.Int64
		p := newPairBetween(t, upper, nil, nil, func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Upgrade") != "" {
					open.Add(1)
				}
				next.ServeHTTP(w, r)
			})
		})
		p.warm(t)
		if open.Load() != 1 {
			t.Fatalf("%d streams", open.Load())
		}
		time.Sleep(5 * time.Minute)
		p.ask(t, 1)
		synctest.Wait()
		if open.Load() != 2 {
			t.Errorf("%d streams, want another after five minutes", open.Load())
		}
		p.ask(t, 1)
		if p.wire() != "stream" {
			t.Errorf("asked by %q", p.wire())
		}
	})
}

// What cannot be understood among several Requests is refused, and counted, and ends them.
func TestRequestsThatAreNoneAreRefused(t *testing.T) {
	for name, test := range map[string]struct {
		bad    []byte
		reason shoalpb.Refused_Reason
	}{
		"garbage":  {[]byte{3, 0xff, 0xff, 0xff}, shoalpb.Refused_MALFORMED},
		"no id":    {[]byte{0}, shoalpb.Refused_MALFORMED},
		"too long": {binary.AppendUvarint(nil, 1<<40), shoalpb.Refused_TOO_LARGE},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newRawStream(t, upper)
				go s.Write(test.bad)
				s.next(t) // a first word
				if got := s.next(t); got.Id != 0 || got.GetRefused().GetReason() != test.reason {
					t.Errorf("got %v, want %v", got, test.reason)
				}
				if _, err := s.r.ReadByte(); err == nil {
					t.Error("the stream goes on")
				}
				if n := s.c.Stats().Refused; n.Malformed+n.TooLarge != 1 {
					t.Errorf("counted: %+v", n)
				}
			})
		})
	}
}

// Whatever comes as several Requests is answered or refused, and nothing hangs.
func FuzzRequestsOfAStream(f *testing.F) {
	var b []byte
	for i, req := range []*shoalpb.Request{
		fetchRequest("g", "key"), fetchRequest("no group", "key"), {Op: &shoalpb.Request_Cancel{Cancel: &shoalpb.Cancel{}}},
		{Group: []byte("g"), Op: &shoalpb.Request_FetchMany{FetchMany: &shoalpb.FetchMany{Keys: [][]byte{[]byte("a"), []byte("b")}}}},
		{Group: []byte("g"), Op: &shoalpb.Request_Write{Write: &shoalpb.Write{Op: shoalpb.Write_SET, Changes: []*shoalpb.Change{{Key: []byte("a")}}}}},
		{Group: []byte("g"), Op: &shoalpb.Request_Purge{Purge: &shoalpb.Purge{}}}, {Op: &shoalpb.Request_Hello{Hello: &shoalpb.Hello{}}},
	} {
		req.Id = uint32(i + 1)
		b, _ = shoalpb.AppendRequest(b, req)
		f.Add(b)
	}
	c, err := shoal.New(&shoal.Options{Logger: quiet, MaxBodyBytes: 1 << 20, MaxValueBytes: 1 << 10})
	if err != nil {
		f.Fatal(err)
	}
	shoal.NewGroup(c, "g", upper, nil)
	f.Fuzz(func(t *testing.T, body []byte) {
		r := httptest.NewRequest("POST", "/_shoal/", bytes.NewReader(body))
		r.Header.Set("Content-Type", streamType)
		w := httptest.NewRecorder()
		c.ServeHTTP(w, r)
		for out := w.Body.Bytes(); len(out) > 0; {
			size, n := binary.Uvarint(out)
			if n <= 0 || size > uint64(len(out)-n) {
				t.Fatalf("what is said ends with %x", out)
			}
			if err := proto.Unmarshal(out[n:n+int(size)], new(shoalpb.Reply)); err != nil {
				t.Fatal(err)
			}
			out = out[n+int(size):]
		}
	})
}

// A hit at a peer allocates what the value takes, and next to nothing on either side.
func TestPeerHitAllocatesLittle(t *testing.T) {
	server := httptest.NewUnstartedServer(nil)
	self := "http://" + server.Listener.Addr().String()
	owner := must1(t, shoal.New, &shoal.Options{Self: self, Discovery: shoal.Static(self)})
	server.Config.Handler = owner
	server.Start()
	asker := must1(t, shoal.New, &shoal.Options{Discovery: shoal.Static(self)})
	t.Cleanup(func() {
		asker.Shutdown(context.Background())
		owner.Shutdown(context.Background())
		server.Close()
	})
	ready(t, asker)
	shoal.NewGroup(owner, "g", upper, nil)
	g := shoal.NewGroup[shoal.ByteView](asker, "g", nil, &shoal.GroupOptions[shoal.ByteView]{HotBytes: -1})
	get := func() {
		if _, err := g.Get(t.Context(), "key"); err != nil {
			t.Error(err)
		}
	}
	for asker.Stats().Peers[0].Wire != "stream" {
		get()
	}
	if n := testing.AllocsPerRun(1000, get); n > 2 {
		t.Errorf("%v allocations, both sides together", n)
	}
}

// A stream that has died while nobody waited any more is not there for the next to wait on.
func TestStreamThatDiedUnderACallerThatLeftIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 2, nil, upper, nil)
		keys := allOwnedBy(f.Cluster, 1, 4)
		want(t, f, 0, keys[0], strings.ToUpper(keys[0]))
		synctest.Wait()
		want(t, f, 0, keys[1], strings.ToUpper(keys[1])) // by a stream
		f.Loss(0, 1, 1)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		f.groups[0].Get(ctx, keys[2])
		f.Loss(0, 1, 0)
		time.Sleep(time.Second)
		began := time.Now()
		want(t, f, 0, keys[3], strings.ToUpper(keys[3]))
		if took := time.Since(began); took != 0 {
			t.Errorf("the next waited for %v", took)
		}
	})
}

// However long a peer was down, when it is back there is a stream to it at once.
func TestPeerThatIsBackHasAStreamAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		p := newPairBetween(t, upper, nil, func(next http.RoundTripper) http.RoundTripper {
			return roundTrip(func(r *http.Request) (*http.Response, error) {
				if down.Load() {
					return nil, errors.New("connection refused")
				}
				return next.RoundTrip(r)
			})
		}, nil)
		down.Store(true)
		for range 300 {
			if _, err := p.group.Get(t.Context(), "key"); err == nil {
				t.Fatal("no error")
			}
			time.Sleep(time.Second)
		}
		down.Store(false)
		time.Sleep(20 * time.Second) // until it has been greeted
		for range 3 {
			p.ask(t, 1)
			synctest.Wait()
		}
		if p.wire() != "stream" {
			t.Errorf("asked by %q", p.wire())
		}
	})
}
