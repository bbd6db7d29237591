package shoal

// line.go: how a peer is asked. A call is one question; a wire carries calls there, and brings back the answers; a line
// finds a wire for each call. The other end is conversation.go.

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/shoalcache/shoal/shoalpb"
)

const (
	// apart is how long a message on a stream may be. What is longer goes in a POST of its own, or it would hold up what
	// comes behind it: 128 KiB take 0.1 ms at 10 Gbit/s, and 1 ms at 1.
	apart = 128 << 10
	// maxCalls is how many calls may be under way on a wire, and maxUnsent how many bytes of theirs may wait to be sent.
	maxCalls, maxUnsent = 1<<15 - 1, 4 << 20
	// maxUnreadThere is how many bytes may be on their way so that writing more, which goes into some buffer, takes no time.
	maxUnreadThere = 16 << 10
	// A peer is asked over another stream, up to maxStreams, when busyStream calls are under way on each.
	maxStreams, busyStream = 4, 512
	// maxPosts is how many POSTs of several calls may be without an answer at once. Who comes then waits for the next.
	maxPosts = 2
	// A stream that nobody has used for idleStream is closed.
	idleStream = 90 * time.Second
	// Where no stream could be had, it is tried again after firstStream, then twice that, and so on up to lastStream, each
	// time cut at random by up to a half.
	firstStream, lastStream = time.Second, time.Minute
)

// A call is a question to the process at an address, and its answers.
type call struct {
	cache       *Cache
	line        *line
	peer        *peer  // whom it asks; nil: whoever is there
	group       *group // nil: none
	longestLoad time.Duration
	alone       bool // it needs a POST of its own
	many        bool // it may have several answers

	req    shoalpb.Request
	fetch  shoalpb.Fetch
	op     shoalpb.Request_Fetch
	reader shoalpb.ReplyReader

	sent     time.Duration // when it was made, on the clock
	wire     *wire         // that carries it now
	again    bool          // it has been sent a second time
	answered bool          // something has come
	left     bool          // next was left while it waited
	counted  bool          // among the line's

	in  chan arrival
	few chan arrival // in, unless many answers may come

	id     uint32        // on the wire. It and what follows are guarded by the wire's lock
	due    time.Duration // when it is given up
	load   time.Duration // how long it may be silent beyond PeerTimeout
	upTo   int64         // with it, so many bytes had been added to the wire
	worded bool          // something has come
	done   bool          // all has come
}

// An arrival is what the wire has for a call: a Reply, or the reason why there will be none.
type arrival struct {
	data []byte
	err  error
}

// newCall returns a call whose req has no Op yet. It must be ended.
func (c *Cache) newCall(l *line, p *peer, g *group, longestLoad time.Duration) *call {
	k, _ := c.calls.Get().(*call)
	if k == nil {
		k = &call{few: make(chan arrival, 3)}
	}
	k.in = k.few
	k.cache, k.line, k.peer, k.group, k.longestLoad, k.sent = c, l, p, g, longestLoad, c.clock.now()
	if g != nil {
		k.req.Group, k.req.Generation = g.nameBytes, g.generation.message()
	}
	return k
}

// setMany says that n answers may come.
func (k *call) setMany(n int) {
	k.many = true
	k.in = make(chan arrival, n+2)
}

// end must be called once nobody waits for answers any more. What next has returned is not good any longer, but for the
// bytes in it.
func (k *call) end() {
	if k.wire != nil {
		k.wire.drop(k)
	}
	for len(k.few) > 0 {
		<-k.few
	}
	if k.counted {
		k.line.underWay.Add(-1)
		k.counted = false
	}
	c := k.cache
	k.line, k.peer, k.group, k.wire = nil, nil, nil, nil
	k.alone, k.many, k.again, k.answered, k.left, k.worded, k.done = false, false, false, false, false, false, false
	k.req.Op, k.req.Group, k.req.Generation, k.req.Sender, k.req.Within = nil, nil, nil, nil, 0
	k.fetch.Key = nil
	c.calls.Put(k)
}

// allIn says that no more answers are to come.
func (k *call) allIn() {
	k.wire.mu.Lock()
	defer k.wire.mu.Unlock()
	k.done = true
	if k.wire.holdsLocked(k) {
		k.wire.freeLocked(k)
	}
}

// blame counts err, if it is one, as the peer's.
func (k *call) blame(err error) error {
	if err != nil {
		k.peer.counts.failed(err)
	}
	return err
}

// next sends the question, if that has not been done, and returns the next answer. It gives up when nothing has come from
// there for PeerTimeout; after word that something is being loaded, for as long as that may take, at most longestLoad, and
// PeerTimeout. Refusals are errors.
func (k *call) next(ctx context.Context) (*shoalpb.Reply, error) {
	reply, err := k.receive(ctx)
	if k.peer != nil && err != nil && ctx.Err() == nil { // it is no fault of the peer's that nobody waits any more
		k.peer.counts.failed(err)
		if !k.answered {
			k.peer.counts.silent.Store(true)
		}
	}
	return reply, err
}

func (k *call) receive(ctx context.Context) (*shoalpb.Reply, error) {
	if k.wire == nil {
		if deadline, ok := ctx.Deadline(); ok {
			k.req.Within = int64(max(time.Until(deadline), 1))
		}
		if err := k.line.send(k); err != nil {
			return nil, err
		}
	}
	for {
		var a arrival
		select {
		case a = <-k.in:
		case <-ctx.Done():
			k.left = true
			return nil, ctx.Err()
		}
		if a.err != nil {
			// Asking twice does no harm, but where something is written.
			once := errors.Is(a.err, errEnded) && k.req.GetWrite() == nil || a.err == errNotUnderstood
			if once && !k.answered && !k.again {
				if err := k.sendAlone(); err != nil {
					return nil, err
				}
				k.again = true
				continue
			}
			return nil, a.err
		}
		reply, err := k.reader.Read(a.data)
		if err != nil {
			return nil, fmt.Errorf("read the answer: %w", err)
		}
		k.answered = true
		if loading := reply.GetLoading(); loading != nil && k.longestLoad > 0 { // once
			k.wire.patient(k, min(max(time.Duration(loading.Longest), 0), k.longestLoad))
			k.longestLoad = 0
			continue
		}
		if reply.GetApart() != nil && !k.alone {
			if err := k.sendAlone(); err != nil {
				return nil, err
			}
			continue
		}
		return reply, k.check(reply)
	}
}

// sendAlone sends k once more, in a POST of its own.
func (k *call) sendAlone() error {
	k.wire.drop(k)
	k.alone, k.sent = true, k.cache.clock.now()
	return k.line.send(k)
}

// check does what is to be done with any reply, and returns the error that it is, if it is one.
func (k *call) check(reply *shoalpb.Reply) error {
	if k.peer == nil {
		return nil
	}
	if was := k.wire.incarnation.Load(); was != k.peer.incarnation && k.peer.incarnation != 0 {
		k.cache.peers.noticed(sighting{id: k.peer.ID, incarnation: was}) // somebody else is there now
	}
	if r := reply.GetRefused(); r != nil {
		return k.cache.refusal(r)
	}
	k.cache.isThere(k.peer)
	k.group.meet(reply.GetGeneration())
	return nil
}

// A line is how the process at an address is asked: over a few streams if it can be, which are opened when they are
// needed; else by POSTs of what has come together while others were under way; or else by one POST each.
type line struct {
	cache *Cache
	addr  string
	way   atomic.Int32         // that the last call has gone
	only  atomic.Pointer[wire] // the stream, if there is one alone

	underWay atomic.Int64 // calls
	down     atomic.Bool  // the last POST came to nothing

	mu      sync.Mutex // guards what follows
	streams []*wire
	opening bool
	retry   time.Duration // no stream is tried before
	fails   int           // to open one, in a row
	single  time.Duration // until when several calls in one POST are not tried, which have not been understood
	posts   int           // of several calls, without an answer yet
	next    *wire         // gathers for the next
	closed  bool          // no stream is opened any more
}

const (
	byNothing = iota
	bySingle
	byBatch
	byStream
)

var wayNames = [...]string{byNothing: "", bySingle: "single", byBatch: "batch", byStream: "stream"}

var (
	// errBusy is the error of a call that would make more wait than there is room for.
	errBusy = errors.New("too much is under way to it already")
	// errEnded is why a call on a stream has no answer when the stream has ended.
	errEnded = errors.New("the stream has ended")
	// errNotUnderstood is why calls in one POST have no answer where only single ones are understood.
	errNotUnderstood = errors.New("several questions in one request are not understood there")
)

func (c *Cache) lineTo(addr string) *line { return &line{cache: c, addr: addr} }

// send finds a wire for k, and sends it.
func (l *line) send(k *call) error {
	if _, hot := k.req.Op.(*shoalpb.Request_Fetch); !hot && !k.alone {
		k.alone = proto.Size(&k.req) > apart
	}
	if !k.counted {
		k.counted = true
		if l.underWay.Add(1) > maxCalls {
			return errBusy
		}
	}
	for tries := 0; ; tries++ {
		w, begin := l.wire(k)
		err := w.send(k)
		if begin {
			go w.post()
		}
		if err != errEnded {
			return err
		}
		k.alone = tries > 2 // there is another stream each time, or none
	}
}

// wire returns the wire that k goes by, and whether it is a POST that can begin when k is in it.
func (l *line) wire(k *call) (w *wire, begin bool) {
	if k.alone {
		return l.newWire(false), true
	}
	if w := l.only.Load(); w != nil && w.inFlight.Load() < busyStream {
		l.went(byStream)
		return w, false
	}
	now := l.cache.clock.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.streams {
		if n := s.inFlight.Load(); w == nil || n < w.inFlight.Load() {
			w = s
		}
	}
	if w == nil || w.inFlight.Load() >= busyStream && len(l.streams) < maxStreams {
		if !l.opening && !l.closed && now >= l.retry {
			l.opening = true
			go l.open()
		}
	}
	switch {
	case w != nil:
		l.went(byStream)
	case now < l.single:
		l.went(bySingle)
		return l.newWire(false), true
	case l.posts < maxPosts:
		l.went(byBatch)
		l.posts++
		return l.newWire(true), true
	default:
		if l.next == nil {
			l.next = l.newWire(true)
		}
		w = l.next
	}
	return w, false
}

func (l *line) went(way int32) {
	if l.way.Load() != way {
		l.way.Store(way)
	}
}

// streamsLocked makes all the streams.
func (l *line) streamsLocked(all []*wire) {
	l.streams = all
	if len(all) == 1 {
		l.only.Store(all[0])
	} else {
		l.only.Store(nil)
	}
}

// posted takes note that the calls of a POST have had a word, each of them, and begins the next.
func (l *line) posted() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next != nil {
		go l.next.post()
		l.next = nil
	} else {
		l.posts--
	}
}

// onlySingle takes note that several calls in one POST are not understood there.
func (l *line) onlySingle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.single = l.cache.clock.now() + lastStream
}

// ended takes note that w, if it is a stream, carries no calls any more.
func (l *line) ended(w *wire) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.streams, w); i < 0 {
		return
	} else {
		l.streamsLocked(slices.Delete(slices.Clone(l.streams), i, i+1))
	}
	if l.cache.clock.now()-w.since >= firstStream {
		l.fails = 0
	} else {
		l.failedLocked()
	}
}

// close ends the streams as soon as they carry nothing, and has no more opened.
func (l *line) close() {
	l.mu.Lock()
	streams := l.streams
	l.closed = true
	l.streamsLocked(nil)
	l.mu.Unlock()
	for _, w := range streams {
		w.retire()
	}
}

// open opens a stream.
func (l *line) open() {
	w, err := l.dial()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.opening = false
	switch {
	case err != nil:
		l.failedLocked()
	case l.closed:
		go w.retire()
	case w.hasEnded():
		l.failedLocked()
	default:
		l.streamsLocked(append(l.streams, w))
	}
}

// isBack takes note that the peer answers again, and may take streams again.
func (l *line) isBack() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fails, l.retry = 0, 0
}

// failedLocked takes note that no stream could be had, or none that lasts.
func (l *line) failedLocked() {
	wait := min(firstStream<<min(l.fails, 16), lastStream)
	l.fails++
	l.retry = l.cache.clock.now() + wait - rand.N(wait/2)
}

// dial opens a stream: by an upgrade of a connection, which only HTTP/1.1 has, or else by a POST whose body goes on while
// the answer comes. (The first took 20% less CPU in bench/remote for 16 callers.)
func (l *line) dial() (*wire, error) {
	w := l.newWire(true)
	w.stream, w.wake = true, make(chan struct{}, 1)
	w.ctx, w.cancel = context.WithCancelCause(l.cache.life)
	late := time.AfterFunc(l.cache.opts.PeerTimeout, func() { w.cancel(context.DeadlineExceeded) })
	from, err := w.upgrade()
	if err != nil {
		from, err = w.duplex()
	}
	var r *bufio.Reader
	if err == nil {
		r = w.reader(from, 128<<10)
		err = w.take(r) // a first word, which shows that what is said there comes here
	}
	if !late.Stop() && err == nil {
		err = context.DeadlineExceeded
	}
	if err != nil {
		w.fail(err)
		return nil, err
	}
	w.mu.Lock()
	w.since = l.cache.clock.now()
	w.lookLocked(w.since+idleStream, w.since)
	w.mu.Unlock()
	go w.write()
	go func() { w.fail(fmt.Errorf("%w: %w", errEnded, w.read(r))) }()
	return w, nil
}

// A wire carries calls to a process, and their answers back: a stream, or one POST.
type wire struct {
	line        *line
	cache       *Cache
	several     bool          // calls have ids
	since       time.Duration // when a stream was opened
	stream      bool
	direct      bool // to is a connection
	ctx         context.Context
	cancel      context.CancelCauseFunc
	to          io.WriteCloser  // of a stream: where calls are written
	wake        chan struct{}   // has an element when there is something to write
	incarnation atomic.Uint64   // of whom it leads to
	heard       atomic.Int64    // when, on the clock, anything has come
	inFlight    atomic.Int64    // calls; changed under mu
	sender      *shoalpb.Sender // who it was at last; of the goroutine that reads
	heardIn     *view           // that was taken note of in this view

	mu        sync.Mutex // guards what follows
	slots     []slot     // the first stays empty
	free      []uint16   // of slots
	waiting   int        // calls that have had no word yet
	begun     bool       // a POST: nothing can be added
	oneAnswer bool       // … there is one, for all of its calls
	worded    bool       // … it has been said that its calls have all had a word
	out       []byte     // to be written
	spare     []byte     // for the next
	going     int        // bytes that are being written
	writing   bool
	leftAt    time.Duration // when, on the clock, a caller last left without an answer
	added     int64         // bytes, ever
	taken     int64         // … those that are known to have been read there
	said      spoken
	err       error // why it carries nothing any more
	retired   bool  // it ends with its last call
	lookAt    time.Duration
	look      *time.Timer
}

// A slot has the call whose id is turn<<16 and the slot's number. A late answer to one that had the slot before has
// another turn.
type slot struct {
	call *call
	turn uint16
}

func (l *line) newWire(several bool) *wire {
	w := &wire{line: l, cache: l.cache, several: several, slots: make([]slot, 1, 2)}
	w.ctx, w.cancel = context.WithCancelCause(context.Background())
	return w
}

// send puts k on the wire. Its error is errEnded if there must be another wire for k.
func (w *wire) send(k *call) error {
	w.mu.Lock()
	if err := w.addLocked(k); err != nil {
		w.mu.Unlock()
		return err
	}
	if !w.direct || w.writing || w.added-w.taken > maxUnreadThere {
		w.wakeLocked()
		w.mu.Unlock()
		return nil
	}
	// It can be written without waiting, and so by the caller itself.
	w.writing = true
	w.mu.Unlock()
	if w.inFlight.Load() > 1 {
		runtime.Gosched() // others may be about to add something
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writeLocked()
	if w.writing = false; len(w.out) > 0 || w.err != nil {
		w.wakeLocked()
	}
	return nil
}

func (w *wire) addLocked(k *call) error {
	switch {
	case w.err != nil || w.begun || w.retired:
		return errEnded
	case len(w.slots) > maxCalls && len(w.free) == 0 || len(w.out)+w.going > maxUnsent:
		return errBusy
	}
	var i uint16
	if n := len(w.free); n > 0 {
		i = w.free[n-1]
		w.free = w.free[:n-1]
	} else {
		i = uint16(len(w.slots))
		w.slots = append(w.slots, slot{})
	}
	s := &w.slots[i]
	s.call = k
	s.turn++
	w.inFlight.Add(1)
	w.waiting++
	k.wire, k.worded = w, false
	k.id = uint32(s.turn)<<16 | uint32(i)
	k.due, k.load = k.sent+w.cache.opts.PeerTimeout, 0
	w.lookLocked(k.due, k.sent)

	var err error
	before := len(w.out)
	k.req.Id, k.req.Sender = 0, w.cache.news(&w.said)
	if w.several {
		k.req.Id = k.id
		w.out, err = shoalpb.AppendRequest(w.out, &k.req)
	} else {
		w.out, err = proto.MarshalOptions{}.MarshalAppend(w.out, &k.req)
	}
	if err != nil {
		w.freeLocked(k)
		return err
	}
	w.added += int64(len(w.out) - before)
	k.upTo = w.added
	return nil
}

// wakeLocked has what there is written, or the end of w noticed, by the goroutine that is there for that.
func (w *wire) wakeLocked() {
	if w.stream && !w.writing {
		w.writing = true
		w.wake <- struct{}{}
	}
}

// writeLocked writes what there is. It lets go of the lock while it does.
func (w *wire) writeLocked() {
	b := w.out
	w.out, w.spare, w.going = w.spare[:0], nil, len(b)
	w.mu.Unlock()
	_, err := w.to.Write(b)
	if err != nil {
		w.fail(fmt.Errorf("%w: %w", errEnded, err))
	}
	w.mu.Lock()
	w.going = 0
	if cap(b) <= apart {
		w.spare = b
	}
}

// lookLocked has the wire looked after at that time, or before.
func (w *wire) lookLocked(at, now time.Duration) {
	if w.look == nil {
		w.look = time.AfterFunc(at-now, w.lookAfter)
	} else if at < w.lookAt || w.lookAt == 0 {
		w.look.Reset(at - now)
	} else {
		return
	}
	w.lookAt = at
}

// holdsLocked reports whether k still waits for something from w.
func (w *wire) holdsLocked(k *call) bool {
	i := k.id & 0xffff
	return k.wire == w && int(i) < len(w.slots) && w.slots[i].call == k
}

// freeLocked takes k, which w holds, off the wire.
func (w *wire) freeLocked(k *call) {
	w.wordLocked(k)
	i := uint16(k.id)
	w.slots[i].call = nil
	w.free = append(w.free, i)
	w.inFlight.Add(-1)
	if w.retired && w.inFlight.Load() == 0 {
		go w.fail(errEnded)
	}
}

// wordLocked takes note that something has come of k.
func (w *wire) wordLocked(k *call) {
	if k.worded {
		return
	}
	k.worded = true
	w.waiting--
	w.wordedLocked()
}

func (w *wire) wordedLocked() {
	if w.several && !w.stream && w.begun && w.waiting == 0 && !w.worded {
		w.worded = true
		go w.line.posted()
	}
}

// drop takes k off the wire, whose caller does not wait any more, and lets the other side know.
func (w *wire) drop(k *call) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.holdsLocked(k) {
		return
	}
	w.freeLocked(k)
	w.cancelLocked(k)
	if !k.done && w.stream && w.err == nil {
		now := w.cache.clock.now()
		w.leftAt = now
		w.lookLocked(now+w.cache.opts.PeerTimeout, now)
	}
}

// cancelLocked lets the other side know that nobody waits for the answer to k any more, which is off the wire.
func (w *wire) cancelLocked(k *call) {
	switch {
	case k.done || w.err != nil:
	case w.stream:
		before := len(w.out)
		w.out, _ = shoalpb.AppendRequest(w.out, &shoalpb.Request{Id: k.id, Op: &shoalpb.Request_Cancel{Cancel: &shoalpb.Cancel{}}})
		w.added += int64(len(w.out) - before)
		w.wakeLocked()
	case w.begun && w.inFlight.Load() == 0:
		w.cancel(context.Canceled)
	}
}

// patient gives k as long as a load takes.
func (w *wire) patient(k *call, longest time.Duration) {
	now := w.cache.clock.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	k.load = longest
	k.due = now + w.cache.opts.PeerTimeout + k.load
}

// lookAfter gives up calls that have waited too long, and ends a stream that is not used.
func (w *wire) lookAfter() {
	patience := w.cache.opts.PeerTimeout
	now := w.cache.clock.now()
	heard := time.Duration(w.heard.Load())
	next := now + idleStream
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return
	}
	gaveUp := false
	for i := range w.slots {
		k := w.slots[i].call
		if k == nil {
			continue
		}
		// What comes for others may be in the way of what comes for k, but not without end.
		due := max(k.due, heard+patience)
		if w.several {
			due = min(due, k.due+mostBehind*patience)
		}
		if due > now {
			next = min(next, due)
			continue
		}
		gaveUp = true
		w.freeLocked(k)
		w.cancelLocked(k)
		k.arrive(arrival{err: fmt.Errorf("nothing has come from there for PeerTimeout, %v", patience)})
	}
	// Where nothing has come since somebody left without an answer, nothing may come to the next either.
	silent := (gaveUp || w.leftAt > heard) && max(heard, w.leftAt)+patience <= now
	switch idle := w.inFlight.Load() == 0; {
	case w.stream && silent: // nobody else is to wait for it
		go w.retire()
	case w.stream && idle && now-heard >= idleStream, !w.stream && idle && w.begun:
		go w.fail(errEnded)
	case w.stream && idle:
		next = heard + idleStream
	case idle:
		w.lookAt = 0
		return
	}
	if at := w.leftAt + patience; w.leftAt > heard && at > now {
		next = min(next, at)
	}
	w.lookAt = next
	w.look.Reset(next - now)
}

// mostBehind is how many PeerTimeouts a call may wait longer while answers to others come.
const mostBehind = 3

func (w *wire) hasEnded() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err != nil
}

// retire has no more calls put on the wire, and ends it with its last.
func (w *wire) retire() {
	w.line.ended(w)
	w.mu.Lock()
	w.retired = true
	idle := w.inFlight.Load() == 0
	w.mu.Unlock()
	if idle {
		w.fail(errEnded)
	}
}

// fail ends the wire.
func (w *wire) fail(err error) {
	w.mu.Lock()
	if w.err != nil {
		w.mu.Unlock()
		return
	}
	w.err = err
	for i := range w.slots {
		if k := w.slots[i].call; k != nil {
			w.freeLocked(k)
			k.arrive(arrival{err: err})
		}
	}
	w.begun = true
	w.wordedLocked()
	if w.look != nil {
		w.look.Stop()
	}
	w.wakeLocked()
	w.mu.Unlock()
	w.line.ended(w)
	w.cancel(err)
}

// arrive gives k what has come for it. It does not wait: there is room for all that may come.
func (k *call) arrive(a arrival) {
	select {
	case k.in <- a:
	default:
	}
}

// write writes what is put on a stream where callers do not. It is a goroutine of its own, for callers must be able to
// leave; while it writes, more comes together.
func (w *wire) write() {
	for range w.wake {
		if w.inFlight.Load() > 1 {
			runtime.Gosched() // others may be about to add something
		}
		w.mu.Lock()
		for len(w.out) > 0 && w.err == nil {
			w.writeLocked()
		}
		w.writing = false
		ended := w.err != nil
		w.mu.Unlock()
		if ended {
			return
		}
	}
}

// upgrade makes a stream of a connection, and returns what is to be read from it.
func (w *wire) upgrade() (io.Reader, error) {
	post, err := w.request(nil)
	if err != nil {
		return nil, err
	}
	post.Header.Set("Connection", "Upgrade")
	post.Header.Set("Upgrade", protocol)
	resp, err := w.cache.opts.Transport.RoundTrip(post)
	if err != nil {
		return nil, err
	}
	conn, ok := resp.Body.(io.ReadWriteCloser)
	if !ok || resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Upgrade") != protocol {
		resp.Body.Close()
		return nil, fmt.Errorf("no upgrade: %s", resp.Status)
	}
	w.to, w.direct = conn, true
	context.AfterFunc(w.ctx, func() { conn.Close() })
	return conn, nil
}

// duplex makes a stream of a request that goes on while the answer comes.
func (w *wire) duplex() (io.Reader, error) {
	body, to := io.Pipe()
	context.AfterFunc(w.ctx, func() { body.CloseWithError(errEnded) }) // the transport may wait for it
	post, err := w.request(body)
	if err != nil {
		return nil, err
	}
	post.Header.Set("Content-Type", streamType)
	resp, err := w.cache.opts.Transport.RoundTrip(post)
	if err != nil {
		body.CloseWithError(err)
		return nil, err
	}
	if got := resp.Header.Get("Content-Type"); got != streamType || resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		body.CloseWithError(errEnded)
		return nil, fmt.Errorf("no stream: %s, Content-Type %q", resp.Status, got)
	}
	w.to = to
	context.AfterFunc(w.ctx, func() { resp.Body.Close() })
	return resp.Body, nil
}

// request returns a POST to where w leads.
func (w *wire) request(body io.Reader) (*http.Request, error) {
	to, err := target(w.line.addr)
	if err != nil {
		return nil, err
	}
	return http.NewRequestWithContext(w.ctx, http.MethodPost, to.String(), body)
}

// post sends what has been put on w, and takes in the answers.
func (w *wire) post() {
	w.mu.Lock()
	w.begun = true
	body, writes := w.out, false
	for _, s := range w.slots {
		writes = writes || s.call != nil && s.call.req.GetWrite() != nil
	}
	nobody := w.inFlight.Load() == 0
	w.wordedLocked()
	w.mu.Unlock()
	if nobody {
		w.fail(errEnded)
		return
	}
	w.fail(w.exchange(body, !writes))
}

// exchange posts body, and returns why there are no more answers.
func (w *wire) exchange(body []byte, again bool) error {
	post, err := w.request(bytes.NewReader(body))
	if err != nil {
		return err
	}
	wanted := mediaType
	if w.several {
		wanted = streamType
	}
	post.Header.Set("Content-Type", wanted)
	if again {
		// Asking twice does no harm, so net/http may do it when a kept connection turns out to be dead. The nil says so
		// without being sent.
		post.Header["Idempotency-Key"] = nil
	}
	resp, err := w.cache.opts.Transport.RoundTrip(post) // no http.Client: a redirect is not followed, it is not Shoal's answer
	if err != nil {
		w.line.down.Store(true)
		return causeOf(w.ctx, err)
	}
	if w.line.down.CompareAndSwap(true, false) {
		w.line.isBack()
	}
	defer resp.Body.Close()
	switch got := resp.Header.Get("Content-Type"); {
	case got == wanted:
	case got == mediaType && resp.StatusCode == http.StatusUnsupportedMediaType:
		w.line.onlySingle()
		return errNotUnderstood
	case got == mediaType: // one answer to all of it
		w.mu.Lock()
		w.oneAnswer = true
		w.mu.Unlock()
	default:
		return fmt.Errorf("what answers there is not Shoal: %s, Content-Type %q", resp.Status, got)
	}
	err = w.read(w.reader(resp.Body, 16<<10))
	if w.several && !w.oneAnswer && w.sender == nil && w.ctx.Err() == nil { // not even who answers: what is in between does not let it through
		w.line.onlySingle()
		return fmt.Errorf("%w: %w", errEnded, err)
	}
	return err
}

// reader returns a reader for take that notes when anything has come.
func (w *wire) reader(from io.Reader, size int) *bufio.Reader {
	return bufio.NewReaderSize(heedful{from, w}, size)
}

type heedful struct {
	io.Reader
	wire *wire
}

func (r heedful) Read(p []byte) (n int, err error) {
	n, err = r.Reader.Read(p)
	if n > 0 {
		r.wire.heard.Store(int64(r.wire.cache.clock.now()))
	}
	return n, err
}

// read takes what comes until nothing does any more, and returns why.
func (w *wire) read(r *bufio.Reader) error {
	for {
		if err := w.take(r); err != nil {
			return fmt.Errorf("read the answer: %w", causeOf(w.ctx, err))
		}
	}
}

// take reads a Reply, and those that have come with it, and gives them to the calls that wait for them.
func (w *wire) take(r *bufio.Reader) error {
	var some [16]reply
	n := 0
	var err error
	for more := true; more && n < len(some); n++ {
		if some[n], err = w.reply(r); err != nil {
			break
		}
		more = wholeMessage(r)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range some[:n] {
		if !w.several || w.oneAnswer { // all have this answer
			for i := range w.slots {
				if k := w.slots[i].call; k != nil {
					w.deliverLocked(k, m)
				}
			}
		} else if i := int(m.ID & 0xffff); i < len(w.slots) && w.slots[i].turn == uint16(m.ID>>16) && w.slots[i].call != nil {
			w.deliverLocked(w.slots[i].call, m)
		}
	}
	return err
}

// A reply is a Reply as a wire sees it.
type reply struct {
	shoalpb.Envelope
	data []byte
}

// reply reads a Reply, and takes note of who sent it.
func (w *wire) reply(r *bufio.Reader) (m reply, err error) {
	if m.data, err = readMessage(r, w.cache.opts.MaxBodyBytes); err != nil {
		return m, err
	}
	var ok bool
	if m.Envelope, ok = shoalpb.ReadEnvelope(m.data); !ok {
		return m, errors.New("it is not a Reply")
	}
	if m.Sender != nil {
		w.sender = new(shoalpb.Sender)
		if err := proto.Unmarshal(m.Sender, w.sender); err != nil {
			return m, err
		}
		w.incarnation.Store(w.sender.GetIncarnation())
	}
	if v := w.cache.peers.view.Load(); m.Sender != nil || v != w.heardIn {
		w.heardIn = v
		w.cache.heard(w.sender)
	}
	return m, nil
}

func (w *wire) deliverLocked(k *call, m reply) {
	w.wordLocked(k)
	w.taken = max(w.taken, k.upTo)
	if !k.many && !m.Loading {
		k.done = true
		w.freeLocked(k)
	}
	k.due = time.Duration(w.heard.Load()) + w.cache.opts.PeerTimeout + k.load
	k.arrive(arrival{data: m.data})
}

// readMessage reads a message after its length.
func readMessage(r *bufio.Reader, most int64) ([]byte, error) {
	size, err := readSize(r)
	if err != nil {
		return nil, err
	}
	if size > uint64(most) {
		return nil, fmt.Errorf("%d bytes are more than MaxBodyBytes, %d", size, most)
	}
	return readBytes(r, size)
}

// wholeMessage reports whether r can give another message without waiting.
func wholeMessage(r *bufio.Reader) bool {
	b, _ := r.Peek(min(r.Buffered(), binary.MaxVarintLen64))
	size, n := binary.Uvarint(b)
	return n > 0 && uint64(r.Buffered()-n) >= size
}

// readSize reads the length before a message. Its error is io.EOF only if there is nothing at all.
func readSize(r *bufio.Reader) (uint64, error) { return binary.ReadUvarint(r) }

// readBytes reads size bytes. It takes memory as bytes come, not as they are announced.
func readBytes(r *bufio.Reader, size uint64) ([]byte, error) {
	if size <= 1<<20 {
		data := make([]byte, size)
		_, err := io.ReadFull(r, data)
		return data, err
	}
	var data bytes.Buffer
	data.Grow(1 << 20)
	_, err := io.CopyN(&data, r, int64(size))
	return data.Bytes(), err
}
