package shoal

import (
	"errors"
	"fmt"

	"github.com/shoalcache/shoal/singleflight"
)

// ErrNotFound says that the key has no value. Getters return it, bare or wrapped, and it crosses to other processes as
// itself, without what it was wrapped in. It is not remembered: the next Get asks the Getter again.
var ErrNotFound = errors.New("shoal: not found")

// A PeerError says which peer failed at what: it was not reached, it refused, or its Getter failed.
type PeerError struct {
	Peer Peer
	Op   string // "get", or "load" if the peer's Getter failed
	Err  error
}

// Error tells the peer by ID and address, the operation and what came of it.
func (e *PeerError) Error() string {
	return fmt.Sprintf("%s by peer %s: %v", e.Op, e.Peer, e.Err)
}

// Unwrap returns e.Err.
func (e *PeerError) Unwrap() error { return e.Err }

// A PanicError is the error of a load whose Getter panicked or called [runtime.Goexit]. Its Value is what was passed
// to panic, or the text of that if the Getter ran in another process; after Goexit it is nil. Its Stack, which Error
// leaves out, comes along to other processes, up to 16 KiB of it.
type PanicError = singleflight.PanicError
