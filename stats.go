package shoal

import (
	"cmp"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoalcache/shoal/shoalpb"
)

// Stats are the numbers of a [Cache]. All but gauges only grow, from its start.
type Stats struct {
	Groups []GroupStats // by name
	Peers  []PeerStats  // by ID, this process left out

	// Repairing is a gauge: what has come to this process with the last changes of peers is being taken over. As long as it is
	// true anywhere, the failure of another process may cost values that replicas would have kept.
	Repairing bool

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
	MediaType  int64 // of another content type than Shoal's
	Operation  int64 // for what the group does not have, as adding where values are no counters
}

// GroupStats are the numbers of a [Group] in this process. Gets that were neither hits nor errors waited for a load,
// here or at a peer. A GetMany counts as a Get of each of its keys.
type GroupStats struct {
	Name string

	Gets      int64 // gets that have been answered
	Hits      int64 // … with what this process's memory held of its own keys
	HotHits   int64 // … with its copy of another's hot key
	PeerHits  int64 // … with what the owner's memory held
	NotFound  int64 // … with ErrNotFound
	Errors    int64 // … with another error
	StaleHits int64 // hits, of peers too, past their TTL

	Requests    int64 // gets of peers for this group, refused ones included
	RequestHits int64 // … from memory

	Fetches      int64 // questions to owners; several Gets may have waited for one
	Renewed      int64 // … that the owner answered without the value, since the copy here was still right
	Loads        int64 // keys that a getter was asked for
	Batches      int64 // calls of GroupOptions.GetMany
	Reloads      int64 // loads begun in the background, since a value was past its TTL or nearly
	Peeks        int64 // questions to former owners, before a load
	Inherited    int64 // … that made the load needless
	StandIns     int64 // keys that the next owner was asked for, since the owner could not be reached
	Hedged       int64 // questions that the next owner was asked too, since the owner was slow, see Options.Hedge
	Replicated   int64 // keys of which this process was given what their owners have, see Owners
	Pulled       int64 // keys that were taken over from former owners in the background
	LoadErrors   int64 // loads that ended with an error other than ErrNotFound
	LoadPanics   int64 // … of these, by a panic or runtime.Goexit
	UnownedLoads int64 // loads of keys of other owners, since these could not be asked; such values are not kept

	Sets, Removes, Adds, Purges int64 // keys that callers here have written, and purges

	Writes     int64 // changes of keys taken as their owner
	Drops      int64 // keys dropped since a peer said that they were written
	Emptied    int64 // times that all was dropped: by purges, here or elsewhere, and since a peer said so
	Leases     int64 // leases on hot keys given to peers
	LeaseWaits int64 // writes that waited for a lease to run out, since its holder did not answer
	Hints      int64 // what peers could not be told of writes
	HintsTold  int64 // times that a peer was told what it had missed of this group
	HintsLost  int64 // times that a peer had missed so much that it has to drop the group

	Entries    int64 // gauge: entries in memory, of keys of this process
	HotEntries int64 // gauge: copies of others' hot keys
	Absent     int64 // gauge: keys of which ErrNotFound, or another error, is remembered
	Bytes      int64 // gauge: what all of them take, overhead included
	MaxBytes   int64 // gauge: what they may take
	Evicted    int64 // live entries that made room
	Expired    int64 // entries dropped after their time
	Oversized  int64 // values not kept since they would take more than an eighth of MaxBytes
}

// PeerStats are the numbers of another process, as seen from this one.
type PeerStats struct {
	Peer      Peer
	Agrees    bool  // gauge: its last message came from the same view of who is there
	Silent    bool  // gauge: it has not answered lately, and callers are kept from it until it does
	Exchanges int64 // questions, writes and drops sent to it
	Failures  int64 // … that were not answered though somebody waited, or were refused
	LastError string
	// Wire is how it was asked last, or written to if it has only been written to: by "stream", by "batch", which are several questions in one POST, while there is no
	// stream, or by "single" POSTs, where not even that is understood; "" if it has not been asked. There is none while the
	// peer is down, or has just come back, or where something in between does not let it through: see docs/wire.md.
	Wire string
}

// groupCounts are the counters of GroupStats that the stores do not keep.
type groupCounts struct {
	misses, peerHits, notFound, errors          atomic.Int64
	requests, fetches, renewed                  atomic.Int64
	loads, loadErrors, loadPanics, unownedLoads atomic.Int64
	batches, reloads                            atomic.Int64
	peeks, inherited, pulled, standIns          atomic.Int64
	replicated, hedged                          atomic.Int64
	sets, removes, adds, purges                 atomic.Int64
	writes, drops, emptied, leases, leaseWaits  atomic.Int64
	hints, hintsTold, hintsLost                 atomic.Int64
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
		Renewed:      c.renewed.Load(),
		Loads:        c.loads.Load(),
		Batches:      c.batches.Load(),
		Reloads:      c.reloads.Load(),
		LoadErrors:   c.loadErrors.Load(),
		LoadPanics:   c.loadPanics.Load(),
		UnownedLoads: c.unownedLoads.Load(),
		Peeks:        c.peeks.Load(),
		Inherited:    c.inherited.Load(),
		Pulled:       c.pulled.Load(),
		StandIns:     c.standIns.Load(),
		Replicated:   c.replicated.Load(),
		Hedged:       c.hedged.Load(),
		Sets:         c.sets.Load(),
		Removes:      c.removes.Load(),
		Adds:         c.adds.Load(),
		Purges:       c.purges.Load(),
		Writes:       c.writes.Load(),
		Drops:        c.drops.Load(),
		Emptied:      c.emptied.Load(),
		Leases:       c.leases.Load(),
		LeaseWaits:   c.leaseWaits.Load(),
		Hints:        c.hints.Load(),
		HintsTold:    c.hintsTold.Load(),
		HintsLost:    c.hintsLost.Load(),
	}
	main, copies, absent := g.main.numbers(), g.copies.numbers(), g.absent.numbers()
	s.Hits, s.HotHits = g.main.hits.load(), g.copies.hits.load()
	s.RequestHits = g.main.served.load() + g.absent.served.load()
	s.StaleHits = g.main.staleHits.load()
	s.Entries, s.HotEntries, s.Absent = main.entries, copies.entries, absent.entries
	s.Bytes = main.bytes + copies.bytes + absent.bytes + g.decodedBytes()
	s.MaxBytes = main.maxBytes
	s.Evicted = main.evicted + copies.evicted + absent.evicted
	s.Expired = main.expired + absent.expired
	s.Oversized = g.main.oversized.Load()
	s.Gets = s.Hits + s.HotHits + c.misses.Load()
	return s
}

// peerCounts are the counters of PeerStats. They outlive views, as long as a peer of the same ID is in each.
type peerCounts struct {
	shown               atomic.Uint64 // the digest of the latest of its views that has been heard of
	mu                  sync.Mutex    // guards what follows, and changes of shown
	shownBy, views      uint64        // which process it was then, and how many views it had had
	keepsUntil          atomic.Int64  // it may keep keys of this process until then, on the clock, as it has owned them lately
	breaker             breaker
	latency             quantile
	differs             atomic.Int64 // since when it has been seen to have another view, or was last greeted for that; 0: it agrees
	stoodIn             atomic.Bool  // this process stands in for it
	exchanges, failures atomic.Int64
	lastError           atomic.Pointer[string]
}

// show takes note of the view that a message came from, unless it was sent before another that has come. It calls
// differs before the view becomes another.
func (c *peerCounts) show(s *shoalpb.Sender, differs func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.GetIncarnation() == c.shownBy && s.GetViews() < c.views {
		return
	}
	c.shownBy, c.views = s.GetIncarnation(), s.GetViews()
	if c.shown.Load() != s.GetView() {
		differs()
		c.shown.Store(s.GetView())
	}
}

// isDue reports, when it has had another view for a while, and then not too often, that a peer is to be greeted again.
func (c *peerCounts) isDue(agrees bool, now time.Duration) bool {
	last := c.differs.Load()
	switch {
	case agrees:
		if last != 0 {
			c.differs.Store(0)
		}
		return false
	case last == 0:
		c.differs.CompareAndSwap(0, max(int64(now), 1))
		return false
	}
	return int64(now)-last > int64(lastRetry) && c.differs.CompareAndSwap(last, int64(now))
}

// failed takes note of an exchange that came to nothing.
func (c *peerCounts) failed(err error) {
	c.failures.Add(1)
	text := err.Error()
	c.lastError.Store(&text)
}

func (p *peer) stats(digest uint64) PeerStats {
	s := PeerStats{
		Peer:      p.Peer,
		Agrees:    p.counts.shown.Load() == digest,
		Silent:    p.counts.breaker.open.Load(),
		Exchanges: p.counts.exchanges.Load(),
		Failures:  p.counts.failures.Load(),
		Wire:      wayNames[cmp.Or(p.line.way.Load(), p.line.writes.way.Load())],
	}
	if text := p.counts.lastError.Load(); text != nil {
		s.LastError = *text
	}
	return s
}

// refusalCounts are the counters of Refusals, by reason.
type refusalCounts [shoalpb.Refused_OPERATION + 1]atomic.Int64

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
		MediaType:  c[shoalpb.Refused_MEDIA_TYPE].Load(),
		Operation:  c[shoalpb.Refused_OPERATION].Load(),
	}
}
