// Package checker makes clusters of Shoal's caches work under faults, writes down what every call returned, and checks
// that against what Shoal promises: see checker_test.go, which runs it. The rules are here.
package checker

import (
	"fmt"
	"math"
	"slices"
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
	key        string
	value      int // read, written or added; every write of a key has another; 0 is no value
	sum        int // that an add returned
	start, end time.Duration
	err        error
	source     string        // of what a get returned
	since      time.Duration // what a get returned must have been true at that time, or later; 0: at any
	final      bool          // all has healed, and hints have been delivered
}

func (c call) String() string {
	return fmt.Sprintf("%v–%v client %d at cache %d: %s %s %d (%d) from %q: %v", c.start, c.end, c.client, c.cache, c.kind, c.key, c.value, c.sum, c.source, c.err)
}

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
}

type interval struct{ from, to time.Duration }

// standIn is how old a value may be that a process has loaded itself since it could not reach the owner.
const standIn = 5*time.Second + time.Second // a lease, and the longest load

// stale returns the gets that returned something older than a write which had returned nil before they began.
//
// A value is older than a write if it had been replaced, in the source and by the end of its own write, before that write
// began; what was going on at the same time may have happened in either order. A get that could not reach the owner, and
// loaded the value itself, may be late by standIn.
func (h *history) stale() (bad []string) {
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
			bad = append(bad, fmt.Sprintf("%v\n  though the value had gone at %v, and what was true at %v was asked for", g, last, g.since))
		}
		before := g.start
		if g.source == "getter" && h.faulty(g) {
			before -= standIn
		}
		for _, w := range writes[g.key] {
			told := w.err == nil && w.end < before || g.final && h.faded != nil
			if told && last < w.start {
				bad = append(bad, fmt.Sprintf("%v\n  though the value had gone at %v, and\n  %v", g, last, w))
				break
			}
		}
	}
	return bad
}

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

// faulty reports whether not all could reach each other while c was made, or so little earlier that a question sent then
// may have failed.
func (h *history) faulty(c call) bool {
	return slices.ContainsFunc(h.faults, func(f interval) bool { return f.from <= c.end && f.to+time.Second >= c.start })
}

// split returns, for each key, the caches' values at the end, if they are not all the same.
func (h *history) split() (bad []string) {
	last := make(map[string]call)
	for _, c := range h.calls {
		if !c.final || c.kind != get {
			continue
		}
		if other, ok := last[c.key]; ok && (other.value != c.value || (other.err == nil) != (c.err == nil)) {
			bad = append(bad, fmt.Sprintf("after all had healed:\n  %v\n  %v", other, c))
		}
		last[c.key] = c
	}
	return bad
}

// unordered checks the calls of each key for an order in which the owner may have done them: a register for values that
// are set, and a counter for those that are added to. It returns the keys for which there is none, and how many were not
// decided in time.
func (h *history) unordered(patience time.Duration) (bad []string, undecided int) {
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
			bad = append(bad, fmt.Sprintf("no order explains what was done to %s:\n%v", key, lines(ops)))
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

// lost checks counters that only grow: a get must return what all adds that had returned before it began have made of
// them at least, and at most what all that began before it ended can.
func (h *history) lost() (bad []string) {
	for _, g := range h.calls {
		if g.kind != get || g.err != nil {
			continue
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
		if g.value < least || g.value > most {
			bad = append(bad, fmt.Sprintf("%v\n  though at least %d and at most %d had been added", g, least, most))
		}
	}
	return bad
}
