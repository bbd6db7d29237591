package checker

// processes_linux_test.go: the rules of history.go for what processes do that are processes, over TCP that is TCP.

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoalcache/shoal"
)

var onNetwork = flag.Duration("network", 20*time.Second, "make calls `so long` in TestProcessesOverTCP")

const (
	// What would take no time in a bubble takes this long at most, on a machine that has other things to do.
	scheduling = time.Second
	// repair is how long after everything has healed hints have been delivered, and leases and copies have ended: hints are
	// tried again every ten seconds at the latest, and copies end after five.
	repair = 16 * time.Second
	port   = "8080" // of all: each has a network of its own
	// callers make calls at one cache.
	callers = 6
)

// TestProcessesOverTCP has five processes, each in a network namespace of its own, work over links that lose packets, are
// cut, and heal, and checks what they have returned by the same rules as what caches in memory do. This is real time, so a
// seed says only what is done to them, not what comes of it. For longer:
//
//	go test ./checker -run ProcessesOverTCP -network 5m -first SEED
//
// All waiting is for the schedule's time to pass, or for an answer; nothing is expected after a while.
func TestProcessesOverTCP(t *testing.T) {
	t.Parallel()
	seed := *first
	if seed == 0 {
		seed = uint64(time.Now().UnixNano() >> 20)
	}
	const size = 5
	var fleets []*fleet
	for _, what := range []peers{stay, part} {
		fleets = append(fleets, &fleet{
			run:  &run{seed: seed, peers: what, size: size, owners: 1, patience: 30 * time.Second},
			t:    t,
			net:  newNetwork(t, size, seed),
			over: make(chan struct{}),
		})
	}
	var working sync.WaitGroup // both at once, for most of the time they wait
	for _, f := range fleets {
		t.Cleanup(f.endAll)
		working.Go(f.work)
	}
	working.Wait()
	for _, f := range fleets {
		res := f.check()
		for _, b := range res.bad[:min(len(res.bad), 3)] {
			t.Errorf("seed %d (%v): %s", seed, f.peers, b)
		}
		if len(res.bad) > 0 {
			t.Errorf("seed %d: the schedule again: go test ./checker -run ProcessesOverTCP -first %d -network %v", seed, seed, *onNetwork)
		}
		t.Logf("seed %d (%v): %d calls, %d violations, %d orders of a key not decided", seed, f.peers, res.calls, len(res.bad)+res.more, res.undecided)
		if t.Failed() || testing.Verbose() {
			for _, e := range f.events {
				t.Log(e)
			}
		}
	}
}

// A write whose error has been returned may have happened, or happen a little later. But once the same process has been able
// to write again, what it had sent before does not come any more: not from a kernel that has kept what no host would take.
func TestFailedSetDoesNotComeAfterTheNext(t *testing.T) {
	t.Parallel()
	const size, keys = 3, 20
	f := &fleet{
		run:  &run{peers: stay, size: size, patience: 30 * time.Second},
		t:    t,
		net:  newNetwork(t, size, 1),
		over: make(chan struct{}),
	}
	t.Cleanup(f.endAll)
	f.start()
	const owner, other = 0, 1
	var owned []string
	for k := 0; len(owned) < keys; k++ {
		if f.owner(key(k)) == owner {
			owned = append(owned, key(k))
		}
	}
	// set sets all keys, at once, and returns how many that has failed for.
	set := func(value int) (failed int) {
		errs := make(chan string, keys)
		for _, key := range owned {
			go func() {
				r, _ := f.nodes[other].ask(order{Do: string(set), Group: "held", Key: key, Value: value, Limit: f.patience})
				errs <- r.Err
			}()
		}
		for range keys {
			if <-errs != "" {
				failed++
			}
		}
		return failed
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range 3 {
		for set(1) > 0 { // until there is a stream
			<-tick.C
		}
		f.net.partition([]int{owner: 1, other: 0, 2: 0})
		if failed := set(2); failed != keys {
			t.Fatalf("%d of %d Sets failed, though nothing reaches the owner", failed, keys)
		}
		<-time.After(time.Second) // TCP tries again in half a second or so, then in one
		f.net.heal()
		for set(3) > 0 {
			<-tick.C
		}
		for end := time.After(3 * time.Second); ; {
			for _, key := range owned {
				r, _ := f.nodes[owner].ask(order{Do: string(get), Group: "held", Key: key, Limit: f.patience})
				if r.Err != "" || r.Value != 3 {
					t.Fatalf("%s is %d (%s), after a Set to 2 that failed, and one to 3 that returned nil", key, r.Value, r.Err)
				}
			}
			select {
			case <-tick.C:
				continue
			case <-end:
			}
			break
		}
	}
}

// A fleet is a run whose caches are processes. What gives the orders has the source, and makes all calls.
type fleet struct {
	*run
	t     *testing.T
	net   *network
	clock time.Duration // when the run began
	nodes []*node       // by cache; nil: none is there, guarded by the run's lock
	lists [][]int       // by cache, of whom it was told; of the schedule
	over  chan struct{} // no more calls
	loose sync.WaitGroup
}

// A node is a process that has been started.
type node struct {
	*process
	cmd   *exec.Cmd
	gone  chan struct{} // it has ended
	still []interval    // in which it stood still; guarded by the run's lock

	mu      sync.Mutex // guards what follows, and writing
	in      io.WriteCloser
	last    int // order
	waiting map[int]chan report
}

// work runs the processes, and leaves the histories.
func (f *fleet) work() {
	f.start()
	var clients sync.WaitGroup
	for i := range f.size {
		for c := range callers {
			id := callers*i + c
			clients.Go(func() { f.client(rand.New(rand.NewPCG(f.seed, uint64(100+id))), id, i) })
		}
	}
	var schedule sync.WaitGroup
	schedule.Go(func() { f.breakAll(rand.New(rand.NewPCG(f.seed, 1))) })
	<-time.After(*onNetwork)
	close(f.over)
	schedule.Wait()
	clients.Wait()
	<-time.After(repair)
	f.finish()
}

// start starts all processes, which list each other.
func (f *fleet) start() {
	rng := rand.New(rand.NewPCG(f.seed, 0))
	if f.peers != stay {
		f.owners = 1 + rng.IntN(2)
	}
	f.options = drawOptions(rand.New(rand.NewPCG(f.seed, 3)))
	f.source, f.ended = make(map[string]int), make(map[int]bool)
	f.ofLoaded.faded, f.ofLoaded.absent = make(map[string]map[int]time.Duration), make(map[string][]interval)
	for after := time.Duration(0); f.clock == 0 || after-f.clock > 50*time.Microsecond; after = monotonic() {
		f.clock = monotonic()
		f.begin = time.Now()
	}
	for n := range keysLoaded {
		f.ofLoaded.faded[key(n)] = make(map[int]time.Duration)
		f.change(rng, key(n))
	}
	f.processes, f.nodes, f.lists = make([]*process, f.size), make([]*node, f.size), make([][]int, f.size)
	for i, h := range f.net.hosts {
		f.addrs = append(f.addrs, "http://"+net.JoinHostPort(h.addr, port))
		f.lists[i] = everybody(f.size)
	}
	var starts sync.WaitGroup
	for i := range f.size {
		starts.Go(func() { f.spawn(i) })
	}
	starts.Wait()
	began, tick := f.now(), time.NewTicker(20*time.Millisecond)
	defer tick.Stop()
	for _, n := range f.nodes { // what is written before may be lost, as owners change
		for n != nil && !slices.Equal(f.sees(n), everybody(f.size)) {
			if f.now()-began > f.patience {
				f.t.Errorf("after %v, cache %d sees %v", f.patience, n.cache, f.sees(n))
				return
			}
			<-tick.C
		}
	}
	f.log("all see all")
}

// spawn starts a process as cache i, and waits until it is ready.
func (f *fleet) spawn(i int) {
	text, err := json.Marshal(spawn{f.seed, f.owners, net.JoinHostPort(f.net.hosts[i].addr, port), f.addrsOf(f.lists[i]), f.clock})
	if err != nil {
		f.t.Error(err)
		return
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), spawnEnv+"="+string(text), "GORACE=halt_on_error=1")
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	f.mu.Lock()
	n := &node{
		process: &process{cache: i, start: f.starts, leaves: never, ended: never},
		cmd:     cmd, gone: make(chan struct{}), in: in, waiting: make(map[int]chan report),
	}
	f.starts++
	f.mu.Unlock()
	if err := errors.Join(err1, err2, f.net.hosts[i].inside(cmd.Start)); err != nil {
		f.t.Error(err)
		return
	}
	f.mu.Lock()
	f.nodes[i], f.processes[i] = n, n.process
	f.mu.Unlock()
	f.logMembers(i, "is started, and told", f.lists[i])
	f.loose.Go(func() {
		f.listen(n, out)
		err := cmd.Wait()
		f.mu.Lock()
		expected := n.ended < never
		f.mu.Unlock()
		if !expected {
			f.t.Errorf("the process of cache %d has ended: %v\n%s", i, err, complaints.String())
		}
		close(n.gone)
	})
	began := f.now()
	if r, ok := n.ask(order{Do: "ready", Limit: f.patience}); ok && r.Err != "" {
		f.wrong(began, "cache %d did not become ready in %v: %s", i, f.patience, r.Err)
	}
	f.mu.Lock()
	n.ready = true
	f.mu.Unlock()
	f.logMembers(i, "is ready, and sees", f.sees(n))
}

// listen takes in what n says until it has ended.
func (f *fleet) listen(n *node, out io.Reader) {
	for words := json.NewDecoder(out); ; {
		var r report
		if err := words.Decode(&r); err != nil {
			return
		}
		if r.Load {
			f.loose.Go(func() { f.load(n, r) })
			continue
		}
		n.mu.Lock()
		asked := n.waiting[r.ID]
		delete(n.waiting, r.ID)
		n.mu.Unlock()
		asked <- r
	}
}

// load is the source: it takes some time before it looks, and some after.
func (f *fleet) load(n *node, r report) {
	begun := f.now()
	<-time.After(rand.N(f.options.slowest/2 + 1))
	values, err := f.current(r.Keys)
	f.noteLoads(n.process, begun, r.Keys, values, err)
	<-time.After(rand.N(f.options.slowest/2 + 1))
	o := order{ID: r.ID, Do: "loaded", Values: values}
	if err != nil {
		o.Err = err.Error()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.say(o)
}

// say gives n an order. It has the lock. If n has ended, nobody hears of it.
func (n *node) say(o order) {
	if text, err := json.Marshal(o); err == nil {
		n.in.Write(append(text, '\n'))
	}
}

// ask gives n an order, and waits for what comes of it. It is not ok if n ends first.
func (n *node) ask(o order) (r report, ok bool) {
	asked := make(chan report, 1)
	n.mu.Lock()
	n.last++
	o.ID = n.last
	n.waiting[o.ID] = asked
	n.say(o)
	n.mu.Unlock()
	select {
	case r = <-asked:
		return r, true
	case <-n.gone:
		return r, false
	}
}

// node returns who is there as cache i and can be used, or nil.
func (f *fleet) node(i int) *node {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.nodes[i]; n != nil && n.ready {
		return n
	}
	return nil
}

// kill ends the process of cache i, if there is one.
func (f *fleet) kill(i int, how string) {
	f.mu.Lock()
	n := f.nodes[i]
	f.nodes[i] = nil
	f.mu.Unlock()
	if n == nil {
		return
	}
	f.happened(event{text: fmt.Sprintf("cache %d %s", i, how), cache: i})
	f.mu.Lock()
	n.ended = f.now()
	f.processes[i], f.ended[n.start] = nil, true
	f.mu.Unlock()
	n.cmd.Process.Kill()
	<-n.gone
}

func (f *fleet) endAll() {
	for i := range f.nodes {
		f.kill(i, "is not needed any more")
	}
	f.loose.Wait()
}

// sees returns whom n sees.
func (f *fleet) sees(n *node) []int {
	seen := []int{}
	r, _ := n.ask(order{Do: "seen", Limit: f.patience})
	for _, id := range r.Keys {
		seen = append(seen, slices.Index(f.addrs, id))
	}
	return seen
}

// tell tells cache i of a list.
func (f *fleet) tell(i int, list []int) {
	if slices.Equal(list, f.lists[i]) {
		return
	}
	f.lists[i] = list
	if n := f.node(i); n != nil {
		f.logMembers(i, "is told", list)
		n.ask(order{Do: "list", Keys: f.addrsOf(list), Limit: f.patience})
	}
}

func (f *fleet) addrsOf(list []int) (addrs []string) {
	for _, i := range list {
		addrs = append(addrs, f.addrs[i])
	}
	return addrs
}

func (f *fleet) logMembers(i int, what string, list []int) {
	f.happened(event{text: fmt.Sprintf("cache %d %s %v", i, what, list), cache: i, list: list})
}

// client makes calls at cache i, one after the other.
func (f *fleet) client(rng *rand.Rand, id, i int) {
	for {
		select {
		case <-time.After(time.Duration(rng.ExpFloat64() * float64(80*time.Millisecond))):
		case <-f.over:
			return
		}
		if n := f.node(i); n != nil {
			f.call(rng, id, n)
		}
	}
}

// call makes one call at n.
func (f *fleet) call(rng *rand.Rand, id int, n *node) {
	o := order{Limit: f.patience, Key: key(rng.IntN(keysHeld))}
	if rng.IntN(20) == 0 { // does not wait long
		o.Limit = time.Duration(rng.Int64N(int64(300 * time.Millisecond)))
	}
	some := names[rng.IntN(keysLoaded):]
	switch k := rng.IntN(1000); {
	case k < 360:
		o.Do, o.Key = string(get), some[0]
		if k >= 330 {
			o.Do, o.Key, o.Keys = "many", "", names
		} else if k >= 300 {
			o.Opts = []*shoal.GetOptions{{Fresh: true}, {MaxAge: 2 * time.Second}, {CachedOnly: true}, {CachedOnly: true, MaxAge: 5 * time.Second}}[rng.IntN(4)]
		}
		f.order(id, n, &f.ofLoaded, "loaded", o, false)
	case k < 445:
		o.Do, o.Key = string(remove), some[0]
		switch {
		case k < 400:
			o.Keys = some[:1]
			if o.Value = f.change(rng, o.Key); o.Value != 0 {
				o.Do = string(set)
			}
		case k < 440:
			o.Keys = some
		default:
			o.Do, o.Key, o.Keys = string(purge), "", names
		}
		for _, key := range o.Keys {
			if k >= 400 {
				f.change(rng, key)
			}
		}
		f.order(id, n, &f.ofLoaded, "loaded", o, false)
	case k < 650:
		o.Do = string(get)
		f.order(id, n, &f.ofHeld, "held", o, false)
	case k < 743:
		switch {
		case k < 720:
			o.Do = string(set)
			f.mu.Lock()
			f.last++
			o.Value = f.last
			f.mu.Unlock()
		case k < 740:
			o.Do, o.Keys = string(remove), []string{o.Key}
		default:
			o.Do, o.Key = string(purge), ""
		}
		f.order(id, n, &f.ofHeld, "held", o, false)
	case k < 780:
		o.Do, o.Keys = []string{string(set), string(remove), string(add), string(add), string(get), string(get)}[rng.IntN(6)], []string{o.Key}
		if o.Do == string(set) || o.Do == string(add) {
			o.Value = 1 + rng.IntN(100)
		}
		f.order(id, n, &f.ofMixed, "mixed", o, false)
	default:
		o.Do = string(get)
		if k >= 850 {
			o.Do, o.Value = string(add), 1+rng.IntN(9)
		}
		f.order(id, n, &f.ofCounters, "counters", o, false)
	}
}

// order has n make a call of a group, and notes what comes of it.
func (f *fleet) order(id int, n *node, h *history, group string, o order, final bool) {
	o.Group = group
	c := call{kind: kind(o.Do), client: id, key: o.Key, value: o.Value, start: f.now(), limit: o.Limit + scheduling, final: final}
	r, ok := n.ask(o)
	if ok {
		c.start, c.end, c.source = r.Start, r.End, r.Source
		if r.Err != "" {
			c.err = errors.New(r.Err)
		}
	} else {
		c.end, c.err = f.now(), errEnded
	}
	if f.stood(n, c) {
		c.limit = 0
	}
	switch c.kind {
	case get:
		c.value = r.Value
		if o.Opts != nil && o.Opts.Fresh {
			c.since = c.start
		} else if o.Opts != nil && o.Opts.MaxAge > 0 {
			c.since = c.start - o.Opts.MaxAge - 2*time.Second // what is on its way grows older, as long as a question may take
		}
	case add:
		c.sum = r.Value
	case "many":
		c.kind, c.source = get, "many"
		for c.key, c.value = range r.Values {
			got := c
			got.err = nil
			f.note(n.process, h, got)
		}
		if c.err == nil {
			return
		}
		c.key, c.value = "", 0
	case remove:
		for _, c.key = range o.Keys {
			f.note(n.process, h, c)
		}
		return
	}
	f.note(n.process, h, c)
}

// breakAll breaks one thing after the other, until there are no more calls. Then all is well again.
func (f *fleet) breakAll(rng *rand.Rand) {
	const (
		silent = iota
		off
		oneWay
		lossy
		divided
		paused
		source
		links // are what is before this

		restarted
		replaced
		apart
	)
	var next []int
	for goesOn := true; goesOn; {
		f.net.slow(rng, 40*time.Millisecond)
		if goesOn = f.wait(rng, 0, 2*time.Second); !goesOn {
			break
		}
		if len(next) == 0 {
			next = rng.Perm(links)
			if f.peers != stay {
				next = append(next[:1], restarted, replaced)
				if *onNetwork >= time.Minute { // it takes long to heal
					next = append(next, apart)
				}
				rng.Shuffle(len(next), func(i, k int) { next[i], next[k] = next[k], next[i] })
			}
		}
		what := next[0]
		next = next[1:]
		i, k := rng.IntN(f.size), rng.IntN(f.size-1)
		if k >= i {
			k++
		}
		side := make([]int, f.size)
		for i := range side {
			side[i] = rng.IntN(2)
		}
		side[k] = 1 - side[i]
		switch what {
		case restarted, replaced:
			goesOn = f.die(rng, i, what == replaced)
			continue
		case apart:
			goesOn = f.split(rng, side)
			continue
		}
		from := f.now()
		switch what {
		case silent:
			f.log("nothing reaches cache %d, nor leaves it", i)
			only := make([]int, f.size)
			only[i] = 1
			f.net.partition(only)
		case off:
			f.log("the interface of cache %d is down", i)
			f.switchNIC(i, false)
		case oneWay:
			f.log("nothing from cache %d reaches cache %d", i, k)
			f.net.lose(i, k, 1)
		case lossy:
			f.log("20%% of all packets are lost")
			for from := range f.size {
				for to := range f.size {
					f.net.lose(from, to, 0.2)
				}
			}
		case divided:
			f.log("the sides %v hear nothing of each other", side)
			f.net.partition(side)
		case paused:
			f.log("cache %d stands still", i)
			f.pause(i, true)
		case source:
			f.log("loads fail")
			f.breakSource(true)
		}
		goesOn = f.wait(rng, time.Second, 5*time.Second)
		f.net.heal()
		if what == off {
			f.switchNIC(i, true)
		}
		if what == paused {
			f.pause(i, false)
		}
		f.breakSource(false)
		f.log("all is well again")
		f.mu.Lock()
		f.faults = append(f.faults, interval{from, f.now()})
		f.mu.Unlock()
		if f.peers != stay && goesOn { // nobody dies until all have been told what they had missed
			goesOn = f.wait(rng, standIn, standIn+time.Second)
		}
	}
	for i := range f.size {
		f.tell(i, everybody(f.size))
	}
}

// pause has the process of cache i stand still, or go on.
func (f *fleet) pause(i int, still bool) {
	n, signal := f.node(i), syscall.SIGCONT
	f.mu.Lock()
	if still {
		signal = syscall.SIGSTOP
		n.still = append(n.still, interval{f.now(), never})
	} else {
		n.still[len(n.still)-1].to = f.now()
	}
	f.mu.Unlock()
	if err := n.cmd.Process.Signal(signal); err != nil {
		f.t.Error(err)
	}
}

// stood reports whether n stood still at any time of c, which may be late then.
func (f *fleet) stood(n *node, c call) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(n.still, func(s interval) bool { return s.from <= c.end && c.start <= s.to })
}

func (f *fleet) switchNIC(i int, up bool) {
	if err := f.net.hosts[i].inside(func() error { return setUp(nic, up) }); err != nil {
		f.t.Error(err)
	}
}

// wait lets between least and most pass, and reports whether the run goes on.
func (f *fleet) wait(rng *rand.Rand, least, most time.Duration) bool {
	select {
	case <-time.After(least + time.Duration(rng.Int64N(int64(most-least)))):
		return true
	case <-f.over:
		return false
	}
}

// die kills cache i, perhaps with its host, so that nobody hears of it. Another follows, after the others have been told of it
// or soon.
func (f *fleet) die(rng *rand.Rand, i int, told bool) (goesOn bool) {
	quietly := rng.IntN(2) == 0
	if quietly {
		only := make([]int, f.size)
		only[i] = 1
		f.net.partition(only)
	}
	f.kill(i, fmt.Sprintf("is killed, which the others can see: %v", !quietly))
	goesOn = f.wait(rng, 0, 3*time.Second)
	f.net.heal()
	others := slices.DeleteFunc(everybody(f.size), func(k int) bool { return k == i })
	if told {
		for _, k := range others {
			f.tell(k, others)
		}
		goesOn = goesOn && f.wait(rng, 0, 5*time.Second)
	}
	f.spawn(i)
	for _, k := range others {
		if told {
			f.wait(rng, 0, time.Second)
			f.tell(k, everybody(f.size))
		}
	}
	if f.owners > 1 { // one failure at a time
		return goesOn && f.wait(rng, repair, repair+time.Second)
	}
	return goesOn
}

// split cuts the caches into two sides, which cease to list each other, and heals that again.
func (f *fleet) split(rng *rand.Rand, side []int) (goesOn bool) {
	from := f.now()
	f.log("the sides %v hear nothing of each other", side)
	f.net.partition(side)
	goesOn = f.wait(rng, 0, 5*time.Second)
	for i := range f.size {
		f.tell(i, slices.DeleteFunc(everybody(f.size), func(k int) bool { return side[i] != side[k] }))
	}
	goesOn = goesOn && f.wait(rng, 0, 10*time.Second)
	healed := f.now()
	f.net.heal()
	f.log("the sides %v hear of each other", side)
	for i := range f.size {
		f.tell(i, everybody(f.size))
	}
	f.mu.Lock()
	f.splits = append(f.splits, split{interval{from, f.now() + repair}, healed, side})
	f.mu.Unlock()
	return goesOn && f.wait(rng, repair, repair+time.Second)
}

// finish asks all what there is in the end, and for what nobody has asked for, which must be loaded once.
func (f *fleet) finish() {
	from := f.now()
	fresh := func(n int) string { return fmt.Sprint("fresh ", n) }
	f.mu.Lock()
	for n := range keysFresh {
		f.source[fresh(n)] = 1
		f.ofLoaded.faded[fresh(n)] = map[int]time.Duration{1: never}
	}
	f.mu.Unlock()
	var asked sync.WaitGroup
	for i := range f.size {
		n := f.node(i)
		if n == nil {
			f.t.Errorf("cache %d is not there in the end", i)
			continue
		}
		if seen := f.sees(n); !slices.Equal(seen, everybody(f.size)) {
			f.wrong(from, "when all had settled, cache %d saw %v", i, seen)
		}
		asked.Go(func() {
			for k := range keysHeld {
				o := order{Do: string(get), Key: key(k), Limit: f.patience}
				if k < keysLoaded {
					f.order(-1, n, &f.ofLoaded, "loaded", o, true)
				}
				f.order(-1, n, &f.ofHeld, "held", o, true)
				f.order(-1, n, &f.ofCounters, "counters", o, true)
				f.order(-1, n, &f.ofMixed, "mixed", o, true)
			}
		})
		for k := range keysFresh {
			asked.Go(func() {
				f.order(-1, n, &f.ofLoaded, "loaded", order{Do: string(get), Key: fresh(k), Limit: f.patience}, false)
			})
		}
	}
	asked.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	loads := make(map[string]int)
	for _, l := range f.loads {
		loads[l.key]++
	}
	for k := range keysFresh {
		if key := fresh(k); loads[key] != 1 {
			f.bad = append(f.bad, violation{
				text: fmt.Sprintf("when all had settled, %s was loaded %d times", key, loads[key]), key: key, from: from, to: f.now(),
			})
		}
	}
	for n := range keysLoaded { // what there is at the end has not faded
		f.fade(key(n), never)
	}
}
