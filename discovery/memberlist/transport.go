package memberlist

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"
)

// A transport is a memberlist.NetTransport of which what it has dialed ends with ctx. The library would wait for a seed
// that is silent, and a process that shuts down would have to wait for it.
type transport struct {
	*memberlist.NetTransport
	ctx context.Context
}

func newTransport(ctx context.Context, config *memberlist.Config, bind netip.AddrPort) (*transport, error) {
	c := &memberlist.NetTransportConfig{
		BindAddrs:    []string{bind.Addr().String()},
		BindPort:     int(bind.Port()),
		Logger:       config.Logger,
		MetricLabels: config.MetricLabels,
	}
	if bind.Addr().IsUnspecified() {
		c.BindAddrs[0] = "0.0.0.0" // stands for IPv6, too, and is what the library knows as no address
	}
	for try := 1; ; try++ {
		t, err := memberlist.NewNetTransport(c)
		if err == nil {
			return &transport{t, ctx}, nil
		}
		if c.BindPort != 0 || try == 10 { // a port that is free for TCP may not be for UDP
			return nil, err
		}
	}
}

// Shutdown implements memberlist.Transport. That of the NetTransport waits until what has arrived is taken, which nobody may
// be there to do.
func (t *transport) Shutdown() error {
	down := make(chan error, 1)
	go func() { down <- t.NetTransport.Shutdown() }()
	for {
		select {
		case <-t.PacketCh():
		case conn := <-t.StreamCh():
			conn.Close()
		case err := <-down:
			return err
		}
	}
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	dialer := net.Dialer{Timeout: timeout}
	conn, err := dialer.DialContext(t.ctx, "tcp", a.Addr)
	if err != nil {
		return nil, err
	}
	return &dialed{conn, context.AfterFunc(t.ctx, func() { conn.Close() })}, nil
}

// A dialed connection is closed when a context ends, if not earlier.
type dialed struct {
	net.Conn
	forget func() bool
}

func (d *dialed) Close() error {
	d.forget()
	return d.Conn.Close()
}
