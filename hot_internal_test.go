package shoal

import (
	"fmt"
	"testing"
	"time"
)

// One key that is asked for a hundred times a second, among a million others that are asked for once within ten.
func TestRatesTellTheHotKeyFromAMillionOthers(t *testing.T) {
	r := rates{most: 4096}
	const a, b = 1, 2 // peers
	var now time.Duration
	var hot, low int
	for n := range 1_000_000 {
		now += 10 * time.Microsecond
		if r.note(fmt.Sprint("key ", n), a, 1, now) >= 10 {
			hot++
		}
		if n%1000 == 0 {
			if rate := r.note("the hot one", b, 1, now); n > 200_000 && (rate < 70 || rate > 140) {
				low++
			}
		}
	}
	if hot > 0 || low > 0 {
		t.Errorf("%d of the others pass for hot, and the hot one's rate is wrong %d times of 800", hot, low)
	}
	if rate := r.note("the hot one", a, 1, now); rate >= 10 {
		t.Errorf("the rate of another peer is %v", rate)
	}
	if rate := r.note("the hot one", b, 1, now+10*time.Second); rate >= 10 {
		t.Errorf("ten seconds later its rate is still %v", rate)
	}
}

func TestLeasesEndByTimeAloneAndAreBounded(t *testing.T) {
	l := leases{most: 100}
	p, q := &peer{Peer: Peer{ID: "p"}}, &peer{Peer: Peer{ID: "q"}}
	for n := range 99 {
		if !l.add(fmt.Sprint(n), p, 0, time.Second) {
			t.Fatalf("no lease %d", n)
		}
	}
	if !l.add("7", q, 0, 2*time.Second) || l.add("another", p, 0, time.Second) {
		t.Error("not 100 leases")
	}
	for now, want := range map[time.Duration]int{0: 2, time.Second - 1: 2, time.Second: 1, 2 * time.Second: 0} {
		if got := l.of("7", now); len(got) != want {
			t.Errorf("after %v: %d holders", now, len(got))
		}
	}
	for n := range 100_000 { // none is left behind
		now := time.Duration(n+2) * time.Second
		if !l.add(fmt.Sprint(n), p, now, now+10*time.Second) {
			t.Fatalf("no lease %d", n)
		}
	}
	if len(l.held) > 11 || len(l.order) > 11 {
		t.Errorf("%d keys and %d leases", len(l.held), len(l.order))
	}
}
