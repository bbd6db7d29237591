package shoal

// discovery.go: who may be there, and where.

import (
	"context"
	"fmt"
	"math"
	"net/url"
	"strings"
)

// A Peer is a process that takes part. Zero fields other than Addr mean what they do in [Options].
type Peer struct {
	ID, Addr, Zone string
	Weight         float64
}

// String returns the ID, and the address where that is another.
func (p Peer) String() string {
	if p.ID == p.Addr || p.ID == "" {
		return p.Addr
	}
	return fmt.Sprintf("%s (%s)", p.ID, p.Addr)
}

// A Discovery calls set with the complete list of peers, at first and on each change. Where peers announce themselves
// it announces self, and withdraws it when ctx ends. If it returns earlier, the last list stands and it is called again,
// after a while. An empty list counts only before the first that is not. Of a listed peer only the address is used; the
// rest the peer tells itself when it is greeted, and until then it owns nothing.
type Discovery func(ctx context.Context, self Peer, set func(peers []Peer)) error

// Static returns the Discovery of the peers at these base URLs, this process's own among them. One that dies stays listed: the next
// owners answer reads in its place, but writes of keys that it owns, or keeps a copy of, fail until it is back.
func Static(addrs ...string) Discovery {
	list := make([]Peer, len(addrs))
	for i, addr := range addrs {
		list[i].Addr = addr
	}
	return func(ctx context.Context, self Peer, set func([]Peer)) error {
		set(list)
		<-ctx.Done()
		return ctx.Err()
	}
}

func validWeight(w float64) bool { return w > 0 && w <= math.MaxFloat64 }

// normalAddr returns the one spelling of a base URL by which addresses are compared and IDs are made.
func normalAddr(addr string) (string, error) {
	if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	u, err := url.Parse(addr)
	switch {
	case err != nil:
		return "", err
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return "", fmt.Errorf("%q is more than a base URL", addr)
	case u.Scheme == "unix":
		if u.Host != "" || u.Path == "" {
			return "", fmt.Errorf("%q does not name a socket as unix:///path does", addr)
		}
		return "unix://" + u.EscapedPath(), nil
	case u.Scheme != "http" && u.Scheme != "https":
		return "", fmt.Errorf("%q is neither http://, https:// nor unix://", addr)
	case u.Hostname() == "":
		return "", fmt.Errorf("%q names no host", addr)
	}
	host := strings.ToLower(u.Host)
	if u.Scheme == "http" {
		host = strings.TrimSuffix(host, ":80")
	} else {
		host = strings.TrimSuffix(host, ":443")
	}
	base := url.URL{Scheme: u.Scheme, Host: strings.TrimSuffix(host, ":")}
	normal := base.String() + strings.TrimRight(u.EscapedPath(), "/")
	if again, err := url.Parse(normal); err != nil || again.Host != base.Host {
		return "", fmt.Errorf("%q names a host that a URL cannot hold", addr)
	}
	return normal, nil
}
