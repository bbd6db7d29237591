// Hello is the first use of Shoal: processes that share what each of them would be slow to find out. Start two, in two
// terminals, each with its own address first and then the others':
//
//	go run ./examples/hello http://localhost:8081 http://localhost:8082
//	go run ./examples/hello http://localhost:8082 http://localhost:8081
//
// (the first says that the other does not answer, until that is there too) and ask either of them, twice:
//
//	curl localhost:8081/anything
//
// The first answer takes a second, and one of the terminals says that it loads. The second is there at once, also from
// the other process: each key is loaded by the one process that owns it.
package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/shoalcache/shoal"
)

func main() {
	if len(os.Args) < 2 {
		log.Fatal("usage: hello http://localhost:8081 [http://localhost:8082 ...], this process's own address first")
	}
	self := os.Args[1]
	cache, err := shoal.New(&shoal.Options{Self: self, Discovery: shoal.Static(os.Args[1:]...)})
	if err != nil {
		log.Fatal(err)
	}

	greetings := shoal.NewGroup(cache, "greetings", func(ctx context.Context, name string) (string, error) {
		log.Print("loading ", name, " …")
		time.Sleep(time.Second) // stands for a slow database
		return "Hello, " + name + "! " + self + " loaded this.", nil
	}, nil)

	http.Handle("/_shoal/", cache)
	http.HandleFunc("GET /{name}", func(w http.ResponseWriter, r *http.Request) {
		greeting, err := greetings.Get(r.Context(), r.PathValue("name"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		fmt.Fprintln(w, greeting)
	})
	log.Fatal(http.ListenAndServe(strings.TrimPrefix(self, "http://"), nil))
}
