package shoal

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// outcome is what has come of one key of many.
type outcome struct {
	found
	err error
}

// atOnce is how many keys of a GetMany are loaded one by one at the same time.
const atOnce = 32

// many is get for many keys: what memory does not have is loaded here, or asked of its owners, one exchange with each,
// all at once.
func (g *group) many(ctx context.Context, keys []string) map[string]*outcome {
	var (
		all    = make(map[string]*outcome, len(keys))
		memory = make([]outcome, len(keys)) // for them
		mine   []string
		theirs = make(map[*peer][]string)
	)
	v := g.cache.peers.view.Load()
	g.main.near(keys)
	for i, key := range keys {
		if _, again := all[key]; again {
			continue
		}
		o := &memory[i]
		all[key] = o
		if e, due, ok := g.main.use(key, 1, false); ok {
			o.found = g.hit(key, e, due)
		} else if f, ok := g.held(key, want{}); ok {
			*o = outcome{f, f.err}
		} else if err := g.cache.checkKey(key); err != nil {
			o.err = fmt.Errorf("get from group %q: %w", g.name, err)
		} else if owner, _ := v.owner(key); owner != nil {
			theirs[owner] = append(theirs[owner], key)
		} else {
			mine = append(mine, key)
		}
		if o.err != nil {
			g.counts.missed(o.found, o.err)
		}
	}
	got := func(key string, f found, err error) { // for each once, so there is nothing to lock
		g.counts.missed(f, err)
		*all[key] = outcome{f, err}
	}
	var wg sync.WaitGroup
	for owner, keys := range theirs {
		wg.Go(func() { g.fetchMany(ctx, owner, keys, got) })
	}
	g.loadManyHere(ctx, mine, got)
	wg.Wait()
	return all
}

// fetchMany asks owner for keys, and calls got for each, one at a time. For those that owner says nothing of, it does
// what find does.
func (g *group) fetchMany(ctx context.Context, owner *peer, keys []string, got func(key string, f found, err error)) {
	// Keys that do not fit into one message are asked for in several.
	for now := range batches(g.cache, keys, func(key string) int { return len(key) }) {
		answered := make([]bool, len(now))
		var elsewhere []string
		g.counts.fetches.Add(1)
		err := g.cache.fetchMany(ctx, owner, g, now, false, false, func(i int, f found, err error) {
			answered[i] = true
			if _, ok := errors.AsType[*notOwner](err); ok || g.fallsBack(err) {
				elsewhere = append(elsewhere, now[i]) // the views differ
				return
			}
			got(now[i], f, err)
		})
		var left []string
		for i, key := range now {
			if answered[i] {
				continue
			} else if ctx.Err() != nil {
				got(key, found{}, ctx.Err())
			} else if !g.hasNext(err) {
				got(key, found{}, err)
			} else {
				left = append(left, key)
			}
		}
		g.askNextMany(ctx, left, got)
		each(elsewhere, func(key string) {
			f, err := g.find(ctx, key, want{})
			got(key, f, err)
		})
	}
}

// loadManyHere is loadHere for many keys.
func (g *group) loadManyHere(ctx context.Context, keys []string, got func(key string, f found, err error)) {
	if g.getter == nil {
		for _, key := range keys {
			f, err := g.loadHere(ctx, key, want{})
			got(key, f, err)
		}
		return
	}
	g.loadMany(ctx, keys, got)
}

// answerMany answers a peer that takes this process for the owner of keys: first with what memory has.
func (g *group) answerMany(ctx context.Context, keys []string, standIn bool, loading func(), got func(i int, f found, err error)) {
	g.counts.requests.Add(int64(len(keys)))
	q := question{callers: 1, standIn: standIn}
	left := make(map[string]int)
	var load []string
	for i, key := range keys {
		if f, ok := g.serve(key, q); ok {
			got(i, f, f.err)
		} else if f, err, ok := g.notMine(key, q); ok {
			got(i, f, err)
		} else if _, again := left[key]; !again {
			left[key] = i
			load = append(load, key)
		}
	}
	if len(load) > 0 {
		loading()
		g.loadMany(ctx, load, func(key string, f found, err error) { got(left[key], f, err) })
	}
}

// loadMany is load for many keys, each named once: with one call of the batch getter for those that are not being loaded
// yet, or key by key, some at a time.
func (g *group) loadMany(ctx context.Context, keys []string, got func(key string, f found, err error)) {
	if len(keys) == 0 {
		return
	}
	if g.batch == nil {
		type one struct {
			key string
			outcome
		}
		all := make(chan one, len(keys))
		go func() {
			defer close(all)
			each(keys, func(key string) {
				f, err := g.load(ctx, key, want{})
				all <- one{key, outcome{f, err}}
			})
		}()
		for o := range all {
			got(o.key, o.found, o.err)
		}
		return
	}
	for i, r := range g.loads.DoMany(ctx, keys, g.loadTimeout, g.flyMany) {
		f, err := g.landed(ctx, keys[i], r.Value, r.Err)
		if err == nil {
			err = f.err
		}
		got(keys[i], f, err)
	}
}

// flyMany is fly for the flights of a batch.
func (g *group) flyMany(ctx context.Context, flights []*loadFlight) {
	var left []*loadFlight
	for _, f := range flights {
		if result, ok := g.here(f.Key()); ok {
			f.End(result, nil)
			continue
		}
		left = append(left, f)
	}
	left, until := g.elsewhereFirst(ctx, left)
	if len(left) == 0 {
		return
	}
	done, err := g.turn(ctx, left...)
	if err != nil {
		for _, f := range left {
			f.End(found{}, err)
		}
		return
	}
	defer done()
	keys := make([]string, len(left))
	for i, f := range left {
		keys[i] = f.Key()
	}
	began := g.cache.clock.now()
	g.counts.loads.Add(int64(len(keys)))
	g.counts.batches.Add(1)
	for i, l := range g.run(func() []loaded { return g.batch(ctx, keys) }) {
		result := g.settle(left[i], began, l)
		g.copyInPlace(left[i], result, until[keys[i]])
		left[i].End(result, nil)
	}
}

// elsewhereFirst ends those flights whose keys others have, and returns the rest, and until when copies may be kept of those
// that are another's.
func (g *group) elsewhereFirst(ctx context.Context, flights []*loadFlight) (left []*loadFlight, until map[string]time.Duration) {
	p := &g.cache.peers
	v, now := p.view.Load(), g.cache.clock.now()
	byKey := make(map[string]*loadFlight)
	var ask []string
	for _, f := range flights {
		if mine := v.owns(f.Key()); mine && (len(v.former) == 0 || p.newlyMine(v, f.Key(), now) == nil) {
			left = append(left, f)
		} else {
			byKey[f.Key()] = f
			ask = append(ask, f.Key())
		}
	}
	if len(ask) == 0 {
		return left, nil
	}
	until = make(map[string]time.Duration)
	var mu sync.Mutex // guards left and until
	each(ask, func(key string) {
		f := byKey[key]
		if _, err := p.greetedFor(ctx, key, func() {}); err != nil {
			f.End(found{}, err)
			return
		}
		if result, ok, err := g.inherit(ctx, f); ok || err != nil {
			f.End(result, err)
			return
		}
		place, err := g.inPlace(ctx, f)
		if place.ok || err != nil {
			f.End(place.found, err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		left, until[key] = append(left, f), place.until
	})
	return left, until
}

// each calls do for all keys, for no more than atOnce at the same time.
func each(keys []string, do func(key string)) {
	var wg sync.WaitGroup
	turns := make(chan struct{}, atOnce)
	for _, key := range keys {
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			do(key)
		})
	}
	wg.Wait()
}
