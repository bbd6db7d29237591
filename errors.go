package shoal

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/shoalcache/shoal/singleflight"
)

// ErrNotFound says that the key has no value. Getters return it, bare or wrapped, and it crosses to other processes as
// itself, without what it was wrapped in. It is remembered for GroupOptions.NotFoundTTL.
var ErrNotFound = errors.New("shoal: not found")

// ErrNotCached says that the owner of the key holds nothing of it, where [GetOptions] forbid a load.
var ErrNotCached = errors.New("shoal: not cached")

// A PeerError says which peer failed at what: it was not reached, it refused, or its Getter failed.
type PeerError struct {
	Peer Peer
	Op   string // "get", "load" if the peer's Getter failed, "set", "remove", "purge" or "add"
	Err  error
}

// Error tells the peer by ID and address, the operation and what came of it.
func (e *PeerError) Error() string {
	if e.Peer == (Peer{}) {
		return fmt.Sprintf("%s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("%s by peer %s: %v", e.Op, e.Peer, e.Err)
}

// Unwrap returns e.Err.
func (e *PeerError) Unwrap() error { return e.Err }

// A PanicError is the error of a load whose Getter panicked or called [runtime.Goexit]. Its Value is what was passed
// to panic, or the text of that if the Getter ran in another process; after Goexit it is nil. Its Stack, which Error
// leaves out, comes along to other processes, up to 16 KiB of it.
type PanicError = singleflight.PanicError

// KeyErrors says what went wrong for each key that failed.
type KeyErrors map[string]error

// Error tells how many keys failed, and what went wrong for the first three of them.
func (e KeyErrors) Error() string {
	var b strings.Builder
	if len(e) == 1 {
		b.WriteString("1 key failed")
	} else {
		fmt.Fprintf(&b, "%d keys failed", len(e))
	}
	for i, key := range slices.Sorted(maps.Keys(e)) {
		if i == 3 {
			b.WriteString("; …")
			break
		}
		fmt.Fprintf(&b, "; %.80q: %v", key, e[key])
	}
	return b.String()
}

// Unwrap returns the errors, for errors.Is and errors.As, in the order of their keys.
func (e KeyErrors) Unwrap() []error {
	all := make([]error, 0, len(e))
	for _, key := range slices.Sorted(maps.Keys(e)) {
		all = append(all, e[key])
	}
	return all
}
