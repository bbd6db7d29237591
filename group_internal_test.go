package shoal

import (
	"context"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal/shoalpb"
	"github.com/shoalcache/shoal/singleflight"
)

// Between a caller's look at memory and the start of its load, another load may have ended. Loading and counting again
// would break the promise of one load; here every caller comes that late.
func TestLoadLooksAtMemoryAgain(t *testing.T) {
	cache, err := New(nil)
	if err != nil {
		t.Fatal(err)
	}
	g := NewGroup(cache, "g", func(context.Context, string) (string, error) { return "value", nil }, nil)
	for range 3 {
		if f, err := g.group.load(t.Context(), "key", want{}); f.value.String() != "value" || err != nil {
			t.Errorf("%q, %v", f.value, err)
		}
	}
	if s := g.Stats(); s.Loads != 1 {
		t.Errorf("%d loads", s.Loads)
	}
}

// moving is a map that does something when it is asked for the first time.
type moving struct {
	asked bool
	then  func()
}

func (m *moving) Owner(string) int {
	if !m.asked {
		m.asked = true
		m.then()
	}
	return 0
}

func (m *moving) Owners(key string, _ int) []int { return []int{m.Owner(key)} }

func TestNothingIsKeptOfAKeyThatIsLostAtThatMoment(t *testing.T) {
	cache, err := New(nil)
	if err != nil {
		t.Fatal(err)
	}
	g := NewGroup(cache, "g", func(context.Context, string) (string, error) { return "value", nil }, nil)
	mine, others := &peer{Peer: Peer{ID: "mine"}, incarnation: cache.peers.incarnation}, &peer{Peer: Peer{ID: "other"}}
	// While keep asks whose the key is, the view that it asks is swapped for one in which it is another's.
	place := &moving{then: func() { cache.peers.swap([]*peer{others}, false) }}
	_, err = g.group.loads.Do(t.Context(), "key", 0, func(_ context.Context, f *singleflight.Flight[string, found]) (found, error) {
		cache.peers.view.Store(&view{members: []*peer{mine}, self: 0, owners: place})
		return g.group.settle(f, 0, loaded{data: []byte("value")}), nil
	})
	if s := g.Stats(); err != nil || s.Entries != 0 {
		t.Errorf("%v, %d entries of another's", err, s.Entries)
	}
}

// A count of bytes that has drifted must not keep anybody looking for entries that are not there.
func TestEvictionEndsWhenNothingIsLeft(t *testing.T) {
	s := newTestStore(1 << 20)
	s.set("key", []byte("value"), 0)
	s.used.Add(1 << 40)
	s.shrink(math.MaxInt64)
	if _, ok := s.peek("key"); ok {
		t.Error("the budget is exceeded, and an entry is still there")
	}
}

func TestNothingIsWrittenToAKeyThatIsLostAtThatMoment(t *testing.T) {
	cache, err := New(nil)
	if err != nil {
		t.Fatal(err)
	}
	g := NewGroup[string](cache, "g", nil, nil)
	mine, others := &peer{Peer: Peer{ID: "mine"}, incarnation: cache.peers.incarnation}, &peer{Peer: Peer{ID: "other"}}
	place := &moving{then: func() { cache.peers.swap([]*peer{others}, false) }}
	cache.peers.view.Store(&view{members: []*peer{mine}, self: 0, owners: place})
	done := g.group.accept(t.Context(), shoalpb.Write_SET, change{key: "key", value: []byte("value")}, nil)
	if _, refused := done.err.(*notOwner); !refused || g.Stats().Entries != 0 {
		t.Errorf("%v, %d entries of another's", done.err, g.Stats().Entries)
	}
}

// What a peer misses while it is told of what it had missed before is not taken for told.
func TestHintOfALaterWriteOutlivesTheDeliveryOfAnEarlierOne(t *testing.T) {
	cache, err := New(nil)
	if err != nil {
		t.Fatal(err)
	}
	cache.end() // nothing is delivered but here
	g, p := NewGroup[string](cache, "g", nil, nil).group, &peer{Peer: Peer{ID: "p"}}
	h := &cache.hints
	h.keep(g, p, "key", 1)
	h.keep(g, p, "other", 1)
	h.keepPurge(g, p)
	of := h.peers["p"]
	sent := owed{map[string]uint64{"key": 1, "other": 1}, 0, 1}
	h.keep(g, p, "key", 2)
	h.keepPurge(g, p)
	h.told(of, g, sent)
	if left := of.owed[g]; left == nil || len(left.keys) != 1 || left.keys["key"] != 2 || left.purges != 2 || of.keys != 1 {
		t.Errorf("left: %+v, %d keys", left, of.keys)
	}
	h.told(of, g, owed{map[string]uint64{"key": 2}, 0, 2})
	if len(of.owed) > 0 || of.keys != 0 || of.size != 0 {
		t.Errorf("left: %+v, %d keys, %d bytes", of.owed, of.keys, of.size)
	}
}

// Clocks may differ by any time: who has heard of one that is ahead goes on as that does.
func TestVersionsAreByTheFastestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ahead, behind := &clock{epoch: time.Now()}, &clock{epoch: time.Now()}
		ahead.follow(ownTimeOfDay() + uint64(time.Hour)>>16)
		heard := ahead.timeOfDay()
		time.Sleep(time.Second) // on its way
		behind.follow(heard)
		for range 10 {
			before := ahead.version()
			time.Sleep(2 * time.Second)
			after := behind.version()
			if after <= before {
				t.Errorf("version %d after %d", after, before)
			}
			time.Sleep(time.Second)
			if next := ahead.version(); next <= after {
				t.Errorf("version %d after %d", next, after)
			}
		}
		behind.saw(1 << 47)
		behind.follow(1 << 47)
		if v := behind.version(); v>>16 >= 1<<47 {
			t.Errorf("a time centuries away was followed: %d", v)
		}
	})
}
