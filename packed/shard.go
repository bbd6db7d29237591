package packed

import (
	"slices"
	"sync"
	"sync/atomic"
)

// A shard has an index and two queues of its own. There are several only so that writers do not wait for each other.
type shard struct {
	cache *Cache
	index atomic.Pointer[index]
	table atomic.Pointer[[]atomic.Pointer[chunk]] // the chunks by the low bits of their ids
	_     [64]byte                                // what follows is written by every put

	mu       sync.Mutex // guards what follows, and every change of what is above
	nextID   uint32
	passed   uint32 // ids, since the last look at endings
	chunks   int
	small    queue   // what has come lately
	main     queue   // what has been asked for again
	room     float64 // what share of all the small queue may take
	ghosts   ghosts
	endings  endings
	used     atomic.Int64 // of the budget
	entries  int64
	evicted  int64
	expired  int64
	promoted int // bytes that the current eviction has carried over
	_        [64]byte
}

func (sh *shard) use(n int64) {
	sh.used.Add(n)
	sh.cache.used.Add(n)
}

// reset makes the shard empty.
func (sh *shard) reset() {
	sh.use(-sh.used.Load())
	idx, table := newIndex(1), make([]atomic.Pointer[chunk], 8)
	sh.index.Store(idx)
	sh.table.Store(&table)
	sh.small, sh.main, sh.room, sh.chunks, sh.entries = queue{}, queue{}, firstRoom, 0, 0
	sh.ghosts, sh.endings = ghosts{}, endings{}
	sh.use(idx.bytes() + int64(len(table))*8)
}

// find returns the slot of key, what was in it, and the chunk it named. It takes no lock: what a slot names is not
// changed any more, and no other chunk bears the name for a long time after.
func (sh *shard) find(h uint64, key string) (at *atomic.Uint64, slot uint64, ch *chunk) {
	for {
		idx := sh.index.Load()
		if at, slot, ch = sh.findIn(idx, h, key); at != nil || idx == sh.index.Load() {
			return at, slot, ch
		}
	}
}

func (sh *shard) findIn(idx *index, h uint64, key string) (at *atomic.Uint64, slot uint64, ch *chunk) {
	tag := h >> tagShift
	for n, b := 0, h&idx.mask; n < len(idx.buckets); n, b = n+1, (b+1)&idx.mask {
		bucket := &idx.buckets[b]
		for i := range bucket.slots {
			at := &bucket.slots[i]
			for s := at.Load(); s != 0 && s>>tagShift == tag; {
				if ch := sh.chunk(chunkOf(s)); ch != nil {
					if ch.is(offsetOf(s), key) {
						return at, s, ch
					}
					break
				}
				again := at.Load() // the chunk has gone, and the slot before it
				if again == s {
					break
				}
				s = again
			}
		}
		if bucket.passed.Load() == 0 {
			break
		}
	}
	return nil, 0, nil
}

// chunk returns the chunk of that id, or nil if it has gone.
func (sh *shard) chunk(id uint32) *chunk {
	table := *sh.table.Load()
	if ch := table[int(id)&(len(table)-1)].Load(); ch != nil && ch.id == id {
		return ch
	}
	return nil
}

func (sh *shard) put(h uint64, key string, value []byte, decide func(Meta, bool) (Meta, bool)) bool {
	at, s, old := sh.find(h, key)
	var was Meta
	held := at != nil
	if held {
		was = old.entry(offsetOf(s)).Meta
		held = was.Ends == 0 || was.Ends > sh.cache.now()
	}
	if !held {
		was = Meta{}
	}
	m, put := decide(was, held)
	if !put {
		return false
	}
	size := sizeOf(key, value, &m)
	if int64(size) > sh.cache.max.Load()/Largest {
		if at != nil {
			sh.drop(h, at, s, old)
		}
		return false
	}
	q, freq := &sh.small, uint64(0)
	if at != nil {
		q, freq = old.queue, s&freqMask
	} else if fromMain, ok := sh.ghosts.take(h); ok {
		q = &sh.main
		sh.learn(fromMain, size)
	}
	ch, offset := sh.append(q, size)
	encode(ch.buf[offset:offset+size], key, value, &m)
	ch.live += size
	slot := slotOf(h, ch.id, offset, freq)
	if at != nil {
		at.Store(slot)
		sh.dead(old, old.size(offsetOf(s)))
	} else {
		sh.insert(h, slot)
		sh.entries++
	}
	if m.Ends != 0 {
		sh.note(m.Ends, m.Born, slot)
	}
	return true
}

// drop takes an entry out of the index, and makes its bytes dead.
func (sh *shard) drop(h uint64, at *atomic.Uint64, s uint64, ch *chunk) {
	at.Store(0)
	sh.index.Load().left(h, at)
	sh.entries--
	sh.dead(ch, ch.size(offsetOf(s)))
}

// dead takes note that size bytes of ch are of no use any more, and lets go of ch if all are.
func (sh *shard) dead(ch *chunk, size int) {
	ch.live -= size
	if ch.live == 0 && ch != ch.queue.newest {
		sh.release(ch)
	}
}

func (sh *shard) insert(h uint64, slot uint64) {
	idx := sh.index.Load()
	if sh.entries+1 > idx.most() {
		idx = sh.reindex(2 * len(idx.buckets))
	}
	idx.insert(h, slot)
}

// reindex replaces the index by one of n buckets. Readers go on with the old one.
func (sh *shard) reindex(n int) *index {
	old, idx := sh.index.Load(), newIndex(n)
	for i := range old.buckets {
		for j := range old.buckets[i].slots {
			if s := old.buckets[i].slots[j].Load(); s != 0 {
				idx.insert(sh.cache.hash(sh.chunk(chunkOf(s)).key(offsetOf(s))), s)
			}
		}
	}
	sh.index.Store(idx)
	sh.use(idx.bytes() - old.bytes())
	return idx
}

// append makes room for size bytes at the end of q.
func (sh *shard) append(q *queue, size int) (ch *chunk, offset int) {
	if q.newest == nil || len(q.newest.buf)-q.newest.tail < size || q.newest.tail > maxOffset {
		if old := q.newest; old != nil && old.live == 0 {
			q.newest = nil
			sh.release(old)
		}
		sh.newChunk(q, size)
	}
	ch = q.newest
	offset = ch.tail
	ch.tail += size
	return ch, offset
}

// newChunk adds to q a chunk with room for size bytes at least.
func (sh *shard) newChunk(q *queue, size int) {
	share := min(sh.cache.max.Load()/int64(len(sh.cache.shards)), 2*sh.used.Load())
	usual := 256 // small beside the shard, so that evicting one is evicting little; but for more than one entry if that can be
	for usual < maxChunk && (int64(usual) < share/128 || usual < 2*size && int64(usual) < share/32) {
		usual *= 2
	}
	buf := slices.Grow([]byte(nil), max(size, usual)) // as the allocator gives it
	ch := &chunk{buf: buf[:cap(buf)], queue: q}
	if size > usual/2 {
		ch.buf = buf[:size] // nobody else's: what is left of it would have been somebody's anyway
	}
	table := *sh.table.Load()
	if sh.chunks >= len(table)*3/4 {
		table = sh.retable(2 * len(table))
	}
	for {
		sh.nextID = (sh.nextID + 1) & maxID
		sh.passed++
		if at := &table[int(sh.nextID)&(len(table)-1)]; sh.nextID != 0 && at.Load() == nil {
			ch.id = sh.nextID
			at.Store(ch)
			break
		}
	}
	sh.chunks++
	q.push(ch)
	sh.use(ch.cost())
	if sh.passed > maxID/4 {
		sh.retainEndings() // or they could name a chunk that has the id of another
		sh.passed = 0
	}
}

// release lets go of a chunk that nothing in the index names.
func (sh *shard) release(ch *chunk) {
	table := *sh.table.Load()
	table[int(ch.id)&(len(table)-1)].Store(nil)
	ch.queue.remove(ch)
	sh.chunks--
	sh.use(-ch.cost())
	if ahead := (ch.id - sh.nextID) & maxID; ahead <= maxID/2 { // who is just reading the id must not find another chunk
		sh.passed += ahead
		sh.nextID = ch.id
	}
}

// The small queue has a tenth of a shard in the beginning. (The figures here are the best that bench/hitratio has found, over
// traces and sizes.)
const (
	firstRoom           = 0.10
	leastRoom, mostRoom = 0.01, 0.80
	roomToBeUsedTwice   = 0.40
	lessonsOfAnEntry    = 2
)

// learn moves the bound between the queues when an entry of size bytes comes back that would still be there if the queue it
// left had had more room. As in ARC (Megiddo and Modha, FAST 2003), such a word counts for more the fewer have left that
// queue: what matters is how likely they are to come back.
func (sh *shard) learn(fromMain bool, size int) {
	small, main := float64(sh.ghosts.small), float64(sh.ghosts.main)
	lesson := lessonsOfAnEntry * float64(size) / float64(sh.small.bytes+sh.main.bytes+1) / (small + main + 1)
	if fromMain {
		sh.room -= lesson * small
	} else {
		sh.room += lesson * main
	}
	sh.room = min(max(sh.room, leastRoom), mostRoom)
}

// evict frees memory, and reports false if there is nothing to free: what has ended goes first.
func (sh *shard) evict() bool {
	if sh.expire() || sh.trim() || sh.compact() {
		return true
	}
	sh.promoted = 0
	for {
		if sh.main.oldest == nil || sh.small.chunks > 1 && float64(sh.small.bytes) > sh.room*float64(sh.small.bytes+sh.main.bytes) {
			if sh.small.oldest == nil {
				return false
			}
			before := sh.used.Load()
			sh.workOff(&sh.small)
			if sh.used.Load() < before {
				return true
			}
			continue
		}
		before := sh.used.Load()
		sh.workOff(&sh.main)
		if sh.used.Load() < before {
			return true
		}
	}
}

// workOff empties the oldest chunk of q: what has been used stays, at the end of the main queue.
func (sh *shard) workOff(q *queue) {
	ch := q.oldest
	if ch == q.newest {
		q.newest = nil // nothing is added to it any more
	}
	now := sh.cache.now()
	all := sh.main.bytes + sh.small.bytes
	stays := int64(sh.promoted) < all/4
	again := uint64(1) // how often an entry of the small queue must have been used to stay: the longer it was there, the more
	if sh.room >= roomToBeUsedTwice {
		again = 2
	}
	for offset := 0; offset < ch.tail; {
		size := ch.size(offset)
		key := ch.key(offset)
		h := sh.cache.hash(key)
		if at, s, in := sh.find(h, key); at != nil && in == ch && offsetOf(s) == offset {
			e := ch.entry(offset)
			freq := s & freqMask
			switch {
			case e.Ends != 0 && e.Ends <= now:
				sh.expired++
				sh.out(h, at, ch, size)
			case q == &sh.small && freq >= again && stays:
				sh.carry(&sh.main, h, at, ch, offset, size, 0)
			case q == &sh.main && freq >= 1 && stays:
				sh.carry(&sh.main, h, at, ch, offset, size, freq-1)
			default:
				sh.ghosts.add(h, q == &sh.main, sh)
				sh.evicted++
				sh.out(h, at, ch, size)
			}
		}
		offset += size
	}
	sh.release(ch)
}

// out takes an entry of a chunk that is being worked off out of the index.
func (sh *shard) out(h uint64, at *atomic.Uint64, ch *chunk, size int) {
	at.Store(0)
	sh.index.Load().left(h, at)
	sh.entries--
	ch.live -= size
}

// carry copies an entry to the end of q.
func (sh *shard) carry(q *queue, h uint64, at *atomic.Uint64, from *chunk, offset, size int, freq uint64) {
	ch, to := sh.append(q, size)
	copy(ch.buf[to:to+size], from.buf[offset:offset+size])
	ch.live += size
	slot := slotOf(h, ch.id, to, freq)
	at.Store(slot)
	from.live -= size
	sh.promoted += size
	if e := ch.entry(to); e.Ends != 0 {
		sh.note(e.Ends, e.Born, slot)
	}
}

// compact frees a chunk of which more than half is dead, if there is one: what lives moves to the end of its queue.
func (sh *shard) compact() bool {
	for _, q := range [...]*queue{&sh.main, &sh.small} {
		for ch := q.oldest; ch != nil && ch != q.newest; ch = ch.next {
			if ch.live*2 > ch.tail {
				continue
			}
			for offset := 0; offset < ch.tail && ch.live > 0; {
				size, key := ch.size(offset), ch.key(offset)
				h := sh.cache.hash(key)
				if at, s, in := sh.find(h, key); at != nil && in == ch && offsetOf(s) == offset {
					sh.carry(q, h, at, ch, offset, size, s&freqMask)
				}
				offset += size
			}
			sh.release(ch)
			return true
		}
	}
	return false
}

// expire drops what has ended, without looking for it, and reports whether that has freed anything.
func (sh *shard) expire() bool {
	before, now, noted := sh.used.Load(), sh.cache.now(), sh.endings.bytes
	due := sh.endings.due(now)
	sh.use(sh.endings.bytes - noted)
	for _, slot := range due {
		if h, at, s, ch := sh.entryOf(slot); at != nil {
			sh.expired++
			sh.drop(h, at, s, ch)
		}
	}
	return sh.used.Load() < before
}

// entryOf finds the entry that a slot named when it was made, if it is still there.
func (sh *shard) entryOf(slot uint64) (h uint64, at *atomic.Uint64, s uint64, ch *chunk) {
	named, offset := sh.chunk(chunkOf(slot)), offsetOf(slot)
	if named == nil {
		return 0, nil, 0, nil
	}
	key := named.key(offset)
	h = sh.cache.hash(key)
	if at, s, ch = sh.find(h, key); ch != named || offsetOf(s) != offset {
		return 0, nil, 0, nil
	}
	return h, at, s, ch
}

// note takes note of when the entry of a slot ends.
func (sh *shard) note(ends, born int64, slot uint64) {
	before := sh.endings.bytes
	sh.endings.add(ends, born, slot)
	sh.use(sh.endings.bytes - before)
	sh.trimEndings()
}

// trimEndings forgets when entries end that have gone since, where they are a third.
func (sh *shard) trimEndings() {
	if 2*int64(sh.endings.slots) > 3*sh.entries+2 {
		sh.retainEndings()
	}
}

// retainEndings forgets when entries end that have gone since.
func (sh *shard) retainEndings() {
	before := sh.endings.bytes
	sh.endings.retain(func(slot uint64) bool {
		_, at, _, _ := sh.entryOf(slot)
		return at != nil
	})
	sh.use(sh.endings.bytes - before)
}

// trim makes tables smaller that have been larger than they need be for long, and reports whether that has freed anything.
func (sh *shard) trim() bool {
	before := sh.used.Load()
	sh.trimEndings()
	if idx := sh.index.Load(); len(idx.buckets) > 1 && sh.entries < idx.most()/4 {
		sh.reindex(len(idx.buckets) / 2)
	}
	if n := len(sh.ghosts.places); n > fewestGhosts && int64(n) > 8*sh.entries {
		sh.use(-int64(n) * 4)
		sh.ghosts = ghosts{}
	}
	if table := *sh.table.Load(); len(table) > 8 && sh.chunks < len(table)/8 {
		sh.retable(len(table) / 2)
	}
	return sh.used.Load() < before
}

// retable replaces the table of chunks by one of n places, or of more if two chunks would have the same.
func (sh *shard) retable(n int) []atomic.Pointer[chunk] {
	old := *sh.table.Load()
	for ; n != len(old); n *= 2 {
		table, ok := make([]atomic.Pointer[chunk], n), true
		for i := range old {
			if ch := old[i].Load(); ch != nil {
				at := &table[int(ch.id)&(n-1)]
				ok = ok && at.Load() == nil
				at.Store(ch)
			}
		}
		if ok {
			sh.use(int64(n-len(old)) * 8)
			sh.table.Store(&table)
			return table
		}
	}
	return old // it cannot be made smaller
}

func (sh *shard) keys() []string {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	keys := make([]string, 0, sh.entries)
	idx := sh.index.Load()
	for i := range idx.buckets {
		for j := range idx.buckets[i].slots {
			if s := idx.buckets[i].slots[j].Load(); s != 0 {
				keys = append(keys, sh.chunk(chunkOf(s)).key(offsetOf(s)))
			}
		}
	}
	return keys
}
