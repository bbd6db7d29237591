package etcd_test

import (
	"context"
	"fmt"
	"log"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/discovery/etcd"
)

func ExampleNew() {
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            []string{endpoint},
		DialKeepAliveTime:    5 * time.Second,
		DialKeepAliveTimeout: 2 * time.Second,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	cache, err := shoal.New(&shoal.Options{
		Self:      "http://10.0.0.1:8080",
		Discovery: etcd.New(client, &etcd.Options{Prefix: "/shop/prod/"}),
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := cache.Ready(context.Background()); err != nil {
		log.Fatal(err)
	}
	fmt.Println(cache.Peers())
	fmt.Println(cache.Shutdown(context.Background())) // before the client is closed
	// Output:
	// [http://10.0.0.1:8080]
	// <nil>
}
