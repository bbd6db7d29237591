package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"sync"
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
	db, err := openDatabase(path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer db.close()
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
	for _, changes := range []bool{false, true} {
		if _, err := openDatabase(missing, changes); err == nil {
			t.Errorf("no file, changes %v: no error", changes)
		}
		if _, err := os.Stat(missing); err == nil {
			t.Errorf("changes %v: opening made a file", changes)
		}
	}
}

func TestUpdatesAreOrdered(t *testing.T) {
	useOwnCacheDir(t)
	original, err := prepareDatabase(t.Context(), []item{{id: "a"}, {id: "b"}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "copy")
	if err := copyDatabase(t.Context(), path, original); err != nil {
		t.Fatal(err)
	}
	var dbs []*database // as of two peers
	for range 2 {
		db, err := openDatabase(path, true)
		if err != nil {
			t.Fatal(err)
		}
		dbs = append(dbs, db)
	}
	before, err := dbs[0].product(t.Context(), "a")
	if err != nil || before.Revision != 0 {
		t.Errorf("before: %+v, %v", before, err)
	}

	const updates = 200
	var (
		running sync.WaitGroup
		mu      sync.Mutex // guards seen
		seen    = make(map[int64]bool)
	)
	for i := range updates {
		running.Go(func() {
			made, err := dbs[i%2].update(t.Context(), "a")
			if err != nil {
				t.Error(err)
				return
			}
			if read, err := dbs[(i+1)%2].product(t.Context(), "a"); err != nil || read.Revision < made.Revision {
				t.Errorf("after revision %d: %+v, %v", made.Revision, read, err)
			}
			mu.Lock()
			defer mu.Unlock()
			seen[made.Revision] = true
		})
	}
	running.Wait()
	after, err := dbs[1].product(t.Context(), "a")
	if want := before.Price + 10*updates; err != nil || after.Revision != updates || after.Price != want || len(seen) != updates {
		t.Errorf("after %d updates with %d revisions: %+v, %v", updates, len(seen), after, err)
	}
	if other, err := dbs[0].product(t.Context(), "b"); err != nil || other.Revision != 0 {
		t.Errorf("another product: %+v, %v", other, err)
	}
	if _, err := dbs[0].update(t.Context(), "c"); !errors.Is(err, shoal.ErrNotFound) {
		t.Errorf("no product: %v", err)
	}

	// The next run finds what this one found.
	for _, db := range dbs {
		if err := db.close(); err != nil {
			t.Error(err)
		}
	}
	db, err := openDatabase(original, false)
	if err != nil {
		t.Fatal(err)
	}
	defer db.close()
	if p, err := db.product(t.Context(), "a"); err != nil || p != before {
		t.Errorf("the original: %+v, %v", p, err)
	}
	if _, err := db.update(t.Context(), "a"); err == nil {
		t.Error("the original was updated")
	}
}
