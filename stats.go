package shoal

import (
	"errors"
	"sync/atomic"

	"github.com/shoalcache/shoal/shoalpb"
)

// Stats are the numbers of a [Cache]. All but gauges only grow, from its start.
type Stats struct {
	Groups []GroupStats // by name
	Peers  []PeerStats  // by ID, this process left out

	Requests int64 // messages of peers, groupcache's included
	Refused  Refusals
}

// Refusals are requests that were not answered, by reason.
type Refusals struct {
	Malformed  int64 // not one of Shoal's messages
	Unknown    int64 // a message of another version, or to another path
	TooLarge   int64 // a body or key over its limit
	Overloaded int64 // over MaxRequests
	NoGroup    int64 // of a group that is not there
	NotOwner   int64 // for a key that is another's, as far as this process knows
	ShutDown   int64 // after Shutdown
	Own        int64 // from this process itself
}

// GroupStats are the numbers of a [Group] in this process. Gets that were neither hits nor errors waited for a load,
// here or at a peer.
type GroupStats struct {
	Name string

	Gets     int64 // calls of Get that have returned
	Hits     int64 // … with what this process's memory held
	PeerHits int64 // … with what the owner's memory held
	NotFound int64 // … with ErrNotFound
	Errors   int64 // … with another error

	Requests    int64 // gets of peers for this group, refused ones included
	RequestHits int64 // … from memory

	Fetches      int64 // questions to owners; several Gets may have waited for one
	Loads        int64 // runs of the Getter
	LoadErrors   int64 // … that ended with an error other than ErrNotFound
	LoadPanics   int64 // … of these, by a panic or runtime.Goexit
	UnownedLoads int64 // … for keys of other owners, since these could not be asked; such values are not kept

	Entries   int64 // gauge: entries in memory
	Bytes     int64 // gauge: what they take, overhead included
	MaxBytes  int64 // gauge: what they may take
	Evicted   int64 // live entries that made room
	Expired   int64 // entries dropped after their TTL
	Oversized int64 // values not kept since they would take more than an eighth of MaxBytes
}

// PeerStats are the numbers of another process, as seen from this one.
type PeerStats struct {
	Peer      Peer
	Agrees    bool  // gauge: its last message came from the same view of who is there
	Exchanges int64 // gets sent to it as the owner of a key
	Failures  int64 // … that were not answered though somebody waited, or were refused
	LastError string
}

// groupCounts are the counters of GroupStats that the store does not keep.
type groupCounts struct {
	misses, peerHits, notFound, errors          atomic.Int64
	requests                                    atomic.Int64
	fetches                                     atomic.Int64
	loads, loadErrors, loadPanics, unownedLoads atomic.Int64
}

// missed takes note of the end of a Get that memory could not answer.
func (c *groupCounts) missed(f found, err error) {
	c.misses.Add(1)
	switch {
	case errors.Is(err, ErrNotFound):
		c.notFound.Add(1)
	case err != nil:
		c.errors.Add(1)
	case f.fetched && !f.loaded:
		c.peerHits.Add(1)
	}
}

func (g *group) stats() GroupStats {
	c := &g.counts
	s := GroupStats{
		Name:         g.name,
		PeerHits:     c.peerHits.Load(),
		NotFound:     c.notFound.Load(),
		Errors:       c.errors.Load(),
		Requests:     c.requests.Load(),
		Fetches:      c.fetches.Load(),
		Loads:        c.loads.Load(),
		LoadErrors:   c.loadErrors.Load(),
		LoadPanics:   c.loadPanics.Load(),
		UnownedLoads: c.unownedLoads.Load(),
	}
	g.store.count(&s)
	s.Gets = s.Hits + c.misses.Load()
	return s
}

// peerCounts are the counters of PeerStats. They outlive views, as long as a peer of the same ID is in each.
type peerCounts struct {
	agrees              atomic.Bool
	exchanges, failures atomic.Int64
	lastError           atomic.Pointer[string]
}

// failed takes note of an exchange that came to nothing.
func (c *peerCounts) failed(err error) {
	c.failures.Add(1)
	text := err.Error()
	c.lastError.Store(&text)
}

func (p *peer) stats() PeerStats {
	s := PeerStats{
		Peer:      p.Peer,
		Agrees:    p.counts.agrees.Load(),
		Exchanges: p.counts.exchanges.Load(),
		Failures:  p.counts.failures.Load(),
	}
	if text := p.counts.lastError.Load(); text != nil {
		s.LastError = *text
	}
	return s
}

// refusalCounts are the counters of Refusals, by reason.
type refusalCounts [shoalpb.Refused_OWN + 1]atomic.Int64

func (c *refusalCounts) stats() Refusals {
	return Refusals{
		Malformed:  c[shoalpb.Refused_MALFORMED].Load(),
		Unknown:    c[shoalpb.Refused_UNKNOWN].Load(),
		TooLarge:   c[shoalpb.Refused_TOO_LARGE].Load(),
		Overloaded: c[shoalpb.Refused_OVERLOADED].Load(),
		NoGroup:    c[shoalpb.Refused_NO_GROUP].Load(),
		NotOwner:   c[shoalpb.Refused_NOT_OWNER].Load(),
		ShutDown:   c[shoalpb.Refused_SHUT_DOWN].Load(),
		Own:        c[shoalpb.Refused_OWN].Load(),
	}
}
