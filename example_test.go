package shoal_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/consistenthash"
)

var users = map[string]string{"7": "Grace", "8": "Barbara"}

func loadUser(_ context.Context, id string) (string, error) {
	name, ok := users[id]
	if !ok {
		return "", fmt.Errorf("user %s: %w", id, shoal.ErrNotFound)
	}
	return name, nil
}

func Example() {
	cache, err := shoal.New(nil) // without peers
	if err != nil {
		log.Fatal(err)
	}
	names := shoal.NewGroup(cache, "names", func(ctx context.Context, id string) (string, error) {
		fmt.Println("loading", id)
		return loadUser(ctx, id)
	}, nil)
	for _, id := range []string{"7", "7", "9"} {
		name, err := names.Get(context.Background(), id)
		fmt.Println(name, err)
	}
	// Output:
	// loading 7
	// Grace <nil>
	// Grace <nil>
	// loading 9
	//  user 9: shoal: not found
}

func ExampleNew() {
	self := os.Getenv("SELF")                   // http://10.0.0.1:8080
	peers := strings.Fields(os.Getenv("PEERS")) // all of them, this one too
	cache, err := shoal.New(&shoal.Options{
		Self:      self,
		Discovery: shoal.Static(peers...),
	})
	if err != nil {
		log.Fatal(err)
	}
	http.Handle("/_shoal/", cache)
	log.Fatal(http.ListenAndServe(":8080", nil))
}

func ExampleNew_groupcache() {
	// A process among groupcache's own: the same owners, and their requests answered.
	cache, err := shoal.New(&shoal.Options{
		Self:      "http://10.0.0.1:8080",
		Discovery: shoal.Static("http://10.0.0.1:8080", "http://10.0.0.2:8080"),
		Placement: consistenthash.Ring(50, nil),
	})
	if err != nil {
		log.Fatal(err)
	}
	http.Handle("/_shoal/", cache)
	http.Handle("/_groupcache/", cache)
}

func ExampleNewGroup() {
	type User struct {
		Name  string
		Admin bool
	}
	cache, err := shoal.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	group := shoal.NewGroup(cache, "users", func(ctx context.Context, id string) (User, error) {
		name, err := loadUser(ctx, id)
		return User{Name: name, Admin: id == "7"}, err
	}, &shoal.GroupOptions[User]{
		MaxBytes: 256 << 20,
		TTLFor: func(id string, u User) time.Duration {
			if u.Admin {
				return 0 // not kept: rights may be taken away
			}
			return time.Hour
		},
	})
	user, err := group.Get(context.Background(), "8")
	fmt.Printf("%+v %v\n", user, err)
	// Output: {Name:Barbara Admin:false} <nil>
}

func ExampleGroup_Get() {
	cache, err := shoal.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	names := shoal.NewGroup(cache, "names", loadUser, nil)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	name, err := names.Get(ctx, "9")
	switch failed, ok := errors.AsType[*shoal.PeerError](err); {
	case errors.Is(err, shoal.ErrNotFound):
		fmt.Println("nobody has that number")
	case ok:
		fmt.Println(failed.Peer.ID, "could not", failed.Op, "it:", failed.Err)
	case err != nil:
		fmt.Println(err)
	default:
		fmt.Println(name)
	}
	// Output: nobody has that number
}

func ExampleGroup_GetEntry() {
	cache, err := shoal.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	names := shoal.NewGroup(cache, "names", loadUser, &shoal.GroupOptions[string]{
		TTL:          time.Minute,
		Stale:        10 * time.Second, // served while one load replaces it
		StaleIfError: time.Hour,        // … while loads fail
	})
	for range 2 {
		e, err := names.GetEntry(context.Background(), "7", nil)
		fmt.Println(e.Value, e.Stale, e.Source, err)
	}
	// This one must not be older than a second, whatever Stale allows.
	e, err := names.GetEntry(context.Background(), "7", &shoal.GetOptions{MaxAge: time.Second})
	fmt.Println(e.Value, err)
	_, err = names.GetEntry(context.Background(), "8", &shoal.GetOptions{CachedOnly: true})
	fmt.Println(err)
	// Output:
	// Grace false getter <nil>
	// Grace false memory <nil>
	// Grace <nil>
	// shoal: not cached
}

func ExampleGroup_GetMany() {
	cache, err := shoal.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	names := shoal.NewGroup(cache, "names", nil, &shoal.GroupOptions[string]{
		GetMany: func(ctx context.Context, ids []string) (map[string]string, error) {
			fmt.Println("loading", len(ids), "names") // SELECT … WHERE id IN …
			found := make(map[string]string)
			for _, id := range ids {
				if name, ok := users[id]; ok {
					found[id] = name
				}
			}
			return found, nil
		},
	})
	found, err := names.GetMany(context.Background(), []string{"7", "8", "9"})
	if failed, ok := errors.AsType[shoal.KeyErrors](err); ok {
		for id, err := range failed {
			log.Print(id, ": ", err)
		}
	}
	fmt.Println(found)
	// Output:
	// loading 3 names
	// map[7:Grace 8:Barbara]
}

func ExampleGroup_Set() {
	cache, err := shoal.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	// Without a getter, a group is a plain key-value cache.
	sessions := shoal.NewGroup[string](cache, "sessions", nil, &shoal.GroupOptions[string]{TTL: time.Hour})
	ctx := context.Background()
	if err := sessions.Set(ctx, "abc", "Grace"); err != nil {
		log.Fatal(err)
	}
	fmt.Println(sessions.Get(ctx, "abc"))
	fmt.Println(sessions.Get(ctx, "def"))
	// Output:
	// Grace <nil>
	//  shoal: not found
}

func ExampleGroup_SetWithTTL() {
	cache, err := shoal.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	tokens := shoal.NewGroup[string](cache, "tokens", nil, nil)
	ctx := context.Background()
	expires := time.Now().Add(time.Hour)
	if err := tokens.SetWithTTL(ctx, "api", "secret", time.Until(expires)); err != nil {
		log.Fatal(err)
	}
	fmt.Println(tokens.Get(ctx, "api"))
	// Output: secret <nil>
}

func ExampleGroup_Remove() {
	cache, err := shoal.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	prices := map[string]int{"apple": 3}
	cached := shoal.NewGroup(cache, "prices", func(_ context.Context, fruit string) (int, error) { return prices[fruit], nil }, nil)
	ctx := context.Background()
	cached.Get(ctx, "apple")

	prices["apple"] = 4 // the source first
	if err := cached.Remove(ctx, "apple"); err != nil {
		log.Print(err) // names the peers that may still serve the old price, and will be told again
	}
	fmt.Println(cached.Get(ctx, "apple"))
	// Output: 4 <nil>
}

func ExampleGroup_Purge() {
	cache, err := shoal.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	pages := shoal.NewGroup[string](cache, "pages", nil, nil)
	ctx := context.Background()
	pages.Set(ctx, "/", "in the old layout")
	if err := pages.Purge(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println(pages.Get(ctx, "/"))
	// Output:  shoal: not found
}

func ExampleAdd() {
	cache, err := shoal.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	requests := shoal.NewGroup[int](cache, "requests", nil, &shoal.GroupOptions[int]{TTL: time.Minute})
	for range 3 {
		n, err := shoal.Add(context.Background(), requests, "10.1.2.3", 1)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(n, n <= 2) // in the minute that the first began
	}
	// Output:
	// 1 true
	// 2 true
	// 3 false
}

func ExampleGroup_SetMaxBytes() {
	cache, err := shoal.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	names := shoal.NewGroup(cache, "names", loadUser, nil)
	names.Get(context.Background(), "7")
	names.SetMaxBytes(0) // drops everything, and keeps nothing from now on
	fmt.Println(names.Stats().Entries)
	names.SetMaxBytes(64 << 20)
	// Output: 0
}

func ExampleGroup_Stats() {
	cache, err := shoal.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	names := shoal.NewGroup(cache, "names", loadUser, nil)
	for range 10 {
		names.Get(context.Background(), "7")
	}
	s := names.Stats()
	fmt.Println(s.Gets, "gets,", s.Hits, "hits,", s.Loads, "load")
	// Output: 10 gets, 9 hits, 1 load
}

func ExampleCache_Ready() {
	cache, err := shoal.New(&shoal.Options{Discovery: shoal.Static("http://10.0.0.2:8080")})
	if err != nil {
		log.Fatal(err)
	}
	// For a readiness probe.
	http.HandleFunc("/ready", func(w http.ResponseWriter, r *http.Request) {
		if err := cache.Ready(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
}

func ExampleCache_Shutdown() {
	cache, err := shoal.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: cache}
	// When the process is to end:
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	fmt.Println(errors.Join(cache.Shutdown(ctx), server.Shutdown(ctx)))
	// Output: <nil>
}

func ExampleCache_ServeHTTP() {
	cache, err := shoal.New(&shoal.Options{Self: "http://10.0.0.1:8080/internal"})
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/internal/_shoal/", cache) // below the path of Self
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "the application") })
}

func ExampleCache_Peers() {
	cache, err := shoal.New(&shoal.Options{Self: "10.0.0.1:8080", ID: "pod-0", Zone: "east"})
	if err != nil {
		log.Fatal(err)
	}
	for _, p := range cache.Peers() {
		fmt.Printf("%s in zone %s\n", p, p.Zone)
	}
	// Output: pod-0 (http://10.0.0.1:8080) in zone east
}

func ExampleCache_Stats() {
	cache, err := shoal.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	shoal.NewGroup(cache, "names", loadUser, nil)
	s := cache.Stats()
	fmt.Println(len(s.Groups), "group,", len(s.Peers), "peers,", s.Refused.Overloaded, "requests too many")
	// Output: 1 group, 0 peers, 0 requests too many
}

func ExampleStatic() {
	all := shoal.Static("10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080")
	server, err := shoal.New(&shoal.Options{Self: "10.0.0.1:8080", Discovery: all})
	if err != nil {
		log.Fatal(err)
	}
	client, err := shoal.New(&shoal.Options{Discovery: all}) // owns no keys
	if err != nil {
		log.Fatal(err)
	}
	_, _ = server, client
}

func ExampleDiscovery() {
	// Reads the peers from a file, a line each, every ten seconds.
	fromFile := func(ctx context.Context, _ shoal.Peer, set func([]shoal.Peer)) error {
		for {
			data, err := os.ReadFile("/etc/shoal/peers")
			if err != nil {
				return err // called again after a while
			}
			var list []shoal.Peer
			for _, addr := range strings.Fields(string(data)) {
				list = append(list, shoal.Peer{Addr: addr})
			}
			set(list)
			select {
			case <-time.After(10 * time.Second):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	cache, err := shoal.New(&shoal.Options{Self: "http://10.0.0.1:8080", Discovery: fromFile})
	if err != nil {
		log.Fatal(err)
	}
	http.Handle("/_shoal/", cache)
}

func ExampleNewByteView() {
	cache, err := shoal.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	pages := shoal.NewGroup(cache, "pages", func(_ context.Context, path string) (shoal.ByteView, error) {
		return shoal.NewByteView("<h1>" + path + "</h1>"), nil
	}, nil)
	page, err := pages.Get(context.Background(), "/home") // shares the cache's memory
	if err != nil {
		log.Fatal(err)
	}
	page.WriteTo(os.Stdout)
	// Output: <h1>/home</h1>
}
