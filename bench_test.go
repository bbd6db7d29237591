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

			b.ReportAllocs()
			b.SetParallelism(max(callers/2, 1))
			var start atomic.Int64
			b.RunParallel(func(pb *testing.PB) {
				for i := int(start.Add(997)); pb.Next(); i++ {
					if _, err := g.Get(b.Context(), fmt.Sprintf("%016d", i%1000)); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
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

// BenchmarkPeerHit gets values of 1 KiB that a peer holds, over loopback, both sides in this process.
func BenchmarkPeerHit(b *testing.B) {
	const n = 10_000
	list := make([]string, 2)
	servers := make([]*httptest.Server, 2)
	for i := range servers {
		servers[i] = httptest.NewUnstartedServer(nil)
		list[i] = "http://" + servers[i].Listener.Addr().String()
	}
	var groups []*shoal.Group[shoal.ByteView]
	var caches []*shoal.Cache
	for i, s := range servers {
		c, err := shoal.New(&shoal.Options{Self: list[i], Discovery: shoal.Static(list...)})
		if err != nil {
			b.Fatal(err)
		}
		s.Config.Handler = c
		s.Start()
		b.Cleanup(s.Close)
		b.Cleanup(func() { c.Shutdown(context.Background()) })
		caches = append(caches, c)
		groups = append(groups, shoal.NewGroup(c, "g", func(context.Context, string) (shoal.ByteView, error) {
			return shoal.NewByteView(make([]byte, 1024)), nil
		}, &shoal.GroupOptions[shoal.ByteView]{HotBytes: -1}))
	}
	for _, c := range caches {
		if err := c.Ready(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	var keys []string
	for i := 0; len(keys) < n; i++ {
		key := fmt.Sprint("key ", i)
		if e, err := groups[0].GetEntry(b.Context(), key); err != nil {
			b.Fatal(err)
		} else if e.Source != "memory" && e.Source != "getter" || groups[1].Stats().Entries == int64(len(keys))+1 {
			keys = append(keys, key)
		}
	}
	for _, callers := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("%d callers", callers), func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(max(callers/runtime.GOMAXPROCS(0), 1))
			ctx := b.Context()
			get := func(i int) {
				if _, err := groups[0].Get(ctx, keys[i%n]); err != nil {
					b.Error(err)
				}
			}
			if callers == 1 {
				for i := 0; b.Loop(); i++ {
					get(i)
				}
				return
			}
			b.RunParallel(func(pb *testing.PB) {
				for i := rand.IntN(n); pb.Next(); i++ {
					get(i)
				}
			})
		})
	}
}
