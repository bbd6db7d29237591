package consistenthash

import (
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"strconv"
	"unsafe"
)

// ring is the map that Ring returns.
type ring struct {
	hash  func([]byte) uint32
	order []int // from rank to index

	// points are in ascending order, each a position in the high half and
	// its member's rank in the low half.
	points []uint64
}

// Ring returns a constructor of maps that agree with those of
// github.com/golang/groupcache/consistenthash, so that a fleet can change over
// from groupcache process by process. Ring(50, nil) is what groupcache's
// HTTPPool uses unless told otherwise.
//
// A member's points are at hash(strconv.Itoa(i)+ID), for i from 0 up to but
// not including replicas, on a ring of 32 bits. A key belongs to the member of
// the first point at or after its hash. If hash is nil, [crc32.ChecksumIEEE] is
// used; otherwise hash must be safe for concurrent use, and must neither change
// nor keep its argument. Ring panics if replicas is less than 1; the
// constructor panics if two members have the same ID, or if a weight is
// negative, NaN or infinite.
//
// Where points of two members coincide, groupcache gives the place to the
// member that was added last, so that its processes may disagree. Here the
// member whose ID comes first has it.
//
// Groupcache knows no weights. Here the heaviest members have replicas points,
// and the others as many fewer as their weights are smaller, rounded, but at
// least one; so equal weights, whatever they are, give groupcache's ring, and a
// change of the largest weight moves many keys.
//
// Owner searches the points in logarithmic time. Owners goes on clockwise, and
// allocates one byte for each member beside its result.
func Ring(replicas int, hash func([]byte) uint32) func(members []Member) Map {
	if replicas < 1 {
		panic(fmt.Sprintf("consistenthash: a ring of %d replicas", replicas))
	}
	if hash == nil {
		hash = crc32.ChecksumIEEE
	}
	return func(members []Member) Map {
		r := &ring{hash: hash, order: byID(members)}
		heaviest := heaviest(members)
		for rank, i := range r.order {
			m := members[i]
			n := math.Round(float64(replicas) * (m.weight() / heaviest))
			for j := range max(1, int(n)) {
				position := hash([]byte(strconv.Itoa(j) + m.ID))
				r.points = append(r.points, uint64(position)<<32|uint64(rank))
			}
		}
		slices.Sort(r.points)
		return r
	}
}

// successor returns the first point at or after key's hash.
func (r *ring) successor(key string) int {
	// A conversion would allocate, as nobody knows what hash does with it.
	position := r.hash(unsafe.Slice(unsafe.StringData(key), len(key)))
	i, _ := slices.BinarySearch(r.points, uint64(position)<<32)
	return i % len(r.points)
}

// member returns the index of the member whose point i is.
func (r *ring) member(i int) int {
	return r.order[uint32(r.points[i])]
}

func (r *ring) Owner(key string) int {
	if len(r.order) == 0 {
		return -1
	}
	return r.member(r.successor(key))
}

func (r *ring) Owners(key string, n int) []int {
	n = min(n, len(r.order))
	if n <= 0 {
		return nil
	}
	owners := make([]int, 0, n)
	found := make([]bool, len(r.order))
	for i := r.successor(key); len(owners) < n; i = (i + 1) % len(r.points) {
		if m := r.member(i); !found[m] {
			found[m] = true
			owners = append(owners, m)
		}
	}
	return owners
}
