package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoalcache/shoal"
)

func TestLedgerKnowsWhatWasLoadedAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "loads")
	var loads []shoal.Getter[Product] // of two peers
	revision := int64(0)
	for i := range 2 {
		l, err := openLedger(path, fmt.Sprint("peer-", i))
		if err != nil {
			t.Fatal(err)
		}
		defer l.file.Close()
		loads = append(loads, l.of(func(ctx context.Context, id string) (Product, error) {
			if id == "missing" {
				return Product{}, shoal.ErrNotFound
			}
			return Product{ID: id, Revision: revision}, nil
		}))
	}
	load := func(peer int, id string) {
		if p, err := loads[peer](t.Context(), id); err == nil && p.ID != id || err != nil && !errors.Is(err, shoal.ErrNotFound) {
			t.Errorf("loaded %+v, %v", p, err)
		}
	}
	load(0, "a")
	load(1, "a key")
	load(1, "missing")
	load(1, "a") // again
	revision++
	load(0, "a")
	load(0, "a") // again

	all, err := readLedger(path)
	if err != nil || len(all) != 5 {
		t.Fatalf("read %v, %v", all, err)
	}
	var got []string
	for _, l := range again(all) {
		got = append(got, fmt.Sprint(l.peer, " ", l.id, " ", l.revision))
	}
	if want := "peer-1 a 0, peer-0 a 1"; strings.Join(got, ", ") != want {
		t.Errorf("loaded again: %q, want %s", got, want)
	}
}

func TestLedgerThatIsNone(t *testing.T) {
	for _, text := range []string{"1 peer 2\n", "now peer 2 id\n", "1 peer two id\n"} {
		path := filepath.Join(t.TempDir(), "loads")
		if err := os.WriteFile(path, []byte("1 peer 2 id\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
		if all, err := readLedger(path); err == nil || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%q: %v, %v", text, all, err)
		}
	}
}
