package shoal

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// transports are what carries Requests unless Options.Transport does: one for each host, so that connections to one can be
// closed without those to others.
type transports struct {
	dialTimeout time.Duration

	mu  sync.Mutex // guards all
	all map[string]*http.Transport
}

func (t *transports) RoundTrip(r *http.Request) (*http.Response, error) {
	t.mu.Lock()
	to := t.all[r.URL.Host]
	if to == nil {
		to = newTransport(t.dialTimeout)
		if t.all == nil {
			t.all = make(map[string]*http.Transport)
		}
		t.all[r.URL.Host] = to
	}
	t.mu.Unlock()
	return to.RoundTrip(r)
}

// closeIdle closes the connections to the process at addr that carry nothing, and forgets it.
func (t *transports) closeIdle(addr string) {
	u, err := target(addr)
	if err != nil {
		return
	}
	t.mu.Lock()
	to := t.all[u.Host]
	delete(t.all, u.Host)
	t.mu.Unlock()
	if to != nil {
		to.CloseIdleConnections()
	}
}

// closeAllIdle is closeIdle for all.
func (t *transports) closeAllIdle() {
	t.mu.Lock()
	all := t.all
	t.all = nil
	t.mu.Unlock()
	for _, to := range all {
		to.CloseIdleConnections()
	}
}

// newTransport returns a transport to one host: it keeps connections for many callers at once, asks no proxy, and knows
// unix://.
func newTransport(dialTimeout time.Duration) *http.Transport {
	dialer := net.Dialer{Timeout: dialTimeout}
	return &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if path, ok := socketPath(addr); ok {
				network, addr = "unix", path
			}
			conn, err := dialer.DialContext(ctx, network, addr)
			if tcp, ok := conn.(*net.TCPConn); ok {
				// A connection that is given up has nothing to say any more. Else the kernel would go on sending what is in its
				// buffer, and a Set whose error has been returned would come minutes later, after others that returned nil.
				tcp.SetLinger(0)
			}
			return conn, err
		},
		MaxIdleConnsPerHost: 256,
		IdleConnTimeout:     90 * time.Second,
		TLSHandshakeTimeout: dialTimeout,
		DisableCompression:  true,
	}
}
