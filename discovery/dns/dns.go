// Package dns finds peers by their addresses in the DNS: those of a headless Service of Kubernetes, for one, or of any
// other name that stands for all of them.
//
// A name is looked up as /etc/resolv.conf says, in its search list too. One that ends in a dot is looked up as it is,
// which spares queries, with Kubernetes' usual settings six of eight, and what may fail of them.
//
// Answers must be complete. Where a server picks some of the records for each answer, as AWS Cloud Map and Route 53 do
// of more than eight, and Consul over UDP, peers come and go with every look. (Consul tells all of them to a
// [net.Resolver] that dials TCP.) That an answer is long does no harm: it comes over TCP then.
package dns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shoalcache/shoal"
)

// Options are the options of [New]. The zero value of each field is its default.
type Options struct {
	// Interval is the time from one look at the DNS to the next, each time cut at random by up to a quarter. If zero, five
	// seconds. What caches on the way may keep an answer for comes on top.
	Interval time.Duration
	// Resolver asks the DNS. If nil, it is Go's own, which reads /etc/hosts and /etc/resolv.conf, with StrictErrors: if A
	// or AAAA records cannot be had, for other reasons than that there are none, the others do not count. A Resolver
	// without StrictErrors, or one that asks the system, may take half of the peers for all of them.
	Resolver *net.Resolver
}

// New returns the Discovery of all the hosts that url's host, an A, AAAA or SRV name, stands for; the one on which this
// process runs should be among them. With nil options it has the defaults. It panics if Interval is negative. Several
// Caches may use one such Discovery.
//
// url is a base URL like shoal.Options.Self, the same for all peers but for the host, such as
// http://shoal.default.svc.cluster.local.:8080. If the first two labels of the host begin with an underscore, as in
// http://_peers._tcp.shoal.default.svc.cluster.local., that is the name of SRV records: their ports count, not url's, and
// each of their targets is a peer, whatever its priority and weight.
//
// The peers of an A or AAAA name are listed by IP address, so that a pod which is replaced is at another. With https,
// either certificates are for addresses, or Options.Transport expects a name that all of them have, as the example shows.
// The targets of SRV records are listed by name: that is what their certificates are for, and to look up each would cost
// every peer a query for every other. Who connects to them looks them up, by Options.Transport and not by Resolver, so that
// a pod which is replaced under its name is found at its new address.
//
// The DNS knows addresses, not IDs. These the peers tell when they are greeted.
//
// Peers change when the DNS says so. While it cannot be asked, or answers by half, the last list stands, and without one
// Ready waits. When it says that there is no such name or record, this process takes itself for the first, of whom the
// DNS does not know yet, and Ready returns; peers that have been listed stay, though. In both cases the Cache's Logger is
// told, and the DNS is asked again soon: a name that is spelled wrong, of which nothing else would tell, is heard of.
//
// A url whose host is no name stands for itself. So if it is no address either, that is logged as soon as the Cache is
// made, and [shoal.Cache.Ready] fails and says why.
func New(url string, opts *Options) shoal.Discovery {
	n := name{interval: 5 * time.Second, resolver: &net.Resolver{PreferGo: true, StrictErrors: true}}
	if opts != nil {
		if opts.Interval < 0 {
			panic(fmt.Sprintf("dns: Options.Interval: %v is negative", opts.Interval))
		}
		n.interval = cmp.Or(opts.Interval, n.interval)
		n.resolver = cmp.Or(opts.Resolver, n.resolver)
	}
	var ok bool
	if n.base, ok = named(url); !ok {
		return shoal.Static(url)
	}
	return n.discover
}

// A name is what is looked up again and again.
type name struct {
	base     *url.URL
	interval time.Duration
	resolver *net.Resolver
}

// named parses addr, and reports whether it is a base URL whose host is a name.
func named(addr string) (*url.URL, bool) {
	if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	u, err := url.Parse(addr)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" ||
		u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, false
	}
	_, err = netip.ParseAddr(u.Hostname())
	return u, err != nil
}

// discover is the Discovery. It returns when a look finds nobody: its caller logs the error, and calls it again soon.
func (n name) discover(ctx context.Context, _ shoal.Peer, set func([]shoal.Peer)) error {
	for last := []shoal.Peer(nil); ; {
		peers, err := n.look(ctx)
		if err != nil {
			if e, ok := errors.AsType[*net.DNSError](err); ok && e.IsNotFound {
				set(nil)
			}
			return fmt.Errorf("dns: looking for the peers at %s: %w", n.base, err)
		}
		if !slices.Equal(peers, last) {
			set(peers)
			last = peers
		}
		select {
		case <-time.After(n.interval - rand.N(n.interval/4+1)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// look returns, in some order that is always the same, the peers that the DNS knows now: one at least, or an error.
func (n name) look(ctx context.Context) ([]shoal.Peer, error) {
	var hosts []string // with ports
	var err error
	if host := n.base.Hostname(); isSRV(host) {
		hosts, err = n.targets(ctx, host)
	} else {
		hosts, err = n.addresses(ctx, host)
	}
	if err != nil {
		return nil, err
	}
	slices.Sort(hosts)
	hosts = slices.Compact(hosts)
	peers := make([]shoal.Peer, len(hosts))
	for i, host := range hosts {
		peer := *n.base
		peer.Host = host
		peers[i].Addr = peer.String()
	}
	return peers, nil
}

func isSRV(host string) bool {
	labels := strings.SplitN(host, ".", 3)
	return len(labels) > 2 && strings.HasPrefix(labels[0], "_") && strings.HasPrefix(labels[1], "_")
}

func (n name) addresses(ctx context.Context, host string) ([]string, error) {
	addrs, err := n.resolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	hosts := make([]string, len(addrs))
	for i, addr := range addrs {
		addr = addr.Unmap()
		if hosts[i] = addr.String(); addr.Is6() {
			hosts[i] = "[" + hosts[i] + "]"
		}
		if port := n.base.Port(); port != "" {
			hosts[i] += ":" + port
		}
	}
	return hosts, nil
}

func (n name) targets(ctx context.Context, host string) ([]string, error) {
	_, records, err := n.resolver.LookupSRV(ctx, "", "", host)
	if err != nil {
		return nil, err
	}
	var hosts []string
	for _, r := range records {
		if target := strings.TrimSuffix(r.Target, "."); target != "" { // the root stands for nobody
			hosts = append(hosts, net.JoinHostPort(target, strconv.Itoa(int(r.Port))))
		}
	}
	if hosts == nil {
		return nil, &net.DNSError{Err: "the service is not to be had", Name: host, IsNotFound: true}
	}
	return hosts, nil
}
