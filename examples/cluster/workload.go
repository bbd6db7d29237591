package main

// workload.go: what users ask for: drawn at random, or replayed from a record of real requests.

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A workload is the products that there are, and the requests for them in their order.
type workload struct {
	name     string
	items    []item
	requests []int // indexes of items
}

// unique returns how many different products the first n requests name.
func (w *workload) unique(n int) int {
	seen, count := make([]bool, len(w.items)), 0
	for _, i := range w.requests[:n] {
		if !seen[i] {
			seen[i] = true
			count++
		}
	}
	return count
}

// once returns the products that the requests name, each once.
func (w *workload) once() []int {
	var products []int
	seen := make([]bool, len(w.items))
	for _, i := range w.requests {
		if !seen[i] {
			seen[i] = true
			products = append(products, i)
		}
	}
	return products
}

// chooseUpdates says of each of n requests whether it is an update: so large a share of them, and the same at each start.
func chooseUpdates(n int, share float64) []bool {
	rng, updates := rand.New(rand.NewPCG(3, 4)), make([]bool, n)
	for i := range updates {
		updates[i] = rng.Float64() < share
	}
	return updates
}

const (
	zipfProducts = 100_000
	zipfExponent = 0.99
)

// zipfWorkload returns n requests as a shop sees them: few products are asked for often, most of them hardly ever. It is
// the same at each start, and the popular products are spread over the whole table.
func zipfWorkload(n int) *workload {
	w := &workload{
		name:     fmt.Sprintf("Zipf %v", zipfExponent),
		items:    make([]item, zipfProducts),
		requests: make([]int, n),
	}
	for i := range w.items {
		w.items[i].id = strconv.Itoa(i)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	byRank, ranks := rng.Perm(zipfProducts), newZipf(zipfProducts, zipfExponent)
	for i := range w.requests {
		w.requests[i] = byRank[ranks.draw(rng)]
	}
	return w
}

// A zipf draws ranks from 0, rank i in proportion to 1/(i+1)^s. That of math/rand does so only for s above 1, and what
// caches see is mostly a little below.
type zipf struct {
	upTo []float64 // the weights of all ranks up to each one, summed
}

func newZipf(n int, s float64) zipf {
	z, sum := zipf{make([]float64, n)}, 0.0
	for i := range z.upTo {
		sum += math.Pow(float64(i+1), -s)
		z.upTo[i] = sum
	}
	return z
}

func (z zipf) draw(rng *rand.Rand) int {
	at, _ := slices.BinarySearch(z.upTo, rng.Float64()*z.upTo[len(z.upTo)-1])
	return at
}

// traceWorkload returns the requests in the gzip file at path.
func traceWorkload(path string) (*workload, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	plain, err := gzip.NewReader(file)
	if err != nil {
		return nil, fmt.Errorf("trace %s: %w", path, err)
	}
	w, err := readTrace(plain)
	if err != nil {
		return nil, fmt.Errorf("trace %s: %w", path, err)
	}
	w.name = "trace " + filepath.Base(path)
	return w, nil
}

// maxProduct is the largest product that a trace may have. A group keeps nothing that takes more than an eighth of its
// memory, of which memoryFor gives it more than eight times as much.
const maxProduct = 8 << 20

// readTrace reads a request a line: a key, or a key and the size of its product in bytes, of which the first counts.
func readTrace(r io.Reader) (*workload, error) {
	w, index := &workload{}, make(map[string]int)
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		key, sizeText, sized := strings.Cut(lines.Text(), " ")
		size := 0
		if sized {
			var err error
			if size, err = strconv.Atoi(sizeText); err != nil || size < 0 || size > maxProduct {
				return nil, fmt.Errorf("line %d: size %q is not a number of bytes from 0 to %d", n, sizeText, maxProduct)
			}
		}
		if key == "" {
			return nil, fmt.Errorf("line %d: no key", n)
		}
		i, known := index[key]
		if !known {
			i = len(w.items)
			index[key] = i
			w.items = append(w.items, item{key, size})
		}
		w.requests = append(w.requests, i)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(w.requests) == 0 {
		return nil, errors.New("no requests")
	}
	return w, nil
}
