package consistenthash

import (
	"math"
	"slices"
)

// Shares returns the exact share of all keys that each member of a map made by
// New owns, if probes are independent and uniform.
//
// A point wins a key if one of the K probes is at a distance d before it that
// is less than the gap before the point, and the others are all further than d
// from their successors. So its share is the integral of K(1-F(d))^(K-1) over d
// from 0 to its gap, where F(d), the chance that a probe is nearer than d to
// its successor, is the sum over all gaps of the lesser of gap and d. F is
// linear between one gap and the next larger one.
func Shares(m Map) []float64 {
	mp := m.(*multiProbe)
	points := slices.Compact(slices.Clone(mp.slots[:len(mp.slots)-1]))
	gaps := make([]uint64, len(points)) // each with its point's rank in the low bits
	prev := points[len(points)-1] - lap
	for i, p := range points {
		gaps[i] = (p&^rankMask - prev&^rankMask) | p&rankMask
		prev = p
	}
	slices.Sort(gaps)

	shares := make([]float64, len(mp.order))
	var share, smaller float64 // of a point with this gap; sum of the smaller gaps
	before := 1.0              // (1-F)^K at the gap before
	for i, g := range gaps {
		gap := float64(g&^rankMask) / lap
		left := float64(len(gaps) - i)
		after := math.Pow(max(0, 1-smaller-left*gap), probes)
		share += (before - after) / left
		shares[mp.order[g&rankMask]] += share
		smaller += gap
		before = after
	}
	return shares
}
