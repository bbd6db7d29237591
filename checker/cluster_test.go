package checker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/cachetest"
)

// A run is one cluster at work: what its clients do, and what goes wrong, is drawn from its seed. What happens at the
// same instant happens in the order in which Go's scheduler runs it; there is little of that, for everything that is said
// takes a time of its own.
type run struct {
	seed    uint64
	begin   time.Time
	cluster *cachetest.Cluster
	size    int

	loaded   []*shoal.Group[int] // has a source
	held     []*shoal.Group[int] // has none
	counters []*shoal.Group[int]
	mixed    []*shoal.Group[int] // counters that are set and removed too

	mu     sync.Mutex     // guards what follows
	source map[string]int // 0: no value
	broken bool           // loads fail
	last   int            // value written
	faults []interval
	// The histories of the three groups.
	ofLoaded, ofHeld, ofCounters, ofMixed history
}

const (
	keysLoaded = 4
	keysHeld   = 12 // more, since an order is searched for among the calls of a key
	lasts      = 150 * time.Second
)

func key(n int) string { return fmt.Sprint("key ", n) }

// do runs the cluster, and leaves the histories.
func (r *run) do(t *testing.T) {
	rng := rand.New(rand.NewPCG(r.seed, 0))
	r.size = 3 + rng.IntN(3)
	r.begin = time.Now()
	r.cluster = cachetest.New(t, r.size, &shoal.Options{Logger: slog.New(slog.DiscardHandler)})
	r.source = make(map[string]int)
	r.ofLoaded.faded = make(map[string]map[int]time.Duration)
	r.ofLoaded.absent = make(map[string][]interval)
	for n := range keysLoaded {
		r.ofLoaded.faded[key(n)] = make(map[int]time.Duration)
		r.change(rng, key(n))
	}
	slowest := time.Duration(rng.Int64N(int64(time.Second)))
	lease := time.Duration(rng.Int64N(int64(4*time.Second))) + time.Second
	opts := &shoal.GroupOptions[int]{HotRate: 0.3, HotLease: lease}
	if rng.IntN(2) == 0 {
		opts.TTL, opts.Jitter = 20*time.Second, 0.5
		if rng.IntN(2) == 0 {
			opts.Stale, opts.StaleIfError = 5*time.Second, 20*time.Second
		}
	}
	if rng.IntN(2) == 0 {
		opts.NotFoundTTL, opts.ErrorTTL = 10*time.Second, time.Second
	}
	batches := rng.IntN(2) == 0
	for i := range r.size {
		loads := rand.New(rand.NewPCG(r.seed, uint64(1000+i)))
		var mu sync.Mutex // guards loads
		load := func(keys ...string) ([]int, error) {
			mu.Lock()
			before, after := time.Duration(loads.Int64N(int64(slowest)+1)), time.Duration(loads.Int64N(int64(slowest)+1))
			mu.Unlock()
			time.Sleep(before / 2)
			values, err := r.current(keys)
			time.Sleep(after / 2)
			return values, err
		}
		mine := *opts
		if batches {
			mine.GetMany = func(_ context.Context, keys []string) (map[string]int, error) {
				found := make(map[string]int)
				values, err := load(keys...)
				for i, v := range values {
					if v != 0 {
						found[keys[i]] = v
					}
				}
				return found, err
			}
		}
		r.loaded = append(r.loaded, shoal.NewGroup(r.cluster.Cache(i), "loaded", func(_ context.Context, key string) (int, error) {
			values, err := load(key)
			if err != nil {
				return 0, err
			} else if values[0] == 0 {
				return 0, shoal.ErrNotFound
			}
			return values[0], nil
		}, &mine))
		kv := shoal.GroupOptions[int]{HotRate: opts.HotRate, HotLease: opts.HotLease}
		r.held = append(r.held, shoal.NewGroup(r.cluster.Cache(i), "held", nil, &kv))
		r.counters = append(r.counters, shoal.NewGroup(r.cluster.Cache(i), "counters", nil, &kv))
		r.mixed = append(r.mixed, shoal.NewGroup(r.cluster.Cache(i), "mixed", nil, &kv))
	}
	if rng.IntN(2) == 0 {
		r.calm(t)
	}

	var wg sync.WaitGroup
	over := make(chan struct{})
	wg.Go(func() { r.breakThings(rand.New(rand.NewPCG(r.seed, 1)), over) })
	var clients sync.WaitGroup
	for i := range r.size {
		for c := range 3 {
			id := 3*i + c
			clients.Go(func() { r.client(rand.New(rand.NewPCG(r.seed, uint64(100+id))), id, i, lasts) })
		}
	}
	clients.Wait()
	close(over)
	wg.Wait()
	time.Sleep(45 * time.Second) // hints are tried again every ten seconds at the latest, and leases are over
	for n := range keysHeld {
		for i := range r.size {
			if n < keysLoaded {
				r.get(-1, i, &r.ofLoaded, r.loaded[i], key(n), nil, true)
			}
			r.get(-1, i, &r.ofHeld, r.held[i], key(n), nil, true)
			r.get(-1, i, &r.ofCounters, r.counters[i], key(n), nil, true)
			r.get(-1, i, &r.ofMixed, r.mixed[i], key(n), nil, true)
		}
	}
	for _, h := range []*history{&r.ofLoaded, &r.ofHeld, &r.ofCounters, &r.ofMixed} {
		h.faults = r.faults
	}
	// What there is at the end has not faded.
	for key := range r.source {
		r.fade(key, never)
	}
}

// fade notes that what the source has of key is true until then.
func (r *run) fade(key string, until time.Duration) {
	if old, known := r.source[key]; known && old != 0 {
		r.ofLoaded.faded[key][old] = until
	} else if known {
		absent := r.ofLoaded.absent[key]
		absent[len(absent)-1].to = until
	}
}

// calm waits until writes are told to the holders of leases only.
func (r *run) calm(t *testing.T) {
	time.Sleep(61 * time.Second)
	for i := range r.size {
		for n := range 100 {
			if err := r.held[i].Remove(t.Context(), fmt.Sprint("nothing ", n)); err != nil {
				t.Error(err)
			}
		}
	}
	time.Sleep(6 * time.Second)
}

func (r *run) now() time.Duration { return time.Since(r.begin) }

// change gives key a new value in the source, and returns it, or now and then takes its value away.
func (r *run) change(rng *rand.Rand, key string) int {
	none := rng.IntN(5) == 0
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fade(key, r.now())
	if none {
		r.source[key] = 0
		r.ofLoaded.absent[key] = append(r.ofLoaded.absent[key], interval{from: r.now()})
		return 0
	}
	r.last++
	r.source[key] = r.last
	return r.last
}

var errBroken = errors.New("the source is broken")

func (r *run) current(keys []string) ([]int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken {
		return nil, errBroken
	}
	values := make([]int, len(keys))
	for i, key := range keys {
		values[i] = r.source[key]
	}
	return values, nil
}

func (r *run) note(h *history, c call) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h.calls = append(h.calls, c)
}

// client makes calls at cache i, one after the other.
func (r *run) client(rng *rand.Rand, id, i int, lasts time.Duration) {
	for until := r.now() + lasts; r.now() < until; {
		time.Sleep(time.Duration(rng.ExpFloat64() * float64(400*time.Millisecond)))
		ctx := context.Background()
		if rng.IntN(20) == 0 { // does not wait long
			limited, cancel := context.WithTimeout(ctx, time.Duration(rng.Int64N(int64(300*time.Millisecond))))
			defer cancel()
			ctx = limited
		}
		n, keys := rng.IntN(1000), keysHeld
		if n < 445 {
			keys = keysLoaded
		}
		key := key(rng.IntN(keys))
		c := call{client: id, cache: i, key: key}
		switch {
		case n < 300:
			r.get(id, i, &r.ofLoaded, r.loaded[i], key, nil, false)
		case n < 330:
			r.get(id, i, &r.ofLoaded, r.loaded[i], key, []*shoal.GetOptions{
				{Fresh: true}, {MaxAge: 2 * time.Second}, {CachedOnly: true}, {CachedOnly: true, MaxAge: 5 * time.Second},
			}[rng.IntN(4)], false)
		case n < 360:
			r.getMany(id, i)
		case n < 400:
			c.kind, c.start = set, r.now()
			if c.value = r.change(rng, key); c.value != 0 {
				c.err = r.loaded[i].Set(ctx, key, c.value)
			} else {
				c.kind = remove
				c.err = r.loaded[i].Remove(ctx, key)
			}
			c.end = r.now()
			r.note(&r.ofLoaded, c)
		case n < 440:
			c.kind, c.start = remove, r.now()
			r.change(rng, key)
			c.err = r.loaded[i].Remove(ctx, key)
			c.end = r.now()
			r.note(&r.ofLoaded, c)
		case n < 445:
			c.kind, c.key, c.start = purge, "", r.now()
			for n := range keysLoaded {
				r.change(rng, fmt.Sprint("key ", n))
			}
			c.err = r.loaded[i].Purge(ctx)
			c.end = r.now()
			r.note(&r.ofLoaded, c)
		case n < 650:
			r.get(id, i, &r.ofHeld, r.held[i], key, nil, false)
		case n < 720:
			c.kind, c.start = set, r.now()
			r.mu.Lock()
			r.last++
			c.value = r.last
			r.mu.Unlock()
			c.err = r.held[i].Set(ctx, key, c.value)
			c.end = r.now()
			r.note(&r.ofHeld, c)
		case n < 740:
			c.kind, c.start = remove, r.now()
			c.err = r.held[i].Remove(ctx, key)
			c.end = r.now()
			r.note(&r.ofHeld, c)
		case n < 743:
			c.kind, c.key, c.start = purge, "", r.now()
			c.err = r.held[i].Purge(ctx)
			c.end = r.now()
			r.note(&r.ofHeld, c)
		case n < 780:
			r.mix(ctx, rng, c)
		case n < 850:
			r.get(id, i, &r.ofCounters, r.counters[i], key, nil, false)
		default:
			c.kind, c.start, c.value = add, r.now(), 1+rng.IntN(9)
			c.sum, c.err = shoal.Add(ctx, r.counters[i], key, c.value)
			c.end = r.now()
			r.note(&r.ofCounters, c)
		}
	}
}

func (r *run) get(id, i int, h *history, g *shoal.Group[int], key string, opts *shoal.GetOptions, final bool) {
	c := call{kind: get, client: id, cache: i, key: key, start: r.now(), final: final}
	if opts != nil && opts.Fresh {
		c.since = c.start
	} else if opts != nil && opts.MaxAge > 0 {
		c.since = c.start - opts.MaxAge - 200*time.Millisecond // what is on its way grows older
	}
	e, err := g.GetEntry(context.Background(), key, opts)
	c.end, c.value, c.source, c.err = r.now(), e.Value, e.Source, err
	if errors.Is(err, shoal.ErrNotFound) {
		c.err = nil
	}
	r.note(h, c)
}

// getMany asks for all keys at once, without telling where each comes from.
func (r *run) getMany(id, i int) {
	keys := make([]string, keysLoaded)
	for n := range keys {
		keys[n] = key(n)
	}
	c := call{kind: get, client: id, cache: i, start: r.now(), source: "getter"}
	values, err := r.loaded[i].GetMany(context.Background(), keys)
	c.end, c.err = r.now(), err
	for c.key, c.value = range values {
		c.err = nil
		r.note(&r.ofLoaded, c)
	}
}

// mix changes or reads a counter that is set and removed too.
func (r *run) mix(ctx context.Context, rng *rand.Rand, c call) {
	g := r.mixed[c.cache]
	switch rng.IntN(6) {
	case 0:
		c.kind, c.value, c.start = set, rng.IntN(100), r.now()
		c.err = g.Set(ctx, c.key, c.value)
	case 1:
		c.kind, c.start = remove, r.now()
		c.err = g.Remove(ctx, c.key)
	case 2, 3:
		c.kind, c.value, c.start = add, rng.IntN(10), r.now()
		c.sum, c.err = shoal.Add(ctx, g, c.key, c.value)
	default:
		r.get(c.client, c.cache, &r.ofMixed, g, c.key, nil, false)
		return
	}
	c.end = r.now()
	r.note(&r.ofMixed, c)
}

// breakThings makes links slow all the time, and now and then cuts or loses something, until over is closed. Then all is
// well again.
func (r *run) breakThings(rng *rand.Rand, over <-chan struct{}) {
	quiet := rng.IntN(4) == 0 // nothing but delays
	wait := func(d time.Duration) bool {
		select {
		case <-time.After(d):
			return true
		case <-over:
			return false
		}
	}
	delays := func() {
		for from := range r.size {
			for to := range r.size {
				r.cluster.Delay(from, to, time.Duration(1+rng.Int64N(int64(40*time.Millisecond))))
			}
		}
	}
	for goesOn := true; goesOn; {
		delays()
		if goesOn = wait(time.Duration(rng.Int64N(int64(6 * time.Second)))); quiet || !goesOn {
			continue
		}
		from, down := r.now(), -1
		switch rng.IntN(5) {
		case 0:
			down = rng.IntN(r.size)
			r.cluster.Down(down)
		case 1:
			r.cluster.Loss(rng.IntN(r.size), rng.IntN(r.size), rng.Float64())
		case 2:
			for from := range r.size {
				for to := range r.size {
					r.cluster.Loss(from, to, 0.2)
				}
			}
		case 3:
			var sides [2][]int
			for i := range r.size {
				n := rng.IntN(2)
				sides[n] = append(sides[n], i)
			}
			r.cluster.Partition(sides[:]...)
		case 4:
			r.breakSource(true)
		}
		goesOn = wait(time.Duration(rng.Int64N(int64(8 * time.Second))))
		r.cluster.Heal()
		if down >= 0 {
			r.cluster.Up(down)
		}
		r.breakSource(false)
		r.mu.Lock()
		r.faults = append(r.faults, interval{from, r.now()})
		r.mu.Unlock()
	}
	r.cluster.Heal()
}

func (r *run) breakSource(broken bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = broken
}

// check returns what the run has shown to be wrong, how many calls it made, and how many keys' orders were not decided.
func (r *run) check() (bad []string, calls, undecided int) {
	bad = append(bad, r.ofLoaded.stale()...)
	bad = append(bad, r.ofHeld.stale()...)
	bad = append(bad, r.ofCounters.lost()...)
	for _, h := range []*history{&r.ofLoaded, &r.ofHeld, &r.ofCounters, &r.ofMixed} {
		calls += len(h.calls)
		bad = append(bad, h.split()...)
	}
	// A copy under lease may lag behind a write that is still under way: only what the owner itself has answered is in
	// its order.
	for _, h := range []*history{&r.ofHeld, &r.ofCounters, &r.ofMixed} {
		var owners history
		for _, c := range h.calls {
			if c.kind != get || c.source == "peer" || c.cache == r.cluster.Owner(c.key) {
				owners.calls = append(owners.calls, c)
			}
		}
		wrong, unknown := owners.unordered(500 * time.Millisecond)
		bad = append(bad, wrong...)
		undecided += unknown
	}
	return bad, calls, undecided
}

// runSeed runs the cluster of one seed.
func runSeed(t *testing.T, seed uint64) *run {
	r := &run{seed: seed}
	synctest.Test(t, r.do)
	return r
}
