// Package cachetest makes clusters of Shoal's caches in one process, for tests: of Shoal, and of the code that uses it.
//
// The caches of a [Cluster] reach one another through memory, so that whole fleets run inside a testing/synctest bubble,
// where time is the test's own: a peer that takes an hour to answer takes no time at all. Faults are put between caches
// by their indexes: [Cluster.Down], [Cluster.Partition], [Cluster.Delay], [Cluster.Loss]; what one of them believes is
// said by [Cluster.See]; and they come and go by [Cluster.Kill] and [Cluster.Restart], and by their own Shutdown.
package cachetest

import (
	"context"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/consistenthash"
)

// A Cluster is a number of caches that are each other's peers. Its methods may be called concurrently.
type Cluster struct {
	t      testing.TB
	opts   shoal.Options // of all caches
	hosts  []host
	addrs  []string
	owners consistenthash.Map
	faults *faults

	mu        sync.Mutex     // guards what follows
	processes []*process     // the last on each host
	started   []*process     // all
	lists     [][]shoal.Peer // that each host was last told
}

// A process is a cache from its start to its end. Others may follow on its host.
type process struct {
	cache *shoal.Cache
	wire  *faulty       // nil: the cache's own, without faults
	tell  chan news     // what its Discovery waits for
	gone  chan struct{} // closed when that is not called any more
}

// New returns a Cluster of n caches, made with opts, each of which sees all. It sets Self, Discovery and Transport; ID
// must be empty. They are Ready when New returns, as young as all that has just started (for a minute writes are told to
// all), and are shut down when t ends, all at once. Call New inside the bubble of synctest.Test if the test is to run in one.
func New(t testing.TB, n int, opts *shoal.Options) *Cluster {
	t.Helper()
	return newCluster(t, n, opts, inMemory)
}

// Cache returns the cache of index i, from 0: the one that was started last.
func (c *Cluster) Cache(i int) *shoal.Cache { return c.process(i).cache }

func (c *Cluster) process(i int) *process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.processes[i]
}

// Owner returns the index of the cache that owns key when each sees all.
func (c *Cluster) Owner(key string) int { return c.owners.Owner(key) }

// Down makes all exchanges to and from i fail at once, until Up. Those under way end.
func (c *Cluster) Down(i int) { c.faults.set(func(f *fault) { f.down[i] = true }) }

// Up ends Down.
func (c *Cluster) Up(i int) { c.faults.set(func(f *fault) { f.down[i] = false }) }

// Partition cuts the cluster into sides that hear nothing of each other until Heal: exchanges between them, and those
// under way, last until their callers give up. A cache that is on no side is on one of its own.
func (c *Cluster) Partition(sides ...[]int) {
	c.faults.set(func(f *fault) {
		clear(f.side)
		for i := range c.hosts {
			f.side[i] = -1 - i
		}
		for s, side := range sides {
			for _, i := range side {
				f.side[i] = s
			}
		}
	})
}

// Delay makes everything that cache from says take d to reach cache to, until Heal. An hour makes a black hole.
func (c *Cluster) Delay(from, to int, d time.Duration) {
	c.faults.set(func(f *fault) { f.delay[link{from, to}] = d })
}

// Loss loses a share, from 0 to 1, of what cache from says to cache to, until Heal: questions and answers alike. Who
// waits for what was lost waits until it gives up. The choice is random, but the same in each run that asks in the same
// order.
func (c *Cluster) Loss(from, to int, share float64) {
	c.faults.set(func(f *fault) { f.loss[link{from, to}] = share })
}

// Heal undoes Partition, Delay and Loss.
func (c *Cluster) Heal() {
	c.faults.set(func(f *fault) {
		clear(f.side)
		clear(f.delay)
		clear(f.loss)
	})
}

// See tells cache i that the caches of the given indexes are there, and nobody else; it is among its own peers only if
// it is named. See returns when the cache has greeted those it did not know, or could not. To be told of nobody changes
// nothing. A cache that has been killed or shut down hears of it when it is started again.
func (c *Cluster) See(i int, peers ...int) {
	c.t.Helper()
	list := make([]shoal.Peer, len(peers))
	for j, k := range peers {
		list[j].Addr = c.addrs[k]
	}
	c.mu.Lock()
	c.lists[i] = list
	p := c.processes[i]
	c.mu.Unlock()
	told := make(chan struct{})
	select {
	case p.tell <- news{list, told}:
		<-told
	case <-p.gone:
		return
	}
	ctx := c.t.Context()
	if err := p.cache.Ready(ctx); err != nil && ctx.Err() != nil { // else it has been shut down meanwhile
		c.t.Errorf("cache %d: %v", i, err)
	}
}

// Kill ends the process of cache i, as the system would: nothing comes from it any more, nothing reaches it, and what it
// held is gone. Exchanges under way with it fail at once, as those of a process whose connections are closed; for a host
// that falls silent, Partition it first. Calls in the cache itself come to nothing that matters to others: whoever waits
// for one may get an error. Kill does nothing to a cache that has been killed.
func (c *Cluster) Kill(i int) {
	p := c.process(i)
	if p.wire != nil {
		c.faults.kill(p.wire)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	p.cache.Shutdown(ended) // waits for nothing; what it says reaches nobody
}

// Restart starts cache i again, at the same address and with the same ID: another process, in which there is nothing yet.
// It kills the one before, if that has not been done. The new one is told what was last said to cache i by See. Restart
// does not wait until it is Ready: make its groups first, as a program does. Cache returns it from now on.
//
// A cache that is to join later is killed before anything is done, and left out of what others See.
func (c *Cluster) Restart(i int) *shoal.Cache {
	c.t.Helper()
	c.Kill(i)
	p := c.start(i)
	c.mu.Lock()
	c.processes[i] = p
	list := c.lists[i]
	c.mu.Unlock()
	select {
	case p.tell <- news{list, make(chan struct{})}:
	case <-p.gone:
	}
	return p.cache
}

// news is what a cache's Discovery has to say.
type news struct {
	list []shoal.Peer
	told chan<- struct{} // closed when it has been said
}

func newCluster(t testing.TB, n int, opts *shoal.Options, between network) *Cluster {
	t.Helper()
	var o shoal.Options
	if opts != nil {
		o = *opts
	}
	if o.ID != "" {
		t.Fatal("cachetest: with Options.ID all caches would be the same peer")
	}
	c := &Cluster{t: t, opts: o, hosts: between(t, n), faults: newFaults(), lists: make([][]shoal.Peer, n)}
	t.Cleanup(c.end)
	members := make([]consistenthash.Member, n)
	for i, h := range c.hosts {
		c.addrs = append(c.addrs, h.addr)
		members[i] = consistenthash.Member{ID: h.addr, Weight: o.Weight}
	}
	place := consistenthash.New
	if o.Placement != nil {
		place = o.Placement
	}
	c.owners = place(members)
	everybody := make([]int, n)
	for i := range c.hosts {
		c.processes = append(c.processes, c.start(i))
		everybody[i] = i
	}
	for i, p := range c.processes {
		c.See(i, everybody...)
		if seen := p.cache.Peers(); len(seen) != n {
			t.Fatalf("cache %d sees %d caches of %d", i, len(seen), n)
		}
	}
	return c
}

// start starts a process on host i, which waits to be told whom it sees.
func (c *Cluster) start(i int) *process {
	c.t.Helper()
	h, o := c.hosts[i], c.opts
	p := &process{tell: make(chan news), gone: make(chan struct{})}
	o.Self = h.addr
	if h.transport != nil {
		p.wire = &faulty{faults: c.faults, from: i, index: c.index, next: h.transport}
		o.Transport = p.wire
	}
	o.Discovery = func(ctx context.Context, self shoal.Peer, set func([]shoal.Peer)) error {
		for {
			select {
			case n := <-p.tell:
				set(n.list)
				close(n.told)
			case <-ctx.Done():
				close(p.gone)
				return ctx.Err()
			}
		}
	}
	var err error
	if p.cache, err = shoal.New(&o); err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	c.started = append(c.started, p)
	c.mu.Unlock()
	h.serve(p.cache)
	c.faults.started(i)
	return p
}

// end shuts down whatever has been started, all at once: nobody waits for others to take over what it has.
func (c *Cluster) end() {
	c.mu.Lock()
	all := c.started
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for _, p := range all {
		wg.Go(func() {
			if err := p.cache.Shutdown(ctx); err != nil {
				c.t.Logf("at the end: %v", err) // what nobody takes over is no fault of the test's
			}
		})
	}
	wg.Wait()
}

// index returns which cache a request to u reaches, or -1.
func (c *Cluster) index(u *url.URL) int {
	return slices.Index(c.addrs, u.Scheme+"://"+u.Host)
}
