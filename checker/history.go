// Package checker makes clusters of Shoal's caches work under faults, writes down what every call returned, and checks
// that against what Shoal promises: see checker_test.go, which runs it. The rules are here.
package checker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// A kind is what a call does.
type kind string

const (
	get    kind = "get"
	set    kind = "set"
	remove kind = "remove"
	purge  kind = "purge"
	add    kind = "add"
)

// A call is one that a client has made. Its times are those of the bubble it was made in.
type call struct {
	kind       kind
	client     int
	cache      int
	process    int // that was the cache then
	key        string
	value      int // read, written or added; every write of a key has another; 0 is no value
	sum        int // that an add returned
	start, end time.Duration
	err        error
	source     string        // of what a get returned
	since      time.Duration // what a get returned must have been true at that time, or later; 0: at any
	limit      time.Duration // its context's; 0: none
	final      bool          // all has healed, and hints have been delivered
	leaving    bool          // the process had been told to shut down before the call ended
	orphan     bool          // the process has ended since
}

func (c call) String() string {
	text := fmt.Sprintf("%v–%v cache %d", at(c.start), at(c.end), c.cache)
	if c.client >= 0 {
		text += fmt.Sprint(", client ", c.client)
	}
	text += fmt.Sprint(": ", c.kind)
	if c.key != "" {
		text += " " + c.key
	}
	switch {
	case c.err != nil && c.value != 0:
		text += fmt.Sprintf(" %d: %s", c.value, oneLine(c.err))
	case c.err != nil:
		text += ": " + oneLine(c.err)
	case c.kind == get && c.value == 0:
		text += fmt.Sprintf(": nothing, from %q", c.source)
	case c.kind == get:
		text += fmt.Sprintf(": %d, from %q", c.value, c.source)
	case c.kind == set:
		text += fmt.Sprintf(" to %d", c.value)
	case c.kind == add:
		text += fmt.Sprintf(" %d: %d", c.value, c.sum)
	}
	return text
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// at is a time of a run, to be read.
type at time.Duration

func (t at) String() string { return fmt.Sprintf("%.4f", time.Duration(t).Seconds()) }

// never is when a call that failed has had all its effects.
const never = time.Duration(math.MaxInt64)

// done is when c had its effect at the latest.
func (c call) done() time.Duration {
	if c.err != nil {
		return never
	}
	return c.end
}

// A history is all that was called of one group.
type history struct {
	calls []call
	// faded tells when each value of a key was in the source for the last time; nil without one.
	faded map[string]map[int]time.Duration
	// absent are the times at which a key had no value in the source.
	absent map[string][]interval
	// faults are the times at which not all could reach each other.
	faults []interval
	splits []split
	// outside are the caches that nobody lists: they are not told of writes.
	outside map[int]bool
	// lends says that who stands in for an owner that cannot be reached keeps a copy, and may lend it to others.
	lends bool
	// forgets says that values without a source may get lost.
	forgets bool
}

type interval struct{ from, to time.Duration }

// A split is the time in which caches on different sides of a cut may not have listed each other, until they have told
// each other what they have missed.
type split struct {
	interval
	healed time.Duration // when they began to
	side   []int         // by cache
}

// apart reports whether w was made during a split, on another side than g, or g came before all had been told.
func (h *history) apart(g, w call) bool {
	return slices.ContainsFunc(h.splits, func(s split) bool {
		meanwhile := s.from <= w.done() && w.start <= s.to && s.from <= g.end && g.start <= s.to
		return meanwhile && (s.side[g.cache] != s.side[w.cache] || s.healed <= g.end)
	})
}

// A violation is what a history has shown to be wrong.
type violation struct {
	text     string
	h        *history
	key      string
	value    int // that was read
	from, to time.Duration
}

// late returns the calls that have taken longer than their contexts, or as long as those that no call should outlast.
func (h *history) late(patience time.Duration) (bad []violation) {
	for _, c := range h.calls {
		took := c.end - c.start
		if took > c.limit+slack && c.limit > 0 || took >= patience && patience > 0 {
			bad = append(bad, violation{fmt.Sprintf("%v\n  took %v, with a context of %v", c, took, c.limit), h, c.key, c.value, c.start, c.end})
		}
	}
	return bad
}

// slack is how long after its context's end a call may take. In a bubble no time passes but by waiting.
const slack = 10 * time.Millisecond

// refused returns the writes that have failed, though their contexts had not ended.
func (h *history) refused() (bad []violation) {
	for _, c := range h.calls {
		if c.kind != get && c.err != nil && !c.leaving && !c.orphan && c.end-c.start < c.limit {
			bad = append(bad, violation{fmt.Sprintf("%v\n  though nobody has died and all can reach each other", c), h, c.key, c.value, c.start, c.end})
		}
	}
	return bad
}

// standIn is how old a value may be that a process has loaded itself, or one in the owner's place, since it could not reach
// that.
const standIn = 5*time.Second + time.Second // a lease, and the longest load

// stale returns the gets that returned something older than a write which had returned nil before they began.
//
// A value is older than a write if it had been replaced, in the source and by the end of its own write, before that write
// began; what was going on at the same time may have happened in either order. A get that could not reach the owner, and
// loaded the value itself, may be late by standIn, as may one at a process that nobody tells of writes. What was written on
// one side of a cut must be known on the other when that has healed. Gets that found nothing though something had been set
// are missing, if values may get lost.
func (h *history) stale() (bad, missing []violation) {
	gone := make(map[string]map[int]time.Duration) // when each value was written or in the source for the last time
	note := func(key string, value int, at time.Duration) {
		if gone[key] == nil {
			gone[key] = make(map[int]time.Duration)
		}
		gone[key][value] = max(gone[key][value], at)
	}
	for key, values := range h.faded {
		for value, at := range values {
			note(key, value, at)
		}
	}
	writes := make(map[string][]call) // by key; purges are under all keys
	keys := make(map[string]bool)
	for _, c := range h.calls {
		keys[c.key] = true
	}
	for _, c := range h.calls {
		switch c.kind {
		case set:
			note(c.key, c.value, c.done())
			writes[c.key] = append(writes[c.key], c)
		case remove:
			writes[c.key] = append(writes[c.key], c)
		case purge:
			for key := range keys {
				writes[key] = append(writes[key], c)
			}
		}
	}
	for _, g := range h.calls {
		if g.kind != get || g.err != nil {
			continue
		}
		last := gone[g.key][g.value]
		if g.value == 0 {
			last = h.lastAbsent(g, writes[g.key])
		}
		if last < g.since {
			bad = append(bad, violation{
				fmt.Sprintf("%v\n  though that had gone at %v, and what was true at %v was asked for", g, at(last), at(g.since)), h, g.key, g.value, last, g.end,
			})
		}
		before := g.start
		loaded := g.source == "getter" || g.source == "many"
		if loaded && (g.leaving || h.outside[g.cache] || h.faulty(g, time.Second)) || h.lends && h.faulty(g, standIn) {
			before -= standIn
		}
		for _, w := range writes[g.key] {
			told := w.err == nil && w.end < before || g.final && h.faded != nil && !w.orphan
			if !told || last >= w.start || h.apart(g, w) {
				continue
			}
			v := violation{fmt.Sprintf("%v\n  though that had gone at %v, before\n  %v", g, at(last), w), h, g.key, g.value, w.start, g.end}
			if h.forgets && g.value == 0 {
				missing = append(missing, v)
			} else {
				bad = append(bad, v)
			}
			break
		}
	}
	return bad, missing
}

// goesOn is for how long a write may still be on its way to the owner that its caller does not wait for any more.
const goesOn = 5 * time.Second

// lastAbsent returns when the key of g had no value for the last time before g ended: in the source, or, without one, since
// it had not been set, had been removed, or a write of it had failed, which leaves open what there is. Nothing is evicted.
func (h *history) lastAbsent(g call, writes []call) (last time.Duration) {
	if h.faded != nil {
		for _, a := range h.absent[g.key] {
			if a.from <= g.end {
				last = max(last, min(a.to, g.end))
			}
		}
		return last
	}
	for _, w := range writes {
		switch {
		case w.start > g.end:
		case w.kind == set && w.err == nil:
		case w.err != nil && w.kind == purge: // those that were not told hear of it later
			last = g.end
		case w.kind == remove && errors.Is(w.err, context.DeadlineExceeded): // and it goes on
			last = max(last, w.end+goesOn)
		case w.err != nil:
			last = max(last, w.end)
		default: // until it is set again
			until := g.end
			for _, s := range writes {
				if s.kind == set && s.err == nil && s.start > w.end {
					until = min(until, s.end)
				}
			}
			last = max(last, until)
		}
	}
	return last
}

// faulty reports whether not all could reach each other while c was made, or that much earlier.
func (h *history) faulty(c call, after time.Duration) bool {
	return slices.ContainsFunc(h.faults, func(f interval) bool { return f.from <= c.end && f.to+after >= c.start })
}

// differ returns, for each key, the caches' values at the end, if they are not all the same: unless an old one may have
// stayed somewhere, as nobody is there any more to tell of a write that failed.
func (h *history) differ() (bad []violation) {
	untold := h.untold()
	last := make(map[string]call)
	for _, c := range h.calls {
		if !c.final || c.kind != get || untold[c.key] || untold[""] {
			continue
		}
		if other, ok := last[c.key]; ok && (other.value != c.value || (other.err == nil) != (c.err == nil)) {
			bad = append(bad, violation{fmt.Sprintf("after all had healed:\n  %v\n  %v", other, c), h, c.key, c.value, other.start - time.Minute, c.end})
		}
		last[c.key] = c
	}
	return bad
}

// untold returns the keys of writes that have failed at processes that have ended; "" stands for all keys.
func (h *history) untold() map[string]bool {
	untold := make(map[string]bool)
	for _, c := range h.calls {
		if c.kind != get && c.err != nil && c.orphan {
			untold[c.key] = true
		}
	}
	return untold
}

// unhealed returns the gets at the end that returned what was not in the source any more. What a write that failed has left
// somewhere has been dropped by then, and it has no effects any more. A value that was still being set when another replaced it
// in the source may be what the owner has taken last.
func (h *history) unhealed() (bad []violation) {
	untold := h.untold()
	type written struct {
		key   string
		value int
	}
	sets := make(map[written]time.Duration) // when they had happened
	for _, c := range h.calls {
		if c.kind == set && (c.err == nil || errors.Is(c.err, context.DeadlineExceeded)) { // the latter goes on
			sets[written{c.key, c.value}] = c.end
		}
	}
	for _, c := range h.calls {
		if !c.final || c.kind != get || c.err != nil || untold[c.key] || untold[""] {
			continue
		}
		last := h.faded[c.key][c.value]
		if c.value == 0 {
			last = h.lastAbsent(c, nil)
		}
		if last < c.start && sets[written{c.key, c.value}] < last {
			bad = append(bad, violation{fmt.Sprintf("after all had healed:\n  %v\n  though that had gone at %v", c, at(last)), h, c.key, c.value, last, c.end})
		}
	}
	return bad
}

// unordered checks the calls of each key for an order in which the owner may have done them: a register for values that
// are set, and a counter for those that are added to. It returns the keys for which there is none, and how many were not
// decided in time.
func (h *history) unordered(patience time.Duration) (bad []violation, undecided int) {
	byKey := make(map[string][]porcupine.Operation)
	keys := make(map[string]bool)
	for _, c := range h.calls {
		if c.kind != purge {
			keys[c.key] = true
		}
	}
	for _, c := range h.calls {
		op := porcupine.Operation{ClientId: c.client, Input: c, Call: int64(c.start), Output: c, Return: int64(c.done())}
		if c.kind == get && c.err != nil {
			continue
		}
		if c.kind == purge {
			for key := range keys {
				byKey[key] = append(byKey[key], op)
			}
			continue
		}
		byKey[c.key] = append(byKey[c.key], op)
		if c.kind == set && c.err != nil { // the owner may be told later to drop it
			gone := c
			gone.kind = remove
			op.Input, op.Output = gone, gone
			byKey[c.key] = append(byKey[c.key], op)
		}
	}
	for key, ops := range byKey {
		for i := range ops { // a client may have one call at a time, as far as porcupine is concerned
			ops[i].ClientId = i
		}
		switch porcupine.CheckOperationsTimeout(owner, ops, patience) {
		case porcupine.Illegal:
			bad = append(bad, violation{text: fmt.Sprintf("no order explains what was done to %s:\n%v", key, lines(ops)), key: key})
		case porcupine.Unknown:
			undecided++
		}
	}
	return bad, undecided
}

func lines(ops []porcupine.Operation) (text string) {
	for _, op := range ops {
		text += fmt.Sprintln(" ", op.Input)
	}
	return text
}

// owner is what the owner of a key does, as porcupine sees it: its state is the value.
var owner = porcupine.Model{
	Init: func() any { return 0 },
	Step: func(state, input, output any) (bool, any) {
		held, c := state.(int), input.(call)
		switch c.kind {
		case set:
			return true, c.value
		case remove, purge:
			return true, 0
		case add:
			return c.err != nil || c.sum == held+c.value, held + c.value
		default:
			return c.value == held, held
		}
	},
}

// lost checks counters that only grow: a call must return what all adds that had returned before it began have made of
// them at least, and at most what all that began before it ended can. What is below that is missing, if values may get lost.
// Where lists may differ, two owners may count at the same time, each without the other: of adds that overlap, one is sure.
func (h *history) lost() (bad, missing []violation) {
	for _, g := range h.calls {
		if g.kind == purge || g.err != nil {
			continue
		}
		value := g.value
		if g.kind == add {
			value = g.sum
		}
		least, most := 0, 0
		for _, a := range h.calls {
			if a.kind == add && a.key == g.key {
				if a.done() < g.start {
					least += a.value
				}
				if a.start <= g.end {
					most += a.value
				}
			}
		}
		if h.forgets {
			least = min(least, h.sure(g))
		}
		if value >= least && value <= most {
			continue
		}
		v := violation{fmt.Sprintf("%v\n  though at least %d and at most %d had been added", g, least, most), h, g.key, g.value, g.start - 10*time.Second, g.end}
		if h.forgets && value < least {
			missing = append(missing, v)
		} else {
			bad = append(bad, v)
		}
	}
	return bad, missing
}

// sure returns what the adds that had returned before g began have made of its key at least, if of those that overlap one may count
// without the others. One that has failed may have gone on for a while. Of an add and those that it overlaps, one has counted: so the
// least of them is sure, for as many adds as have none of them in common.
func (h *history) sure(g call) (sum int) {
	var adds []call
	for _, a := range h.calls {
		if a.kind != add || a.key != g.key || a.start > g.end {
			continue
		}
		if a.err != nil {
			a.end += standIn
		}
		adds = append(adds, a)
	}
	slices.SortFunc(adds, func(a, b call) int { return cmp.Compare(a.end, b.end) })
	var taken time.Duration // when the last has ended of those that stand for what is sure already
	for _, a := range adds {
		if a.err != nil || a.end >= g.start {
			continue
		}
		least, first, last := a.value, a.start, a.end
		for _, b := range adds {
			if b.start <= a.end && a.start <= b.end {
				least, first, last = min(least, b.value), min(first, b.start), max(last, b.end)
			}
		}
		if first > taken {
			sum += least
			taken = last
		}
	}
	return sum
}
