package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestZipf(t *testing.T) {
	const draws = 100_000
	rng := rand.New(rand.NewPCG(1, 1))
	for _, test := range []struct {
		s    float64
		want []float64
	}{
		{0, []float64{0.25, 0.25, 0.25, 0.25}},
		{1, []float64{0.48, 0.24, 0.16, 0.12}}, // 12/25, 6/25, 4/25, 3/25
		{2, []float64{0.7024, 0.1756, 0.0780, 0.0439}},
	} {
		z, got := newZipf(4, test.s), make([]float64, 4)
		for range draws {
			got[z.draw(rng)] += 1. / draws
		}
		for rank, want := range test.want {
			if d := got[rank] - want; d < -0.01 || d > 0.01 {
				t.Errorf("s = %v: rank %d has a share of %.4f, want %.4f", test.s, rank, got[rank], want)
			}
		}
	}
}

func TestZipfWorkloadIsTheSameEachTime(t *testing.T) {
	a, b := zipfWorkload(1000), zipfWorkload(1000)
	if !reflect.DeepEqual(a, b) {
		t.Error("two workloads differ")
	}
	if len(a.items) != zipfProducts || len(a.requests) != 1000 {
		t.Errorf("%d products, %d requests", len(a.items), len(a.requests))
	}
	if n := a.unique(1000); n < 300 || n > 900 {
		t.Errorf("%d of 1000 requests are for different products", n)
	}
}

func TestChooseUpdates(t *testing.T) {
	const n = 10_000
	for share, want := range map[float64]int{0: 0, 0.05: n / 20, 1: n} {
		got, some := 0, chooseUpdates(n, share)
		for _, update := range some {
			if update {
				got++
			}
		}
		if got < want-n/100 || got > want+n/100 || (share == 0 || share == 1) && got != want {
			t.Errorf("a share of %v of %d are %d", share, n, got)
		}
		if !slices.Equal(some, chooseUpdates(n, share)) {
			t.Errorf("a share of %v differs the next time", share)
		}
	}
}

func TestReadTrace(t *testing.T) {
	w, err := readTrace(strings.NewReader("7\n12 300\n7 5\n12 1\nuser/9 0"))
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(w.items, w.requests, w.unique(2), w.unique(5))
	if want := "[{7 0} {12 300} {user/9 0}] [0 1 0 1 2] 2 3"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestReadTraceMalformed(t *testing.T) {
	for text, want := range map[string]string{
		"":                       "no requests",
		"1\n\n2\n":               "line 2: no key",
		" 5\n":                   "line 1: no key",
		"1 2 3\n":                `line 1: size "2 3" is not a number of bytes from 0 to 8388608`,
		"1\n2 big\n":             `line 2: size "big" is not a number of bytes from 0 to 8388608`,
		"1 -1\n":                 `line 1: size "-1" is not a number of bytes from 0 to 8388608`,
		"1 ":                     `line 1: size "" is not a number of bytes from 0 to 8388608`,
		"1 8388609":              `line 1: size "8388609" is not a number of bytes from 0 to 8388608`,
		long(1 << 20):            "bufio.Scanner: token too long",
		"1 99999999999999999999": `line 1: size "99999999999999999999" is not a number of bytes from 0 to 8388608`,
	} {
		if _, err := readTrace(strings.NewReader(text)); err == nil || err.Error() != want {
			t.Errorf("%.20q: got %v, want %s", text, err, want)
		}
	}
}

func TestTraceWorkload(t *testing.T) {
	whole := gzipped(t, strings.Repeat("1 200\n2\n", 50))
	w, err := traceWorkload(traceFile(t, whole))
	if err != nil {
		t.Fatal(err)
	}
	if len(w.requests) != 100 || len(w.items) != 2 || w.name != "trace requests.gz" {
		t.Errorf("%d requests, %d products, name %q", len(w.requests), len(w.items), w.name)
	}
	for what, data := range map[string][]byte{
		"no gzip": []byte("1\n2\n"),
		"cut off": whole[:len(whole)-9],
		"empty":   nil,
	} {
		if _, err := traceWorkload(traceFile(t, data)); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	if _, err := traceWorkload(filepath.Join(t.TempDir(), "none.gz")); err == nil {
		t.Error("no file: no error")
	}
}

func long(n int) string { return strings.Repeat("x", n) }

func gzipped(t *testing.T, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func traceFile(t *testing.T, data []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "requests.gz")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
