package shoal

import (
	"context"
	"sync"
	"time"
)

// A journal is which keys of a group this process has taken writes of lately. Who comes back to the peers is told of those
// it may have missed; if the journal does not reach back so far, it drops the group.
type journal struct {
	most int

	mu      sync.Mutex // guards what follows
	records []record   // a ring, once there are as many as may be
	next    int
	lost    time.Duration // when the last was written that is not in it any more
}

type record struct {
	key     string
	version uint64
	at      time.Duration
}

// bytesPerRecord is about what a record takes.
const bytesPerRecord = 96

// note takes note of a write of key. The key is cloned if need be by the caller.
func (j *journal) note(key string, version uint64, now time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	r := record{key, version, now}
	if len(j.records) < j.most {
		j.records = append(j.records, r)
		return
	}
	j.lost = j.records[j.next].at
	j.records[j.next] = r
	j.next = (j.next + 1) % len(j.records)
}

// clear forgets all writes, which a purge has overtaken: who was away then has to drop the group.
func (j *journal) clear() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if n := len(j.records); n > 0 {
		j.lost = j.records[(j.next+n-1)%n].at
	}
	j.records, j.next = nil, 0
}

// since returns the writes since then, the last of each key, or false if it does not have all of them.
func (j *journal) since(then time.Duration) ([]dropping, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.lost > 0 && j.lost >= then {
		return nil, false
	}
	versions := make(map[string]uint64)
	for _, r := range j.records {
		if r.at >= then {
			versions[r.key] = max(versions[r.key], r.version)
		}
	}
	missed := make([]dropping, 0, len(versions))
	for key, version := range versions {
		missed = append(missed, dropping{key: key, version: version})
	}
	return missed, true
}

// tellMissed makes p drop what may have been written since then.
func (c *Cache) tellMissed(ctx context.Context, p *peer, since time.Duration) error {
	for _, g := range c.allGroups() {
		missed, all := g.journal.since(since)
		var err error
		if !all {
			err = c.dropAll(ctx, p, g)
		} else if len(missed) > 0 {
			_, err = c.drop(ctx, p, g, missed)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
