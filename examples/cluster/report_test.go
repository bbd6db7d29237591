package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/shoalcache/shoal"
)

// millisUpTo returns 1, 2, … n milliseconds.
func millisUpTo(n int) latencies {
	all := make(latencies, n)
	for i := range all {
		all[i] = time.Duration(i+1) * time.Millisecond
	}
	return all
}

func exampleReport() *report {
	w := &workload{name: "trace example.gz", items: make([]item, 1234), requests: make([]int, 2000)}
	for i := range w.requests {
		w.requests[i] = i % 700
	}
	return &report{
		workload: w,
		database: "/cache/products.db",
		options:  options{peers: 3, clients: 1},
		direct:   outcome{requests: 1000, elapsed: time.Second, reads: millisUpTo(1000)},
		cached:   outcome{requests: 2000, elapsed: 4 * time.Second, reads: millisUpTo(2000)},
		stats:    shoal.GroupStats{Gets: 2000, Hits: 300, HotHits: 100, PeerHits: 890, Loads: 700},
	}
}

func TestTable(t *testing.T) {
	var b strings.Builder
	if err := exampleReport().writeTable(&b); err != nil {
		t.Fatal(err)
	}
	const want = `Requests: trace example.gz over 1,234 products, from 1 client to 3 peers, all on this machine
Database: /cache/products.db

                        database       Shoal
requests                   1,000       2,000
hits here                      –         400   20.0%: in the memory of the peer that was asked
hits at a peer                 –         890   44.5%: in the memory of the peer that owns the key
shared loads                   –          10   0.5%: waited for a load that was under way
database loads             1,000         700   35.0%: read from the database
unique keys                  700         700   no cache that starts empty can load less
failed                         0           0
requests a second          1,000         500   0.50 times the database's
latency p50            500.00 ms  1000.00 ms   2.00 times; 50 of 100 requests took no longer
latency p99            990.00 ms  1980.00 ms   2.00 times; 99 of 100 requests took no longer

The users and the peers that answer them over HTTP are the same in both columns. In the first, a peer reads each
product from the database; in the second, from the cache, which began empty.
The first column stops after 1,000 requests.
Each key was loaded once, whichever peer was asked for it.
`
	if got, _, _ := strings.Cut(b.String(), "\nThis database"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestTableSaysLosses(t *testing.T) {
	r := exampleReport()
	r.stats.Loads = 703
	r.cached.errors, r.cached.firstErr = 2, errors.New("down")
	var b strings.Builder
	if err := r.writeTable(&b); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"\nLoads beyond one for each key: 3.\n",
		"\nfailed                         0           2\n",
	} {
		if !strings.Contains(b.String(), line) {
			t.Errorf("no %q in\n%s", line, b.String())
		}
	}
	if err := r.failure(); err == nil || err.Error() != "2 requests failed, the first with: down" {
		t.Errorf("failure %v", err)
	}
	if err := exampleReport().failure(); err != nil {
		t.Errorf("failure %v without any", err)
	}
}

// updated makes 100 of a report's requests updates.
func updated(r *report) *report {
	r.cached.updates = 100
	r.cached.reads, r.cached.writes = millisUpTo(1900), millisUpTo(100)
	r.stats.Gets, r.stats.PeerHits = 1900, 790
	return r
}

func TestTableOfUpdates(t *testing.T) {
	r := updated(exampleReport())
	var b strings.Builder
	if err := r.writeTable(&b); err != nil {
		t.Fatal(err)
	}
	const want = `
                        database       Shoal
requests                   1,000       2,000
updates                        –         100   of these; the shares below are of the others
hits here                      –         400   21.1%: in the memory of the peer that was asked
hits at a peer                 –         790   41.6%: in the memory of the peer that owns the key
shared loads                   –          10   0.5%: waited for a load that was under way
database loads             1,000         700   36.8%: read from the database
unique keys                  700         700   products that the requests name
failed                         0           0
stale reads                    –           0   older than an update that was acknowledged before they began
requests a second          1,000         500   0.50 times the database's
latency p50            500.00 ms   950.00 ms   1.90 times; 50 of 100 reads took no longer
latency p99            990.00 ms  1881.00 ms   1.90 times; 99 of 100 reads took no longer
updates p50                    –    50.00 ms   until they were acknowledged
updates p99                    –    99.00 ms   until they were acknowledged

`
	if _, got, _ := strings.Cut(b.String(), "in a copy that is gone after this run\n"); !strings.HasPrefix(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if !strings.Contains(b.String(), "\nAn update is acknowledged when ") {
		t.Errorf("no word of updates in\n%s", b.String())
	}
	if err := r.failure(); err != nil {
		t.Errorf("failure %v without any", err)
	}

	r.cached.staleReads, r.cached.firstStale = 3, errors.New("old")
	if err := r.failure(); err == nil || err.Error() != "3 reads were stale, the first: old" {
		t.Errorf("failure %v", err)
	}
	b.Reset()
	if err := r.writeJSON(&b); err != nil || !strings.Contains(b.String(), `"updates":100,"stale_reads":3,`) {
		t.Errorf("got %s %v", b.String(), err)
	}
}

func TestJSON(t *testing.T) {
	var b strings.Builder
	if err := exampleReport().writeJSON(&b); err != nil {
		t.Fatal(err)
	}
	const want = `{"peers":3,"clients":1,"unique_keys":700,"loads":700,"hits_local":400,"hits_peer":890,"updates":0,"stale_reads":0,` +
		`"requests":2000,"errors":0,"requests_per_second":500,"p50_us":1000000,"p99_us":1980000,` +
		`"direct":{"requests":1000,"errors":0,"requests_per_second":1000,"p50_us":500000,"p99_us":990000}}` + "\n"
	if b.String() != want {
		t.Errorf("got %s want %s", b.String(), want)
	}
}

func TestCount(t *testing.T) {
	for n, want := range map[int]string{
		0: "0", 12: "12", 999: "999", 1000: "1,000", 100_000: "100,000", 1_234_567: "1,234,567", -12: "-12", -1000: "-1,000",
	} {
		if got := count(n); got != want {
			t.Errorf("count(%d) = %s", n, got)
		}
	}
}
