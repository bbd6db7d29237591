// Package memberlist is Shoal's discovery for processes that have nothing to register with: they tell each other who is
// there. Each gossips with a few others, over UDP and TCP, finds out within seconds when one has died, and needs to be
// told no more than where some of the others may be found:
//
//	self := "http://10.0.0.1:8080" // this process
//	discovery, err := memberlist.New(&memberlist.Options{
//		Seeds: []string{"10.0.0.1:7946", "10.0.0.2:7946", "cache.internal:7946"}, // the same in all processes
//		Key:   key,                                                              // 32 bytes that all share
//	})
//	if err != nil {
//		log.Fatal(err)
//	}
//	cache, err := shoal.New(&shoal.Options{Self: self, Discovery: discovery})
//	if err != nil {
//		log.Fatal(err)
//	}
//	http.Handle("/_shoal/", cache)
//	go func() { log.Fatal(http.ListenAndServe(":8080", nil)) }()
//	err = cache.Ready(ctx) // the seeds have been asked who is there, and those have been greeted
//
// Port 7946 must be open between all processes, for TCP and UDP.
//
// # Who is listed
//
// Every process that is alive and has a base URL, [shoal.Options].Self, is on every process's list. One without is the
// others' client: it gossips, and so knows them, and owns nothing. Who leaves is taken from the lists within a second or
// two; Cache.Shutdown takes as long for it, and never more than three. Who falls silent is, when others have tried for
// some seconds to reach it, also through each other: about six in a small fleet, and more in a large one (until then writes
// of its keys fail). A process that comes back, at whatever address, under the ID of one that is still listed, is listed at
// once: no name is ever taken.
//
// # Seeds
//
// A seed that is not a member is tried for ever, in the end every five to ten seconds, and its name is looked up anew
// each time. So it does not matter which process is the first, two that are each other's seeds find each other even if
// both start at once, and the halves of a fleet that was split are one again after the split, however long it was,
// if a seed of one is in the other. Name the same seeds everywhere, of which some are always there, or a DNS name that
// stands for all, such as that of a headless service. Two fleets with a seed in common become one, unless they have
// different Keys or Labels.
//
// A process has its first list, and so can be Ready, when a seed has told it who is there, or each has been tried once:
// at once if they refuse, after ten seconds if one is silent.
//
// # Trust
//
// Without a Key anybody who reaches the port can list and unlist peers, and so read and write what caches hold. With one,
// all gossip is encrypted and authenticated (AES-GCM), and processes that have another, or none, are strangers. To
// change it while the fleet runs, leave it nil and give Options.Config a Keyring that knows the old one and the new.
//
// The gossip is SWIM with Lifeguard, by github.com/hashicorp/memberlist.
package memberlist

import (
	"bytes"
	"cmp"
	"context"
	crypto "crypto/rand"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/shoalcache/shoal"
)

// Options are the options of [New]. The zero value of each field is its default.
type Options struct {
	// Bind is where this process listens to gossip, over TCP and UDP: an IP address, or nothing for all of this machine,
	// and a port. If empty, ":7946".
	Bind string
	// Advertise is the IP address and port at which others reach Bind. If empty, it is Bind itself; with the IP address in
	// shoal.Options.Self where Bind has none, or if there is none in that either, a private one of this machine.
	Advertise string
	// Seeds are where other processes may be found: host:port of their gossip, where the host may be a DNS name that stands
	// for many. This process itself, and others that do not exist, may be among them. If empty, the others find this one.
	Seeds []string
	// Key encrypts the gossip: 16, 24 or 32 bytes, the same in all processes. If nil, there is no encryption; a key that is
	// empty, but not nil, is an error.
	Key    []byte
	Logger *slog.Logger // for what becomes of seeds, and the gossip's own log, at levels Debug and Warn; if nil, slog.Default()
	// Config is all else: how often others are probed and when they are given up, keyrings, labels, allowed networks, as
	// by DefaultWANConfig of github.com/hashicorp/memberlist. If nil, DefaultLANConfig. Its Name, BindAddr, BindPort,
	// AdvertiseAddr, AdvertisePort, Logger and LogOutput mean nothing here, its Delegate and Events must be nil, and an empty
	// Label is "shoal". A Transport takes the place of Bind, and ends with the Cache. It is copied.
	Config *memberlist.Config
}

// New returns the Discovery of all processes that are found through opts.Seeds. It fails if an option is not what it must
// be; the error names the field. It listens to nothing yet: that a port is taken is found out, logged, and tried again by
// the Cache, as is a Self of more than 512 bytes, which is too long to be announced. A Discovery is for one Cache at a time.
func New(opts *Options) (shoal.Discovery, error) {
	var d discovery
	if opts != nil {
		d.Options = *opts
	}
	d.Bind = cmp.Or(d.Bind, ":7946")
	d.Seeds = slices.Clone(d.Seeds)
	d.Key = bytes.Clone(d.Key)
	d.Logger = cmp.Or(d.Logger, slog.Default())
	if d.Config == nil {
		d.Config = memberlist.DefaultLANConfig()
	}
	config := *d.Config
	d.Config = &config

	var err error
	if d.bind, err = parseAddr(d.Bind, true); err != nil {
		return nil, fmt.Errorf("memberlist: Options.Bind: %w", err)
	}
	if d.Advertise != "" {
		if d.advertise, err = parseAddr(d.Advertise, false); err != nil {
			return nil, fmt.Errorf("memberlist: Options.Advertise: %w", err)
		}
	}
	for _, seed := range d.Seeds {
		host, port, err := net.SplitHostPort(seed)
		if err != nil {
			return nil, fmt.Errorf("memberlist: Options.Seeds: %w", err)
		}
		if n, err := strconv.ParseUint(port, 10, 16); host == "" || n == 0 || err != nil {
			return nil, fmt.Errorf("memberlist: Options.Seeds: %q is not host:port", seed)
		}
	}
	if d.Key != nil {
		if err := memberlist.ValidateKey(d.Key); err != nil {
			return nil, fmt.Errorf("memberlist: Options.Key: it has %d bytes, not 16, 24 or 32", len(d.Key))
		}
	}
	switch {
	case config.ProtocolVersion == 0:
		err = errors.New("memberlist: Options.Config: it does not come from DefaultLANConfig or its like")
	case config.Delegate != nil:
		err = errors.New("memberlist: Options.Config.Delegate: it must be nil")
	case config.Events != nil:
		err = errors.New("memberlist: Options.Config.Events: it must be nil")
	}
	if err != nil {
		return nil, err
	}
	return d.discover, nil
}

// parseAddr parses an IP address and a port. If wildcards are meant, these are no address and port zero.
func parseAddr(s string, wildcard bool) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if host == "" && wildcard {
		host = "0.0.0.0"
	}
	// The library takes what it cannot parse for all addresses of the machine.
	addr, err := netip.ParseAddr(host)
	if err != nil || addr.Zone() != "" {
		return netip.AddrPort{}, fmt.Errorf("%q in %q is not an IP address", host, s)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q in %q is not a port", port, s)
	}
	if !wildcard && (n == 0 || addr.IsUnspecified()) {
		return netip.AddrPort{}, fmt.Errorf("%q cannot be reached", s)
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), nil
}

// A discovery is what New has made of its options.
type discovery struct {
	Options
	bind, advertise netip.AddrPort
}

// A seed that has been tried is tried again after firstRetry, then twice that, and so on up to lastRetry, each time cut at
// random by up to a half.
const firstRetry, lastRetry = 100 * time.Millisecond, 10 * time.Second

// gathering is how long changes are collected before they are told: each list makes a view, and each view costs.
const gathering = 100 * time.Millisecond

// leaving bounds the time that it takes to tell others that this process leaves.
const leaving = 3 * time.Second

// discover is the Discovery.
func (d *discovery) discover(ctx context.Context, self shoal.Peer, set func([]shoal.Peer)) error {
	if len(self.Addr) > memberlist.MetaMaxSize {
		return fmt.Errorf("memberlist: shoal.Options.Self has %d bytes, and no more than %d can be announced",
			len(self.Addr), memberlist.MetaMaxSize)
	}
	all := &members{alive: make(map[string]member), changed: make(chan struct{}, 1), log: d.Logger}
	gossip, err := d.listen(ctx, self, all)
	if err != nil {
		return err
	}

	var seeking sync.WaitGroup
	tried := make(chan struct{}, len(d.Seeds))
	for _, seed := range d.Seeds {
		seeking.Go(func() { d.seek(ctx, seed, gossip, all, tried) })
	}
	// The first list is that of somebody who knows, or this process would own every key for a moment.
	for range d.Seeds {
		select {
		case <-tried:
		case <-ctx.Done():
		}
		if all.count() > 1 {
			break
		}
	}
	all.tell(ctx, set)
	seeking.Wait()

	if err := gossip.Leave(leaving); err != nil {
		d.Logger.Warn("memberlist: not everybody has been told that this process leaves", "error", err)
	}
	if err := gossip.Shutdown(); err != nil {
		d.Logger.Warn("memberlist: the gossip has not ended as it should", "error", err)
	}
	return ctx.Err()
}

// listen starts to gossip.
func (d *discovery) listen(ctx context.Context, self shoal.Peer, all *members) (*memberlist.Memberlist, error) {
	config := *d.Config
	// The library refuses a name that another address has, until that has been dead for long. IDs come back at other
	// addresses, so each run has a name of its own.
	config.Name = crypto.Text()
	if self.ID != "" {
		config.Name = fmt.Sprintf("%.64s %s", self.ID, config.Name)
	}
	if d.Key != nil {
		config.SecretKey = d.Key
	}
	config.Label = cmp.Or(config.Label, "shoal") // others gossip at port 7946, too
	config.Delegate = announcement(self.Addr)
	config.Events = all
	config.Logger, config.LogOutput = log.New(&gossipLog{log: d.Logger}, "", 0), nil
	config.BindPort = int(d.bind.Port())
	if config.Transport == nil {
		t, err := newTransport(ctx, &config, d.bind)
		if err != nil {
			return nil, fmt.Errorf("memberlist: listening at %s: %w", d.bind, err)
		}
		config.Transport, config.BindPort = t, t.GetAutoBindPort()
	}
	config.AdvertiseAddr, config.AdvertisePort = d.advertised(self.Addr, config.BindPort)
	gossip, err := memberlist.Create(&config)
	if err != nil {
		config.Transport.Shutdown()
		return nil, fmt.Errorf("memberlist: starting to gossip at %s: %w", d.bind, err)
	}
	if !all.has(config.Name) {
		gossip.Shutdown()
		return nil, errors.New("memberlist: Options.Config refuses this process itself")
	}
	return gossip, nil
}

// advertised returns where others reach this process, which listens at port. No address is the library's choice: the one
// that is bound, or if that is all of them, a private one.
func (d *discovery) advertised(self string, port int) (string, int) {
	if d.advertise.IsValid() {
		return d.advertise.Addr().String(), int(d.advertise.Port())
	}
	if ip := ipOf(self); ip.IsValid() && d.bind.Addr().IsUnspecified() && d.Config.Transport == nil {
		return ip.String(), port
	}
	return "", port
}

// seek makes the process at seed a member for as long as it is none. It says so when it has tried once.
func (d *discovery) seek(ctx context.Context, seed string, gossip *memberlist.Memberlist, all *members, tried chan<- struct{}) {
	failed := false
	for retry := firstRetry; ; retry = min(2*retry, lastRetry) {
		err := join(ctx, seed, gossip, all)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !failed:
			d.Logger.Warn("memberlist: a seed is not reached, and will be tried again", "seed", seed, "error", err)
		case err == nil && failed:
			d.Logger.Info("memberlist: a seed is reached now", "seed", seed)
		}
		failed = err != nil
		if tried != nil {
			tried <- struct{}{}
			tried = nil
		}
		pause(ctx, retry-rand.N(retry/2))
	}
}

// join makes members of all whom seed stands for, and fails if none of them is one.
func join(ctx context.Context, seed string, gossip *memberlist.Memberlist, all *members) error {
	host, port, err := net.SplitHostPort(seed)
	if err != nil {
		return err
	}
	lookup, cancel := context.WithTimeout(ctx, lastRetry)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(lookup, "ip", host)
	if err != nil {
		return err
	}
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	joined := false
	var failed []error
	for _, addr := range addrs {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		at := net.JoinHostPort(addr.Unmap().String(), port)
		if all.gossipAt(at) { // the first of many has brought the others along
			joined = true
		} else if _, err := gossip.Join([]string{at}); err != nil {
			failed = append(failed, cmp.Or(errors.Unwrap(err), err)) // what it is wrapped in takes lines
		} else {
			joined = true
		}
	}
	if joined {
		return nil
	}
	return errors.Join(failed...)
}
