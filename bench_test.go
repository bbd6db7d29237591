package shoal_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/golang/groupcache"

	"github.com/shoalcache/shoal"
)

// BenchmarkHit is a Get that memory answers, from one goroutine and from many.
func BenchmarkHit(b *testing.B) {
	const keys = 10_000
	value := strings.Repeat("v", 100)
	names := make([]string, keys)
	for i := range names {
		names[i] = fmt.Sprintf("%016d", i)
	}
	cache, err := shoal.New(nil)
	if err != nil {
		b.Fatal(err)
	}
	views := shoal.NewGroup(cache, "views", func(context.Context, string) (shoal.ByteView, error) {
		return shoal.NewByteView(value), nil
	}, nil)
	texts := shoal.NewGroup(cache, "strings", func(context.Context, string) (string, error) { return value, nil }, nil)
	theirs := theirGroup("hits", func(_ context.Context, _ string, dest groupcache.Sink) error {
		return dest.SetString(value)
	})
	ctx := b.Context()
	for name, get := range map[string]func(key string) error{
		"ByteView": func(key string) error { _, err := views.Get(ctx, key); return err },
		"string":   func(key string) error { _, err := texts.Get(ctx, key); return err },
		"groupcache": func(key string) error {
			var v groupcache.ByteView
			return theirs.Get(ctx, key, groupcache.ByteViewSink(&v))
		},
	} {
		for _, key := range names {
			if err := get(key); err != nil {
				b.Fatal(err)
			}
		}
		b.Run(name+"/1", func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if err := get(names[i%keys]); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/16", func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(8) // times GOMAXPROCS
			var start atomic.Int64
			b.RunParallel(func(pb *testing.PB) {
				for i := int(start.Add(997)); pb.Next(); i++ {
					if err := get(names[i%keys]); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// BenchmarkPeerHit is a Get that the owner's memory answers, over TCP on the loopback.
func BenchmarkPeerHit(b *testing.B) {
	for _, callers := range []int{1, 16, 256} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			atPeer(b, callers, func(g *shoal.Group[shoal.ByteView], keys []string, i int) error {
				_, err := g.Get(b.Context(), keys[i%len(keys)])
				return err
			})
		})
	}
}

// BenchmarkPeerMany is a GetMany of 100 keys that the owner's memory answers, over TCP on the loopback.
func BenchmarkPeerMany(b *testing.B) {
	for _, callers := range []int{1, 16} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			atPeer(b, callers, func(g *shoal.Group[shoal.ByteView], keys []string, i int) error {
				_, err := g.GetMany(b.Context(), keys[i%10*100:][:100])
				return err
			})
			b.ReportMetric(float64(b.N)*100/b.Elapsed().Seconds(), "keys/s")
		})
	}
}

// atPeer measures what callers ask a peer at once, which has 1,000 keys with values of 1 KiB.
func atPeer(b *testing.B, callers int, ask func(g *shoal.Group[shoal.ByteView], keys []string, i int) error) {
	server := httptest.NewUnstartedServer(nil)
	self := "http://" + server.Listener.Addr().String()
	cache, err := shoal.New(&shoal.Options{Self: self, Discovery: shoal.Static(self)})
	if err != nil {
		b.Fatal(err)
	}
	server.Config.Handler = cache
	server.Start()
	defer server.Close()
	defer cache.Shutdown(context.Background())
	asker, err := shoal.New(&shoal.Options{Discovery: shoal.Static(self)})
	if err != nil {
		b.Fatal(err)
	}
	defer asker.Shutdown(context.Background())
	if err := asker.Ready(b.Context()); err != nil {
		b.Fatal(err)
	}
	value := strings.Repeat("v", 1<<10)
	shoal.NewGroup(cache, "g", func(context.Context, string) (string, error) { return value, nil }, nil)
	g := shoal.NewGroup[shoal.ByteView](asker, "g", nil, nil)
	keys := make([]string, 1000)
	for i := range keys {
		keys[i] = fmt.Sprintf("%016d", i)
	}

	b.ReportAllocs()
	b.SetParallelism(max(callers/2, 1))
	var start atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
		for i := int(start.Add(997)); pb.Next(); i++ {
			if err := ask(g, keys, i); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkMiss is a Get that runs the getter, which returns at once.
func BenchmarkMiss(b *testing.B) {
	cache, err := shoal.New(nil)
	if err != nil {
		b.Fatal(err)
	}
	value := strings.Repeat("v", 100)
	g := shoal.NewGroup(cache, "g", func(context.Context, string) (string, error) { return value, nil }, nil)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := g.Get(b.Context(), fmt.Sprintf("%016d", i)); err != nil {
			b.Fatal(err)
		}
	}
}
