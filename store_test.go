package shoal

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
)

// A testStore is a store with an lruEngine as a group uses it.
type testStore struct {
	*lruEngine
	store *store
	group *group
}

func newTestStore(maxBytes int64) testStore {
	c := new(Cache)
	c.clock.epoch = time.Now()
	e := newLRUEngine(&c.clock, maxBytes, nil)
	return testStore{e, &store{engine: e, aging: aging{clock: &c.clock}}, &group{cache: c}}
}

func (s testStore) set(key string, value []byte, ttl time.Duration) entry {
	e, cost := s.store.put(key, value, s.group.aged(entry{born: s.clock.now()}, ttl))
	s.shrink(cost)
	return e
}

func (s testStore) get(key string) (entry, bool) {
	e, _, ok := s.store.use(key, 1, false)
	return e, ok
}

func (s testStore) remaining(e entry) time.Duration { return e.remaining(s.clock.now()) }

// count adds to st what the store knows.
func (s testStore) count(st *GroupStats) {
	n := s.numbers()
	st.Entries, st.Bytes, st.MaxBytes = n.entries, n.bytes, n.maxBytes
	st.Hits, st.RequestHits, st.StaleHits = s.store.hits.load(), s.store.served.load(), s.store.staleHits.load()
	st.Evicted, st.Expired, st.Oversized = n.evicted, n.expired, s.store.oversized.Load()
}

// audit recounts everything that s keeps count of.
func audit(t testing.TB, s testStore) {
	t.Helper()
	var used, entries, evicted, expired int64
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		expiring, cost := 0, int64(0)
		for key, it := range sh.entries.All() {
			if key != it.key || s.shardOf(key) != sh {
				t.Errorf("shard %d has %q under %q", i, it.key, key)
			}
			if least := int64(len(key)+it.value.Len()) + entryOverhead; it.cost < least {
				t.Errorf("%q costs %d, takes %d", key, it.cost, least)
			}
			if it.ends != 0 {
				expiring++
				if it.at < 0 || it.at >= len(sh.expiring) || sh.expiring[it.at] != it {
					t.Errorf("%q is not at %d of those that expire", key, it.at)
				}
			} else if it.at != -1 {
				t.Errorf("%q does not expire, and is at %d of those that do", key, it.at)
			}
			cost += it.cost
			entries++
		}
		if len(sh.expiring) != expiring {
			t.Errorf("shard %d has %d entries that expire, and %d in the heap", i, expiring, len(sh.expiring))
		}
		soonest := time.Duration(math.MaxInt64)
		for j, it := range sh.expiring {
			soonest = min(soonest, it.ends)
			if parent := sh.expiring[max(j-1, 0)/2]; parent.ends > it.ends {
				t.Errorf("in the heap of shard %d, %v is above %v", i, parent.ends, it.ends)
			}
		}
		if got := time.Duration(sh.soonest.Load()); got != soonest {
			t.Errorf("shard %d: soonest is %v, want %v", i, got, soonest)
		}
		oldest := int64(none)
		if _, it, ok := sh.entries.Oldest(); ok {
			oldest = it.tick
		}
		if got := sh.oldest.Load(); got != oldest {
			t.Errorf("shard %d: oldest is %d, want %d", i, got, oldest)
		}
		if sh.entries.Cost() != cost {
			t.Errorf("shard %d costs %d, want %d", i, sh.entries.Cost(), cost)
		}
		used += cost
		evicted, expired = evicted+sh.evicted, expired+sh.expired
		sh.mu.Unlock()
	}
	if got := s.used.Load(); got != used {
		t.Errorf("%d bytes are used, want %d", got, used)
	}
	if limit := s.max.Load(); used > limit {
		t.Errorf("%d bytes are used of %d", used, limit)
	}
	var st GroupStats
	s.count(&st)
	want := GroupStats{Entries: entries, Bytes: used, MaxBytes: s.max.Load(), Hits: st.Hits, Evicted: evicted, Expired: expired, Oversized: st.Oversized}
	if st != want {
		t.Errorf("counts %+v\nwant %+v", st, want)
	}
}

func storeStats(s testStore) (st GroupStats) {
	s.count(&st)
	return st
}

func has(s testStore, key string) bool {
	_, ok := s.peek(key)
	return ok
}

// filled is a store with n entries of size bytes, key0, key1 and so on, set in this order.
func filled(maxBytes int64, n, size int, ttl time.Duration) testStore {
	s, value := newTestStore(maxBytes), make([]byte, size) // one value will do for all
	for i := range n {
		s.set(fmt.Sprint("key", i), value, ttl)
	}
	return s
}

func TestEntryIsThereUntilItsTTLHasPassed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, ttl := range []time.Duration{1, time.Millisecond, time.Hour} {
			s := newTestStore(1 << 20)
			time.Sleep(time.Second)
			s.set("key", []byte("value"), ttl)
			time.Sleep(ttl - 1)
			if e, ok := s.get("key"); !ok || e.value.String() != "value" {
				t.Errorf("ttl %v: gone too soon", ttl)
			}
			time.Sleep(time.Nanosecond)
			if has(s, "key") {
				t.Errorf("ttl %v: peek finds it when it has passed", ttl)
			}
			if _, ok := s.get("key"); ok {
				t.Errorf("ttl %v: get finds it when it has passed", ttl)
			}
			if st := storeStats(s); st.Entries != 0 || st.Bytes != 0 || st.Expired != 1 || st.Evicted != 0 || st.Hits != 1 {
				t.Errorf("ttl %v: %+v", ttl, st)
			}
			audit(t, s)
		}
	})
}

func TestEntryWithoutTTLStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestStore(1 << 20)
		e := s.set("key", []byte("value"), 0)
		time.Sleep(100 * 365 * 24 * time.Hour)
		if _, ok := s.get("key"); !ok || s.remaining(e) != 0 {
			t.Errorf("%v, remaining %v", ok, s.remaining(e))
		}
	})
}

func TestOverwritingChangesTheExpiry(t *testing.T) {
	for _, c := range []struct {
		old, new time.Duration
		alive    time.Duration // how long after it is overwritten
	}{
		{time.Hour, time.Minute, time.Minute - 1},
		{time.Minute, time.Hour, time.Hour - 1},
		{time.Minute, 0, 24 * time.Hour},
		{0, time.Minute, time.Minute - 1},
		{time.Minute, time.Minute, time.Minute - 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newTestStore(1 << 20)
			s.set("key", []byte("old"), c.old)
			time.Sleep(30 * time.Second)
			s.set("key", []byte("new"), c.new)
			audit(t, s)
			time.Sleep(c.alive)
			if e, ok := s.get("key"); !ok || e.value.String() != "new" {
				t.Errorf("from %v to %v: gone too soon", c.old, c.new)
			}
			time.Sleep(time.Nanosecond)
			if _, ok := s.get("key"); ok != (c.new == 0) {
				t.Errorf("from %v to %v: there is %v", c.old, c.new, ok)
			}
			audit(t, s)
		})
	}
}

func TestRemainingIsADurationAndNeverForEverByAccident(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestStore(1 << 20)
		e := s.set("key", nil, 10*time.Second)
		for _, want := range []time.Duration{10 * time.Second, 6 * time.Second, 2 * time.Second, 1, 1} {
			if got := s.remaining(e); got != want {
				t.Errorf("after %v: %v, want %v", s.clock.now(), got, want)
			}
			time.Sleep(4 * time.Second)
		}
	})
}

func TestLongestTTLDoesNotOverflow(t *testing.T) {
	for _, ttl := range []time.Duration{math.MaxInt64, math.MaxInt64 - 1, math.MaxInt64 - time.Hour, math.MaxInt64 - 3*time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			s := newTestStore(1 << 20)
			s.set("first", nil, ttl)
			time.Sleep(2 * time.Hour)
			e := s.set("key", nil, ttl)
			audit(t, s)
			time.Sleep(time.Hour)
			if !has(s, "first") || !has(s, "key") {
				t.Errorf("ttl %v: gone after an hour", ttl)
			}
			if left := s.remaining(e); left < 0 || left > ttl {
				t.Errorf("ttl %v: remaining %v", ttl, left)
			}
		})
	}
}

func TestExpiredEntriesMakeRoomBeforeLiveOnes(t *testing.T) {
	for _, maxBytes := range []int64{2 << 20, 16 << 20} { // one shard, four shards
		synctest.Test(t, func(t *testing.T) {
			s := newTestStore(maxBytes)
			n := int(maxBytes / (16<<10 + 512)) // as many as there is room for
			for i := range n / 2 {
				s.set(fmt.Sprint("live", i), make([]byte, 16<<10), 0)
				s.set(fmt.Sprint("dead", i), make([]byte, 16<<10), time.Minute)
			}
			for i := range n / 2 {
				s.get(fmt.Sprint("dead", i)) // the most recently used
			}
			time.Sleep(time.Minute)
			for i := range n / 2 {
				s.set(fmt.Sprint("new", i), make([]byte, 16<<10), 0)
			}
			for i := range n / 2 {
				if !has(s, fmt.Sprint("live", i)) {
					t.Fatalf("%d shards: live entry %d of %d has made room", len(s.shards), i, n/2)
				}
			}
			if st := storeStats(s); st.Evicted != 0 || st.Expired == 0 {
				t.Errorf("%d shards: %+v", len(s.shards), st)
			}
			audit(t, s)
		})
	}
}

// Entries that were loaded together expire together. The first who sets a value then must not pay for all of them.
func TestRoomIsMadeForOneEntryAndNotByDroppingAllThatHasExpired(t *testing.T) {
	for _, maxBytes := range []int64{2 << 20, 16 << 20} {
		synctest.Test(t, func(t *testing.T) {
			n := int(maxBytes / (1<<10 + entryOverhead + 16))
			s := filled(maxBytes, n, 1<<10, time.Minute)
			time.Sleep(time.Minute)
			value := make([]byte, 1<<10)
			for i := range 1000 {
				before := storeStats(s).Expired
				s.set(fmt.Sprint("new", i), value, 0)
				if dropped := storeStats(s).Expired - before; dropped > 16 {
					t.Errorf("%d shards: a set drops %d of %d entries", len(s.shards), dropped, n)
				}
			}
			if st := storeStats(s); st.Expired == 0 || st.Evicted != 0 {
				t.Errorf("%d shards: %+v", len(s.shards), st)
			}
			audit(t, s)
		})
	}
}

func TestPeekLeavesNoTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := filled(64<<10, 8, 7<<10, 0)
		if e, ok := s.peek("key0"); !ok || e.value.Len() != 7<<10 {
			t.Errorf("%v, %d bytes", ok, e.value.Len())
		}
		s.set("key8", make([]byte, 7<<10), time.Minute)
		s.set("key9", make([]byte, 7<<10), time.Minute)
		if has(s, "key0") {
			t.Error("a peek is a use")
		}
		time.Sleep(time.Minute)
		if has(s, "key8") {
			t.Error("it sees what has expired")
		}
		if st := storeStats(s); st.Hits != 0 || st.Expired != 0 {
			t.Errorf("%+v", st)
		}
	})
}

func TestGetIsAHitAndAUse(t *testing.T) {
	s := filled(64<<10, 8, 7<<10, 0)
	s.get("key0")
	s.get("nothing")
	s.set("key8", make([]byte, 7<<10), 0)
	s.set("key9", make([]byte, 7<<10), 0)
	if !has(s, "key0") || has(s, "key1") {
		t.Error("what was not used stays")
	}
	if st := storeStats(s); st.Hits != 1 {
		t.Errorf("%d hits", st.Hits)
	}
}

func TestOversizedValueOnlyDropsTheOlderValueOfItsKey(t *testing.T) {
	for _, maxBytes := range []int64{1 << 20, 16 << 20} {
		s := filled(maxBytes, 100, 1000, 0)
		for _, size := range []int64{maxBytes / 8, maxBytes, 2 * maxBytes} {
			s.set("key7", []byte("old"), 0)
			before := storeStats(s)
			e := s.set("key7", make([]byte, size), time.Minute)
			if e.value.Len() != int(size) || s.remaining(e) == 0 {
				t.Errorf("the entry returned has %d bytes of %d", e.value.Len(), size)
			}
			if has(s, "key7") {
				t.Errorf("a value of %d bytes of %d: one is still there", size, maxBytes)
			}
			st := storeStats(s)
			if st.Entries != 99 || st.Evicted != 0 || st.Oversized != before.Oversized+1 {
				t.Errorf("a value of %d bytes of %d: %+v", size, maxBytes, st)
			}
			audit(t, s)
		}
	}
}

func TestValueOfAnEighthOfTheBudgetIsKept(t *testing.T) {
	s := newTestStore(1 << 20)
	size := 1<<17 - entryOverhead - cap(append([]byte(nil), "key"...))
	s.set("key", make([]byte, size), 0)
	if !has(s, "key") {
		t.Error("it is not")
	}
	s.set("key", make([]byte, size+1), 0)
	if has(s, "key") {
		t.Error("one byte more is, too")
	}
}

func TestSpareCapacityIsPaidFor(t *testing.T) {
	s := newTestStore(1 << 20)
	s.set("key", make([]byte, 10, 50<<10), 0)
	if st := storeStats(s); st.Bytes < 50<<10 {
		t.Errorf("%d bytes", st.Bytes)
	}
}

// The budget is one for all shards: a shard that holds nothing must not be denied its first entry.
func TestFreshEntryIsNotTheOneThatMakesRoom(t *testing.T) {
	for _, c := range []struct {
		maxBytes int64
		size     int
	}{
		{64 << 10, 7 << 10},
		{16 << 20, 1 << 20}, {16 << 20, 2<<20 - 1<<10},
		{64 << 20, 1 << 20}, {64 << 20, 6 << 20},
	} {
		s, value := newTestStore(c.maxBytes), make([]byte, c.size)
		for i := range 200 {
			key := fmt.Sprint("key", i)
			if s.set(key, value, 0); !has(s, key) {
				t.Errorf("%d shards, values of %d bytes: value %d is gone when set returns", len(s.shards), c.size, i)
				break
			}
		}
		audit(t, s)
	}
}

// left counts those of key from, … key to-1 that s holds.
func left(s testStore, from, to int) (n int) {
	for i := from; i < to; i++ {
		if has(s, fmt.Sprint("key", i)) {
			n++
		}
	}
	return n
}

func TestLoweredBudgetTakesWhatWasUsedLeastRecentlyOfAll(t *testing.T) {
	s := filled(16<<20, 10_000, 1200, 0)
	s.setMax(8 << 20)
	audit(t, s)
	if old, new := left(s, 0, 2500), left(s, 7500, 10_000); old > 250 || new < 2250 {
		t.Errorf("of 2500 each, %d of the oldest are left and %d of the newest", old, new)
	}
}

func TestUseOfOneShardCountsAgainstTheOthers(t *testing.T) {
	s := filled(16<<20, 10_000, 1200, 0)
	hot := func(do func(key string)) {
		for i := range 10_000 {
			if key := fmt.Sprint("key", i); s.shardOf(key) == &s.shards[0] {
				do(key)
			}
		}
	}
	n, left := 0, 0
	hot(func(key string) { s.get(key); n++ })
	s.setMax(8 << 20)
	hot(func(key string) {
		if has(s, key) {
			left++
		}
	})
	if left < n*9/10 {
		t.Errorf("of %d entries that were used last, %d are left", n, left)
	}
}

func TestEveryKeyCanBeHeldAfterTheBudgetWasLowered(t *testing.T) {
	s := filled(16<<20, 10_000, 1200, 0)
	s.setMax(8 << 20)
	for i := range 5000 {
		s.set(fmt.Sprint("new", i), make([]byte, 1200), 0)
	}
	n := 0
	for i := 4000; i < 5000; i++ {
		if has(s, fmt.Sprint("new", i)) {
			n++
		}
	}
	if n < 900 {
		t.Errorf("of the last 1000, %d are there", n)
	}
}

func TestLargeValuesTakeWhatWasUsedLeastRecentlyOfAll(t *testing.T) {
	s := filled(64<<20, 10_000, 6000, 0)
	for i := range 1000 {
		s.get(fmt.Sprint("key", i)) // so these are hot
	}
	large := make([]byte, 8<<20-1<<10)
	for i := range 3 {
		s.set(fmt.Sprint("large", i), large, 0)
	}
	audit(t, s)
	if n := left(s, 0, 1000); n < 900 {
		t.Errorf("of 1000 hot entries %d are left", n)
	}
}

func TestRaisedBudgetIsUsed(t *testing.T) {
	s := filled(1<<20, 2000, 1000, 0)
	before := storeStats(s).Entries
	s.setMax(2 << 20)
	for i := range 2000 {
		s.set(fmt.Sprint("new", i), make([]byte, 1000), 0)
	}
	if st := storeStats(s); st.Entries < 2*before-10 || st.MaxBytes != 2<<20 {
		t.Errorf("from %d entries to %+v", before, st)
	}
	s.set("large", make([]byte, 200<<10), 0)
	if !has(s, "large") {
		t.Error("a value of less than an eighth is not kept")
	}
	audit(t, s)
}

func TestBudgetOfNothingKeepsNothing(t *testing.T) {
	for _, n := range []int64{0, -1, math.MinInt64} {
		s := filled(16<<20, 100, 1000, time.Hour)
		s.setMax(n)
		if st := storeStats(s); st.Entries != 0 || st.Bytes != 0 || st.MaxBytes != 0 {
			t.Errorf("budget %d: %+v", n, st)
		}
		if s.set("key", nil, 0); has(s, "key") {
			t.Errorf("budget %d: keeps an entry", n)
		}
		s.setMax(16 << 20)
		if s.set("key", nil, 0); !has(s, "key") {
			t.Errorf("budget %d, then raised: keeps nothing", n)
		}
		audit(t, s)
	}
}

func TestBudgetOverFourGibibytes(t *testing.T) {
	const gib = 1 << 30
	s := newTestStore(100 * gib)
	s.used.Add(99 * gib) // as if there were entries
	for i := range 100 {
		s.set(fmt.Sprint("key", i), make([]byte, 1000), 0)
	}
	if st := storeStats(s); st.Entries != 100 || st.Evicted != 0 || st.Bytes < 99*gib || st.MaxBytes != 100*gib {
		t.Errorf("%+v", st)
	}
	s.used.Add(gib)
	s.set("key100", make([]byte, 1000), 0)
	if st := storeStats(s); st.Evicted == 0 {
		t.Errorf("over the budget: %+v", st)
	}
}

func TestKeyDoesNotPinWhatItIsAPartOf(t *testing.T) {
	s := newTestStore(1 << 20)
	page := strings.Repeat("page", 1000)
	key := page[10:20]
	for range 2 { // also when it is overwritten
		s.set(key, []byte("value"), time.Hour)
		sh := s.shardOf(key)
		for got, it := range sh.entries.All() {
			if got != key || it.key != key {
				t.Errorf("key %q, %q", got, it.key)
			}
			if unsafe.StringData(got) == unsafe.StringData(key) || unsafe.StringData(it.key) == unsafe.StringData(key) {
				t.Error("the caller's memory is the key's")
			}
		}
	}
}

func TestValueIsNotCopied(t *testing.T) {
	s := newTestStore(1 << 20)
	value := []byte("value")
	s.set("key", value, 0)
	if e, _ := s.get("key"); unsafe.StringData(e.value.s) != &value[0] {
		t.Error("it is")
	}
}

func TestRetainDropsExactlyTheRest(t *testing.T) {
	s := filled(16<<20, 1000, 100, time.Hour)
	s.retain(func(key string) bool {
		if !has(s, key) { // a callback may use the store
			t.Errorf("%q is not there", key)
		}
		return strings.HasSuffix(key, "7")
	})
	for i := range 1000 {
		if got := has(s, fmt.Sprint("key", i)); got != (i%10 == 7) {
			t.Errorf("key%d: %v", i, got)
		}
	}
	if st := storeStats(s); st.Entries != 100 || st.Evicted != 0 || st.Expired != 0 {
		t.Errorf("%+v", st)
	}
	audit(t, s)
}

func TestBooksAreRightAfterMostEntriesHaveGone(t *testing.T) {
	for _, maxBytes := range []int64{2 << 20, 16 << 20} {
		s := filled(maxBytes, int(maxBytes/(entryOverhead+192)), 100, time.Hour)
		for _, keep := range []string{"7", "77", "777"} {
			s.retain(func(key string) bool { return strings.HasSuffix(key, keep) })
			audit(t, s)
		}
		if !has(s, "key777") || !has(s, "key2777") {
			t.Errorf("of %d bytes: what was kept is gone", maxBytes)
		}
	}
}

func TestGetDoesNotAllocate(t *testing.T) {
	for _, ttl := range []time.Duration{0, time.Hour} {
		s := filled(16<<20, 10, 100, ttl)
		if n := testing.AllocsPerRun(100, func() {
			s.get("key3")
			s.peek("key4")
			s.get("nothing")
		}); n > 0 {
			t.Errorf("ttl %v: %v allocations", ttl, n)
		}
	}
}

func TestBudgetIsKeptUnderConcurrentSets(t *testing.T) {
	const writers, size = 8, 100 << 10
	for _, maxBytes := range []int64{1 << 20, 16 << 20} {
		s := newTestStore(maxBytes)
		var done atomic.Bool
		var watcher, group sync.WaitGroup
		watcher.Go(func() {
			for !done.Load() {
				// A set is over the budget until it has made room for itself.
				if st := storeStats(s); st.Bytes > 16<<20+writers*(size+1000) || st.Bytes < 0 {
					t.Errorf("%d bytes", st.Bytes)
				}
				runtime.Gosched()
			}
		})
		value := make([]byte, size)
		for w := range writers {
			group.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(w), 0))
				for i := range 500 {
					key := fmt.Sprint("key", rnd.IntN(1000))
					switch rnd.IntN(8) {
					case 0:
						s.get(key)
					case 1:
						s.retain(func(k string) bool { return k != key })
					case 2:
						s.setMax(maxBytes/2 + rnd.Int64N(maxBytes/2))
					default:
						s.set(key, value[:rnd.IntN(size)], time.Duration(i%3)*time.Millisecond)
					}
				}
			})
		}
		group.Wait()
		done.Store(true)
		watcher.Wait()
		audit(t, s)
	}
}

// summed is a value that says what it must be: key, size and sum are in it.
func summed(key uint32, size int) []byte {
	b := make([]byte, max(size, 8))
	binary.BigEndian.PutUint32(b[4:], key)
	for i := 8; i < len(b); i++ {
		b[i] = byte(i * int(key))
	}
	binary.BigEndian.PutUint32(b, crc32.ChecksumIEEE(b[4:]))
	return b
}

func intact(v ByteView, key uint32) bool {
	b := v.ByteSlice()
	return len(b) >= 8 && binary.BigEndian.Uint32(b) == crc32.ChecksumIEEE(b[4:]) && binary.BigEndian.Uint32(b[4:]) == key
}

func TestViewsHeldAcrossEvictionsKeepTheirBytes(t *testing.T) {
	s := newTestStore(256 << 10)
	var readers sync.WaitGroup
	for r := range 4 {
		readers.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(r), 0))
			type held struct {
				view ByteView
				key  uint32
			}
			var views []held
			for i := range 3000 {
				key := uint32(rnd.IntN(300))
				name := fmt.Sprint(key)
				if e, ok := s.get(name); ok {
					views = append(views, held{e.value, key})
				} else {
					s.set(name, summed(key, rnd.IntN(8<<10)), time.Duration(rnd.IntN(3))*time.Millisecond)
				}
				if i%100 == 0 {
					runtime.GC()
				}
				if len(views) > 100 {
					for _, v := range views {
						if !intact(v.view, v.key) {
							t.Errorf("the value of %d has changed", v.key)
						}
					}
					views = views[50:]
				}
			}
		})
	}
	readers.Wait()
	if st := storeStats(s); st.Evicted == 0 {
		t.Errorf("nothing was evicted: %+v", st)
	}
	audit(t, s)
}

// A storeModel is a store of one shard that is plainly right. Entries that have expired are none of its own: when
// the store drops them is its own business, as long as they make room before others do.
type storeModel struct {
	max, hits, evicted, oversized int64
	entries                       map[string]modelEntry
	used                          []string // the most recently used last
}

type modelEntry struct {
	id      byte
	cost    int64
	expires time.Time // zero: never
}

func (e modelEntry) dead() bool { return !e.expires.IsZero() && !e.expires.After(time.Now()) }

func (m *storeModel) remove(key string) {
	delete(m.entries, key)
	m.used = slices.DeleteFunc(m.used, func(k string) bool { return k == key })
}

// bury removes what has expired.
func (m *storeModel) bury() {
	for key, e := range m.entries {
		if e.dead() {
			m.remove(key)
		}
	}
}

func (m *storeModel) bytes() (sum int64) {
	for e := range maps.Values(m.entries) {
		sum += e.cost
	}
	return sum
}

func (m *storeModel) shrink() {
	for m.bury(); m.bytes() > m.max; m.evicted++ {
		m.remove(m.used[0])
	}
}

func (m *storeModel) set(key string, id byte, size int, ttl time.Duration) {
	m.remove(key)
	e := modelEntry{id: id, cost: int64(cap(append([]byte(nil), key...))+size) + entryOverhead}
	if ttl > 0 {
		e.expires = time.Now().Add(ttl)
	}
	if e.cost > m.max/8 {
		m.oversized++
		return
	}
	m.entries[key] = e
	m.used = append(m.used, key)
	m.shrink()
}

func (m *storeModel) get(key string) (id byte, ok bool) {
	m.bury()
	e, ok := m.entries[key]
	if !ok {
		return 0, false
	}
	m.used = append(slices.DeleteFunc(m.used, func(k string) bool { return k == key }), key)
	m.hits++
	return e.id, true
}

// obeyStore reads orders, four bytes each, and does to stores what they say: to one of one shard, which must do exactly
// what the model does, and to one of four, which must never tell anything but the last value.
func obeyStore(t *testing.T, orders []byte) {
	synctest.Test(t, func(t *testing.T) {
		const maxBytes = 24 << 10
		one, four := newTestStore(maxBytes), newTestStore(16<<20)
		four.setMax(maxBytes)
		if len(one.shards) != 1 || len(four.shards) != 4 {
			t.Fatalf("%d and %d shards", len(one.shards), len(four.shards))
		}
		m := storeModel{max: maxBytes, entries: map[string]modelEntry{}}
		last := map[string]modelEntry{} // what was set, kept or not
		for i := 0; i+3 < len(orders); i += 4 {
			op, x, y := orders[i]%16, int(orders[i+2]), int(orders[i+3])
			key := strings.Repeat("k", int(orders[i+1]%64))
			id := byte(i / 4)
			did := fmt.Sprintf("order %d, %d(%d, %d, %d)", i/4, op, len(key), x, y)
			switch op {
			case 0, 1, 2, 3, 4, 5:
				size, ttl := x*14, time.Duration(y%8)*time.Second
				m.set(key, id, size, ttl)
				last[key] = modelEntry{id: id}
				if ttl > 0 {
					last[key] = modelEntry{id: id, expires: time.Now().Add(ttl)}
				}
				for _, s := range []testStore{one, four} {
					if e := s.set(key, bytes.Repeat([]byte{id}, size), ttl); e.value.Len() != size || s.remaining(e) != ttl {
						t.Errorf("%s: set returns %d bytes, remaining %v", did, e.value.Len(), s.remaining(e))
					}
				}
			case 6, 7, 8, 9, 10:
				id, want := m.get(key)
				e, ok := one.get(key)
				if ok != want || ok && !e.value.Equal(NewByteView(bytes.Repeat([]byte{id}, e.value.Len()))) {
					t.Errorf("%s: get finds %v, want %v", did, ok, want)
				}
				if e, ok := four.get(key); ok {
					w, there := last[key]
					if !there || w.dead() || !e.value.Equal(NewByteView(bytes.Repeat([]byte{w.id}, e.value.Len()))) {
						t.Errorf("%s: get of four shards finds what should not be there", did)
					}
				}
			case 11, 12:
				e, there := m.entries[key]
				if _, ok := one.peek(key); ok != (there && !e.dead()) {
					t.Errorf("%s: peek finds %v", did, ok)
				}
				four.peek(key)
			case 13:
				time.Sleep(time.Duration(x) * 20 * time.Millisecond)
			case 14:
				m.max = int64(x) * 192
				m.shrink()
				one.setMax(m.max)
				four.setMax(m.max)
			case 15:
				keep := func(key string) bool { return len(key)%8 != x%8 }
				for key := range maps.Clone(m.entries) {
					if !keep(key) {
						m.remove(key)
					}
				}
				maps.DeleteFunc(last, func(key string, _ modelEntry) bool { return !keep(key) })
				one.retain(keep)
				four.retain(keep)
			}
			audit(t, one)
			audit(t, four)
			m.bury()
			want := slices.Clone(m.used)
			slices.Reverse(want)
			var got []string
			for key, it := range one.shards[0].entries.All() {
				if it.ends == 0 || it.ends > one.clock.now() {
					got = append(got, key)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: holds %q\nwant %q", did, got, want)
			}
			if st := storeStats(one); st.MaxBytes != m.max || st.Hits != m.hits || st.Evicted != m.evicted || st.Oversized != m.oversized {
				t.Errorf("%s: counts %+v\nwant %+v", did, st, m)
			}
			if t.Failed() {
				return
			}
		}
	})
}

func TestStoreIsWhatTheModelIs(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 20 {
		orders := make([]byte, 4*300)
		for i := range orders {
			orders[i] = byte(rnd.Uint32())
		}
		obeyStore(t, orders)
	}
}

func FuzzStore(f *testing.F) {
	f.Add([]byte{0, 1, 10, 0, 6, 1, 0, 0})
	f.Add([]byte{0, 1, 10, 1, 13, 0, 100, 0, 6, 1, 0, 0})
	f.Add([]byte{0, 1, 200, 2, 0, 2, 200, 0, 0, 3, 200, 1, 14, 0, 40, 0, 13, 0, 250, 0, 0, 4, 100, 0, 15, 0, 2, 0})
	f.Add([]byte{0, 1, 10, 0, 0, 1, 255, 0, 6, 1, 0, 0, 14, 0, 0, 0})
	f.Fuzz(func(t *testing.T, orders []byte) {
		obeyStore(t, orders[:min(len(orders), 1200)])
	})
}

// heapAlloc is what live objects take.
func heapAlloc() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestMemoryMatchesMaxBytes(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector has a heap of its own")
	}
	const budget = 16 << 20
	sizes := func(sizes ...int) func(i int) int { return func(i int) int { return sizes[i%len(sizes)] } }
	none, hour := time.Duration(0), time.Hour
	// traffic sets values, each once, until so many budgets have gone by.
	traffic := func(s testStore, name string, budgets int64, size func(i int) int, ttl time.Duration) {
		key := append([]byte(name), ':')
		for i, sum := 0, int64(0); sum < budgets*budget; i++ {
			value := append([]byte(nil), make([]byte, size(i))...) // as codecs make them
			k := strconv.AppendInt(key, int64(i), 10)
			s.set(string(k), value, ttl)
			sum += int64(len(k)+cap(value)) + entryOverhead
		}
	}
	for _, c := range []struct {
		name string
		fill func(s testStore)
	}{
		{"10B", func(s testStore) { traffic(s, "user", 10, sizes(10), none) }},
		{"10B TTL", func(s testStore) { traffic(s, "user", 10, sizes(10), hour) }},
		{"100B", func(s testStore) { traffic(s, "user", 10, sizes(100), none) }},
		{"100B TTL", func(s testStore) { traffic(s, "user", 10, sizes(100), hour) }},
		{"1KiB", func(s testStore) { traffic(s, "user", 10, sizes(1<<10), none) }},
		{"1KiB TTL", func(s testStore) { traffic(s, "user", 10, sizes(1<<10), hour) }},
		{"64KiB", func(s testStore) { traffic(s, "user", 10, sizes(64<<10), none) }},
		{"64KiB TTL", func(s testStore) { traffic(s, "user", 10, sizes(64<<10), hour) }},
		{"mixed", func(s testStore) { traffic(s, "user", 10, sizes(10, 100, 10, 1<<10, 300, 64<<10, 40_000), none) }},
		{"mixed TTL", func(s testStore) { traffic(s, "user", 10, sizes(10, 100, 10, 1<<10, 300, 64<<10, 40_000), hour) }},
		{"10B then 64KiB", func(s testStore) {
			traffic(s, "user", 2, sizes(10), hour)
			traffic(s, "page", 2, sizes(64<<10), hour)
		}},
		{"10B then 600B", func(s testStore) {
			traffic(s, "user", 2, sizes(10), hour)
			traffic(s, "page", 2, sizes(600), hour)
		}},
		{"64KiB then 10B", func(s testStore) {
			traffic(s, "page", 2, sizes(64<<10), hour)
			traffic(s, "user", 2, sizes(10), hour)
		}},
		{"10B then a quarter of the budget", func(s testStore) {
			traffic(s, "user", 2, sizes(10), hour)
			s.setMax(budget / 4)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := heapAlloc()
			s := newTestStore(budget)
			c.fill(s)
			grown := heapAlloc() - before
			st := storeStats(s)
			if st.Bytes < st.MaxBytes*95/100 {
				t.Errorf("only %d bytes of %d are used", st.Bytes, st.MaxBytes)
			}
			ratio := float64(grown) / float64(st.MaxBytes)
			t.Logf("%d entries take %.3f of MaxBytes; overhead of each: %.0f", st.Entries, ratio, float64(grown-st.Bytes)/float64(st.Entries)+entryOverhead)
			if ratio < 0.75 && strconv.IntSize == 64 || ratio > 1.08 { // where pointers are half as long, so is the overhead
				t.Errorf("%d entries take %.3f of MaxBytes", st.Entries, ratio)
			}
			runtime.KeepAlive(s)
		})
	}
}

func BenchmarkStoreGet(b *testing.B) {
	for _, ttl := range []time.Duration{0, time.Hour} {
		b.Run(fmt.Sprint("ttl=", ttl), func(b *testing.B) {
			const n = 1 << 14
			s := filled(64<<20, n, 100, ttl)
			var keys [n]string
			for i := range keys {
				keys[i] = fmt.Sprint("key", i)
			}
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				s.get(keys[i*7919%n])
				i++
			}
		})
	}
}

func BenchmarkStoreGetParallel(b *testing.B) {
	const n = 1 << 14
	s := filled(64<<20, n, 100, 0)
	var keys [n]string
	for i := range keys {
		keys[i] = fmt.Sprint("key", i)
	}
	b.RunParallel(func(pb *testing.PB) {
		for i := rand.IntN(n); pb.Next(); i++ {
			s.get(keys[i*7919%n])
		}
	})
}

func BenchmarkStoreSetThatEvicts(b *testing.B) {
	for _, ttl := range []time.Duration{0, time.Hour} {
		b.Run(fmt.Sprint("ttl=", ttl), func(b *testing.B) {
			s := filled(64<<20, 1<<18, 100, ttl)
			value := make([]byte, 100)
			var key []byte
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				key = strconv.AppendInt(key[:0], int64(i), 10)
				s.set(NewByteView(key).s, value, ttl)
				i++
			}
		})
	}
}
