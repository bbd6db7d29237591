package shoalpb

import (
	"math/rand/v2"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// What is written by hand is read by the generated code, and the other way round, as the same message; and whatever bytes
// there are, both read the same or both nothing.
func FuzzHotMessages(f *testing.F) {
	f.Add(uint64(1), []byte(nil))
	for _, m := range []proto.Message{randomRequest(rand.New(rand.NewPCG(1, 1))), randomReply(rand.New(rand.NewPCG(1, 1)))} {
		b, _ := proto.Marshal(m)
		f.Add(uint64(2), b)
	}
	f.Fuzz(func(t *testing.T, seed uint64, data []byte) {
		rng := rand.New(rand.NewPCG(seed, 2))
		var requests RequestReader
		var replies ReplyReader
		for range 3 { // a reader forgets what it has read before
			request, reply := randomRequest(rng), randomReply(rng)
			byHand, err := AppendRequest(nil, request)
			same(t, request, new(Request), byHand, err)
			generated, _ := proto.Marshal(request)
			got, err := requests.Read(generated)
			if err != nil || !proto.Equal(got, request) {
				t.Fatalf("read %v, %v, want %v", got, err, request)
			}
			byHand, err = AppendReply(nil, reply)
			same(t, reply, new(Reply), byHand, err)
			generated, _ = proto.Marshal(reply)
			items := make([]byte, ItemsHead)
			var all Items
			for i := range rng.IntN(5) {
				v := randomValue(rng)
				items = AppendItem(items, uint32(i), v)
				all.Items = append(all.Items, &Item{Index: uint32(i), Answer: &Item_Value{Value: v}})
			}
			wanted := &Reply{Id: reply.Id, Generation: reply.Generation, Answer: &Reply_Items{Items: &all}}
			same(t, wanted, new(Reply), ItemsReply(items, reply.Id, reply.Generation), nil)
			if e, ok := ReadEnvelope(generated); !ok || e.ID != reply.Id || (e.Sender != nil) != (reply.Sender != nil) || e.Loading {
				t.Fatalf("envelope %+v of %v", e, reply)
			}
			answer, err := replies.Read(generated)
			if err != nil || !proto.Equal(answer, reply) {
				t.Fatalf("read %v, %v, want %v", answer, err, reply)
			}

			var want Request
			wantErr := proto.Unmarshal(data, &want)
			got, err = requests.Read(data)
			if (err == nil) != (wantErr == nil) || err == nil && !proto.Equal(got, &want) {
				t.Fatalf("%x: read %v, %v, want %v, %v", data, got, err, &want, wantErr)
			}
			var wantReply Reply
			wantErr = proto.Unmarshal(data, &wantReply)
			answer, err = replies.Read(data)
			if (err == nil) != (wantErr == nil) || err == nil && !proto.Equal(answer, &wantReply) {
				t.Fatalf("%x: read %v, %v, want %v, %v", data, answer, err, &wantReply, wantErr)
			}
		}
	})
}

func same(t *testing.T, want, got proto.Message, b []byte, err error) {
	t.Helper()
	if size, n := protowire.ConsumeVarint(b); err == nil && n > 0 && size == uint64(len(b)-n) {
		err = proto.Unmarshal(b[n:], got)
	}
	if err != nil || !proto.Equal(got, want) {
		t.Fatalf("wrote %v, %v, want %v", got, err, want)
	}
}

// some returns v or, often, a zero.
func some[T any](rng *rand.Rand, v T) (r T) {
	if rng.IntN(2) == 0 {
		return v
	}
	return r
}

func randomBytes(rng *rand.Rand) []byte {
	b := make([]byte, rng.IntN(3)*rng.IntN(200))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func randomGeneration(rng *rand.Rand) *Generation {
	return some(rng, &Generation{Number: some(rng, rng.Uint64()), By: some(rng, rng.Uint64())})
}

func randomRequest(rng *rand.Rand) *Request {
	r := &Request{Group: randomBytes(rng), Generation: randomGeneration(rng), Id: some(rng, rng.Uint32()), Within: some(rng, rng.Int64()-1<<62)}
	r.Sender = some(rng, &Sender{Id: randomBytes(rng)})
	switch rng.IntN(8) {
	case 0:
		r.Op = &Request_Purge{Purge: &Purge{}}
	case 1:
	case 2, 3:
		many := new(FetchMany)
		for range rng.IntN(5) {
			many.Keys = append(many.Keys, randomBytes(rng))
		}
		r.Op = &Request_FetchMany{FetchMany: many}
	default:
		r.Op = &Request_Fetch{Fetch: &Fetch{
			Key: randomBytes(rng), Callers: some(rng, rng.Uint32()), Lease: some(rng, true), Have: some(rng, rng.Uint64()),
			MaxAge: some(rng, rng.Int64()-1<<62), Fresh: some(rng, true), CachedOnly: some(rng, true), Over: some(rng, rng.Int64()), StandIn: some(rng, true),
		}}
	}
	return r
}

func randomReply(rng *rand.Rand) *Reply {
	r := &Reply{Generation: randomGeneration(rng), Id: some(rng, rng.Uint32())}
	r.Sender = some(rng, &Sender{Id: randomBytes(rng)})
	switch rng.IntN(8) {
	case 0:
		r.Answer = &Reply_NotFound{NotFound: &NotFound{Age: 3}}
	case 1:
	case 2, 3:
		items := new(Items)
		for range rng.IntN(5) {
			it := &Item{Index: some(rng, rng.Uint32()), Answer: &Item_Value{Value: randomValue(rng)}}
			if rng.IntN(20) == 0 {
				it.Answer = &Item_NotFound{NotFound: &NotFound{Age: 7}}
			}
			items.Items = append(items.Items, it)
		}
		r.Answer = &Reply_Items{Items: items}
	default:
		r.Answer = &Reply_Value{Value: randomValue(rng)}
	}
	return r
}

func randomValue(rng *rand.Rand) *Value {
	return &Value{
		Value: randomBytes(rng), Ttl: some(rng, rng.Int64()-1<<62), Loaded: some(rng, true), Version: some(rng, rng.Uint64()),
		Age: some(rng, rng.Int64()-1<<62), Stale: some(rng, true), Lease: some(rng, rng.Int64()),
	}
}

func BenchmarkHotMessages(b *testing.B) {
	request := &Request{Group: []byte("users"), Id: 70_000, Op: &Request_Fetch{Fetch: &Fetch{Key: []byte("user:1234567890"), Callers: 1, Lease: true}}}
	reply := &Reply{Id: 70_000, Answer: &Reply_Value{Value: &Value{Value: make([]byte, 1024), Version: 1 << 60, Age: 1e12}}}
	b.Run("by hand", func(b *testing.B) {
		b.ReportAllocs()
		var requests RequestReader
		var replies ReplyReader
		var buf []byte
		for b.Loop() {
			buf, _ = AppendRequest(buf[:0], request)
			requests.Read(buf[1:])
			buf, _ = AppendReply(buf[:0], reply)
			ReadEnvelope(buf[2:])
			replies.Read(buf[2:])
		}
	})
	b.Run("generated", func(b *testing.B) {
		b.ReportAllocs()
		var buf []byte
		for b.Loop() {
			buf, _ = proto.MarshalOptions{}.MarshalAppend(buf[:0], request)
			proto.Unmarshal(buf, new(Request))
			buf, _ = proto.MarshalOptions{}.MarshalAppend(buf[:0], reply)
			proto.Unmarshal(buf, new(Reply))
		}
	})
}
