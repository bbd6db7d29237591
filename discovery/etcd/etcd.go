package etcd

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/shoalcache/shoal"
)

// Options are the options of [New]. The zero value of each field is its default.
type Options struct {
	// Prefix is what the keys of one fleet begin with, and those of no other. If it does not end in a slash, one is added.
	// If it is empty, it is "/shoal/".
	Prefix string
	// TTL is how long a process that has crashed stays listed, and how long after an outage of etcd nobody is taken from
	// the list: at least 5 s, rounded up to whole seconds. If zero, 10 s. It should be the same in all processes.
	TTL    time.Duration
	Logger *slog.Logger // for what is wrong with etcd or in it; if nil, slog.Default()
}

// shortest is the least TTL with which an outage can be told from an ordinary pause. Leases are renewed after a third of
// a TTL, or up to half a second later; so no lease ends through an outage of less than two thirds, less half a second, and
// half a TTL without word from etcd lies between the two.
const shortest = 5 * time.Second

// New returns the Discovery of the peers that are listed in etcd, among which it announces the process that uses it. The
// client remains the caller's, with its endpoints, its TLS and its credentials; it may serve any number of Caches, and
// anything else, and must be closed after their Shutdown, which waits for the withdrawal from the list, but not longer
// than two seconds. The Discovery returns an error if it has not read a first list within a TTL, or if the client has been
// closed. New panics if client is nil or an option is out of range; the message names it.
func New(client *clientv3.Client, opts *Options) shoal.Discovery {
	var o Options
	if opts != nil {
		o = *opts
	}
	o.Prefix = strings.TrimSuffix(cmp.Or(o.Prefix, "/shoal/"), "/") + "/"
	o.TTL = cmp.Or(o.TTL, 10*time.Second)
	o.Logger = cmp.Or(o.Logger, slog.Default())
	switch {
	case client == nil:
		panic("etcd: New: client is nil")
	case o.TTL < shortest:
		panic(fmt.Sprintf("etcd: New: Options.TTL: %v is less than %v", o.TTL, shortest))
	}
	o.TTL = (o.TTL + time.Second - 1).Truncate(time.Second)
	return func(ctx context.Context, self shoal.Peer, set func([]shoal.Peer)) error {
		d := &discovery{Options: o, client: client, set: set, known: make(map[string]entry)}
		if self.Addr != "" {
			value, err := json.Marshal(self)
			if err != nil {
				return fmt.Errorf("etcd: encode %v: %w", self, err)
			}
			d.key, d.value = o.Prefix+rand.Text(), string(value)
		}
		return d.run(ctx)
	}
}

// A discovery is one call of a Discovery.
type discovery struct {
	Options
	client     *clientv3.Client
	key, value string // that announce this process; empty if it has no address
	set        func([]shoal.Peer)

	lease  clientv3.LeaseID // the last one granted, or zero
	known  map[string]entry // what is, or was, under Prefix, by key
	listed bool             // set has been called
	last   []shoal.Peer     // with what
	heard  time.Time        // when there was word from etcd last
	held   time.Time        // until when nobody is taken from the list
}

// An entry is what a key says. Its peer has no address if the value is not a peer's.
type entry struct {
	peer     shoal.Peer
	revision int64
	gone     bool // from etcd; it stays listed while the list is held
}

const (
	together   = 100 * time.Millisecond // changes that come within that time are made known together
	retry      = time.Second            // after a session, cut at random by up to a half
	withdrawal = 2 * time.Second        // is not waited for longer than that
)

func (d *discovery) run(ctx context.Context) error {
	defer d.withdraw(ctx)
	for {
		err := d.session(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case !d.listed || d.client.Ctx().Err() != nil:
			return err
		}
		d.Logger.Warn("shoal: out of touch with etcd; the last list of peers stands", "error", err)
		select {
		case <-time.After(retry - mathrand.N(retry/2)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// session announces this process under a new lease, reads the list, and follows its changes. It ends when it does not
// hear of them any more: the lease has ended, or the watch has. An old lease ends by itself: the key moves to the new one.
func (d *discovery) session(ctx context.Context) error {
	lease := clientv3.NewLease(d.client) // the client's own would go on until the client is closed
	defer lease.Close()
	ctx, stop := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer stop()
	opening, opened := context.WithTimeout(ctx, d.TTL)
	defer opened()
	d.client.ActiveConnection().ResetConnectBackoff() // gRPC may have come to wait two minutes between its tries

	granted, err := lease.Grant(opening, int64(d.TTL/time.Second))
	if err != nil {
		return fmt.Errorf("etcd: grant a lease: %w", err)
	}
	d.lease = granted.ID
	if d.key != "" {
		if _, err := d.client.Put(opening, d.key, d.value, clientv3.WithLease(d.lease)); err != nil {
			return fmt.Errorf("etcd: put %s: %w", d.key, err)
		}
	}
	alive, err := lease.KeepAlive(ctx, d.lease)
	if err != nil {
		return fmt.Errorf("etcd: keep a lease alive: %w", err)
	}
	list, err := d.client.Get(opening, d.Prefix, clientv3.WithPrefix())
	if err != nil {
		return fmt.Errorf("etcd: list %s: %w", d.Prefix, err)
	}
	silent := time.AfterFunc(d.TTL, stop) // Watch waits for an answer, and what it returns lives as long as its context
	changes := d.client.Watch(ctx, d.Prefix, clientv3.WithPrefix(), clientv3.WithRev(list.Header.Revision+1))
	if !silent.Stop() {
		return fmt.Errorf("etcd: watch %s: no answer within %v", d.Prefix, d.TTL)
	}
	d.replace(list.Kvs)

	next, pending := time.NewTimer(0), true // when something is due to be made known
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case _, ok := <-alive:
			if !ok {
				return errors.New("etcd: the lease has ended")
			}
			d.hear()
		case c, ok := <-changes:
			if err := c.Err(); err != nil || !ok {
				return fmt.Errorf("etcd: watch %s: %w", d.Prefix, cmp.Or(err, errors.New("it has ended")))
			}
			d.hear()
			d.change(c.Events)
			if !pending {
				next.Reset(together)
				pending = true
			}
		case <-next.C:
			pending = false
			if again := d.publish(); again > 0 {
				next.Reset(again)
			}
		}
		if e, ok := d.known[d.key]; d.key != "" && (!ok || e.gone) {
			return fmt.Errorf("etcd: somebody has deleted %s", d.key)
		}
	}
}

// hear takes note of word from etcd. If there was none for so long that others' leases may have ended for the same reason,
// the list is held: those who lost theirs are given the time to come back.
func (d *discovery) hear() {
	now := time.Now()
	if now.Sub(d.heard) > d.TTL/2 {
		d.held = now.Add(d.TTL)
	}
	d.heard = now
}

// replace makes kvs, all that is in etcd, known. Only the first time there was nothing that could be missed.
func (d *discovery) replace(kvs []*mvccpb.KeyValue) {
	d.heard = time.Now()
	if d.listed {
		d.held = d.heard.Add(d.TTL)
	}
	for key, e := range d.known {
		e.gone = true
		d.known[key] = e
	}
	for _, kv := range kvs {
		d.put(kv)
	}
}

func (d *discovery) change(events []*clientv3.Event) {
	for _, event := range events {
		key := string(event.Kv.Key)
		if e, ok := d.known[key]; event.Type == clientv3.EventTypePut {
			d.put(event.Kv)
		} else if ok {
			e.gone = true
			d.known[key] = e
		}
	}
}

func (d *discovery) put(kv *mvccpb.KeyValue) {
	key := string(kv.Key)
	if strings.Contains(key[len(d.Prefix):], "/") {
		return
	}
	e, ok := d.known[key]
	e.gone = false
	if !ok || e.revision != kv.ModRevision {
		e = entry{revision: kv.ModRevision}
		err := json.Unmarshal(kv.Value, &e.peer)
		if err == nil && e.peer.Addr == "" {
			err = errors.New("it has no Addr")
		}
		if err != nil {
			d.Logger.Error("shoal: a key in etcd does not hold a peer", "key", key, "error", err)
			e.peer = shoal.Peer{}
		}
	}
	d.known[key] = e
}

// publish makes the list known if it is another than before. If it still has some who are gone, it returns for how long.
func (d *discovery) publish() (again time.Duration) {
	wait := time.Until(d.held)
	for key, e := range d.known {
		if e.gone && wait > 0 {
			again = wait
		} else if e.gone {
			delete(d.known, key)
		}
	}
	entries := slices.SortedFunc(maps.Values(d.known), func(a, b entry) int { // the latest of an address first
		return cmp.Or(strings.Compare(a.peer.Addr, b.peer.Addr), cmp.Compare(b.revision, a.revision))
	})
	list := make([]shoal.Peer, 0, len(entries))
	for _, e := range entries {
		if n := len(list); e.peer.Addr != "" && (n == 0 || list[n-1].Addr != e.peer.Addr) {
			list = append(list, e.peer)
		}
	}
	if !d.listed || !slices.Equal(list, d.last) {
		d.listed, d.last = true, list
		d.set(slices.Clone(list))
	}
	return again
}

// withdraw takes this process from the list.
func (d *discovery) withdraw(ctx context.Context) {
	if d.lease == 0 || d.client.Ctx().Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawal)
	defer cancel()
	if _, err := d.client.Revoke(ctx, d.lease); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		d.Logger.Warn("shoal: this process stays listed in etcd until its lease ends", "key", d.key, "error", err)
	}
}
