package shoal

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/shoalcache/shoal/shoalpb"
)

// The last word of a process counts, in whichever order its words come.
func TestLastWordOfWhoIsBehindCounts(t *testing.T) {
	say := func(at int64, incarnations ...uint64) *shoalpb.Behind {
		return &shoalpb.Behind{At: at, Incarnations: incarnations}
	}
	for name, test := range map[string]struct {
		words []*shoalpb.Behind
		want  []uint64
	}{
		"nothing":                 {nil, nil},
		"a name":                  {[]*shoalpb.Behind{say(1, 7)}, []uint64{1}},
		"taken back":              {[]*shoalpb.Behind{say(1, 7), say(2)}, nil},
		"taken back before":       {[]*shoalpb.Behind{say(1, 7), say(3), say(2, 7)}, nil},
		"said again":              {[]*shoalpb.Behind{say(1, 7), say(2), say(3, 7)}, []uint64{1}},
		"another instead":         {[]*shoalpb.Behind{say(1, 7), say(2, 8)}, nil},
		"no word is no other one": {[]*shoalpb.Behind{say(1, 7), nil}, []uint64{1}},
	} {
		t.Run(name, func(t *testing.T) {
			var h hearsay
			h.note(2, say(1, 8), 0)
			for _, b := range test.words {
				h.note(1, b, 0)
			}
			if got := slices.Collect(maps.Keys(h.of(7))); !slices.Equal(got, test.want) {
				t.Errorf("%v say so, want %v", got, test.want)
			}
		})
	}
}

// Those that have ended are not gone through for every write for ever: where each deploy brings new processes, they are many.
func TestThoseThatHaveEndedAreForgotten(t *testing.T) {
	var a acquaintances
	for n := range uint64(100) {
		a.ends(n)
		a.leaves(&peer{Peer: Peer{ID: "a"}, incarnation: n}, time.Duration(n)*time.Minute)
	}
	if n := len(a.away); n > 12 {
		t.Errorf("%d are remembered", n)
	}
}
