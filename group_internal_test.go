package shoal

import (
	"context"
	"math"
	"testing"

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
		return g.group.settle(f, 0, loaded{data: []byte("value")})
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
