package shoal

// line.go: how a peer is asked: over a stream, or else by POSTs. A line finds a wire for each call; exchange.go makes wires,
// and wire.go is what they do. The other end is conversation.go.

import (
	"context"
	"errors"
	"math/rand/v2"
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

// A line is how the process at an address is asked: over a few streams if it can be, which are opened when they are
// needed; else by POSTs of what has come together while others were under way; or else by one POST each.
type line struct {
	cache  *Cache
	addr   string
	writes *line                // what writes go by, so that one which is given up can be cut off without others; nil: this is that
	way    atomic.Int32         // that the last call has gone
	only   atomic.Pointer[wire] // the stream, if there is one alone

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

func (c *Cache) lineTo(addr string) *line {
	return &line{cache: c, addr: addr, writes: &line{cache: c, addr: addr}}
}

// isOfWrites reports whether nothing but writes goes by l.
func (l *line) isOfWrites() bool { return l.writes == nil }

// send finds a wire for k, and sends it.
func (l *line) send(k *call) error {
	if !l.isOfWrites() && k.req.GetWrite() != nil {
		k.line = l.writes
		return k.line.send(k)
	}
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
		return l.newPost(false), true
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
		return l.newPost(false), true
	case l.posts < maxPosts:
		l.went(byBatch)
		l.posts++
		return l.newPost(true), true
	default:
		if l.next == nil {
			l.next = l.newPost(true)
		}
		w = l.next
	}
	return w, false
}

// newPost returns a wire for a POST, which a Cache may still need when it has been shut down.
func (l *line) newPost(several bool) *wire { return l.newWire(context.Background(), several) }

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
	i := slices.Index(l.streams, w)
	if i < 0 {
		return
	}
	l.streamsLocked(slices.Delete(slices.Clone(l.streams), i, i+1))
	if l.cache.clock.now()-w.since >= firstStream {
		l.fails = 0
	} else {
		l.failedLocked()
	}
}

// close ends the streams as soon as they carry nothing, and has no more opened.
func (l *line) close() {
	if !l.isOfWrites() {
		l.writes.close()
	}
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
