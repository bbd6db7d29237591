package shoal

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A greeting takes a connection of its own, which may not be had while streams go on answering: then nobody is silent.
func TestFailedGreetingMakesNobodySilentWhoAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := New(nil)
		if err != nil {
			t.Fatal(err)
		}
		p, b := &c.peers, &peer{Peer: Peer{ID: "b"}, incarnation: 1}
		p.swap([]*peer{b}, false)
		breaker, failed := &p.view.Load().members[0].counts.breaker, greeting{err: errors.New("no connection")}
		for _, asked := range []struct {
			inVain, silent bool
		}{{false, false}, {true, true}} {
			if asked.inVain {
				breaker.missed(time.Millisecond)
			}
			p.answered(&candidate{met: b}, failed, 1)
			if breaker.open.Load() != asked.silent {
				t.Errorf("asked in vain: %v, silent: %v", asked.inVain, !asked.silent)
			}
		}
	})
}
