package shoal

// http.go: how processes talk. The client half is exchange; the server half is ServeHTTP. Both speak shoalpb.

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	"github.com/shoalcache/shoal/shoalpb"
)

// mediaType is the content type of everything that Shoal says, and of nothing else.
const mediaType = "application/vnd.shoal.v1+protobuf"

const (
	shoalPath      = "/_shoal/"
	groupcachePath = "/_groupcache/" // see groupcache.go
)

// maxText is how much of an error's text, or of a stack, goes to another process.
const maxText = 16 << 10

// longestWrite bounds the time that an answer takes to be written after a load, for which the server's own bound was
// lifted.
const longestWrite = time.Minute

// newTransport returns a transport for peers: it keeps connections for many callers at once, asks no proxy, and knows
// unix://.
func newTransport(dialTimeout time.Duration) *http.Transport {
	dialer := net.Dialer{Timeout: dialTimeout}
	return &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if path, ok := socketPath(addr); ok {
				network, addr = "unix", path
			}
			return dialer.DialContext(ctx, network, addr)
		},
		MaxIdleConnsPerHost: 256,
		IdleConnTimeout:     90 * time.Second,
		TLSHandshakeTimeout: dialTimeout,
		DisableCompression:  true,
	}
}

// socketSuffix ends the host that stands for a Unix socket in a URL for net/http, which wants a host there. Before it
// comes the socket's path in hexadecimal.
const socketSuffix = ".unix-socket"

// target returns where requests to the peer at addr are posted.
func target(addr string) (*url.URL, error) {
	u, err := url.Parse(addr)
	if err != nil {
		return nil, err
	}
	if u.Scheme == "unix" {
		return &url.URL{Scheme: "http", Host: hex.EncodeToString([]byte(u.Path)) + socketSuffix, Path: shoalPath}, nil
	}
	return u.JoinPath(shoalPath), nil
}

// socketPath returns the path of the Unix socket that addr, a host and a port, stands for.
func socketPath(addr string) (string, bool) {
	host, _, _ := net.SplitHostPort(addr)
	name, ok := strings.CutSuffix(host, socketSuffix)
	path, err := hex.DecodeString(name)
	return string(path), ok && err == nil
}

// sender says who this process is, for every message.
func (c *Cache) sender() *shoalpb.Sender {
	return &shoalpb.Sender{
		Id:          []byte(c.peers.self.ID),
		Incarnation: c.peers.incarnation,
		View:        c.peers.view.Load().digest,
	}
}

// introduction is what this process says of itself to whom it greets, and who greets it.
func (c *Cache) introduction() *shoalpb.Hello {
	self := &c.peers.self
	return &shoalpb.Hello{Addr: []byte(self.Addr), Zone: []byte(self.Zone), Weight: self.Weight}
}

// hello asks the process at addr who it is.
func (c *Cache) hello(ctx context.Context, addr string) (*peer, error) {
	reply, err := c.exchange(ctx, addr, &shoalpb.Request{Op: &shoalpb.Request_Hello{Hello: c.introduction()}}, 0)
	if err != nil {
		return nil, err
	}
	h := reply.GetHello()
	if h == nil || !validWeight(h.Weight) {
		return nil, unexpected(reply)
	}
	return &peer{
		Peer:        Peer{ID: string(reply.GetSender().GetId()), Addr: addr, Zone: string(h.Zone), Weight: h.Weight},
		incarnation: reply.GetSender().GetIncarnation(),
	}, nil
}

// fetch asks p for the value of key. Its error is that of ctx, a *PeerError, or a *PeerError that wraps *notOwner.
func (c *Cache) fetch(ctx context.Context, p *peer, group, key string, longestLoad time.Duration) (found, error) {
	p.counts.exchanges.Add(1)
	reply, err := c.exchange(ctx, p.Addr, &shoalpb.Request{
		Op: &shoalpb.Request_Fetch{Fetch: &shoalpb.Fetch{Group: []byte(group), Key: []byte(key)}},
	}, longestLoad)
	op := "get"
	if err == nil {
		c.heard(reply.GetSender())
		if was := reply.GetSender().GetIncarnation(); was != p.incarnation && p.incarnation != 0 {
			c.peers.noticed(sighting{id: p.ID, incarnation: was}) // somebody else is there now
		}
		switch a := reply.GetAnswer().(type) {
		case *shoalpb.Reply_Value:
			return found{value: NewByteView(a.Value.Value), ttl: time.Duration(a.Value.Ttl), loaded: a.Value.Loaded, fetched: true}, nil
		case *shoalpb.Reply_NotFound:
			return found{fetched: true, missing: true}, nil
		case *shoalpb.Reply_Failed:
			op, err = "load", failure(a.Failed)
		case *shoalpb.Reply_Refused:
			err = refusal(a.Refused)
		default:
			err = unexpected(reply)
		}
	}
	if op == "get" && ctx.Err() == nil { // it is no fault of the peer's that nobody waits any more
		p.counts.failed(err)
	}
	return found{}, &PeerError{Peer: p.Peer, Op: op, Err: fmt.Errorf("key %.80q of group %q: %w", key, group, err)}
}

// exchange sends req to the peer at addr and returns the answer. It gives up when nothing has come from there for
// PeerTimeout; after word that a value is being loaded, for as long as that may take, at most longestLoad, and PeerTimeout.
func (c *Cache) exchange(ctx context.Context, addr string, req *shoalpb.Request, longestLoad time.Duration) (*shoalpb.Reply, error) {
	to, err := target(addr)
	if err != nil {
		return nil, err
	}
	req.Sender = c.sender()
	body, err := proto.Marshal(req)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(c.opts.PeerTimeout, func() { cancel(errSilent) })
	defer silence.Stop()

	post, err := http.NewRequestWithContext(ctx, http.MethodPost, to.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	post.Header.Set("Content-Type", mediaType)
	// Asking twice does no harm, so net/http may do it when a kept connection turns out to be dead. The nil says so
	// without being sent.
	post.Header["Idempotency-Key"] = nil
	resp, err := c.opts.Transport.RoundTrip(post) // no http.Client: a redirect is not followed, it is not Shoal's answer
	if err != nil {
		return nil, causeOf(ctx, err)
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("Content-Type"); got != mediaType {
		return nil, fmt.Errorf("what answers there is not Shoal: %s, Content-Type %q", resp.Status, got)
	}
	r := bufio.NewReader(&heedful{resp.Body, silence, c.opts.PeerTimeout})
	reply, err := c.readReply(r)
	if loading := reply.GetLoading(); err == nil && loading != nil {
		silence.Reset(min(max(time.Duration(loading.Longest), 0), longestLoad) + c.opts.PeerTimeout)
		reply, err = c.readReply(r)
	}
	if err != nil {
		return nil, causeOf(ctx, err)
	}
	silence.Reset(c.opts.PeerTimeout)
	r.ReadByte() // to the end of the body, or the connection could not be used again
	return reply, nil
}

// readReply reads one Reply after its length. It takes memory as bytes come, not as they are announced.
func (c *Cache) readReply(r *bufio.Reader) (*shoalpb.Reply, error) {
	size, err := binary.ReadUvarint(r)
	if err == nil && size > uint64(c.opts.MaxBodyBytes) {
		err = fmt.Errorf("%d bytes are more than MaxBodyBytes, %d", size, c.opts.MaxBodyBytes)
	}
	var body bytes.Buffer
	if err == nil {
		body.Grow(int(min(size, 1<<20)))
		_, err = io.CopyN(&body, r, int64(size))
	}
	reply := new(shoalpb.Reply)
	if err == nil {
		err = proto.Unmarshal(body.Bytes(), reply)
	}
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	return reply, nil
}

// heedful is a reader that puts off a timer whenever something comes.
type heedful struct {
	io.Reader
	silence *time.Timer
	timeout time.Duration
}

func (r *heedful) Read(p []byte) (n int, err error) {
	n, err = r.Reader.Read(p)
	if n > 0 {
		r.silence.Reset(r.timeout)
	}
	return n, err
}

var errSilent = errors.New("nothing has come from there for PeerTimeout")

// causeOf returns err, or why ctx was cancelled if it was: the transport does not tell.
func causeOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func unexpected(reply *shoalpb.Reply) error {
	return fmt.Errorf("its answer, %T, is none to this question", reply.GetAnswer())
}

// failure returns the error of a getter that ran elsewhere.
func failure(f *shoalpb.Failed) error {
	switch {
	case f.Exited:
		return &PanicError{Stack: f.Stack}
	case f.Panicked:
		return &PanicError{Value: string(f.Text), Stack: f.Stack}
	}
	return errors.New(string(f.Text))
}

// notOwner is the error of a question for a key that belongs to another process.
type notOwner struct {
	owner *peer // nil: unknown
}

func (e *notOwner) Error() string {
	if e.owner == nil {
		return "it does not own the key"
	}
	return fmt.Sprintf("it does not own the key, %s does", e.owner)
}

func refusal(r *shoalpb.Refused) error {
	if r.Reason != shoalpb.Refused_NOT_OWNER {
		return fmt.Errorf("refused (%v): %s", r.Reason, r.Text)
	}
	addr, err := normalAddr(string(r.OwnerAddr))
	if err != nil {
		return &notOwner{}
	}
	return &notOwner{&peer{Peer: Peer{ID: string(r.OwnerId), Addr: addr}, counts: new(peerCounts)}}
}

// ServeHTTP answers peers. Mount it at /_shoal/, below the path of Self if that has one; mounted at /_groupcache/
// too, it answers groupcache's requests. Whoever reaches it can read every group: give it a listener, or
// a TLS configuration, that admits only peers.
func (c *Cache) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.requests.Add(1)
	a := &answering{c: c, w: w}
	switch {
	case c.closed.Load():
		a.refuse(http.StatusServiceUnavailable, shoalpb.Refused_SHUT_DOWN, "this process has left its peers")
	case !c.slots.TryAcquire(1):
		a.refuse(http.StatusServiceUnavailable, shoalpb.Refused_OVERLOADED, "MaxRequests, %d, are being answered", c.opts.MaxRequests)
	default:
		defer c.slots.Release(1)
		path := r.URL.EscapedPath()
		if _, rest, ok := strings.Cut(path, groupcachePath); ok && r.Method == http.MethodGet {
			a.groupcache(r, rest)
		} else if r.Method == http.MethodPost && strings.HasSuffix(path, shoalPath) {
			a.shoal(r)
		} else {
			a.refuse(http.StatusNotFound, shoalpb.Refused_UNKNOWN, "%s %.80q: Shoal answers POST to %s", r.Method, path, shoalPath)
		}
	}
}

// answering is one request of a peer being answered.
type answering struct {
	c     *Cache
	w     http.ResponseWriter
	begun bool // the header has been sent
}

// shoal answers one of Shoal's own messages.
func (a *answering) shoal(r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(a.w, r.Body, a.c.opts.MaxBodyBytes))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		a.refuse(http.StatusRequestEntityTooLarge, shoalpb.Refused_TOO_LARGE, "the body is longer than MaxBodyBytes, %d", a.c.opts.MaxBodyBytes)
		return
	}
	req := new(shoalpb.Request)
	if err == nil {
		err = proto.Unmarshal(body, req)
	}
	if err != nil {
		a.refuse(http.StatusBadRequest, shoalpb.Refused_MALFORMED, "not a Request: %v", err)
		return
	}
	a.c.heard(req.GetSender())
	switch op := req.GetOp().(type) {
	case *shoalpb.Request_Hello:
		addr, _ := normalAddr(string(op.Hello.GetAddr()))
		a.c.peers.noticed(sighting{string(req.GetSender().GetId()), addr, req.GetSender().GetIncarnation()})
		a.send(http.StatusOK, &shoalpb.Reply{Answer: &shoalpb.Reply_Hello{Hello: a.c.introduction()}})
	case *shoalpb.Request_Fetch:
		if req.GetSender().GetIncarnation() == a.c.peers.incarnation {
			a.refuse(http.StatusLoopDetected, shoalpb.Refused_OWN, "this process asks itself")
			return
		}
		a.fetch(r.Context(), op.Fetch)
	default:
		a.refuse(http.StatusBadRequest, shoalpb.Refused_UNKNOWN, "a Request for nothing that this version knows")
	}
}

// fetch answers with the value of a key.
func (a *answering) fetch(ctx context.Context, f *shoalpb.Fetch) {
	key := NewByteView(f.Key).String()
	if err := a.c.checkKey(key); err != nil {
		a.refuse(http.StatusRequestEntityTooLarge, shoalpb.Refused_TOO_LARGE, "%v", err)
		return
	}
	g := a.c.group(string(f.Group))
	if g == nil {
		a.refuse(http.StatusNotFound, shoalpb.Refused_NO_GROUP, "no group %.80q here", f.Group)
		return
	}
	result, err := g.answer(ctx, key, func(longest time.Duration) {
		a.patient()
		a.send(http.StatusOK, &shoalpb.Reply{Answer: &shoalpb.Reply_Loading{Loading: &shoalpb.Loading{Longest: int64(longest)}}})
	})
	other, isOther := err.(*notOwner) // not one that a getter has come across and wrapped
	switch {
	case err == nil:
		a.send(http.StatusOK, &shoalpb.Reply{Answer: &shoalpb.Reply_Value{Value: &shoalpb.Value{
			Value: result.value.bytes(), Ttl: int64(result.ttl), Loaded: result.loaded,
		}}})
	case ctx.Err() != nil: // nobody is there any more
	case isOther:
		refused := &shoalpb.Refused{Reason: shoalpb.Refused_NOT_OWNER, Text: []byte(other.Error())}
		if other.owner != nil {
			refused.OwnerId, refused.OwnerAddr = []byte(other.owner.ID), []byte(other.owner.Addr)
		}
		a.refuseWith(http.StatusMisdirectedRequest, refused)
	case errors.Is(err, ErrNotFound):
		a.send(http.StatusOK, &shoalpb.Reply{Answer: &shoalpb.Reply_NotFound{NotFound: &shoalpb.NotFound{}}})
	default:
		a.send(http.StatusOK, &shoalpb.Reply{Answer: &shoalpb.Reply_Failed{Failed: failed(err)}})
	}
}

// send sends reply, which is the whole answer unless it is a Loading.
func (a *answering) send(status int, reply *shoalpb.Reply) {
	reply.Sender = a.c.sender()
	var body bytes.Buffer
	if _, err := protodelim.MarshalTo(&body, reply); err != nil {
		a.c.opts.Logger.Error("shoal: an answer cannot be encoded", "error", err)
		return // without a body, which is taken for no answer
	}
	if !a.begun {
		a.begun = true
		header := a.w.Header()
		header.Set("Content-Type", mediaType)
		if reply.GetLoading() == nil {
			header.Set("Content-Length", strconv.Itoa(body.Len()))
		}
		a.w.WriteHeader(status)
	} else {
		http.NewResponseController(a.w).SetWriteDeadline(time.Now().Add(longestWrite))
	}
	a.w.Write(body.Bytes()) // who does not read it is not there any more
	if reply.GetLoading() != nil {
		http.NewResponseController(a.w).Flush()
	}
}

// refuse counts and says why there is no other answer. The status is for those who are not Shoal.
func (a *answering) refuse(status int, reason shoalpb.Refused_Reason, format string, args ...any) {
	a.refuseWith(status, &shoalpb.Refused{Reason: reason, Text: fmt.Appendf(nil, format, args...)})
}

func (a *answering) refuseWith(status int, r *shoalpb.Refused) {
	a.c.refused[r.Reason].Add(1)
	a.send(status, &shoalpb.Reply{Answer: &shoalpb.Reply_Refused{Refused: r}})
}

// patient lifts the deadlines that the server has set for quick answers: a load has its own.
func (a *answering) patient() {
	control := http.NewResponseController(a.w)
	control.SetReadDeadline(time.Time{})
	control.SetWriteDeadline(time.Time{})
}

// failed says what has come of a getter.
func failed(err error) *shoalpb.Failed {
	if p, ok := errors.AsType[*PanicError](err); ok {
		f := &shoalpb.Failed{Panicked: true, Exited: p.Value == nil, Stack: p.Stack[:min(len(p.Stack), maxText)]}
		if !f.Exited {
			f.Text = clip(fmt.Sprint(p.Value))
		}
		return f
	}
	return &shoalpb.Failed{Text: clip(err.Error())}
}

func clip(text string) []byte { return []byte(text[:min(len(text), maxText)]) }

// heard takes note of who sent a message.
func (c *Cache) heard(s *shoalpb.Sender) {
	view := c.peers.view.Load()
	if i, ok := view.find(string(s.GetId())); ok && view.members[i].incarnation == s.GetIncarnation() {
		view.members[i].counts.agrees.Store(s.GetView() == view.digest)
	}
}

func (c *Cache) checkKey(key string) error {
	if len(key) > c.opts.MaxKeyBytes {
		return fmt.Errorf("a key of %d bytes is longer than MaxKeyBytes, %d", len(key), c.opts.MaxKeyBytes)
	}
	return nil
}
