package checker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/cachetest"
	"github.com/shoalcache/shoal/shoalpb"
)

// A run is one cluster at work: what its clients do, and what goes wrong, is drawn from its seed. What happens at the
// same instant happens in the order in which Go's scheduler runs it; there is little of that, for everything that is said
// takes a time of its own.
type run struct {
	seed    uint64
	peers   peers
	owners  int  // of each key
	laggard bool // lists may lag by more than what has gone to others is kept for them
	begin   time.Time
	cluster *cachetest.Cluster
	addrs   []string // by cache
	size    int
	options options
	// patience is for calls that wait as long as it takes: longer than any may.
	patience time.Duration

	mu        sync.Mutex     // guards what follows
	processes []*process     // by cache; nil: none is there
	starts    int            // of processes
	ended     map[int]bool   // by start
	source    map[string]int // 0: no value
	broken    bool           // loads fail
	last      int            // value written
	faults    []interval
	splits    []split
	loads     []load
	events    []event
	bad       []violation
	// The histories of the groups.
	ofLoaded, ofHeld, ofCounters, ofMixed history
	members                               members
}

// peers is what becomes of processes during a run.
type peers int

const (
	stay peers = iota // and links have faults
	move              // they join and leave, and are listed by some and not by others
	die               // that, and are killed
	part              // that, and links have faults, in parts that may cease to list each other
)

var peersNames = [...]string{stay: "membership stands", move: "processes join and leave", die: "processes are killed, too", part: "links are cut, too"}

func (p peers) String() string { return peersNames[p] }

// A process is one that clients use.
type process struct {
	cache, start int
	ctx          context.Context // ends with it
	end          context.CancelFunc
	ready        bool          // guarded by that of the run, as is what follows
	leaves       time.Duration // when it was told to shut down; never: it was not
	ended        time.Duration

	loaded   *shoal.Group[int] // has a source
	held     *shoal.Group[int] // has none
	counters *shoal.Group[int]
	mixed    *shoal.Group[int] // counters that are set and removed too
}

// options are those of all groups of a run.
type options struct {
	loaded  shoal.GroupOptions[int]
	held    shoal.GroupOptions[int]
	keys    int           // of those without a source
	batches bool          // the source is asked for many keys at once
	slowest time.Duration // load
}

const (
	keysLoaded = 4
	keysHeld   = 12 // more, since an order is searched for among the calls of a key
	keysFresh  = 10 // asked for once, in the end
	lasts      = 150 * time.Second
)

// names are the keys of the group that has a source.
var names = func() (all []string) {
	for n := range keysLoaded {
		all = append(all, key(n))
	}
	return all
}()

func key(n int) string { return fmt.Sprint("key ", n) }

// do runs the cluster, and leaves the histories.
func (r *run) do(t *testing.T) {
	rng := rand.New(rand.NewPCG(r.seed, 0))
	r.size = 3 + rng.IntN(3)
	if r.peers != stay {
		r.size++
	}
	r.patience = 2 * time.Minute
	if r.peers == move || r.peers == die {
		r.patience = 30 * time.Second // nothing is lost, so there is little to wait for
	}
	r.begin = time.Now()
	r.cluster = cachetest.New(t, r.size, &shoal.Options{Logger: slog.New(slog.DiscardHandler)})
	for i := range r.size {
		r.addrs = append(r.addrs, fmt.Sprint("http://cache-", i))
	}
	r.source, r.ended = make(map[string]int), make(map[int]bool)
	r.ofLoaded.faded = make(map[string]map[int]time.Duration)
	r.ofLoaded.absent = make(map[string][]interval)
	for n := range keysLoaded {
		r.ofLoaded.faded[key(n)] = make(map[int]time.Duration)
		r.change(rng, key(n))
	}
	r.options, r.owners = drawOptions(rng), 1
	if r.peers != stay {
		r.owners = r.options.keepAt(1 + rng.IntN(2))
		r.laggard = rng.IntN(2) == 0
	}
	if (r.peers == die || r.peers == part) && rng.IntN(3) == 0 {
		r.options.crowd()
	}
	r.processes = make([]*process, r.size)
	for i := range r.size {
		r.started(i, r.cluster.Cache(i))
		r.processes[i].ready = true
	}
	if r.peers != stay {
		r.assemble(rng)
	}
	if rng.IntN(2) == 0 {
		r.calm(t)
	}

	var wg sync.WaitGroup
	over := make(chan struct{})
	wg.Go(func() {
		rng := rand.New(rand.NewPCG(r.seed, 1))
		if r.peers == stay {
			r.breakThings(rng, over)
		} else {
			r.comeAndGo(rng, over)
		}
	})
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
	var there []*process
	for _, p := range r.processes {
		if p != nil {
			there = append(there, p)
		}
	}
	for n := range keysHeld {
		for _, p := range there {
			if n < keysLoaded {
				r.get(-1, p, &r.ofLoaded, p.loaded, key(n), r.patience, nil, true)
			}
			r.get(-1, p, &r.ofHeld, p.held, key(n), r.patience, nil, true)
			r.get(-1, p, &r.ofCounters, p.counters, key(n), r.patience, nil, true)
			r.get(-1, p, &r.ofMixed, p.mixed, key(n), r.patience, nil, true)
		}
	}
	r.loadOnce(there)
	if r.peers != stay {
		r.agree(there)
	}
	// What there is at the end has not faded.
	for n := range keysLoaded {
		r.fade(key(n), never)
	}
}

func drawOptions(rng *rand.Rand) (o options) {
	o.slowest = time.Duration(rng.Int64N(int64(time.Second)))
	lease := time.Duration(rng.Int64N(int64(4*time.Second))) + time.Second
	o.held = shoal.GroupOptions[int]{HotRate: 0.3, HotLease: lease}
	o.loaded = o.held
	if rng.IntN(2) == 0 {
		o.loaded.TTL, o.loaded.Jitter = 20*time.Second, 0.5
		if rng.IntN(2) == 0 {
			o.loaded.Stale, o.loaded.StaleIfError = 5*time.Second, 20*time.Second
		}
	}
	if rng.IntN(2) == 0 {
		o.loaded.NotFoundTTL, o.loaded.ErrorTTL = 10*time.Second, time.Second
	}
	o.batches, o.keys = rng.IntN(2) == 0, keysHeld
	return o
}

// crowd leaves little memory for more keys, so that tables beside the values become full.
func (o *options) crowd() {
	o.keys = 200
	o.loaded.MaxBytes, o.held.MaxBytes = 32<<10, 32<<10
}

// keepAt has each key be kept by so many processes, and returns how many that are.
func (o *options) keepAt(owners int) int {
	o.loaded.Owners, o.held.Owners = owners, owners
	return owners
}

// started makes the groups of the process that has been started as cache i.
func (r *run) started(i int, cache *shoal.Cache) *process {
	p := &process{cache: i, leaves: never, ended: never}
	p.ctx, p.end = context.WithCancel(context.Background())
	r.mu.Lock()
	p.start = r.starts
	r.starts++
	r.processes[i] = p
	r.mu.Unlock()
	loads := rand.New(rand.NewPCG(r.seed, uint64(1000+p.start)))
	if loads.IntN(2) == 0 {
		setAhead(cache, time.Duration(loads.Int64N(int64(time.Hour))))
	}
	var mu sync.Mutex // guards loads
	get := func(keys ...string) ([]int, error) {
		mu.Lock()
		slowest := int64(r.options.slowest) + 1
		before, after := time.Duration(loads.Int64N(slowest)), time.Duration(loads.Int64N(slowest))
		mu.Unlock()
		begun := r.now()
		time.Sleep(before / 2)
		values, err := r.current(keys)
		time.Sleep(after / 2)
		r.noteLoads(p, begun, keys, values, err)
		return values, err
	}
	mine := r.options.loaded
	if r.options.batches {
		mine.GetMany = func(_ context.Context, keys []string) (map[string]int, error) {
			found := make(map[string]int)
			values, err := get(keys...)
			for i, v := range values {
				if v != 0 {
					found[keys[i]] = v
				}
			}
			return found, err
		}
	}
	p.loaded = shoal.NewGroup(cache, "loaded", func(_ context.Context, key string) (int, error) {
		values, err := get(key)
		if err != nil {
			return 0, err
		} else if values[0] == 0 {
			return 0, shoal.ErrNotFound
		}
		return values[0], nil
	}, &mine)
	p.held = shoal.NewGroup(cache, "held", nil, &r.options.held)
	p.counters = shoal.NewGroup(cache, "counters", nil, &r.options.held)
	p.mixed = shoal.NewGroup(cache, "mixed", nil, &r.options.held)
	return p
}

// setAhead has the clock of a process be ahead by so much, as that of somebody is of whom it has heard.
func setAhead(cache *shoal.Cache, by time.Duration) {
	body, err := proto.Marshal(&shoalpb.Request{
		Sender: &shoalpb.Sender{Id: []byte("a client"), Incarnation: 1},
		Op:     &shoalpb.Request_Hello{Hello: &shoalpb.Hello{Weight: 1, Clock: uint64(time.Now().Add(by).UnixNano()) >> 16}},
	})
	if err != nil {
		panic(err)
	}
	w, req := httptest.NewRecorder(), httptest.NewRequest("POST", "/_shoal/", bytes.NewReader(body))
	req.Header.Set("Content-Type", "application/vnd.shoal.v1+protobuf")
	cache.ServeHTTP(w, req)
	if w.Code != http.StatusOK {
		panic(fmt.Sprintf("greeting: status %d: %s", w.Code, w.Body))
	}
}

// process returns who is there as cache i and can be used, or nil.
func (r *run) process(i int) *process {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.processes[i]; p != nil && p.ready {
		return p
	}
	return nil
}

// loadOnce asks each process for keys that nobody has asked for. All see the same, and each key must be loaded once.
func (r *run) loadOnce(there []*process) {
	from := r.now()
	fresh := func(n int) string { return fmt.Sprint("fresh ", n) }
	r.mu.Lock()
	for n := range keysFresh {
		r.source[fresh(n)] = 1
		r.ofLoaded.faded[fresh(n)] = map[int]time.Duration{1: never}
	}
	r.mu.Unlock()
	var wg sync.WaitGroup
	for n := range keysFresh {
		for _, p := range there {
			wg.Go(func() { r.get(-1, p, &r.ofLoaded, p.loaded, fresh(n), r.patience, nil, false) })
		}
	}
	wg.Wait()
	loads := make(map[string][]load)
	for _, l := range r.loads {
		loads[l.key] = append(loads[l.key], l)
	}
	for n := range keysFresh {
		if key := fresh(n); len(loads[key]) != 1 {
			r.bad = append(r.bad, violation{
				text: fmt.Sprintf("when all had settled, %s was not loaded once, but as %v", key, loads[key]), key: key, from: from, to: r.now(),
			})
		}
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
		p := r.process(i)
		if p == nil {
			continue
		}
		for n := range 100 {
			if err := p.held.Remove(t.Context(), fmt.Sprint("nothing ", n)); err != nil {
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
	r.fade(key, r.now()-1)
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

// note adds what p was asked, and what came of it, to h. What a process has returned that has ended, nobody knows.
func (r *run) note(p *process, h *history, c call) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c.cache, c.process = p.cache, p.start
	if p.ended <= c.end {
		if c.kind == get {
			return
		}
		c.err = errEnded
	}
	c.leaving = p.leaves <= c.end
	h.calls = append(h.calls, c)
}

var errEnded = errors.New("the process has ended")

// client makes calls at cache i, one after the other.
func (r *run) client(rng *rand.Rand, id, i int, lasts time.Duration) {
	for until := r.now() + lasts; r.now() < until; {
		time.Sleep(time.Duration(rng.ExpFloat64() * float64(400*time.Millisecond)))
		limit := r.patience
		if rng.IntN(20) == 0 { // does not wait long
			limit = time.Duration(rng.Int64N(int64(300 * time.Millisecond)))
		}
		p := r.process(i)
		if p == nil {
			continue
		}
		r.call(rng, id, p, limit)
	}
}

// call makes one call at p.
func (r *run) call(rng *rand.Rand, id int, p *process, limit time.Duration) {
	ctx, cancel := context.WithTimeout(p.ctx, limit)
	defer cancel()
	n, keys := rng.IntN(1000), keysHeld
	if n < 445 {
		keys = keysLoaded
	} else if rng.IntN(2) == 0 {
		keys = r.options.keys
	}
	key := key(rng.IntN(keys))
	c := call{client: id, key: key, limit: limit}
	switch {
	case n < 300:
		r.get(id, p, &r.ofLoaded, p.loaded, key, limit, nil, false)
	case n < 330:
		r.get(id, p, &r.ofLoaded, p.loaded, key, limit, []*shoal.GetOptions{
			{Fresh: true}, {MaxAge: 2 * time.Second}, {CachedOnly: true}, {CachedOnly: true, MaxAge: 5 * time.Second},
		}[rng.IntN(4)], false)
	case n < 360:
		r.getMany(id, p)
	case n < 400:
		c.kind, c.start = set, r.now()
		if c.value = r.change(rng, key); c.value != 0 {
			c.err = p.loaded.Set(ctx, key, c.value)
		} else {
			c.kind = remove
			c.err = p.loaded.Remove(ctx, key)
		}
		c.end = r.now()
		r.note(p, &r.ofLoaded, c)
	case n < 440:
		c.kind, c.start = remove, r.now()
		some := names[rng.IntN(keysLoaded):]
		for _, key := range some {
			r.change(rng, key)
		}
		c.err = p.loaded.Remove(ctx, some...)
		c.end = r.now()
		for _, c.key = range some {
			r.note(p, &r.ofLoaded, c)
		}
	case n < 445:
		c.kind, c.key, c.start = purge, "", r.now()
		for n := range keysLoaded {
			r.change(rng, fmt.Sprint("key ", n))
		}
		c.err = p.loaded.Purge(ctx)
		c.end = r.now()
		r.note(p, &r.ofLoaded, c)
	case n < 650:
		r.get(id, p, &r.ofHeld, p.held, key, limit, nil, false)
	case n < 720:
		c.kind, c.start = set, r.now()
		r.mu.Lock()
		r.last++
		c.value = r.last
		r.mu.Unlock()
		c.err = p.held.Set(ctx, key, c.value)
		c.end = r.now()
		r.note(p, &r.ofHeld, c)
	case n < 740:
		c.kind, c.start = remove, r.now()
		c.err = p.held.Remove(ctx, key)
		c.end = r.now()
		r.note(p, &r.ofHeld, c)
	case n < 743:
		c.kind, c.key, c.start = purge, "", r.now()
		c.err = p.held.Purge(ctx)
		c.end = r.now()
		r.note(p, &r.ofHeld, c)
	case n < 780:
		r.mix(ctx, rng, p, c)
	case n < 850:
		r.get(id, p, &r.ofCounters, p.counters, key, limit, nil, false)
	default:
		c.kind, c.start, c.value = add, r.now(), 1+rng.IntN(9)
		c.sum, c.err = shoal.Add(ctx, p.counters, key, c.value)
		c.end = r.now()
		r.note(p, &r.ofCounters, c)
	}
}

func (r *run) get(id int, p *process, h *history, g *shoal.Group[int], key string, limit time.Duration, opts *shoal.GetOptions, final bool) {
	ctx, cancel := context.WithTimeout(p.ctx, limit)
	defer cancel()
	c := call{kind: get, client: id, key: key, start: r.now(), limit: limit, final: final}
	if opts != nil && opts.Fresh {
		c.since = c.start
	} else if opts != nil && opts.MaxAge > 0 {
		c.since = c.start - opts.MaxAge - 200*time.Millisecond // what is on its way grows older
	}
	e, err := g.GetEntry(ctx, key, opts)
	if final && err != nil && !errors.Is(err, shoal.ErrNotFound) {
		// A stream that loss has killed without a sign is found dead by the first who waits for an answer.
		time.Sleep(time.Second)
		e, err = g.GetEntry(ctx, key, opts)
	}
	c.end, c.value, c.source, c.err = r.now(), e.Value, e.Source, err
	if errors.Is(err, shoal.ErrNotFound) {
		c.err = nil
	}
	r.note(p, h, c)
}

// getMany asks for all keys at once, which does not tell where each comes from.
func (r *run) getMany(id int, p *process) {
	ctx, cancel := context.WithTimeout(p.ctx, r.patience)
	defer cancel()
	c := call{kind: get, client: id, start: r.now(), limit: r.patience, source: "many"}
	values, err := p.loaded.GetMany(ctx, names)
	c.end = r.now()
	for c.key, c.value = range values {
		r.note(p, &r.ofLoaded, c)
	}
	if err != nil {
		c.key, c.value, c.err = "", 0, err
		r.note(p, &r.ofLoaded, c)
	}
}

// mix changes or reads a counter that is set and removed too.
func (r *run) mix(ctx context.Context, rng *rand.Rand, p *process, c call) {
	g := p.mixed
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
		r.get(c.client, p, &r.ofMixed, g, c.key, c.limit, nil, false)
		return
	}
	c.end = r.now()
	r.note(p, &r.ofMixed, c)
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
	for goesOn := true; goesOn; {
		r.delay(rng)
		if goesOn = wait(time.Duration(rng.Int64N(int64(6 * time.Second)))); quiet || !goesOn {
			continue
		}
		goesOn = r.breakOne(rng, wait)
	}
	r.cluster.Heal()
}

func (r *run) breakSource(broken bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = broken
}

// delay makes all links slow.
func (r *run) delay(rng *rand.Rand) {
	for from := range r.size {
		for to := range r.size {
			r.cluster.Delay(from, to, time.Duration(1+rng.Int64N(int64(40*time.Millisecond))))
		}
	}
}

// breakOne breaks something for a while, and reports whether the run goes on.
func (r *run) breakOne(rng *rand.Rand, wait func(time.Duration) bool) bool {
	from, down := r.now(), -1
	switch rng.IntN(5) {
	case 0:
		down = rng.IntN(r.size)
		r.log("nothing reaches cache %d, nor leaves it", down)
		r.cluster.Down(down)
	case 1:
		from, to, share := rng.IntN(r.size), rng.IntN(r.size), rng.Float64()
		r.log("%.0f%% from cache %d to cache %d is lost", 100*share, from, to)
		r.cluster.Loss(from, to, share)
	case 2:
		r.log("20%% of everything is lost")
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
		r.log("caches %v and %v hear nothing of each other", sides[0], sides[1])
		r.cluster.Partition(sides[:]...)
	case 4:
		r.log("loads fail")
		r.breakSource(true)
	}
	goesOn := wait(time.Duration(rng.Int64N(int64(8 * time.Second))))
	r.cluster.Heal()
	if down >= 0 {
		r.cluster.Up(down)
	}
	r.breakSource(false)
	r.log("all is well again")
	r.mu.Lock()
	r.faults = append(r.faults, interval{from, r.now()})
	r.mu.Unlock()
	return goesOn
}

// A result is what has come of a run.
type result struct {
	bad       []string // the first of each key
	more      int      // of the same keys
	calls     int
	undecided int // keys whose orders are not known to be right or wrong
	// What is not promised to the last, but where processes only join and leave there should be none.
	refused, missing int
	// Runs in which several keep each value, with room for all and lists that do not lag for long, and those of them in which some
	// got lost all the same.
	kept, losing int
}

// check looks for what is wrong in a run.
func (r *run) check() (res result) {
	all := []*history{&r.ofLoaded, &r.ofHeld, &r.ofCounters, &r.ofMixed}
	bad := r.bad
	for _, h := range all {
		h.faults, h.splits, h.outside = r.faults, r.splits, r.members.outside
		h.lends, h.forgets = true, r.peers != stay
		for i := range h.calls {
			h.calls[i].orphan = r.ended[h.calls[i].process]
		}
		res.calls += len(h.calls)
		bad = slices.Concat(bad, h.late(r.patience), h.differ())
	}
	stale, _ := r.ofLoaded.stale()
	old, missing := r.ofHeld.stale()
	lost, fewer := r.ofCounters.lost()
	bad = slices.Concat(bad, stale, r.ofLoaded.unhealed(), old, lost)
	missing = append(missing, fewer...)
	if r.peers == move || r.peers == die && r.owners > 1 {
		res.missing = len(missing)
		var refused []violation
		if r.peers == move {
			for _, h := range all {
				refused = append(refused, h.refused()...)
			}
		}
		res.refused = len(refused)
		if *exact {
			bad = slices.Concat(bad, refused, missing)
		}
		if r.owners > 1 && r.options.keys == keysHeld && !r.laggard {
			res.kept = 1
			if len(missing) > 0 {
				res.losing = 1
			}
			bad = append(bad, missing...)
		}
	}
	if r.peers == stay {
		wrong, undecided := r.unordered()
		bad, res.undecided = append(bad, wrong...), undecided
	}
	known := make(map[string]bool)
	for _, v := range bad {
		if what := fmt.Sprintf("%p %s", v.h, v.key); v.key != "" && known[what] { // one thing often shows in many gets
			res.more++
			continue
		} else {
			known[what] = true
		}
		res.bad = append(res.bad, v.text+"\n"+r.story(v))
	}
	return res
}

// unordered checks what the owners have answered.
func (r *run) unordered() (bad []violation, undecided int) {
	// A copy under lease may lag behind a write that is still under way: only what the owner itself has answered is in
	// its order.
	for _, h := range []*history{&r.ofHeld, &r.ofCounters, &r.ofMixed} {
		var owners history
		for _, c := range h.calls {
			if c.kind != get || c.source == "peer" || c.cache == r.owner(c.key) {
				owners.calls = append(owners.calls, c)
			}
		}
		wrong, unknown := owners.unordered(500 * time.Millisecond)
		bad = append(bad, wrong...)
		undecided += unknown
	}
	return bad, undecided
}

// runSeed runs the cluster of one seed.
func runSeed(t *testing.T, seed uint64) *run {
	r := &run{seed: seed}
	if *membership {
		r.peers = peers(seed % 4)
	}
	synctest.Test(t, r.do)
	return r
}
