package etcd_test

import (
	"flag"
	"fmt"
	"net"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// endpoint is that of an etcd server which all tests share that do it no harm.
var endpoint string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "etcd")
	if err != nil {
		panic(err)
	}
	server, err := serve(dir)
	if err != nil {
		panic(err)
	}
	endpoint = server.Clients[0].Addr().String()
	flag.Set("test.parallel", "20") // tests wait for leases to end, most of the time
	code := m.Run()
	server.Close()
	os.RemoveAll(dir)
	os.Exit(code)
}

// serve starts an etcd server, at a new address, with the data that is in dir.
func serve(dir string) (*embed.Etcd, error) {
	anywhere := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	config := embed.NewConfig()
	config.Dir = dir
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{anywhere}, []url.URL{anywhere}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{anywhere}, []url.URL{anywhere}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	config.TickMs, config.ElectionMs = 20, 200
	config.UnsafeNoFsync = true
	config.LogLevel = "panic"
	server, err := embed.StartEtcd(config)
	if err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	select {
	case <-server.Server.ReadyNotify():
		return server, nil
	case err := <-server.Err():
		server.Close()
		return nil, fmt.Errorf("start etcd: %w", err)
	case <-time.After(30 * time.Second):
		server.Close()
		return nil, fmt.Errorf("start etcd: it is not ready after 30 s")
	}
}

// A road leads to an etcd server, and can be blocked.
type road struct {
	to       atomic.Value // the address of the server
	listener net.Listener
	gate     sync.RWMutex // is held for writing while nothing gets through
	mu       sync.Mutex   // guards what follows
	closed   bool
	conns    map[net.Conn]bool
	traffic  sync.WaitGroup
}

func newRoad(t *testing.T, to string) *road {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &road{listener: listener, conns: make(map[net.Conn]bool)}
	r.to.Store(to)
	r.traffic.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			r.traffic.Go(func() { r.carry(conn) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		r.close()
		r.traffic.Wait()
	})
	return r
}

func (r *road) addr() string { return r.listener.Addr().String() }

func (r *road) carry(conn net.Conn) {
	defer conn.Close()
	server, err := net.Dial("tcp", r.to.Load().(string))
	if err != nil {
		return
	}
	defer server.Close()
	if !r.take(conn, server) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { r.pipe(server, conn) })
	both.Go(func() { r.pipe(conn, server) })
	both.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, conn)
	delete(r.conns, server)
}

// take makes close end these connections, unless it is too late for that.
func (r *road) take(conn, server net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.conns[conn], r.conns[server] = true, true
	}
	return !r.closed
}

func (r *road) pipe(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		r.gate.RLock()
		_, failed := to.Write(buffer[:n])
		r.gate.RUnlock()
		if err != nil || failed != nil {
			return
		}
	}
}

// close ends all connections, and does so with new ones, until open is called.
func (r *road) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for conn := range r.conns {
		conn.Close()
	}
}

func (r *road) open() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = false
}

// newClient returns a client of the server at endpoint.
func newClient(t testing.TB, endpoint string) *clientv3.Client {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}
