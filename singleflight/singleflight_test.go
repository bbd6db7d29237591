package singleflight_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal/singleflight"
)

type (
	group  = singleflight.Group[string, int]
	flight = singleflight.Flight[string, int]
	call   = func(context.Context, *flight) (int, error)
)

// A result is what a caller got, and when, counted from the start of the bubble.
type result struct {
	value int
	err   error
	at    time.Duration
}

// A desk sends callers to one key of a group, each in a goroutine of its own.
type desk struct {
	group
	begin time.Time
	calls atomic.Int64
}

// bubble runs test in a bubble of synctest, with a desk. A goroutine that is left over fails the test as a deadlock.
func bubble(t *testing.T, test func(t *testing.T, d *desk)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		test(t, &desk{begin: time.Now()})
		time.Sleep(24 * time.Hour) // longer than the deafest call
	})
}

// ask returns where the result will be, when the caller waits for its flight.
func (d *desk) ask(ctx context.Context, timeout time.Duration, fn call) <-chan result {
	answer := make(chan result, 1)
	go func() {
		v, err := d.Do(ctx, "key", timeout, func(ctx context.Context, f *flight) (int, error) {
			d.calls.Add(1)
			return fn(ctx, f)
		})
		answer <- result{v, err, time.Since(d.begin)}
	}()
	synctest.Wait()
	return answer
}

func want(t *testing.T, who string, answer <-chan result, value int, err error, at time.Duration) {
	t.Helper()
	r := <-answer
	if r.value != value || !errors.Is(r.err, err) || r.at != at {
		t.Errorf("%s got %d, %v after %v; want %d, %v after %v", who, r.value, r.err, r.at, value, err, at)
	}
}

func (d *desk) wantCalls(t *testing.T, n int64) {
	t.Helper()
	if got := d.calls.Load(); got != n {
		t.Errorf("%d calls, want %d", got, n)
	}
}

// after returns v when d has passed, deaf to its context.
func after(d time.Duration, v int) call {
	return func(context.Context, *flight) (int, error) {
		time.Sleep(d)
		return v, nil
	}
}

// sealedAfter is after in a flight that nobody joins any more.
func sealedAfter(d time.Duration, v int, err error) call {
	return func(_ context.Context, f *flight) (int, error) {
		f.Seal()
		time.Sleep(d)
		return v, err
	}
}

// untilLeft returns when its context ends.
func untilLeft(ctx context.Context, _ *flight) (int, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}

func unexpected(context.Context, *flight) (int, error) {
	panic("a second call")
}

var errFailed = errors.New("failed")

func TestOneCallServesAllWhoWait(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		var answers []<-chan result
		for range 100 {
			answers = append(answers, d.ask(t.Context(), 0, after(time.Second, 7)))
		}
		for i, a := range answers {
			want(t, fmt.Sprint("caller ", i), a, 7, nil, time.Second)
		}
		d.wantCalls(t, 1)
	})
}

func TestErrorServesAllWhoWait(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		failing := func(context.Context, *flight) (int, error) {
			time.Sleep(time.Second)
			return 0, errFailed
		}
		a, b := d.ask(t.Context(), 0, failing), d.ask(t.Context(), 0, unexpected)
		want(t, "the first", a, 0, errFailed, time.Second)
		want(t, "the second", b, 0, errFailed, time.Second)
	})
}

func TestCallThatHasEndedIsNotJoined(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		for i := range 3 {
			want(t, fmt.Sprint("caller ", i), d.ask(t.Context(), 0, after(0, i)), i, nil, 0)
		}
	})
}

func TestKeysDoNotWaitForEachOther(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		slow := d.ask(t.Context(), 0, after(time.Hour, 1))
		v, err := d.Do(t.Context(), "another key", 0, after(time.Second, 2))
		if at := time.Since(d.begin); v != 2 || err != nil || at != time.Second {
			t.Errorf("got %d, %v after %v", v, err, at)
		}
		want(t, "the slow one", slow, 1, nil, time.Hour)
	})
}

func TestKeyMayBeOfAnyComparableType(t *testing.T) {
	type point struct{ x, y int }
	var g singleflight.Group[point, string]
	v, err := g.Do(t.Context(), point{1, 2}, 0, func(context.Context, *singleflight.Flight[point, string]) (string, error) {
		return "here", nil
	})
	if v != "here" || err != nil {
		t.Errorf("got %q, %v", v, err)
	}
}

func TestWaiterLeavesAtItsOwnDeadlineWhileOthersStay(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		hasty, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		first := d.ask(t.Context(), 0, after(time.Second, 7))
		second := d.ask(hasty, 0, unexpected)
		third := d.ask(t.Context(), 0, unexpected)
		want(t, "the hasty one", second, 0, context.DeadlineExceeded, 20*time.Millisecond)
		want(t, "the first", first, 7, nil, time.Second)
		want(t, "the third", third, 7, nil, time.Second)
	})
}

func TestFirstCallerCancelledFailsNoneOf99(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		ctx, cancel := context.WithCancel(t.Context())
		heeding := func(ctx context.Context, _ *flight) (int, error) {
			select {
			case <-time.After(time.Second):
				return 7, nil
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}
		first := d.ask(ctx, 0, heeding)
		var answers []<-chan result
		for range 99 {
			answers = append(answers, d.ask(t.Context(), 0, unexpected))
		}
		cancel()
		want(t, "the first", first, 0, context.Canceled, 0)
		for i, a := range answers {
			want(t, fmt.Sprint("waiter ", i), a, 7, nil, time.Second)
		}
		d.wantCalls(t, 1)
	})
}

func TestCallerWhoseContextHasEndedStartsNothing(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		want(t, "the caller", d.ask(ctx, 0, unexpected), 0, context.Canceled, 0)
		synctest.Wait()
		d.wantCalls(t, 0)
	})
}

func TestContextOfTheCallEndsWhenTheLastWaiterLeaves(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		ended := make(chan time.Duration, 1)
		watch := func(ctx context.Context, _ *flight) (int, error) {
			<-ctx.Done()
			ended <- time.Since(d.begin)
			return 0, ctx.Err()
		}
		for i := range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i+1)*time.Second)
			defer cancel()
			d.ask(ctx, 0, watch)
		}
		if at := <-ended; at != 3*time.Second {
			t.Errorf("ended after %v; the last caller left after 3s", at)
		}
	})
}

func TestContextOfTheCallEndsWhenTheCallHas(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		var kept context.Context
		want(t, "the caller", d.ask(t.Context(), 0, func(ctx context.Context, _ *flight) (int, error) {
			kept = ctx
			return 7, nil
		}), 7, nil, 0)
		synctest.Wait()
		if kept.Err() == nil {
			t.Error("it has not ended")
		}
	})
}

func TestContextOfTheCallHasNothingOfTheCallers(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		type key struct{}
		ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), key{}, "secret"), time.Hour)
		defer cancel()
		d.ask(ctx, 0, func(ctx context.Context, _ *flight) (int, error) {
			if v := ctx.Value(key{}); v != nil {
				t.Errorf("it carries %v", v)
			}
			if deadline, ok := ctx.Deadline(); ok {
				t.Errorf("it ends at %v", deadline)
			}
			return 0, nil
		})
	})
}

func TestTimeoutReleasesWaitersOfADeafCall(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		first := d.ask(t.Context(), time.Second, after(time.Hour, 1))
		time.Sleep(time.Second / 2)
		second := d.ask(t.Context(), time.Hour, unexpected)
		want(t, "the first", first, 0, context.DeadlineExceeded, time.Second)
		want(t, "the second", second, 0, context.DeadlineExceeded, time.Second)
	})
}

func TestTimeoutEndsTheContextOfTheCall(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		var at time.Duration
		var err error
		a := d.ask(t.Context(), time.Second, func(ctx context.Context, _ *flight) (int, error) {
			<-ctx.Done()
			at, err = time.Since(d.begin), ctx.Err()
			return 0, err
		})
		<-a
		synctest.Wait()
		if at != time.Second || err != context.DeadlineExceeded {
			t.Errorf("ended after %v with %v", at, err)
		}
	})
}

func TestResultAfterTheTimeoutReachesNobody(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		want(t, "the first", d.ask(t.Context(), time.Second, after(2*time.Second, 1)), 0, context.DeadlineExceeded, time.Second)
		second := d.ask(t.Context(), 0, after(3*time.Second, 2))
		want(t, "the second", second, 2, nil, 4*time.Second)
	})
}

// endings are the ways in which a flight can go wrong.
var endings = []struct {
	name    string
	timeout time.Duration
	fn      call
}{
	{"Error", 0, func(context.Context, *flight) (int, error) { return 0, errFailed }},
	{"Panic", 0, func(context.Context, *flight) (int, error) { panic("ouch") }},
	{"PanicNil", 0, func(context.Context, *flight) (int, error) { panic(nil) }},
	{"Goexit", 0, func(context.Context, *flight) (int, error) { runtime.Goexit(); return 1, nil }},
	{"PanicInCommit", 0, func(_ context.Context, f *flight) (int, error) {
		f.Commit(func() { panic("ouch") })
		return 1, nil
	}},
	{"GoexitInCommit", 0, func(_ context.Context, f *flight) (int, error) {
		f.Commit(runtime.Goexit)
		return 1, nil
	}},
	{"Timeout", time.Minute, after(time.Hour, 1)},
	{"Abandonment", 0, after(time.Hour, 1)}, // callers leave when two minutes have passed
}

func TestKeyWorksRightAfterWhateverWentWrong(t *testing.T) {
	for _, e := range endings {
		t.Run(e.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, d *desk) {
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				first := d.ask(ctx, e.timeout, e.fn)
				second := d.ask(ctx, e.timeout, e.fn)
				for _, a := range []<-chan result{first, second} {
					if r := <-a; r.value != 0 || r.err == nil {
						t.Errorf("the flight that went wrong answers %d, %v", r.value, r.err)
					}
				}
				now := time.Since(d.begin)
				want(t, "the next caller", d.ask(t.Context(), 0, after(time.Second, 7)), 7, nil, now+time.Second)
			})
		})
	}
}

func explode(context.Context, *flight) (int, error) {
	time.Sleep(time.Second)
	panic("ouch")
}

func TestPanicReachesEveryWaiterWithValueAndStack(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		for _, a := range []<-chan result{d.ask(t.Context(), 0, explode), d.ask(t.Context(), 0, unexpected)} {
			r := <-a
			p, ok := errors.AsType[*singleflight.PanicError](r.err)
			if !ok || p.Value != "ouch" || p.Error() != "panic: ouch" || !strings.Contains(string(p.Stack), "explode") {
				t.Errorf("got %d, %#v", r.value, r.err)
			}
		}
	})
}

func TestPanicOfNilHasAValue(t *testing.T) {
	var g group
	_, err := g.Do(t.Context(), "key", 0, func(context.Context, *flight) (int, error) { panic(nil) })
	p, ok := errors.AsType[*singleflight.PanicError](err)
	if !ok {
		t.Fatalf("got %v", err)
	}
	if _, ok := p.Value.(*runtime.PanicNilError); !ok {
		t.Errorf("the value is %#v", p.Value)
	}
}

func TestGoexitReachesEveryWaiterWithoutAValue(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		exit := func(context.Context, *flight) (int, error) {
			time.Sleep(time.Second)
			runtime.Goexit()
			return 1, nil
		}
		for _, a := range []<-chan result{d.ask(t.Context(), 0, exit), d.ask(t.Context(), 0, unexpected)} {
			r := <-a
			p, ok := errors.AsType[*singleflight.PanicError](r.err)
			if !ok || p.Value != nil || p.Error() != "runtime.Goexit was called" || len(p.Stack) == 0 {
				t.Errorf("got %d, %#v", r.value, r.err)
			}
		}
	})
}

func TestCommitStoresBeforeItReturns(t *testing.T) {
	var g group
	_, err := g.Do(t.Context(), "key", time.Minute, func(_ context.Context, f *flight) (int, error) {
		stored := 0
		if !f.Commit(func() { stored++ }) || stored != 1 {
			t.Errorf("stored %d times", stored)
		}
		return 0, nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestFlightThatIsOverCommitsNothing(t *testing.T) {
	for _, c := range []struct {
		name    string
		timeout time.Duration
		end     func(d *desk, cancel func())
	}{
		{"Forgotten", 0, func(d *desk, _ func()) { d.Forget("key") }},
		{"ForgottenTwice", 0, func(d *desk, _ func()) { d.Forget("key"); d.Forget("key") }},
		{"Abandoned", 0, func(_ *desk, cancel func()) { cancel(); synctest.Wait() }},
		{"TimedOut", time.Second, func(*desk, func()) { time.Sleep(time.Second); synctest.Wait() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, d *desk) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				goOn := make(chan bool)
				d.ask(ctx, c.timeout, func(_ context.Context, f *flight) (int, error) {
					<-goOn
					stored := false
					if f.Commit(func() { stored = true }) || stored {
						t.Error("it did")
					}
					return 0, nil
				})
				c.end(d, cancel)
				close(goOn)
			})
		})
	}
}

func TestFlightThatHasEndedCommitsNothing(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		var kept *flight
		<-d.ask(t.Context(), 0, func(_ context.Context, f *flight) (int, error) {
			kept = f
			return 0, nil
		})
		if kept.Commit(func() { t.Error("stored") }) {
			t.Error("Commit reports true")
		}
	})
}

func TestForgetWaitsForAStoreUnderWay(t *testing.T) {
	for range 200 {
		var g group
		var forgotten atomic.Bool
		begun := make(chan bool)
		go func() {
			<-begun
			g.Forget("key")
			forgotten.Store(true)
		}()
		g.Do(t.Context(), "key", 0, func(_ context.Context, f *flight) (int, error) {
			f.Commit(func() {
				close(begun)
				for range 10 {
					runtime.Gosched()
				}
				if forgotten.Load() {
					t.Error("Forget returned while store ran")
				}
			})
			return 0, nil
		})
	}
}

func TestForgottenFlightStillAnswers(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		first := d.ask(t.Context(), 0, after(time.Second, 7))
		second := d.ask(t.Context(), 0, unexpected)
		d.Forget("key")
		want(t, "the first", first, 7, nil, time.Second)
		want(t, "the second", second, 7, nil, time.Second)
	})
}

func TestCallersAfterForgetStartAnother(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		first := d.ask(t.Context(), 0, after(2*time.Second, 1))
		d.Forget("key")
		second := d.ask(t.Context(), 0, after(time.Second, 2))
		third := d.ask(t.Context(), 0, unexpected)
		want(t, "the second", second, 2, nil, time.Second)
		want(t, "the third", third, 2, nil, time.Second)
		want(t, "the first", first, 1, nil, 2*time.Second)
	})
}

func TestForgottenFlightDoesNotEndItsSuccessor(t *testing.T) {
	for _, c := range []struct {
		name    string
		timeout time.Duration
		fn      call
	}{
		{"Returned", 0, after(time.Second, 1)},
		{"Abandoned", 0, untilLeft}, // its caller stays for two seconds
		{"TimedOut", time.Second, after(time.Hour, 1)},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, d *desk) {
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				first := d.ask(ctx, c.timeout, c.fn)
				d.Forget("key")
				second := d.ask(t.Context(), 0, func(ctx context.Context, f *flight) (int, error) {
					time.Sleep(4 * time.Second)
					if !f.Commit(func() {}) || ctx.Err() != nil {
						t.Error("it did")
					}
					return 2, nil
				})
				<-first
				time.Sleep(time.Second)
				want(t, "one who joins then", d.ask(t.Context(), 0, unexpected), 2, nil, 4*time.Second)
				want(t, "the second", second, 2, nil, 4*time.Second)
			})
		})
	}
}

func TestContextOfAForgottenFlightEndsWhenTheLastWaiterLeaves(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		ended := make(chan time.Duration, 1)
		d.ask(ctx, 0, func(ctx context.Context, _ *flight) (int, error) {
			<-ctx.Done()
			ended <- time.Since(d.begin)
			return 0, nil
		})
		d.Forget("key")
		if at := <-ended; at != time.Second {
			t.Errorf("ended after %v", at)
		}
	})
}

func TestSealedFlightIsFollowedByOneForAllWhoCameLater(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		joined := make(chan bool)
		early := d.ask(t.Context(), 0, func(_ context.Context, f *flight) (int, error) {
			<-joined
			f.Seal()
			time.Sleep(time.Second)
			return 1, nil
		})
		alsoEarly := d.ask(t.Context(), 0, unexpected)
		close(joined)
		synctest.Wait()
		var late []<-chan result
		for range 100 {
			late = append(late, d.ask(t.Context(), 0, after(time.Second, 2)))
		}
		want(t, "the first", early, 1, nil, time.Second)
		want(t, "one who had joined", alsoEarly, 1, nil, time.Second)
		for i, a := range late {
			want(t, fmt.Sprint("late caller ", i), a, 2, nil, 2*time.Second)
		}
		d.wantCalls(t, 2)
	})
}

func TestGatheredFlightBeginsWhenTheSealedOneIsOver(t *testing.T) {
	for _, c := range []struct {
		name  string
		first call
		over  func(d *desk)
		at    time.Duration
	}{
		{"Returned", sealedAfter(time.Second, 1, nil), func(*desk) {}, time.Second},
		{"Forgotten", sealedAfter(time.Hour, 1, nil), func(d *desk) { d.Forget("key") }, time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, d *desk) {
				d.ask(t.Context(), 0, c.first)
				var began time.Duration
				second := d.ask(t.Context(), 0, func(_ context.Context, f *flight) (int, error) {
					began = time.Since(d.begin)
					if !f.Commit(func() {}) {
						t.Error("it cannot commit")
					}
					return 2, nil
				})
				time.Sleep(time.Minute)
				c.over(d)
				want(t, "the gathered one", second, 2, nil, c.at)
				if began != c.at {
					t.Errorf("began after %v, want %v", began, c.at)
				}
			})
		})
	}
}

func TestFailureOfASealedFlightServesThoseWhoGatheredToo(t *testing.T) {
	for _, e := range endings {
		if e.name == "Abandonment" {
			continue // no failure of the call's
		}
		t.Run(e.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, d *desk) {
				goOn := make(chan bool)
				first := d.ask(t.Context(), e.timeout, func(ctx context.Context, f *flight) (int, error) {
					f.Seal()
					<-goOn
					return e.fn(ctx, f)
				})
				second := d.ask(t.Context(), 0, unexpected)
				close(goOn)
				a, b := <-first, <-second
				if a.err == nil || b != a {
					t.Errorf("the gathered one got %v, the sealed one %v", b, a)
				}
				want(t, "the next caller", d.ask(t.Context(), 0, after(0, 7)), 7, nil, a.at)
			})
		})
	}
}

func TestFailureOfAForgottenFlightServesNoLaterCaller(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		first := d.ask(t.Context(), 0, sealedAfter(time.Second, 0, errFailed))
		second := d.ask(t.Context(), 0, after(2*time.Second, 2))
		d.Forget("key")
		want(t, "the first", first, 0, errFailed, time.Second)
		want(t, "the gathered one", second, 2, nil, 2*time.Second)
	})
}

func TestThoseWhoGatherLeaveByTheirOwnContexts(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		first := d.ask(t.Context(), 0, sealedAfter(time.Minute, 1, nil))
		hasty := d.ask(ctx, 0, after(0, 2))
		patient := d.ask(t.Context(), 0, after(0, 2))
		want(t, "the hasty one", hasty, 0, context.DeadlineExceeded, time.Second)
		want(t, "the first", first, 1, nil, time.Minute)
		want(t, "the patient one", patient, 2, nil, time.Minute)
	})
}

// A caller of every deadline shorter than the answer takes must not send a question of its own.
func TestSealedFlightGoesOnWhileSomebodyGathersBehindIt(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		var answers []<-chan result
		for i := range 9 {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			answers = append(answers, d.ask(ctx, 0, sealedAfter(9500*time.Millisecond, i, nil)))
			time.Sleep(time.Second)
		}
		patient := d.ask(t.Context(), 0, unexpected)
		for i, a := range answers {
			want(t, fmt.Sprint("caller ", i), a, 0, context.DeadlineExceeded, time.Duration(i+2)*time.Second)
		}
		want(t, "the patient one", patient, 1, nil, 19*time.Second) // whose call is that of the first who gathered
		d.wantCalls(t, 2)
	})
}

func TestContextOfASealedCallEndsWhenTheLastLeavesWhoWaitsForItOrBehindIt(t *testing.T) {
	for _, c := range []struct {
		name          string
		first, second time.Duration // when they leave
	}{
		{"SealedLast", 2 * time.Second, time.Second},
		{"GatheredLast", time.Second, 2 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, d *desk) {
				first, cancel := context.WithTimeout(t.Context(), c.first)
				defer cancel()
				second, cancel := context.WithTimeout(t.Context(), c.second)
				defer cancel()
				ended := make(chan time.Duration, 1)
				d.ask(first, 0, func(ctx context.Context, f *flight) (int, error) {
					f.Seal()
					<-ctx.Done()
					ended <- time.Since(d.begin)
					return 0, nil
				})
				<-d.ask(second, 0, unexpected)
				if at := <-ended; at != 2*time.Second {
					t.Errorf("ended after %v", at)
				}
			})
		})
	}
}

func TestFlightWhoseGatherersHaveAllLeftDoesNotBegin(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		ctx, cancel := context.WithCancel(t.Context())
		first := d.ask(t.Context(), 0, sealedAfter(time.Minute, 1, nil))
		second, third := d.ask(ctx, 0, unexpected), d.ask(ctx, 0, unexpected)
		cancel()
		want(t, "the second", second, 0, context.Canceled, 0)
		want(t, "the third", third, 0, context.Canceled, 0)
		want(t, "the first", first, 1, nil, time.Minute)
		synctest.Wait()
		d.wantCalls(t, 1)
		want(t, "the next caller", d.ask(t.Context(), 0, after(0, 7)), 7, nil, time.Minute)
	})
}

func TestGatheringGoesOnAfterAllHaveLeft(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		ctx, cancel := context.WithCancel(t.Context())
		d.ask(t.Context(), 0, sealedAfter(time.Minute, 1, nil))
		d.ask(ctx, 0, after(time.Second, 2))
		cancel()
		synctest.Wait()
		want(t, "one who came then", d.ask(t.Context(), 0, after(time.Second, 2)), 2, nil, time.Minute+time.Second)
		d.wantCalls(t, 2)
	})
}

func TestTimeoutOfAGatheredFlightRunsFromItsStart(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		d.ask(t.Context(), 0, sealedAfter(time.Minute, 1, nil))
		second := d.ask(t.Context(), time.Second, after(time.Hour, 2))
		want(t, "the gathered one", second, 0, context.DeadlineExceeded, time.Minute+time.Second)
	})
}

func TestGatheredFlightsAreSealedInTurn(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		var answers []<-chan result
		for i := range 5 {
			answers = append(answers, d.ask(t.Context(), 0, sealedAfter(time.Second, i, nil)))
			time.Sleep(400 * time.Millisecond)
		}
		want(t, "caller 0", answers[0], 0, nil, time.Second)
		want(t, "caller 1", answers[1], 1, nil, 2*time.Second)
		want(t, "caller 2", answers[2], 1, nil, 2*time.Second)
		want(t, "caller 3", answers[3], 3, nil, 3*time.Second) // came after 1.2s, when the flight of caller 1 had begun
		want(t, "caller 4", answers[4], 3, nil, 3*time.Second)
	})
}

func TestKeysAreThoseWithAFlight(t *testing.T) {
	bubble(t, func(t *testing.T, _ *desk) {
		var g group
		if keys := g.Keys(); len(keys) != 0 {
			t.Errorf("at first: %q", keys)
		}
		for i, key := range []string{"a", "b", "c"} {
			go g.Do(t.Context(), key, 0, after(time.Duration(i+1)*time.Second, 0))
		}
		synctest.Wait()
		g.Forget("b")
		keys := g.Keys()
		slices.Sort(keys)
		if !slices.Equal(keys, []string{"a", "c"}) {
			t.Errorf("while a and c fly: %q", keys)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if keys := g.Keys(); !slices.Equal(keys, []string{"c"}) {
			t.Errorf("while c flies: %q", keys)
		}
	})
}

func TestForgetOfNothingDoesNothing(t *testing.T) {
	var g group
	g.Forget("key")
	if v, err := g.Do(t.Context(), "key", 0, after(0, 7)); v != 7 || err != nil {
		t.Errorf("got %d, %v", v, err)
	}
}

// What a caller is told must have been read after it asked, if every call seals before it reads; and nothing that was
// read before a write is stored after the Forget that followed the write.
func TestNothingOldIsToldOrStoredWhateverHappens(t *testing.T) {
	bubble(t, func(t *testing.T, _ *desk) {
		const keys = 4
		var g singleflight.Group[int, int64]
		var source, least [keys]atomic.Int64 // least is what may still be stored
		var callers sync.WaitGroup
		for seed := range uint64(16) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			callers.Go(func() {
				for range 400 {
					key, kind, pause := rnd.IntN(keys), rnd.IntN(12), time.Duration(rnd.IntN(4))
					if kind == 0 {
						v := source[key].Add(1)
						g.Forget(key)
						for old := least[key].Load(); old < v && !least[key].CompareAndSwap(old, v); old = least[key].Load() {
						}
						time.Sleep(pause)
						continue
					}
					ctx, cancel := context.WithTimeout(context.Background(), 1+time.Duration(rnd.IntN(20)))
					begin, asked := time.Now(), source[key].Load()
					got, err := g.Do(ctx, key, 10, func(ctx context.Context, f *singleflight.Flight[int, int64]) (int64, error) {
						f.Seal()
						v := source[key].Load()
						time.Sleep(pause)
						f.Commit(func() {
							if v < least[key].Load() {
								t.Errorf("%d is stored after Forget returned for %d", v, least[key].Load())
							}
						})
						switch kind {
						case 1:
							return 0, errFailed
						case 2:
							panic("ouch")
						case 3:
							runtime.Goexit()
						case 4:
							time.Sleep(30 * time.Nanosecond) // deaf to all
						case 5:
							<-ctx.Done()
							return 0, ctx.Err()
						}
						return v, nil
					})
					deadline, _ := ctx.Deadline()
					if err == nil && got < asked {
						t.Errorf("got %d, asked when %d was there", got, asked)
					}
					if now := time.Now(); now.After(deadline) {
						t.Errorf("returned %v after it asked, its deadline was %v", now.Sub(begin), deadline.Sub(begin))
					}
					cancel()
				}
			})
		}
		callers.Wait()
		if left := g.Keys(); len(left) > 0 {
			t.Errorf("flights of %d are left", left)
		}
	})
}

// A model of one key says after each step who has what, which calls run, which of them have an ended context and which
// may commit.
type model struct {
	current *modelFlight
	flights []*modelFlight       // of all time, by the caller who began to gather them
	callers map[int]*modelFlight // who wait
	results map[int]string       // of those who do not
}

type modelFlight struct {
	id                                   int
	started, sealed, over, done, ctxDone bool
	next, behind                         *modelFlight
}

func (m *model) waiters(f *modelFlight) (ids []int) {
	for id, g := range m.callers {
		if g == f {
			ids = append(ids, id)
		}
	}
	return ids
}

func (m *model) join(id int) {
	f := m.current
	if f != nil && f.sealed {
		f = f.next
	}
	if f == nil {
		f = &modelFlight{id: id}
		m.flights = append(m.flights, f)
		if m.current == nil {
			m.current, f.started = f, true
		} else {
			m.current.next, f.behind = f, m.current
		}
	}
	m.callers[id] = f
}

func (m *model) leave(id int) {
	f := m.callers[id]
	delete(m.callers, id)
	m.results[id] = "left"
	if f.behind != nil && !f.started {
		f = f.behind
	}
	if f.started && len(m.waiters(f)) == 0 && (f.next == nil || len(m.waiters(f.next)) == 0) {
		f.ctxDone = true
		m.forget(f)
	}
}

func (m *model) forget(f *modelFlight) {
	if f == nil || f.over {
		return
	}
	f.over = true
	m.current = nil
	if next := f.next; next != nil && len(m.waiters(next)) > 0 {
		m.current, next.started = next, true
	}
	f.next = nil
}

func (m *model) end(f *modelFlight, result string, failed bool) {
	f.done, f.ctxDone = true, true
	served := []*modelFlight{f}
	if failed && f.next != nil && !f.over {
		served, f.next = append(served, f.next), nil
	}
	for _, s := range served {
		for _, id := range m.waiters(s) {
			delete(m.callers, id)
			m.results[id] = result
		}
	}
	m.forget(f)
}

func TestFlightsDoWhatTheModelDoes(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			type order struct {
				do     string
				commit chan bool
			}
			type running struct {
				ctx    context.Context
				flight *flight
				orders chan order
			}
			var (
				rnd     = rand.New(rand.NewPCG(seed, 1))
				g       group
				m       = model{callers: map[int]*modelFlight{}, results: map[int]string{}}
				mu      sync.Mutex // guards calls and results
				calls   = map[int]*running{}
				results = map[int]string{}
				cancels = map[int]context.CancelFunc{}
				history []string
			)
			ask := func(id int) {
				ctx, cancel := context.WithCancel(context.Background())
				cancels[id] = cancel
				go func() {
					v, err := g.Do(ctx, "key", 0, func(ctx context.Context, f *flight) (int, error) {
						r := &running{ctx, f, make(chan order)}
						mu.Lock()
						calls[id] = r
						mu.Unlock()
						for o := range r.orders {
							switch o.do {
							case "seal":
								f.Seal()
							case "commit":
								o.commit <- f.Commit(func() {})
							case "fail":
								return 0, fmt.Errorf("failure of %d", id)
							case "panic":
								panic(id)
							}
						}
						return id, nil
					})
					result := fmt.Sprint("value of ", v)
					if p, ok := errors.AsType[*singleflight.PanicError](err); ok {
						result = fmt.Sprint("panic of ", p.Value)
					} else if errors.Is(err, context.Canceled) {
						result = "left"
					} else if err != nil {
						result = err.Error()
					}
					mu.Lock()
					results[id] = result
					mu.Unlock()
				}()
			}
			anyOf := func(ids []int) int { return slices.Sorted(slices.Values(ids))[rnd.IntN(len(ids))] }
			for id := range 300 {
				var fly, wait []int
				for _, f := range m.flights {
					if f.started && !f.done {
						fly = append(fly, f.id)
					}
				}
				for id := range m.callers {
					wait = append(wait, id)
				}
				op := []string{"ask", "ask", "ask", "leave", "leave", "forget", "seal", "seal", "commit", "return", "fail", "panic"}[rnd.IntN(12)]
				switch {
				case op == "ask" || len(wait) == 0:
					op = fmt.Sprint("ask ", id)
					m.join(id)
					ask(id)
				case op == "leave":
					who := anyOf(wait)
					op = fmt.Sprint("leave ", who)
					m.leave(who)
					cancels[who]()
				case op == "forget":
					m.forget(m.current)
					g.Forget("key")
				case len(fly) > 0:
					who := anyOf(fly)
					f := m.flights[slices.IndexFunc(m.flights, func(f *modelFlight) bool { return f.id == who })]
					mu.Lock()
					r := calls[who]
					mu.Unlock()
					switch op {
					case "seal":
						f.sealed = true
						r.orders <- order{do: op}
					case "commit":
						o := order{op, make(chan bool)}
						r.orders <- o
						if got := <-o.commit; got == f.over {
							t.Errorf("Commit of %d is %v", who, got)
						}
					case "return":
						m.end(f, fmt.Sprint("value of ", who), false)
						close(r.orders)
					case "fail":
						m.end(f, fmt.Sprint("failure of ", who), true)
						r.orders <- order{do: op}
					case "panic":
						m.end(f, fmt.Sprint("panic of ", who), true)
						r.orders <- order{do: op}
					}
					op = fmt.Sprint(op, " ", who)
				}
				history = append(history, op)
				synctest.Wait()
				if !reflect.DeepEqual(results, m.results) {
					t.Errorf("results %v\nwant %v", results, m.results)
				}
				for _, f := range m.flights {
					switch r := calls[f.id]; {
					case (r != nil) != f.started:
						t.Errorf("call of %d: %v, want %v", f.id, r != nil, f.started)
					case r != nil && (r.ctx.Err() != nil) != f.ctxDone:
						t.Errorf("context of %d: %v, want ended: %v", f.id, r.ctx.Err(), f.ctxDone)
					}
				}
				if n := len(g.Keys()); (n == 1) != (m.current != nil) {
					t.Errorf("%d keys", n)
				}
				if t.Failed() {
					t.Errorf("seed %d, after %s", seed, strings.Join(history, ", "))
					break
				}
			}
			for _, cancel := range cancels {
				cancel()
			}
			synctest.Wait()
			for _, f := range m.flights {
				if r := calls[f.id]; r != nil && !f.done {
					close(r.orders)
				}
			}
		})
		if t.Failed() {
			return
		}
	}
}

func BenchmarkAlone(b *testing.B) {
	var g group
	fn := func(context.Context, *flight) (int, error) { return 7, nil }
	b.ReportAllocs()
	for b.Loop() {
		g.Do(b.Context(), "key", 0, fn)
	}
}

func BenchmarkAloneWithTimeout(b *testing.B) {
	var g group
	fn := func(context.Context, *flight) (int, error) { return 7, nil }
	b.ReportAllocs()
	for b.Loop() {
		g.Do(b.Context(), "key", time.Minute, fn)
	}
}

// One operation is a flight with a hundred callers.
func BenchmarkHundredJoined(b *testing.B) {
	var g group
	b.ReportAllocs()
	for b.Loop() {
		goOn := make(chan bool)
		fn := func(context.Context, *flight) (int, error) { <-goOn; return 7, nil }
		var callers, asked sync.WaitGroup
		asked.Add(100)
		for range 100 {
			callers.Go(func() {
				asked.Done()
				g.Do(b.Context(), "key", 0, fn)
			})
		}
		asked.Wait()
		close(goOn)
		callers.Wait()
	}
}

func TestAskIsTheCallersOwnCall(t *testing.T) {
	var g singleflight.Group[string, int]
	type key struct{}
	ctx := context.WithValue(t.Context(), key{}, 7)
	got, err := g.Ask(ctx, "k", func(ctx context.Context, f *singleflight.Flight[string, int]) (int, error) {
		if n := f.Seal(); n != 1 || f.Key() != "k" {
			t.Errorf("%d callers of %q", n, f.Key())
		}
		return ctx.Value(key{}).(int), nil
	})
	if got != 7 || err != nil || len(g.Keys()) != 0 {
		t.Errorf("got %v, %v, and %v are left", got, err, g.Keys())
	}
}

// Who comes after a call by Ask has begun gets the result of a later one, whatever comes of the first but an error.
func TestAskServesNobodyWhoComesLater(t *testing.T) {
	failed := errors.New("failed")
	for _, test := range []struct {
		name       string
		first      error
		cancel     bool
		wantNext   int
		wantErr    error
		wantCalled int64
	}{
		{"returns", nil, false, 2, nil, 2},
		{"fails", failed, false, 0, failed, 1},
		{"is left", context.Canceled, true, 2, nil, 2},
		{"is left, and goes on", nil, true, 2, nil, 2},
		{"is left, goes on and fails", failed, true, 0, failed, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g singleflight.Group[string, int]
				var called atomic.Int64
				fn := func(ctx context.Context, f *singleflight.Flight[string, int]) (int, error) {
					n := int(called.Add(1))
					if n == 1 {
						select {
						case <-time.After(time.Second):
						case <-ctx.Done():
							if test.first != ctx.Err() && !f.GoOn(func(ctx context.Context) error {
								time.Sleep(time.Second)
								return test.first
							}) {
								t.Error("it does not go on")
							}
							return 0, ctx.Err()
						}
						return n, test.first
					}
					if callers := f.Seal(); callers != 3 {
						t.Errorf("%d have gathered, want 3", callers)
					}
					return n, nil
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go func() { g.Ask(ctx, "k", fn) }()
				synctest.Wait()
				var wg sync.WaitGroup
				for range 3 {
					wg.Go(func() {
						if got, err := g.Ask(t.Context(), "k", fn); got != test.wantNext || err != test.wantErr {
							t.Errorf("got %v, %v, want %v, %v", got, err, test.wantNext, test.wantErr)
						}
					})
				}
				synctest.Wait()
				if test.cancel {
					cancel()
				}
				wg.Wait()
				if n := called.Load(); n != test.wantCalled {
					t.Errorf("called %d times, want %d", n, test.wantCalled)
				}
			})
		})
	}
}

// What goes on for those who have gathered ends when the last of them has left.
func TestAskGoesOnOnlyForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g singleflight.Group[string, int]
		first, leave := context.WithCancel(t.Context())
		ended := false
		fn := func(ctx context.Context, f *singleflight.Flight[string, int]) (int, error) {
			<-ctx.Done()
			f.GoOn(func(ctx context.Context) error {
				<-ctx.Done()
				ended = true
				return ctx.Err()
			})
			return 0, ctx.Err()
		}
		go func() { g.Ask(first, "k", fn) }()
		synctest.Wait()
		second, leaveToo := context.WithCancel(t.Context())
		go func() { g.Ask(second, "k", fn) }()
		synctest.Wait()
		leave()
		synctest.Wait()
		if ended {
			t.Error("it ends while somebody waits")
		}
		leaveToo()
		synctest.Wait()
		if !ended || len(g.Keys()) > 0 {
			t.Errorf("ended: %v, left: %v", ended, g.Keys())
		}
		alone, cancel := context.WithCancel(t.Context())
		cancel()
		g.Ask(alone, "k", fn)
		go func() { g.Ask(second, "k", fn) }()
		synctest.Wait()
	})
}

// What Forget has overtaken is not committed, and does not stand in the way of who comes then.
func TestAskIsForgotten(t *testing.T) {
	var g singleflight.Group[string, int]
	g.Ask(t.Context(), "k", func(ctx context.Context, f *singleflight.Flight[string, int]) (int, error) {
		g.Forget("k")
		if got, err := g.Ask(ctx, "k", func(_ context.Context, later *singleflight.Flight[string, int]) (int, error) {
			if !later.Commit(func() {}) {
				t.Error("the later one does not commit")
			}
			return 2, nil
		}); got != 2 || err != nil {
			t.Errorf("later: %v, %v", got, err)
		}
		if f.Commit(func() {}) {
			t.Error("committed after Forget")
		}
		return 1, nil
	})
	if len(g.Keys()) != 0 {
		t.Errorf("%v are left", g.Keys())
	}
}

func TestAskPanicsInTheCaller(t *testing.T) {
	var g singleflight.Group[string, int]
	func() {
		defer func() { recover() }()
		g.Ask(t.Context(), "k", func(context.Context, *singleflight.Flight[string, int]) (int, error) { panic("x") })
	}()
	if len(g.Keys()) != 0 {
		t.Errorf("%v are left", g.Keys())
	}
}

func TestAskTakesNoMemory(t *testing.T) {
	var g singleflight.Group[string, int]
	fn := func(context.Context, *singleflight.Flight[string, int]) (int, error) { return 1, nil }
	ctx := t.Context()
	if n := testing.AllocsPerRun(1000, func() { g.Ask(ctx, "k", fn) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
