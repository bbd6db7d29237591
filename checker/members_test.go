package checker

// members_test.go: how processes come and go during a run, and what each is told of it when.

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// members are who takes part, and who has been told so. Each cache is told of each change at a time of its own, so that
// their lists may all be different. The first three are guarded by the run's lock.
type members struct {
	listed  []bool   // by all, in the end
	told    [][]bool // … and by whom already: by listing cache, by listed
	sides   []int    // of a cut, by cache: one side ceases to list the other; nil: there is none
	outside map[int]bool
	turn    []chan struct{} // of who tells a cache
	telling sync.WaitGroup
}

// assemble makes some of the caches members, one perhaps a mere client, and ends the others, which join later.
func (r *run) assemble(rng *rand.Rand) {
	m := &r.members
	m.listed, m.told, m.turn = make([]bool, r.size), make([][]bool, r.size), make([]chan struct{}, r.size)
	m.outside = make(map[int]bool)
	order := rng.Perm(r.size)
	if rng.IntN(3) == 0 {
		m.outside[order[0]] = true
		order = order[1:]
	}
	for n, i := range order {
		m.listed[i] = n < 2 || rng.IntN(3) > 0
	}
	for i := range r.size {
		m.told[i], m.turn[i] = slices.Clone(m.listed), make(chan struct{}, 1)
		if !m.listed[i] && !m.outside[i] {
			r.kill(i)
		}
	}
	for i := range r.size {
		r.cluster.See(i, indexes(m.told[i])...)
		r.logList(i, "was told", m.told[i])
	}
}

// comeAndGo has processes come and go until over is closed. Then all who are there see each other.
func (r *run) comeAndGo(rng *rand.Rand, over <-chan struct{}) {
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
		if goesOn = wait(time.Duration(rng.Int64N(int64(6 * time.Second)))); !goesOn {
			break
		}
		var there, away []int
		for i, p := range r.processes {
			if p != nil && r.members.listed[i] {
				there = append(there, i)
			} else if p == nil {
				away = append(away, i)
			}
		}
		n := rng.IntN(10)
		switch {
		case r.peers == part && n < 4:
			r.members.telling.Wait()
			if n < 2 {
				goesOn = r.split(rng, wait, over)
			} else {
				goesOn = r.breakOne(rng, wait) && wait(standIn)
			}
		case len(away) > 0 && (n < 5 || len(there) < 3):
			r.join(rng, wait, over, away[rng.IntN(len(away))])
		case len(there) < 3:
		case n == 5:
			r.forget(rng, wait, over, there[rng.IntN(len(there))])
		case n < 8 && r.peers != move:
			r.die(rng, wait, over, there[rng.IntN(len(there))])
		default:
			r.leave(rng, wait, over, there[rng.IntN(len(there))])
		}
	}
	r.members.telling.Wait()
	r.cluster.Heal()
	r.cut(nil)
	r.spread(rng, over, everybody(r.size)...)
	r.members.telling.Wait()
}

// join starts cache i. The others may have been told before.
func (r *run) join(rng *rand.Rand, wait func(time.Duration) bool, over <-chan struct{}, i int) {
	r.list(i, true)
	before := rng.IntN(2) == 0
	if before {
		r.spread(rng, over, i)
		wait(time.Duration(rng.Int64N(int64(3 * time.Second))))
	}
	if rng.IntN(4) > 0 {
		r.tell(i, everybody(r.size)...)
	} else {
		r.tell(i, i)
	}
	r.restart(i)
	if !before {
		r.spread(rng, over, i)
	}
	r.spread(rng, over, everybody(r.size)...)
}

// leave shuts cache i down. The others may have been told before.
func (r *run) leave(rng *rand.Rand, wait func(time.Duration) bool, over <-chan struct{}, i int) {
	r.list(i, false)
	before := rng.IntN(2) == 0
	if before {
		r.spread(rng, over, i)
	}
	p, patience := r.processes[i], time.Duration(5+rng.IntN(20))*time.Second
	if r.peers != move && rng.IntN(2) == 0 {
		patience = time.Duration(rng.Int64N(int64(time.Second)))
	}
	r.mu.Lock()
	p.leaves = r.now()
	r.mu.Unlock()
	r.log("cache %d is shut down, for %v at most", i, patience)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	began := r.now()
	err := r.cluster.Cache(i).Shutdown(ctx)
	cancel()
	if took := r.now() - began; took > patience+slack {
		r.wrong(began, "the Shutdown of cache %d took %v, with a context of %v", i, took, patience)
	}
	r.ends(p, fmt.Sprintf("has been shut down: %v", err))
	if rng.IntN(2) == 0 {
		r.kill(i)
	}
	if !before {
		r.spread(rng, over, i)
	}
	if err != nil {
		r.repair(wait)
	}
}

// repair waits, if several keep each value, until what is lost with a process is restored: only then comes the next failure.
func (r *run) repair(wait func(time.Duration) bool) {
	if r.owners > 1 {
		r.members.telling.Wait()
		wait(30 * time.Second)
	}
}

// die kills cache i, perhaps with its host, so that nobody hears of it. Either another follows soon, or the others are told.
func (r *run) die(rng *rand.Rand, wait func(time.Duration) bool, over <-chan struct{}, i int) {
	if rng.IntN(3) == 0 {
		r.ends(r.processes[i], "falls silent")
		r.lose(i, 1)
		wait(time.Duration(rng.Int64N(int64(5 * time.Second))))
		r.lose(i, 0)
	}
	r.kill(i)
	if rng.IntN(2) == 0 {
		wait(time.Duration(rng.ExpFloat64() * float64(2*time.Second)))
		r.restart(i)
	} else {
		r.list(i, false)
		r.spread(rng, over, i)
	}
	r.repair(wait)
}

// lose loses a share of all that goes to cache i or comes from there.
func (r *run) lose(i int, share float64) {
	for k := range r.size {
		r.cluster.Loss(i, k, share)
		r.cluster.Loss(k, i, share)
	}
}

// forget has cache i, which goes on, not be listed for a while.
func (r *run) forget(rng *rand.Rand, wait func(time.Duration) bool, over <-chan struct{}, i int) {
	r.list(i, false)
	r.spread(rng, over, i)
	wait(time.Duration(rng.Int64N(int64(15 * time.Second))))
	r.list(i, true)
	r.spread(rng, over, i)
}

// split cuts the caches into two sides, which may cease to list each other, and heals that again. Nobody dies until all
// have been told what they had missed. It reports whether the run goes on.
func (r *run) split(rng *rand.Rand, wait func(time.Duration) bool, over <-chan struct{}) bool {
	from, sides := r.now(), make([]int, r.size)
	var caches [2][]int
	for i := range sides {
		sides[i] = rng.IntN(2)
		caches[sides[i]] = append(caches[sides[i]], i)
	}
	r.log("caches %v and %v hear nothing of each other", caches[0], caches[1])
	r.cluster.Partition(caches[:]...)
	wait(time.Duration(rng.Int64N(int64(5 * time.Second))))
	r.cut(sides)
	r.spread(rng, over, everybody(r.size)...)
	wait(time.Duration(rng.Int64N(int64(20 * time.Second))))
	r.members.telling.Wait()
	r.log("caches %v and %v hear of each other", caches[0], caches[1])
	healed := r.now()
	r.cluster.Heal()
	r.delay(rng)
	r.cut(nil)
	r.spread(rng, over, everybody(r.size)...)
	r.members.telling.Wait()
	const repair = 30 * time.Second // greetings and hints are tried again every ten seconds at the latest
	r.mu.Lock()
	r.splits = append(r.splits, split{interval{from, r.now() + repair}, healed, sides})
	r.mu.Unlock()
	return wait(repair)
}

// spread tells each cache, at a time of its own or when over is closed, whether the others are listed.
func (r *run) spread(rng *rand.Rand, over <-chan struct{}, others ...int) {
	for i := range r.size {
		var lag time.Duration
		switch n := rng.IntN(16); {
		case n < 4:
		case n < 14 || r.peers == part:
			lag = time.Duration(rng.ExpFloat64() * float64(2*time.Second))
		case n == 14:
			lag = time.Duration(rng.Int64N(int64(25 * time.Second)))
		case r.laggard:
			lag = time.Duration(rng.Int64N(int64(90 * time.Second)))
		}
		r.members.telling.Go(func() {
			if lag > 0 {
				select {
				case <-time.After(lag):
				case <-over:
				}
			}
			r.tell(i, others...)
		})
	}
}

// tell tells cache i whether the others are listed.
func (r *run) tell(i int, others ...int) {
	m := &r.members
	m.turn[i] <- struct{}{}
	defer func() { <-m.turn[i] }()
	r.mu.Lock()
	list := slices.Clone(m.told[i])
	for _, k := range others {
		list[k] = m.listed[k] && (m.sides == nil || m.sides[i] == m.sides[k])
	}
	news := !slices.Equal(list, m.told[i]) && len(indexes(list)) > 0
	if news {
		m.told[i] = list
	}
	r.mu.Unlock()
	if !news {
		return
	}
	if r.process(i) == nil {
		r.cluster.See(i, indexes(list)...)
		return
	}
	r.logList(i, "is told", list)
	r.cluster.See(i, indexes(list)...)
	if r.process(i) != nil {
		r.logList(i, "sees", r.seen(i))
	}
}

// list says that cache i is to be listed by all, or by none.
func (r *run) list(i int, listed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.members.listed[i] = listed
}

// cut says that the sides are not to list each other.
func (r *run) cut(sides []int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.members.sides = sides
}

// kill ends the process of cache i, if there is one.
func (r *run) kill(i int) {
	if p := r.processes[i]; p != nil {
		r.ends(p, "is killed")
	}
	r.cluster.Kill(i)
}

// ends takes note that p serves nobody any more.
func (r *run) ends(p *process, how string) {
	r.happened(event{text: fmt.Sprintf("cache %d %s", p.cache, how), cache: p.cache})
	r.mu.Lock()
	p.ended = r.now()
	r.processes[p.cache] = nil
	r.ended[p.start] = true
	r.mu.Unlock()
	p.end()
}

// restart starts a process as cache i. Clients use it when it is ready.
func (r *run) restart(i int) {
	r.mu.Lock()
	told := r.members.told[i]
	r.mu.Unlock()
	r.logList(i, "is started, and told", told)
	began := r.now()
	p := r.started(i, r.cluster.Restart(i))
	ctx, cancel := context.WithTimeout(context.Background(), r.patience)
	defer cancel()
	if err := r.cluster.Cache(i).Ready(ctx); err != nil {
		r.wrong(began, "cache %d did not become ready in %v: %v", i, r.patience, err)
	}
	r.logList(i, "is ready, and sees", r.seen(i))
	r.mu.Lock()
	defer r.mu.Unlock()
	p.ready = true
}

// agree checks that all who are there see all who are listed.
func (r *run) agree(there []*process) {
	for _, p := range there {
		if seen := r.seen(p.cache); !slices.Equal(seen, r.members.listed) {
			r.wrong(r.now()-time.Minute, "when all had settled, cache %d saw %v, not %v", p.cache, indexes(seen), indexes(r.members.listed))
		}
	}
}

// seen returns whom cache i sees.
func (r *run) seen(i int) []bool {
	seen := make([]bool, r.size)
	for _, p := range r.cluster.Cache(i).Peers() {
		seen[slices.Index(r.addrs, p.ID)] = true
	}
	return seen
}

func indexes(list []bool) (all []int) {
	for i, listed := range list {
		if listed {
			all = append(all, i)
		}
	}
	return all
}

func everybody(size int) (all []int) {
	for i := range size {
		all = append(all, i)
	}
	return all
}
