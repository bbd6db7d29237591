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
	v := c.peers.view.Load()
	return &shoalpb.Sender{
		Id:          []byte(c.peers.self.ID),
		Incarnation: c.peers.incarnation,
		View:        v.digest,
		Views:       v.number,
		Clock:       c.clock.last.Load(),
	}
}

// introduction is what this process says of itself to whom it greets, and who greets it.
func (c *Cache) introduction() *shoalpb.Hello {
	self := &c.peers.self
	h := &shoalpb.Hello{Addr: []byte(self.Addr), Zone: []byte(self.Zone), Weight: self.Weight}
	for _, g := range c.allGroups() {
		h.Groups = append(h.Groups, &shoalpb.Group{Name: []byte(g.name), Generation: g.generation.message()})
	}
	return h
}

// exchange sends req to the peer at addr and gives answer each Reply, until it wants no more. It gives up when nothing has
// come from there for PeerTimeout; after word that something is being loaded, for as long as that may take, at most
// longestLoad, and PeerTimeout.
func (c *Cache) exchange(ctx context.Context, addr string, req *shoalpb.Request, longestLoad time.Duration, answer func(*shoalpb.Reply) (more bool, err error)) error {
	to, err := target(addr)
	if err != nil {
		return err
	}
	req.Sender = c.sender()
	body, err := proto.Marshal(req)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	patience := c.opts.PeerTimeout
	silence := time.AfterFunc(patience, func() {
		cancel(fmt.Errorf("nothing has come from there for PeerTimeout, %v", c.opts.PeerTimeout))
	})
	defer silence.Stop()

	post, err := http.NewRequestWithContext(ctx, http.MethodPost, to.String(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	post.Header.Set("Content-Type", mediaType)
	if req.GetWrite() == nil {
		// Asking twice does no harm, so net/http may do it when a kept connection turns out to be dead. The nil says so
		// without being sent.
		post.Header["Idempotency-Key"] = nil
	}
	resp, err := c.opts.Transport.RoundTrip(post) // no http.Client: a redirect is not followed, it is not Shoal's answer
	if err != nil {
		return causeOf(ctx, err)
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("Content-Type"); got != mediaType {
		return fmt.Errorf("what answers there is not Shoal: %s, Content-Type %q", resp.Status, got)
	}
	r := bufio.NewReader(&heedful{resp.Body, silence, c.opts.PeerTimeout})
	for more := true; more; {
		silence.Reset(patience)
		reply, err := c.readReply(r)
		if err != nil {
			return causeOf(ctx, err)
		}
		if loading := reply.GetLoading(); loading != nil && longestLoad > 0 { // once
			patience += min(max(time.Duration(loading.Longest), 0), longestLoad)
			longestLoad = 0
			continue
		}
		c.heard(reply.GetSender())
		if more, err = answer(reply); err != nil {
			return err
		}
	}
	silence.Reset(c.opts.PeerTimeout)
	r.ReadByte() // to the end of the body, or the connection could not be used again
	return nil
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
	text, stack := string(clip(string(f.Text))), f.Stack[:min(len(f.Stack), maxText)]
	switch {
	case f.Exited:
		return &PanicError{Stack: stack}
	case f.Panicked:
		return &PanicError{Value: text, Stack: stack}
	}
	return errors.New(text)
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

// refusedError is the error of a question that was refused.
type refusedError struct {
	reason shoalpb.Refused_Reason
	text   string
}

func (e *refusedError) Error() string { return fmt.Sprintf("refused (%v): %s", e.reason, e.text) }

func (c *Cache) refusal(r *shoalpb.Refused) error {
	if r.Reason != shoalpb.Refused_NOT_OWNER {
		return &refusedError{r.Reason, string(clip(string(r.Text)))}
	}
	addr, err := normalAddr(string(r.OwnerAddr))
	if err != nil {
		return &notOwner{}
	}
	return &notOwner{c.peers.named(r.OwnerId, []byte(addr))}
}

// ServeHTTP answers peers. Mount it at /_shoal/, below the path of Self if that has one; mounted at /_groupcache/
// too, it answers groupcache's requests. Whoever reaches it can read and change every group: give it a
// listener, or a TLS configuration, that admits only peers.
func (c *Cache) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.requests.Add(1)
	a := &answering{c: c, w: w}
	switch {
	case c.closed.Load():
		a.refuse(http.StatusServiceUnavailable, shoalpb.Refused_SHUT_DOWN, "it has left its peers")
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
	group *group // that it is about, if that is known
	begun bool   // the header has been sent

	announced bool // it has been said that something is loaded
}

// shoal answers one of Shoal's own messages.
func (a *answering) shoal(r *http.Request) {
	if got := r.Header.Get("Content-Type"); got != mediaType { // a browser can be made to post, but not this type
		a.refuse(http.StatusUnsupportedMediaType, shoalpb.Refused_MEDIA_TYPE, "Content-Type %.80q is not %s", got, mediaType)
		return
	}
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
	hello := req.GetHello()
	if hello != nil {
		addr, _ := normalAddr(string(hello.GetAddr()))
		a.c.peers.noticed(sighting{string(req.GetSender().GetId()), addr, req.GetSender().GetIncarnation()})
		a.c.meet(hello.GetGroups())
		a.send(http.StatusOK, &shoalpb.Reply{Answer: &shoalpb.Reply_Hello{Hello: a.c.introduction()}})
		return
	}
	if req.GetSender().GetIncarnation() == a.c.peers.incarnation {
		a.refuse(http.StatusLoopDetected, shoalpb.Refused_OWN, "this process asks itself")
		return
	}
	if req.GetOp() == nil {
		a.refuse(http.StatusBadRequest, shoalpb.Refused_UNKNOWN, "a Request for nothing that this version knows")
		return
	}
	if a.group = a.c.group(string(req.GetGroup())); a.group == nil {
		a.refuse(http.StatusNotFound, shoalpb.Refused_NO_GROUP, "no group %.80q here", req.GetGroup())
		return
	}
	emptied := a.group.meet(req.GetGeneration())
	switch op := req.GetOp().(type) {
	case *shoalpb.Request_Fetch:
		a.fetch(r.Context(), req.GetSender(), op.Fetch)
	case *shoalpb.Request_FetchMany:
		a.fetchMany(r.Context(), op.FetchMany)
	case *shoalpb.Request_Write:
		a.write(r.Context(), op.Write)
	case *shoalpb.Request_Drop:
		a.drop(op.Drop)
	case *shoalpb.Request_Purge:
		behind := !emptied && !proto.Equal(a.group.generation.message(), req.GetGeneration())
		a.send(http.StatusOK, &shoalpb.Reply{Answer: &shoalpb.Reply_Purged{Purged: &shoalpb.Purged{Behind: behind}}})
	}
}

// send sends reply, which is the whole answer unless it is a Loading.
func (a *answering) send(status int, reply *shoalpb.Reply) {
	reply.Sender = a.c.sender()
	if a.group != nil {
		reply.Generation = a.group.generation.message()
	}
	var body bytes.Buffer
	if _, err := protodelim.MarshalTo(&body, reply); err != nil {
		a.c.opts.Logger.Error("shoal: an answer cannot be encoded", "error", err)
		return // without a body, which is taken for no answer
	}
	if !a.begun {
		a.begun = true
		header := a.w.Header()
		header.Set("Content-Type", mediaType)
		if reply.GetLoading() == nil && reply.GetItems() == nil {
			header.Set("Content-Length", strconv.Itoa(body.Len()))
		}
		a.w.WriteHeader(status)
	} else {
		http.NewResponseController(a.w).SetWriteDeadline(time.Now().Add(longestWrite))
	}
	a.w.Write(body.Bytes()) // who does not read it is not there any more
	if reply.GetLoading() != nil || reply.GetItems() != nil {
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
	c.clock.saw(s.GetClock())
	if p := c.peers.sender(s); p != nil {
		p.counts.silent.Store(false)
		p.counts.show(s, func() { c.peers.differs.Store(int64(c.clock.now())) })
		c.hints.heard(p.ID)
	}
}

// meet takes note of the generations in which another process sees groups.
func (c *Cache) meet(groups []*shoalpb.Group) {
	for _, group := range groups {
		if g := c.group(string(group.GetName())); g != nil {
			g.meet(group.GetGeneration())
		}
	}
}

func (c *Cache) checkKey(key string) error {
	if len(key) > c.opts.MaxKeyBytes {
		return fmt.Errorf("a key of %d bytes is longer than MaxKeyBytes, %d", len(key), c.opts.MaxKeyBytes)
	}
	return nil
}
