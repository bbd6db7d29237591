package shoal

import (
	"context"
	"sync"
	"time"
)

// A journal is which keys of a group this process has taken writes of lately. Who comes back to the peers is told of those
// it may have missed; if the journal does not reach back so far, it drops the group, or what of it this process owns.
type journal struct {
	most int

	mu      sync.Mutex // guards what follows
	records []record   // a ring, once there are as many as may be
	next    int
	// When the last was written that is not in it any more: of keys that have been this process's ever since, and of others.
	lostOwned, lost time.Duration
}

type record struct {
	key     string
	version uint64
	at      time.Duration
}

// bytesPerRecord is about what a record takes.
const bytesPerRecord = 96

// note takes note of a write of key. The key is cloned if need be by the caller.
func (j *journal) note(key string, version uint64, now time.Duration, owns func(key string) bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	r := record{key, version, now}
	if len(j.records) < j.most {
		j.records = append(j.records, r)
		return
	}
	if first := j.records[j.next]; owns(first.key) {
		j.lostOwned = first.at
	} else {
		j.lost = first.at
	}
	j.records[j.next] = r
	j.next = (j.next + 1) % len(j.records)
}

// moved takes note that keys have gone to others, after those see it.
func (j *journal) moved() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lost, j.lostOwned = max(j.lost, j.lostOwned), 0
}

// clear forgets all writes, which a purge has overtaken: who was away then has to drop the group.
func (j *journal) clear() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, r := range j.records {
		j.lost = max(j.lost, r.at)
	}
	j.records, j.next = nil, 0
}

// purged takes note of a purge by this process, which is a write of all keys: it may not be told by its generation, if there are
// later ones where somebody was away.
func (j *journal) purged(now time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lost = max(now, 1)
}

// since returns the writes since then, the last of each key, and whether it does not have those of any keys, or only of such as
// this process owns.
func (j *journal) since(then time.Duration) (missed []dropping, lost, lostOwned bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	versions := make(map[string]uint64)
	for _, r := range j.records {
		if r.at >= then {
			versions[r.key] = max(versions[r.key], r.version)
		}
	}
	for key, version := range versions {
		missed = append(missed, dropping{key: key, version: version})
	}
	return missed, j.lost > 0 && j.lost >= then, j.lostOwned > 0 && j.lostOwned >= then
}

// tellMissed makes p drop what may have been written since then.
func (c *Cache) tellMissed(ctx context.Context, p *peer, since time.Duration) error {
	for _, g := range c.allGroups() {
		missed, lost, lostOwned := g.journal.since(since)
		var err error
		if lost || lostOwned {
			err = c.dropAll(ctx, p, g, !lost)
		}
		if err == nil && !lost && len(missed) > 0 {
			_, err = c.drop(ctx, p, g, missed)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
