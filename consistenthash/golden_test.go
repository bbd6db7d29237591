package consistenthash_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/golden.txt anew")

// Processes of all platforms and versions must agree on who owns a key, so
// testdata/golden.txt may gain lines but never change one. A line is the map,
// the fleet, the key and its first two owners.
func TestGolden(t *testing.T) {
	weighted := urls(10)
	for i := range weighted {
		weighted[i].Weight = []float64{0, 0.3, 1.7, 2, 5}[i%5]
	}
	fleets := []struct {
		name    string
		members []Member
	}{
		{"three", urls(3)},
		{"weighted", weighted},
		{"hundred", urls(100)},
	}
	keys := []string{"", "a", "\x00\xff", "日本語", "http://10.0.0.1:8080", strings.Repeat("long", 100)}
	for i := range 24 {
		keys = append(keys, fmt.Sprintf("user:%d", i))
	}

	var got bytes.Buffer
	for _, c := range constructors {
		for _, f := range fleets {
			m := c.new(f.members)
			for _, key := range keys {
				owners := ids(f.members, m.Owners(key, 2))
				fmt.Fprintf(&got, "%s %s %+q %s\n", c.name, f.name, key, strings.Join(owners, " "))
			}
		}
	}
	if *update {
		if err := os.WriteFile("testdata/golden.txt", got.Bytes(), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/golden.txt")
	if err != nil {
		t.Fatal(err)
	}
	gotLines, wantLines := strings.Split(got.String(), "\n"), strings.Split(string(want), "\n")
	if len(gotLines) != len(wantLines) {
		t.Fatalf("%d lines, want %d", len(gotLines), len(wantLines))
	}
	for i := range wantLines {
		if gotLines[i] != wantLines[i] {
			t.Errorf("line %d:\n got %s\nwant %s", i+1, gotLines[i], wantLines[i])
		}
	}
}
