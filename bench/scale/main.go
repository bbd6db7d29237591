//go:build unix

// Scale measures what depends on how many processes there are: 10, 100, 1,000 and 10,000.
//
//	go run ./bench/scale [-members n,…] [-only placements|views|streams]
//
// All of it takes some six minutes, of which 10,000 members are the most.
//
// Placements are package consistenthash's maps of that many members, nothing else. The first table is what they cost: the
// time to make one, the heap it keeps, and the time of a look-up, each the fastest of some runs. The second is how even
// they are: the largest and the smallest share by what they should be, and the standard deviation, of members of equal
// weight and of weights 1, 2, 3 and 4. Shares are counted; of each deviation the part is left out that is counting's own
// noise. Rendezvous's are exact by its making, and not counted. The third is what moves when a member joins, leaves, or has
// its weight doubled, by the least that must; the last column is the part of all keys that moves between members that have
// not changed. Rendezvous of more than 100 members is left out there: it would take too long.
//
// Views are one process that sees so many peers, which are not there: its Transport says in their place who they are. So
// this is what the process does itself, without the network, but with the making of their answers. A new view is seen when
// discovery has said a list with one more, and the process sees it; then comes the CPU until it has greeted all of them.
// The last column is the time in which the new owner of each entry in memory is looked for.
//
// Streams are two processes over TCP on the loopback: one asks, and the other is 200 peers. The figures are of each end:
// heap after a collection, and stacks.
package main

import (
	"flag"
	"fmt"
	"log"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/shoalcache/shoal/consistenthash"
)

// A placement is a way to choose owners.
type placement struct {
	name string
	new  func([]consistenthash.Member) consistenthash.Map
	slow bool // a look-up looks at all members, and shares are exact
}

var placements = []placement{
	{"New", consistenthash.New, false},
	{"Rendezvous", consistenthash.Rendezvous, true},
	{"Ring(50, nil)", consistenthash.Ring(50, nil), false},
}

// fleet returns n members whose weights are 1, or 1 to 4 in turn.
func fleet(n int, mixed bool) []consistenthash.Member {
	members := make([]consistenthash.Member, n)
	for i := range members {
		members[i] = consistenthash.Member{ID: address(i), Weight: 1}
		if mixed {
			members[i].Weight = float64(1 + i%4)
		}
	}
	return members
}

func address(i int) string { return fmt.Sprintf("http://10.%d.%d.%d:8080", i>>16, i>>8&255, i&255) }

func main() {
	if os.Getenv(peersEnv) != "" {
		bePeers()
		return
	}
	log.SetFlags(0)
	log.SetPrefix("scale: ")
	members := numbers{10, 100, 1000, 10_000}
	flag.Var(&members, "members", "`n,…` of them")
	only := flag.String("only", "", "measure only `placements|views|streams`")
	flag.Parse()
	if !slices.Contains([]string{"", "placements", "views", "streams"}, *only) {
		log.Fatalf("-only %q is not placements, views or streams", *only)
	}
	if *only == "" || *only == "placements" {
		printCosts(members)
		printShares(members)
		printMoves(members)
	}
	if *only == "" || *only == "views" {
		printViews(members)
	}
	if *only == "" || *only == "streams" {
		printStreams()
	}
}

type numbers []int

func (n *numbers) String() string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(*n), " ", ","), "[]")
}

func (n *numbers) Set(s string) error {
	*n = nil
	for _, field := range strings.Split(s, ",") {
		i, err := strconv.Atoi(field)
		if err != nil || i < 2 {
			return fmt.Errorf("%q is not a number of members above 1", field)
		}
		*n = append(*n, i)
	}
	return nil
}

func printCosts(sizes []int) {
	fmt.Println("| placement | members | build | heap | Owner | Owners(key, 2) | Owner, weights 1 to 4 |\n|---|--:|--:|--:|--:|--:|--:|")
	for _, p := range placements {
		for _, n := range sizes {
			members := fleet(n, false)
			build, heap := cost(func() consistenthash.Map { return p.new(members) })
			m, mixed := p.new(members), p.new(fleet(n, true))
			one := lookup(func(key string) { m.Owner(key) })
			two := lookup(func(key string) { m.Owners(key, 2) })
			weighted := lookup(func(key string) { mixed.Owner(key) })
			fmt.Printf("| %s | %d | %s | %s | %s | %s | %s |\n", p.name, n, short(build), amount(heap), short(one), short(two), short(weighted))
		}
	}
	fmt.Println()
}

// cost returns how long build takes, and how much heap what it returns keeps.
func cost(build func() consistenthash.Map) (time.Duration, float64) {
	before := memory()
	m := build()
	heap := memory().heap - before.heap
	best := time.Duration(math.MaxInt64)
	for began := time.Now(); time.Since(began) < 500*time.Millisecond; {
		begin := time.Now()
		m = build()
		best = min(best, time.Since(begin))
	}
	runtime.KeepAlive(m)
	return best, heap
}

// lookup returns how long look takes for a key, of 16,384 in turn.
func lookup(look func(key string)) time.Duration {
	keys := make([]string, 1<<14)
	for i := range keys {
		keys[i] = fmt.Sprintf("user:%08d", i)
	}
	next := 0
	run := func(n int) time.Duration {
		begin := time.Now()
		for range n {
			look(keys[next%len(keys)])
			next++
		}
		return time.Since(begin)
	}
	n := 16
	for run(n) < 5*time.Millisecond {
		n *= 2
	}
	best := time.Duration(math.MaxInt64)
	for range 40 {
		best = min(best, run(n))
	}
	return best / time.Duration(n)
}

// owners returns the owner of each of keys keys.
func owners(m consistenthash.Map, keys int) []int32 {
	all := make([]int32, keys)
	var wg sync.WaitGroup
	workers := runtime.GOMAXPROCS(0)
	for w := range workers {
		wg.Go(func() {
			var key []byte
			for i := w * keys / workers; i < (w+1)*keys/workers; i++ {
				key = strconv.AppendInt(append(key[:0], "user:"...), int64(i), 10)
				all[i] = int32(m.Owner(string(key)))
			}
		})
	}
	wg.Wait()
	return all
}

// due returns the share that each member should have.
func due(members []consistenthash.Member) []float64 {
	shares, sum := make([]float64, len(members)), 0.
	for _, m := range members {
		sum += m.Weight
	}
	for i, m := range members {
		shares[i] = m.Weight / sum
	}
	return shares
}

// evenness is how far shares are from what they should be.
type evenness struct{ largest, smallest, deviation float64 }

// even returns how even the shares of a map are, going by so many keys.
func even(m consistenthash.Map, due []float64, keys int) evenness {
	counts := make([]float64, len(due))
	for _, owner := range owners(m, keys) {
		counts[owner]++
	}
	e := evenness{smallest: math.Inf(1)}
	var variance, noise float64
	for i, count := range counts {
		share := count / (due[i] * float64(keys))
		e.largest, e.smallest = max(e.largest, share), min(e.smallest, share)
		variance += (share - 1) * (share - 1) / float64(len(due))
		noise += (1 - due[i]) / (due[i] * float64(keys)) / float64(len(due)) // the variance of a binomial, by its mean squared
	}
	own := math.Sqrt(max(0, 1-noise/variance)) // of a deviation, what is not noise
	return evenness{1 + (e.largest-1)*own, 1 + (e.smallest-1)*own, math.Sqrt(variance) * own}
}

func printShares(sizes []int) {
	fmt.Println("| placement | members | largest share | smallest | std. dev. | weights 1 to 4: largest by its due | smallest | std. dev. |\n|---|--:|--:|--:|--:|--:|--:|--:|")
	for _, p := range placements {
		if p.slow {
			fmt.Printf("| %s | any | exact | exact | – | exact | exact | – |\n", p.name)
			continue
		}
		for _, n := range sizes {
			fmt.Printf("| %s | %d |", p.name, n)
			for _, mixed := range []bool{false, true} {
				members := fleet(n, mixed)
				e := even(p.new(members), due(members), min(max(4_000_000, 20_000*n), 50_000_000))
				fmt.Printf(" %.3f | %.3f | %.2f%% |", e.largest, e.smallest, 100*e.deviation)
			}
			fmt.Println()
		}
	}
	fmt.Println()
}

// moves is what moves when a fleet changes, by the least that must; astray is the largest part of all keys that moves
// between members that have not changed.
type moves struct{ joins, leaves, doubles, astray float64 }

// moved returns what moves when a member joins a fleet, when its middle one leaves, and when that doubles its weight.
func moved(p placement, members []consistenthash.Member, keys int) moves {
	middle := len(members)/8*4 + 1 // of weight 1, or of 2 among 1 to 4, so that the largest stays there
	before := owners(p.new(members), keys)
	more := append(slices.Clone(members), consistenthash.Member{ID: address(len(members)), Weight: members[middle].Weight})
	heavier := slices.Clone(members)
	heavier[middle].Weight *= 2
	fewer := slices.Clone(members)
	fewer[middle], fewer = fewer[len(fewer)-1], fewer[:len(fewer)-1]

	// changes counts the keys that have come to or gone from the member of that ID, and those between others.
	changes := func(after []consistenthash.Member, id string) (its, astray float64) {
		for i, owner := range owners(p.new(after), keys) {
			old, now := members[before[i]].ID, after[owner].ID
			switch {
			case old == now:
			case old == id || now == id:
				its++
			default:
				astray++
			}
		}
		return its / float64(keys), astray / float64(keys)
	}
	its := due(members)[middle]
	joins, a := changes(more, more[len(members)].ID)
	leaves, b := changes(fewer, members[middle].ID)
	doubles, c := changes(heavier, members[middle].ID)
	return moves{
		joins:   (joins + a) / due(more)[len(members)],
		leaves:  (leaves + b) / its,
		doubles: (doubles + c) / (due(heavier)[middle] - its),
		astray:  max(a, b, c),
	}
}

func printMoves(sizes []int) {
	fmt.Println("| placement | members | joins | leaves | doubles | weights 1 to 4: joins | leaves | doubles | most astray |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|")
	for _, p := range placements {
		for _, n := range sizes {
			if p.slow && n > 100 {
				continue // each look-up looks at all of them
			}
			keys := min(max(1_000_000, 4_000*n), 20_000_000)
			equal, mixed := moved(p, fleet(n, false), keys), moved(p, fleet(n, true), keys)
			fmt.Printf("| %s | %d | %.2f | %.2f | %.2f | %.2f | %.2f | %.2f | %.1f%% |\n", p.name, n,
				equal.joins, equal.leaves, equal.doubles, mixed.joins, mixed.leaves, mixed.doubles, 100*max(equal.astray, mixed.astray))
		}
	}
	fmt.Println()
}

// short returns d in three digits.
func short(d time.Duration) string {
	unit := time.Duration(1)
	for unit*1000 <= d {
		unit *= 10
	}
	return d.Round(unit).String()
}

// amount returns n bytes in a unit of their size.
func amount(n float64) string {
	for _, unit := range []string{"B", "KB", "MB"} {
		if math.Abs(n) < 1000 {
			return fmt.Sprintf("%.3g %s", n, unit)
		}
		n /= 1000
	}
	return fmt.Sprintf("%.3g GB", n)
}
