package checker

// story_test.go: what is told of a violation.

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/shoalcache/shoal/consistenthash"
)

// An event is something that was done to the cluster.
type event struct {
	at    time.Duration
	text  string
	cache int   // -1: it is not about the membership of one
	list  []int // of whom that one was told, or whom it sees; nil: neither
}

func (e event) String() string { return fmt.Sprintf("%v %s", at(e.at), e.text) }

// A load is one run of a source for one key.
type load struct {
	cache, process int
	key            string
	value          int
	start, end     time.Duration
	err            error
}

func (l load) String() string {
	what := fmt.Sprint(l.value)
	if l.err != nil {
		what = oneLine(l.err)
	}
	return fmt.Sprintf("%v–%v cache %d loads %s: %s", at(l.start), at(l.end), l.cache, l.key, what)
}

func (r *run) log(format string, args ...any) {
	r.happened(event{text: fmt.Sprintf(format, args...), cache: -1})
}

// logList takes note that cache i was told of a list, or sees it.
func (r *run) logList(i int, what string, list []bool) {
	r.happened(event{text: fmt.Sprintf("cache %d %s %v", i, what, indexes(list)), cache: i, list: indexes(list)})
}

func (r *run) happened(e event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.at = r.now()
	r.events = append(r.events, e)
}

// wrong takes note of a violation that is not one of a key.
func (r *run) wrong(from time.Duration, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bad = append(r.bad, violation{text: fmt.Sprintf(format, args...), from: from, to: r.now()})
}

func (r *run) noteLoads(p *process, begun time.Duration, keys []string, values []int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, key := range keys {
		l := load{cache: p.cache, process: p.start, key: key, start: begun, end: r.now(), err: err}
		if err == nil {
			l.value = values[i]
		}
		r.loads = append(r.loads, l)
	}
}

// longest is how many lines of a kind a story has.
const longest = 60

// story tells what happened to the key of v, and to the cluster, from when the value that was read was last true until it
// was read: writes and loads of the key, and those gets that returned the same. Each list comes with whose the key is by it.
func (r *run) story(v violation) string {
	type line struct {
		at   time.Duration
		text string
	}
	// What has failed may take effect later, but seldom much.
	const late = 15 * time.Second
	from := v.from
	var what, around []line
	if v.h != nil && v.value != 0 { // begin where the value came from
		for _, c := range v.h.calls {
			if c.kind == set && c.key == v.key && c.value == v.value {
				from = min(from, c.start)
			}
		}
	}
	if v.h == &r.ofLoaded {
		for _, l := range r.loads {
			if l.key == v.key && l.end >= from && l.start <= v.to || l.key == v.key && l.value == v.value && l.start <= v.to {
				from = min(from, max(l.start, v.from-time.Minute))
				what = append(what, line{l.start, l.String()})
			}
		}
	}
	if v.h != nil {
		for _, c := range v.h.calls {
			same := c.kind == get && c.key == v.key && c.value == v.value && c.err == nil && c.end >= v.from
			written := c.kind != get && (c.key == v.key || c.kind == purge) && (c.end >= from || c.err != nil && c.end >= from-late)
			if (same || written) && c.start <= v.to {
				what = append(what, line{c.start, c.String()})
			}
		}
	}
	first := make(map[int]line) // what had become of each cache before
	for _, e := range r.events {
		if e.at > v.to {
			break
		}
		if e.list != nil {
			e.text += r.whose(v.key, e.list)
		}
		if e.at >= from {
			around = append(around, line{e.at, e.String()})
		} else if e.cache >= 0 {
			first[e.cache] = line{e.at, e.String()}
		}
	}
	for _, l := range first {
		around = append(around, l)
	}
	inOrder := func(a, b line) int { return cmp.Compare(a.at, b.at) }
	slices.SortStableFunc(what, inOrder)
	slices.SortStableFunc(around, inOrder)
	what, around = what[max(0, len(what)-longest):], around[max(0, len(around)-longest):]
	all := append(what, around...)
	slices.SortStableFunc(all, inOrder)
	var b strings.Builder
	fmt.Fprintf(&b, "  that is, in a cluster of %d:\n", r.size)
	for _, l := range all {
		fmt.Fprintln(&b, "   ", l.text)
	}
	return b.String()
}

// whose says which of the listed caches owns key.
func (r *run) whose(key string, list []int) string {
	if key == "" || len(list) == 0 {
		return ""
	}
	return fmt.Sprintf(": %s is cache %d's", key, r.ownerAmong(list, key))
}

// owner returns the cache that owns key when all are listed.
func (r *run) owner(key string) int { return r.ownerAmong(everybody(r.size), key) }

func (r *run) ownerAmong(list []int, key string) int {
	members := make([]consistenthash.Member, len(list))
	for n, i := range list {
		members[n] = consistenthash.Member{ID: r.addrs[i], Weight: 1}
	}
	return list[consistenthash.New(members).Owner(key)]
}
