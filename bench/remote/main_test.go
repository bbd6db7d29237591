//go:build unix

package main

import (
	"math"
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if what := os.Getenv(serverEnv); what != "" {
		serve(what)
		return
	}
	os.Exit(m.Run())
}

// A client fails if it does not get the value of its key, and only then.
func TestClientsCompareWhatTheyGet(t *testing.T) {
	small, large := newValues(100, 200), newValues(100_000, 10)
	for _, s := range systems {
		t.Run(s.name, func(t *testing.T) {
			if _, err := exec.LookPath(s.binary); s.binary != "" && err != nil {
				t.Skip(err)
			}
			clients := connect([]system{s}, small, large)
			defer disconnect(clients)
			c := clients[0]
			for i := range 20 {
				if err := c.get(small.keys[i], small.at(i)); err != nil {
					t.Error(err)
				}
				if c.get(small.keys[i], small.at(i+1)) == nil {
					t.Errorf("%q came with what was taken for the value of %q", small.keys[i], small.keys[i+1])
				}
			}
			for i, key := range large.keys {
				if err := c.get(key, large.at(i)); err != nil {
					t.Error(err)
				}
			}
			var want [][]byte
			for i := range small.keys {
				want = append(want, small.at(i))
			}
			if err := c.many(small.keys, want); err != nil {
				t.Error(err)
			}
			want[7] = small.at(8)
			if c.many(small.keys, want) == nil {
				t.Error("a batch came with a value that is another's")
			}
		})
	}
}

// Many callers, whose questions go out together, get each their own answers.
func TestLoadsAreMeasured(t *testing.T) {
	v := newValues(100, 2000)
	for _, s := range systems {
		if s.binary != "" {
			continue
		}
		clients := connect([]system{s}, v)
		for _, l := range []load{{v, 16, 1}, {v, 2, batch}} {
			for _, r := range measure(clients[0], 20*time.Millisecond, l) {
				if !(r.rate > 0 && r.cpu > 0 && r.p50 > 0 && r.p99 >= r.p50 && r.asking > 0) {
					t.Errorf("%s, %d callers: %+v", s.name, l.callers, r)
				}
			}
		}
		disconnect(clients)
	}
}

func TestTimesAreCountedWithin3PerCent(t *testing.T) {
	for _, d := range []time.Duration{1, 50, 63, 64, 65, 999, 12_345, time.Millisecond, 3 * time.Second, time.Hour} {
		var all times
		all.took(d)
		if got, want := all.below(0.99), float64(d)/1e6; math.Abs(got-want) > 0.03*want {
			t.Errorf("%v is counted as %v ms", d, got)
		}
	}
}
