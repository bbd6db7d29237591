package consistenthash_test

import (
	"fmt"

	"github.com/shoalcache/shoal/consistenthash"
)

func ExampleNew() {
	members := []consistenthash.Member{
		{ID: "http://10.0.0.1:8080"},
		{ID: "http://10.0.0.2:8080"},
		{ID: "http://10.0.0.3:8080", Weight: 2}, // twice the memory of the others
	}
	m := consistenthash.New(members)
	fmt.Println("owner:", members[m.Owner("user:42")].ID)
	for _, i := range m.Owners("user:42", 2)[1:] {
		fmt.Println("stand-in:", members[i].ID)
	}
	// Output:
	// owner: http://10.0.0.2:8080
	// stand-in: http://10.0.0.1:8080
}

func ExampleRendezvous() {
	members := []consistenthash.Member{{ID: "amsterdam"}, {ID: "berlin"}, {ID: "copenhagen"}}
	m := consistenthash.Rendezvous(members)
	fmt.Println(members[m.Owner("user:42")].ID)
	// Output: copenhagen
}

// A process that joins a fleet of groupcache's.
func ExampleRing() {
	members := []consistenthash.Member{
		{ID: "http://10.0.0.1:8080"},
		{ID: "http://10.0.0.2:8080"},
		{ID: "http://10.0.0.3:8080"},
	}
	m := consistenthash.Ring(50, nil)(members)
	fmt.Println(members[m.Owner("user:42")].ID)
	// Output: http://10.0.0.1:8080
}
