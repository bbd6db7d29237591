package packed

import "math/bits"

// endings are the entries that end, by about when they do: those whose TTLs are of one magnitude lie in 32 spans of time.
type endings struct {
	spans map[span][]uint64 // slots
	slots int               // in all spans; those of entries that have gone since are among them
}

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
	e.spans[s] = append(e.spans[s], slot)
	e.slots++
}

// due returns the slots of what has ended.
func (e *endings) due(now int64) (slots []uint64) {
	for s, some := range e.spans {
		if (s.n+1)<<s.width <= now {
			slots = append(slots, some...)
			delete(e.spans, s)
		}
	}
	e.slots -= len(slots)
	return slots
}

// retain drops the slots for which keep is false.
func (e *endings) retain(keep func(slot uint64) bool) {
	e.slots = 0
	for s, some := range e.spans {
		var left []uint64
		for _, slot := range some {
			if keep(slot) {
				left = append(left, slot)
			}
		}
		if e.slots += len(left); len(left) > 0 {
			e.spans[s] = left
		} else {
			delete(e.spans, s)
		}
	}
}
