package consistenthash

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestCollisionsAreDecidedByID(t *testing.T) {
	const key = "some key"
	members := []Member{{ID: "c"}, {ID: "a"}, {ID: "b"}}

	t.Run("New", func(t *testing.T) {
		m := &multiProbe{order: byID(members), slots: []uint64{empty, empty}, scale: 4}
		for _, rank := range []uint64{2, 0, 1} {
			m.place(position(1<<63) | rank)
		}
		m.fill()
		wantOwners(t, m, key, 1, 2, 0)
	})
	t.Run("Rendezvous", func(t *testing.T) {
		m := &rendezvous{order: byID(members), hashes: []uint64{7, 7, 7}}
		wantOwners(t, m, key, 1, 2, 0)
		m.weights = []float64{1, 1, 1}
		wantOwners(t, m, key, 1, 2, 0)
	})
	t.Run("Ring", func(t *testing.T) {
		weak := func([]byte) uint32 { return 7 }
		wantOwners(t, Ring(3, weak)(members), key, 1, 2, 0)
	})
}

func wantOwners(t *testing.T, m Map, key string, want ...int) {
	t.Helper()
	if got := m.Owner(key); got != want[0] {
		t.Errorf("Owner(%q) = %d, want %d", key, got, want[0])
	}
	for n := range want {
		got := m.Owners(key, n+1)
		for i := range got {
			if len(got) != n+1 || got[i] != want[i] {
				t.Fatalf("Owners(%q, %d) = %v, want %v", key, n+1, got, want[:n+1])
			}
		}
	}
}

func TestSlotsAreTheSameInAnyOrderOfPlacing(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	points := make([]uint64, 1000)
	for i := range points {
		// Half of them crowd at the end, to run over it.
		points[i] = position(rng.Uint64()|uint64(i%2)*(-1<<40&math.MaxUint64)) | uint64(i)
	}
	build := func() *multiProbe {
		m := &multiProbe{slots: make([]uint64, 2000), scale: 4000}
		for i := range m.slots {
			m.slots[i] = empty
		}
		for _, p := range points {
			m.place(p)
		}
		m.fill()
		return m
	}
	want := build()
	for range 10 {
		rng.Shuffle(len(points), func(i, j int) { points[i], points[j] = points[j], points[i] })
		got := build()
		if len(got.slots) != len(want.slots) {
			t.Fatalf("%d slots, want %d", len(got.slots), len(want.slots))
		}
		for i := range want.slots {
			if got.slots[i] != want.slots[i] {
				t.Fatalf("slot %d = %#x, want %#x", i, got.slots[i], want.slots[i])
			}
		}
	}
	for range 10_000 {
		probe := position(rng.Uint64())
		nearest := uint64(math.MaxUint64)
		for _, p := range points {
			nearest = min(nearest, (p-probe)%lap)
		}
		if got := (want.slots[want.successor(probe)] - probe) % lap; got != nearest {
			t.Fatalf("successor(%#x) is %#x away, want %#x", probe, got, nearest)
		}
	}
}

func TestPointsFollowWeightsAndStayBounded(t *testing.T) {
	for _, tt := range []struct {
		weights []float64
		want    []int
	}{
		{[]float64{0, 1, 2, 15.5}, []int{512, 512, 1024, 7936}},
		{[]float64{1, 0.5, 0.001, 1e-9}, []int{512, 256, 1, 1}},
		{[]float64{16, 8}, []int{512, 256}},
		{[]float64{1000, 1000}, []int{1000, 1000}},
		{[]float64{0.25, 0.125}, []int{512, 256}},
		{[]float64{math.MaxFloat64, 1}, []int{1024, 1}},
		{[]float64{math.SmallestNonzeroFloat64}, []int{512}},
	} {
		members := make([]Member, len(tt.weights))
		for i, w := range tt.weights {
			members[i].Weight = w
		}
		for i, got := range pointCounts(members) {
			if got != tt.want[i] {
				t.Errorf("weights %v: member %d has %d points, want %d", tt.weights, i, got, tt.want[i])
			}
		}
	}
}

func TestRingPointsFollowWeights(t *testing.T) {
	for _, tt := range []struct {
		weights []float64
		want    []int
	}{
		{[]float64{0, 1}, []int{50, 50}},
		{[]float64{3, 3}, []int{50, 50}},
		{[]float64{4, 2, 1, 1e-300}, []int{50, 25, 13, 1}},
		{[]float64{math.MaxFloat64, 1}, []int{50, 1}},
	} {
		members := make([]Member, len(tt.weights))
		for i, w := range tt.weights {
			members[i] = Member{ID: string(rune('a' + i)), Weight: w}
		}
		got := make([]int, len(members))
		r := Ring(50, nil)(members).(*ring)
		for i := range r.points {
			got[r.member(i)]++
		}
		for i := range got {
			if got[i] != tt.want[i] {
				t.Errorf("weights %v: %v points, want %v", tt.weights, got, tt.want)
				break
			}
		}
	}
}

func TestExponentialIsTheLogarithm(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	hashes := []uint64{0, 1 << 12, math.MaxUint64, math.MaxUint64 - 1<<12, 1 << 63, 1<<63 - 1}
	for range 100_000 {
		hashes = append(hashes, rng.Uint64()>>rng.IntN(52))
	}
	for _, h := range hashes {
		got := exponential(h)
		want := -math.Log((float64(h>>12) + 0.5) / (1 << 52))
		if !(math.Abs(got-want) <= 1e-15*want) {
			t.Fatalf("exponential(%#x) = %v, want %v", h, got, want)
		}
	}
}
