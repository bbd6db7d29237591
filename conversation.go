package shoal

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/shoalcache/shoal/shoalpb"
)

// A conversation is several Requests being answered: those of a POST, or of a stream. What memory has is answered at
// once, by who reads the Requests; what may have to wait, by goroutines. The other end is line.go.
type conversation struct {
	c     *Cache
	ctx   context.Context // ends when nobody is there any more
	r     *bufio.Reader
	write func([]byte) error

	connection bool            // when no more Requests come, nobody waits for answers either
	stopped    context.Context // ends when no more Requests are to be read
	stop       context.CancelFunc

	sender *shoalpb.Sender // who it was at last; of the goroutine that reads
	fromIn *view           // … as a peer in this view
	from   *peer

	many      []string // keys of a FetchMany; of the same goroutine, as are the next
	items     []byte   // of an answer to be
	itemValue shoalpb.Value

	mu      sync.Mutex // guards what follows
	room    sync.Cond  // there is room in out again, or err
	out     []byte     // to be written
	spare   []byte     // for the next
	writing bool
	said    spoken
	err     error // why nothing is written any more
	leave   func()
	over    bool
	running map[uint32]context.CancelFunc
	hot     hotReply
	all     sync.WaitGroup // of running
}

// hotReply is the memory for a Reply with a Value.
type hotReply struct {
	shoalpb.Reply
	answer shoalpb.Reply_Value
	value  shoalpb.Value
}

const (
	// flushAt is how many bytes of answers are written at once, if so many are there; and maxUnread how many may wait
	// for a peer to read them before no more of its Requests are.
	flushAt, maxUnread = 128 << 10, 1 << 20
)

// upgraded reports whether r asks for a connection that carries a stream.
func upgraded(r *http.Request) bool {
	return r.Header.Get("Upgrade") == protocol && strings.EqualFold(r.Header.Get("Connection"), "Upgrade")
}

// converse answers the Requests that r begins, or refuses to.
func (c *Cache) converse(a *answering, r *http.Request) {
	v := &conversation{c: c, running: make(map[uint32]context.CancelFunc)}
	v.room.L = &v.mu
	over, ok := c.conversing(v)
	defer over()
	switch {
	case c.closed.Load():
		a.refuse(http.StatusServiceUnavailable, shoalpb.Refused_SHUT_DOWN, "it has left its peers")
	case !ok:
		a.refuse(http.StatusServiceUnavailable, shoalpb.Refused_OVERLOADED, "MaxRequests, %d, are being answered", c.opts.MaxRequests)
	case upgraded(r):
		if err := v.upgrade(a.w); err != nil {
			a.refuse(http.StatusNotImplemented, shoalpb.Refused_UNKNOWN, "no stream of this connection: %v", err)
		}
	default:
		v.post(a, r)
	}
}

// upgrade answers what comes on the connection of w.
func (v *conversation) upgrade(w http.ResponseWriter) error {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Time{})
	begun := io.LimitReader(buffered.Reader, int64(buffered.Reader.Buffered()))
	v.out = append(v.out, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+protocol+"\r\n\r\n"...)
	v.connection = true
	ctx, leave := context.WithCancel(context.Background())
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	v.run(ctx, leave, io.MultiReader(begun, conn), func(b []byte) error {
		conn.SetWriteDeadline(time.Now().Add(longestWrite))
		_, err := conn.Write(b)
		return err
	}, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	return nil
}

// post answers the Requests in the body of r, which may go on while it does.
func (v *conversation) post(a *answering, r *http.Request) {
	w, control := a.w, http.NewResponseController(a.w)
	control.SetReadDeadline(time.Time{})
	var body io.Reader = r.Body
	if control.EnableFullDuplex() != nil { // something around w does not let it through: answers wait for the last Request
		all, err := io.ReadAll(http.MaxBytesReader(w, r.Body, v.c.opts.MaxBodyBytes))
		if err != nil {
			a.refuse(http.StatusRequestEntityTooLarge, shoalpb.Refused_TOO_LARGE, "read the body: %v", err)
			return
		}
		body = bytes.NewReader(all)
	}
	w.Header().Set("Content-Type", streamType)
	w.WriteHeader(http.StatusOK)
	ctx, leave := context.WithCancel(r.Context())
	v.run(ctx, leave, body, func(b []byte) error {
		control.SetWriteDeadline(time.Now().Add(longestWrite))
		if _, err := w.Write(b); err != nil {
			return err
		}
		if err := control.Flush(); !errors.Is(err, http.ErrNotSupported) {
			return err
		}
		v.c.deaf.Do(func() {
			v.c.opts.Logger.Error("shoal: what wraps the http.ResponseWriter has neither Unwrap nor Flush: " +
				"peers hear too late that a value is being loaded, and give up loads that take longer than their PeerTimeout")
		})
		return nil
	}, func() {
		if control.SetReadDeadline(time.Unix(1, 0)) != nil {
			r.Body.Close()
		}
	})
}

// run answers what comes from r until nothing does any more. ctx ends when nobody is there any more, and leave ends it; stop
// has reading end.
func (v *conversation) run(ctx context.Context, leave func(), r io.Reader, write func([]byte) error, stop func()) {
	v.ctx, v.r, v.write = ctx, bufio.NewReaderSize(r, 32<<10), write
	v.mu.Lock()
	v.leave = leave
	v.mu.Unlock()
	defer leave()
	defer context.AfterFunc(ctx, func() { v.failed(context.Canceled) })()
	defer context.AfterFunc(v.stopped, func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		if !v.over {
			stop()
		}
	})()
	defer func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.over = true // and what stop stops is not there any more
	}()

	v.reply(0, &shoalpb.Reply{})
	v.flush()
	if err := v.read(); (err != io.EOF || v.connection) && v.stopped.Err() == nil {
		leave() // who waited for answers has gone, or has said what cannot be understood
	}
	v.all.Wait()
	v.flush()
}

// read answers what comes, and returns why nothing does any more.
func (v *conversation) read() error {
	var reader shoalpb.RequestReader
	a := &answering{c: v.c, in: v}
	for {
		if !wholeMessage(v.r) {
			v.flush()
		}
		*a = answering{c: v.c, in: v}
		data, err := v.next()
		if err == errTooLong {
			a.refuse(http.StatusRequestEntityTooLarge, shoalpb.Refused_TOO_LARGE, "a Request is longer than MaxBodyBytes, %d", v.c.opts.MaxBodyBytes)
			v.flush()
		}
		if err != nil {
			return err
		}
		req, err := reader.Read(data)
		if err != nil || req.Id == 0 {
			a.refuse(http.StatusBadRequest, shoalpb.Refused_MALFORMED, "not a Request with an id: %v", err)
			v.flush()
			return errMalformed
		}
		a.id = req.Id
		v.answer(a, req)
	}
}

var errMalformed, errTooLong = errors.New("not a Request"), errors.New("too long a Request")

// next returns the next message, which is good until the one after it is asked for.
func (v *conversation) next() ([]byte, error) {
	size, err := readSize(v.r)
	if err != nil {
		return nil, err
	}
	if size > uint64(v.c.opts.MaxBodyBytes) {
		return nil, errTooLong
	}
	if size <= uint64(v.r.Size()) {
		data, err := v.r.Peek(int(size))
		v.r.Discard(len(data)) // the bytes stay where they are until more is read
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return data, err
	}
	return readBytes(v.r, size)
}

// answer answers one Request.
func (v *conversation) answer(a *answering, req *shoalpb.Request) {
	v.c.requests.Add(1)
	if req.Sender != nil {
		v.sender = proto.CloneOf(req.Sender)
	}
	if seen := v.c.peers.view.Load(); req.Sender != nil || seen != v.fromIn {
		v.c.heard(v.sender)
		v.fromIn, v.from = seen, v.c.peers.sender(v.sender)
	}
	if req.GetCancel() != nil {
		v.mu.Lock()
		cancel := v.running[req.Id]
		v.mu.Unlock()
		if cancel != nil {
			cancel()
		}
		return
	}
	if v.c.closed.Load() {
		a.refuse(http.StatusServiceUnavailable, shoalpb.Refused_SHUT_DOWN, "it has left its peers")
		return
	}
	a.sender, a.from = v.sender, v.from
	rest := a.answer(req)
	if rest == nil {
		return
	}
	if !v.c.slots.TryAcquire(1) {
		a.refuse(http.StatusServiceUnavailable, shoalpb.Refused_OVERLOADED, "MaxRequests, %d, are being answered", v.c.opts.MaxRequests)
		return
	}
	var ctx context.Context
	var cancel context.CancelFunc
	if within := time.Duration(req.Within); within > 0 && within < math.MaxInt64/2 {
		ctx, cancel = context.WithTimeout(v.ctx, within+within/8+10*time.Millisecond) // the asker will have said so first
	} else {
		ctx, cancel = context.WithCancel(v.ctx)
	}
	id := req.Id
	v.mu.Lock()
	v.running[id] = cancel
	v.mu.Unlock()
	own := *a // a is used again
	v.all.Go(func() {
		defer v.c.slots.Release(1)
		defer cancel()
		rest(ctx, &own)
		v.mu.Lock()
		defer v.mu.Unlock()
		delete(v.running, id)
		v.flushLocked()
	})
}

// reply puts a reply to the Request of that id among what is to be written.
func (v *conversation) reply(id uint32, reply *shoalpb.Reply) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.roomLocked() {
		v.addLocked(id, reply)
	}
}

// value is reply for a Value, without allocating.
func (v *conversation) value(a *answering, f *found) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.roomLocked() { // first, for it lets go of the lock, and others use hot too
		return
	}
	a.value(f, &v.hot.value)
	v.hot.answer.Value, v.hot.Answer, v.hot.Generation = &v.hot.value, &v.hot.answer, a.group.generation.message()
	v.addLocked(a.id, &v.hot.Reply)
	v.hot.value.Value = nil
}

// item puts what was found among the items that sendItems sends. Both are for the goroutine that reads.
func (v *conversation) item(a *answering, index uint32, f *found) {
	if len(v.items)+f.value.Len() > itemsBytes {
		v.sendItems(a)
	}
	if len(v.items) == 0 {
		v.items = slices.Grow(v.items, itemsBytes)[:shoalpb.ItemsHead]
	}
	a.value(f, &v.itemValue)
	v.items = shoalpb.AppendItem(v.items, index, &v.itemValue)
	v.itemValue.Value = nil
}

func (v *conversation) sendItems(a *answering) {
	if len(v.items) == 0 {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.roomLocked() {
		if news := v.c.news(&v.said); news != nil {
			v.out, _ = shoalpb.AppendReply(v.out, &shoalpb.Reply{Sender: news})
		}
		if reply := shoalpb.ItemsReply(v.items, a.id, a.group.generation.message()); len(v.out) > 0 {
			v.out = append(v.out, reply...)
		} else {
			v.out, v.items = reply, v.out
		}
	}
	v.items = v.items[:0]
}

// roomLocked waits until there is room for an answer, and reports false if nothing is written any more. It lets go of the
// lock while it does.
func (v *conversation) roomLocked() bool {
	if len(v.out) >= flushAt {
		v.flushLocked()
	}
	for len(v.out) > maxUnread && v.err == nil {
		if v.writing {
			v.room.Wait()
		} else {
			v.flushLocked()
		}
	}
	return v.err == nil
}

// addLocked puts reply among what is to be written.
func (v *conversation) addLocked(id uint32, reply *shoalpb.Reply) {
	reply.Id, reply.Sender = id, v.c.news(&v.said)
	out, err := shoalpb.AppendReply(v.out, reply)
	if err != nil {
		v.c.opts.Logger.Error("shoal: an answer cannot be encoded", "error", err)
		v.failedLocked(err)
		return
	}
	v.out = out
}

func (v *conversation) flush() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.flushLocked()
}

// flushLocked writes what there is, unless somebody else is doing so, who will. It lets go of the lock while it writes.
func (v *conversation) flushLocked() {
	if v.writing {
		return
	}
	v.writing = true
	for len(v.out) > 0 && v.err == nil {
		b := v.out
		v.out, v.spare = v.spare[:0], nil
		v.mu.Unlock()
		err := v.write(b)
		v.mu.Lock()
		if cap(b) <= 4*flushAt { // which takes what has not been flushed, and the longest message
			v.spare = b
		}
		if err != nil {
			v.failedLocked(err)
		}
		v.room.Broadcast()
	}
	v.writing = false
}

func (v *conversation) failed(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.failedLocked(err)
}

func (v *conversation) failedLocked(err error) {
	if v.err == nil {
		v.err = err
		v.room.Broadcast()
		go v.leave()
	}
}
