package shoal_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/shoalpb"
)

// Shutdown returns when the others have what this process had.
func TestShutdownHandsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3, nil, upper, nil)
		for k := range 300 {
			want(t, f, k%3, fmt.Sprint("key ", k), fmt.Sprint("KEY ", k))
		}
		began := time.Now()
		must(t, f.Cache(2).Shutdown(t.Context()))
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %v", took)
		}
		f.Kill(2)
		for k := range 300 {
			want(t, f, k%2, fmt.Sprint("key ", k), fmt.Sprint("KEY ", k))
		}
		f.wantLoads(t, 300)
	})
}

// … though it has not seen all of them listed yet, but been greeted, and the others have not even been that.
func TestShutdownHandsOverToWhomItHasNotSeenListed(t *testing.T) {
	for name, others := range map[string][]int{"alone": {0}, "among others": {0, 1, 2}} {
		for _, dead := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", dead ", dead), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFleet[string](t, 4, nil, nil, nil)
					f.Kill(3)
					for _, i := range others {
						f.See(i, others...)
					}
					f.See(3, append(others, 3)...)
					time.Sleep(2 * time.Minute)
					keys := setAll(t, f.groups[0], "k", 300, "value")
					restart(t, f, 3, nil, nil)
					time.Sleep(time.Second)
					if dead {
						f.Kill(3)
					}
					must(t, f.Cache(0).Shutdown(t.Context()))
					f.Kill(0)
					left := 3
					for _, i := range others[1:] {
						f.See(i, others[1:]...)
						left = i
					}
					if left == 3 && dead {
						return // there is nobody
					}
					f.See(3, 3)
					if n := lostOf(t, f.groups[left], keys, "value"); n > 0 {
						t.Errorf("%d of 300 are lost", n)
					}
				})
			})
		}
	}
}

// … and the last of two processes in the same place is the one that is meant.
func TestShutdownHandsOverToTheLastInAPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 2, nil, nil, nil)
		f.Kill(1)
		f.See(0, 0)
		keys := setAll(t, f.groups[0], "k", 100, "value")
		for range 5 {
			restart(t, f, 1, nil, nil)
			time.Sleep(time.Second)
		}
		began := time.Now()
		must(t, f.Cache(0).Shutdown(t.Context()))
		if took := time.Since(began); took > 500*time.Millisecond {
			t.Errorf("it took %v", took)
		}
		time.Sleep(time.Second)
		f.Kill(0)
		f.See(1, 1)
		if n := lostOf(t, f.groups[1], keys, "value"); n > 0 {
			t.Errorf("%d of 100 are lost", n)
		}
	})
}

// … and to whom does not see it listed.
func TestShutdownHandsOverToWhoDoesNotSeeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 2, nil, nil, nil)
		f.Kill(1)
		f.See(0, 0)
		time.Sleep(2 * time.Minute)
		restart(t, f, 1, nil, nil)
		keys := allOwnedBy(f.Cluster, 1, 100)
		for _, key := range keys {
			must(t, f.groups[1].Set(t.Context(), key, "value"))
		}
		must(t, f.Cache(1).Shutdown(t.Context()))
		f.Kill(1)
		if n := lostOf(t, f.groups[0], keys, "value"); n > 0 {
			t.Errorf("%d of 100 are lost", n)
		}
	})
}

// … and goes on to ask those, by their weights.
func TestWhoHasLeftAsksWhomItHasNotSeenListed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 2, &shoal.Options{Weight: 2, Zone: "zone"}, nil, nil)
		f.Kill(1)
		f.See(0, 0)
		restart(t, f, 1, nil, nil)
		must(t, f.Cache(0).Shutdown(t.Context()))
		f.See(1, 1)
		must(t, f.groups[1].Set(t.Context(), "key", "value"))
		want(t, f, 0, "key", "value")
		if peers := f.Cache(0).Peers(); len(peers) != 1 || peers[0].Weight != 2 || peers[0].Zone != "zone" {
			t.Errorf("it sees %+v", peers)
		}
	})
}

// … and who comes while the others are told pulls too.
func TestShutdownHandsOverToWhoComesMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 3, nil, nil, nil)
		f.Kill(2)
		f.See(0, 0, 1)
		f.See(1, 0, 1)
		time.Sleep(2 * time.Minute)
		keys := setAll(t, f.groups[0], "k", 300, "value")
		f.Delay(0, 1, 300*time.Millisecond)
		var wg sync.WaitGroup
		wg.Go(func() { must(t, f.Cache(0).Shutdown(t.Context())) })
		time.Sleep(10 * time.Millisecond)
		wg.Go(func() { f.See(1, 0, 1, 2) })
		restart(t, f, 2, nil, nil)
		wg.Wait()
		time.Sleep(time.Second)
		f.Kill(0)
		f.Heal()
		f.See(1, 1, 2)
		f.See(2, 1, 2)
		if n := lostOf(t, f.groups[1], keys, "value"); n > 0 {
			t.Errorf("%d of 300 are lost", n)
		}
	})
}

// … and a pull that began before this process left, when less was to be had, begins anew.
func TestPullsThatSpanALeaveBeginAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 2, nil, nil, nil)
		f.Kill(1)
		f.See(0, 0)
		value := strings.Repeat("v", 50_000)
		keys := setAll(t, f.groups[0], "k", 200, value)
		f.Delay(0, 1, 100*time.Millisecond)
		f.Delay(1, 0, 100*time.Millisecond)
		f.join(1, nil, nil)
		var wg sync.WaitGroup
		wg.Go(func() { f.See(0, 0, 1) })
		time.Sleep(2 * time.Second)
		must(t, f.Cache(0).Shutdown(t.Context()))
		wg.Wait()
		time.Sleep(time.Second)
		f.Kill(0)
		f.See(1, 1)
		if n := lostOf(t, f.groups[1], keys, value); n > 0 {
			t.Errorf("%d of 200 are lost", n)
		}
	})
}

// … even if it was the last page that was under way.
func TestLastPullThatSpansAChangeBeginsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 4, nil, nil, nil)
		var keys []string
		for _, key := range allOwnedBy(f.Cluster, 0, 100) {
			if ownerAmong(key, 1, 2, 3) == 2 && ownerAmong(key, 1, 3) == 1 {
				must(t, f.groups[0].Set(t.Context(), key, "value"))
				keys = append(keys, key)
			}
		}
		f.Delay(0, 1, 300*time.Millisecond)
		f.Delay(0, 3, 480*time.Millisecond) // so that cache 0 is still there
		var wg sync.WaitGroup
		wg.Go(func() { must(t, f.Cache(0).Shutdown(t.Context())) })
		time.Sleep(750 * time.Millisecond)
		f.Kill(2)
		wg.Go(func() { f.See(1, 1, 3) })
		wg.Wait()
		time.Sleep(time.Second)
		f.Kill(0)
		if n := lostOf(t, f.groups[1], keys, "value"); n > 0 {
			t.Errorf("%d of %d are lost", n, len(keys))
		}
	})
}

// Who has not taken the leaver off its list keeps nothing of what goes to it yet, and would not ask again.
func TestWhoStillListsALeaverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := &shoalpb.Peer{Id: []byte("a"), Weight: 1}, &shoalpb.Peer{Id: []byte("b"), Weight: 1, Incarnation: 1}
		other := &shoalpb.Peer{Id: []byte("b"), Weight: 1, Incarnation: 2}
		f := newFleet[string](t, 2, nil, nil, nil)
		f.calm(t)
		setAll(t, f.groups[0], "k", 20, "value")
		f.Delay(1, 0, 200*time.Millisecond)
		var wg sync.WaitGroup
		wg.Go(func() { must(t, f.Cache(0).Shutdown(t.Context())) })
		time.Sleep(300 * time.Millisecond)
		pull := func(members ...*shoalpb.Peer) *shoalpb.Reply {
			_, reply := post(t, f.Cache(0), marshal(t, &shoalpb.Request{
				Group: []byte("things"), Sender: &shoalpb.Sender{Id: []byte("b"), Incarnation: 1},
				Op: &shoalpb.Request_Pull{Pull: &shoalpb.Pull{MaxBytes: 1 << 20, Members: members}},
			}))
			return reply
		}
		for name, reply := range map[string]*shoalpb.Reply{
			"it is listed": pull(), "not on its own list": pull(a), "another is in its place": pull(a, other),
		} {
			if p := reply.GetPulled(); p == nil || !p.Wait || len(p.Entries) > 0 {
				t.Errorf("%s: %v", name, reply)
			}
		}
		all, half := pull(b).GetPulled(), pull(a, b).GetPulled()
		if n, m := len(all.GetEntries()), len(half.GetEntries()); m == 0 || n <= m || all.Wait || half.Wait {
			t.Errorf("it gets %d alone, and %d of two", n, m)
		}
		for name, reply := range map[string]*shoalpb.Reply{
			"out of order": pull(b, a), "twice": pull(a, a), "without a weight": pull(&shoalpb.Peer{Id: []byte("b")}),
			"many": pull(slices.Repeat([]*shoalpb.Peer{b}, 20_000)...),
		} {
			if r := reply.GetRefused(); r.GetReason() != shoalpb.Refused_MALFORMED {
				t.Errorf("%s: %v", name, reply)
			}
		}
		wg.Wait()
	})
}

// apart has everything take as long as delay says, from each to each.
func (f *fleet[V]) apart(size int, delay func() time.Duration) {
	for from := range size {
		for to := range size {
			f.Delay(from, to, delay())
		}
	}
}

// twoLeave has caches 0 and 1 end, the second some time after the first, and returns how long the longer took.
func (f *fleet[V]) twoLeave(t *testing.T, lag time.Duration) (longest time.Duration) {
	t.Helper()
	var wg sync.WaitGroup
	var took [2]time.Duration
	for i := range took {
		wg.Go(func() {
			time.Sleep(time.Duration(i) * lag)
			began := time.Now()
			must(t, f.Cache(i).Shutdown(t.Context()))
			took[i] = time.Since(began)
			f.Kill(i)
		})
	}
	wg.Wait()
	time.Sleep(time.Second)
	return max(took[0], took[1])
}

// What one has would have gone to the other, by the lists of those who have heard of one of them only.
func TestTwoThatLeaveAtOnceLoseNothing(t *testing.T) {
	for _, lag := range []time.Duration{0, 5, 20, 100} {
		for _, delay := range []time.Duration{0, 5} {
			synctest.Test(t, func(t *testing.T) {
				const size = 5
				f := newFleet[string](t, size, nil, nil, nil)
				keys := setAll(t, f.groups[0], "k", 200, "value")
				time.Sleep(2 * time.Minute)
				f.apart(size, func() time.Duration { return delay * time.Millisecond })
				f.twoLeave(t, lag*time.Millisecond)
				if n := lostOf(t, f.groups[2], keys, "value"); n > 0 {
					t.Errorf("the second %d ms after the first, %d ms away: %d of %d are lost", lag, delay, n, len(keys))
				}
			})
		}
	}
}

// … even if the others hear late that the first leaves, when they have pulled from the second already: whether it heard of that
// before it was to leave itself, or then.
func TestLeaverWaitsForThoseWhoHearLateOfAnother(t *testing.T) {
	for _, lag := range []time.Duration{0, 20, 50, 100} {
		synctest.Test(t, func(t *testing.T) {
			f := newFleet[string](t, 4, nil, nil, nil)
			keys := setAll(t, f.groups[0], "k", 200, "value")
			time.Sleep(2 * time.Minute)
			f.Delay(0, 1, 5*time.Millisecond)
			f.Delay(0, 2, 300*time.Millisecond)
			f.Delay(0, 3, 300*time.Millisecond)
			var wg sync.WaitGroup
			wg.Go(func() {
				time.Sleep(2 * time.Millisecond) // what it has said first is on its way
				f.Delay(0, 2, 0)
				f.Delay(0, 3, 0)
			})
			took := f.twoLeave(t, lag*time.Millisecond)
			wg.Wait()
			if took > 900*time.Millisecond { // which is less than who leaves waits for whom it does not know to have left
				t.Errorf("the second %d ms after the first: it took %v", lag, took)
			}
			if n := lostOf(t, f.groups[2], keys, "value"); n > 0 {
				t.Errorf("the second %d ms after the first: %d of %d are lost", lag, n, len(keys))
			}
		})
	}
}

// … and though it takes long to pull from the first.
func TestTwoThatLeaveWithMuchLoseNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 5
		f := newFleet[string](t, size, nil, nil, nil)
		value := strings.Repeat("v", 50_000)
		keys := setAll(t, f.groups[0], "k", 1000, value)
		time.Sleep(2 * time.Minute)
		f.apart(size, func() time.Duration { return 100 * time.Millisecond })
		f.twoLeave(t, 5*time.Millisecond)
		f.Heal()
		time.Sleep(5 * time.Second)
		if n := lostOf(t, f.groups[2], keys, value); n > 0 {
			t.Errorf("%d of %d are lost", n, len(keys))
		}
	})
}

// … and though others that have left are asked too, and do not answer any more.
func TestWhoLeavesAfterOthersHandsOver(t *testing.T) {
	for dead := 1; dead < 5; dead++ {
		synctest.Test(t, func(t *testing.T) {
			const size = 8
			f := newFleet[string](t, size, nil, nil, nil)
			keys := setAll(t, f.groups[0], "k", 200, "value")
			time.Sleep(2 * time.Minute)
			for i := range dead {
				must(t, f.Cache(i).Shutdown(t.Context()))
				for other := range size { // its host is gone
					f.Delay(other, i, time.Hour)
					f.Delay(i, other, time.Hour)
				}
			}
			time.Sleep(6 * time.Second)
			must(t, f.Cache(5).Shutdown(t.Context()))
			f.Kill(5)
			time.Sleep(5 * time.Second)
			if n := lostOf(t, f.groups[7], keys, "value"); n > 0 {
				t.Errorf("%d have left before: %d of %d are lost", dead, n, len(keys))
			}
		})
	}
}

// Where lists differ, as when many leave and come at once, each is given its share, and not all that there is.
func TestLeaverSharesOutByTheListsOfThoseWhoPull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 6
		f := newFleet[string](t, size, nil, nil, nil)
		value := strings.Repeat("v", 50_000)
		keys := allOwnedBy(f.Cluster, 0, 200)
		for _, key := range keys {
			must(t, f.groups[0].Set(t.Context(), key, value))
		}
		for i := 1; i < size-1; i++ {
			f.See(i, 0, 1, 2, 3, 4)
		}
		time.Sleep(2 * time.Minute)
		before := f.Cache(0).Stats().Requests
		must(t, f.Cache(0).Shutdown(t.Context()))
		if n := f.Cache(0).Stats().Requests - before; n > 65 { // all, four times, are 80 at least
			t.Errorf("%d requests for 10 MB", n)
		}
		time.Sleep(time.Second)
		f.Kill(0)
		for i := 1; i < size-1; i++ {
			f.See(i, 1, 2, 3, 4)
		}
		if n := lostOf(t, f.groups[1], keys, value); n > 0 {
			t.Errorf("%d of %d are lost", n, len(keys))
		}
	})
}

// … and who has pulled what it owned before this process left pulls once more.
func TestShutdownHandsOverWhatWasNotTheOthersBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, upper, nil)
		f.Kill(1)
		f.See(0, 0)
		for k := range 100 {
			want(t, f, 0, fmt.Sprint("key ", k), fmt.Sprint("KEY ", k))
		}
		f.Restart(1)
		f.See(0, 0, 1)
		must(t, f.Cache(1).Ready(t.Context()))
		f.Delay(0, 1, 200*time.Millisecond)
		var wg sync.WaitGroup
		wg.Go(func() { must(t, f.Cache(0).Shutdown(t.Context())) })
		time.Sleep(50 * time.Millisecond) // it says good-bye
		f.groups[1] = shoal.NewGroup(f.Cache(1), "things", upper, nil)
		wg.Wait()
		f.Kill(0)
		for k := range 100 {
			want(t, f, 1, fmt.Sprint("key ", k), fmt.Sprint("KEY ", k))
		}
		if n := f.groups[1].Stats().Loads; n != 0 {
			t.Errorf("%d loads again", n)
		}
	})
}

// Shutdown ends with its context, and says so.
func TestShutdownEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3, nil, upper, nil)
		for k := range 300 {
			want(t, f, k%3, fmt.Sprint("key ", k), fmt.Sprint("KEY ", k))
		}
		f.Delay(2, 0, 400*time.Millisecond)
		f.Delay(2, 1, 400*time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), 600*time.Millisecond)
		defer cancel()
		began := time.Now()
		if err := f.Cache(2).Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it returned %v", err)
		}
		if took := time.Since(began); took > 600*time.Millisecond {
			t.Errorf("it took %v", took)
		}
	})
}

// doesNotSeeItself has cache 1 see cache 0 alone, which has written the keys that are returned.
func doesNotSeeItself(t *testing.T, f *fleet[string], g *shoal.Group[string]) (keys []string) {
	t.Helper()
	f.calm(t)
	f.See(1, 0)
	time.Sleep(time.Minute)
	keys = allOwnedBy(f.Cluster, 0, 40)
	for _, key := range keys {
		must(t, g.Set(t.Context(), key, "value"))
	}
	return keys
}

// Who does not see itself listed yet takes over later what only the one that leaves has: that waits, until nobody would come any
// more.
func TestShutdownWaitsForWhoDoesNotSeeItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 2, nil, nil, nil)
		keys := doesNotSeeItself(t, f, f.groups[0])
		var wg sync.WaitGroup
		began := time.Now()
		wg.Go(func() { must(t, f.Cache(0).Shutdown(t.Context())) })
		time.Sleep(10 * time.Second)
		f.See(1, 1)
		wg.Wait()
		if took := time.Since(began); took > 12*time.Second {
			t.Errorf("it took %v", took)
		}
		f.Kill(0)
		if n := lostOf(t, f.groups[1], keys, "value"); n > 0 {
			t.Errorf("%d of 40 are lost", n)
		}
	})
}

// So it is with one that the leaver does not list any more, and the others list again.
func TestShutdownWaitsForWhomOthersList(t *testing.T) {
	for range 6 { // it depends on who pulls first
		synctest.Test(t, func(t *testing.T) {
			f := newFleet(t, 4, nil, nil, &shoal.GroupOptions[string]{Owners: 2})
			f.calm(t)
			for i := range 4 {
				f.See(i, 0, 1, 2)
			}
			time.Sleep(5 * time.Second)
			keys := setAll(t, f.groups[0], "k", 200, "value")
			time.Sleep(5 * time.Second)
			f.See(1, 0, 1, 2, 3)
			f.See(2, 0, 1, 2, 3)
			var wg sync.WaitGroup
			wg.Go(func() {
				must(t, f.Cache(0).Shutdown(t.Context()))
				f.Kill(0)
				f.Kill(2)
			})
			synctest.Wait() // all know that it leaves
			f.See(1, 1, 2, 3)
			f.See(2, 1, 2, 3)
			time.Sleep(10 * time.Second)
			f.See(3, 1, 2, 3)
			wg.Wait()
			f.See(1, 1, 3)
			f.See(3, 1, 3)
			time.Sleep(5 * time.Second)
			if n := lostOf(t, f.groups[1], keys, "value"); n > 0 {
				t.Errorf("%d of 200 are lost", n)
			}
		})
	}
}

func TestShutdownSaysWhoHasNotTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 2, nil, nil, nil)
		doesNotSeeItself(t, f, f.groups[0])
		began := time.Now()
		if err := f.Cache(0).Shutdown(t.Context()); err == nil || !strings.Contains(err.Error(), "http://cache-1") {
			t.Errorf("it returned %v", err)
		}
		if took := time.Since(began); took < 30*time.Second || took > 2*time.Minute {
			t.Errorf("it took %v", took)
		}
	})
}

// Who is listed no more has been taken over from already, and need not wait for those who have done that.
func TestShutdownOfWhoIsListedNoMoreDoesNotWait(t *testing.T) {
	for _, after := range []time.Duration{time.Second, 5 * time.Second, 20 * time.Second, 40 * time.Second} {
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, keys := threeOfWhichOneHas40(t)
				for i := range 3 {
					f.See(i, 1, 2)
				}
				time.Sleep(after)
				endsWithoutLoss(t, f, keys, func() {})
			})
		})
	}
}

// Who has seen only itself that it is listed no more says that it leaves, and the others take over.
func TestShutdownOfWhoAloneSeesItselfListedNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, keys := threeOfWhichOneHas40(t)
		f.See(0, 1, 2)
		time.Sleep(3 * time.Second)
		endsWithoutLoss(t, f, keys, func() {})
	})
}

// An heir that dies and is started again in its place is not waited for: another is there.
func TestShutdownDoesNotWaitForWhoHasBeenReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, keys := threeOfWhichOneHas40(t)
		f.Delay(0, 1, 200*time.Millisecond)
		f.Delay(0, 2, 200*time.Millisecond)
		endsWithoutLoss(t, f, keys, func() {
			time.Sleep(250 * time.Millisecond)
			restart(t, f, 1, nil, nil)
		})
	})
}

// threeOfWhichOneHas40 returns a fleet in which cache 0 has 40 keys that cannot be loaded.
func threeOfWhichOneHas40(t *testing.T) (f *fleet[string], keys []string) {
	t.Helper()
	f = newFleet[string](t, 3, nil, nil, nil)
	f.calm(t)
	keys = allOwnedBy(f.Cluster, 0, 40)
	for _, key := range keys {
		must(t, f.groups[0].Set(t.Context(), key, "value"))
	}
	return f, keys
}

// endsWithoutLoss shuts down cache 0 while something goes on, and wants that to be quick, and nothing to be lost.
func endsWithoutLoss(t *testing.T, f *fleet[string], keys []string, meanwhile func()) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(meanwhile)
	began := time.Now()
	err := f.Cache(0).Shutdown(t.Context())
	if took := time.Since(began); err != nil || took > 5*time.Second {
		t.Errorf("%v after %v", err, took)
	}
	wg.Wait()
	f.Kill(0)
	if n := lostOf(t, f.groups[1], keys, "value"); n > 0 {
		t.Errorf("%d of %d are lost", n, len(keys))
	}
}

// Nobody is waited for who has no such group, or could load what is lost.
func TestShutdownDoesNotWaitForWhoNeedsNothing(t *testing.T) {
	for name, get := range map[string]shoal.Getter[string]{"it can be loaded": upper, "no such group": nil} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, 2, nil, get, nil)
				g := f.groups[0]
				if get == nil {
					g = shoal.NewGroup[string](f.Cache(0), "of one alone", nil, nil)
				}
				doesNotSeeItself(t, f, g)
				began := time.Now()
				must(t, f.Cache(0).Shutdown(t.Context()))
				if took := time.Since(began); took > 2*time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// Nobody pulls from the last that leaves, which waits for nobody.
func TestShutdownOfTheLastDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, upper, nil)
		for k := range 30 {
			want(t, f, k%2, fmt.Sprint("key ", k), fmt.Sprint("KEY ", k))
		}
		f.Kill(0)
		f.See(1, 1)
		began := time.Now()
		must(t, f.Cache(1).Shutdown(t.Context()))
		if took := time.Since(began); took != 0 {
			t.Errorf("it took %v", took)
		}
	})
}

// A process that leaves has said so: until discovery drops it, it is no member, and writes do not fail for it.
func TestWhoHasLeftIsNotMissedByWriters(t *testing.T) {
	for _, gone := range []bool{true, false} { // or still there, and refuses
		t.Run(fmt.Sprint("gone: ", gone), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, 3, nil, upper, nil)
				must(t, f.Cache(2).Shutdown(t.Context()))
				if gone {
					f.Kill(2)
				}
				for round := range 3 {
					for k := range 30 {
						if err := f.groups[k%2].Set(t.Context(), fmt.Sprint("key ", k), "value"); err != nil {
							t.Fatalf("round %d: %v", round, err)
						}
					}
					time.Sleep(time.Minute)
				}
			})
		})
	}
}

// Who comes while another leaves, which does not know it, pulls from that, too.
func TestWhoComesWhileAnotherLeavesTakesItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 4, nil, nil, nil)
		f.Kill(3)
		for i := range 3 {
			f.See(i, 0, 1, 2)
		}
		time.Sleep(5 * time.Minute)
		var keys []string
		for _, key := range allOwnedBy(f.Cluster, 3, 200) {
			if ownerAmong(key, 0, 1, 2) == 0 {
				must(t, f.groups[0].Set(t.Context(), key, "value"))
				keys = append(keys, key)
			}
		}
		f.Delay(0, 2, 450*time.Millisecond) // so that cache 0 goes on for some time
		var wg sync.WaitGroup
		wg.Go(func() { must(t, f.Cache(0).Shutdown(t.Context())) })
		time.Sleep(50 * time.Millisecond)
		f.See(3, 1, 2, 3)
		f.join(3, nil, nil)
		for i := 1; i < 3; i++ {
			wg.Go(func() { f.See(i, 1, 2, 3) })
		}
		wg.Wait()
		time.Sleep(time.Second)
		f.Kill(0)
		if n := lostOf(t, f.groups[1], keys, "value"); n > 0 {
			t.Errorf("%d of %d are lost", n, len(keys))
		}
	})
}

// A greeting of one that leaves may come to nothing while that is there all the same: then it is asked again before it is given up.
func TestWhoLeavesIsNotGivenUpForOneGreeting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 3, nil, nil, nil)
		keys := allOwnedBy(f.Cluster, 0, 100)
		for _, key := range keys {
			must(t, f.groups[0].Set(t.Context(), key, "value"))
		}
		_, err := f.groups[0].GetMany(t.Context(), allOwnedBy(f.Cluster, 2, 10))
		must(t, err)
		synctest.Wait() // there is a stream
		f.Delay(0, 2, 50*time.Millisecond)
		var wg sync.WaitGroup
		wg.Go(func() {
			began := time.Now()
			must(t, f.Cache(0).Shutdown(t.Context()))
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("it took %v: the one that answered was still taken for silent", took)
			}
		})
		time.Sleep(20 * time.Millisecond)
		f.Loss(0, 2, 1) // the other will hear that it leaves, but nothing when it greets it
		time.Sleep(time.Second)
		f.Heal()
		wg.Wait()
		f.Kill(0)
		if n := lostOf(t, f.groups[1], keys, "value"); n > 0 {
			t.Errorf("%d of %d are lost", n, len(keys))
		}
	})
}

// What is on its way from one that leaves when its key goes on to another is kept for that.
func TestPulledValuesAreKeptForWhoHasComeMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 3, nil, nil, nil)
		f.Kill(2)
		f.See(0, 0, 1)
		f.See(1, 0, 1)
		time.Sleep(5 * time.Minute)
		var keys []string
		for _, key := range allOwnedBy(f.Cluster, 2, 100) {
			if ownerAmong(key, 0, 1) == 0 {
				must(t, f.groups[0].Set(t.Context(), key, "value"))
				keys = append(keys, key)
			}
		}
		f.Loss(0, 2, 1)
		f.Loss(2, 0, 1)
		f.Delay(0, 1, 300*time.Millisecond)
		var wg sync.WaitGroup
		wg.Go(func() { must(t, f.Cache(0).Shutdown(t.Context())) })
		time.Sleep(700 * time.Millisecond) // the answer to the pull of cache 1 is on its way, and cache 0 is done
		f.See(2, 1, 2)
		f.join(2, nil, nil)
		f.See(1, 1, 2)
		wg.Wait()
		time.Sleep(time.Second)
		f.Kill(0)
		if n := lostOf(t, f.groups[1], keys, "value"); n > 0 {
			t.Errorf("%d of %d are lost", n, len(keys))
		}
	})
}

// … and what is on its way to one that leaves now, too, is waited for.
func TestWhoLeavesWaitsForWhatItPulls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 4, nil, nil, nil)
		const leaver, second, heir, slow = 0, 1, 2, 3
		f.Kill(heir)
		f.See(leaver, leaver, second, slow)
		f.See(slow, leaver, slow)
		f.See(second, second) // and so takes over from a stranger
		time.Sleep(5 * time.Minute)
		var keys []string
		for _, key := range allOwnedBy(f.Cluster, heir, 100) {
			if ownerAmong(key, leaver, second, slow) == leaver {
				must(t, f.groups[leaver].Set(t.Context(), key, "value"))
				keys = append(keys, key)
			}
		}
		f.Loss(leaver, heir, 1)
		f.Loss(heir, leaver, 1)
		f.Delay(slow, leaver, 20*time.Millisecond) // so that nothing can be pulled at first
		var wg sync.WaitGroup
		wg.Go(func() { must(t, f.Cache(leaver).Shutdown(t.Context())) })
		time.Sleep(time.Millisecond)
		f.Delay(leaver, second, 300*time.Millisecond)
		f.See(heir, second, heir)
		f.join(heir, nil, nil)
		time.Sleep(250 * time.Millisecond) // the values are on their way
		must(t, f.Cache(second).Shutdown(t.Context()))
		wg.Wait()
		f.Kill(leaver)
		f.Kill(second)
		if n := lostOf(t, f.groups[heir], keys, "value"); n > 0 {
			t.Errorf("%d of %d are lost", n, len(keys))
		}
	})
}

// Some leave, one comes, and nothing waits for anything.
func TestLeavesAndAJoinAtOnceLoseNothing(t *testing.T) {
	for seed := range uint64(10) {
		synctest.Test(t, func(t *testing.T) {
			const size, comes = 7, 6
			rng := rand.New(rand.NewPCG(seed, 7))
			f := newFleet[string](t, size, nil, nil, nil)
			f.Kill(comes)
			for i := range comes {
				f.See(i, 0, 1, 2, 3, 4, 5)
			}
			keys := setAll(t, f.groups[0], "k", 150, "value")
			time.Sleep(2 * time.Minute)
			most := []int{1, 5, 40, 150}[rng.IntN(4)]
			f.apart(size, func() time.Duration { return time.Duration(rng.IntN(most)) * time.Millisecond })
			leave := 1 + rng.IntN(3)
			spread := []int{1, 20, 200, 1500}[rng.IntN(4)]
			var wg sync.WaitGroup
			for i := range leave {
				lag := time.Duration(rng.IntN(spread)) * time.Millisecond
				wg.Go(func() {
					time.Sleep(lag)
					must(t, f.Cache(i).Shutdown(t.Context()))
					f.Kill(i)
				})
			}
			lag := time.Duration(rng.IntN(spread)) * time.Millisecond
			wg.Go(func() {
				time.Sleep(lag)
				f.See(comes, 0, 1, 2, 3, 4, 5, comes)
				f.join(comes, nil, nil)
				for i := leave; i < comes; i++ {
					f.See(i, 0, 1, 2, 3, 4, 5, comes)
				}
			})
			wg.Wait()
			f.Heal()
			there := []int{0, 1, 2, 3, 4, 5, comes}[leave:]
			for _, i := range there {
				f.See(i, there...)
			}
			if n := lostOf(t, f.groups[5], keys, "value"); n > 0 {
				t.Errorf("seed %d, %d leave within %d ms, at most %d ms away: %d of %d are lost", seed, leave, spread, most, n, len(keys))
			}
		})
	}
}

// Who is met when it has left already has been told of no write, however long ago that was.
func TestWhatOneHasThatHadLeftWhenItWasMetIsNotTakenForNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		f := newFleet(t, 4, nil, s.get, nil)
		const leaver, heir, other, fourth = 0, 1, 2, 3
		for i, list := range [][]int{{leaver, heir}, {leaver, heir}, {other}, {fourth}} { // and these have never met those
			f.See(i, list...)
			f.Kill(i)
		}
		for i := range 4 {
			restart(t, f, i, s.get, nil)
		}
		time.Sleep(5 * time.Minute)
		var key string
		for _, k := range allOwnedBy(f.Cluster, other, 20) {
			if ownerAmong(k, leaver, heir) == leaver {
				key = k
			}
		}
		for _, k := range allOwnedBy(f.Cluster, leaver, 50) { // it takes some time to hand this over
			s.set(k, strings.Repeat("long", 10_000))
			want(t, f, leaver, k, strings.Repeat("long", 10_000))
		}
		s.set(key, "old")
		want(t, f, leaver, key, "old")
		s.set(key, "new")
		must(t, f.groups[other].Remove(t.Context(), key))
		time.Sleep(10 * time.Second)
		f.See(other, other, fourth)
		f.Delay(leaver, heir, 450*time.Millisecond) // so that it goes on for some time
		var wg sync.WaitGroup
		wg.Go(func() { must(t, f.Cache(leaver).Shutdown(t.Context())) })
		time.Sleep(50 * time.Millisecond)
		f.See(other, leaver, other, fourth)
		wg.Wait()
		want(t, f, other, key, "new")
	})
}

// A server that ends waits five seconds for a connection that has not been used yet, and net/http has such ones.
func TestWhoLeavesIsLeftNoConnections(t *testing.T) {
	type node struct {
		cache  *shoal.Cache
		server *httptest.Server
		group  *shoal.Group[string]
	}
	var nodes [2]node
	var addrs []string
	for i := range nodes {
		nodes[i].server = httptest.NewUnstartedServer(nil)
		addrs = append(addrs, "http://"+nodes[i].server.Listener.Addr().String())
	}
	open := make(map[net.Conn]bool)
	var mu sync.Mutex // guards open
	allClosed := make(chan struct{}, 1)
	nodes[0].server.Config.ConnState = func(conn net.Conn, state http.ConnState) {
		mu.Lock()
		defer mu.Unlock()
		switch state {
		case http.StateNew:
			open[conn] = true
		case http.StateHijacked, http.StateClosed:
			if delete(open, conn); len(open) == 0 {
				select {
				case allClosed <- struct{}{}:
				default:
				}
			}
		}
	}
	for i := range nodes {
		n := &nodes[i]
		n.cache = must1(t, shoal.New, &shoal.Options{Self: addrs[i], Discovery: shoal.Static(addrs...), Logger: quiet})
		n.group = shoal.NewGroup[string](n.cache, "g", nil, nil)
		n.server.Config.Handler = n.cache
		n.server.Start()
		t.Cleanup(n.server.Close)
	}
	for _, n := range nodes {
		ready(t, n.cache)
	}
	large := strings.Repeat("v", 200<<10) // goes by a POST
	for k := range 10 {
		must(t, nodes[1].group.Set(t.Context(), fmt.Sprint("key ", k), large))
	}
	mu.Lock()
	if len(open) == 0 {
		t.Error("there is no connection before")
	}
	for len(allClosed) > 0 {
		<-allClosed
	}
	mu.Unlock()
	must(t, nodes[0].cache.Shutdown(t.Context()))
	select {
	case <-allClosed:
	case <-time.After(time.Minute):
		t.Error("there are connections after")
	}
	must(t, nodes[1].cache.Shutdown(t.Context()))
}

// Who gives up waiting for Discovery owns nothing any more all the same, for nobody tells it of writes.
func TestShutdownThatFailsOwnsNothingMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		h := new(hosts)
		gone := make(chan bool)
		slowly := func(ctx context.Context, self shoal.Peer, set func([]shoal.Peer)) error {
			set([]shoal.Peer{{Addr: "a"}, {Addr: "b"}})
			select {
			case <-gone:
				set([]shoal.Peer{{Addr: "b"}})
			case <-ctx.Done():
			}
			<-ctx.Done()
			time.Sleep(2 * time.Second) // as memberlist and etcd take to leave
			return nil
		}
		var caches []*shoal.Cache
		var groups []*shoal.Group[string]
		for _, name := range []string{"a", "b"} {
			c := newPeer(t, h, shoal.Options{Self: name, Discovery: slowly}, name)
			caches = append(caches, c)
			groups = append(groups, shoal.NewGroup(c, "things", s.get, nil))
		}
		ready(t, caches[0])
		ready(t, caches[1])
		time.Sleep(5 * time.Minute)
		var key string
		for k := 0; ; k++ { // one that a owns
			key = fmt.Sprint("key ", k)
			s.set(key, "old")
			n := caches[0].Stats().Groups[0].Loads
			if v, err := groups[1].Get(t.Context(), key); v != "old" || err != nil {
				t.Fatal(v, err)
			}
			if caches[0].Stats().Groups[0].Loads > n {
				break
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if caches[0].Shutdown(ctx) == nil {
			t.Error("it did not wait for Discovery")
		}
		s.set(key, "new")
		gone <- true
		time.Sleep(time.Minute)
		err := groups[1].Set(t.Context(), key, "new")
		v, _ := groups[0].Get(t.Context(), key)
		if err == nil && v != "new" {
			t.Errorf("b's write was acknowledged, a serves %q", v)
		}
		s.set(key, "newer")
		err = groups[0].Set(t.Context(), key, "newer")
		v, _ = groups[1].Get(t.Context(), key)
		if err == nil && v != "newer" {
			t.Errorf("a's write was acknowledged, b serves %q", v)
		}
	})
}
