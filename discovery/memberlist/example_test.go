package memberlist_test

import (
	"context"
	"log"
	"net/http"
	"os"
	"time"

	gossip "github.com/hashicorp/memberlist"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/discovery/memberlist"
)

func ExampleNew() {
	discovery, err := memberlist.New(&memberlist.Options{
		Seeds: []string{"10.0.0.1:7946", "10.0.0.2:7946"}, // some of the others, the same in all processes
		Key:   []byte(os.Getenv("GOSSIP_KEY")),            // 16, 24 or 32 bytes, the same in all processes
	})
	if err != nil {
		log.Fatal(err)
	}
	cache, err := shoal.New(&shoal.Options{
		Self:      os.Getenv("SELF"), // http://10.0.0.3:8080
		Discovery: discovery,
	})
	if err != nil {
		log.Fatal(err)
	}
	http.Handle("/_shoal/", cache)
	go func() { log.Fatal(http.ListenAndServe(":8080", nil)) }()

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := cache.Ready(ctx); err != nil { // each seed has been tried
		log.Print(err)
	}
	log.Print("peers: ", cache.Peers())
}

func ExampleNew_wide() {
	// A fleet over long distances, beside another one that may have seeds in common with it.
	config := gossip.DefaultWANConfig()
	config.Label = "shop"
	discovery, err := memberlist.New(&memberlist.Options{
		Bind:      "10.0.0.3:7947",
		Advertise: "198.51.100.3:7947",
		Seeds:     []string{"cache.example.com:7947"}, // as many addresses as it has
		Config:    config,
	})
	if err != nil {
		log.Fatal(err)
	}
	cache, err := shoal.New(&shoal.Options{Self: "https://198.51.100.3", Discovery: discovery})
	if err != nil {
		log.Fatal(err)
	}
	defer cache.Shutdown(context.Background()) // the others are told
}
