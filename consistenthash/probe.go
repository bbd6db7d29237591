package consistenthash

import (
	"fmt"
	"math"
	"math/bits"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// Each of these constants, like the hashes below, decides who owns a key:
// processes that differ in one of them disagree.
//
// More points cost memory and more probes cost time. These make a share of 1.05
// times the mean five standard deviations away, and rarer than even that,
// because no point can have more than probes/(probes-1) of a mean point's share.
const (
	pointsPerWeight = 512
	probes          = 11

	// A point is a position on the ring in the high bits and its member's
	// rank in the low ones. A probe is a position with zeros for a rank, so
	// point-probe is the distance and the rank side by side: the least of
	// these belongs to the nearest point and, of equally near ones, to the
	// member whose ID comes first.
	rankBits = 20
	rankMask = 1<<rankBits - 1
	ringBits = 63 // leaves the top bit to say that a point is a lap ahead
	lap      = 1 << ringBits
)

// slotsPerPoint trades memory for the length of a look-up. It has no bearing
// on who owns what.
const slotsPerPoint = 2

// multiProbe is the map that New returns.
type multiProbe struct {
	order []int // from rank to index

	// slots is the ring cut into pieces of equal length. It holds all
	// points in ascending order, each at its slot or, if that was taken, as
	// soon after as order allows. A slot without a point repeats the next
	// one, and the last slot holds the first point, a lap ahead. So the
	// successor of a position is at its slot or a little further on.
	slots []uint64
	scale uint64 // twice the number of pieces
}

// New returns the map to use unless there is a reason for another: multi-probe
// consistent hashing with 512 points for each member of weight 1 and 11 probes
// for each key. It panics if two members have the same ID, if a weight is
// negative, NaN or infinite, or if there are more than 1<<20 members.
//
// In a fleet of equal weights the largest share is about 1.03 times the mean
// among 1,000 members, and less among fewer; the IDs of a thousand members would
// have to be very unlucky to make it 1.05. When a member joins, the only keys
// that move are those that become its own; when one leaves, only those that it
// owned.
//
// A member has 512 points times its weight, rounded, and at least one, and its
// share is the less even the fewer they are: the standard deviation is 0.96
// percent of its due, divided by the square root of the weight. Weights are
// taken as they are while the largest is at least 1 and less than 16.
// Otherwise they are all divided by the power of two that puts the largest
// between 1 and 2, so that memory stays bounded and small weights are not all
// rounded to one point. A change of the largest weight that changes this
// divisor moves many keys.
//
// Owner takes time that hardly depends on the number of members. Owners takes
// time in proportion to n, as long as n is small beside the number of members,
// and allocates one byte for each member beside its result.
func New(members []Member) Map {
	if len(members) > 1<<rankBits {
		panic(fmt.Sprintf("consistenthash: %d members are more than %d", len(members), 1<<rankBits))
	}
	order := byID(members)
	counts := pointCounts(members)
	total := 0
	for _, n := range counts {
		total += n
	}

	size := slotsPerPoint * total
	m := &multiProbe{
		order: order,
		slots: make([]uint64, size, size+64), // a little may run over the end
		scale: 2 * uint64(size),
	}
	for i := range m.slots {
		m.slots[i] = empty
	}
	for rank, i := range order {
		seed := xxhash.Sum64String(members[i].ID)
		for range counts[i] {
			m.place(position(mix(seed)) | uint64(rank))
			seed += 0x9e3779b97f4a7c15 // as in SplitMix64
		}
	}
	m.fill()
	return m
}

// pointCounts returns how many points each of members has. Scaling by a power
// of two is exact, and so the counts are the same on every platform.
func pointCounts(members []Member) []int {
	exp := 0
	if w := heaviest(members); w < 1 || w >= 16 {
		_, exp = math.Frexp(w) // w is in [1/2, 1) times 1<<exp
		exp--
	}
	counts := make([]int, len(members))
	for i, m := range members {
		n := math.Round(pointsPerWeight * math.Ldexp(m.weight(), -exp))
		counts[i] = max(1, int(n))
	}
	return counts
}

// position returns the place on the ring for a hash, leaving room for a rank.
func position(hash uint64) uint64 {
	return hash >> (64 - ringBits + rankBits) << rankBits
}

// slot returns the slot of a point or a probe.
func (m *multiProbe) slot(p uint64) int {
	hi, _ := bits.Mul64(p, m.scale)
	return int(hi)
}

// empty marks a slot that has no point while a map is built.
// It is greater than any point.
const empty = math.MaxUint64

// place puts p into its slot and moves what is in the way onwards, which
// leaves the same slots in whichever order points are placed. This is the
// ordered hash table of Amble and Knuth (1974).
func (m *multiProbe) place(p uint64) {
	for i := m.slot(p); p != empty; i++ {
		if i == len(m.slots) {
			m.slots = append(m.slots, empty)
		}
		if p < m.slots[i] {
			p, m.slots[i] = m.slots[i], p
		}
	}
}

// fill closes the ring, and lets each empty slot repeat the next point.
func (m *multiProbe) fill() {
	if len(m.slots) == 0 {
		return
	}
	next := slices.Min(m.slots) + lap
	m.slots = append(m.slots, next)
	for i, p := range slices.Backward(m.slots) {
		if p == empty {
			m.slots[i] = next
		}
		next = m.slots[i]
	}
}

// successor returns the slot of the first point at or after probe.
func (m *multiProbe) successor(probe uint64) int {
	i := m.slot(probe)
	_, before := bits.Sub64(m.slots[i], probe, 0)
	i += int(before) // not a branch, as it would often be mispredicted
	for m.slots[i] < probe {
		i++
	}
	return i
}

func (m *multiProbe) Owner(key string) int {
	if len(m.order) == 0 {
		return -1
	}
	hash := xxhash.Sum64String(key)
	step := mix(hash)
	nearest := uint64(math.MaxUint64)
	for range probes {
		probe := position(hash)
		distance := m.slots[m.successor(probe)] - probe
		excess, less := bits.Sub64(distance, nearest, 0)
		nearest += excess & -less // the lesser of the two, again without a branch
		hash += step
	}
	return m.order[nearest&rankMask]
}

// Owners repeats Owner's search, passing over the points of members already
// found. Each probe goes on from where it stopped the last time.
func (m *multiProbe) Owners(key string, n int) []int {
	n = min(n, len(m.order))
	if n <= 0 {
		return nil
	}
	hash := xxhash.Sum64String(key)
	step := mix(hash)
	var probe [probes]uint64
	var at [probes]int // the slot that each probe has reached
	for i := range probes {
		probe[i] = position(hash)
		at[i] = m.successor(probe[i])
		hash += step
	}

	owners := make([]int, 0, n)
	found := make([]bool, len(m.order))
	for len(owners) < n {
		nearest := uint64(math.MaxUint64)
		for i := range probes {
			for found[m.slots[at[i]]&rankMask] {
				at[i] = (at[i] + 1) % len(m.slots)
			}
			nearest = min(nearest, (m.slots[at[i]]-probe[i])%lap)
		}
		rank := nearest & rankMask
		found[rank] = true
		owners = append(owners, m.order[rank])
	}
	return owners
}
