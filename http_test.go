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

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/cachetest"
	"github.com/shoalcache/shoal/shoalpb"
)

const mediaType, streamType = "application/vnd.shoal.v1+protobuf", "application/vnd.shoal.v1.stream+protobuf"

// post sends body to h as a peer would, and returns the status and the last Reply.
func post(t *testing.T, h http.Handler, body []byte) (int, *shoalpb.Reply) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, newPost(body))
	return w.Code, lastReply(t, w)
}

func newPost(body []byte) *http.Request {
	r := httptest.NewRequest("POST", "/_shoal/", bytes.NewReader(body))
	r.Header.Set("Content-Type", mediaType)
	return r
}

func lastReply(t *testing.T, w *httptest.ResponseRecorder) *shoalpb.Reply {
	t.Helper()
	if got := w.Header().Get("Content-Type"); got != mediaType {
		t.Fatalf("status %d, Content-Type %q: %s", w.Code, got, w.Body)
	}
	var last *shoalpb.Reply
	for r := bufio.NewReader(w.Body); ; {
		reply := new(shoalpb.Reply)
		if err := protodelim.UnmarshalFrom(r, reply); err == io.EOF {
			return last
		} else if err != nil {
			t.Fatal(err)
		}
		last = reply
	}
}

func fetchRequest(group, key string) *shoalpb.Request {
	return &shoalpb.Request{
		Sender: &shoalpb.Sender{Id: []byte("test"), Incarnation: 1},
		Group:  []byte(group),
		Op:     &shoalpb.Request_Fetch{Fetch: &shoalpb.Fetch{Key: []byte(key)}},
	}
}

func writeRequest(group string, op shoalpb.Write_Op, changes ...*shoalpb.Change) *shoalpb.Request {
	return &shoalpb.Request{
		Sender: &shoalpb.Sender{Id: []byte("test"), Incarnation: 1},
		Group:  []byte(group),
		Op:     &shoalpb.Request_Write{Write: &shoalpb.Write{Op: op, Changes: changes}},
	}
}

func marshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func delimited(t *testing.T, replies ...*shoalpb.Reply) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, r := range replies {
		if _, err := protodelim.MarshalTo(&b, r); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// alone makes a cache without peers, and a group in it.
func alone(t *testing.T, opts *shoal.Options, get shoal.Getter[string]) (*shoal.Cache, *shoal.Group[string]) {
	t.Helper()
	c, err := shoal.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	return c, shoal.NewGroup(c, "g", get, nil)
}

func TestWhatCannotBeAnsweredGetsItsOwnRefusal(t *testing.T) {
	request := func(r *http.Request) func(*shoal.Cache) *http.Request {
		return func(*shoal.Cache) *http.Request { return r }
	}
	body := func(b []byte) func(*shoal.Cache) *http.Request {
		return request(newPost(b))
	}
	for name, test := range map[string]struct {
		request func(*shoal.Cache) *http.Request
		status  int
		reason  shoalpb.Refused_Reason
		count   func(shoal.Refusals) int64
	}{
		"garbage": {
			body([]byte("\xff\xff\xff garbage")), 400,
			shoalpb.Refused_MALFORMED, func(r shoal.Refusals) int64 { return r.Malformed },
		},
		"truncated": {
			body(marshal(t, fetchRequest("g", "key"))[:22]), 400,
			shoalpb.Refused_MALFORMED, func(r shoal.Refusals) int64 { return r.Malformed },
		},
		"length that is a lie": {
			body([]byte{0x1a, 0xff, 0xff, 0xff, 0xff, 0x7f}), 400,
			shoalpb.Refused_MALFORMED, func(r shoal.Refusals) int64 { return r.Malformed },
		},
		"empty": {
			body(nil), 400,
			shoalpb.Refused_UNKNOWN, func(r shoal.Refusals) int64 { return r.Unknown },
		},
		"of a later version": {
			body([]byte{0xfa, 0x3f, 0x00}), 400, // field 1023, empty
			shoalpb.Refused_UNKNOWN, func(r shoal.Refusals) int64 { return r.Unknown },
		},
		"body too large": {
			body(make([]byte, 100_001)), 413,
			shoalpb.Refused_TOO_LARGE, func(r shoal.Refusals) int64 { return r.TooLarge },
		},
		"key too long": {
			body(marshal(t, fetchRequest("g", strings.Repeat("k", 101)))), 413,
			shoalpb.Refused_TOO_LARGE, func(r shoal.Refusals) int64 { return r.TooLarge },
		},
		"no such group": {
			body(marshal(t, fetchRequest("nope", "key"))), 404,
			shoalpb.Refused_NO_GROUP, func(r shoal.Refusals) int64 { return r.NoGroup },
		},
		"path": {
			request(httptest.NewRequest("POST", "/other", nil)), 404,
			shoalpb.Refused_UNKNOWN, func(r shoal.Refusals) int64 { return r.Unknown },
		},
		"another content type": {
			request(httptest.NewRequest("POST", "/_shoal/", bytes.NewReader(marshal(t, fetchRequest("g", "key"))))), 415,
			shoalpb.Refused_MEDIA_TYPE, func(r shoal.Refusals) int64 { return r.MediaType },
		},
		"adding to what is no counter": {
			body(marshal(t, writeRequest("g", shoalpb.Write_ADD, &shoalpb.Change{Key: []byte("key"), Delta: 1}))), 400,
			shoalpb.Refused_OPERATION, func(r shoal.Refusals) int64 { return r.Operation },
		},
		"an unknown write": {
			body(marshal(t, writeRequest("g", 77, &shoalpb.Change{Key: []byte("key")}))), 400,
			shoalpb.Refused_UNKNOWN, func(r shoal.Refusals) int64 { return r.Unknown },
		},
		"value too long": {
			body(marshal(t, writeRequest("g", shoalpb.Write_SET, &shoalpb.Change{Key: []byte("key"), Value: make([]byte, 1001)}))), 413,
			shoalpb.Refused_TOO_LARGE, func(r shoal.Refusals) int64 { return r.TooLarge },
		},
		"key too long to write": {
			body(marshal(t, writeRequest("g", shoalpb.Write_REMOVE, &shoalpb.Change{Key: make([]byte, 101)}))), 413,
			shoalpb.Refused_TOO_LARGE, func(r shoal.Refusals) int64 { return r.TooLarge },
		},
		"method": {
			request(httptest.NewRequest("PUT", "/_shoal/", nil)), 404,
			shoalpb.Refused_UNKNOWN, func(r shoal.Refusals) int64 { return r.Unknown },
		},
		"from itself": {
			func(c *shoal.Cache) *http.Request {
				_, hello := post(t, c, marshal(t, &shoalpb.Request{Op: &shoalpb.Request_Hello{Hello: &shoalpb.Hello{}}}))
				own := fetchRequest("g", "key")
				own.Sender = hello.Sender
				return newPost(marshal(t, own))
			}, 508,
			shoalpb.Refused_OWN, func(r shoal.Refusals) int64 { return r.Own },
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, g := alone(t, &shoal.Options{MaxKeyBytes: 100, MaxValueBytes: 1000, MaxBodyBytes: 100_000}, upper)
			w := httptest.NewRecorder()
			c.ServeHTTP(w, test.request(c))
			reply := lastReply(t, w)
			if got := reply.GetRefused(); w.Code != test.status || got.GetReason() != test.reason || len(got.GetText()) == 0 {
				t.Errorf("status %d, %v", w.Code, reply)
			}
			if s := c.Stats(); test.count(s.Refused) != 1 || s.Requests == 0 {
				t.Errorf("%+v", s)
			}
			if v, err := g.Get(t.Context(), "key"); v != "KEY" || err != nil {
				t.Errorf("another caller gets %q, %v", v, err)
			}
		})
	}
}

func TestMoreRequestsAtOnceThanMaxRequestsAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := alone(t, &shoal.Options{MaxRequests: 3}, slow(time.Second))
		for k := range 3 {
			go post(t, c, marshal(t, fetchRequest("g", fmt.Sprint(k))))
		}
		synctest.Wait()
		code, reply := post(t, c, marshal(t, fetchRequest("g", "key")))
		if code != 503 || reply.GetRefused().GetReason() != shoalpb.Refused_OVERLOADED || c.Stats().Refused.Overloaded != 1 {
			t.Errorf("status %d, %v", code, reply)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if _, reply := post(t, c, marshal(t, fetchRequest("g", "key"))); string(reply.GetValue().GetValue()) != "KEY" {
			t.Errorf("after the others: %v", reply)
		}
	})
}

func TestRemainingTTLGoesOverTheWire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := alone(t, nil, nil)
		g := shoal.NewGroup(c, "ttl", upper, &shoal.GroupOptions[string]{TTL: time.Minute})
		g.Get(t.Context(), "key")
		time.Sleep(45 * time.Second)
		_, reply := post(t, c, marshal(t, fetchRequest("ttl", "key")))
		if v := reply.GetValue(); time.Duration(v.GetTtl()) != 15*time.Second || v.GetLoaded() {
			t.Errorf("%v", reply)
		}
		time.Sleep(15 * time.Second)
		_, reply = post(t, c, marshal(t, fetchRequest("ttl", "key")))
		if v := reply.GetValue(); time.Duration(v.GetTtl()) != time.Minute || !v.GetLoaded() {
			t.Errorf("%v", reply)
		}
	})
}

// impostor is a peer of a cache under test that greets as a peer does, and then answers as it is told to.
type impostor struct {
	hosts  *hosts
	cache  *shoal.Cache
	group  *shoal.Group[string]
	key    string // one that the impostor owns
	answer atomic.Pointer[http.HandlerFunc]
	loads  atomic.Int64
}

func newImpostor(t *testing.T) *impostor {
	t.Helper()
	h := new(hosts)
	im := impostor{hosts: h}
	h.set("b", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		req := new(shoalpb.Request)
		if err := proto.Unmarshal(body, req); err != nil {
			t.Error(err)
		}
		if req.GetHello() != nil {
			w.Header().Set("Content-Type", mediaType)
			w.Write(delimited(t, &shoalpb.Reply{
				Sender: &shoalpb.Sender{Id: []byte("b"), Incarnation: 7},
				Answer: &shoalpb.Reply_Hello{Hello: &shoalpb.Hello{Weight: 1}},
			}))
			return
		}
		if req.GetPeek() != nil {
			says(200, mediaType, delimited(t, &shoalpb.Reply{Answer: &shoalpb.Reply_NotCached{NotCached: &shoalpb.NotCached{}}}))(w, r)
			return
		}
		(*im.answer.Load())(w, r)
	}))
	im.cache = newPeer(t, h, shoal.Options{Self: "a", Discovery: shoal.Static("a", "b"), Warm: -1}, "a")
	ready(t, im.cache)
	wantIDs(t, im.cache, "b http://a")
	im.group = shoal.NewGroup(im.cache, "g", func(ctx context.Context, key string) (string, error) {
		im.loads.Add(1)
		return upper(ctx, key)
	}, nil)
	asked := false
	im.answers(func(w http.ResponseWriter, _ *http.Request) {
		asked = true
		http.Error(w, "", 500)
	})
	for k := 0; !asked && k < 1000; k++ {
		im.key = fmt.Sprint("key ", k)
		im.group.Get(t.Context(), im.key)
	}
	im.loads.Store(0)
	time.Sleep(time.Second) // until it has been greeted again
	return &im
}

func (im *impostor) answers(h http.HandlerFunc) { im.answer.Store(&h) }

// says is an answer with a status, a content type, and a body.
func says(status int, contentType string, body []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		w.Write(body)
	}
}

func TestAnswerThatIsNotShoalsIsNoAnswer(t *testing.T) {
	value := delimited(t, &shoalpb.Reply{Answer: &shoalpb.Reply_Value{Value: &shoalpb.Value{Value: []byte("of the impostor")}}})
	loading := delimited(t, &shoalpb.Reply{Answer: &shoalpb.Reply_Loading{Loading: &shoalpb.Loading{Longest: 1}}})
	redirect := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://b/elsewhere/_shoal/", status)
		}
	}
	for name, answer := range map[string]http.HandlerFunc{
		"proxy's 404":           says(404, "text/html", []byte("<h1>not found</h1>")),
		"proxy's 502":           says(502, "text/html", nil),
		"proxy's 503":           says(503, "text/plain", []byte("no backend")),
		"html":                  says(200, "text/html", []byte("<h1>welcome</h1>")),
		"a value, it says":      says(200, "application/x-protobuf", value),
		"redirect 301":          redirect(301),
		"redirect 302":          redirect(302),
		"redirect 307":          redirect(307),
		"redirect 308":          redirect(308),
		"nothing":               says(200, mediaType, nil),
		"garbage":               says(200, mediaType, []byte("garbage, and more of it")),
		"cut short":             says(200, mediaType, value[:len(value)-1]),
		"a length without end":  says(200, mediaType, bytes.Repeat([]byte{0xff}, 20)),
		"a length of 2^62":      says(200, mediaType, binary.AppendUvarint(nil, 1<<62)),
		"only loading":          says(200, mediaType, loading),
		"loading, then garbage": says(200, mediaType, append(bytes.Clone(loading), "garbage"...)),
		"loading twice":         says(200, mediaType, append(bytes.Clone(loading), loading...)),
		"loading for ever": says(200, mediaType, delimited(t, &shoalpb.Reply{Answer: &shoalpb.Reply_Loading{
			Loading: &shoalpb.Loading{Longest: 1<<63 - 1},
		}})),
		"a reply to another question": says(200, mediaType, delimited(t, &shoalpb.Reply{Answer: &shoalpb.Reply_Hello{Hello: &shoalpb.Hello{}}})),
		"a reply without an answer":   says(200, mediaType, delimited(t, &shoalpb.Reply{})),
		"an unknown refusal": says(200, mediaType, delimited(t, &shoalpb.Reply{Answer: &shoalpb.Reply_Refused{
			Refused: &shoalpb.Refused{Reason: 1000},
		}})),
		"a refusal for overload": says(503, mediaType, delimited(t, &shoalpb.Reply{Answer: &shoalpb.Reply_Refused{
			Refused: &shoalpb.Refused{Reason: shoalpb.Refused_OVERLOADED},
		}})),
		"a refusal that names nonsense": says(421, mediaType, delimited(t, &shoalpb.Reply{Answer: &shoalpb.Reply_Refused{
			Refused: &shoalpb.Refused{Reason: shoalpb.Refused_NOT_OWNER, OwnerId: []byte("\xff"), OwnerAddr: []byte("ftp://\xff")},
		}})),
		"a refusal that names who asks": says(421, mediaType, delimited(t, &shoalpb.Reply{Answer: &shoalpb.Reply_Refused{
			Refused: &shoalpb.Refused{Reason: shoalpb.Refused_NOT_OWNER, OwnerId: []byte("http://a"), OwnerAddr: []byte("http://a")},
		}})),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				im := newImpostor(t)
				var asked int
				im.answers(func(w http.ResponseWriter, r *http.Request) {
					asked++
					answer(w, r)
				})
				for range 2 { // the second shows that nothing was kept
					if v, err := im.group.Get(t.Context(), im.key); v != strings.ToUpper(im.key) || err != nil {
						t.Errorf("Get = %q, %v", v, err)
					}
					time.Sleep(time.Minute) // until it may be asked again
				}
				if n := im.loads.Load(); n != 2 || asked != 2 {
					t.Errorf("%d loads here, %d questions", n, asked)
				}
				if s := im.group.Stats(); s.Fetches != 3 { // newImpostor's and these
					t.Errorf("%d questions were to be asked", s.Fetches)
				}
				if p := im.cache.Stats().Peers[0]; p.Failures != 3 || p.LastError == "" {
					t.Errorf("%+v", p)
				}
			})
		})
	}
}

func TestShoalsAnswerCountsWhateverItsStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		im := newImpostor(t)
		im.answers(says(404, mediaType, delimited(t, &shoalpb.Reply{Answer: &shoalpb.Reply_Value{Value: &shoalpb.Value{Value: []byte("v")}}})))
		if v, err := im.group.Get(t.Context(), im.key); v != "v" || err != nil {
			t.Errorf("Get = %q, %v", v, err)
		}
	})
}

func FuzzAnswerOfAPeer(f *testing.F) {
	f.Add([]byte("\x04\x22\x02\x0a\x00"))
	f.Add([]byte("\x02\x1a\x00\x02\x2a\x00"))
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"))
	f.Fuzz(func(t *testing.T, body []byte) {
		synctest.Test(t, func(t *testing.T) {
			im := newImpostor(t)
			im.answers(says(200, mediaType, body))
			if v, err := im.group.Get(t.Context(), im.key); err == nil && v == "" && im.loads.Load() > 0 {
				t.Errorf("Get = %q", v)
			}
		})
	})
}

func FuzzServeHTTP(f *testing.F) {
	for _, req := range []*shoalpb.Request{
		fetchRequest("g", "key"), fetchRequest("nope", "\xff"), {}, {Op: &shoalpb.Request_Hello{Hello: &shoalpb.Hello{Weight: 1}}},
	} {
		body, err := proto.Marshal(req)
		if err != nil {
			f.Fatal(err)
		}
		f.Add("POST", "/_shoal/", body)
		f.Add("GET", "/_groupcache/g/a+b%20c", body)
	}
	c, err := shoal.New(&shoal.Options{Logger: quiet})
	if err != nil {
		f.Fatal(err)
	}
	shoal.NewGroup(c, "g", upper, nil)
	f.Fuzz(func(t *testing.T, method, path string, body []byte) {
		r, err := http.NewRequest(method, "http://host", bytes.NewReader(body))
		if err != nil {
			return
		}
		if u, err := r.URL.Parse(path); err == nil {
			r.URL = u
		}
		w := httptest.NewRecorder()
		c.ServeHTTP(w, r)
		if method == "POST" && strings.HasSuffix(r.URL.EscapedPath(), "/_shoal/") && lastReply(t, w) == nil {
			t.Errorf("no answer to %q", body)
		}
	})
}

func TestEveryKeyCrossesTheWireAsItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, func(_ context.Context, key string) (string, error) { return "<" + key + ">", nil }, nil)
		keys := []string{"", " ", "a b", "a+b", "a%20b", "a%2Bb", ".", "..", "/", "//", "/../x", "?", "#", "ключ", "\x00", "\xff\xfe", "a\nb"}
		for b := range 256 {
			keys = append(keys, string([]byte{byte(b)}))
		}
		for _, key := range keys {
			for i, g := range f.groups {
				if v, err := g.Get(t.Context(), key); v != "<"+key+">" || err != nil {
					t.Errorf("cache %d: Get(%q) = %q, %v", i, key, v, err)
				}
			}
		}
	})
}

// pipes is a net.Listener, and the dialer to it, in memory. Unlike cachetest's network it has net/http's own client and
// server at its ends.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.conns <- there:
		return here, nil
	case <-p.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes", Net: "unix"} }

// newPair makes a cache that owns every key behind a real http.Server, and a client of it with a real http.Transport.
func newPair(t *testing.T, server *http.Server, get shoal.Getter[string]) (client *shoal.Group[string]) {
	t.Helper()
	listener := newPipes()
	transport := &http.Transport{DialContext: listener.dial}
	owner, err := shoal.New(&shoal.Options{Self: "owner", Discovery: shoal.Static("owner"), Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	asker, err := shoal.New(&shoal.Options{Discovery: shoal.Static("owner"), Transport: transport, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	shoal.NewGroup(owner, "g", get, nil)
	server.Handler = owner
	go server.Serve(listener)
	t.Cleanup(func() {
		asker.Shutdown(context.Background())
		owner.Shutdown(context.Background())
		transport.CloseIdleConnections()
		server.Close()
	})
	ready(t, asker)
	return shoal.NewGroup[string](asker, "g", nil, nil)
}

func TestLoadMayOutlastTheServersTimeouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newPair(t, &http.Server{ReadTimeout: time.Second, WriteTimeout: time.Second}, slow(10*time.Second))
		for _, key := range []string{"a", "b"} { // the second shows that the connection is as good as before
			if v, err := g.Get(t.Context(), key); v != strings.ToUpper(key) || err != nil {
				t.Errorf("Get(%q) = %q, %v", key, v, err)
			}
		}
	})
}

func TestCallerThatLeavesEndsTheLoadAtTheOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ended atomic.Bool
		g := newPair(t, new(http.Server), func(ctx context.Context, key string) (string, error) {
			<-ctx.Done()
			ended.Store(true)
			return "", ctx.Err()
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := g.Get(ctx, "key"); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		synctest.Wait()
		if !ended.Load() {
			t.Error("the load goes on for nobody")
		}
	})
}

func TestConnectionsAreUsedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var conns atomic.Int64
		g := newPair(t, &http.Server{ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateNew {
				conns.Add(1)
			}
		}}, func(_ context.Context, key string) (string, error) {
			switch key {
			case "missing":
				return "", shoal.ErrNotFound
			case "broken":
				return "", errors.New("broken")
			}
			return strings.Repeat(key, 10_000), nil
		})
		synctest.Wait() // for greetings
		g.Get(t.Context(), "a first one")
		synctest.Wait() // for a stream
		before := conns.Load()
		for range 10 {
			for _, key := range []string{"a value of some size", "missing", "broken"} {
				g.Get(t.Context(), key)
				synctest.Wait()
			}
		}
		if n := conns.Load() - before; n > 1 { // one for a greeting that may come meanwhile
			t.Errorf("%d more connections for one question at a time", n)
		}
	})
}

func TestAnswerThatDoesNotEndIsNotWaitedFor(t *testing.T) {
	const longest, timeout = 30 * time.Second, 500 * time.Millisecond // LoadTimeout, PeerTimeout
	loading := &shoalpb.Reply{Answer: &shoalpb.Reply_Loading{Loading: &shoalpb.Loading{Longest: 1<<63 - 1}}}
	value := &shoalpb.Reply{Answer: &shoalpb.Reply_Value{Value: &shoalpb.Value{Value: []byte("value")}}}
	for name, test := range map[string]struct {
		answer []byte
		took   time.Duration
		want   string
	}{
		"loading, then silence":      {delimited(t, loading), longest + timeout, ""},
		"loading, value, no end":     {delimited(t, loading, value), 0, "value"},
		"value, no end":              {delimited(t, value), 0, "value"},
		"half a value, then silence": {delimited(t, value)[:5], timeout, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				im := newImpostor(t)
				im.answers(says(200, mediaType, test.answer))
				im.hosts.open.Store(true)
				began := time.Now()
				v, err := im.group.Get(t.Context(), im.key)
				if test.want == "" {
					test.want = strings.ToUpper(im.key)
				}
				if took := time.Since(began); v != test.want || err != nil || took != test.took {
					t.Errorf("%q, %v after %v, want %q after %v", v, err, took, test.want, test.took)
				}
				time.Sleep(longest + 2*timeout) // until the answer is given up, or the test would not end
				im.hosts.open.Store(false)
			})
		})
	}
}

// endless is a body that stays open when all of it has come.
type endless struct {
	io.Reader
	ctx context.Context
}

func (b endless) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		<-b.ctx.Done()
		err = b.ctx.Err()
	}
	return n, err
}

func (endless) Close() error { return nil }

// trickle is a body that comes byte by byte.
type trickle struct {
	rest  []byte
	ctx   context.Context
	every time.Duration
}

func (b *trickle) Read(p []byte) (int, error) {
	if len(b.rest) == 0 {
		return 0, io.EOF
	}
	select {
	case <-time.After(b.every):
	case <-b.ctx.Done():
		return 0, b.ctx.Err()
	}
	n := copy(p, b.rest[:1])
	b.rest = b.rest[n:]
	return n, nil
}

func (b *trickle) Close() error { return nil }

func TestAnswerMayTakeItsTimeAsLongAsItKeepsComing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		im := newImpostor(t)
		im.answers(says(200, mediaType, delimited(t, &shoalpb.Reply{Answer: &shoalpb.Reply_Value{Value: &shoalpb.Value{Value: []byte("in pieces")}}})))
		for _, test := range []struct {
			every time.Duration
			want  string
		}{
			{400 * time.Millisecond, "in pieces"},
			{600 * time.Millisecond, strings.ToUpper(im.key)}, // that is longer than PeerTimeout
		} {
			im.hosts.slowly.Store(int64(test.every))
			if v, err := im.group.Get(t.Context(), im.key); v != test.want || err != nil {
				t.Errorf("a byte every %v: %q, %v", test.every, v, err)
			}
		}
	})
}

func TestPartitionedAnswerDoesNotHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, upper, nil)
		key := ownedBy(f.Cluster, 0, 0)
		for _, cut := range []func(*cachetest.Cluster){
			func(c *cachetest.Cluster) { c.Loss(0, 1, 0.5) },
			func(c *cachetest.Cluster) { c.Loss(1, 0, 0.5) },
		} {
			cut(f.Cluster)
			for range 50 {
				began := time.Now()
				if _, err := f.groups[1].Get(t.Context(), key); err != nil || time.Since(began) > 600*time.Millisecond {
					t.Errorf("%v after %v", err, time.Since(began))
				}
			}
			f.Heal()
		}
	})
}
