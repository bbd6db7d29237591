package consistenthash

import (
	"math"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// rendezvous is the map that Rendezvous returns.
// Its slices are in order of ID, so that the first of equals is the same one
// everywhere.
type rendezvous struct {
	order   []int     // from rank to index
	hashes  []uint64  // of the IDs
	weights []float64 // nil if they are all equal
}

// Rendezvous returns a map by highest random weight (Thaler and Ravishankar,
// "Using name-based mappings to increase hit rates", 1998): a hash of key and
// ID gives each member a score, and the best score owns the key. It panics if
// two members have the same ID, or if a weight is negative, NaN or infinite.
//
// Shares are exactly proportional to weights, however much these differ, and a
// member that joins, leaves or changes its weight moves no key but those it
// must. The price is time: Owner and Owners look at every member. The map takes
// a few words for each member.
//
// If weights differ, a score is -weight/ln(u), where u is the hash as a number
// between 0 and 1: the logarithmic method of Schindelhauer and Schomaker
// ("Weighted distributed hash tables", 2005). The logarithm is computed in such
// a way that every platform rounds it alike.
func Rendezvous(members []Member) Map {
	r := &rendezvous{
		order:  byID(members),
		hashes: make([]uint64, len(members)),
	}
	weights := make([]float64, len(members))
	for rank, i := range r.order {
		r.hashes[rank] = xxhash.Sum64String(members[i].ID)
		weights[rank] = members[i].weight()
		if weights[rank] != weights[0] {
			r.weights = weights
		}
	}
	return r
}

// cost is the reciprocal of the score of a member, by rank, for the key with
// the given hash, as a number that can be compared with other costs of the same
// map: the lowest owns the key.
func (r *rendezvous) cost(rank int, key uint64) uint64 {
	hash := mix(key ^ r.hashes[rank])
	if r.weights == nil {
		return ^hash // -ln(u) falls as the hash rises
	}
	return math.Float64bits(exponential(hash) / r.weights[rank]) // positive, so ordered like the float
}

func (r *rendezvous) Owner(key string) int {
	if len(r.order) == 0 {
		return -1
	}
	hash := xxhash.Sum64String(key)
	best, lowest := 0, r.cost(0, hash)
	for rank := 1; rank < len(r.order); rank++ {
		if c := r.cost(rank, hash); c < lowest {
			best, lowest = rank, c
		}
	}
	return r.order[best]
}

func (r *rendezvous) Owners(key string, n int) []int {
	n = min(n, len(r.order))
	if n <= 0 {
		return nil
	}
	hash := xxhash.Sum64String(key)
	type candidate struct {
		cost  uint64
		index int
	}
	best := make([]candidate, 0, n+1) // the n lowest costs so far, lowest first
	for rank, index := range r.order {
		c := candidate{r.cost(rank, hash), index}
		if len(best) == n && c.cost >= best[n-1].cost {
			continue
		}
		// Equals stay in order of rank: c goes after those it equals.
		at, _ := slices.BinarySearchFunc(best, c, func(a, b candidate) int {
			if a.cost <= b.cost {
				return -1
			}
			return +1
		})
		best = slices.Insert(best, at, c)
		best = best[:min(n, len(best))]
	}
	owners := make([]int, n)
	for i, c := range best {
		owners[i] = c.index
	}
	return owners
}

// exponential returns -ln(u), where u in (0, 1) is made of the 52 high bits of
// hash. If these are uniform, the result has the exponential distribution.
//
// It does not use [math.Log], which is written in assembly on some platforms
// and on others may be compiled to fused multiply-adds, so that its last bits
// vary. The conversions here forbid the fusing.
func exponential(hash uint64) float64 {
	u := (float64(hash>>12) + 0.5) / (1 << 52)
	frac, exp := math.Frexp(u)
	if frac < math.Sqrt2/2 {
		frac *= 2
		exp--
	}
	// ln(frac) = 2*artanh(s) = 2*(s + s³/3 + s⁵/5 + …), and s² < 0.03.
	s := (frac - 1) / (frac + 1)
	s2 := float64(s * s)
	sum := 0.0
	for _, c := range artanh {
		sum = float64(sum*s2) + c
	}
	return float64(-float64(exp)*math.Ln2) - float64(2*s*sum)
}

var artanh = [...]float64{
	1.0 / 19, 1.0 / 17, 1.0 / 15, 1.0 / 13, 1.0 / 11, 1.0 / 9, 1.0 / 7, 1.0 / 5, 1.0 / 3, 1,
}
