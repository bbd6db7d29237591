package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/shoalcache/shoal"
)

func TestPrepareDatabase(t *testing.T) {
	useOwnCacheDir(t)
	items := []item{{"small", 1}, {"1000", 1000}, {"100000", 100_000}}
	for i := range 50 {
		items = append(items, item{id: strconv.Itoa(i)})
	}
	path, err := prepareDatabase(t.Context(), items)
	if err != nil {
		t.Fatal(err)
	}
	db, err := openDatabase(path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.db.Close()
	for _, it := range items {
		p, err := db.product(t.Context(), it.id)
		if err != nil {
			t.Fatal(err)
		}
		record, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		size := len(p.ID) + len(p.Name) + len(p.Description)
		switch {
		case p.ID != it.id || p.Name == "" || p.Price <= 0:
			t.Errorf("product %s: %+v", it.id, p)
		case it.size == 0 && (len(record) < 200 || len(record) > 500):
			t.Errorf("product %s takes %d bytes", it.id, len(record))
		case it.size >= 100 && size != it.size:
			t.Errorf("product %s has texts of %d bytes", it.id, size)
		}
	}
	for _, id := range []string{"", "50", "1 OR 1=1"} {
		if _, err := db.product(t.Context(), id); !errors.Is(err, shoal.ErrNotFound) {
			t.Errorf("product %q: %v", id, err)
		}
	}

	// It is filled once, and another is for other products.
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := prepareDatabase(t.Context(), items); err != nil || again != path {
		t.Errorf("then %s, %v", again, err)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("another file: %v", err)
	}
	if other, err := prepareDatabase(t.Context(), items[1:]); err != nil || other == path {
		t.Errorf("for other products %s, %v", other, err)
	}
}

func TestPrepareDatabaseLeavesNothingHalfDone(t *testing.T) {
	useOwnCacheDir(t)
	if _, err := prepareDatabase(t.Context(), []item{{id: "twice"}, {id: "twice"}}); err == nil {
		t.Error("a key that is there twice: no error")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := prepareDatabase(ctx, []item{{id: "1"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	dir, err := dataDir()
	if err != nil {
		t.Fatal(err)
	}
	if files, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(files) != 0 {
		t.Errorf("left: %v %v", files, err)
	}
}

func TestOpenDatabaseWithout(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none.db")
	if _, err := openDatabase(missing); err == nil {
		t.Error("no file: no error")
	}
	if _, err := os.Stat(missing); err == nil {
		t.Error("opening made a file")
	}
}
