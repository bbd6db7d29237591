package packed

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func always(m Meta) func(Meta, bool) (Meta, bool) {
	return func(Meta, bool) (Meta, bool) { return m, true }
}

func newTest(max int64) (*Cache, *atomic.Int64) {
	now := new(atomic.Int64)
	return New(max, now.Load, nil), now
}

// audit checks the books of c against what is there.
func audit(t *testing.T, c *Cache) {
	t.Helper()
	var used int64
	for i := range c.shards {
		sh := &c.shards[i]
		sh.mu.Lock()
		idx, table := sh.index.Load(), *sh.table.Load()
		mine := idx.bytes() + int64(len(table))*8 + int64(len(sh.ghosts.places))*4 + sh.endings.bytes
		var entries int64
		live := make(map[*chunk]int)
		passed := make([]uint64, len(idx.buckets))
		for b := range idx.buckets {
			for j := range idx.buckets[b].slots {
				s := idx.buckets[b].slots[j].Load()
				if s == 0 {
					continue
				}
				entries++
				ch := sh.chunk(chunkOf(s))
				if ch == nil {
					t.Fatalf("shard %d: a slot names chunk %d, which is not there", i, chunkOf(s))
				}
				live[ch] += ch.size(offsetOf(s))
				h := c.hash(ch.key(offsetOf(s)))
				for p := h & idx.mask; p != uint64(b); p = (p + 1) & idx.mask {
					passed[p]++
				}
			}
		}
		for b := range idx.buckets {
			if got := idx.buckets[b].passed.Load(); got != passed[b] {
				t.Errorf("shard %d: bucket %d was passed %d times, and says %d", i, b, passed[b], got)
			}
		}
		chunks := 0
		for _, q := range []*queue{&sh.small, &sh.main} {
			var bytes int64
			var last *chunk
			before := chunks
			for ch := q.oldest; ch != nil; ch = ch.next {
				if ch.prev != last || ch.queue != q || sh.chunk(ch.id) != ch {
					t.Errorf("shard %d: chunk %d is not where it should be", i, ch.id)
				}
				if ch.live != live[ch] {
					t.Errorf("shard %d: chunk %d says that %d bytes live, %d do", i, ch.id, ch.live, live[ch])
				}
				last = ch
				bytes += ch.cost()
				chunks++
			}
			if q.last != last || q.bytes != bytes || q.chunks != chunks-before {
				t.Errorf("shard %d: a queue says %d bytes in %d chunks, and has %d in %d", i, q.bytes, q.chunks, bytes, chunks-before)
			}
			mine += bytes
		}
		if sh.used.Load() != mine || sh.entries != entries || sh.chunks != chunks {
			t.Errorf("shard %d: says %d bytes, %d entries, %d chunks, has %d, %d, %d", i, sh.used.Load(), sh.entries, sh.chunks, mine, entries, chunks)
		}
		used += mine
		sh.mu.Unlock()
	}
	if c.Used() != used {
		t.Errorf("says %d bytes, has %d", c.Used(), used)
	}
}

func TestAgainstAMap(t *testing.T) {
	seeds := uint64(30)
	if raceEnabled {
		seeds = 5
	}
	for seed := range seeds {
		againstAMap(t, seed, 20_000)
	}
}

func FuzzAgainstAMap(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(seed, uint16(1999))
	}
	f.Fuzz(func(t *testing.T, seed uint64, calls uint16) { againstAMap(t, seed, int(calls%2000)) })
}

// againstAMap makes calls drawn from seed. Whatever is done, what is returned is what was put last, and only what has room
// is there.
func againstAMap(t *testing.T, seed uint64, calls int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	max, roomy := int64(1)<<(8+rng.IntN(15)), rng.IntN(4) == 0
	if roomy {
		max = 1 << 30 // and what has not ended is there
	}
	c, now := newTest(max)
	type kept struct {
		id   byte
		size int
		m    Meta
	}
	model := make(map[string]kept)
	value := func(id byte, size int) []byte { return bytes.Repeat([]byte{id}, size) }
	keys := 1 + rng.IntN(2000)
	for n := range calls {
		key := fmt.Sprint("key ", rng.IntN(keys))
		switch rng.IntN(20) {
		case 0:
			got := c.Delete(key, func(m Meta) bool { return m == model[key].m })
			if _, held := c.Peek(key); held {
				t.Fatalf("seed %d: %q is there after Delete = %v", seed, key, got)
			}
			delete(model, key)
		case 1, 2, 3, 4, 5, 6:
			k := kept{byte(n), rng.IntN(1 << rng.IntN(12)), Meta{Version: uint64(n), Born: now.Load()}}
			if rng.IntN(2) == 0 {
				k.m.Fresh = now.Load() + rng.Int64N(1<<40) + 1
				k.m.Ends = k.m.Fresh + rng.Int64N(2)*rng.Int64N(1<<40)
			}
			c.Put(key, value(k.id, k.size), func(old Meta, held bool) (Meta, bool) {
				if was, ok := model[key]; held && (!ok || old != was.m) {
					t.Fatalf("seed %d: old %+v, want %+v", seed, old, was.m)
				}
				return k.m, true
			})
			c.Shrink(1 << 20)
			model[key] = k
		case 7:
			now.Add(rng.Int64N(1 << 36))
		default:
			e, ok := c.Get(key)
			want, known := model[key]
			if ok && (!known || e.Meta != want.m || !bytes.Equal(e.Value, value(want.id, want.size))) {
				t.Fatalf("seed %d: Get(%q) = %+v, want %+v, %v", seed, key, e.Meta, want.m, known)
			}
			ended := want.m.Ends != 0 && want.m.Ends <= now.Load()
			if ok && ended || !ok && roomy && known && !ended {
				t.Fatalf("seed %d: Get(%q) = %v of what has ended: %v", seed, key, ok, ended)
			}
		}
		if rng.IntN(500) == 0 || n == calls-1 {
			audit(t, c)
			if !roomy {
				max = int64(1) << (8 + rng.IntN(15))
				c.SetMax(max)
			} else if rng.IntN(4) == 0 {
				c.Clear()
				clear(model)
			}
		}
		if least := int64(512 * len(c.shards)); c.Used() > max+least+max/16 {
			t.Fatalf("seed %d: %d bytes of %d are used", seed, c.Used(), max)
		}
	}
	c.Clear()
	audit(t, c)
	if st := c.Stats(); st.Entries != 0 {
		t.Errorf("%+v", st)
	}
}

func TestOverhead(t *testing.T) {
	for _, n := range []int{100_000, 1_000_000} {
		if n > 100_000 && (testing.Short() || raceEnabled) {
			continue
		}
		heap := func() uint64 {
			var m runtime.MemStats
			runtime.GC()
			runtime.GC()
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		before := heap()
		c, _ := newTest(16 << 30)
		for i := range n {
			c.Put(fmt.Sprintf("key %012d", i), make([]byte, 100), always(Meta{Version: 1, Born: 1}))
			c.Shrink(1 << 20)
		}
		after := heap()
		begin := time.Now()
		runtime.GC()
		gc := time.Since(begin)
		each := float64(after-before) / float64(n)
		t.Logf("%d entries: %.1f bytes of overhead each, %.1f as counted; GC %v", n, each-116, float64(c.Used())/float64(n)-116, gc)
		if st := c.Stats(); st.Entries != int64(n) || !raceEnabled && each-116 > 56 {
			t.Errorf("%d entries, %.1f bytes of overhead each", st.Entries, each-116)
		}
		runtime.KeepAlive(c)
	}
}

func fill(c *Cache, from, to, size int, m Meta) {
	for i := from; i < to; i++ {
		c.Put(fmt.Sprint("key ", i), make([]byte, size), always(m))
		c.Shrink(1 << 20)
	}
}

// count returns how many of the keys in a range are there.
func count(c *Cache, from, to int) (n int) {
	for i := from; i < to; i++ {
		if _, ok := c.Peek(fmt.Sprint("key ", i)); ok {
			n++
		}
	}
	return n
}

func TestWhatHasEndedGoesFirst(t *testing.T) {
	c, now := newTest(2600 << 10)
	fill(c, 0, 5000, 100, Meta{Version: 1})
	fill(c, 5000, 15_000, 100, Meta{Version: 1, Fresh: 1 << 30, Ends: 1 << 30})
	before := count(c, 0, 5000)
	now.Add(1<<30 + 1<<27)
	if n := count(c, 5000, 15_000); n != 0 {
		t.Errorf("%d that have ended are there", n)
	}
	if _, ok := c.Get("key 14999"); ok {
		t.Error("what has ended is served")
	}
	fill(c, 15_000, 20_000, 100, Meta{Version: 1})
	if n := count(c, 0, 5000); n != before || before != 5000 {
		t.Errorf("%d of 5000 live ones were there, %d are", before, n)
	}
	if st := c.Stats(); st.Expired == 0 || st.Evicted != 0 {
		t.Errorf("%+v", st)
	}
	audit(t, c)
}

func TestOverwritingAndDeletingGiveRoomBack(t *testing.T) {
	c, _ := newTest(1 << 20)
	fill(c, 0, 1000, 500, Meta{Version: 1})
	for n := range 20_000 { // far more than the bound, of one key in ten
		c.Put(fmt.Sprint("key ", n%100), make([]byte, 500), always(Meta{Version: uint64(n)}))
		c.Shrink(1 << 20)
	}
	if n := count(c, 0, 1000); n != 1000 {
		t.Errorf("%d of 1000 are left", n)
	}
	for n := range 900 {
		c.Delete(fmt.Sprint("key ", n), func(Meta) bool { return true })
	}
	fill(c, 1000, 1900, 500, Meta{Version: 1})
	if n := count(c, 900, 1900); n < 990 {
		t.Errorf("%d of 1000 are left", n)
	}
	audit(t, c)
}

// What lives among much that is dead is brought together before anything that lives is dropped.
func TestDeletedEntriesAmongLiveOnesGiveRoomBack(t *testing.T) {
	c, _ := newTest(1 << 20)
	fill(c, 0, 6500, 100, Meta{Version: 1})
	if n := c.Stats().Evicted; n > 0 {
		t.Fatalf("%d evicted", n)
	}
	for i := range 6500 {
		if i%5 > 1 {
			c.Delete(fmt.Sprint("key ", i), func(Meta) bool { return true })
		}
	}
	fill(c, 6500, 9500, 100, Meta{Version: 1})
	if n := count(c, 0, 9500); n != 5600 || c.Stats().Evicted > 0 {
		t.Errorf("%d of 5600 are left, %d were evicted", n, c.Stats().Evicted)
	}
	audit(t, c)
}

// What comes back soon after it has been dropped was dropped too early, and stays longer.
func TestWhatComesBackStays(t *testing.T) {
	c, _ := newTest(1 << 20)
	fill(c, 0, 20_000, 400, Meta{Version: 1})
	var gone []int
	for i := 19_999; len(gone) < 100; i-- {
		if _, ok := c.Peek(fmt.Sprint("key ", i)); !ok {
			gone = append(gone, i)
		}
	}
	back := func() (n int) {
		for _, i := range gone {
			n += count(c, i, i+1)
		}
		return n
	}
	for _, i := range gone {
		fill(c, i, i+1, 400, Meta{Version: 1})
	}
	before := back()
	fill(c, 30_000, 50_000, 400, Meta{Version: 1})
	if n := back(); before != 100 || n < 90 {
		t.Errorf("%d came back, %d are left", before, n)
	}
	audit(t, c)
}

// What is written again and again long before it ends leaves nothing behind until then.
func TestOverwrittenEntriesAreNotRememberedUntilTheyWouldHaveEnded(t *testing.T) {
	c, now := newTest(1 << 20)
	for n := range 200_000 {
		now.Add(1 << 20)
		m := Meta{Version: 1, Born: now.Load(), Fresh: now.Load() + 1<<50}
		m.Ends = m.Fresh
		c.Put(fmt.Sprint("key ", n%10), make([]byte, 100), always(m))
		c.Shrink(1 << 20)
	}
	slots := 0
	for i := range c.shards {
		slots += c.shards[i].endings.slots
	}
	if n := count(c, 0, 10); n != 10 || slots > 1000 {
		t.Errorf("%d of 10 are there, %d endings", n, slots)
	}
	audit(t, c)
}

func TestEntriesOfAllSizes(t *testing.T) {
	const max = 8 << 20
	c, _ := newTest(max)
	for _, size := range []int{0, 1, 127, 128, 1 << 14, 1<<14 + 1, 100_000, max/Largest - 100} {
		value := make([]byte, size)
		for i := range value {
			value[i] = byte(i * 7)
		}
		if !c.Put("key", value, always(Meta{Version: uint64(size)})) {
			t.Errorf("%d bytes were not kept", size)
		}
		c.Shrink(1 << 20)
		if e, ok := c.Get("key"); !ok || !bytes.Equal(e.Value, value) || e.Version != uint64(size) {
			t.Errorf("of %d bytes: %v, %d bytes", size, ok, len(e.Value))
		}
	}
	if c.Put("key", make([]byte, max/Largest+1), always(Meta{})) {
		t.Error("more than an eighth of the bound was kept")
	}
	if _, ok := c.Get("key"); ok {
		t.Error("the value before is still there")
	}
	if !c.Put("", nil, always(Meta{Version: 7})) {
		t.Error("nothing under the empty key was not kept")
	}
	if e, ok := c.Get(""); !ok || e.Version != 7 || len(e.Value) != 0 {
		t.Errorf("%v, %+v", ok, e)
	}
	audit(t, c)
}

// A scan of what is asked for once does not push out what is asked for again and again.
func TestScansPassBy(t *testing.T) {
	c, _ := newTest(1 << 20)
	for range 5 {
		for i := range 1000 {
			if _, ok := c.Get(fmt.Sprint("key ", i)); !ok {
				fill(c, i, i+1, 400, Meta{Version: 1})
			}
		}
	}
	fill(c, 10_000, 30_000, 400, Meta{Version: 1})
	if n := count(c, 0, 1000); n < 950 {
		t.Errorf("%d of 1000 are left", n)
	}
	audit(t, c)
}

// Keys are asked for twice, half a cache's entries apart, and never again: a small queue of a tenth misses a third of the
// second time.
func TestTheSmallQueueBecomesAsLargeAsHelps(t *testing.T) {
	c, _ := newTest(1 << 20)
	n, hits := 0, 0
	get := func(key string) bool {
		_, ok := c.Get(key)
		if !ok {
			c.Put(key, make([]byte, 100), always(Meta{Version: 1}))
			c.Shrink(1 << 20)
		}
		return ok
	}
	for i := range 100_000 {
		get(fmt.Sprint("key ", i))
		if before := i - int(c.Stats().Entries)/2; i > 50_000 {
			n++
			if get(fmt.Sprint("key ", before)) {
				hits++
			}
		} else if i > 10_000 {
			get(fmt.Sprint("key ", before))
		}
	}
	if hits < n*3/4 {
		t.Errorf("%d of %d hits", hits, n)
	}
	audit(t, c)
}

// What comes back from one queue's evicted gives that queue room, and the more the fewer they are.
func TestTheSmallQueueLearnsFromWhatComesBack(t *testing.T) {
	c, _ := newTest(1 << 20)
	fill(c, 0, 20_000, 100, Meta{Version: 1})
	sh := &c.shards[0]
	after := func(fromMain bool, small, main int64) float64 {
		sh.room, sh.ghosts.small, sh.ghosts.main = 0.4, small, main
		for range 100 {
			sh.learn(fromMain, 100)
		}
		return sh.room
	}
	if grown, shrunk := after(false, 500, 500), after(true, 500, 500); grown < 0.405 || shrunk > 0.395 {
		t.Errorf("of 0.4 there are %.3f after words for it, %.3f after words against it", grown, shrunk)
	}
	if rare, common := after(false, 100, 900), after(false, 900, 100); rare-0.4 < 5*(common-0.4) {
		t.Errorf("%.4f by words from a tenth, %.4f by as many from nine tenths", rare, common)
	}
	if rare, common := after(true, 900, 100), after(true, 100, 900); 0.4-rare < 5*(0.4-common) {
		t.Errorf("%.4f by words from a tenth, %.4f by as many from nine tenths", rare, common)
	}
	if c.SetMax(1 << 14); sh.room != after(true, 100, 900) {
		t.Errorf("what was learnt has gone with a change of the bound: %v", sh.room)
	}
}

// One eviction does not carry over more than a quarter of what there is, though all of it is in use.
func TestEvictionsAreOfBoundedLength(t *testing.T) {
	c, _ := newTest(1 << 20)
	sh := &c.shards[0]
	for n := range 50_000 {
		key := fmt.Sprint("key ", n)
		c.Put(key, make([]byte, 400), always(Meta{Version: 1}))
		for range 3 {
			c.Get(key)
		}
		c.Shrink(400)
		if all := int(sh.small.bytes + sh.main.bytes); sh.promoted > all/4+maxChunk/128 {
			t.Fatalf("%d bytes of %d were carried over at once", sh.promoted, all)
		}
	}
}

// A shard gives its chunks ids that come again. Nothing that knows an old one takes the new chunk for it.
func TestIDsOfChunksComeAgain(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("a million chunks")
	}
	c, now := newTest(64 << 10)
	sh := &c.shards[0]
	for i := range 16 {
		c.Put(fmt.Sprint("ends ", i), bytes.Repeat([]byte{127}, 90+i%7), always(Meta{Version: 1, Fresh: 1 << 50, Ends: 1 << 50}))
	}
	value := bytes.Repeat([]byte{0xf1, 0x92, 0x53}, 100) // which would be long lengths
	for n := 0; n < 1_000_000 || sh.nextID != 10; n++ {
		c.Put(fmt.Sprint("key ", n), value, always(Meta{Version: 1}))
		c.Shrink(400)
	}
	now.Store(1<<50 + 1<<46)
	fill(c, 0, 100, 400, Meta{Version: 1})
	audit(t, c)
	if n := c.Stats().Expired; n > 16 {
		t.Errorf("%d expired", n)
	}
}

func TestWhatNeverEndsIsNotTheFirstToGo(t *testing.T) {
	c, _ := newTest(1 << 20)
	forEver := Meta{Version: 1, Fresh: math.MaxInt64, Ends: math.MaxInt64}
	c.Put("key", []byte("v"), always(forEver))
	for range 10 {
		c.Get("key")
	}
	fill(c, 0, 20_000, 400, forEver)
	if n := c.Stats().Expired; n != 0 {
		t.Errorf("%d of what never ends have expired", n)
	}
}

func TestBoundMovesBothWays(t *testing.T) {
	c, _ := newTest(16 << 20)
	fill(c, 0, 100_000, 100, Meta{Version: 1})
	full := c.Stats().Entries
	c.SetMax(1 << 20)
	if n := c.Stats().Entries; c.Used() > 1<<20 || n < full/32 || n > full/8 {
		t.Errorf("%d of %d entries in %d bytes", n, full, c.Used())
	}
	audit(t, c)
	c.SetMax(32 << 20)
	fill(c, 0, 100_000, 100, Meta{Version: 1})
	if n := count(c, 0, 100_000); n != 100_000 {
		t.Errorf("%d of 100,000 are there", n)
	}
	c.SetMax(0)
	if st := c.Stats(); st.Entries != 0 || c.Used() > 16<<10 {
		t.Errorf("%d entries, %d bytes are left", st.Entries, c.Used())
	}
	audit(t, c)
}

// Readers see whole values of the right key, whatever writers do meanwhile.
func TestReadersAmongWriters(t *testing.T) {
	c, now := newTest(1 << 20)
	fill := func(key int, b []byte) []byte {
		for i := range b {
			b[i] = byte(key + i)
		}
		return b
	}
	writes := 50_000
	if raceEnabled {
		writes = 5_000
	}
	var wg sync.WaitGroup
	var stop atomic.Bool
	for w := range 4 {
		rng := rand.New(rand.NewPCG(uint64(w), 2))
		wg.Go(func() {
			for range writes {
				key := rng.IntN(5000)
				if rng.IntN(10) == 0 {
					c.Delete(fmt.Sprint(key), func(Meta) bool { return true })
				} else {
					m := Meta{Version: uint64(key)}
					if rng.IntN(2) == 0 {
						m.Fresh = now.Load() + 1000
						m.Ends = m.Fresh
					}
					c.Put(fmt.Sprint(key), fill(key, make([]byte, rng.IntN(1000))), always(m))
					c.Shrink(1 << 20)
				}
				now.Add(1)
				switch rng.IntN(2000) {
				case 0:
					c.Clear()
				case 1:
					c.SetMax(int64(rng.IntN(2 << 20)))
				}
			}
			stop.Store(true)
		})
	}
	for r := range 4 {
		rng := rand.New(rand.NewPCG(uint64(r), 3))
		wg.Go(func() {
			var held []Entry
			for !stop.Load() {
				key := rng.IntN(5000)
				c.Near([]string{fmt.Sprint(key), "", fmt.Sprint(key + 1)})
				e, ok := c.Get(fmt.Sprint(key))
				if !ok {
					continue
				}
				if e.Version != uint64(key) {
					t.Errorf("the entry of key %d is that of key %d", key, e.Version)
				}
				if held = append(held, e); len(held) > 1000 {
					held = held[500:]
				}
				e = held[rng.IntN(len(held))]
				for i, b := range e.Value {
					if b != byte(int(e.Version)+i) {
						t.Errorf("byte %d of key %d is %d", i, e.Version, b)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	audit(t, c)
}

// A walk that is cut into parts misses nothing, wherever it is cut.
func TestWalkInPartsMissesNothing(t *testing.T) {
	c := New(1<<20, func() int64 { return 0 }, func() int64 { return 0 })
	for i := range 300 {
		c.Put(fmt.Sprint("key ", i), []byte("value"), func(Meta, bool) (Meta, bool) { return Meta{}, true })
	}
	seen := make(map[string]bool)
	for cursor, more := uint64(0), true; more; {
		n := 0
		cursor, more = c.Walk(cursor, func(key string, _ Entry, _ bool) bool {
			seen[key] = true
			n++
			return n < 7
		})
	}
	if len(seen) != 300 {
		t.Errorf("it has come to %d of 300 entries", len(seen))
	}
}

// What has been used comes first, and again in the end, which is said of it.
func TestWalkSaysWhatHasComeBefore(t *testing.T) {
	c := New(1<<20, func() int64 { return 0 }, func() int64 { return 0 })
	for i := range 300 {
		c.Put(fmt.Sprint("key ", i), []byte("value"), func(Meta, bool) (Meta, bool) { return Meta{}, true })
		for range i % 3 {
			c.Get(fmt.Sprint("key ", i))
		}
	}
	first := make(map[string]bool)
	var uses []int // of those that come for the first time
	again := 0
	for cursor, more := uint64(0), true; more; {
		n := 0
		cursor, more = c.Walk(cursor, func(key string, _ Entry, before bool) bool {
			if before != first[key] {
				t.Errorf("again is %v of %q", before, key)
			}
			if before {
				again++
			} else {
				var i int
				fmt.Sscanf(key, "key %d", &i)
				uses = append(uses, i%3)
			}
			first[key] = true
			n++
			return n < 7
		})
	}
	if len(uses) != 300 || again != 200 {
		t.Errorf("%d entries, and %d again; want 300 and 200", len(uses), again)
	}
	if !slices.IsSortedFunc(uses, func(a, b int) int { return b - a }) {
		t.Error("some come before others that have been used more often")
	}
}
