package compress_test

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"strings"
	"testing"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/cachetest"
	"github.com/shoalcache/shoal/compress"
)

func Example() {
	cache, err := shoal.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	codec, err := compress.New[string](nil, 1<<10)
	if err != nil {
		log.Fatal(err)
	}
	pages := shoal.NewGroup(cache, "pages", func(context.Context, string) (string, error) {
		return strings.Repeat("<td>", 10_000), nil
	}, &shoal.GroupOptions[string]{Codec: codec})
	page, err := pages.Get(context.Background(), "/index.html")
	fmt.Println(len(page), err, pages.Stats().Bytes < 10_000)
	// Output: 40000 <nil> true
}

// Values come back as they went in from every cache, and those worth it take less memory.
func TestValuesComeBackAndTakeLess(t *testing.T) {
	codec, err := compress.New[string](nil, 100)
	if err != nil {
		t.Fatal(err)
	}
	c := cachetest.New(t, 2, nil)
	var groups []*shoal.Group[string]
	for i := range 2 {
		groups = append(groups, shoal.NewGroup(c.Cache(i), "g", func(_ context.Context, key string) (string, error) {
			return strings.Repeat(key, len(key)*100), nil
		}, &shoal.GroupOptions[string]{Codec: codec}))
	}
	var sum int64
	for n := range 100 {
		key := strings.Repeat("k", n)
		want := strings.Repeat(key, len(key)*100)
		sum += int64(len(want))
		for i, g := range groups {
			if v, err := g.Get(t.Context(), key); v != want || err != nil {
				t.Errorf("cache %d: %d bytes, %v, want %d", i, len(v), err, len(want))
			}
		}
	}
	if n := groups[0].Stats().Bytes + groups[1].Stats().Bytes; n > sum/10 {
		t.Errorf("%d bytes of values take %d", sum, n)
	}
}

// What is shared counts as what it takes, not as what its encoding does.
func TestSharedValuesCountAsWhatTheyTake(t *testing.T) {
	codec, err := compress.New[string](nil, 100)
	if err != nil {
		t.Fatal(err)
	}
	cache, err := shoal.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	g := shoal.NewGroup(cache, "g", func(_ context.Context, key string) (string, error) {
		return strings.Repeat(key, 10_000), nil
	}, &shoal.GroupOptions[string]{Codec: codec, Share: true})
	for range 3 {
		if _, err := g.Get(t.Context(), "key"); err != nil {
			t.Fatal(err)
		}
	}
	if n := g.Stats().Bytes; n < 60_000 {
		t.Errorf("a value of 30,000 bytes that is shared counts as %d", n)
	}
}

func TestTypesThatDoNotComeBackAreRefused(t *testing.T) {
	if _, err := compress.New[struct{ private int }](nil, 0); err == nil {
		t.Error("no error")
	}
}

// Whatever is decoded, it is what was encoded, or an error.
func FuzzCodec(f *testing.F) {
	codec, err := compress.New[[]byte](nil, 10)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(nil))
	f.Add([]byte(strings.Repeat("text ", 100)))
	f.Add([]byte{1, 255, 255, 255, 255, 15, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := codec.Append([]byte("before"), data)
		if err != nil || len(b) > len("before")+1+len(data) || string(b[:6]) != "before" {
			t.Fatalf("%d bytes become %d, %v", len(data), len(b), err)
		}
		if back, err := codec.Decode(b[6:]); err != nil || !bytes.Equal(back, data) {
			t.Fatalf("%x comes back as %x, %v", data, back, err)
		}
		codec.Decode(data)
	})
}
