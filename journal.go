package shoal

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/shoalcache/shoal/shoalpb"
)

// A journal is which keys of a group this process has taken writes of lately, and which purges it has gone through. Who comes
// back to the peers is told of those it may have missed; if the journal does not reach back so far, it drops the group, or what
// of it this process owns.
type journal struct {
	most int

	mu      sync.Mutex // guards what follows
	records []record   // a ring, once there are as many as may be
	next    int
	// When the last was written that is not in it any more: of keys that have been this process's ever since, and of others.
	lostOwned, lost time.Duration
	purges          []purgeRecord // the first of them first
}

type record struct {
	key     string
	version uint64
	at      time.Duration
}

// A purgeRecord is a purge by its name: by its number alone one would take it for a later one on the other side of a cut.
type purgeRecord struct {
	number, by uint64
	at         time.Duration
}

// mostPurges is how many purges are remembered. Who may have missed one before those drops the group.
const mostPurges = 64

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

// purged takes note of a purge that this process has gone through. The writes before stay, for who has gone through it earlier.
func (j *journal) purged(number, by uint64, now time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.purges = slices.DeleteFunc(j.purges, func(p purgeRecord) bool { return p.number <= number && p.by == by })
	if len(j.purges) == mostPurges {
		j.lost = max(j.lost, j.purges[0].at)
		j.purges = slices.Delete(j.purges, 0, 1)
	}
	j.purges = append(j.purges, purgeRecord{number, by, max(now, 1)})
}

// hasGoneThrough reports whether this process is known to have gone through a purge: by its name, or by a later one of the same
// process, or by any since another had heard of it.
func (j *journal) hasGoneThrough(number, by uint64, heard time.Duration) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.ContainsFunc(j.purges, func(p purgeRecord) bool { return p.number >= number && p.by == by || p.at > heard })
}

// since returns the writes since then, the last of each key, and what else must be dropped, or nil: all, for it does not have
// the writes of any keys, or only of such as this process owns; or all that was there before purges.
func (j *journal) since(then, now time.Duration) (missed []dropping, all *shoalpb.Drop) {
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
	lost, lostOwned := j.lost > 0 && j.lost >= then, j.lostOwned > 0 && j.lostOwned >= then
	if lost {
		missed = nil // all of them
	}
	all = &shoalpb.Drop{All: lost || lostOwned, Owned: !lost, Purges: j.purgesLocked(then, now)}
	if !all.All && all.Purges == nil {
		return missed, nil
	}
	return missed, all
}

// purgesSince returns the purges since then.
func (j *journal) purgesSince(then, now time.Duration) []*shoalpb.Past {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.purgesLocked(then, now)
}

func (j *journal) purgesLocked(then, now time.Duration) (all []*shoalpb.Past) {
	for _, p := range j.purges {
		if p.at >= then {
			all = append(all, &shoalpb.Past{Generation: &shoalpb.Generation{Number: p.number, By: p.by}, Age: int64(now - p.at)})
		}
	}
	return all
}

// tellMissed makes p drop what may have been written since then.
func (c *Cache) tellMissed(ctx context.Context, p *peer, since time.Duration) error {
	for _, g := range c.allGroups() {
		missed, all := g.journal.since(since, c.clock.now())
		var err error
		if all != nil {
			err = c.dropAll(ctx, p, g, all)
		}
		if err == nil && len(missed) > 0 {
			_, err = c.drop(ctx, p, g, missed)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
