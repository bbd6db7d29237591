package main

// ledger.go: which products were loaded, when and by whom. It is a file, to which all peers append: one that is killed
// takes nothing of it along.

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/shoalcache/shoal"
)

// A ledger is the file as one peer writes it.
type ledger struct {
	file *os.File
	peer string
}

func openLedger(path, peer string) (*ledger, error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	return &ledger{file, peer}, err
}

// of returns load, with each product that it returns written down.
func (l *ledger) of(load shoal.Getter[Product]) shoal.Getter[Product] {
	return func(ctx context.Context, id string) (Product, error) {
		p, err := load(ctx, id)
		if err == nil {
			_, err = fmt.Fprintln(l.file, time.Now().UnixNano(), l.peer, p.Revision, p.ID) // one write, which no other cuts
		}
		return p, err
	}
}

// A loading is a line of the ledger.
type loading struct {
	at       time.Time
	peer     string
	revision int64
	id       string
}

func readLedger(path string) ([]loading, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var all []loading
	for line := range bytes.Lines(text) {
		l, err := parseLoading(string(line))
		if err != nil {
			return nil, fmt.Errorf("%s: line %d: %w", path, len(all)+1, err)
		}
		all = append(all, l)
	}
	return all, nil
}

func parseLoading(line string) (loading, error) {
	fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
	if len(fields) < 4 {
		return loading{}, fmt.Errorf("%q is not a time, a peer, a revision and a product", line)
	}
	nanos, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		return loading{}, err
	}
	revision, err := strconv.ParseInt(fields[2], 10, 64)
	return loading{time.Unix(0, nanos), fields[1], revision, fields[3]}, err
}

// again returns those loadings that brought nothing new: the product had been loaded before, at that revision.
func again(all []loading) []loading {
	type state struct {
		id       string
		revision int64
	}
	var extra []loading
	seen := make(map[state]bool, len(all))
	for _, l := range all {
		if s := (state{l.id, l.revision}); seen[s] {
			extra = append(extra, l)
		} else {
			seen[s] = true
		}
	}
	return extra
}
