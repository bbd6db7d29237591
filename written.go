package shoal

// written.go: what a process remembers of the latest writes of keys beside what it holds: their versions, whoever took them, and
// when it was given what was written.

import (
	"maps"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
)

// lastWrites are the versions of the latest writes, where there are replicas or no getter, so that nothing older comes in later, even if what
// was written has been removed or evicted. Those that are not remembered any more are below the floor, under which nothing is
// taken that comes unasked.
type lastWrites struct {
	most int

	mu    sync.Mutex // guards what follows
	known map[uint64]lastWrite
	order []writtenAt
	floor uint64
}

// A lastWrite is the version of the latest write of a key, and whether this process was only told to drop the key for it: then
// somebody else may have what was written.
type lastWrite struct {
	version   uint64
	elsewhere bool
}

type writtenAt struct {
	key, version uint64
	until        time.Duration
}

// bytesPerWritten is about what one takes.
const bytesPerWritten = 96

// last returns the version of the latest write of key, or the floor, if that is higher.
func (w *lastWrites) last(key string) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return max(w.known[xxhash.Sum64String(key)].version, w.floor)
}

// of returns what is remembered of the latest write of key.
func (w *lastWrites) of(key string) lastWrite {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.known[xxhash.Sum64String(key)]
}

// isNowhere takes note that nobody has what was written of key at that version, so far as anybody could be asked.
func (w *lastWrites) isNowhere(key string, version uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	hash := xxhash.Sum64String(key)
	if l := w.known[hash]; l.version == version {
		w.known[hash] = lastWrite{version, false}
	}
}

// areNowhere takes note that nobody has what was written: it has been purged.
func (w *lastWrites) areNowhere() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for hash, l := range w.known {
		w.known[hash] = lastWrite{l.version, false}
	}
}

func (w *lastWrites) note(key string, version uint64, elsewhere bool, now, until time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.known == nil {
		w.known = make(map[uint64]lastWrite)
	}
	hash := xxhash.Sum64String(key)
	if l := w.known[hash]; version > l.version || version == l.version && !elsewhere {
		w.known[hash] = lastWrite{version, elsewhere}
	}
	w.order = append(w.order, writtenAt{hash, version, until})
	for len(w.order) > w.most || w.order[0].until <= now {
		first := w.order[0]
		w.order = w.order[1:]
		w.floor = max(w.floor, first.version)
		if w.known[first.key].version == first.version {
			delete(w.known, first.key)
		}
	}
}

// noteWritten takes note of a write, which nothing older may undo.
func (g *group) noteWritten(key string, version uint64, elsewhere bool) {
	if !g.remembersWrites() {
		return
	}
	now := g.cache.clock.now()
	g.written.note(key, version, elsewhere, now, now+2*g.cache.peers.window)
}

// remembersWrites reports whether versions decide what is newer.
func (g *group) remembersWrites() bool { return g.owners > 1 || g.getter == nil }

// given says when this process was given keys as a replica that it is not by its own view. Those for which there is no room are
// kept only as long as others.
type given struct {
	most int

	mu sync.Mutex               // guards at
	at map[uint64]time.Duration // by hash
}

// bytesPerGiven is about what one takes.
const bytesPerGiven = 32

func (w *given) note(key string, now time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.at == nil {
		w.at = make(map[uint64]time.Duration)
	}
	hash := xxhash.Sum64String(key)
	if _, known := w.at[hash]; known || len(w.at) < w.most {
		w.at[hash] = now
	}
}

// forget forgets what was given by then, and reports whether anything is left.
func (w *given) forget(then time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.DeleteFunc(w.at, func(_ uint64, at time.Duration) bool { return at <= then })
	return len(w.at) > 0
}

func (w *given) has(key string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.at[xxhash.Sum64String(key)]
	return ok
}
