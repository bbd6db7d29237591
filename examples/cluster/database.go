package main

// database.go: the source of truth, a SQLite file of products. It is written once, and read by all peers; a run that
// updates products does so in a copy of its own.

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	_ "modernc.org/sqlite" // SQLite without cgo

	"github.com/shoalcache/shoal"
)

// A Product is a row of the database, and the value of a key in the cache.
type Product struct {
	ID          string `json:"id"`
	Revision    int64  `json:"revision"` // how often it has been updated
	Name        string `json:"name"`
	Description string `json:"description"`
	Price       int64  `json:"price"` // in cents
}

// A database reads and updates products.
type database struct {
	reader, writer *sql.DB
	byID           *sql.Stmt
	latency        time.Duration // of the network that this file does not have
}

// openDatabase opens the file at path as one would in production, so that the cache is compared with a database at its
// best. Its pages are mapped into memory, which all peers share, and if it never changes, nothing is locked. Reading them
// takes a processor and never waits, so more connections than processors would only get in each other's way. Updates
// have a connection of their own, at which they queue: those that wait for other processes' keep nobody from reading.
func openDatabase(path string, changes bool) (*database, error) {
	query := "mode=ro&immutable=1&_pragma=mmap_size(1073741824)"
	if changes {
		query = "mode=rw&_txlock=immediate&_pragma=busy_timeout(10000)&_pragma=synchronous(normal)&_pragma=mmap_size(1073741824)"
	}
	source := dataSource(path, query)
	reader, err := sql.Open("sqlite", source)
	if err != nil {
		return nil, err
	}
	reader.SetMaxOpenConns(runtime.GOMAXPROCS(0))
	reader.SetMaxIdleConns(runtime.GOMAXPROCS(0))
	writer, err := sql.Open("sqlite", source)
	if err != nil {
		reader.Close()
		return nil, err
	}
	writer.SetMaxOpenConns(1)
	byID, err := reader.Prepare("SELECT revision, name, description, price FROM products WHERE id = ?")
	if err != nil {
		reader.Close()
		writer.Close()
		return nil, fmt.Errorf("database %s: %w", path, err)
	}
	return &database{reader: reader, writer: writer, byID: byID}, nil
}

func (d *database) close() error { return errors.Join(d.reader.Close(), d.writer.Close()) }

// product is the [shoal.Getter] of the cache.
func (d *database) product(ctx context.Context, id string) (Product, error) {
	if err := d.travel(ctx); err != nil {
		return Product{}, err
	}
	return scanProduct(id, d.byID.QueryRowContext(ctx, id))
}

// travel takes as long as a query, and its answer, are on their way.
func (d *database) travel(ctx context.Context) error {
	if d.latency == 0 {
		return nil
	}
	select {
	case <-time.After(d.latency):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// update changes a product's price and returns the product that it has made. When it has returned, whoever reads the
// product, in whatever process, finds that revision or a later one.
func (d *database) update(ctx context.Context, id string) (Product, error) {
	if err := d.travel(ctx); err != nil {
		return Product{}, err
	}
	tx, err := d.writer.BeginTx(ctx, nil)
	if err != nil {
		return Product{}, err
	}
	defer tx.Rollback() // does nothing after Commit
	p, err := scanProduct(id, tx.QueryRowContext(ctx, `UPDATE products SET revision = revision + 1, price = price + 10
		WHERE id = ? RETURNING revision, name, description, price`, id))
	if err != nil {
		return Product{}, err
	}
	return p, tx.Commit()
}

func scanProduct(id string, row *sql.Row) (Product, error) {
	p := Product{ID: id}
	err := row.Scan(&p.Revision, &p.Name, &p.Description, &p.Price)
	if errors.Is(err, sql.ErrNoRows) {
		return Product{}, shoal.ErrNotFound
	}
	return p, err
}

// dataSource returns what sql.Open takes for the file at path, which may contain any character.
func dataSource(path, query string) string {
	return (&url.URL{Scheme: "file", OmitHost: true, Path: filepath.ToSlash(path), RawQuery: query}).String()
}

// An item is a product that the database must have.
type item struct {
	id   string
	size int // bytes of its texts; if zero, what they come to
}

// schemaVersion is part of the file's name: to change the table or the texts is to count it up.
const schemaVersion = 2

// prepareDatabase returns the path of a database of items, and fills it if it is not there yet.
func prepareDatabase(ctx context.Context, items []item) (path string, err error) {
	dir, err := dataDir()
	if err != nil {
		return "", err
	}
	contents := sha256.New()
	for _, it := range items {
		fmt.Fprintln(contents, it.id, it.size)
	}
	path = filepath.Join(dir, fmt.Sprintf("products-v%d-%.6x.db", schemaVersion, contents.Sum(nil)))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}

	// The file gets its name once it is whole, so nobody ever opens half a database: not after a crash, and not while
	// another process fills its own.
	temp, err := os.CreateTemp(dir, "filling-*.db")
	if err != nil {
		return "", err
	}
	defer os.Remove(temp.Name())
	defer temp.Close()
	if err := fillDatabase(ctx, temp.Name(), items); err != nil {
		return "", fmt.Errorf("filling the database in %s: %w", dir, err)
	}
	if err := temp.Sync(); err != nil {
		return "", err
	}
	temp.Close() // Windows renames no open file
	return path, os.Rename(temp.Name(), path)
}

// copyDatabase makes a copy of the database at from that peers can update. What other runs find, now and later, stays as
// it is.
func copyDatabase(ctx context.Context, to, from string) error {
	if err := copyFile(to, from); err != nil {
		return err
	}
	// With a write-ahead log, which the file's header asks for from now on, updates and reads do not wait for each other.
	db, err := sql.Open("sqlite", dataSource(to, "mode=rw"))
	if err == nil {
		_, err = db.ExecContext(ctx, "PRAGMA journal_mode = wal")
		err = errors.Join(err, db.Close())
	}
	if err != nil {
		return fmt.Errorf("database %s: %w", to, err)
	}
	return nil
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// dataDir returns a directory that outlasts this process: the user's cache directory if there is one.
func dataDir() (string, error) {
	if base, err := os.UserCacheDir(); err == nil {
		dir := filepath.Join(base, "shoal-cluster")
		if os.MkdirAll(dir, 0o700) == nil {
			return dir, nil
		}
	}
	dir := filepath.Join(os.TempDir(), "shoal-cluster")
	return dir, os.MkdirAll(dir, 0o700)
}

// fillDatabase writes items to the empty file at path, in one transaction, and without a journal: if it fails, the file
// is thrown away.
func fillDatabase(ctx context.Context, path string, items []item) error {
	var done atomic.Int64
	defer showProgress("filling the database", &done, len(items))()

	db, err := sql.Open("sqlite", dataSource(path, "_pragma=journal_mode(off)&_pragma=synchronous(off)"))
	if err != nil {
		return err
	}
	defer db.Close()
	_, err = db.ExecContext(ctx, `CREATE TABLE products (
		id          TEXT PRIMARY KEY,
		revision    INTEGER NOT NULL DEFAULT 0,
		name        TEXT NOT NULL,
		description TEXT NOT NULL,
		price       INTEGER NOT NULL
	)`)
	if err != nil {
		return err
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // does nothing after Commit
	insert, err := tx.PrepareContext(ctx, "INSERT INTO products (id, name, description, price) VALUES (?, ?, ?, ?)")
	if err != nil {
		return err
	}
	for i, it := range items {
		p := newProduct(it, rand.New(rand.NewPCG(uint64(i), schemaVersion)))
		if _, err := insert.ExecContext(ctx, p.ID, p.Name, p.Description, p.Price); err != nil {
			return err
		}
		done.Add(1)
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	return db.Close()
}

var (
	materials = strings.Fields("ash bamboo brass canvas ceramic copper cork cotton felt glass leather linen oak steel walnut wool")
	things    = strings.Fields("backpack basket bench bottle bowl chair clock desk jacket kettle lamp mug shelf table teapot wallet")
	phrases   = []string{
		"made by hand in small batches", "built to be repaired, not replaced", "delivered within three working days",
		"tested for ten years of daily use", "lighter than it looks", "at home in the city and outdoors",
		"with a finish that gets better with age", "packed without a gram of plastic", "easy to clean and hard to break",
		"designed together with the people who use it", "available in four colours", "a present that is kept",
	}
)

// newProduct makes a product up: some 200 to 500 bytes, or the size that it has to have.
func newProduct(it item, rng *rand.Rand) Product {
	material, thing := materials[rng.IntN(len(materials))], things[rng.IntN(len(things))]
	p := Product{
		ID:    it.id,
		Name:  fmt.Sprintf("%s %s no. %d", material, thing, 100+rng.IntN(900)),
		Price: 490 + 10*rng.Int64N(20_000),
	}
	var text strings.Builder
	fmt.Fprintf(&text, "A %s of %s", thing, material)
	for _, i := range rng.Perm(len(phrases))[:4+rng.IntN(6)] {
		text.WriteString(", ")
		text.WriteString(phrases[i])
	}
	text.WriteByte('.')
	p.Description = text.String()
	if it.size > 0 {
		p.Description = stretch(p.Description+" ", it.size-len(p.ID)-len(p.Name))
	}
	return p
}

// stretch repeats or cuts text to n bytes, none if n is negative.
func stretch(text string, n int) string {
	n = max(n, 0)
	return strings.Repeat(text, n/len(text)+1)[:n]
}
