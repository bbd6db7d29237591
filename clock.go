package shoal

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// A clock is a Cache's time: durations since it was made, which no step of the wall clock can move, and the versions of
// what is stored, which never go back.
//
// A version is the time of day in its upper 48 bits, in units of 2^16 ns, or one more than the highest that has been
// seen, in any message; and in the lower 16 the process, so that no two give the same. (A hybrid logical clock, after
// Kulkarni et al., "Logical Physical Clocks", 2014.) The time of day is that of the fastest clock of which this process
// has heard: so what two have written who cannot hear each other is in the order of time, but for what messages took before.
// Versions say in which order an owner took writes. Between processes they decide only what a late message may drop, and
// which of two values is kept, in a group that has no getter.
type clock struct {
	epoch time.Time
	mark  uint64        // of this process, 16 bits
	last  atomic.Uint64 // the highest time given or seen
	ahead atomic.Uint64 // of this process's time of day is the fastest clock
}

func (c *clock) now() time.Duration { return time.Since(c.epoch) }

// timeOfDay is that of the fastest clock, in the units of versions.
func (c *clock) timeOfDay() uint64 { return ownTimeOfDay() + c.ahead.Load() }

func ownTimeOfDay() uint64 { return uint64(time.Now().UnixNano()) >> 16 }

// version returns one that is higher than all that have been given or seen.
func (c *clock) version() uint64 {
	for {
		last := c.last.Load()
		next := max(c.timeOfDay(), last+1)
		if c.last.CompareAndSwap(last, next) {
			return next<<16 | c.mark
		}
	}
}

// saw takes note of the time in a version that another process has seen. A time of day centuries away is none, and is not
// followed.
func (c *clock) saw(t uint64) {
	last := c.last.Load()
	if t <= last || t >= 1<<47 {
		return
	}
	for t > last && !c.last.CompareAndSwap(last, t) {
		last = c.last.Load()
	}
	c.follow(t)
}

// follow takes note of what time of day it is by another clock.
func (c *clock) follow(t uint64) {
	if t >= 1<<47 {
		return
	}
	own := ownTimeOfDay()
	for ahead := c.ahead.Load(); t > own+ahead; ahead = c.ahead.Load() {
		if c.ahead.CompareAndSwap(ahead, t-own) {
			return
		}
	}
}

// pause waits for about d, or until ctx ends or it is woken, and reports whether it was.
func pause(ctx context.Context, d time.Duration, wake <-chan struct{}) (woken bool) {
	timer := time.NewTimer(d - rand.N(d/2))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-wake:
		return true
	case <-ctx.Done():
	}
	return false
}

// sleep waits for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
