package shoal_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/golang/groupcache"

	"github.com/shoalcache/shoal"
)

// groupcache allows one pool in a process, and one group of a name.
var theirPool = sync.OnceValue(func() *groupcache.HTTPPool { return groupcache.NewHTTPPoolOpts("http://self", nil) })

func theirGroup(name string, get groupcache.GetterFunc) *groupcache.Group {
	if g := groupcache.GetGroup(name); g != nil {
		return g
	}
	return groupcache.NewGroup(name, 64<<20, get)
}

var errLocal = errors.New("the peer did not answer, so groupcache loads itself")

// TestGroupcacheIsAnswered asks with the client of golang/groupcache itself.
func TestGroupcacheIsAnswered(t *testing.T) {
	cache, err := shoal.New(&shoal.Options{MaxKeyBytes: 300})
	if err != nil {
		t.Fatal(err)
	}
	const name = "a group/ü+%"
	shoal.NewGroup(cache, name, func(_ context.Context, key string) (string, error) {
		switch key {
		case "missing":
			return "", shoal.ErrNotFound
		case "broken":
			return "", errors.New("broken")
		}
		return "<" + key + ">", nil
	}, nil)
	mux := http.NewServeMux()
	mux.Handle("/_groupcache/", cache)
	behindMux, bare := httptest.NewServer(mux), httptest.NewServer(cache)
	defer behindMux.Close()
	defer bare.Close()

	pool := theirPool()
	theirs := theirGroup(name, func(context.Context, string, groupcache.Sink) error { return errLocal })
	get := func(key string) (v string, err error) {
		err = theirs.Get(t.Context(), key, groupcache.StringSink(&v))
		return v, err
	}

	keys := []string{"plain", "a b", "a+b", "a%20b", "a%2Bb", "100%", "a/b", "//", "/a/../b/", "a.b", "...", "?q=1&r#f", "_groupcache/", "/_shoal/", "ключ", "\x00\n", "\xff\xfe"}
	for b := range 256 {
		keys = append(keys, "byte "+string([]byte{byte(b)}))
	}
	pool.Set(behindMux.URL)
	for _, key := range keys {
		if v, err := get(key); v != "<"+key+">" || err != nil {
			t.Errorf("Get(%q) = %q, %v", key, v, err)
		}
	}
	// A ServeMux cleans these paths away before any handler sees them.
	pool.Set(bare.URL)
	for _, key := range []string{".", ".."} {
		if v, err := get(key); v != "<"+key+">" || err != nil {
			t.Errorf("Get(%q) = %q, %v", key, v, err)
		}
	}
	for _, key := range []string{"missing", "broken", strings.Repeat("k", 301)} {
		if v, err := get(key); !errors.Is(err, errLocal) {
			t.Errorf("Get(%.10q) = %q, %v", key, v, err)
		}
	}
}

func TestGroupcachesPathIsRefusedWhereItNamesNothing(t *testing.T) {
	cache, _ := alone(t, &shoal.Options{MaxKeyBytes: 10}, upper)
	for path, want := range map[string]int{
		"/_groupcache/g/key":              200,
		"/below/a/path/_groupcache/g/key": 200,
		"/_groupcache/nope/key":           404,
		"/_groupcache/g":                  400,
		"/_groupcache/":                   400,
		"/_groupcache/g/" + url.PathEscape("longer than ten"): 413,
		"/_shoal/": 404, // a GET
	} {
		w := httptest.NewRecorder()
		cache.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != want {
			t.Errorf("GET %s: status %d, want %d", path, w.Code, want)
		}
	}
	if s := cache.Stats(); fmt.Sprint(s.Refused) != fmt.Sprint(shoal.Refusals{Malformed: 2, Unknown: 1, TooLarge: 1, NoGroup: 1}) {
		t.Errorf("%+v", s.Refused)
	}
}

func TestGroupcacheIsAnsweredWithoutKeepingWhatIsAnothers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, nil, upper, nil)
		key := ownedBy(f.Cluster, 0, 0)
		for range 2 {
			w := httptest.NewRecorder()
			f.Cache(1).ServeHTTP(w, httptest.NewRequest("GET", "/_groupcache/things/"+url.QueryEscape(key), nil))
			if w.Code != 200 || !strings.HasSuffix(w.Body.String(), strings.ToUpper(key)) {
				t.Errorf("status %d: %q", w.Code, w.Body)
			}
		}
		f.wantLoads(t, 2)
		if s := f.groups[1].Stats(); s.Entries != 0 || s.UnownedLoads != 2 {
			t.Errorf("%+v", s)
		}
	})
}
