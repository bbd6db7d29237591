package shoal

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// overEngines runs a test of what every engine must do.
func overEngines(t *testing.T, maxBytes int64, test func(t *testing.T, s *store)) {
	for name, make := range map[string]func(*clock, func() int64) engine{
		"packed": func(c *clock, lent func() int64) engine { return newPackedEngine(c, maxBytes, lent) },
		"lru":    func(c *clock, lent func() int64) engine { return newLRUEngine(c, maxBytes, lent) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &clock{epoch: time.Now()}
				test(t, &store{engine: make(c, func() int64 { return 0 }), aging: aging{clock: c}})
			})
		})
	}
}

// set puts value under key for ttl, or for ever if that is 0.
func (s *store) set(key, value string, ttl time.Duration) entry {
	e := entry{born: s.clock.now()}
	if ttl != 0 {
		e.fresh = s.clock.now() + ttl
		e.ends = e.fresh
	}
	e, cost := s.put(key, []byte(value), e)
	s.shrink(cost)
	return e
}

func (s *store) has(key, value string) bool {
	e, ok := s.peek(key)
	return ok && e.value.String() == value
}

func TestEngineKeepsWhatIsPutUntilItEnds(t *testing.T) {
	overEngines(t, 1<<20, func(t *testing.T, s *store) {
		s.set("for ever", "a", 0)
		s.set("a second", "b", time.Second)
		s.set("longer", "c", time.Second)
		s.set("longer", "d", time.Minute)
		s.set("", "", 0)
		time.Sleep(time.Second - 1)
		for key, value := range map[string]string{"for ever": "a", "a second": "b", "longer": "d", "": ""} {
			if v, _, ok := s.get(key); !ok || v.String() != value || !s.has(key, value) {
				t.Errorf("%q: %q, %v", key, v, ok)
			}
		}
		time.Sleep(time.Nanosecond)
		if _, _, ok := s.get("a second"); ok {
			t.Error("it has ended, and is there")
		}
		if _, ok := s.peek("a second"); ok || !s.has("longer", "d") {
			t.Error("what has ended is there, or what has not is gone")
		}
		if _, _, ok := s.get("never put"); ok {
			t.Error("what was never put is there")
		}
	})
}

func TestEngineTellsWhatWasPut(t *testing.T) {
	overEngines(t, 1<<20, func(t *testing.T, s *store) {
		time.Sleep(time.Hour)
		put, _ := s.put("key", []byte("value"), entry{born: time.Minute, fresh: 2 * time.Hour, ends: 3 * time.Hour})
		got, ok := s.peek("key")
		if !ok || got.value.String() != "value" || got.born != time.Minute || got.fresh != 2*time.Hour || got.ends != 3*time.Hour || got.version == 0 || got.version != put.version {
			t.Errorf("%+v", got)
		}
		if again := s.set("key", "value", 0); again.version <= put.version {
			t.Errorf("version %x after %x", again.version, put.version)
		}
	})
}

func TestEngineReplacesOnlyTheVersionThatIsThere(t *testing.T) {
	overEngines(t, 1<<20, func(t *testing.T, s *store) {
		replace := func(version uint64, value string) bool {
			_, _, ok := s.replace("key", version, []byte(value), entry{})
			return ok
		}
		if replace(7, "no") || !replace(0, "first") || replace(0, "no") || !s.has("key", "first") {
			t.Error("of nothing")
		}
		e, _ := s.peek("key")
		if replace(e.version+1, "no") || !replace(e.version, "second") || replace(e.version, "no") || !s.has("key", "second") {
			t.Error("of a version")
		}
		s.set("key", "ends", time.Second)
		time.Sleep(time.Second)
		if !replace(0, "third") || !s.has("key", "third") {
			t.Error("of what has ended")
		}
	})
}

func TestEngineRemovesUpToAVersion(t *testing.T) {
	overEngines(t, 1<<20, func(t *testing.T, s *store) {
		e := s.set("key", "value", 0)
		if s.remove("key", e.version-1); !s.has("key", "value") {
			t.Error("a newer version is gone")
		}
		if s.remove("key", e.version); s.has("key", "value") {
			t.Error("it is still there")
		}
		s.set("key", "value", 0)
		if s.remove("key", 0); s.has("key", "value") || s.numbers().entries != 0 {
			t.Error("it is still there")
		}
		s.remove("key", 0)
	})
}

func TestEngineForgetsWhatIsReplacedByTooLargeAValue(t *testing.T) {
	overEngines(t, 1<<20, func(t *testing.T, s *store) {
		s.set("key", "value", 0)
		s.set("key", strings.Repeat("v", 1<<17), 0)
		if _, ok := s.peek("key"); ok || s.oversized.Load() != 1 {
			t.Errorf("%v, %d oversized", ok, s.oversized.Load())
		}
		if s.set("key", strings.Repeat("v", 1<<16), 0); !s.has("key", strings.Repeat("v", 1<<16)) {
			t.Error("a sixteenth of the budget is not kept")
		}
	})
}

func TestEngineKeepsItsBudget(t *testing.T) {
	overEngines(t, 1<<20, func(t *testing.T, s *store) {
		for n := range 20_000 {
			s.set(fmt.Sprint("key ", n), strings.Repeat("v", n%1000), time.Duration(n%3)*time.Minute)
			if used := s.inUse(); used > 1<<20 {
				t.Fatalf("%d bytes after %d sets", used, n)
			}
		}
		before := s.numbers().entries
		if before < 800 {
			t.Errorf("only %d entries", before)
		}
		s.setMax(1 << 18)
		if n := s.numbers().entries; s.inUse() > 1<<18 || n == 0 || n > before/3 {
			t.Errorf("%d entries of %d in %d bytes", n, before, s.inUse())
		}
		s.setMax(1 << 20)
		for n := range 2000 {
			s.set(fmt.Sprint("key ", n), strings.Repeat("v", n%1000), 0)
		}
		if n := s.numbers().entries; n < before*3/4 {
			t.Errorf("%d entries in a budget that took %d", n, before)
		}
		s.clear()
		if n := s.numbers(); n.entries != 0 || n.bytes > 1<<13 {
			t.Errorf("%+v", n)
		}
		s.setMax(0)
		if s.set("key", "", 0); s.numbers().entries != 0 {
			t.Error("a budget of nothing keeps something")
		}
	})
}

func TestEngineRetains(t *testing.T) {
	overEngines(t, 4<<20, func(t *testing.T, s *store) {
		var want []string
		for n := range 1000 {
			key := fmt.Sprint("key ", n)
			s.set(key, "value", 0)
			if n%10 == 7 {
				want = append(want, key)
			}
		}
		s.retain(func(key string) bool { return slices.Contains(want, key) })
		if n := s.numbers().entries; n != 100 {
			t.Errorf("%d entries", n)
		}
		for _, key := range want {
			if !s.has(key, "value") {
				t.Errorf("%q is gone", key)
			}
		}
	})
}

// What is past its TTL is served while it is being replaced, and while that fails; and asked for once.
func TestStoreServesWhatIsPastItsTTL(t *testing.T) {
	overEngines(t, 1<<20, func(t *testing.T, s *store) {
		s.stale, s.loadTimeout = time.Minute, 30*time.Second
		s.put("key", []byte("value"), entry{fresh: time.Minute, ends: time.Hour})
		time.Sleep(time.Minute)
		for n := range 3 {
			if v, due, ok := s.get("key"); !ok || v.String() != "value" || due != (n == 0) {
				t.Errorf("%d: %q, due %v, %v", n, v, due, ok)
			}
		}
		time.Sleep(30 * time.Second)
		if _, due, _ := s.get("key"); !due {
			t.Error("the load has come to nothing, and no other is due")
		}
		time.Sleep(30 * time.Second)
		if _, _, ok := s.get("key"); ok {
			t.Error("it is served, though none has failed")
		}
		if e, ok := s.failed("key"); !ok || e.value.String() != "value" {
			t.Errorf("%+v, %v", e, ok)
		}
		if _, due, ok := s.get("key"); !ok || due {
			t.Errorf("after a failure: due %v, %v", due, ok)
		}
		time.Sleep(time.Hour)
		if _, ok := s.failed("key"); ok {
			t.Error("it has ended, and is there")
		}
	})
}

func TestLRUEngineKeepsErrors(t *testing.T) {
	c := &clock{epoch: time.Now()}
	s := &store{engine: newLRUEngine(c, 1<<20, nil), aging: aging{clock: c}}
	bad := errors.New("bad")
	s.put("key", nil, entry{err: bad})
	if e, _, ok := s.use("key", 1, false); !ok || e.err != bad || s.hits.load() != 0 {
		t.Errorf("%+v, %v, %d hits", e, ok, s.hits.load())
	}
}

// The heap that a group takes is what MaxBytes says, with values of any size, and whenever they end.
func TestHeapMatchesMaxBytes(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("measures the heap")
	}
	const budget = 16 << 20
	for name, ttl := range map[string]func(n int) time.Duration{
		"no TTL":            func(int) time.Duration { return 0 },
		"one TTL":           func(int) time.Duration { return time.Hour },
		"mixed TTLs":        func(n int) time.Duration { return time.Millisecond << (n % 36) },
		"TTL for 290 years": func(int) time.Duration { return math.MaxInt64 },
	} {
		for _, size := range []int{0, 10, 100, 1 << 10, 64 << 10, 1 << 20} {
			if name != "no TTL" && size != 0 && size != 100 {
				continue
			}
			heap := func() int64 {
				var m runtime.MemStats
				runtime.GC()
				runtime.GC()
				runtime.ReadMemStats(&m)
				return int64(m.HeapAlloc)
			}
			before := heap()
			c := &clock{epoch: time.Now()}
			s := &store{engine: newPackedEngine(c, budget, func() int64 { return 0 }), aging: aging{clock: c}}
			for n := range 4*budget/(size+60) + 1 {
				e := entry{fresh: ttl(n), ends: ttl(n)}
				_, cost := s.put(fmt.Sprintf("key %012d", n), make([]byte, size), e)
				s.shrink(cost)
			}
			ratio := float64(heap()-before) / budget
			entries := s.numbers().entries
			t.Logf("%s, %d bytes: %d entries take %.3f of MaxBytes", name, size, entries, ratio)
			least := int64(budget * 7 / 10 / (size + 116))
			if name == "mixed TTLs" {
				least /= 2 // some end meanwhile
			}
			if ratio > 1.08 || entries < least {
				t.Errorf("%s, %d bytes: %d entries, of %d at least, take %.3f of MaxBytes", name, size, entries, least, ratio)
			}
			runtime.KeepAlive(s)
		}
	}
}
