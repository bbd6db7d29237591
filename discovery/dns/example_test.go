package dns_test

import (
	"context"
	"crypto/tls"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/discovery/dns"
)

func ExampleNew() {
	cache, err := shoal.New(&shoal.Options{
		Self:      "http://" + net.JoinHostPort(os.Getenv("POD_IP"), "8080"),
		ID:        os.Getenv("POD_NAME"),
		Discovery: dns.New("http://shoal.default.svc.cluster.local.:8080", nil),
	})
	if err != nil {
		log.Fatal(err)
	}
	http.Handle("/_shoal/", cache)
	log.Fatal(http.ListenAndServe(":8080", nil))
}

func ExampleNew_srv() {
	// Peers at ports of their own, which the records tell; each under the name that its own record has.
	cache, err := shoal.New(&shoal.Options{
		Self:      "http://host-7.example.org:31007",
		Discovery: dns.New("http://_peers._tcp.shoal.example.org.", nil),
	})
	if err != nil {
		log.Fatal(err)
	}
	http.Handle("/_shoal/", cache)
}

func ExampleNew_tls() {
	// Peers are listed by IP address, and all have certificates for one name.
	own, err := tls.LoadX509KeyPair("tls.crt", "tls.key")
	if err != nil {
		log.Fatal(err)
	}
	cache, err := shoal.New(&shoal.Options{
		Self:      "https://" + net.JoinHostPort(os.Getenv("POD_IP"), "8443"),
		ID:        os.Getenv("POD_NAME"),
		Discovery: dns.New("https://shoal.default.svc.cluster.local.:8443", nil),
		Transport: &http.Transport{
			TLSClientConfig:     &tls.Config{ServerName: "shoal.default.svc.cluster.local", Certificates: []tls.Certificate{own}},
			MaxIdleConnsPerHost: 256,
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	http.Handle("/_shoal/", cache)
}

func ExampleNew_resolver() {
	// A DNS server that is not in resolv.conf, and tells all it knows over TCP alone.
	consul := &net.Resolver{
		PreferGo:     true,
		StrictErrors: true,
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", "127.0.0.1:8600")
		},
	}
	cache, err := shoal.New(&shoal.Options{
		Self:      "http://10.0.0.7:8080",
		Discovery: dns.New("http://shoal.service.consul.:8080", &dns.Options{Resolver: consul}),
	})
	if err != nil {
		log.Fatal(err)
	}
	http.Handle("/_shoal/", cache)
}
