// Package consistenthash decides who owns a key.
//
// The members of a fleet divide the keys among themselves without talking to
// each other: each builds a [Map] from the same list of members, and equal
// lists give equal maps, in whatever order they are and on whatever machine.
// When a member joins or leaves, few keys change hands.
//
// # Which map
//
// [New] is the default: shares even to a few percent, a look-up that hardly
// depends on the number of members, and no key moved without need.
//
// [Rendezvous] gives exact shares, by the keys and by the weights, and takes
// next to no memory, but a look-up takes time in proportion to the number of
// members. It suits fleets of ten or twenty, and weights that differ by
// factors of hundreds.
//
// [Ring] is the ring of github.com/golang/groupcache, for processes that share
// a fleet with groupcache's. Its shares are uneven.
//
// The figures are for members of equal weight and one core of an AMD EPYC
// server; the largest share is a multiple of the mean.
//
//	               members  look-up    build   memory  largest share
//	New                  3    49 ns    12 µs    27 KB           1.01
//	                    10    51 ns    42 µs    90 KB           1.02
//	                   100    59 ns   1.0 ms   0.8 MB           1.02
//	                 1,000    78 ns    11 ms   8.2 MB           1.03
//	                10,000   190 ns   230 ms    82 MB           1.04
//	Rendezvous           3    26 ns   0.1 µs   0.1 KB           1.00
//	                    10    59 ns   0.3 µs   0.2 KB           1.00
//	                   100   340 ns     5 µs   1.9 KB           1.00
//	                 1,000   2.8 µs    70 µs    16 KB           1.00
//	Ring(50, nil)        3    35 ns     9 µs   2.2 KB           1.15
//	                    10    48 ns    30 µs   4.3 KB           1.17
//	                   100    85 ns   0.4 ms    42 KB           1.68
//	                 1,000   116 ns   5.7 ms   450 KB           1.81
//
// # The default
//
// New uses multi-probe consistent hashing (Appleton and O'Reilly, "Multi-probe
// consistent hashing", 2015) with several points for each member. As on any
// ring, a member's points are at hashes of its ID. But a key is looked for at
// several places, its probes, and goes to the member of the point that follows
// one of them most closely. So a point with a long gap before it gains little:
// it is hit by many probes, but from afar. With V points for each member and K
// probes, the share of a member has a standard deviation of 1/sqrt(V(2K-1)) of
// the mean. With 512 and 11 that is 0.96 percent, for which a plain ring needs
// 10,752 points for each member.
//
// Other algorithms are faster or more even, at a price that a cache should not
// pay. Jump hashing (Lamping and Veach, 2014) lets only the last member leave.
// AnchorHash (Mendelson et al., 2020) and its kin need all processes to have
// seen the same members come and go in the same order. Maglev (Eisenbud et al.,
// 2016) and rings with bounded loads (Mirrokni et al., 2018) move keys among
// members that stay, each of which is a load from the origin or a stale copy.
//
// # Compatibility
//
// Processes that disagree about who owns a key load it twice. What a map
// answers for given members and keys will therefore not change.
package consistenthash

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// A Member is one of those among whom the keys are divided.
type Member struct {
	// ID names the member. It alone decides which keys the member owns, so
	// it must be the same in every process, and no two members of a map may
	// share it. Any string will do.
	ID string

	// Weight is the member's share of the keys relative to the weights of
	// the others. Zero means 1. It must not be negative, NaN or infinite.
	Weight float64
}

func (m Member) weight() float64 {
	if m.Weight == 0 {
		return 1
	}
	return m.Weight
}

// A Map says which of its members owns a key. It names a member by its index
// in the slice that the map was built from, and keeps no reference to that
// slice.
//
// A Map never changes and is safe for concurrent use. Its answers depend only
// on the IDs and weights of the members, not on their order, the process, the
// machine or the architecture.
type Map interface {
	// Owner returns the owner of key, or -1 if the map has no members.
	// It does not allocate.
	Owner(key string) int

	// Owners returns n distinct members, or all of them if there are fewer,
	// in the order in which they would stand in for one another: the first
	// is Owner(key), the second would be Owner(key) of a map without the
	// first, and so on. (Where the constructor scales weights by the largest,
	// that is so while the scale stays.) It returns nil if n is not positive
	// or the map has no members.
	Owners(key string, n int) []int
}

// byID returns the indices of members in order of their IDs, which is the one
// order that every process agrees on: a member's rank is its place in it.
// byID panics if members are not fit for a map.
func byID(members []Member) []int {
	order := make([]int, len(members))
	for i, m := range members {
		if !(m.Weight >= 0 && m.Weight <= math.MaxFloat64) {
			panic(fmt.Sprintf("consistenthash: member %q has weight %v", m.ID, m.Weight))
		}
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Compare(members[a].ID, members[b].ID)
	})
	for rank := 1; rank < len(order); rank++ {
		if id := members[order[rank]].ID; id == members[order[rank-1]].ID {
			panic(fmt.Sprintf("consistenthash: two members have the ID %q", id))
		}
	}
	return order
}

// heaviest returns the largest weight among members, or 0 if there are none.
func heaviest(members []Member) float64 {
	w := 0.0
	for _, m := range members {
		w = max(w, m.weight())
	}
	return w
}

// mix is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable
// pseudorandom number generators", 2014): a bijection in which every bit of
// the argument bears on every bit of the result.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}
