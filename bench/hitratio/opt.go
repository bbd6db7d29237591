package main

// opt.go: the best that any cache could do.

import (
	"container/heap"
	"math"
)

// opt returns the best possible hit ratio: what is needed last goes first, or does not come in.
func opt(tr *trace, b budget) float64 {
	const never = math.MaxInt32
	next := make([]int32, len(tr.requests))
	last := make([]int32, tr.keys)
	for i := range last {
		last[i] = never
	}
	for i := len(tr.requests) - 1; i >= 0; i-- {
		next[i] = last[tr.requests[i]]
		last[tr.requests[i]] = int32(i)
	}
	held := make([]int32, tr.keys) // when it is needed next, if it is there; else 0
	var farthest needs
	hits, used := 0, int64(0)
	for i, key := range tr.requests {
		if b.size(key) > b.max {
			continue
		}
		if held[key] != 0 {
			hits++
		} else {
			used += b.size(key)
		}
		held[key] = next[i]
		heap.Push(&farthest, need{next[i], key})
		for used > b.max {
			f := heap.Pop(&farthest).(need)
			if held[f.key] == f.at {
				held[f.key] = 0
				used -= b.size(f.key)
			}
		}
	}
	return float64(hits) / float64(len(tr.requests))
}

type need struct{ at, key int32 }

type needs []need

func (h needs) Len() int { return len(h) }

func (h needs) Less(i, j int) bool { return h[i].at > h[j].at }

func (h needs) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

func (h *needs) Push(x any) { *h = append(*h, x.(need)) }

func (h *needs) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}
