package shoal

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/shoalcache/shoal/shoalpb"
)

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
	leftAt    time.Duration // when, on the clock, a caller first left without an answer since the last word
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

// newWire returns a wire that ends with life at the latest.
func (l *line) newWire(life context.Context, several bool) *wire {
	w := &wire{line: l, cache: l.cache, several: several, slots: make([]slot, 1, 2)}
	w.ctx, w.cancel = context.WithCancelCause(life)
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
	k.due, k.load = k.sent+k.patience, 0
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
		w.leftLocked(now)
		w.lookLocked(now+w.cache.opts.PeerTimeout, now)
	}
}

// leftLocked takes note that a call has been left without an answer, if it is the first since the last word: many that have little
// time must not keep up a stream on which nothing comes any more.
func (w *wire) leftLocked(now time.Duration) {
	if w.leftAt <= time.Duration(w.heard.Load()) {
		w.leftAt = now
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
	k.due = now + k.patience + k.load
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
		due := max(k.due, heard+k.patience)
		if w.several {
			due = min(due, k.due+mostBehind*k.patience)
		}
		if k.patience < patience {
			due = k.due // its caller has no more time
		}
		if due > now {
			next = min(next, due)
			continue
		}
		gaveUp = gaveUp || k.patience >= patience
		w.freeLocked(k)
		w.cancelLocked(k)
		if err := fmt.Errorf("nothing has come from there for %v", k.patience); k.patience < patience {
			w.leftLocked(now)
			k.arrive(arrival{err: fmt.Errorf("%w: %w", err, errHurried)})
		} else {
			k.arrive(arrival{err: fmt.Errorf("%w, PeerTimeout", err)})
		}
	}
	// Where nothing has come since somebody left without an answer, nothing may come to the next either.
	silent := (gaveUp || w.leftAt > heard) && max(heard, w.leftAt)+patience <= now
	switch idle := w.inFlight.Load() == 0; {
	case w.several && gaveUp && w.line.isOfWrites(): // or they would be done when the link is back, after others that have returned nil
		go w.fail(errEnded)
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
	if w.deliver(some[:n]) {
		if p := w.cache.peers.knows(w.sender); p != nil {
			w.cache.isThere(p, false) // though somebody has given it up
		}
	}
	return err
}

// deliver gives all to the calls that wait for them, and reports whether nobody waits for one of them any more.
func (w *wire) deliver(all []reply) (late bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range all {
		if !w.several || w.oneAnswer { // all have this answer
			for i := range w.slots {
				if k := w.slots[i].call; k != nil {
					w.deliverLocked(k, m)
				}
			}
		} else if i := int(m.ID & 0xffff); i < len(w.slots) && w.slots[i].turn == uint16(m.ID>>16) && w.slots[i].call != nil {
			w.deliverLocked(w.slots[i].call, m)
		} else {
			late = true
		}
	}
	return late
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
	k.due = time.Duration(w.heard.Load()) + k.patience + k.load
	k.arrive(arrival{data: m.data})
}
