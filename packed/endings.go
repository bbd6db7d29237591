package packed

// endings are the entries that end, by about when they do: those whose TTLs are of one magnitude lie in 32 spans of time.
type endings struct {
	spans map[span][]uint64 // slots
}

type span struct {
	width int   // the power of two of its length
	n     int64 // of them since the clock began
}

func (e *endings) add(ends, born int64, slot uint64) {
	if e.spans == nil {
		e.spans = make(map[span][]uint64)
	}
	width := uintLog2(int(max(ends-born, 1<<20) >> 5))
	s := span{width, ends >> width}
	e.spans[s] = append(e.spans[s], slot)
}

// due returns the slots of what has ended.
func (e *endings) due(now int64) (slots []uint64) {
	for s, some := range e.spans {
		if (s.n+1)<<s.width <= now {
			slots = append(slots, some...)
			delete(e.spans, s)
		}
	}
	return slots
}

func uintLog2(n int) (log int) {
	for ; n > 1; n >>= 1 {
		log++
	}
	return log
}
