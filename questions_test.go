package shoal_test

import (
	"bytes"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/shoalpb"
)

func valueReply(v *shoalpb.Value) *shoalpb.Reply {
	return &shoalpb.Reply{Answer: &shoalpb.Reply_Value{Value: v}}
}

func itemsReply(items ...*shoalpb.Item) *shoalpb.Reply {
	return &shoalpb.Reply{Answer: &shoalpb.Reply_Items{Items: &shoalpb.Items{Items: items}}}
}

func writtenReply(results ...*shoalpb.Result) *shoalpb.Reply {
	return &shoalpb.Reply{Answer: &shoalpb.Reply_Written{Written: &shoalpb.Written{Results: results}}}
}

func TestLeaseIsBelievedForMaxLeaseAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		im := newImpostor(t)
		im.answers(says(200, mediaType, delimited(t, valueReply(&shoalpb.Value{Value: []byte("old"), Lease: 1<<63 - 1, Age: -1 << 63, Ttl: 1<<63 - 1}))))
		im.group.Get(t.Context(), im.key)
		im.answers(says(200, mediaType, delimited(t, valueReply(&shoalpb.Value{Value: []byte("new"), Age: 1<<63 - 1}))))
		if v, err := im.group.Get(t.Context(), im.key); v != "old" || err != nil {
			t.Errorf("%q, %v", v, err)
		}
		time.Sleep(5 * time.Second)
		if v, err := im.group.Get(t.Context(), im.key); v != "new" || err != nil {
			t.Errorf("%q, %v", v, err)
		}
	})
}

// What was not asked for is not taken for an answer, and the keys are loaded here.
func TestBadAnswersToManyKeysAreNone(t *testing.T) {
	value := func(index uint32) *shoalpb.Item {
		return &shoalpb.Item{Index: index, Answer: &shoalpb.Item_Value{Value: &shoalpb.Value{Value: []byte("theirs")}}}
	}
	for name, answer := range map[string][]byte{
		"nothing":               nil,
		"no items":              delimited(t, itemsReply()),
		"a value":               delimited(t, valueReply(&shoalpb.Value{Value: []byte("theirs")})),
		"a key too many":        delimited(t, itemsReply(value(1))),
		"a key far away":        delimited(t, itemsReply(value(1<<32-1))),
		"an item without value": delimited(t, itemsReply(&shoalpb.Item{})),
		"the same":              delimited(t, &shoalpb.Reply{Answer: &shoalpb.Reply_Same{Same: &shoalpb.Same{}}}),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				im := newImpostor(t)
				im.answers(says(200, mediaType, answer))
				values, err := im.group.GetMany(t.Context(), []string{im.key})
				if values[im.key] != strings.ToUpper(im.key) || err != nil {
					t.Errorf("%v, %v", values, err)
				}
				if v, err := im.group.Get(t.Context(), im.key); name != "a value" && v != strings.ToUpper(im.key) || err != nil {
					t.Errorf("%v, %v", v, err)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		im := newImpostor(t)
		im.answers(says(200, mediaType, delimited(t, itemsReply(value(0)), itemsReply(value(0)))))
		if values, err := im.group.GetMany(t.Context(), []string{im.key}); values[im.key] != "theirs" || err != nil {
			t.Errorf("answered twice: %v, %v", values, err)
		}
	})
}

// What does not come apart either, when it has been asked for so, is not asked for again.
func TestAnswersThatNeverComeApartAreNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		im := newImpostor(t)
		var asked atomic.Int64
		apart := says(200, mediaType, delimited(t, itemsReply(&shoalpb.Item{Answer: &shoalpb.Item_Apart{Apart: &shoalpb.Apart{}}})))
		im.answers(func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			apart(w, r)
		})
		values, err := im.group.GetMany(t.Context(), []string{im.key})
		if values[im.key] != strings.ToUpper(im.key) || err != nil || asked.Load() > 2 {
			t.Errorf("%v, %v, asked %d times", values, err, asked.Load())
		}
	})
}

// A write that is not answered as one has failed, and its error names who did not.
func TestBadAnswersToAWriteAreErrors(t *testing.T) {
	for name, answer := range map[string][]byte{
		"nothing":               nil,
		"a value":               delimited(t, valueReply(&shoalpb.Value{})),
		"no results":            delimited(t, writtenReply()),
		"results too many":      delimited(t, writtenReply(&shoalpb.Result{}, &shoalpb.Result{})),
		"refused":               delimited(t, writtenReply(&shoalpb.Result{Refused: &shoalpb.Refused{Reason: shoalpb.Refused_OVERLOADED}})),
		"refused, as another's": delimited(t, writtenReply(&shoalpb.Result{Refused: &shoalpb.Refused{Reason: shoalpb.Refused_NOT_OWNER, OwnerId: []byte("b"), OwnerAddr: []byte("http://b")}})),
		"refused, as mine":      delimited(t, writtenReply(&shoalpb.Result{Refused: &shoalpb.Refused{Reason: shoalpb.Refused_NOT_OWNER, OwnerId: []byte("http://a"), OwnerAddr: []byte("http://a")}})),
		"refused altogether": delimited(t, &shoalpb.Reply{Answer: &shoalpb.Reply_Refused{Refused: &shoalpb.Refused{
			Reason: shoalpb.Refused_SHUT_DOWN,
		}}}),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				im := newImpostor(t)
				im.answers(says(200, mediaType, answer))
				err := im.group.Set(t.Context(), im.key, "value")
				if got := peersOf(err, "set"); !slices.Contains(got, "b") && !slices.Contains(got, "http://b") {
					t.Errorf("%v names %v", err, got)
				}
				must(t, im.cache.Shutdown(t.Context()))
			})
		})
	}
}

// net/http sends again what it takes for harmless, when a kept connection turns out to be dead. A write is not.
func TestOnlyQuestionsMayBeSentTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		im := newImpostor(t)
		var twice bool
		im.answers(func(w http.ResponseWriter, r *http.Request) {
			_, twice = r.Header["Idempotency-Key"]
			http.Error(w, "", 500)
		})
		if im.group.Get(t.Context(), im.key); !twice {
			t.Error("a question may not be sent twice")
		}
		c := shoal.NewGroup[int](im.cache, "counters", nil, nil)
		for _, write := range []func(){
			func() { im.group.Set(t.Context(), im.key, "value") },
			func() { shoal.Add(t.Context(), c, im.key, 1) },
		} {
			time.Sleep(time.Minute) // until it may be asked again
			var asked atomic.Int64
			im.answers(func(w http.ResponseWriter, r *http.Request) {
				if _, twice := r.Header["Idempotency-Key"]; asked.Add(1) == 1 && twice { // drops may
					t.Error("a write may be sent twice")
				}
				http.Error(w, "", 500)
			})
			write()
		}
		im.cache.Shutdown(t.Context())
	})
}

// Holders without end, who name each other, are not told without end.
func TestHoldersThatAreNamedAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		im := newImpostor(t)
		var asked atomic.Int64
		holders := []*shoalpb.Holder{
			{Id: []byte("c"), Addr: []byte("http://b"), Remaining: 1<<63 - 1}, {Id: []byte("d"), Addr: []byte("http://b"), Remaining: -1 << 63},
			{Id: []byte("http://a"), Addr: []byte("http://a")}, {Id: []byte("e"), Addr: []byte("\x00")},
		}
		im.answers(func(w http.ResponseWriter, r *http.Request) {
			if asked.Add(1) == 1 {
				says(200, mediaType, delimited(t, writtenReply(&shoalpb.Result{Holders: holders})))(w, r)
				return
			}
			says(200, mediaType, delimited(t, &shoalpb.Reply{Answer: &shoalpb.Reply_Dropped{
				Dropped: &shoalpb.Dropped{Keys: []*shoalpb.Holders{{Holders: holders}}},
			}}))(w, r)
		})
		start := time.Now()
		must(t, im.group.Set(t.Context(), im.key, "value"))
		if n := asked.Load(); n > 20 || time.Since(start) > 11*time.Second {
			t.Errorf("%d messages, %v", n, time.Since(start))
		}
	})
}

// A generation that cannot be surpassed is none.
func TestGenerationBeyondAllIsNotTaken(t *testing.T) {
	c, g := alone(t, nil, upper)
	for _, number := range []uint64{1<<64 - 1, 1 << 48, 1 << 47} {
		req := fetchRequest("g", "key")
		req.Generation = &shoalpb.Generation{Number: number, By: 1}
		post(t, c, marshal(t, req))
		must(t, g.Purge(t.Context()))
	}
	_, reply := post(t, c, marshal(t, fetchRequest("g", "key")))
	if n := reply.GetGeneration().GetNumber(); n != 1<<47+1 {
		t.Errorf("generation %x", n)
	}
	if s := g.Stats(); s.Emptied != 4 {
		t.Errorf("emptied %d times", s.Emptied)
	}
}

func TestClockCenturiesAheadIsNotFollowed(t *testing.T) {
	c, g := alone(t, nil, upper)
	req := fetchRequest("g", "key")
	req.Sender.Clock = 1 << 60
	post(t, c, marshal(t, req))
	must(t, g.Set(t.Context(), "key", "value"))
	_, reply := post(t, c, marshal(t, fetchRequest("g", "key")))
	if got := reply.GetSender().GetClock(); got > uint64(time.Now().UnixNano())>>16+1000 {
		t.Errorf("the clock is %x", got)
	}
	if v, err := g.Get(t.Context(), "key"); v != "value" || err != nil || errors.Is(err, shoal.ErrNotFound) {
		t.Errorf("%q, %v", v, err)
	}
}

// Word that something is being loaded, again and again, is no answer to what needs no load.
func TestLoadingIsNoAnswerToAGreeting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		loading := delimited(t, &shoalpb.Reply{Answer: &shoalpb.Reply_Loading{Loading: &shoalpb.Loading{Longest: 1}}})
		h := new(hosts)
		h.set("b", says(200, mediaType, bytes.Repeat(loading, 1_000_000)))
		h.slowly.Store(int64(10 * time.Millisecond))
		c := newPeer(t, h, shoal.Options{Self: "a", Discovery: shoal.Static("a", "b")}, "a")
		start := time.Now()
		ready(t, c)
		if d := time.Since(start); d > time.Minute {
			t.Errorf("Ready after %v", d)
		}
	})
}

// Where everybody is ahead, whatever is done, a purge says so and ends.
func TestPurgeBelowTheLastGenerationEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet[string](t, 2, nil, nil, nil)
		for i := range 2 {
			req := fetchRequest("things", "key")
			req.Generation = &shoalpb.Generation{Number: 1<<48 - 1, By: 3}
			post(t, f.Cache(i), marshal(t, req))
		}
		if err := f.groups[0].Purge(t.Context()); err == nil {
			t.Error("nil, though the other has not purged")
		}
	})
}

// An answer that was made before another message may come after it. Then it says nothing of the sender's view any more.
func TestViewOfALateMessageIsNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, upper, nil)
		synctest.Wait() // until they have greeted each other
		agrees := func() bool { return f.Cache(0).Stats().Peers[0].Agrees }
		_, reply := post(t, f.Cache(1), marshal(t, fetchRequest("things", "key")))
		late := fetchRequest("things", "key")
		late.Sender = reply.GetSender()
		if late.Sender.GetViews() == 0 || !agrees() {
			t.Fatalf("%v, agrees: %v", late.Sender, agrees())
		}
		late.Sender.View++
		late.Sender.Views--
		if post(t, f.Cache(0), marshal(t, late)); !agrees() {
			t.Error("an earlier view was taken for the present one")
		}
		late.Sender.Views += 2
		if post(t, f.Cache(0), marshal(t, late)); agrees() {
			t.Error("a later view was not taken")
		}
	})
}
