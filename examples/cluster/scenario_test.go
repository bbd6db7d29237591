package main

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/shoalcache/shoal"
)

// exampleCost is what a scenario has cost that lasted from second 0 to 4, each step a second.
func exampleCost() *cost {
	w := &workload{name: "trace example.gz", items: make([]item, 500), requests: make([]int, 2000)}
	for i := range w.requests {
		w.requests[i] = i % 400
	}
	s := &scenario{users: newUsers(w, newBalancer(1), 1), loads: 403, stats: shoal.GroupStats{
		Hits: 300, HotHits: 100, PeerHits: 890, Pulled: 1000, Inherited: 20,
	}}
	for i, name := range []string{"each product once", "before the change", "peer-1 ends", "each product once more"} {
		reads := millisUpTo(100 * (i + 1))
		s.steps = append(s.steps, &step{name: name, begin: time.Unix(int64(i), 0), again: i,
			outcome: outcome{requests: len(reads), elapsed: time.Second, reads: reads}})
	}
	s.users.balancer.retried.Store(7)
	return &cost{s, options{peers: 3, clients: 1, discovery: "static", scenario: "rolling", latency: time.Millisecond}, "/cache/products.db"}
}

func TestCostTable(t *testing.T) {
	var b strings.Builder
	if err := exampleCost().writeTable(&b); err != nil {
		t.Fatal(err)
	}
	const want = `Requests: trace example.gz, from 1 client to 3 peers (-discovery static), all on this machine
Database: /cache/products.db, 1ms a query

                                 took     requests  extra loads       errors  stale reads          p99      slowest
each product once              1.00 s          100            0            0            0     99.00 ms    100.00 ms
before the change              1.00 s          200            1            0            0    198.00 ms    200.00 ms
peer-1 ends                    1.00 s          300            2            0            0    297.00 ms    300.00 ms
each product once more         1.00 s          400            3            0            0    396.00 ms    400.00 ms
the change, and after it       2.00 s          700            5            0            0    393.00 ms    400.00 ms

Extra loads are those of products that some peer had loaded before: 5, 1.25% of the 400 products. They are
all loads since then.
What peers took over from each other: 1,000 products in the background, and 20 when they were asked for.
Sent to another peer since one did not answer: 7 requests. That is no error: a load balancer does it.
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestCostJSON(t *testing.T) {
	var b strings.Builder
	if err := exampleCost().writeJSON(&b); err != nil {
		t.Fatal(err)
	}
	const want = `{"peers":3,"clients":1,"unique_keys":400,"loads":403,"hits_local":400,"hits_peer":890,"updates":0,"stale_reads":0,` +
		`"requests":1000,"errors":0,"requests_per_second":250,"p50_us":134000,"p99_us":390000,` +
		`"scenario":"rolling","extra_loads":5,"slowest_ms":400,"retried":7}` + "\n"
	if b.String() != want {
		t.Errorf("got %s want %s", b.String(), want)
	}
}

func TestCostOfFailures(t *testing.T) {
	c := exampleCost()
	if err := c.failure(); err != nil {
		t.Errorf("failure %v without any", err)
	}
	c.count(request{}, time.Second, nil, errors.New("old"))
	if err := c.failure(); err == nil || err.Error() != "1 reads were stale, the first: old" {
		t.Errorf("failure %v", err)
	}
	c.count(request{update: true}, time.Second, errors.New("down"), nil)
	if err := c.failure(); err == nil || err.Error() != "1 requests failed, the first with: down" {
		t.Errorf("failure %v", err)
	}
}

func TestStepAtATime(t *testing.T) {
	c := exampleCost()
	for at, want := range map[time.Duration]int{-1: 0, 0: 0, time.Second - 1: 0, time.Second: 1, time.Hour: 3} {
		if got := c.at(time.Unix(0, 0).Add(at)); got != c.steps[want] {
			t.Errorf("at %v: %s", at, got.name)
		}
	}
}

func TestRollingRestart(t *testing.T) {
	useOwnCacheDir(t)
	d := startDemo(t, "-json", "-scenario", "rolling", "-min-ready", "100ms", "-peers", "2", "-clients", "4", "-trace", smallTrace(t, 1000))
	if err := d.end(t); err != nil {
		t.Fatalf("%v\n%s", err, &d.stderr)
	}
	var got summary
	if err := json.Unmarshal(d.stdout.Bytes(), &got); err != nil || got.Change == nil {
		t.Fatalf("%v in %q", err, d.stdout.String())
	}
	if got.Scenario != "rolling" || got.UniqueKeys != 40 || got.Loads != 40 || got.ExtraLoads != 0 || got.Errors != 0 ||
		got.StaleReads != 0 || got.Requests < 1000 || got.SlowestMS <= 0 {
		t.Errorf("%+v %+v\n%s", got, got.Change, &d.stderr)
	}
}
