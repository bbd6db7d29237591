package memberlist_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	gossip "github.com/hashicorp/memberlist"

	"github.com/shoalcache/shoal"
	"github.com/shoalcache/shoal/discovery/memberlist"
)

// The tests in this file run over a network in memory, in bubbles, at the speeds of DefaultLANConfig.

// A process runs a Discovery.
type process struct {
	name  string
	lists chan []string // what it has been told, but for "http://"
	kill  func()        // ends ctx
	ended chan error    // what the Discovery has returned
}

// run calls d for the process of that name, whose base URL is http://name; or, if that begins with "client", for one
// that has none. It ends with t.
func run(t *testing.T, name string, d shoal.Discovery) *process {
	ctx, cancel := context.WithCancel(context.Background()) // that of t would end for all at once, who could not tell each other
	p := &process{name, make(chan []string, 1000), cancel, make(chan error, 1)}
	self := shoal.Peer{ID: name, Addr: "http://" + name}
	if strings.HasPrefix(name, "client") {
		self = shoal.Peer{}
	}
	go func() {
		p.ended <- d(ctx, self, func(list []shoal.Peer) {
			var names []string
			for _, peer := range list {
				names = append(names, strings.TrimPrefix(peer.Addr, "http://"))
			}
			p.lists <- names
		})
		close(p.ended)
	}()
	t.Cleanup(func() {
		cancel()
		for range p.ended {
		}
	})
	return p
}

// wants waits until p has been told that exactly these are there.
func (p *process) wants(t *testing.T, names ...string) {
	t.Helper()
	last, late := []string(nil), time.After(time.Minute)
	for {
		select {
		case last = <-p.lists:
			if slices.Equal(last, names) {
				return
			}
		case <-late:
			t.Fatalf("%s was last told of %q, want %q", p.name, last, names)
		}
	}
}

// wantsNext checks what p is told next.
func (p *process) wantsNext(t *testing.T, names ...string) {
	t.Helper()
	select {
	case list := <-p.lists:
		if !slices.Equal(list, names) {
			t.Errorf("%s was told of %q, want %q", p.name, list, names)
		}
	case <-time.After(time.Minute):
		t.Errorf("%s was told nothing, want %q", p.name, names)
	}
}

// quiet checks that p has not been told anything since.
func (p *process) quiet(t *testing.T) {
	t.Helper()
	select {
	case list := <-p.lists:
		t.Errorf("%s was told of %q", p.name, list)
	default:
	}
}

// at returns where the process of that name gossips.
func at(name string) string {
	return fmt.Sprintf("10.%d.%d.%d:7946", len(name)%256, name[len(name)-2], name[len(name)-1])
}

// seeds returns where those of the given names gossip.
func seeds(names ...string) []string {
	var all []string
	for _, name := range names {
		all = append(all, at(name))
	}
	return all
}

// start runs the Discovery of a process that gossips over n. Names have two letters at least.
func start(t *testing.T, n *network, name string, opts memberlist.Options) *process {
	t.Helper()
	if opts.Config == nil {
		opts.Config = gossip.DefaultLANConfig()
	}
	opts.Config.Transport = n.host(at(name))
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	d, err := memberlist.New(&opts)
	if err != nil {
		t.Fatal(err)
	}
	return run(t, name, d)
}

// records is a slog.Handler that keeps what is said at level Info and above.
type records struct {
	slog.Handler
	mu   sync.Mutex // guards said
	said []string
}

func newRecords() *records { return &records{Handler: slog.DiscardHandler} }

func (r *records) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

func (r *records) Handle(_ context.Context, record slog.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = append(r.said, record.Message)
	return nil
}

// count returns how many messages with this text there are.
func (r *records) count(text string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, said := range r.said {
		if strings.Contains(said, text) {
			n++
		}
	}
	return n
}

// inBubble runs test in a bubble. What the library has under way takes some seconds to end, and time must go on for that.
func inBubble(t *testing.T, test func(*testing.T)) {
	synctest.Test(t, func(t *testing.T) {
		t.Cleanup(func() { time.Sleep(time.Minute) })
		test(t)
	})
}

func TestAllFindAllThroughOneSeed(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var n network
		names := []string{"aa", "bb", "cc", "dd", "ee", "ff", "gg"}
		var all []*process
		for _, name := range names {
			all = append(all, start(t, &n, name, memberlist.Options{Seeds: seeds("aa")}))
		}
		for _, p := range all {
			p.wants(t, names...)
		}
		time.Sleep(2 * time.Minute)
		for _, p := range all {
			p.quiet(t)
		}
	})
}

func TestTwoThatStartAtOnceFindEachOther(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var n network
		a := start(t, &n, "aa", memberlist.Options{Seeds: seeds("bb")})
		b := start(t, &n, "bb", memberlist.Options{Seeds: seeds("aa")})
		a.wants(t, "aa", "bb")
		b.wants(t, "aa", "bb")
	})
}

func TestTwoHalvesThatStartAtOnceBecomeOne(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var n network
		n.cut(map[string]int{at("cc"): 1, at("dd"): 1})
		a := start(t, &n, "aa", memberlist.Options{Seeds: seeds("bb", "cc")})
		b := start(t, &n, "bb", memberlist.Options{Seeds: seeds("aa")})
		c := start(t, &n, "cc", memberlist.Options{Seeds: seeds("dd", "aa")})
		d := start(t, &n, "dd", memberlist.Options{Seeds: seeds("cc")})
		b.wants(t, "aa", "bb")
		d.wants(t, "cc", "dd")
		time.Sleep(2 * time.Minute)
		n.cut(nil)
		for _, p := range []*process{a, b, c, d} {
			p.wants(t, "aa", "bb", "cc", "dd")
		}
	})
}

func TestSeedThatStartsLaterIsFound(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var n network
		logged := newRecords()
		b := start(t, &n, "bb", memberlist.Options{Seeds: seeds("aa", "bb"), Logger: slog.New(logged)})
		b.wantsNext(t, "bb")
		time.Sleep(2 * time.Minute)
		b.quiet(t)
		a := start(t, &n, "aa", memberlist.Options{Seeds: seeds("aa", "bb")})
		a.wantsNext(t, "aa", "bb")
		b.wants(t, "aa", "bb")
		time.Sleep(time.Minute)
		for _, text := range []string{"is not reached", "is reached now"} {
			if got := logged.count(text); got != 1 {
				t.Errorf("said %d times that a seed %s", got, text)
			}
		}
	})
}

func TestFirstListIsThatOfSomebodyWhoKnows(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var n network
		n.cut(map[string]int{at("silent"): 1})
		b := start(t, &n, "bb", memberlist.Options{})
		b.wants(t, "bb")
		start(t, &n, "cc", memberlist.Options{Seeds: seeds("bb")})
		b.wants(t, "bb", "cc")
		began := time.Now()
		start(t, &n, "aa", memberlist.Options{Seeds: seeds("aa", "absent", "silent", "bb")}).wantsNext(t, "aa", "bb", "cc")
		if took := time.Since(began); took > time.Second {
			t.Errorf("the first list came after %v: a silent seed has held it up", took)
		}
	})
}

func TestFirstListWaitsUntilAllSeedsHaveBeenTried(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var n network
		n.cut(map[string]int{at("silent"): 1})
		began := time.Now()
		start(t, &n, "aa", memberlist.Options{Seeds: seeds("aa", "absent", "silent")}).wantsNext(t, "aa")
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("the first list came after %v, though Config.TCPTimeout is 10s", took)
		}
	})
}

func TestClientListsOthersAndIsNotListed(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var n network
		client := start(t, &n, "client", memberlist.Options{Seeds: seeds("aa")})
		client.wantsNext(t)
		a := start(t, &n, "aa", memberlist.Options{})
		client.wants(t, "aa")
		b := start(t, &n, "bb", memberlist.Options{Seeds: seeds("client")}) // which is as good a seed as any
		b.wantsNext(t, "aa", "bb")
		client.wants(t, "aa", "bb")
		a.wants(t, "aa", "bb")
		client.kill()
		time.Sleep(time.Minute)
		a.quiet(t)
	})
}

func TestLongestSelfIsAnnounced(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var n network
		long := strings.Repeat("x", 512-len("http://"))
		key := make([]byte, 32)
		a := start(t, &n, "aa", memberlist.Options{Key: key})
		b := start(t, &n, "bb", memberlist.Options{Key: key, Seeds: seeds("aa")})
		a.wants(t, "aa", "bb")
		b.wants(t, "aa", "bb")
		began := time.Now()
		start(t, &n, long, memberlist.Options{Key: key, Seeds: seeds("aa")})
		b.wants(t, "aa", "bb", long)
		if took := time.Since(began); took > 2*time.Second { // or it was too long for a packet
			t.Errorf("it took %v", took)
		}
	})
}

func TestWhoLeavesIsUnlistedAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var n network
		a := start(t, &n, "aa", memberlist.Options{})
		b := start(t, &n, "bb", memberlist.Options{Seeds: seeds("aa")})
		c := start(t, &n, "cc", memberlist.Options{Seeds: seeds("aa")})
		for _, p := range []*process{a, b, c} {
			p.wants(t, "aa", "bb", "cc")
		}
		began := time.Now()
		b.kill()
		if err := <-b.ended; err != context.Canceled {
			t.Errorf("it returned %v", err)
		}
		a.wants(t, "aa", "cc")
		c.wants(t, "aa", "cc")
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("it took %v", took)
		}
		b.quiet(t) // it does not tell its own end
	})
}

func TestAllMayLeaveAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var n network
		a := start(t, &n, "aa", memberlist.Options{})
		b := start(t, &n, "bb", memberlist.Options{Seeds: seeds("aa")})
		a.wants(t, "aa", "bb")
		b.wants(t, "aa", "bb")
		began := time.Now()
		a.kill()
		b.kill()
		<-a.ended
		<-b.ended
		if took := time.Since(began); took > 3*time.Second { // nobody is there to be told
			t.Errorf("it took %v", took)
		}
	})
}

func TestWhoFallsSilentIsUnlistedWithinSeconds(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var n network
		a := start(t, &n, "aa", memberlist.Options{})
		b := start(t, &n, "bb", memberlist.Options{Seeds: seeds("aa")})
		c := start(t, &n, "cc", memberlist.Options{Seeds: seeds("aa")})
		for _, p := range []*process{a, b, c} {
			p.wants(t, "aa", "bb", "cc")
		}
		began := time.Now()
		n.cut(map[string]int{at("cc"): 1})
		a.wants(t, "aa", "bb")
		b.wants(t, "aa", "bb")
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("it took %v", took)
		}
		c.wants(t, "cc")
	})
}

func TestSplitFleetIsOneAgainHoweverLongItWasSplit(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var n network
		names := []string{"aa", "bb", "cc", "dd"}
		var all []*process
		for _, name := range names {
			all = append(all, start(t, &n, name, memberlist.Options{Seeds: seeds("aa")}))
		}
		for _, p := range all {
			p.wants(t, names...)
		}
		n.cut(map[string]int{at("cc"): 1, at("dd"): 1})
		all[0].wants(t, "aa", "bb")
		all[1].wants(t, "aa", "bb")
		all[2].wants(t, "cc", "dd")
		all[3].wants(t, "cc", "dd")
		time.Sleep(10 * time.Minute)
		n.cut(nil)
		healed := time.Now()
		for _, p := range all {
			p.wants(t, names...)
		}
		if took := time.Since(healed); took > 25*time.Second { // a try under way ends after TCPTimeout, and the next comes within lastRetry
			t.Errorf("it took %v", took)
		}
	})
}

func TestSameIDAtAnotherAddressIsListedAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var n network
		a := start(t, &n, "aa", memberlist.Options{})
		config := gossip.DefaultLANConfig()
		pod := func(name string) *process {
			config.Transport = n.host(at(name))
			d, err := memberlist.New(&memberlist.Options{Seeds: seeds("aa"), Config: config, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			return run(t, name, func(ctx context.Context, self shoal.Peer, set func([]shoal.Peer)) error {
				self.ID = "pod-0"
				return d(ctx, self, set)
			})
		}
		pod("old").wants(t, "aa", "old")
		a.wants(t, "aa", "old")
		n.cut(map[string]int{at("old"): 1}) // it has died, and nobody knows yet
		began := time.Now()
		pod("new").wants(t, "aa", "new", "old")
		a.wants(t, "aa", "new", "old")
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %v", took)
		}
		a.wants(t, "aa", "new")
	})
}

func TestRestartAtTheSameAddressIsNeverUnlisted(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var n network
		a := start(t, &n, "aa", memberlist.Options{Seeds: seeds("bb")})
		start(t, &n, "bb", memberlist.Options{Seeds: seeds("aa")})
		a.wants(t, "aa", "bb")
		again := start(t, &n, "bb", memberlist.Options{Seeds: seeds("aa")}) // which takes its host: the first hears nothing more
		again.wantsNext(t, "aa", "bb")
		time.Sleep(time.Minute)
		a.quiet(t)
		again.quiet(t)
	})
}

func TestChangesWhileSetBlocksAreToldInOneList(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var n network
		config := gossip.DefaultLANConfig()
		config.Transport = n.host(at("aa"))
		d, err := memberlist.New(&memberlist.Options{Config: config, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		blocked := make(chan struct{})
		a := run(t, "aa", func(ctx context.Context, self shoal.Peer, set func([]shoal.Peer)) error {
			return d(ctx, self, func(list []shoal.Peer) {
				set(list)
				<-blocked
			})
		})
		a.wantsNext(t, "aa")
		b := start(t, &n, "bb", memberlist.Options{Seeds: seeds("aa")})
		b.wants(t, "aa", "bb")
		c := start(t, &n, "cc", memberlist.Options{Seeds: seeds("aa")})
		b.wants(t, "aa", "bb", "cc")
		c.kill()
		b.wants(t, "aa", "bb")
		start(t, &n, "dd", memberlist.Options{Seeds: seeds("aa")})
		b.wants(t, "aa", "bb", "dd")
		time.Sleep(2 * time.Minute)
		b.quiet(t) // aa has gone on to gossip
		close(blocked)
		a.wantsNext(t, "aa", "bb", "dd")
	})
}

func TestManyThatComeTogetherAreToldInFewLists(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var n network
		a := start(t, &n, "aa", memberlist.Options{})
		a.wantsNext(t, "aa")
		names := []string{"aa"}
		for i := range 20 {
			name := fmt.Sprintf("n%c%c", 'a'+i/26, 'a'+i%26)
			names = append(names, name)
			start(t, &n, name, memberlist.Options{Seeds: seeds("aa")})
		}
		time.Sleep(10 * time.Second)
		if got := len(a.lists); got > 3 {
			t.Errorf("%d lists", got)
		}
		a.wants(t, names...)
	})
}

func TestOtherKeysAreStrangers(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var n network
		key := []byte("0123456789abcdef")
		logged := newRecords()
		all := seeds("aa", "bb", "other", "open")
		a := start(t, &n, "aa", memberlist.Options{Seeds: all, Key: key, Logger: slog.New(logged)})
		b := start(t, &n, "bb", memberlist.Options{Seeds: all, Key: key})
		other := start(t, &n, "other", memberlist.Options{Seeds: all, Key: []byte("another key, yes")})
		open := start(t, &n, "open", memberlist.Options{Seeds: all})
		a.wants(t, "aa", "bb")
		b.wants(t, "aa", "bb")
		other.wantsNext(t, "other")
		open.wantsNext(t, "open")
		time.Sleep(2 * time.Minute)
		for _, p := range []*process{a, b, other, open} {
			p.quiet(t)
		}
		if logged.count("encryption is configured but remote state is not encrypted") == 0 {
			t.Errorf("it was not said why: %q", logged.said)
		}
	})
}

func TestKeysCanBeChangedByAndBy(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var n network
		old, young := []byte("0123456789abcdef"), []byte("another key, yes")
		knows := func(keys ...[]byte) *gossip.Config {
			config := gossip.DefaultLANConfig()
			var err error
			if config.Keyring, err = gossip.NewKeyring(keys, keys[0]); err != nil {
				t.Fatal(err)
			}
			return config
		}
		all := []*process{
			start(t, &n, "aa", memberlist.Options{Seeds: seeds("bb"), Config: knows(old, young)}),
			start(t, &n, "bb", memberlist.Options{Seeds: seeds("aa"), Config: knows(young, old)}),
		}
		for _, p := range all {
			p.wants(t, "aa", "bb")
		}
		time.Sleep(time.Minute)
		for _, p := range all {
			p.quiet(t)
		}
	})
}

func TestOtherLabelsAreStrangers(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var n network
		a := start(t, &n, "aa", memberlist.Options{Seeds: seeds("bb", "raw")})
		raw := foreign(t, &n, "raw", "", "http://raw", "raw")
		raw.Join(seeds("aa"))
		a.wantsNext(t, "aa")
		time.Sleep(2 * time.Minute)
		a.quiet(t)
	})
}

// meta is a gossip.Delegate of a process that announces what it likes.
type meta string

func (m meta) NodeMeta(int) []byte           { return []byte(m) }
func (meta) NotifyMsg([]byte)                {}
func (meta) GetBroadcasts(_, _ int) [][]byte { return nil }
func (meta) LocalState(bool) []byte          { return []byte("what is this") }
func (meta) MergeRemoteState([]byte, bool)   {}

// foreign runs the library without this package. It stays until t ends.
func foreign(t *testing.T, n *network, host, label, announces, name string) *gossip.Memberlist {
	t.Helper()
	config := gossip.DefaultLANConfig()
	config.Transport = n.host(at(host))
	config.Label, config.Delegate, config.Name = label, meta(announces), name
	config.Logger = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	m, err := gossip.Create(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Shutdown() })
	return m
}

func TestMembersThatAnnounceNoBaseURLAreIgnored(t *testing.T) {
	for _, announces := range []string{
		"ftp://x", "x", "http://", "http://u:p@x", "http://x?q", "http://x#f", "unix://host", "\x00\xff", "http://x\n", strings.Repeat("x", 512),
	} {
		inBubble(t, func(t *testing.T) {
			var n network
			logged := newRecords()
			a := start(t, &n, "aa", memberlist.Options{Logger: slog.New(logged)})
			a.wantsNext(t, "aa")
			raw := foreign(t, &n, "raw", "shoal", announces, "raw")
			if _, err := raw.Join(seeds("aa")); err != nil {
				t.Fatal(err)
			}
			start(t, &n, "bb", memberlist.Options{Seeds: seeds("raw")}).wants(t, "aa", "bb")
			a.wantsNext(t, "aa", "bb")
			time.Sleep(70 * time.Second) // they tell each other all every 30 s
			a.quiet(t)
			if got := logged.count("no base URL"); got != 1 {
				t.Errorf("%q: said %d times", announces, got)
			}
		})
	}
}

func TestMemberThatTakesAnothersNameIsIgnored(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var n network
		logged := newRecords()
		a := start(t, &n, "aa", memberlist.Options{Logger: slog.New(logged)})
		start(t, &n, "bb", memberlist.Options{Seeds: seeds("aa")}).wants(t, "aa", "bb")
		a.wants(t, "aa", "bb")
		spy := foreign(t, &n, "spy", "shoal", "", "spy")
		if _, err := spy.Join(seeds("aa")); err != nil {
			t.Fatal(err)
		}
		for i, member := range spy.Members() {
			if member.Name != "spy" {
				thief := foreign(t, &n, fmt.Sprintf("thief %02d", i), "shoal", "http://thief", member.Name)
				for range 100 {
					thief.Join(seeds("aa"))
				}
			}
		}
		time.Sleep(50 * time.Second)
		a.quiet(t)
		if got := logged.count("Conflicting address"); got == 0 || got > 4 { // two thieves, and Mine and Theirs either way
			t.Errorf("said %d times in less than a minute", got)
		}
	})
}
