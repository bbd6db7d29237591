package shoalpb

// hot.go: the messages that a get of a value takes, written and read by hand, with the same result as by the generated
// code (which FuzzHotMessages checks), but without reflection and without allocating.

import (
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// AppendRequest appends r to b, after its length.
func AppendRequest(b []byte, r *Request) ([]byte, error) {
	if op, ok := r.Op.(*Request_FetchMany); ok && op.FetchMany != nil && r.Sender == nil && len(r.unknownFields) == 0 && len(op.FetchMany.unknownFields) == 0 {
		return appendFetchMany(b, r, op.FetchMany), nil
	}
	op, ok := r.Op.(*Request_Fetch)
	if !ok || op.Fetch == nil || r.Sender != nil || len(r.unknownFields) > 0 || len(op.Fetch.unknownFields) > 0 {
		return appendMessage(b, r)
	}
	f := op.Fetch
	fetch := sizeBytes(f.Key) + sizeVarint(uint64(f.Callers)) + 2*count(f.Lease) + 9*count(f.Have != 0) +
		sizeVarint(uint64(f.MaxAge)) + 2*count(f.Fresh) + 2*count(f.CachedOnly) + sizeVarint(uint64(f.Over)) + 2*count(f.StandIn)
	b = protowire.AppendVarint(b, uint64(sizeBytes(r.Group)+sizeGeneration(r.Generation)+1+protowire.SizeBytes(fetch)+
		sizeVarint(uint64(r.Id))+sizeVarint(uint64(r.Within))))
	b = appendBytes(b, 2, r.Group)
	b = appendGeneration(b, 3, r.Generation)
	b = protowire.AppendTag(b, 5, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(fetch))
	b = appendBytes(b, 1, f.Key)
	b = appendVarint(b, 2, uint64(f.Callers))
	b = appendVarint(b, 3, uint64(count(f.Lease)))
	b = appendFixed64(b, 4, f.Have)
	b = appendVarint(b, 5, uint64(f.MaxAge))
	b = appendVarint(b, 6, uint64(count(f.Fresh)))
	b = appendVarint(b, 7, uint64(count(f.CachedOnly)))
	b = appendVarint(b, 8, uint64(f.Over))
	b = appendVarint(b, 9, uint64(count(f.StandIn)))
	b = appendVarint(b, 10, uint64(r.Id))
	return appendVarint(b, 11, uint64(r.Within)), nil
}

func appendFetchMany(b []byte, r *Request, f *FetchMany) []byte {
	many := 2 * count(f.StandIn)
	for _, key := range f.Keys {
		many += 1 + protowire.SizeBytes(len(key))
	}
	b = protowire.AppendVarint(b, uint64(sizeBytes(r.Group)+sizeGeneration(r.Generation)+1+protowire.SizeBytes(many)+
		sizeVarint(uint64(r.Id))+sizeVarint(uint64(r.Within))))
	b = appendBytes(b, 2, r.Group)
	b = appendGeneration(b, 3, r.Generation)
	b = protowire.AppendTag(b, 6, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(many))
	for _, key := range f.Keys {
		b = protowire.AppendBytes(protowire.AppendTag(b, 1, protowire.BytesType), key)
	}
	b = appendVarint(b, 2, uint64(count(f.StandIn)))
	b = appendVarint(b, 10, uint64(r.Id))
	return appendVarint(b, 11, uint64(r.Within))
}

// ItemsHead is how much room ItemsReply needs before the items.
const ItemsHead = 64

// AppendItem appends to b, which is ItemsHead bytes and Items of which nothing else is known, the Item of that index with v.
func AppendItem(b []byte, index uint32, v *Value) []byte {
	size := sizeValue(v)
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(sizeVarint(uint64(index))+1+protowire.SizeBytes(size)))
	b = appendVarint(b, 1, uint64(index))
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	return appendValue(b, v)
}

// ItemsReply returns, after its length, the Reply with the Items in b, which AppendItem has made. It writes what comes
// before them into the room that is there.
func ItemsReply(b []byte, id uint32, g *Generation) []byte {
	var room [ItemsHead]byte
	items := len(b) - ItemsHead
	head := protowire.AppendVarint(room[:0], uint64(sizeGeneration(g)+sizeVarint(uint64(id))+1+protowire.SizeBytes(items)))
	head = appendGeneration(head, 2, g)
	head = appendVarint(head, 15, uint64(id))
	head = protowire.AppendVarint(protowire.AppendTag(head, 11, protowire.BytesType), uint64(items))
	reply := b[ItemsHead-len(head):]
	copy(reply, head)
	return reply
}

// AppendReply appends r to b, after its length.
func AppendReply(b []byte, r *Reply) ([]byte, error) {
	answer, ok := r.Answer.(*Reply_Value)
	if !ok || answer.Value == nil || r.Sender != nil || len(r.unknownFields) > 0 || len(answer.Value.unknownFields) > 0 {
		return appendMessage(b, r)
	}
	v := answer.Value
	value := sizeValue(v)
	b = protowire.AppendVarint(b, uint64(sizeGeneration(r.Generation)+1+protowire.SizeBytes(value)+sizeVarint(uint64(r.Id))))
	b = appendGeneration(b, 2, r.Generation)
	b = protowire.AppendTag(b, 5, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(value))
	b = appendValue(b, v)
	return appendVarint(b, 15, uint64(r.Id)), nil
}

func sizeValue(v *Value) int {
	return sizeBytes(v.Value) + sizeVarint(uint64(v.Ttl)) + 2*count(v.Loaded) + 9*count(v.Version != 0) +
		sizeVarint(uint64(v.Age)) + 2*count(v.Stale) + sizeVarint(uint64(v.Lease))
}

func appendValue(b []byte, v *Value) []byte {
	b = appendBytes(b, 1, v.Value)
	b = appendVarint(b, 2, uint64(v.Ttl))
	b = appendVarint(b, 3, uint64(count(v.Loaded)))
	b = appendFixed64(b, 4, v.Version)
	b = appendVarint(b, 5, uint64(v.Age))
	b = appendVarint(b, 6, uint64(count(v.Stale)))
	return appendVarint(b, 7, uint64(v.Lease))
}

func appendMessage(b []byte, m proto.Message) ([]byte, error) {
	b = protowire.AppendVarint(b, uint64(proto.Size(m)))
	return proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, m)
}

func appendGeneration(b []byte, num protowire.Number, g *Generation) []byte {
	if g == nil {
		return b
	}
	b = protowire.AppendTag(b, num, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(sizeVarint(g.Number)+9*count(g.By != 0)))
	b = appendVarint(b, 1, g.Number)
	return appendFixed64(b, 2, g.By)
}

func sizeGeneration(g *Generation) int {
	if g == nil {
		return 0
	}
	return 1 + protowire.SizeBytes(sizeVarint(g.Number)+9*count(g.By != 0))
}

// Fields below 16, whose tags are one byte, and which are left out when they are zero.

func count(v bool) int {
	if v {
		return 1
	}
	return 0
}

func sizeBytes(v []byte) int {
	if len(v) == 0 {
		return 0
	}
	return 1 + protowire.SizeBytes(len(v))
}

func sizeVarint(v uint64) int {
	if v == 0 {
		return 0
	}
	return 1 + protowire.SizeVarint(v)
}

func appendBytes(b []byte, num protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), v)
}

func appendVarint(b []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

func appendFixed64(b []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendFixed64(protowire.AppendTag(b, num, protowire.Fixed64Type), v)
}

// A RequestReader reads Requests, one at a time.
type RequestReader struct {
	request    Request
	generation Generation
	fetch      Fetch
	op         Request_Fetch
	many       FetchMany
	manyOp     Request_FetchMany
}

// Read returns the Request in b. What it returns is good until the next Read, and its bytes are those of b.
func (r *RequestReader) Read(b []byte) (*Request, error) {
	q, f := &r.request, &r.fetch
	q.Sender, q.Group, q.Generation, q.Op, q.Id, q.Within = nil, nil, nil, nil, 0, 0
	known := fields(b, func(num protowire.Number, v uint64, bytes []byte) bool {
		switch {
		case num == 2<<3|2:
			q.Group = bytes
		case num == 3<<3|2 && q.Generation == nil:
			q.Generation = &r.generation
			return readGeneration(q.Generation, bytes)
		case num == 5<<3|2 && q.Op == nil:
			r.op.Fetch, q.Op = f, &r.op
			f.Key, f.Callers, f.Lease, f.Have, f.MaxAge, f.Fresh, f.CachedOnly, f.Over, f.StandIn = nil, 0, false, 0, 0, false, false, 0, false
			return fields(bytes, func(num protowire.Number, v uint64, bytes []byte) bool {
				switch num {
				case 1<<3 | 2:
					f.Key = bytes
				case 2 << 3:
					f.Callers = uint32(v)
				case 3 << 3:
					f.Lease = v != 0
				case 4<<3 | 1:
					f.Have = v
				case 5 << 3:
					f.MaxAge = int64(v)
				case 6 << 3:
					f.Fresh = v != 0
				case 7 << 3:
					f.CachedOnly = v != 0
				case 8 << 3:
					f.Over = int64(v)
				case 9 << 3:
					f.StandIn = v != 0
				default:
					return false
				}
				return true
			})
		case num == 6<<3|2 && q.Op == nil:
			r.manyOp.FetchMany, q.Op = &r.many, &r.manyOp
			r.many.Keys, r.many.StandIn = r.many.Keys[:0], false
			return fields(bytes, func(num protowire.Number, v uint64, bytes []byte) bool {
				switch num {
				case 1<<3 | 2:
					r.many.Keys = append(r.many.Keys, bytes)
				case 2 << 3:
					r.many.StandIn = v != 0
				default:
					return false
				}
				return true
			})
		case num == 10<<3:
			q.Id = uint32(v)
		case num == 11<<3:
			q.Within = int64(v)
		default:
			return false
		}
		return true
	})
	if known {
		return q, nil
	}
	q = new(Request)
	return q, proto.Unmarshal(b, q)
}

// A ReplyReader reads Replies, one at a time.
type ReplyReader struct {
	reply      Reply
	generation Generation
	value      Value
	answer     Reply_Value
	items      Items
	many       Reply_Items
	all        []*item // that items has had
}

// An item is an Item with its Value.
type item struct {
	Item
	answer Item_Value
	value  Value
}

// Read returns the Reply in b. What it returns is good until the next Read, and its bytes are those of b.
func (r *ReplyReader) Read(b []byte) (*Reply, error) {
	p, w := &r.reply, &r.value
	p.Sender, p.Generation, p.Answer, p.Id = nil, nil, nil, 0
	known := fields(b, func(num protowire.Number, v uint64, bytes []byte) bool {
		switch {
		case num == 2<<3|2 && p.Generation == nil:
			p.Generation = &r.generation
			return readGeneration(p.Generation, bytes)
		case num == 5<<3|2 && p.Answer == nil:
			r.answer.Value, p.Answer = w, &r.answer
			return readValue(w, bytes)
		case num == 11<<3|2 && p.Answer == nil:
			r.many.Items, p.Answer = &r.items, &r.many
			r.items.Items = r.items.Items[:0]
			return fields(bytes, func(num protowire.Number, v uint64, bytes []byte) bool {
				return num == 1<<3|2 && r.readItem(bytes)
			})
		case num == 15<<3:
			p.Id = uint32(v)
		default:
			return false
		}
		return true
	})
	if known {
		return p, nil
	}
	p = new(Reply)
	return p, proto.Unmarshal(b, p)
}

// An Envelope is what whoever passes Replies on must know of one.
type Envelope struct {
	ID      uint32
	Sender  []byte // the message in it; nil if there is none
	Loading bool   // another Reply will follow
}

// ReadEnvelope returns the envelope of the Reply in b, which may turn out not to be one when all of it is read.
func ReadEnvelope(b []byte) (e Envelope, ok bool) {
	for len(b) > 0 {
		num, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return e, false
		}
		b = b[n:]
		size := protowire.ConsumeFieldValue(num, kind, b)
		if size < 0 {
			return e, false
		}
		switch {
		case num == 1 && kind == protowire.BytesType:
			e.Sender, _ = protowire.ConsumeBytes(b)
		case num == 4 && kind == protowire.BytesType:
			e.Loading = true
		case num == 15 && kind == protowire.VarintType:
			id, _ := protowire.ConsumeVarint(b)
			e.ID = uint32(id)
		}
		b = b[size:]
	}
	return e, true
}

// readItem reads an Item that has a Value.
func (r *ReplyReader) readItem(b []byte) bool {
	n := len(r.items.Items)
	if n == len(r.all) {
		r.all = append(r.all, new(item))
	}
	it := r.all[n]
	it.Index, it.Answer = 0, nil
	r.items.Items = append(r.items.Items, &it.Item)
	return fields(b, func(num protowire.Number, v uint64, bytes []byte) bool {
		switch {
		case num == 1<<3:
			it.Index = uint32(v)
			return true
		case num == 2<<3|2 && it.Answer == nil:
			it.answer.Value, it.Answer = &it.value, &it.answer
			return readValue(&it.value, bytes)
		}
		return false
	})
}

func readValue(w *Value, b []byte) bool {
	w.Value, w.Ttl, w.Loaded, w.Version, w.Age, w.Stale, w.Lease = nil, 0, false, 0, 0, false, 0
	return fields(b, func(num protowire.Number, v uint64, bytes []byte) bool {
		switch num {
		case 1<<3 | 2:
			w.Value = bytes
		case 2 << 3:
			w.Ttl = int64(v)
		case 3 << 3:
			w.Loaded = v != 0
		case 4<<3 | 1:
			w.Version = v
		case 5 << 3:
			w.Age = int64(v)
		case 6 << 3:
			w.Stale = v != 0
		case 7 << 3:
			w.Lease = int64(v)
		default:
			return false
		}
		return true
	})
}

func readGeneration(g *Generation, b []byte) bool {
	g.Number, g.By = 0, 0
	return fields(b, func(num protowire.Number, v uint64, _ []byte) bool {
		switch num {
		case 1 << 3:
			g.Number = v
		case 2<<3 | 1:
			g.By = v
		default:
			return false
		}
		return true
	})
}

// fields calls each for the fields of a message: with its tag, number and type in one, and its value. It reports whether
// b is such a message, and each has known all of them.
func fields(b []byte, each func(tag protowire.Number, v uint64, bytes []byte) bool) bool {
	for len(b) > 0 {
		tag, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return false
		}
		b = b[n:]
		var v uint64
		var bytes []byte
		switch tag & 7 {
		case uint64(protowire.VarintType):
			v, n = protowire.ConsumeVarint(b)
		case uint64(protowire.Fixed64Type):
			v, n = protowire.ConsumeFixed64(b)
		case uint64(protowire.BytesType):
			bytes, n = protowire.ConsumeBytes(b)
		default:
			return false
		}
		if n < 0 || tag > 1<<10 || !each(protowire.Number(tag), v, bytes) {
			return false
		}
		b = b[n:]
	}
	return true
}
