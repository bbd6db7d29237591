package lru_test

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/shoalcache/shoal/lru"
)

// order is what c holds, from the most to the least recently used.
func order[K comparable, V any](c *lru.Cache[K, V]) (keys []K) {
	for key := range c.All() {
		keys = append(keys, key)
	}
	return keys
}

func wantOrder(t *testing.T, c *lru.Cache[string, int], keys ...string) {
	t.Helper()
	if got := order(c); !slices.Equal(got, keys) {
		t.Errorf("holds %q, want %q", got, keys)
	}
}

func TestZeroValueIsAnEmptyCache(t *testing.T) {
	var c lru.Cache[string, int]
	if v, ok := c.Get("a"); v != 0 || ok {
		t.Errorf("Get: %d, %v", v, ok)
	}
	if v, ok := c.Peek("a"); v != 0 || ok {
		t.Errorf("Peek: %d, %v", v, ok)
	}
	if c.Remove("a") {
		t.Error("Remove: true")
	}
	if k, v, ok := c.Oldest(); k != "" || v != 0 || ok {
		t.Errorf("Oldest: %q, %d, %v", k, v, ok)
	}
	if k, v, ok := c.RemoveOldest(); k != "" || v != 0 || ok {
		t.Errorf("RemoveOldest: %q, %d, %v", k, v, ok)
	}
	if c.Len() != 0 || c.Cost() != 0 {
		t.Errorf("Len %d, Cost %d", c.Len(), c.Cost())
	}
	wantOrder(t, &c)
}

func TestNoMaxCostIsNoBound(t *testing.T) {
	for _, bound := range []int64{0, -1, math.MinInt64} {
		c := lru.Cache[int, int]{MaxCost: bound}
		for i := range 100 {
			if !c.Add(i, i, 1<<40) {
				t.Fatalf("MaxCost %d: Add of %d reports false", bound, i)
			}
		}
		if c.Len() != 100 {
			t.Errorf("MaxCost %d: %d entries", bound, c.Len())
		}
	}
}

func TestLeastRecentlyUsedGoesFirst(t *testing.T) {
	for _, c := range []struct {
		name string
		use  func(c *lru.Cache[string, int])
		want []string
	}{
		{"Untouched", func(c *lru.Cache[string, int]) {}, []string{"d", "c", "b"}},
		{"Get", func(c *lru.Cache[string, int]) { c.Get("a") }, []string{"d", "a", "c"}},
		{"GetOfTheNewest", func(c *lru.Cache[string, int]) { c.Get("c") }, []string{"d", "c", "b"}},
		{"GetOfTheMiddle", func(c *lru.Cache[string, int]) { c.Get("b") }, []string{"d", "b", "c"}},
		{"GetOfNothing", func(c *lru.Cache[string, int]) { c.Get("x") }, []string{"d", "c", "b"}},
		{"Peek", func(c *lru.Cache[string, int]) { c.Peek("a") }, []string{"d", "c", "b"}},
		{"Add", func(c *lru.Cache[string, int]) { c.Add("a", 9, 1) }, []string{"d", "a", "c"}},
		{"All", func(c *lru.Cache[string, int]) { order(c) }, []string{"d", "c", "b"}},
		{"Remove", func(c *lru.Cache[string, int]) { c.Remove("b") }, []string{"d", "c", "a"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := lru.Cache[string, int]{MaxCost: 3}
			for i, key := range []string{"a", "b", "c"} {
				l.Add(key, i, 1)
			}
			c.use(&l)
			l.Add("d", 3, 1)
			wantOrder(t, &l, c.want...)
		})
	}
}

func TestReplacedValueIsTheNewOneAtItsOwnCost(t *testing.T) {
	c := lru.Cache[string, int]{MaxCost: 100}
	for i, cost := range []int64{10, 90, 1, 0, 100, 30} {
		if !c.Add("a", i, cost) {
			t.Errorf("Add at cost %d reports false", cost)
		}
		if v, ok := c.Peek("a"); v != i || !ok || c.Cost() != cost || c.Len() != 1 {
			t.Errorf("after Add of %d at cost %d: %d, %v, cost %d, %d entries", i, cost, v, ok, c.Cost(), c.Len())
		}
	}
	if c.Remove("a"); c.Cost() != 0 {
		t.Errorf("empty, and costs %d", c.Cost())
	}
}

func TestReplacementThatGrowsEvictsOthersOnly(t *testing.T) {
	c := lru.Cache[string, int]{MaxCost: 10}
	for _, key := range []string{"a", "b", "c", "d"} {
		c.Add(key, 0, 2)
	}
	c.Add("a", 1, 7)
	wantOrder(t, &c, "a", "d")
}

func TestOversizedValueEvictsOnlyItsOwnForerunner(t *testing.T) {
	c := lru.Cache[string, int]{MaxCost: 10, OnEvicted: func(key string, _ int) { t.Errorf("%q is evicted", key) }}
	for _, key := range []string{"a", "b", "c"} {
		c.Add(key, 1, 3)
	}
	if c.Add("x", 2, 11) || c.Add("b", 2, math.MaxInt64) {
		t.Error("Add reports true")
	}
	wantOrder(t, &c, "c", "a")
	if c.Cost() != 6 {
		t.Errorf("cost %d, want 6", c.Cost())
	}
}

func TestValueOfExactlyTheBoundIsKeptAlone(t *testing.T) {
	c := lru.Cache[string, int]{MaxCost: 10}
	c.Add("a", 1, 1)
	if !c.Add("b", 2, 10) {
		t.Error("Add reports false")
	}
	wantOrder(t, &c, "b")
}

func TestNegativeCostIsNone(t *testing.T) {
	c := lru.Cache[string, int]{MaxCost: 10}
	c.Add("a", 1, -5)
	c.Add("b", 2, math.MinInt64)
	c.Add("c", 3, 10)
	wantOrder(t, &c, "c", "b", "a")
	if c.Cost() != 10 {
		t.Errorf("cost %d, want 10", c.Cost())
	}
}

func TestCostsOverFourGibibytesCount(t *testing.T) {
	const gib = 1 << 30
	c := lru.Cache[int, int]{MaxCost: 100 * gib}
	for i := range 30 {
		c.Add(i, i, 5*gib)
	}
	if c.Len() != 20 || c.Cost() != 100*gib {
		t.Errorf("%d entries at %d GiB, want 20 at 100", c.Len(), c.Cost()/gib)
	}
}

func TestBoundHoldsForTheLargestCosts(t *testing.T) {
	c := lru.Cache[string, int]{MaxCost: math.MaxInt64}
	c.Add("a", 1, math.MaxInt64-1)
	c.Add("b", 2, math.MaxInt64-1)
	wantOrder(t, &c, "b")
	if c.Cost() != math.MaxInt64-1 {
		t.Errorf("cost %d", c.Cost())
	}
}

func TestLowerBoundIsKeptFromTheNextAdd(t *testing.T) {
	c := lru.Cache[string, int]{MaxCost: 10}
	for _, key := range []string{"a", "b", "c", "d"} {
		c.Add(key, 0, 2)
	}
	c.MaxCost = 3
	wantOrder(t, &c, "d", "c", "b", "a")
	c.Add("e", 0, 1)
	wantOrder(t, &c, "e", "d")
}

func TestRemoveOldestEmptiesTheCacheAndStops(t *testing.T) {
	var c lru.Cache[string, int]
	for i, key := range []string{"a", "b", "c"} {
		c.Add(key, i, 1)
	}
	c.Get("a")
	for _, want := range []struct {
		key   string
		value int
		ok    bool
	}{{"b", 1, true}, {"c", 2, true}, {"a", 0, true}, {"", 0, false}, {"", 0, false}} {
		if key, value, ok := c.RemoveOldest(); key != want.key || value != want.value || ok != want.ok {
			t.Errorf("got %q, %d, %v, want %v", key, value, ok, want)
		}
	}
	if c.Len() != 0 || c.Cost() != 0 {
		t.Errorf("%d entries at cost %d are left", c.Len(), c.Cost())
	}
	c.Add("d", 4, 1)
	wantOrder(t, &c, "d")
}

func TestOldestIsWhatRemoveOldestDropsAndStays(t *testing.T) {
	var c lru.Cache[string, int]
	for i, key := range []string{"a", "b", "c"} {
		c.Add(key, i, 1)
	}
	c.Get("a")
	for range 2 {
		if key, value, ok := c.Oldest(); key != "b" || value != 1 || !ok {
			t.Errorf("got %q, %d, %v", key, value, ok)
		}
	}
	wantOrder(t, &c, "a", "c", "b")
}

// The map is made anew when it has become much too large.
func TestFewOfManyEntriesStayWhereTheyWere(t *testing.T) {
	var c lru.Cache[int, int]
	const n = 5000
	for i := range n {
		c.Add(i, -i, 1)
	}
	for left := n; left > 0; left-- {
		if left%500 == 0 || left < 10 {
			i := n - 1
			for key, value := range c.All() {
				if v, ok := c.Peek(key); key != i || value != -i || v != value || !ok {
					t.Fatalf("with %d left: %d is %d, and %d, %v; want %d", left, key, value, v, ok, i)
				}
				i--
			}
		}
		if key, _, _ := c.RemoveOldest(); key != n-left || c.Len() != left-1 || c.Cost() != int64(left-1) {
			t.Fatalf("with %d left: %d goes, %d stay at cost %d", left, key, c.Len(), c.Cost())
		}
	}
}

func TestOnEvictedSeesWhatMadeRoomAfterItHasGone(t *testing.T) {
	var evicted []string
	c := lru.Cache[string, int]{MaxCost: 4}
	c.OnEvicted = func(key string, value int) {
		if _, ok := c.Peek(key); ok {
			t.Errorf("%q is still there", key)
		}
		evicted = append(evicted, fmt.Sprint(key, value))
	}
	for i, key := range []string{"a", "b", "c", "d"} {
		c.Add(key, i, 1)
	}
	c.Remove("b")     // not to make room
	c.Add("c", 9, 1)  // nor this
	c.Add("x", 0, 99) // nor this
	if evicted != nil {
		t.Errorf("before there is need of room: %q", evicted)
	}
	c.Add("e", 4, 3)
	c.RemoveOldest()
	if want := []string{"a0", "d3", "c9"}; !slices.Equal(evicted, want) {
		t.Errorf("got %q, want %q", evicted, want)
	}
}

func TestOnEvictedThatPanicsLeavesTheCacheWhole(t *testing.T) {
	c := lru.Cache[string, int]{MaxCost: 2, OnEvicted: func(string, int) { panic("ouch") }}
	c.Add("a", 1, 1)
	c.Add("b", 2, 1)
	func() {
		defer func() { recover() }()
		c.Add("c", 3, 1)
	}()
	wantOrder(t, &c, "b")
	if c.Cost() != 1 {
		t.Errorf("cost %d, want 1", c.Cost())
	}
}

func TestAllGoesFromTheMostToTheLeastRecentlyUsedAndMayStop(t *testing.T) {
	var c lru.Cache[string, int]
	for i, key := range []string{"a", "b", "c", "d"} {
		c.Add(key, i, 1)
	}
	c.Get("b")
	var got []string
	for key, value := range c.All() {
		got = append(got, fmt.Sprint(key, value))
		if len(got) == 3 {
			break
		}
	}
	if want := []string{"b1", "d3", "c2"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestGetDoesNotAllocate(t *testing.T) {
	var c lru.Cache[string, []byte]
	keys := []string{"a", "b", "c"}
	for _, key := range keys {
		c.Add(key, nil, 1)
	}
	i := 0
	if n := testing.AllocsPerRun(100, func() {
		c.Get(keys[i%len(keys)])
		c.Peek(keys[0])
		i++
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// A model is a Cache that is plainly right: a map, and the order of use as a slice.
type model struct {
	max    int64
	values map[int8]int
	costs  map[int8]int64
	used   []int8 // the most recently used last
}

func (m *model) touch(key int8) {
	m.used = append(slices.DeleteFunc(m.used, func(k int8) bool { return k == key }), key)
}

func (m *model) remove(key int8) bool {
	_, ok := m.values[key]
	delete(m.values, key)
	delete(m.costs, key)
	m.used = slices.DeleteFunc(m.used, func(k int8) bool { return k == key })
	return ok
}

func (m *model) cost() (sum int64) {
	for c := range maps.Values(m.costs) {
		sum += c
	}
	return sum
}

func (m *model) add(key int8, value int, cost int64) (evicted []int8, ok bool) {
	m.remove(key)
	if cost = max(cost, 0); m.max > 0 && cost > m.max {
		return nil, false
	}
	m.values[key], m.costs[key] = value, cost
	m.touch(key)
	for m.max > 0 && m.cost() > m.max {
		evicted = append(evicted, m.used[0])
		m.remove(m.used[0])
	}
	return evicted, true
}

// obey reads orders, three bytes each, and does to a Cache and to the model what they say.
func obey(t *testing.T, bound int64, orders []byte) {
	var evicted []int8
	c := lru.Cache[int8, int]{MaxCost: bound, OnEvicted: func(key int8, _ int) { evicted = append(evicted, key) }}
	m := model{max: bound, values: map[int8]int{}, costs: map[int8]int64{}}
	for i := 0; i+2 < len(orders); i += 3 {
		evicted = nil
		key, cost := int8(orders[i+1]%16), int64(int8(orders[i+2]))
		var did string
		switch orders[i] % 8 {
		case 0, 1, 2:
			did = fmt.Sprintf("Add(%d, %d, %d)", key, i, cost)
			want, ok := m.add(key, i, cost)
			if got := c.Add(key, i, cost); got != ok || !slices.Equal(evicted, want) {
				t.Errorf("order %d: %s is %v and evicts %v; want %v, %v", i/3, did, got, evicted, ok, want)
			}
		case 3, 4:
			did = fmt.Sprintf("Get(%d)", key)
			want, ok := m.values[key]
			if ok {
				m.touch(key)
			}
			if v, got := c.Get(key); v != want || got != ok {
				t.Errorf("order %d: %s is %d, %v; want %d, %v", i/3, did, v, got, want, ok)
			}
		case 5:
			did = fmt.Sprintf("Peek(%d)", key)
			want, ok := m.values[key]
			if v, got := c.Peek(key); v != want || got != ok {
				t.Errorf("order %d: %s is %d, %v; want %d, %v", i/3, did, v, got, want, ok)
			}
		case 6:
			did = fmt.Sprintf("Remove(%d)", key)
			if got, want := c.Remove(key), m.remove(key); got != want {
				t.Errorf("order %d: %s is %v, want %v", i/3, did, got, want)
			}
		case 7:
			did = "RemoveOldest"
			if k, _, ok := c.Oldest(); ok != (len(m.used) > 0) || ok && k != m.used[0] {
				t.Errorf("order %d: Oldest is %d, %v; in order of use there are %d", i/3, k, ok, m.used)
			}
			k, _, ok := c.RemoveOldest()
			if ok != (len(m.used) > 0) || ok && k != m.used[0] {
				t.Errorf("order %d: %s is %d, %v; in order of use there are %d", i/3, did, k, ok, m.used)
			}
			m.remove(k)
		}
		want := slices.Clone(m.used)
		slices.Reverse(want)
		if got := order(&c); !slices.Equal(got, want) {
			t.Fatalf("after order %d, %s: %d, want %d", i/3, did, got, want)
		}
		if !maps.Equal(maps.Collect(c.All()), m.values) {
			t.Fatalf("after order %d, %s: values %v, want %v", i/3, did, maps.Collect(c.All()), m.values)
		}
		if c.Len() != len(m.values) || c.Cost() != m.cost() || bound > 0 && c.Cost() > bound {
			t.Fatalf("after order %d, %s: %d entries at cost %d, want %d at %d, at most %d", i/3, did, c.Len(), c.Cost(), len(m.values), m.cost(), bound)
		}
	}
}

func TestCacheIsWhatTheModelIs(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, bound := range []int64{0, 1, 100, 300, 1000} {
		orders := make([]byte, 3*3000)
		for i := range orders {
			orders[i] = byte(rnd.Uint32())
		}
		obey(t, bound, orders)
	}
}

func FuzzCache(f *testing.F) {
	f.Add(int64(0), []byte{0, 1, 5, 3, 1, 0, 7, 0, 0, 7, 0, 0})
	f.Add(int64(10), []byte{0, 1, 5, 0, 2, 5, 3, 1, 0, 0, 3, 5, 0, 3, 11, 6, 2, 0})
	f.Add(int64(100), []byte{0, 1, 100, 0, 1, 0, 0, 2, 255, 0, 1, 101, 7, 0, 0})
	f.Fuzz(func(t *testing.T, bound int64, orders []byte) {
		obey(t, bound, orders[:min(len(orders), 3000)])
	})
}

func BenchmarkGet(b *testing.B) {
	const n = 1 << 16
	var c lru.Cache[int, int]
	for i := range n {
		c.Add(i, i, 1)
	}
	i := 0
	for b.Loop() {
		c.Get(i * 7919 % n)
		i++
	}
}

func BenchmarkAddThatEvicts(b *testing.B) {
	const n = 1 << 16
	c := lru.Cache[int, int]{MaxCost: n}
	for i := range n {
		c.Add(i, i, 1)
	}
	i := n
	b.ReportAllocs()
	for b.Loop() {
		c.Add(i, i, 1)
		i++
	}
}

func BenchmarkAddThatReplaces(b *testing.B) {
	const n = 1 << 16
	c := lru.Cache[int, int]{MaxCost: n}
	for i := range n {
		c.Add(i, i, 1)
	}
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		c.Add(i*7919%n, i, 1)
		i++
	}
}
