package shoal

// http.go: how processes talk. The client half is exchange; the server half is ServeHTTP. Both speak shoalpb.

import (
	"context"
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

	"google.golang.org/protobuf/proto"

	"github.com/shoalcache/shoal/shoalpb"
)

// mediaType is the content type of everything that Shoal says, and of nothing else.
const mediaType = "application/vnd.shoal.v1+protobuf"

// streamType is the content type of several Requests, and of the Replies to them; protocol is what a connection is upgraded
// to that carries them.
const streamType, protocol = "application/vnd.shoal.v1.stream+protobuf", "shoal.v1"

const (
	shoalPath      = "/_shoal/"
	groupcachePath = "/_groupcache/" // see groupcache.go
)

// maxText is how much of an error's text, or of a stack, goes to another process.
const maxText = 16 << 10

// longestWrite bounds the time that an answer takes to be written after a load, for which the server's own bound was
// lifted.
const longestWrite = time.Minute

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

// spoken is what one side of a wire has last told the other of itself.
type spoken struct {
	view *view
	last uint64 // version
}

// news says who this process is, if that is not what has been said, which it is then.
func (c *Cache) news(s *spoken) *shoalpb.Sender {
	v, last := c.peers.view.Load(), c.clock.last.Load()
	if s.view == v && s.last == last {
		return nil
	}
	*s = spoken{v, last}
	return &shoalpb.Sender{
		Id:          []byte(c.peers.self.ID),
		Incarnation: c.peers.incarnation,
		View:        v.digest,
		Views:       v.number,
		Clock:       last,
	}
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
	owner       *peer  // nil: unknown
	incarnation uint64 // the owner's, if another process has named it
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
	return &notOwner{c.peers.named(r.OwnerId, []byte(addr)), r.OwnerIncarnation}
}

// ServeHTTP answers peers. Mount it at /_shoal/, below the path of Self if that has one; mounted at /_groupcache/
// too, it answers groupcache's requests. Whoever reaches it can read and change every group: give it a
// listener, or a TLS configuration, that admits only peers. Peers keep streams open, for which it takes over connections
// or lifts the server's time limits: middleware that wraps the ResponseWriter must have Unwrap (see
// [http.ResponseController]), or peers fall back to requests that cost several times as much ([PeerStats].Wire says so);
// and if it has no Flush either, as that of [http.TimeoutHandler], loads that take longer than PeerTimeout come to nothing.
func (c *Cache) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a := &answering{c: c, w: w}
	if r.Method == http.MethodPost && (upgraded(r) || r.Header.Get("Content-Type") == streamType) && strings.HasSuffix(r.URL.Path, shoalPath) {
		c.converse(a, r)
		return
	}
	c.requests.Add(1)
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
	c      *Cache
	w      http.ResponseWriter // where the answer goes, or
	in     *conversation       // … in which it is given,
	id     uint32              // … to the Request of this id
	sender *shoalpb.Sender
	from   *peer  // nil: nobody in the view
	group  *group // that it is about, if that is known
	begun  bool   // the header has been sent

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
	a.sender, a.from = req.GetSender(), a.c.peers.sender(req.GetSender())
	if rest := a.answer(req); rest != nil {
		rest(r.Context(), a)
	}
}

// answer answers req if that takes no time, or returns what is left to do. What that keeps of req is not its bytes, unless
// they are nobody else's.
func (a *answering) answer(req *shoalpb.Request) (rest func(context.Context, *answering)) {
	if a.from != nil {
		a.c.isThere(a.from, false)
	}
	if hello := req.GetHello(); hello != nil {
		if !validWeight(hello.GetWeight()) {
			a.refuse(http.StatusBadRequest, shoalpb.Refused_MALFORMED, "a weight of %v", hello.GetWeight())
			return nil
		}
		addr, _ := normalAddr(string(hello.GetAddr()))
		a.c.peers.noticed(sighting{string(a.sender.GetId()), addr, a.sender.GetIncarnation()})
		m := met{owns: hello.GetOwns(), acted: max(time.Duration(hello.GetActed()), 0), views: hello.GetViews(), uptime: max(time.Duration(hello.GetUptime()), 0), peer: &peer{
			Peer:        Peer{ID: string(a.sender.GetId()), Addr: addr, Zone: string(hello.GetZone()), Weight: hello.GetWeight()},
			incarnation: a.sender.GetIncarnation(),
		}}
		a.c.peers.meets(m)
		a.c.heard(a.sender) // once more: it may only now be known
		a.c.clock.follow(hello.GetClock())
		a.c.peers.hearsay.note(m.incarnation, hello.GetBehind(), a.c.clock.now())
		a.c.meet(hello.GetGroups())
		from := a.c.peers.knows(a.sender)
		if from == nil || !a.c.peers.mayHaveMissed(m) {
			a.greet(false)
			return nil
		}
		m.peer = from
		return func(ctx context.Context, a *answering) { a.greet(!a.c.peers.brief(ctx, m)) }
	}
	if req.GetLeave() != nil && a.sender.GetIncarnation() != a.c.peers.incarnation {
		return func(ctx context.Context, a *answering) {
			a.c.peers.parts(ctx, a.sender.GetIncarnation())
			a.c.handover.parts(a.sender.GetIncarnation())
			for _, g := range a.c.allGroups() {
				g.leases.forget(a.sender.GetIncarnation())
			}
			a.send(http.StatusOK, &shoalpb.Reply{Answer: &shoalpb.Reply_Left{Left: &shoalpb.Left{}}})
		}
	}
	if a.sender.GetIncarnation() == a.c.peers.incarnation {
		a.refuse(http.StatusLoopDetected, shoalpb.Refused_OWN, "this process asks itself")
		return nil
	}
	if req.GetOp() == nil {
		a.refuse(http.StatusBadRequest, shoalpb.Refused_UNKNOWN, "a Request for nothing that this version knows")
		return nil
	}
	if a.group = a.c.groupOf(req.GetGroup()); a.group == nil {
		a.refuse(http.StatusNotFound, shoalpb.Refused_NO_GROUP, "no group %.80q here", req.GetGroup())
		return nil
	}
	emptied := a.group.meet(req.GetGeneration())
	switch op := req.GetOp().(type) {
	case *shoalpb.Request_Fetch:
		return a.fetch(op.Fetch)
	case *shoalpb.Request_FetchMany:
		return a.manyNow(op.FetchMany.GetKeys(), op.FetchMany.GetStandIn())
	case *shoalpb.Request_Write:
		return func(ctx context.Context, a *answering) { a.write(ctx, op.Write) }
	case *shoalpb.Request_Drop:
		a.drop(op.Drop)
	case *shoalpb.Request_Replicate:
		return func(_ context.Context, a *answering) { a.replicate(op.Replicate, req.GetGeneration()) }
	case *shoalpb.Request_Peek:
		a.peek(op.Peek)
	case *shoalpb.Request_Pull:
		return func(_ context.Context, a *answering) { a.pull(op.Pull) }
	case *shoalpb.Request_Purge:
		behind := !emptied && !a.group.generation.is(req.GetGeneration())
		a.send(http.StatusOK, &shoalpb.Reply{Answer: &shoalpb.Reply_Purged{Purged: &shoalpb.Purged{Behind: behind, Peers: a.c.unknownTo(a.sender)}}})
	}
	return nil
}

// greet answers a Hello.
func (a *answering) greet(untold bool) {
	hello := a.c.answerTo(a.sender)
	hello.Untold = untold
	a.send(http.StatusOK, &shoalpb.Reply{Answer: &shoalpb.Reply_Hello{Hello: hello}})
}

// send sends reply, which is the whole answer unless it is a Loading.
func (a *answering) send(status int, reply *shoalpb.Reply) {
	if a.group != nil {
		reply.Generation = a.group.generation.message()
	}
	more := reply.GetLoading() != nil || reply.GetItems() != nil
	if a.in != nil {
		a.in.reply(a.id, reply)
		if more {
			a.in.flush()
		}
		return
	}
	reply.Sender = a.c.news(new(spoken))
	body, err := shoalpb.AppendReply(nil, reply)
	if err != nil {
		a.c.opts.Logger.Error("shoal: an answer cannot be encoded", "error", err)
		return // without a body, which is taken for no answer
	}
	if !a.begun {
		a.begun = true
		header := a.w.Header()
		header.Set("Content-Type", mediaType)
		if !more {
			header.Set("Content-Length", strconv.Itoa(len(body)))
		}
		a.w.WriteHeader(status)
	} else {
		http.NewResponseController(a.w).SetWriteDeadline(time.Now().Add(longestWrite))
	}
	a.w.Write(body) // who does not read it is not there any more
	if more {
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
	if a.in != nil {
		return
	}
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

// isThere takes note that p has said something, if it was not a refusal, and whether that was an answer to a question.
func (c *Cache) isThere(p *peer, answer bool) {
	if p.counts.breaker.heard(&c.clock, answer) {
		c.peers.catchesUp(p)
	}
	if p.counts.stoodIn.Load() {
		c.ownerIsBack(p)
	}
	c.hints.heard(p.ID)
}

// heard takes note of what the sender of a message says of itself.
func (c *Cache) heard(s *shoalpb.Sender) {
	c.clock.saw(s.GetClock())
	if p := c.peers.knows(s); p != nil {
		if p.counts.breaker.heard(&c.clock, false) {
			c.peers.catchesUp(p)
		}
		if p.counts.stoodIn.Load() {
			c.ownerIsBack(p)
		}
		p.counts.show(s, func() { c.peers.differs.Store(int64(c.clock.now())) })
		agrees := s.GetView() == c.peers.view.Load().digest
		c.peers.compare(agrees)
		if p.counts.isDue(agrees, c.clock.now()) { // it may not know this process any more
			c.peers.noticed(sighting{id: p.ID, addr: p.Addr})
		}
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
