// Package cachetest makes clusters of Shoal's caches in one process, for tests: of Shoal, and of the code that uses it.
//
// The caches of a [Cluster] reach one another through memory, so that whole fleets run inside a testing/synctest bubble,
// where time is the test's own: a peer that takes an hour to answer takes no time at all. Faults are put between caches
// by their indexes: [Cluster.Down], [Cluster.Partition], [Cluster.Delay], [Cluster.Loss], and, for what one of them
// believes, [Cluster.See].
package cachetest

import (
	"context"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/consistenthash"
)

// A Cluster is a number of caches that are each other's peers. Its methods may be called concurrently.
type Cluster struct {
	t      testing.TB
	caches []*shoal.Cache
	tell   []chan news     // what each cache's Discovery waits for
	gone   []chan struct{} // closed when it is not called any more
	addrs  []string
	owners consistenthash.Map
	faults *faults
}

// New returns a Cluster of n caches, made with opts, each of which sees all. It sets Self, Discovery and Transport; ID
// must be empty. They are Ready when New returns, as young as all that has just started (for a minute writes are told to
// all), and are shut down when t ends. Call New inside the bubble of synctest.Test if the test is to run in one.
func New(t testing.TB, n int, opts *shoal.Options) *Cluster {
	t.Helper()
	return newCluster(t, n, opts, inMemory)
}

// Cache returns the cache of index i, from 0.
func (c *Cluster) Cache(i int) *shoal.Cache { return c.caches[i] }

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
		for i := range c.caches {
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
// nothing.
func (c *Cluster) See(i int, peers ...int) {
	c.t.Helper()
	list := make([]shoal.Peer, len(peers))
	for j, k := range peers {
		list[j].Addr = c.addrs[k]
	}
	ctx := c.t.Context()
	told := make(chan struct{})
	select {
	case c.tell[i] <- news{list, told}:
		<-told
	case <-c.gone[i]:
		c.t.Errorf("cache %d has been shut down, and sees nobody new", i)
		return
	}
	if err := c.caches[i].Ready(ctx); err != nil {
		c.t.Errorf("cache %d: %v", i, err)
	}
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
	c := &Cluster{t: t, faults: newFaults()}
	members := make([]consistenthash.Member, n)
	hosts := between(t, n)
	for i, h := range hosts {
		c.addrs = append(c.addrs, h.addr)
		members[i] = consistenthash.Member{ID: h.addr, Weight: o.Weight}
	}
	place := consistenthash.New
	if o.Placement != nil {
		place = o.Placement
	}
	c.owners = place(members)
	for i, h := range hosts {
		tell, gone := make(chan news), make(chan struct{})
		c.tell, c.gone = append(c.tell, tell), append(c.gone, gone)
		o.Self = h.addr
		o.Transport = h.transport
		if h.transport != nil {
			o.Transport = &faulty{c.faults, i, c.index, h.transport}
		}
		o.Discovery = func(ctx context.Context, self shoal.Peer, set func([]shoal.Peer)) error {
			for {
				select {
				case n := <-tell:
					set(n.list)
					close(n.told)
				case <-ctx.Done():
					close(gone)
					return ctx.Err()
				}
			}
		}
		cache, err := shoal.New(&o)
		if err != nil {
			t.Fatal(err)
		}
		c.caches = append(c.caches, cache)
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			if err := cache.Shutdown(ctx); err != nil {
				t.Errorf("cache %d: %v", i, err)
			}
		})
		h.serve(cache)
	}
	everybody := make([]int, n)
	for i := range everybody {
		everybody[i] = i
	}
	for i := range c.caches {
		c.See(i, everybody...)
		if seen := c.caches[i].Peers(); len(seen) != n {
			t.Fatalf("cache %d sees %d caches of %d", i, len(seen), n)
		}
	}
	return c
}

// index returns which cache a request to u reaches, or -1.
func (c *Cluster) index(u *url.URL) int {
	return slices.Index(c.addrs, u.Scheme+"://"+u.Host)
}
