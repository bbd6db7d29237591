package memberlist

import (
	"context"
	"log/slog"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/shoalcache/shoal"
)

// An announcement is what a process tells of itself in its Meta, by which it is a memberlist.Delegate: its base URL, or
// nothing if it is a client. The rest peers ask each other when they greet.
type announcement string

func (a announcement) NodeMeta(int) []byte           { return []byte(a) }
func (announcement) NotifyMsg([]byte)                {}
func (announcement) GetBroadcasts(_, _ int) [][]byte { return nil }
func (announcement) LocalState(bool) []byte          { return nil }
func (announcement) MergeRemoteState([]byte, bool)   {}

// members are the processes that are alive, as the gossip tells in the calls of a memberlist.EventDelegate. It holds its
// lock during these, so none of them may wait.
type members struct {
	changed chan struct{} // has an element when there is something to look at
	log     *slog.Logger

	mu    sync.Mutex // guards alive
	alive map[string]member
}

// A member is a process that is alive.
type member struct {
	at   string // where it gossips
	addr string // its base URL, or empty
}

func (m *members) NotifyJoin(n *memberlist.Node) {
	addr := string(n.Meta)
	if addr != "" && !isBaseURL(addr) {
		m.log.Warn("memberlist: a member announces what is no base URL, and is not listed", "name", n.Name, "at", n.Address(), "meta", addr)
		addr = ""
	}
	m.change(func() { m.alive[n.Name] = member{n.Address(), addr} })
}

func (m *members) NotifyUpdate(n *memberlist.Node) { m.NotifyJoin(n) }

func (m *members) NotifyLeave(n *memberlist.Node) {
	m.change(func() { delete(m.alive, n.Name) })
}

func (m *members) change(alive func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	alive()
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

func (m *members) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.alive)
}

func (m *members) has(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.alive[name]
	return ok
}

// gossipAt reports whether a member gossips at the address at.
func (m *members) gossipAt(at string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, member := range m.alive {
		if member.at == at {
			return true
		}
	}
	return false
}

// addrs returns the base URLs of all members, in order. A process that has come back may be there twice for a while.
func (m *members) addrs() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var addrs []string
	for _, member := range m.alive {
		if member.addr != "" {
			addrs = append(addrs, member.addr)
		}
	}
	slices.Sort(addrs)
	return slices.Compact(addrs)
}

// tell calls set with the list of members, and again after each change, until ctx ends.
func (m *members) tell(ctx context.Context, set func([]shoal.Peer)) {
	var told []string
	for first := true; ctx.Err() == nil; first = false {
		if addrs := m.addrs(); first || !slices.Equal(addrs, told) {
			list := make([]shoal.Peer, len(addrs))
			for i, addr := range addrs {
				list[i].Addr = addr
			}
			set(list)
			told = addrs
		}
		select {
		case <-m.changed:
			pause(ctx, gathering)
		case <-ctx.Done():
		}
	}
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// isBaseURL reports whether addr may be a Self. What is not, of one member, would fail everybody's Cache.Ready.
func isBaseURL(addr string) bool {
	u, err := url.Parse(addr)
	switch {
	case err != nil || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return false
	case u.Scheme == "unix":
		return u.Host == "" && u.Path != ""
	}
	return (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != ""
}

// ipOf returns the IP address that addr, a base URL, names as its host, if it does and others can use it.
func ipOf(addr string) netip.Addr {
	u, err := url.Parse(addr)
	if err != nil {
		return netip.Addr{}
	}
	ip, err := netip.ParseAddr(u.Hostname())
	if err != nil || ip.IsUnspecified() || ip.Zone() != "" {
		return netip.Addr{}
	}
	return ip
}

// A gossipLog is where the library writes its log, a line at a time.
type gossipLog struct {
	log  *slog.Logger
	said map[string]bool // warnings since
	from time.Time
}

// Write implements io.Writer. A log.Logger calls it once at a time. Warnings are said once a minute: whoever sends what
// must be refused would fill the log.
func (w *gossipLog) Write(line []byte) (int, error) {
	level, text := slog.LevelDebug, strings.TrimSpace(string(line))
	if tag, rest, ok := strings.Cut(text, "] "); ok && strings.HasPrefix(tag, "[") {
		text = rest
		if tag == "[WARN" || tag == "[ERR" || tag == "[ERROR" {
			level = slog.LevelWarn
		}
	}
	if level == slog.LevelWarn {
		if now := time.Now(); now.Sub(w.from) >= time.Minute || len(w.said) >= 1000 {
			w.said, w.from = make(map[string]bool), now
		}
		if w.said[text] {
			return len(line), nil
		}
		w.said[text] = true
	}
	w.log.Log(context.Background(), level, text)
	return len(line), nil
}
