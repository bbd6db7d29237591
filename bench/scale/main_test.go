//go:build unix

package main

import (
	"context"
	"math"
	"os"
	"testing"

	"github.com/shoalcache/shoal/consistenthash"
)

func TestMain(m *testing.M) {
	if os.Getenv(peersEnv) != "" {
		bePeers()
		return
	}
	os.Exit(m.Run())
}

// Rendezvous's shares are exact, so that all of their deviation is noise; the ring's are known from its tests.
func TestSharesAreCountedWithoutTheNoise(t *testing.T) {
	for _, test := range []struct {
		p              placement
		mixed          bool
		members        int
		largest, error float64
	}{
		{placements[1], false, 10, 1, 0.01},
		{placements[1], true, 10, 1, 0.01},
		{placements[0], false, 10, 1.02, 0.01},
		{placements[2], false, 10, 1.17, 0.01},
		{placements[2], false, 100, 1.68, 0.03},
	} {
		members := fleet(test.members, test.mixed)
		e := even(test.p.new(members), due(members), 200_000)
		if math.Abs(e.largest-test.largest) > test.error || !(e.smallest <= 1 && e.deviation <= e.largest-e.smallest) {
			t.Errorf("%s, %d members, mixed %t: %+v, want a largest of %v", test.p.name, test.members, test.mixed, e, test.largest)
		}
	}
}

func TestOnlyTheRingMovesMoreThanItMust(t *testing.T) {
	for _, p := range placements {
		m := moved(p, fleet(16, false), 200_000)
		if p.name == "Ring(50, nil)" {
			if !(m.astray > 0.1 && m.doubles > 2) { // the heaviest member has another weight
				t.Errorf("%s: %+v", p.name, m)
			}
			continue
		}
		for _, part := range []float64{m.joins, m.leaves, m.doubles} {
			if math.Abs(part-1) > 0.07 || m.astray != 0 {
				t.Errorf("%s: %+v", p.name, m)
			}
		}
	}
}

func TestAViewerGreetsEachPeerAndAgainWhenItsViewIsNew(t *testing.T) {
	v := newViewer()
	defer v.end()
	v.see(19)
	if err := v.cache.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	greeted := func(n int64) { waitFor(func() bool { return v.stand.greetings.Load() == n }) }
	greeted(2 * 18)
	v.see(20)
	greeted(3*18 + 2) // who has come is asked who it is, and then all are greeted again
	v.receive(20)
	if n := v.cache.Stats().Requests; n != 19 {
		t.Errorf("%d greetings were received, want 19", n)
	}
}

func TestAllEntriesAreLookedThrough(t *testing.T) {
	if took := through(20, 1000); took <= 0 {
		t.Errorf("it took %v", took)
	}
}

func TestPeersAreAskedOverStreams(t *testing.T) {
	o := startOthers(3)
	defer o.end()
	a := newAsker()
	defer func() {
		if err := a.cache.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		a.transport.CloseIdleConnections()
	}()
	before, _ := o.use(true)
	a.see(o.addrs)
	waitFor(func() bool {
		a.getAll("short")
		return a.onStreams()
	})
	a.getAll("long")
	here, there := o.use(true)
	if u := here.since(before); u.goroutines < 3*2 {
		t.Errorf("%+v for three streams here", u)
	}
	if there.goroutines < 3 || there.heap == 0 || there.cpu == 0 {
		t.Errorf("%+v there", there)
	}
}

func TestNumbersAreShort(t *testing.T) {
	for _, test := range []struct{ got, want string }{
		{short(1234567), "1.23ms"}, {short(48), "48ns"}, {short(999), "999ns"},
		{amount(90_300), "90.3 KB"}, {amount(82e6), "82 MB"}, {amount(240), "240 B"}, {amount(1.9e9), "1.9 GB"},
	} {
		if test.got != test.want {
			t.Errorf("%s, want %s", test.got, test.want)
		}
	}
	if due([]consistenthash.Member{{Weight: 1}, {Weight: 3}})[1] != 0.75 {
		t.Error("a member of weight 3 beside one of 1 is not due three quarters")
	}
}
