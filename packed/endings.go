package packed

import (
	"math/bits"
	"slices"
)

// endings are the entries that end, by about when they do: those whose TTLs are of one magnitude lie in 32 spans of time.
type endings struct {
	spans map[span][]uint64 // slots
	slots int               // in all spans; those of entries that have gone since are among them
	bytes int64             // that all of it takes
}

// spanBytes is what a span takes beside its slots.
const spanBytes = 96

type span struct {
	width int   // the power of two of its length
	n     int64 // of them since the clock began
}

func (e *endings) add(ends, born int64, slot uint64) {
	if e.spans == nil {
		e.spans = make(map[span][]uint64)
	}
	width := bits.Len64(uint64(max(ends-born, 1<<20))) - 6
	s := span{width, ends >> width}
	some, ok := e.spans[s]
	if !ok {
		e.bytes += spanBytes
	}
	if len(some) == cap(some) { // by a quarter, for there are many of them
		grown := make([]uint64, len(some), len(some)+len(some)/4+1)
		copy(grown, some)
		e.bytes += 8 * int64(cap(grown)-cap(some))
		some = grown
	}
	e.spans[s] = append(some, slot)
	e.slots++
}

// due returns the slots of what has ended.
func (e *endings) due(now int64) (slots []uint64) {
	for s, some := range e.spans {
		if now>>s.width > s.n {
			slots = append(slots, some...)
			e.remove(s)
		}
	}
	e.slots -= len(slots)
	return slots
}

// remove drops a span. A map keeps the memory of what has been in it, so it goes with the last.
func (e *endings) remove(s span) {
	e.bytes -= spanBytes + 8*int64(cap(e.spans[s]))
	if delete(e.spans, s); len(e.spans) == 0 {
		e.spans = nil
	}
}

// retain drops the slots for which keep is false.
func (e *endings) retain(keep func(slot uint64) bool) {
	old := e.spans
	*e = endings{}
	for s, some := range old {
		n := 0
		for _, slot := range some {
			if keep(slot) {
				some[n] = slot
				n++
			}
		}
		if n == 0 {
			continue
		}
		if e.spans == nil {
			e.spans = make(map[span][]uint64)
		}
		e.spans[s] = slices.Clip(slices.Clone(some[:n]))
		e.slots += n
		e.bytes += spanBytes + 8*int64(cap(e.spans[s]))
	}
}
