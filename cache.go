package shoal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/shoalcache/shoal/consistenthash"
)

// A Cache is this process's place among its peers, and the [http.Handler] that answers them. It holds nothing itself:
// values live in its groups, which [NewGroup] makes. Its methods may be called concurrently. A process may have any
// number of Caches.
type Cache struct {
	opts     Options // with defaults filled in
	clock    clock
	peers    peers
	hints    hints
	handover handover
	calls    sync.Pool
	deaf     sync.Once  // to complain of a ResponseWriter that does not flush
	own      transports // if Options has none

	life context.Context // of what is tried again and again: it ends with Shutdown
	end  context.CancelFunc

	left     atomic.Bool // Shutdown has been called
	closed   atomic.Bool // … and peers are not answered any more
	slots    *semaphore.Weighted
	requests atomic.Int64
	refused  refusalCounts
	pullers  pullers

	mu     sync.RWMutex // guards what follows
	groups map[string]*group
	late   []chan struct{} // closed when what has come to groups that were made late has been taken over
	writes int             // under way
	idle   chan struct{}   // closed when there are none, if somebody waits for that

	conversations map[*conversation]chan struct{} // closed when it has ended
}

// Options are the options of [New]. The zero value of each field is its default.
type Options struct {
	// Self is the base URL at which peers reach this process: http:// (or no scheme), https:// or unix://. Among peers
	// none of which is this process, it owns nothing: it is their client. (A listed address, however spelled, at which
	// this process answers is this process.)
	Self      string
	ID        string            // the name on the ring, unique, kept across restarts and addresses; if empty, Self
	Zone      string            // where this process runs
	Weight    float64           // its share of the keys, relative to the others'; if zero, 1
	Discovery Discovery         // who the peers are; if nil, there are none
	Transport http.RoundTripper // how requests reach them; if nil, one made for it (another does not know unix://)
	// Placement says who owns a key. If nil, [consistenthash.New]. All peers must use the same.
	Placement func(members []consistenthash.Member) consistenthash.Map
	// PeerTimeout bounds the wait for a peer's answer or its word that it is loading the key. If zero, half a second. While
	// answers to other questions keep coming from there, it is up to four times that.
	PeerTimeout time.Duration
	// Warm is how long after a change of peers new owners ask previous ones first. If zero, a minute; if negative,
	// they are not asked. Otherwise at least 20 s.
	Warm          time.Duration
	MaxKeyBytes   int   // longest key; if zero, 4 KiB
	MaxValueBytes int64 // largest value; if zero, 64 MiB
	MaxBodyBytes  int64 // largest message from a peer; if zero, MaxValueBytes and 1 MiB; at least 64 KiB more than that
	MaxRequests   int   // requests of peers answered at once; if zero, 10,000
	// Hedge is the percentile of a peer's latency, below 100, after which the next owner is asked too; if zero, it never is.
	// The next owner gives what it has as a replica, or what it finds in the owner's memory, and loads nothing. Each question
	// to a peer takes a goroutine and some memory more, then.
	Hedge float64
	// ZoneReads has values read from a replica in this process's Zone, itself included, where the owner is in another: see
	// GroupOptions.Owners. What a replica lacks is asked of the owner then.
	ZoneReads bool
	// Logger is told what has no caller to return to: who comes and goes at level Info, who falls silent and what was not told
	// everybody at Warn, and what somebody must mend at Error. If nil, it is slog.Default().
	Logger *slog.Logger
}

// New returns a Cache and starts to look for peers. With nil options it has none, and owns every key. It fails if an
// option is out of range; the error names the field.
func New(opts *Options) (*Cache, error) {
	o, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	c := &Cache{
		opts:   o,
		slots:  semaphore.NewWeighted(int64(o.MaxRequests)),
		groups: make(map[string]*group),
	}
	if c.opts.Transport == nil {
		c.own.dialTimeout = o.PeerTimeout
		c.opts.Transport = &c.own
	}
	c.life, c.end = context.WithCancel(context.Background())
	c.hints.cache = c
	c.pullers = pullers{places: make(chan struct{}, mostPullers), running: make(map[pulledFrom]*puller)}
	incarnation := rand.Uint64()
	c.clock.epoch, c.clock.mark = time.Now(), incarnation&0xffff
	c.peers = peers{
		self:        Peer{ID: o.ID, Addr: o.Self, Zone: o.Zone, Weight: o.Weight},
		incarnation: incarnation,
		place:       o.Placement,
		hello:       c.hello,
		tellMissed:  c.tellMissed,
		goodbye:     c.goodbye,
		swapped:     c.viewSwapped,
		lineTo:      c.lineTo,
		pullsEnd:    c.pullers.end,
		closeIdle:   c.own.closeIdle,
		timeout:     o.PeerTimeout,
		window:      max(o.Warm, 4*maxLease),
		log:         o.Logger,
		clock:       &c.clock,
	}
	if o.Warm > 0 {
		c.peers.pulls = func(ctx context.Context, t *takeover, taken func()) { c.pulls(ctx, t, c.allGroups(), taken) }
	}
	c.peers.start(o.Discovery)
	return c, nil
}

func (opts *Options) withDefaults() (o Options, err error) {
	if opts != nil {
		o = *opts
	}
	if o.Self != "" {
		if o.Self, err = normalAddr(o.Self); err != nil {
			return o, fmt.Errorf("shoal: Options.Self: %w", err)
		}
	}
	o.ID = cmp.Or(o.ID, o.Self)
	o.Weight = cmp.Or(o.Weight, 1)
	o.PeerTimeout = cmp.Or(o.PeerTimeout, 500*time.Millisecond)
	o.Warm = cmp.Or(o.Warm, time.Minute)
	o.MaxKeyBytes = cmp.Or(o.MaxKeyBytes, 4<<10)
	o.MaxValueBytes = cmp.Or(o.MaxValueBytes, 64<<20)
	o.MaxBodyBytes = cmp.Or(o.MaxBodyBytes, min(o.MaxValueBytes, math.MaxInt64-1<<20)+1<<20)
	o.MaxRequests = cmp.Or(o.MaxRequests, 10_000)
	o.Logger = cmp.Or(o.Logger, slog.Default())
	if o.Placement == nil {
		o.Placement = consistenthash.New
	}
	switch {
	case !validWeight(o.Weight):
		err = fmt.Errorf("shoal: Options.Weight: %v is not a positive number", o.Weight)
	case o.PeerTimeout < 0:
		err = fmt.Errorf("shoal: Options.PeerTimeout: %v is negative", o.PeerTimeout)
	case o.Warm > 0 && o.Warm < 4*maxLease:
		err = fmt.Errorf("shoal: Options.Warm: %v is less than 20 s", o.Warm)
	case !(o.Hedge >= 0 && o.Hedge < 100):
		err = fmt.Errorf("shoal: Options.Hedge: %v is not a percentile from 0 to below 100", o.Hedge)
	case o.MaxKeyBytes < 0:
		err = fmt.Errorf("shoal: Options.MaxKeyBytes: %d is negative", o.MaxKeyBytes)
	case o.MaxValueBytes < 0:
		err = fmt.Errorf("shoal: Options.MaxValueBytes: %d is negative", o.MaxValueBytes)
	case o.MaxBodyBytes-o.MaxValueBytes < 64<<10:
		err = fmt.Errorf("shoal: Options.MaxBodyBytes: %d does not exceed MaxValueBytes, %d, by 64 KiB", o.MaxBodyBytes, o.MaxValueBytes)
	case o.MaxRequests < 0:
		err = fmt.Errorf("shoal: Options.MaxRequests: %d is negative", o.MaxRequests)
	}
	return o, err
}

// Ready waits until discovery has answered, if only that nobody is there, every peer it named has been greeted or found
// unreachable, and what must be fetched from former owners has been: all, where there is a group without a getter, or with several
// Owners. Make the groups, and listen, before: peers greet this process as well. Peers that were not reached are asked again in
// the background, so a Cache may be Ready and see nobody: look at Peers where a number is expected. Before it is Ready, Get waits
// for the first peers to answer, three times PeerTimeout at most, and then takes this process for the owner of what no known peer
// owns. Ready fails when ctx ends first, after Shutdown, and when discovery has listed something that is not an address, in which
// case the others are peers all the same.
func (c *Cache) Ready(ctx context.Context) error {
	mustTakeOver := func() bool {
		return slices.ContainsFunc(c.allGroups(), (*group).mustKeep)
	}
	if err := c.peers.ready(ctx, mustTakeOver); err != nil || !mustTakeOver() {
		return err
	}
	c.mu.RLock()
	late := c.late
	c.mu.RUnlock()
	for _, over := range late {
		select {
		case <-over:
		case <-ctx.Done():
			return fmt.Errorf("shoal: not all has been taken over yet: %w", ctx.Err())
		}
	}
	return nil
}

// Shutdown leaves the peers: it tells them so, lets those to whom its keys go pull what it holds of them, the most useful
// first, until they have all of it or have not asked for a while, in which case it returns nil all the same, waits for writes that
// are under way, and stops answering. A peer that answers is waited for where nothing can be loaded, as it may learn late that keys
// are its own: for Warm at most, and if it has not taken them over then, Shutdown returns an error.
// If ctx ends first, it stops there and returns the context's error; what peers could not be told of writes, they are told no
// more. Groups go on working, as in a process that owns nothing: with nothing in memory, asking peers, and loading what these
// do not answer. If ctx ends before Discovery has returned, Shutdown fails and hands nothing over. Call it before the Shutdown of
// the http.Server that carries the Cache: this does not know of the connections over HTTP/1.1 that Shoal has taken over, and
// waits for streams over HTTP/2 as for any request. A second Shutdown returns nil at once.
func (c *Cache) Shutdown(ctx context.Context) error {
	if c.left.Swap(true) {
		return nil
	}
	for _, g := range c.allGroups() { // for nobody tells it of writes any more once it has said that it leaves
		g.fetches.ForgetAll()
		g.copies.clear()
	}
	c.handover.begin()
	v := c.peers.view.Load()
	heirs, err := c.peers.leave(ctx)
	if err == nil && c.opts.Warm > 0 {
		if cause := c.handOver(ctx, heirs, v); cause != nil {
			err = fmt.Errorf("shoal: not all has been handed over: %w", cause)
		}
	}
	for _, p := range slices.Concat(c.peers.everybody()) { // from here on POSTs go to them: streams end with this process
		if p.line != nil {
			p.line.close()
		}
	}
	if idle := c.noWrites(); idle != nil {
		select {
		case <-idle:
		case <-ctx.Done():
			err = errors.Join(err, fmt.Errorf("shoal: writes are still under way: %w", ctx.Err()))
		}
	}
	c.closed.Store(true)
	c.end()
	for _, g := range c.allGroups() {
		g.main.retain(g.keeps) // nobody asks for what is frozen any more
	}
	c.endConversations(ctx)
	c.own.closeAllIdle()
	return err
}

// conversing takes note that v goes on until over is called, unless there are too many already.
func (c *Cache) conversing(v *conversation) (over func(), ok bool) {
	v.stopped, v.stop = context.WithCancel(context.Background())
	v.leave = v.stop // until it has begun
	ended := make(chan struct{})
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.conversations) >= c.opts.MaxRequests {
		return v.stop, false
	}
	if c.conversations == nil {
		c.conversations = make(map[*conversation]chan struct{})
	}
	c.conversations[v] = ended
	if c.closed.Load() { // too late to be told by endConversations
		v.stop()
	}
	return func() {
		c.mu.Lock()
		delete(c.conversations, v)
		c.mu.Unlock()
		v.stop()
		close(ended)
	}, true
}

// endConversations has peers ask nothing more, and waits until they have their answers, or ctx ends.
func (c *Cache) endConversations(ctx context.Context) {
	c.mu.RLock()
	all := maps.Clone(c.conversations)
	c.mu.RUnlock()
	for v := range all {
		v.stop()
	}
	for v, ended := range all {
		select {
		case <-ended:
		case <-ctx.Done():
			v.failed(ctx.Err())
		}
	}
}

// carryOut carries out a write, or a part of one, and waits for it, and then calls over. If ctx ends, the write goes on.
func (c *Cache) carryOut(ctx context.Context, what string, write func(context.Context) error, over func()) error {
	var err error
	done := c.detach(func() { err = write(context.Background()) })
	select {
	case <-done:
		over()
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s goes on, but is not waited for: %w", what, ctx.Err())
	}
}

// detach runs write in a goroutine of its own, which Shutdown waits for.
func (c *Cache) detach(write func()) (done <-chan struct{}) {
	c.mu.Lock()
	c.writes++
	c.mu.Unlock()
	over := make(chan struct{})
	go func() {
		defer close(over)
		defer func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.writes--; c.writes == 0 && c.idle != nil {
				close(c.idle)
				c.idle = nil
			}
		}()
		write()
	}()
	return over
}

// noWrites returns a channel that is closed when no write is under way, or nil if none is.
func (c *Cache) noWrites() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.writes > 0 && c.idle == nil {
		c.idle = make(chan struct{})
	}
	return c.idle
}

// Peers returns whom this process sees now, itself included, by ID. A process that sees nobody and serves nobody sees
// itself.
func (c *Cache) Peers() []Peer {
	v := c.peers.view.Load()
	if v.alone {
		return []Peer{c.peers.self}
	}
	all := make([]Peer, len(v.members))
	for i, p := range v.members {
		all[i] = p.Peer
	}
	return all
}

// Stats returns a snapshot of the numbers of c, its groups and its peers.
func (c *Cache) Stats() Stats {
	s := Stats{Requests: c.requests.Load(), Refused: c.refused.stats(), Repairing: c.peers.repairing.Load() > 0}
	for _, g := range c.allGroups() {
		s.Groups = append(s.Groups, g.stats())
	}
	v := c.peers.view.Load()
	for i, p := range v.members {
		if i != v.self {
			s.Peers = append(s.Peers, p.stats(v.digest))
		}
	}
	return s
}

// viewSwapped makes the groups drop what this process does not own any more.
func (c *Cache) viewSwapped(old, new *view) {
	for _, g := range c.allGroups() {
		g.viewSwapped(old, new)
	}
}

// register makes g known to peers. It reports false if the name is taken.
func (c *Cache) register(g *group) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.groups[g.name] != nil {
		return false
	}
	c.groups[g.name] = g
	if over := c.pullNew(g); over != nil {
		c.late = append(c.late, over)
	}
	return true
}

func (c *Cache) group(name string) *group {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.groups[name]
}

func (c *Cache) groupOf(name []byte) *group {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.groups[string(name)]
}

// allGroups returns the groups by name.
func (c *Cache) allGroups() []*group {
	c.mu.RLock()
	defer c.mu.RUnlock()
	all := make([]*group, 0, len(c.groups))
	for _, g := range c.groups {
		all = append(all, g)
	}
	slices.SortFunc(all, func(a, b *group) int { return strings.Compare(a.name, b.name) })
	return all
}
