//go:build unix

package main

// clients.go: the process that asks, once for each system.

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/golang/groupcache"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"

	"github.com/shoalcache/shoal"
)

// A system is what is measured.
type system struct {
	name   string
	server string // of servers; systems may share one
	binary string // that must be installed
	mixed  bool   // also measured under the mixed load
	dial   func(addr string) (*client, error)
}

// A client asks a server. What it gets it compares with what it wants.
type client struct {
	name   string
	server *server
	get    func(key string, want []byte) error
	many   func(keys []string, want [][]byte) error
	close  func()
}

const (
	shoals    = "Shoal"
	tuned     = "groupcache, tuned"
	pipelined = "redis, rueidis"
	limit     = "limit"

	patience = 10 * time.Second // for an answer; only a machine that stands still needs it
)

var systems = []system{
	{shoals, "shoal", "", true, func(addr string) (*client, error) {
		c, err := shoal.New(&shoal.Options{Discovery: shoal.Static(addr), PeerTimeout: patience})
		if err != nil {
			return nil, err
		}
		g := shoal.NewGroup[shoal.ByteView](c, "values", nil, &shoal.GroupOptions[shoal.ByteView]{HotBytes: -1})
		ctx := context.Background()
		return &client{
			get: func(key string, want []byte) error {
				got, err := g.Get(ctx, key)
				if err == nil && !got.EqualBytes(want) {
					err = wrong(key)
				}
				return err
			},
			many: func(keys []string, want [][]byte) error {
				got, err := g.GetMany(ctx, keys)
				for i, key := range keys {
					if err == nil && !got[key].EqualBytes(want[i]) {
						err = wrong(key)
					}
				}
				return err
			},
			close: func() { c.Shutdown(ctx) },
		}, c.Ready(ctx)
	}},
	{"groupcache", "groupcache", "", false, func(addr string) (*client, error) {
		return newGroupcache(addr, http.DefaultTransport.(*http.Transport)), nil
	}},
	{tuned, "groupcache", "", true, func(addr string) (*client, error) {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.MaxIdleConns, t.MaxIdleConnsPerHost = 0, 256
		return newGroupcache(addr, t), nil
	}},
	{"memcached, gomemcache", "memcached", "memcached", false, func(addr string) (*client, error) {
		c := memcache.New(addr)
		c.MaxIdleConns, c.Timeout = 256, patience
		return &client{
			get: func(key string, want []byte) error {
				item, err := c.Get(key)
				if err != nil {
					return err
				}
				return same(key, item.Value, want)
			},
			many: func(keys []string, want [][]byte) error {
				items, err := c.GetMulti(keys)
				for i, key := range keys {
					if item := items[key]; err == nil && item == nil {
						err = wrong(key)
					} else if err == nil {
						err = same(key, item.Value, want[i])
					}
				}
				return err
			},
			close: func() { c.Close() },
		}, c.Ping()
	}},
	{"redis, go-redis", "redis", "redis-server", false, func(addr string) (*client, error) {
		c := redis.NewClient(&redis.Options{Addr: addr, PoolSize: 256, ReadTimeout: patience, PoolTimeout: patience})
		ctx := context.Background()
		return &client{
			get: func(key string, want []byte) error {
				got, err := c.Get(ctx, key).Bytes()
				if err != nil {
					return err
				}
				return same(key, got, want)
			},
			many: func(keys []string, want [][]byte) error {
				all, err := c.MGet(ctx, keys...).Result()
				for i, got := range all {
					if s, ok := got.(string); !ok || s != string(want[i]) {
						return wrong(keys[i])
					}
				}
				return err
			},
			close: func() { c.Close() },
		}, c.Ping(ctx).Err()
	}},
	{pipelined, "redis", "redis-server", false, func(addr string) (*client, error) {
		c, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}, DisableCache: true, ConnWriteTimeout: patience})
		if err != nil {
			return nil, err
		}
		ctx := context.Background()
		return &client{
			get: func(key string, want []byte) error {
				got, err := c.Do(ctx, c.B().Get().Key(key).Build()).AsBytes()
				if err != nil {
					return err
				}
				return same(key, got, want)
			},
			many: func(keys []string, want [][]byte) error {
				all, err := c.Do(ctx, c.B().Mget().Key(keys...).Build()).ToArray()
				for i, message := range all {
					got, err := message.AsBytes()
					if err := cmp.Or(err, same(keys[i], got, want[i])); err != nil {
						return err
					}
				}
				return err
			},
			close: c.Close,
		}, nil
	}},
	{limit, "limit", "", true, func(addr string) (*client, error) {
		m, err := dialLimit(addr)
		if err != nil {
			return nil, err
		}
		return &client{get: m.get, many: m.many, close: m.close}, nil
	}},
}

// ours is groupcache's part of this process, of which there can be but one: the transport comes with the context. With no
// bytes for its caches, the group keeps nothing.
var ours = sync.OnceValues(func() (*groupcache.HTTPPool, *groupcache.Group) {
	pool := groupcache.NewHTTPPoolOpts("", nil)
	pool.Transport = func(ctx context.Context) http.RoundTripper { return ctx.Value(pool).(http.RoundTripper) }
	g := groupcache.NewGroup("values", 0, groupcache.GetterFunc(func(context.Context, string, groupcache.Sink) error {
		return errors.New("the peer did not answer")
	}))
	return pool, g
})

func newGroupcache(addr string, t *http.Transport) *client {
	pool, g := ours()
	pool.Set(addr)
	ctx := context.WithValue(context.Background(), pool, t)
	get := func(key string, want []byte) error {
		var got groupcache.ByteView
		err := g.Get(ctx, key, groupcache.ByteViewSink(&got))
		if err == nil && !got.EqualBytes(want) {
			err = wrong(key)
		}
		return err
	}
	many := func(keys []string, want [][]byte) error {
		errs := make([]error, len(keys))
		var wg sync.WaitGroup
		for i, key := range keys {
			wg.Go(func() { errs[i] = get(key, want[i]) })
		}
		wg.Wait()
		return errors.Join(errs...)
	}
	return &client{get: get, many: many, close: t.CloseIdleConnections}
}

func wrong(key string) error { return fmt.Errorf("what came for %q is not its value", key) }

func same(key string, got, want []byte) error {
	if !bytes.Equal(got, want) {
		return wrong(key)
	}
	return nil
}

// connect starts the servers of systems, with all values, and a client of each.
func connect(chosen []system, all ...values) []*client {
	running := make(map[string]*server)
	var clients []*client
	for _, s := range chosen {
		if running[s.server] == nil {
			running[s.server] = launch(s.server, all)
		}
		c, err := s.dial(running[s.server].addr)
		if err != nil {
			log.Fatalf("%s: %v", s.name, err)
		}
		c.name, c.server = s.name, running[s.server]
		clients = append(clients, c)
	}
	return clients
}

// disconnect closes clients, and stops their servers.
func disconnect(clients []*client) {
	var stopped []*server
	for _, c := range clients {
		c.close()
		if !slices.Contains(stopped, c.server) {
			stopped = append(stopped, c.server)
			c.server.stop()
		}
	}
}
