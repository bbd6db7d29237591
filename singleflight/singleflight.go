// Package singleflight makes one call serve everyone who asks for the same key while it is under way.
//
// It is what golang.org/x/sync/singleflight is not: callers leave by their own contexts, a call ends when the last of
// them has left, a panic or runtime.Goexit in it is an error for all of them, one call may serve many keys, and its
// result may be stored only if nobody has called [Group.Forget] meanwhile. A call that has come to a point after which
// nobody may join it says so with [Flight.Seal]; later callers then gather in the next.
package singleflight

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// A Group is a set of flights, at most one of a key that can be joined. The zero value is ready to use. Its methods
// may be called concurrently.
type Group[K comparable, V any] struct {
	mu      sync.Mutex // guards flights and the state of each Flight and call
	flights map[K]*Flight[K, V]
	own     sync.Pool // of flights that Ask has made, and nobody knows any more
}

// A Flight is what is under way for one key, and those who wait for it.
type Flight[K comparable, V any] struct {
	group   *Group[K, V]
	key     K
	timeout time.Duration
	fn      func(context.Context, []*Flight[K, V])

	call    *call // nil until it starts
	waiters int
	sealed  bool          // who comes now gathers in next
	over    bool          // ended, abandoned or forgotten: it commits nothing any more
	let     bool          // ended or abandoned: it does not keep its call going
	next    *Flight[K, V] // begins when this one is over
	behind  *Flight[K, V] // the one whose next this is

	done  chan struct{} // closed when value and err are there
	value V
	err   error
}

// A call is one run of a function, for one flight or several.
type call struct {
	cancel  context.CancelFunc
	flights int // that are still waited for
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
	f := g.board([]K{key}, timeout, func(ctx context.Context, fs []*Flight[K, V]) {
		fs[0].End(fn(ctx, fs[0]))
	})[0]
	return f.wait(ctx)
}

// Ask is Do for what may not serve anybody who comes after it has begun. If nothing is under way for key, the caller calls
// fn itself, under its own ctx, in a flight that is sealed; this takes no goroutine and, as a rule, no memory. Those who
// come meanwhile gather in the next, which is as one of Do's, and begins when fn has returned; see [Flight.GoOn].
func (g *Group[K, V]) Ask(ctx context.Context, key K, fn func(context.Context, *Flight[K, V]) (V, error)) (value V, err error) {
	if err := ctx.Err(); err != nil {
		return value, err
	}
	g.mu.Lock()
	if g.flights[key] != nil {
		g.mu.Unlock()
		return g.Do(ctx, key, 0, fn)
	}
	f, _ := g.own.Get().(*Flight[K, V])
	if f == nil {
		f = new(Flight[K, V])
	}
	*f = Flight[K, V]{group: g, key: key, waiters: 1, sealed: true}
	if g.flights == nil {
		g.flights = make(map[K]*Flight[K, V])
	}
	g.flights[key] = f
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if f.call != nil {
			return // it goes on
		}
		if ctx.Err() == nil { // else its error is for this caller alone
			f.failNextLocked(err)
		}
		f.forgetLocked()
		g.own.Put(f)
	}()
	return fn(ctx, f)
}

// GoOn is for a function of Ask whose caller's ctx has ended. If others have gathered behind f, it reports true, and runs
// rest in a goroutine, under a context that ends when the last of them has left: what has begun need not begin anew for
// them. The next flight begins when rest has returned, or, if it returns an error, fails with that.
func (f *Flight[K, V]) GoOn(rest func(context.Context) error) bool {
	f.group.mu.Lock()
	defer f.group.mu.Unlock()
	if f.over || f.call != nil || f.next == nil || f.next.waiters == 0 {
		return false
	}
	ctx, cancel := context.WithCancel(context.Background())
	f.call = &call{cancel: cancel, flights: 1}
	f.waiters--
	go func() {
		err := rest(ctx)
		f.group.mu.Lock()
		defer f.group.mu.Unlock()
		if ctx.Err() == nil {
			f.failNextLocked(err)
		}
		f.forgetLocked()
		f.letLocked()
	}()
	return true
}

// A Result is what has come of one of many keys.
type Result[V any] struct {
	Value V
	Err   error
}

// DoMany is Do for many keys, each of which must be named once. Those that have a flight which can be joined, join it.
// For all others together fn is called once, if there are any: with a flight for each, which fn ends by
// [Flight.End]. Its context ends when nobody waits for any of them any more. The results are in the order of keys.
func (g *Group[K, V]) DoMany(ctx context.Context, keys []K, timeout time.Duration, fn func(context.Context, []*Flight[K, V])) []Result[V] {
	results := make([]Result[V], len(keys))
	if err := ctx.Err(); err != nil {
		for i := range results {
			results[i].Err = err
		}
		return results
	}
	for i, f := range g.board(keys, timeout, fn) {
		results[i].Value, results[i].Err = f.wait(ctx)
	}
	return results
}

// Forget makes sure that no flight of key that has begun commits anything after Forget has returned. The flight still
// answers those who wait for it; callers who come later start another.
func (g *Group[K, V]) Forget(key K) { g.Overtake(key, func() {}) }

// ForgetAll forgets all flights.
func (g *Group[K, V]) ForgetAll() { g.OvertakeAll(func() {}) }

// Overtake is Forget, and calls store before a later flight of key can commit anything. Like Commit's, store must be
// short and must not use the group.
func (g *Group[K, V]) Overtake(key K, store func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f := g.flights[key]; f != nil {
		f.forgetLocked()
	}
	store()
}

// OvertakeAll is ForgetAll, and calls store before a later flight of any key can commit anything, as Overtake does.
func (g *Group[K, V]) OvertakeAll(store func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	begun := make([]*Flight[K, V], 0, len(g.flights)) // and not those that start behind them
	for _, f := range g.flights {
		begun = append(begun, f)
	}
	for _, f := range begun {
		f.forgetLocked()
	}
	store()
}

// Unless calls store and reports true if there is no flight of key, which might store something itself. Like Commit's, store
// must be short and must not use the group.
func (g *Group[K, V]) Unless(key K, store func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.flights[key] != nil {
		return false
	}
	store()
	return true
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

// Seal closes the flight to callers who have not joined it yet, and returns how many have. Who comes later gathers in
// one that begins when this one is over: its value may be too old for them. Only if this one fails does its error serve
// them too.
func (f *Flight[K, V]) Seal() (callers int) {
	f.group.mu.Lock()
	defer f.group.mu.Unlock()
	f.sealed = true
	return f.waiters
}

// Key returns the key of the flight.
func (f *Flight[K, V]) Key() K { return f.key }

// End gives the result to those who wait, unless they have one or have gone. It is for the function of DoMany.
func (f *Flight[K, V]) End(value V, err error) {
	f.group.mu.Lock()
	defer f.group.mu.Unlock()
	select {
	case <-f.done:
		return
	default:
	}
	f.value, f.err = value, err
	close(f.done)
	f.failNextLocked(err)
	f.forgetLocked()
	f.letLocked()
}

// failNextLocked gives err, if it is one, to those who have gathered behind f.
func (f *Flight[K, V]) failNextLocked(err error) {
	if next := f.next; err != nil && next != nil {
		f.next, next.behind = nil, nil
		next.err = err
		close(next.done)
	}
}

// board returns the flights that a caller waits for, one of each key.
func (g *Group[K, V]) board(keys []K, timeout time.Duration, fn func(context.Context, []*Flight[K, V])) []*Flight[K, V] {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := make([]*Flight[K, V], len(keys))
	var begin []*Flight[K, V]
	for i, key := range keys {
		f := g.flights[key]
		if f == nil || f.sealed && f.next == nil {
			new := &Flight[K, V]{group: g, key: key, timeout: timeout, fn: fn, done: make(chan struct{})}
			if f == nil {
				begin = append(begin, new)
			} else {
				f.next, new.behind = new, f
			}
			f = new
		} else if f.sealed {
			f = f.next
		}
		f.waiters++
		all[i] = f
	}
	if begin != nil {
		g.startLocked(begin)
	}
	return all
}

// startLocked starts one call for flights, whose functions and timeouts are the same.
func (g *Group[K, V]) startLocked(flights []*Flight[K, V]) {
	if g.flights == nil {
		g.flights = make(map[K]*Flight[K, V])
	}
	c := &call{flights: len(flights)}
	var ctx context.Context
	if timeout := flights[0].timeout; timeout > 0 {
		ctx, c.cancel = context.WithTimeout(context.Background(), timeout)
	} else {
		ctx, c.cancel = context.WithCancel(context.Background())
	}
	for _, f := range flights {
		f.call = c
		g.flights[f.key] = f
	}
	go run(ctx, c.cancel, flights)
}

var errNoResult = errors.New("the call has ended without a result")

func run[K comparable, V any](ctx context.Context, cancel func(), flights []*Flight[K, V]) {
	defer cancel()
	end := func(err error) {
		var zero V
		for _, f := range flights {
			f.End(zero, err)
		}
	}
	if flights[0].timeout > 0 {
		// The callers are let go at the deadline even if fn is deaf to it.
		defer context.AfterFunc(ctx, func() { end(ctx.Err()) })()
	}
	returned := false
	defer func() {
		if returned {
			end(errNoResult)
		} else { // recover is nil after Goexit, and only then
			end(&PanicError{Value: recover(), Stack: debug.Stack()})
		}
	}()
	flights[0].fn(ctx, flights)
	returned = true
}

func (f *Flight[K, V]) wait(ctx context.Context) (V, error) {
	select {
	case <-f.done:
		return f.value, f.err
	default: // what is there is returned, even if ctx has ended as well
	}
	select {
	case <-f.done:
		return f.value, f.err
	case <-ctx.Done():
		f.leave()
		var zero V
		return zero, ctx.Err()
	}
}

func (f *Flight[K, V]) leave() {
	f.group.mu.Lock()
	defer f.group.mu.Unlock()
	f.waiters--
	if f.behind != nil {
		f = f.behind // which goes on for whoever waits, before it or behind it
	}
	if f.call != nil && f.waiters == 0 && (f.next == nil || f.next.waiters == 0) {
		f.forgetLocked()
		f.letLocked()
	}
}

// letLocked takes note that f does not need its call any more.
func (f *Flight[K, V]) letLocked() {
	if f.let || f.call == nil {
		return
	}
	f.let = true
	if f.call.flights--; f.call.flights == 0 {
		f.call.cancel()
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
			f.group.startLocked([]*Flight[K, V]{next})
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
