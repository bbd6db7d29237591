package memberlist

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

func newTestTransport(t *testing.T, ctx context.Context) *transport {
	t.Helper()
	config := memberlist.DefaultLANConfig()
	config.Logger = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	transport, err := newTransport(ctx, config, netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	return transport
}

func TestDialEndsWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	tr := newTestTransport(t, ctx)
	defer tr.Shutdown()
	cancel()
	self := memberlist.Address{Addr: net.JoinHostPort("127.0.0.1", "1")}
	if conn, err := tr.DialAddressTimeout(self, time.Hour); conn != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("%v, %v", conn, err)
	}
}

func TestTransportShutsDownThoughNobodyTakesWhatHasArrived(t *testing.T) {
	tr := newTestTransport(t, t.Context())
	to := memberlist.Address{Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(tr.GetAutoBindPort())).String()}
	for range 10 {
		conn, err := tr.DialAddressTimeout(to, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := tr.WriteToAddress([]byte("hello"), to); err != nil {
			t.Fatal(err)
		}
	}
	if err := tr.Shutdown(); err != nil {
		t.Error(err)
	}
}
