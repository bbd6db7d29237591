package memberlist_test

import (
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// A network connects hosts in memory, so that those who gossip over it can live in a synctest bubble.
type network struct {
	mu    sync.Mutex // guards what follows
	hosts map[string]*host
	sides map[string]int // hosts on different sides hear nothing of each other
}

// A host is a memberlist.NodeAwareTransport.
type host struct {
	net     *network
	addr    string
	packets chan *memberlist.Packet
	streams chan net.Conn
}

// host returns a host at addr, host:port, that takes the place of another.
func (n *network) host(addr string) *host {
	h := &host{n, addr, make(chan *memberlist.Packet, 1000), make(chan net.Conn, 100)}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hosts == nil {
		n.hosts = make(map[string]*host)
	}
	n.hosts[addr] = h
	return h
}

// cut puts each host on a side; those not named are on side 0.
func (n *network) cut(sides map[string]int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sides = sides
}

func (n *network) apart(from, to string) bool { return n.sides[from] != n.sides[to] }

func (h *host) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	addr, port, err := net.SplitHostPort(h.addr)
	if err != nil {
		return nil, 0, err
	}
	n, err := strconv.Atoi(port)
	return net.ParseIP(addr).To4(), n, err
}

func (h *host) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	now := time.Now()
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if to := h.net.hosts[a.Addr]; to != nil && !h.net.apart(h.addr, a.Addr) {
		from, _ := net.ResolveUDPAddr("udp", h.addr)
		select {
		case to.packets <- &memberlist.Packet{Buf: b, From: from, Timestamp: now}:
		default:
		}
	}
	return now, nil
}

func (h *host) WriteTo(b []byte, addr string) (time.Time, error) {
	return h.WriteToAddress(b, memberlist.Address{Addr: addr})
}

func (h *host) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	h.net.mu.Lock()
	if h.net.apart(h.addr, a.Addr) {
		h.net.mu.Unlock()
		time.Sleep(timeout)
		return nil, fmt.Errorf("%s does not answer", a.Addr)
	}
	defer h.net.mu.Unlock()
	to := h.net.hosts[a.Addr]
	if to == nil {
		return nil, fmt.Errorf("%s refuses", a.Addr)
	}
	here, there := net.Pipe()
	select {
	case to.streams <- there:
		return here, nil
	default:
		return nil, fmt.Errorf("%s has too much to do", a.Addr)
	}
}

func (h *host) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return h.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

func (h *host) PacketCh() <-chan *memberlist.Packet { return h.packets }
func (h *host) StreamCh() <-chan net.Conn           { return h.streams }

func (h *host) Shutdown() error {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if h.net.hosts[h.addr] == h {
		delete(h.net.hosts, h.addr)
	}
	for {
		select {
		case conn := <-h.streams:
			conn.Close()
		default:
			return nil
		}
	}
}
