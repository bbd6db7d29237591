package shoal

import (
	"errors"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// A breaker keeps callers from waiting for a process that does not answer. It opens when a question has come to nothing, and
// closes with the first word from there: a member is greeted in the background until it answers. (Libraries of circuit
// breakers count the failures of callers, and let callers find out; here nobody has to.)
type breaker struct {
	open    atomic.Bool
	until   atomic.Int64 // on the clock, when one question may find out whether it is back, since nobody greets it
	strikes atomic.Int64 // questions without an answer, with nothing but answers to greetings in between
	struck  atomic.Int64 // when the last was, on the clock
	vain    atomic.Int64 // for how long, at most, a question has waited in vain that came to nothing since the last word
	told    atomic.Int64 // when isDueAgain last said so
	rest    atomic.Int64 // until when an answer to a greeting does not close it
}

// errSilent is why a question is not sent.
var errSilent = errors.New("it has not answered lately; it is asked in the background whether it is back")

const (
	// strangerRest is how long a process is left alone that is not a member, and so is not greeted.
	strangerRest = 5 * time.Second
	// firstRest is how long one is left alone that answers greetings, but has not answered two questions in a row; then twice
	// that, and so on up to lastRetry.
	firstRest = 250 * time.Millisecond
)

// isOpen reports whether the process is not to be asked.
func (b *breaker) isOpen(now time.Duration) bool {
	if !b.open.Load() {
		return false
	}
	until := b.until.Load()
	return int64(now) < until || !b.until.CompareAndSwap(until, int64(now+strangerRest))
}

// isHere reports whether nothing has been asked in vain since the last word from there.
func (b *breaker) isHere() bool { return b.vain.Load() == 0 }

// isSilent reports whether an answer has been waited for in vain for that long since the last word from there, or cannot come.
func (b *breaker) isSilent(wait time.Duration) bool { return b.vain.Load() >= int64(wait) }

// missed takes note that an answer has been waited for in vain for that long.
func (b *breaker) missed(wait time.Duration) {
	for {
		if vain := b.vain.Load(); vain >= int64(wait) || b.vain.CompareAndSwap(vain, int64(wait)) {
			return
		}
	}
}

// isDueAgain reports, once a second at most, that whoever greets members is to be told that this one is silent, in case that has
// been missed.
func (b *breaker) isDueAgain(now time.Duration) bool {
	last := b.told.Load()
	return (last == 0 || int64(now)-last > int64(time.Second)) && b.told.CompareAndSwap(last, int64(now))
}

// failed takes note that a question sent at that time came to nothing.
func (b *breaker) failed(sent, now time.Duration, member bool) {
	b.missed(math.MaxInt64)
	if struck := b.struck.Load(); int64(sent) > struck || struck == 0 { // those that were sent together count once
		b.struck.Store(int64(max(now, 1)))
		if n := b.strikes.Add(1); n > 1 {
			rest := min(firstRest<<min(n-2, 16), lastRetry)
			b.rest.Store(int64(now + rest - rand.N(rest/2)))
		}
	}
	rest := strangerRest
	if member {
		rest = time.Hour
	}
	b.until.Store(int64(now + rest))
	b.open.Store(true)
}

// heard takes note of a word from there; answer says whether it is to a question. It reports whether that has closed it.
func (b *breaker) heard(clock *clock, answer bool) (closed bool) {
	if !b.open.Load() && b.vain.Load() == 0 && (!answer || b.strikes.Load() == 0) {
		return false
	}
	b.vain.Store(0)
	if answer && b.strikes.Load() != 0 {
		b.strikes.Store(0)
		b.rest.Store(0)
	}
	if rest := b.rest.Load(); int64(clock.now()) < rest {
		b.until.Store(rest)
		return false
	}
	return b.open.Swap(false)
}

// attended takes note that the process is greeted until it answers, and no caller needs to find out.
func (b *breaker) attended(now time.Duration) {
	b.missed(math.MaxInt64)
	b.until.Store(int64(now + time.Hour))
}

// unattended takes note that the process is not a member any more, and so is not greeted.
func (b *breaker) unattended(now time.Duration) {
	b.until.Store(min(b.until.Load(), int64(now+strangerRest)))
}

// reset closes the breaker, as another process is there now.
func (b *breaker) reset() {
	b.strikes.Store(0)
	b.rest.Store(0)
	b.vain.Store(0)
	b.open.Store(false)
}
