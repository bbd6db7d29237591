// Package singleflight makes one call serve everyone who asks for the same key while it is under way.
//
// It is what golang.org/x/sync/singleflight is not: callers leave by their own contexts, a call ends when the last of
// them has left, a panic or runtime.Goexit in it is an error for all of them, and its result may be stored only if
// nobody has called [Group.Forget] meanwhile. A call that has come to a point after which nobody may join it says so
// with [Flight.Seal]; later callers then gather in the next.
package singleflight

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// A Group is a set of flights, at most one of a key that can be joined. The zero value is ready to use. Its methods
// may be called concurrently.
type Group[K comparable, V any] struct {
	mu      sync.Mutex // guards flights and the state of each Flight
	flights map[K]*Flight[K, V]
}

// A Flight is one call under way, and those who wait for it.
type Flight[K comparable, V any] struct {
	group   *Group[K, V]
	key     K
	timeout time.Duration
	fn      func(context.Context, *Flight[K, V]) (V, error)

	cancel  context.CancelFunc // nil until it starts
	waiters int
	sealed  bool          // who comes now gathers in next
	over    bool          // ended, abandoned or forgotten: it commits nothing any more
	next    *Flight[K, V] // begins when this one is over
	behind  *Flight[K, V] // the one whose next this is

	done  chan struct{} // closed when value and err are there
	value V
	err   error
}

// Do returns what fn returns for key. If a flight of key can be joined, the result is that flight's, and this fn is not
// called.
//
// fn runs in a goroutine of its own, under a context that carries no values and ends when the last caller has left, those
// gathered behind it included, or, if timeout is positive, that long after the start. After timeout the callers get
// [context.DeadlineExceeded] even if fn has not noticed. A caller whose ctx ends leaves with the error of ctx; the
// others stay. If fn panics or calls [runtime.Goexit], the error of all is a [*PanicError].
func (g *Group[K, V]) Do(ctx context.Context, key K, timeout time.Duration, fn func(context.Context, *Flight[K, V]) (V, error)) (V, error) {
	if err := ctx.Err(); err != nil {
		var zero V
		return zero, err
	}
	f := g.board(key, timeout, fn)
	select {
	case <-f.done:
		return f.value, f.err
	case <-ctx.Done():
		f.leave()
		var zero V
		return zero, ctx.Err()
	}
}

// Forget makes sure that no flight of key that has begun commits anything after Forget has returned. The flight still
// answers those who wait for it; callers who come later start another.
func (g *Group[K, V]) Forget(key K) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f := g.flights[key]; f != nil {
		f.forgetLocked()
	}
}

// Keys returns the keys that have a flight which can be joined or followed.
func (g *Group[K, V]) Keys() []K {
	g.mu.Lock()
	defer g.mu.Unlock()
	keys := make([]K, 0, len(g.flights))
	for key := range g.flights {
		keys = append(keys, key)
	}
	return keys
}

// Commit calls store and reports true, unless the flight has been forgotten, has been left by all its callers or has
// timed out. Forget does not return while store runs, so store must be short and must not use the group.
func (f *Flight[K, V]) Commit(store func()) bool {
	f.group.mu.Lock()
	defer f.group.mu.Unlock()
	if f.over {
		return false
	}
	store()
	return true
}

// Seal closes the flight to callers who have not joined it yet. They gather in one that begins when this one is over:
// its value may be too old for them. Only if this one fails does its error serve them too.
func (f *Flight[K, V]) Seal() {
	f.group.mu.Lock()
	defer f.group.mu.Unlock()
	f.sealed = true
}

// board returns the flight that a caller of Do waits for.
func (g *Group[K, V]) board(key K, timeout time.Duration, fn func(context.Context, *Flight[K, V]) (V, error)) *Flight[K, V] {
	g.mu.Lock()
	defer g.mu.Unlock()
	f := g.flights[key]
	if f == nil || f.sealed && f.next == nil {
		next := &Flight[K, V]{group: g, key: key, timeout: timeout, fn: fn, done: make(chan struct{})}
		if f == nil {
			g.startLocked(next)
		} else {
			f.next, next.behind = next, f
		}
		f = next
	} else if f.sealed {
		f = f.next
	}
	f.waiters++
	return f
}

func (g *Group[K, V]) startLocked(f *Flight[K, V]) {
	if g.flights == nil {
		g.flights = make(map[K]*Flight[K, V])
	}
	g.flights[f.key] = f
	var ctx context.Context
	if f.timeout > 0 {
		ctx, f.cancel = context.WithTimeout(context.Background(), f.timeout)
	} else {
		ctx, f.cancel = context.WithCancel(context.Background())
	}
	go f.run(ctx)
}

func (f *Flight[K, V]) run(ctx context.Context) {
	defer f.cancel()
	if f.timeout > 0 {
		// The callers are let go at the deadline even if fn is deaf to it.
		defer context.AfterFunc(ctx, func() {
			var zero V
			f.end(zero, ctx.Err())
		})()
	}
	var value V
	var err error
	returned := false
	defer func() {
		if !returned { // recover is nil after Goexit, and only then
			err = &PanicError{Value: recover(), Stack: debug.Stack()}
		}
		f.end(value, err)
	}()
	value, err = f.fn(ctx, f)
	returned = true
}

// end gives the result to those who wait, unless they have it or have gone.
func (f *Flight[K, V]) end(value V, err error) {
	f.group.mu.Lock()
	defer f.group.mu.Unlock()
	select {
	case <-f.done:
		return
	default:
	}
	f.value, f.err = value, err
	close(f.done)
	if next := f.next; err != nil && next != nil {
		f.next, next.behind = nil, nil
		next.err = err
		close(next.done)
	}
	f.forgetLocked()
}

func (f *Flight[K, V]) leave() {
	f.group.mu.Lock()
	defer f.group.mu.Unlock()
	f.waiters--
	if f.behind != nil {
		f = f.behind // which goes on for whoever waits, before it or behind it
	}
	if f.cancel != nil && f.waiters == 0 && (f.next == nil || f.next.waiters == 0) {
		f.cancel()
		f.forgetLocked()
	}
}

// forgetLocked takes f out of the group, which starts the flight that has gathered behind it.
func (f *Flight[K, V]) forgetLocked() {
	if f.over {
		return
	}
	f.over = true
	delete(f.group.flights, f.key)
	if next := f.next; next != nil {
		f.next, next.behind = nil, nil
		if next.waiters > 0 {
			f.group.startLocked(next)
		}
	}
}

// A PanicError is the error of a call that panicked or called [runtime.Goexit].
type PanicError struct {
	Value any    // as passed to panic; nil after Goexit
	Stack []byte // of the goroutine, as by [debug.Stack]
}

// Error tells what was passed to panic, without the stack.
func (e *PanicError) Error() string {
	if e.Value == nil {
		return "runtime.Goexit was called"
	}
	return fmt.Sprintf("panic: %v", e.Value)
}
