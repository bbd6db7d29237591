package packed

import (
	"sync/atomic"
	"unsafe"
)

// An index says where the entry of a key is. A bucket is a cache line; what does not fit into its own goes to the next
// that has room, and is counted in all it passes, so that a search knows where to end and nothing ever moves. (After F14,
// Facebook's hash table.)
type index struct {
	buckets []bucket
	mask    uint64
}

type bucket struct {
	passed atomic.Uint64
	slots  [7]atomic.Uint64
}

func newIndex(n int) *index { return &index{make([]bucket, n), uint64(n - 1)} }

func (idx *index) bytes() int64 { return int64(len(idx.buckets)) * int64(unsafe.Sizeof(bucket{})) }

// most is how many entries it takes before it is made larger.
func (idx *index) most() int64 { return int64(len(idx.buckets)) * 6 }

func (idx *index) insert(h, slot uint64) {
	for b := h & idx.mask; ; b = (b + 1) & idx.mask {
		bucket := &idx.buckets[b]
		for i := range bucket.slots {
			if bucket.slots[i].Load() == 0 {
				bucket.slots[i].Store(slot)
				return
			}
		}
		bucket.passed.Add(1)
	}
}

// left takes note that the entry of that hash is in slot at no longer.
func (idx *index) left(h uint64, at *atomic.Uint64) {
	for b := h & idx.mask; ; b = (b + 1) & idx.mask {
		bucket := &idx.buckets[b]
		first, last := uintptr(unsafe.Pointer(&bucket.slots[0])), uintptr(unsafe.Pointer(&bucket.slots[6]))
		if p := uintptr(unsafe.Pointer(at)); first <= p && p <= last {
			return
		}
		bucket.passed.Add(^uint64(0))
	}
}

// A slot is 22 bits of the hash, 20 of the chunk's id, 20 of the offset in it, and 2 that count uses.
const (
	tagShift  = 42
	maxID     = 1<<20 - 1
	maxOffset = 1<<20 - 1
	maxChunk  = 1 << 20
	freqMask  = 3
)

func slotOf(h uint64, id uint32, offset int, freq uint64) uint64 {
	return h>>tagShift<<tagShift | uint64(id)<<22 | uint64(offset)<<2 | freq
}

func chunkOf(slot uint64) uint32 { return uint32(slot>>22) & maxID }
func offsetOf(slot uint64) int   { return int(slot>>2) & maxOffset }
