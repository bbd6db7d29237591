package consistenthash_test

import (
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	groupcache "github.com/golang/groupcache/consistenthash"

	"github.com/shoalcache/shoal/consistenthash"
)

type (
	Map    = consistenthash.Map
	Member = consistenthash.Member
)

var constructors = []struct {
	name string
	new  func([]Member) Map
}{
	{"default", consistenthash.New},
	{"rendezvous", consistenthash.Rendezvous},
	{"ring", consistenthash.Ring(50, nil)},
}

// eachMap runs test for each of the constructors.
func eachMap(t *testing.T, test func(t *testing.T, build func([]Member) Map)) {
	for _, c := range constructors {
		t.Run(c.name, func(t *testing.T) { test(t, c.new) })
	}
}

// Fleets of n members, by the kind of their IDs.
var fleets = []struct {
	kind string
	id   func(i int) string
}{
	{"urls", func(i int) string { return fmt.Sprintf("http://10.0.%d.%d:8080", i/256, i%256) }},
	{"hosts", func(i int) string { return fmt.Sprintf("host-%03d", i) }},
	{"uuids", func(i int) string { return uuid(uint64(i)) }},
	{"short", func(i int) string { return strconv.FormatInt(int64(i), 36) }},
}

func fleet(n int, id func(i int) string) []Member {
	members := make([]Member, n)
	for i := range members {
		members[i].ID = id(i)
	}
	return members
}

func urls(n int) []Member { return fleet(n, fleets[0].id) }

// uuid returns the i-th of a fixed sequence of random UUIDs.
func uuid(i uint64) string {
	rng := rand.NewPCG(i, 1)
	u := fmt.Sprintf("%016x%016x", rng.Uint64(), rng.Uint64())
	return u[:8] + "-" + u[8:12] + "-4" + u[13:16] + "-a" + u[17:20] + "-" + u[20:]
}

// Keys by kind, appended to b.
var keyKinds = []struct {
	kind   string
	append func(b []byte, i int) []byte
}{
	{"sequential", func(b []byte, i int) []byte {
		return strconv.AppendInt(append(b, "user:"...), int64(i), 10)
	}},
	{"padded", func(b []byte, i int) []byte { // user:%08d
		b = strconv.AppendInt(append(b, "user:"...), 100_000_000+int64(i), 10)
		return append(b[:5], b[6:]...)
	}},
	{"uuids", func(b []byte, i int) []byte {
		var u [16]byte
		x := uint64(i) * 0x2545f4914f6cdd1d
		for j := range u {
			u[j] = byte(x >> (j * 4))
		}
		u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
		b = append(hex.AppendEncode(b, u[:4]), '-')
		b = append(hex.AppendEncode(b, u[4:6]), '-')
		b = append(hex.AppendEncode(b, u[6:8]), '-')
		b = append(hex.AppendEncode(b, u[8:10]), '-')
		return hex.AppendEncode(b, u[10:])
	}},
	{"urls", func(b []byte, i int) []byte {
		b = strconv.AppendInt(append(b, "https://www.example.com/articles/"...), int64(i/100), 10)
		return strconv.AppendInt(append(b, "/comments?page="...), int64(i%100), 10)
	}},
}

// largest returns the largest share as a multiple of the mean.
func largest(shares []float64) float64 {
	return slices.Max(shares) * float64(len(shares))
}

// The shares are of the whole space of hashes, computed and not sampled. The
// sizes tried are all up to 12 and then about a twelfth apart; under the race
// detector and with -short, a factor of two apart.
func TestNoShareExceedsTheMeanBy5Percent(t *testing.T) {
	apart := 12
	if race || testing.Short() {
		apart = 1
	}
	sizes := []int{1000}
	for n := 3; n < 1000; n += 1 + n/apart {
		sizes = append(sizes, n)
	}
	for _, f := range fleets {
		t.Run(f.kind, func(t *testing.T) {
			t.Parallel()
			worst, at := 0.0, 0
			for _, n := range sizes {
				shares := consistenthash.Shares(consistenthash.New(fleet(n, f.id)))
				if l := largest(shares); l > worst {
					worst, at = l, n
				}
			}
			t.Logf("largest share %.4f of the mean, with %d members", worst, at)
			if worst > 1.05 {
				t.Errorf("largest share is %.4f of the mean, with %d members", worst, at)
			}
		})
	}
}

func TestSharesAddUp(t *testing.T) {
	for _, n := range []int{1, 2, 3, 100} {
		sum := 0.0
		for _, s := range consistenthash.Shares(consistenthash.New(urls(n))) {
			sum += s
		}
		if math.Abs(sum-1) > 1e-9 {
			t.Errorf("the shares of %d members add up to %v", n, sum)
		}
	}
}

// With 20,000 keys for each member, a member's count has a standard deviation
// of 0.7 percent from sampling alone, so the largest of 1,000 counts would
// exceed the mean by about 2.3 percent even if all shares were equal. The noise
// is told from the map by comparing each count with the member's exact share:
// it may be off by five and a half standard deviations, which chance exceeds
// once in 5,000 runs of all the counts here (the keys are fixed, so no run
// differs from another). Under the race detector and with -short there are 200
// keys for each member.
func TestKeysOfEveryKindFollowTheShares(t *testing.T) {
	perMember := 20_000
	if race || testing.Short() {
		perMember = 200
	}
	for _, k := range keyKinds {
		t.Run(k.kind, func(t *testing.T) {
			t.Parallel()
			for _, n := range []int{3, 10, 100, 1000} {
				m := consistenthash.New(urls(n))
				counts := make([]int, n)
				var b []byte
				for i := range n * perMember {
					b = k.append(b[:0], i)
					counts[m.Owner(string(b))]++
				}
				for i, share := range consistenthash.Shares(m) {
					want := share * float64(n*perMember)
					if off := (float64(counts[i]) - want) / math.Sqrt(want); math.Abs(off) > 5.5 {
						t.Errorf("member %d of %d owns %d keys, %.1f standard deviations from %.0f", i, n, counts[i], off, want)
					}
				}
				t.Logf("%d members: largest count %.4f of the mean", n, float64(slices.Max(counts))/float64(perMember))
			}
		})
	}
}

func TestRendezvousFollowsWeights(t *testing.T) {
	const keys = 100_000
	for _, weights := range [][]float64{
		{0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		{1, 2, 3, 4},
		{1000, 1, 0.001},
		{1e-300, 3e-300},
	} {
		members := urls(len(weights))
		total := 0.0
		for i, w := range weights {
			members[i].Weight = w
			if w == 0 {
				weights[i] = 1
			}
			total += weights[i]
		}
		m := consistenthash.Rendezvous(members)
		counts := make([]float64, len(members))
		for i := range keys {
			counts[m.Owner(fmt.Sprintf("user:%d", i))]++
		}
		for i, w := range weights {
			p := w / total
			if sd := math.Sqrt(keys * p * (1 - p)); math.Abs(counts[i]-keys*p) > 5*sd+1 {
				t.Errorf("weights %v: member %d owns %v of %d keys", weights, i, counts[i], keys)
			}
		}
	}
}

// A member with weight w has a share with a standard deviation of 0.96 percent
// divided by the square root of w; six of them are allowed.
func TestSharesFollowWeights(t *testing.T) {
	members := urls(200)
	total := 0.0
	for i := range members {
		members[i].Weight = []float64{0.25, 0.5, 1, 1.7, 4, 15}[i%6]
		total += members[i].Weight
	}
	for i, share := range consistenthash.Shares(consistenthash.New(members)) {
		w := members[i].Weight
		if off := share*total/w - 1; math.Abs(off) > 6*0.0096/math.Sqrt(w) {
			t.Errorf("member %d of weight %v has %.4f of its due", i, w, 1+off)
		}
	}
}

// Read backwards, it is also what a joining member moves.
func TestALeavingMemberMovesOnlyItsKeys(t *testing.T) {
	eachMap(t, func(t *testing.T, build func([]Member) Map) {
		for _, n := range []int{1, 2, 3, 10, 100, 1000} {
			members := urls(n)
			for i := range members {
				members[i].Weight = float64(1 + i%2) // keeps the largest when one leaves
			}
			if n < 4 {
				members = urls(n)
			}
			gone := n / 2
			rest := slices.Delete(slices.Clone(members), gone, gone+1)
			before, after := build(members), build(rest)
			for i := range 5_000 {
				key := fmt.Sprintf("user:%d", i)
				a, b := before.Owner(key), after.Owner(key)
				if a != gone && members[a] != rest[b] {
					t.Fatalf("%d members: %q moved from %v to %v when %v left", n, key, members[a], rest[b], members[gone])
				}
			}
		}
	})
}

// What moves is the share of the member that joins or leaves, and so at most
// 1.05 times the mean.
func TestALeavingMemberMovesLittleMoreThanTheMean(t *testing.T) {
	const keys = 200_000
	for _, n := range []int{3, 10, 100} {
		members := urls(n)
		before, after := consistenthash.New(members), consistenthash.New(members[:n-1])
		moved := 0
		for i := range keys {
			key := fmt.Sprintf("user:%d", i)
			if before.Owner(key) != after.Owner(key) {
				moved++
			}
		}
		if got := float64(moved) / keys * float64(n); got > 1.1 {
			t.Errorf("%d members: %.3f times the mean share moved", n, got)
		}
	}
}

func TestOrderOfMembersDoesNotMatter(t *testing.T) {
	eachMap(t, func(t *testing.T, build func([]Member) Map) {
		members := urls(50)
		for i := range members {
			members[i].Weight = float64(i % 4)
		}
		m := build(members)
		shuffled := slices.Clone(members)
		rng := rand.New(rand.NewPCG(5, 6))
		for range 5 {
			rng.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
			s := build(shuffled)
			for i := range 1000 {
				key := fmt.Sprintf("user:%d", i)
				want := ids(members, m.Owners(key, 3))
				if got := ids(shuffled, s.Owners(key, 3)); !slices.Equal(got, want) {
					t.Fatalf("owners of %q are %v in one order and %v in another", key, want, got)
				}
			}
		}
	})
}

func ids(members []Member, indices []int) []string {
	var s []string
	for _, i := range indices {
		s = append(s, members[i].ID)
	}
	return s
}

func TestOwnersStandInForOneAnother(t *testing.T) {
	eachMap(t, func(t *testing.T, build func([]Member) Map) {
		members := urls(12)
		m := build(members)
		for i := range 200 {
			key := fmt.Sprintf("user:%d", i)
			want := ids(members, m.Owners(key, len(members)))
			if len(want) != len(members) {
				t.Fatalf("Owners(%q, %d) = %v", key, len(members), want)
			}
			rest := slices.Clone(members)
			for _, id := range want {
				owner := build(rest).Owner(key)
				if rest[owner].ID != id {
					t.Fatalf("%v owns %q among %v, want %v", rest[owner].ID, key, rest, id)
				}
				rest = slices.Delete(rest, owner, owner+1)
			}
			for n := range len(members) + 2 {
				got := ids(members, m.Owners(key, n))
				if !slices.Equal(got, want[:min(n, len(want))]) {
					t.Fatalf("Owners(%q, %d) = %v, want a prefix of %v", key, n, got, want)
				}
			}
		}
	})
}

func TestNoMembersNoOwner(t *testing.T) {
	eachMap(t, func(t *testing.T, build func([]Member) Map) {
		m := build(nil)
		if got := m.Owner("key"); got != -1 {
			t.Errorf("Owner = %d, want -1", got)
		}
		if got := m.Owners("key", 2); got != nil {
			t.Errorf("Owners = %v, want nil", got)
		}
		if got := build(urls(3)).Owners("key", -1); got != nil {
			t.Errorf("Owners(-1) = %v, want nil", got)
		}
	})
}

func TestOwnerDoesNotAllocate(t *testing.T) {
	key := strings.Repeat("a long key, which no small buffer would hold; ", 10)
	eachMap(t, func(t *testing.T, build func([]Member) Map) {
		for _, heavy := range []float64{1, 2} {
			members := urls(100)
			members[0].Weight = heavy
			m := build(members)
			if n := testing.AllocsPerRun(100, func() { m.Owner(key) }); n != 0 {
				t.Errorf("Owner allocates %v times", n)
			}
		}
	})
}

func TestBadMembersPanic(t *testing.T) {
	eachMap(t, func(t *testing.T, build func([]Member) Map) {
		for _, w := range []float64{-1, math.NaN(), math.Inf(1), math.Inf(-1)} {
			wantPanic(t, fmt.Sprintf(`consistenthash: member "b" has weight %v`, w), func() {
				build([]Member{{ID: "a"}, {ID: "b", Weight: w}})
			})
		}
		wantPanic(t, `consistenthash: two members have the ID "a"`, func() {
			build([]Member{{ID: "a"}, {ID: "b"}, {ID: "a", Weight: 2}})
		})
	})
	wantPanic(t, "consistenthash: 1048577 members are more than 1048576", func() {
		consistenthash.New(make([]Member, 1<<20+1))
	})
	wantPanic(t, "consistenthash: a ring of 0 replicas", func() {
		consistenthash.Ring(0, nil)
	})
}

func wantPanic(t *testing.T, want string, f func()) {
	t.Helper()
	defer func() {
		t.Helper()
		if got := recover(); got != want {
			t.Errorf("panic %v, want %v", got, want)
		}
	}()
	f()
}

// This holds on platforms of 32 bits too: there groupcache compares hashes as
// signed numbers, which cuts the ring open elsewhere but leaves it the same.
func TestRingIsGroupcaches(t *testing.T) {
	fnv := func(b []byte) uint32 {
		h := uint32(2166136261)
		for _, c := range b {
			h = (h ^ uint32(c)) * 16777619
		}
		return h
	}
	for _, hash := range []func([]byte) uint32{nil, fnv} {
		for _, replicas := range []int{1, 50, 160} {
			for _, f := range fleets {
				for _, n := range []int{1, 2, 3, 40} {
					members := fleet(n, f.id)
					// Where two points coincide, groupcache gives the place to
					// the last added, and Ring to the first by ID.
					slices.SortFunc(members, func(a, b Member) int { return strings.Compare(b.ID, a.ID) })
					theirs := groupcache.New(replicas, hash)
					for i := range members {
						theirs.Add(members[i].ID)
						members[i].Weight = 3 // equal weights are none
					}
					ours := consistenthash.Ring(replicas, hash)(members)
					for i := range 200 {
						for _, key := range []string{fmt.Sprintf("user:%d", i), uuid(uint64(i))} {
							if got, want := members[ours.Owner(key)].ID, theirs.Get(key); got != want {
								t.Fatalf("%d %s, %d replicas: %q owns %q, in groupcache %q", n, f.kind, replicas, got, key, want)
							}
						}
					}
				}
			}
		}
	}
}

func FuzzOwners(f *testing.F) {
	f.Add("a\nb\nc", "key", 2)
	f.Add("", "", 1)
	f.Add("http://10.0.0.1:8080\nhttp://10.0.0.2:8080\n\xff\n\x00", "user:1", 9)
	f.Fuzz(func(t *testing.T, list, key string, n int) {
		names := strings.Split(list, "\n")
		slices.Sort(names)
		var members []Member
		for _, id := range slices.Compact(names) {
			weight := 0.0
			if id != "" {
				weight = float64(id[0]%8) / 4
			}
			members = append(members, Member{ID: id, Weight: weight})
		}
		reversed := slices.Clone(members)
		slices.Reverse(reversed)
		for _, c := range constructors {
			m := c.new(members)
			owners := m.Owners(key, n)
			if len(owners) != max(0, min(n, len(members))) {
				t.Fatalf("%s: %d owners of %d members, want %d", c.name, len(owners), len(members), n)
			}
			for i, o := range owners {
				if o < 0 || o >= len(members) || slices.Contains(owners[:i], o) {
					t.Fatalf("%s: owners %v of %d members", c.name, owners, len(members))
				}
			}
			if owner := m.Owner(key); owner < 0 || len(owners) > 0 && owner != owners[0] {
				t.Fatalf("%s: owner %d, owners %v", c.name, owner, owners)
			}
			got := ids(reversed, c.new(reversed).Owners(key, n))
			if want := ids(members, owners); !slices.Equal(got, want) {
				t.Fatalf("%s: owners %q, the other way round %q", c.name, want, got)
			}
		}
	})
}
