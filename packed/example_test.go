package packed_test

import (
	"fmt"
	"time"

	"github.com/shoalcache/shoal/packed"
)

func Example() {
	begin := time.Now()
	now := func() int64 { return int64(time.Since(begin)) }
	c := packed.New(64<<20, now, nil)

	c.Put("a key", []byte("a value"), func(old packed.Meta, held bool) (packed.Meta, bool) {
		m := packed.Meta{Version: old.Version + 1, Born: now()}
		m.Fresh = m.Born + int64(time.Minute)
		m.Ends = m.Fresh
		return m, true
	})
	c.Shrink(100) // outside all locks

	e, ok := c.Get("a key")
	fmt.Printf("%s %v, version %d\n", e.Value, ok, e.Version)
	c.Delete("a key", func(m packed.Meta) bool { return m.Version <= e.Version })
	_, ok = c.Get("a key")
	fmt.Println(ok)
	fmt.Printf("%s\n", e.Value) // is ours for as long as we hold it
	// Output:
	// a value true, version 1
	// false
	// a value
}
