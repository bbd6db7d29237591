package packed

import (
	"math"
	"math/bits"
)

// ghosts remember what has been evicted lately, by hashes, so that it goes to the main queue if it comes back. A place is
// 15 bits of a hash, one that says which queue it was evicted from, and 16 of a clock that counts the ghosts.
type ghosts struct {
	places []uint32 // buckets of 4
	clock  uint32

	small, main int64 // how many have left each queue lately
}

const fewestGhosts = 32

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

func (g *ghosts) add(h uint64, fromMain bool, sh *shard) {
	if want := int(sh.entries); len(g.places) < want {
		// As many as there are entries. What there were are forgotten: it happens while a cache grows.
		places := make([]uint32, max(fewestGhosts, 1<<bits.Len(uint(want))))
		sh.use(int64(len(places)-len(g.places)) * 4)
		*g = ghosts{places: places, small: g.small, main: g.main}
	}
	g.clock++
	place := uint32(h>>49)<<17 | uint32(uint16(g.clock/g.unit()))
	if place == 0 {
		place = 1 << 17
	}
	if fromMain {
		place |= 1 << 16
		g.main++
	} else {
		g.small++
	}
	if g.small+g.main > int64(len(g.places)) {
		g.small, g.main = g.small/2, g.main/2
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

// take reports whether h is a ghost, and where from, and forgets it.
func (g *ghosts) take(h uint64) (fromMain, ok bool) {
	if len(g.places) == 0 {
		return false, false
	}
	b := g.bucket(h)
	for i := range b {
		if b[i]>>17 == uint32(h>>49) && g.live(b[i]) {
			fromMain, b[i] = b[i]>>16&1 != 0, 0
			return fromMain, true
		}
	}
	return false, false
}
