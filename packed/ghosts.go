package packed

import (
	"math"
	"math/bits"
)

// ghosts remember what has left the small queue lately, by hashes, so that it goes to the main one if it comes back. A
// place is 16 bits of a hash, and 16 of a clock that counts the ghosts.
type ghosts struct {
	places []uint32 // buckets of 4
	clock  uint32
}

func (g *ghosts) bucket(h uint64) []uint32 {
	n := uint64(len(g.places) / 4)
	b := (h & math.MaxUint32) * n >> 32
	return g.places[4*b : 4*b+4]
}

// unit is how many ghosts pass for one step of the clock: so many that a quarter of its range is their number.
func (g *ghosts) unit() uint32 { return max(uint32(len(g.places))>>14, 1) }

func (g *ghosts) age(place uint32) uint32 { return uint32(uint16(g.clock/g.unit()) - uint16(place)) }

func (g *ghosts) live(place uint32) bool {
	return place != 0 && g.age(place)*g.unit() <= uint32(len(g.places))
}

func (g *ghosts) add(h uint64, sh *shard) {
	if want := int(sh.entries); len(g.places) < want {
		// As many as there are entries. What there were are forgotten: it happens while a cache grows.
		places := make([]uint32, max(16, 1<<bits.Len(uint(want))))
		sh.use(int64(len(places)-len(g.places)) * 4)
		*g = ghosts{places: places}
	}
	g.clock++
	place := uint32(h>>48)<<16 | uint32(uint16(g.clock/g.unit()))
	if place == 0 {
		place = 1 << 16
	}
	b := g.bucket(h)
	oldest := 0
	for i := range b {
		if !g.live(b[i]) {
			oldest = i
			break
		}
		if g.age(b[i]) > g.age(b[oldest]) {
			oldest = i
		}
	}
	b[oldest] = place
}

// take reports whether h is a ghost, and forgets it.
func (g *ghosts) take(h uint64) bool {
	if len(g.places) == 0 {
		return false
	}
	b := g.bucket(h)
	for i := range b {
		if b[i]>>16 == uint32(h>>48) && g.live(b[i]) {
			b[i] = 0
			return true
		}
	}
	return false
}
