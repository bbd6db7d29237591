//lint:file-ignore U1000 Fields are here to be lost.

package shoal

import (
	"bytes"
	"encoding"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"net/netip"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"
	"unsafe"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Types that encode themselves.

// A celsius has methods of value receivers.
type celsius struct{ milli int32 }

func (c celsius) MarshalBinary() ([]byte, error) {
	return binary.BigEndian.AppendUint32(nil, uint32(c.milli)), nil
}

func (c *celsius) UnmarshalBinary(data []byte) error {
	if len(data) != 4 {
		return fmt.Errorf("%d bytes", len(data))
	}
	c.milli = int32(binary.BigEndian.Uint32(data))
	return nil
}

// A ledger has methods of pointer receivers, and appends.
type ledger struct{ entries []byte }

func (l *ledger) AppendBinary(b []byte) ([]byte, error) { return append(b, l.entries...), nil }
func (l *ledger) MarshalBinary() ([]byte, error)        { return l.AppendBinary(nil) }
func (l *ledger) UnmarshalBinary(data []byte) error {
	l.entries = bytes.Clone(data)
	return nil
}

// A blob hands out its own memory.
type blob struct{ data []byte }

func (b blob) MarshalBinary() ([]byte, error) { return b.data, nil }
func (b *blob) UnmarshalBinary(data []byte) error {
	b.data = bytes.Clone(data)
	return nil
}

// A flattened decodes in place, which nothing forbids.
type flattened struct{ text string }

func (p flattened) MarshalBinary() ([]byte, error) { return []byte(strings.ToUpper(p.text)), nil }
func (p *flattened) UnmarshalBinary(data []byte) error {
	for i := range data {
		data[i] |= 0x20
	}
	p.text = string(data)
	return nil
}

// A word is flattened in JSON.
type word struct{ text string }

func (w word) MarshalText() ([]byte, error) { return []byte(strings.ToUpper(w.text)), nil }
func (w *word) UnmarshalText(data []byte) error {
	for i := range data {
		data[i] |= 0x20
	}
	w.text = string(data)
	return nil
}

// A secret has JSON of value receivers, a counter of pointer receivers.
type secret struct{ text string }

func (s secret) MarshalJSON() ([]byte, error)     { return json.Marshal("secret " + s.text) }
func (s *secret) UnmarshalJSON(data []byte) error { return unquoteAfter("secret ", data, &s.text) }

type counter struct{ name string }

func (c *counter) MarshalJSON() ([]byte, error)    { return json.Marshal("counter " + c.name) }
func (c *counter) UnmarshalJSON(data []byte) error { return unquoteAfter("counter ", data, &c.name) }

func unquoteAfter(prefix string, data []byte, text *string) error {
	if err := json.Unmarshal(data, text); err != nil {
		return err
	}
	var ok bool
	if *text, ok = strings.CutPrefix(*text, prefix); !ok {
		return fmt.Errorf("no %q", prefix)
	}
	return nil
}

// A level is a number with a name.
type level int

func (l level) MarshalText() ([]byte, error) { return []byte(strings.Repeat("+", int(l))), nil }
func (l *level) UnmarshalText(data []byte) error {
	*l = level(len(data))
	return nil
}

// Types that embed those, and have their own encoding.

type event struct {
	time.Time
	Name string
}

func (e event) MarshalBinary() ([]byte, error) {
	return []byte(fmt.Sprint(e.UnixNano(), " ", e.Name)), nil
}

func (e *event) UnmarshalBinary(data []byte) error {
	var nano int64
	_, err := fmt.Sscan(string(data), &nano, &e.Name)
	e.Time = time.Unix(0, nano).UTC()
	return err
}

type visit struct {
	secret
	Page string
}

func (v visit) MarshalJSON() ([]byte, error) { return json.Marshal([]string{v.text, v.Page}) }
func (v *visit) UnmarshalJSON(data []byte) error {
	return json.Unmarshal(data, &[]*string{&v.text, &v.Page})
}

// A pair is generic: its methods in the method table are the compiler's, as promoted ones are.
type pair[T any] struct {
	secret
	Other T
}

func (p pair[T]) MarshalJSON() ([]byte, error) { return json.Marshal([]any{p.text, p.Other}) }
func (p *pair[T]) UnmarshalJSON(data []byte) error {
	return json.Unmarshal(data, &[]any{&p.text, &p.Other})
}

// A guarded and a sealed wrap one that would lose a part, and do not leave it to that one.
type guarded struct{ in promotedJSON }

func (g guarded) MarshalJSON() ([]byte, error) { return json.Marshal([]string{g.in.text, g.in.Name}) }
func (g *guarded) UnmarshalJSON(data []byte) error {
	return json.Unmarshal(data, &[]*string{&g.in.text, &g.in.Name})
}

type sealed struct{ promotedJSON }

func (s sealed) MarshalJSON() ([]byte, error) { return json.Marshal([]string{s.text, s.Name}) }
func (s *sealed) UnmarshalJSON(data []byte) error {
	return json.Unmarshal(data, &[]*string{&s.text, &s.Name})
}

// Plain types.

type (
	base   struct{ ID int }
	Named  string
	letter byte
	user   struct {
		base
		Name    string
		Tags    []string
		Scores  map[string]float64
		Friends []*user
		Raw     []byte
		Born    time.Time
		Home    *url.URL `json:"-"`
		Level   level
		Secret  *secret
		Counter counter
		Any     any
	}
	tree struct {
		Left, Right *tree
		Leaf        int
	}
)

// same reports whether a and b are the same value; times are if they are the same instant, and messages as such.
func same(a, b any) bool {
	switch a := a.(type) {
	case proto.Message:
		return proto.Equal(a, b.(proto.Message))
	case time.Time:
		return a.Equal(b.(time.Time))
	}
	return reflect.DeepEqual(a, b)
}

// roundTrip returns a test that values come back as they went in, wherever they are appended to, and however often the
// same bytes are read.
func roundTrip[V any](values ...V) func(t *testing.T) {
	return func(t *testing.T) {
		c, err := codecFor[V]()
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range values {
			data, err := c.Append(nil, v)
			if err != nil {
				t.Fatalf("%v: %v", v, err)
			}
			for _, room := range []int{0, 1000} {
				prefix := append(make([]byte, 0, 6+room), "prefix"...)
				longer, err := c.Append(prefix, v)
				if tail, ok := bytes.CutPrefix(longer, []byte("prefix")); !ok || !bytes.Equal(tail, data) || err != nil {
					t.Errorf("appended to %q: %q, %v; alone: %q", prefix, longer, err, data)
				}
			}
			before := bytes.Clone(data)
			for range 2 {
				if got, err := c.Decode(data); err != nil || !same(v, got) {
					t.Errorf("%#v comes back as %#v, %v; encoded: %q", v, got, err, data)
				}
			}
			if !bytes.Equal(data, before) {
				t.Errorf("Decode has changed the data from %q to %q", before, data)
			}
		}
	}
}

func TestValuesComeBackAsTheyWentIn(t *testing.T) {
	home, err := url.Parse("https://ada@example.com:8080/a%20b?c=d#e")
	if err != nil {
		t.Fatal(err)
	}
	when := time.Date(2024, 2, 29, 23, 59, 59, 123456789, time.FixedZone("", 3600))
	one := 1
	for name, test := range map[string]func(t *testing.T){
		"ByteView":        roundTrip(NewByteView("bytes"), ByteView{}),
		"string":          roundTrip("text", "", "\xff\x00"),
		"bytes":           roundTrip([]byte("bytes"), []byte{}, []byte{0xff, 0}),
		"NamedString":     roundTrip[Named]("text", "", "\xff"),
		"NamedBytes":      roundTrip(namedBytes("bytes"), namedBytes{}),
		"BytesOfNamed":    roundTrip([]letter("bytes"), []letter{}),
		"Message":         roundTrip(wrapperspb.String("text"), wrapperspb.String("")),
		"MessageNumbers":  roundTrip(durationpb.New(time.Hour+1), durationpb.New(0)),
		"MessageNested":   roundTrip(structpb.NewStringValue("text"), structpb.NewNumberValue(1.5)),
		"Time":            roundTrip(when, time.Time{}),
		"URLPointer":      roundTrip(home),
		"URL":             roundTrip(*home, url.URL{}),
		"Addr":            roundTrip(netip.MustParseAddr("::1%eth0"), netip.Addr{}),
		"BinaryByValue":   roundTrip(celsius{-1}, celsius{math.MaxInt32}),
		"BinaryByPointer": roundTrip(&celsius{-1}),
		"Appender":        roundTrip(ledger{[]byte("abc")}),
		"AppenderPointer": roundTrip(&ledger{[]byte("abc")}),
		"BinaryInPlace":   roundTrip(flattened{"abc"}),
		"TextInPlace":     roundTrip(word{"abc"}),
		"TextInPlaceDeep": roundTrip([]word{{"abc"}, {"def"}}),
		"BigInt":          roundTrip(*big.NewInt(1 << 40)),
		"BigIntPointer":   roundTrip(big.NewInt(1 << 40)),
		"BigIntField":     roundTrip(struct{ N big.Int }{*big.NewInt(7)}),
		"BigIntSlice":     roundTrip([]big.Int{*big.NewInt(7)}),
		"BigIntMap":       roundTrip(map[string]*big.Int{"a": big.NewInt(7)}),
		"JSONByValue":     roundTrip(secret{"text"}),
		"JSONByPointer":   roundTrip(counter{"text"}),
		"JSONPointer":     roundTrip(&secret{"text"}, &secret{}, nil),
		"Text":            roundTrip(level(3), level(0)),
		"TextKey":         roundTrip(map[level]string{3: "abc"}),
		"NamedKey":        roundTrip(map[Named]int{"a": 1}),
		"NumberKey":       roundTrip(map[int8]int{-1: 1}, map[int8]int{}, nil),
		"RawMessage":      roundTrip(json.RawMessage(`{"a":[1,2]}`)),
		"int":             roundTrip(0, -1, math.MaxInt, math.MinInt),
		"uint64":          roundTrip[uint64](0, math.MaxUint64),
		"float64":         roundTrip(0, -1.5, math.MaxFloat64, math.SmallestNonzeroFloat64, 0.1),
		"float32":         roundTrip[float32](0, 0.1, math.MaxFloat32),
		"bool":            roundTrip(true, false),
		"Pointer":         roundTrip(&one, nil),
		"Array":           roundTrip([3]int{1, 2, 3}),
		"ByteArray":       roundTrip([4]byte{1, 2, 3, 4}),
		"Slice":           roundTrip([]string{"a", ""}, []string{}, nil),
		"Strings":         roundTrip([]string{"<a & b>", "\u2028 \" \\ ☃"}),
		"Slices":          roundTrip([][]int{{1}, {}, nil}),
		"Empty":           roundTrip(struct{}{}),
		"Any":             roundTrip[any](nil, "text", 1.5, true, []any{"a", nil}, map[string]any{"a": 1.5}),
		"Tree":            roundTrip(tree{Left: &tree{Leaf: 1, Right: &tree{Leaf: 2}}}),
		"Struct": roundTrip(user{}, user{
			base: base{7}, Name: "Ada", Tags: []string{"a"}, Scores: map[string]float64{"b": 0.5}, Friends: []*user{{Name: "Bob"}, nil},
			Raw: []byte{0, 255}, Born: when.UTC(), Level: 2, Secret: &secret{"x"}, Counter: counter{"y"}, Any: "z",
		}),
		"OwnBinaryEmbedsBinary":   roundTrip(event{time.Unix(7, 7).UTC(), "start"}),
		"OwnBinaryEmbedsPointer":  roundTrip(&event{time.Unix(7, 7).UTC(), "start"}),
		"OwnJSONEmbedsJSON":       roundTrip(visit{secret{"text"}, "/page"}),
		"OwnJSONEmbedsDeep":       roundTrip(map[string][]visit{"a": {{secret{"text"}, "/page"}}}),
		"OwnJSONGeneric":          roundTrip(pair[int]{secret{"text"}, 7}),
		"OwnJSONGenericPointer":   roundTrip(&pair[string]{secret{"text"}, "other"}),
		"OwnJSONOfOneField":       roundTrip(guarded{promotedJSON{secret{"text"}, "name"}}),
		"OwnJSONOfOneEmbedded":    roundTrip(sealed{promotedJSON{secret{"text"}, "name"}}),
		"PromotedByAStructOfNone": roundTrip(struct{ secret }{secret{"text"}}),
		"PromotedTimeAlone":       roundTrip(struct{ time.Time }{when.UTC()}),
	} {
		t.Run(name, test)
	}
}

// Types of which some codec would lose a part, or could not make a new one.

type (
	hidden struct{ n int }
	half   struct {
		Name string
		age  int
	}
	inner          struct{ Deep half }
	promotedBinary struct {
		celsius
		Name string
	}
	promotedPointer struct {
		*celsius
		Name string
	}
	promotedJSON struct {
		secret
		Name string
	}
	promotedText struct {
		level
		Name string
	}
	promotedTime struct {
		Name string
		time.Time
	}
	promotedDeep  struct{ Visits []promotedJSON }
	promotedTwice struct{ promotedJSON }
	nilEmbedded   struct{ *url.URL }
	nilJSON       struct{ *counter }
	jsonBoth      interface {
		json.Marshaler
		json.Unmarshaler
	}
	NilInterface struct{ jsonBoth }
	messageAlone struct{ durationpb.Duration }
	number       int
	embedsNumber struct {
		number
		Name string
	}
	embedsPointer struct {
		*base
		Name string
	}
	embedsInterface struct {
		fmt.Stringer
		Name string
	}
	embedsMessage struct {
		*durationpb.Duration
		Name string
	}
	shadows struct {
		base
		ID string
	}
	otherBase struct{ ID string }
	collides  struct {
		base
		otherBase
	}
	EmbedsItself struct {
		*EmbedsItself
		Name string
	}
	forest struct {
		N     big.Int
		Trees map[string]forest
	}
	ambiguous struct {
		secret
		counter
	}
	wraps struct{ View ByteView }
)

// A mixed writes all of itself and reads a part: UnmarshalJSON is that of secret.
type mixed struct {
	secret
	Name string
}

func (m mixed) MarshalJSON() ([]byte, error) { return json.Marshal("secret " + m.text + m.Name) }

// A shout can be written but not read.
type shout int

func (s shout) MarshalText() ([]byte, error) { return []byte(strings.Repeat("!", int(s))), nil }

type report struct{ Title string }

func (r report) MarshalJSON() ([]byte, error) { return json.Marshal(r.Title) }

// A label is a key only by pointer.
type label struct{ text string }

func (l *label) MarshalText() ([]byte, error)    { return []byte(l.text), nil }
func (l *label) UnmarshalText(data []byte) error { l.text = string(data); return nil }

// refused returns a test that there is no codec for V, and that the reason names each of parts.
func refused[V any](parts ...string) func(t *testing.T) {
	return func(t *testing.T) {
		c, err := codecFor[V]()
		if err == nil {
			t.Fatalf("it is encoded by %T", c)
		}
		for _, part := range parts {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q does not name %q", err, part)
			}
		}
	}
}

func TestTypeThatWouldLosePartsIsRefusedByName(t *testing.T) {
	for name, test := range map[string]func(t *testing.T){
		"NoExportedField":             refused[hidden]("field n", "hidden"),
		"NoExportedFieldPointer":      refused[*hidden]("field n", "hidden"),
		"UnexportedField":             refused[half]("field age", "half"),
		"UnexportedFieldDeep":         refused[inner]("field age", "half"),
		"UnexportedFieldSlice":        refused[[]half]("field age"),
		"UnexportedFieldArray":        refused[[2]half]("field age"),
		"UnexportedFieldMap":          refused[map[string]half]("field age"),
		"UnexportedFieldPointer":      refused[[]**half]("field age"),
		"UnexportedInEmbedded":        refused[struct{ half }]("field age", "half"),
		"ByteViewWithin":              refused[wraps]("ByteView"),
		"PromotedMarshalBinary":       refused[promotedBinary]("promotedBinary", "MarshalBinary", "celsius"),
		"PromotedByPointer":           refused[promotedPointer]("promotedPointer", "MarshalBinary", "celsius"),
		"PromotedToPointer":           refused[*promotedBinary]("promotedBinary", "MarshalBinary", "celsius"),
		"PromotedMarshalJSON":         refused[promotedJSON]("promotedJSON", "MarshalJSON", "secret"),
		"PromotedMarshalText":         refused[promotedText]("promotedText", "MarshalText", "level"),
		"PromotedTime":                refused[promotedTime]("promotedTime", "MarshalBinary", "Time"),
		"PromotedDeep":                refused[promotedDeep]("promotedJSON", "MarshalJSON", "secret"),
		"PromotedTwice":               refused[promotedTwice]("MarshalJSON", "secret"),
		"PromotedUnmarshal":           refused[mixed]("mixed", "UnmarshalJSON", "secret"),
		"EmbeddedNilBinary":           refused[nilEmbedded]("URL"),
		"EmbeddedNilJSON":             refused[nilJSON]("counter"),
		"OnlyMarshalText":             refused[shout]("shout", "UnmarshalText"),
		"OnlyMarshalTextKey":          refused[map[shout]int]("shout"),
		"OnlyMarshalJSON":             refused[report]("report", "UnmarshalJSON"),
		"OnlyMarshalJSONDeep":         refused[[]report]("report", "UnmarshalJSON"),
		"PointerMethodsInMap":         refused[map[string]counter]("counter"),
		"BigIntInMap":                 refused[map[string]big.Int]("big.Int"),
		"BigIntDeepInMap":             refused[map[string]struct{ N [1]big.Int }]("big.Int"),
		"PointerMethodsAsKey":         refused[map[label]int]("label"),
		"StructAsKey":                 refused[map[base]int]("base"),
		"FloatAsKey":                  refused[map[float64]int]("float64"),
		"Shadowed":                    refused[shadows]("ID", "shadows"),
		"SameNameInJSON":              refused[collides]("ID", "otherBase"),
		"AmbiguousPromotion":          refused[ambiguous]("secret"),
		"EmbedsItself":                refused[EmbedsItself]("EmbedsItself"),
		"PointerMethodsInMapOfItself": refused[forest]("big.Int"),
		"EmbeddedNumber":              refused[embedsNumber]("number", "embedsNumber"),
		"EmbeddedNilStruct":           refused[embedsPointer]("base", "embedsPointer"),
		"EmbeddedInterface":           refused[embedsInterface]("Stringer"),
		"chan":                        refused[chan int]("chan int"),
		"func":                        refused[func()]("func()"),
		"funcDeep":                    refused[struct{ F []func() }]("func()"),
		"complex":                     refused[complex128]("complex128"),
		"unsafePointer":               refused[unsafe.Pointer]("unsafe.Pointer"),
		"InterfaceWithMethods":        refused[io.Reader]("io.Reader"),
		"error":                       refused[error]("error"),
		"errorDeep":                   refused[struct{ Err error }]("error"),
		"MarshalerInterface":          refused[encoding.BinaryMarshaler]("encoding.BinaryMarshaler"),
		"AnyMessage":                  refused[proto.Message]("proto", "Message"),
		"MessageByValue":              refused[durationpb.Duration]("durationpb.Duration"),
		"MessageDeep":                 refused[[]*durationpb.Duration]("durationpb.Duration"),
		"EmbedsMessage":               refused[embedsMessage]("embedsMessage"),
		"DynamicMessage":              refused[*dynamicpb.Message]("dynamicpb.Message"),
		"MessageAlone":                refused[*messageAlone]("messageAlone"),
		"EmbeddedNilInterface":        refused[NilInterface]("jsonBoth"),
		"PointerEmbedsMessage":        refused[*embedsMessage]("embedsMessage"),
	} {
		t.Run(name, test)
	}
}

func TestFieldSaidToBeLeftOutIsNoLoss(t *testing.T) {
	type cached struct {
		Name string
		_    int
		Lock chan bool `json:"-"`
	}
	roundTrip(cached{Name: "a"})(t)
}

func TestReadOnlyValuesAreReadWithoutACopy(t *testing.T) {
	data := []byte("some bytes")
	view, err := viewCodec{}.Decode(data)
	if err != nil || unsafe.StringData(view.s) != &data[0] {
		t.Error("a ByteView is a copy")
	}
	text, err := stringCodec{}.Decode(data)
	if err != nil || unsafe.StringData(text) != &data[0] {
		t.Error("a string is a copy")
	}
	if n := testing.AllocsPerRun(100, func() {
		viewCodec{}.Decode(data)
		stringCodec{}.Decode(data)
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestCodecsOfViewAndStringDoNotAllocateThroughTheInterface(t *testing.T) {
	views, _ := codecFor[ByteView]()
	texts, _ := codecFor[string]()
	data := []byte("some bytes")
	if n := testing.AllocsPerRun(100, func() {
		views.Decode(data)
		texts.Decode(data)
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// written returns a test that what a caller does to a decoded value does not reach the bytes it came from.
func written[V any](v V, write func(V)) func(t *testing.T) {
	return func(t *testing.T) {
		c, err := codecFor[V]()
		if err != nil {
			t.Fatal(err)
		}
		data, err := c.Append(nil, v)
		if err != nil {
			t.Fatal(err)
		}
		data = append(data, "spare"...)[:len(data)]
		first, err := c.Decode(data)
		if err != nil {
			t.Fatal(err)
		}
		write(first)
		if second, err := c.Decode(data); err != nil || !same(second, v) {
			t.Errorf("%v comes back as %v, %v", v, second, err)
		}
		if spare := data[:len(data)+5]; string(spare[len(data):]) != "spare" {
			t.Errorf("the bytes behind the data are now %q", spare[len(data):])
		}
	}
}

func TestDecodedValueIsTheCallersToWrite(t *testing.T) {
	for name, test := range map[string]func(t *testing.T){
		"bytes":      written([]byte("bytes"), func(b []byte) { clear(append(b, "tail"...)) }),
		"NamedBytes": written(namedBytes("bytes"), func(b namedBytes) { clear(append(b, "tail"...)) }),
		"Message":    written(wrapperspb.Bytes([]byte("bytes")), func(m *wrapperspb.BytesValue) { clear(m.Value) }),
		"Binary":     written(&ledger{[]byte("bytes")}, func(l *ledger) { clear(l.entries) }),
		"RawMessage": written(json.RawMessage(`"abc"`), func(m json.RawMessage) { clear(m) }),
		"Struct":     written(struct{ B []byte }{[]byte("abc")}, func(s struct{ B []byte }) { clear(s.B) }),
	} {
		t.Run(name, test)
	}
}

// encoded returns a test that what a Getter does to its value later does not reach what was made of it.
func encoded[V any](v, same V, write func(V)) func(t *testing.T) {
	return func(t *testing.T) {
		c, err := codecFor[V]()
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range [][]byte{nil, make([]byte, 0, 100)} {
			got, err := c.Append(b, v)
			if err != nil {
				t.Fatal(err)
			}
			before := bytes.Clone(got)
			write(v)
			if !bytes.Equal(got, before) {
				t.Errorf("%q has become %q", before, got)
			}
			v = same
		}
	}
}

func TestEncodingIsNoPartOfTheValue(t *testing.T) {
	for name, test := range map[string]func(t *testing.T){
		"bytes":      encoded([]byte("bytes"), []byte("bytes"), func(b []byte) { clear(b) }),
		"NamedBytes": encoded(namedBytes("bytes"), namedBytes("bytes"), func(b namedBytes) { clear(b) }),
		"Message":    encoded(wrapperspb.Bytes([]byte("a")), wrapperspb.Bytes([]byte("a")), func(m *wrapperspb.BytesValue) { clear(m.Value) }),
		"Binary":     encoded(blob{[]byte("bytes")}, blob{[]byte("bytes")}, func(b blob) { clear(b.data) }),
		"Appender":   encoded(&ledger{[]byte("bytes")}, &ledger{[]byte("bytes")}, func(l *ledger) { clear(l.entries) }),
		"RawMessage": encoded(json.RawMessage(`"abc"`), json.RawMessage(`"abc"`), func(m json.RawMessage) { clear(m) }),
	} {
		t.Run(name, test)
	}
}

func TestNilPointerIsAnErrorOrComesBack(t *testing.T) {
	for name, test := range map[string]func() (any, error){
		"URL":     passNil[url.URL],
		"celsius": passNil[celsius],
		"ledger":  passNil[ledger],
		"secret":  passNil[secret],
		"user":    passNil[user],
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if p := recover(); p != nil {
					t.Errorf("panic: %v", p)
				}
			}()
			if got, err := test(); err == nil && !reflect.ValueOf(got).IsNil() {
				t.Errorf("nil comes back as %v", got)
			}
		})
	}
}

func passNil[T any]() (any, error) {
	c, err := codecFor[*T]()
	if err != nil {
		return nil, err
	}
	data, err := c.Append(nil, nil)
	if err != nil {
		return nil, err
	}
	return c.Decode(data)
}

type failing struct{ Name string }

var errFailing = errors.New("failing")

func (failing) MarshalBinary() ([]byte, error) { return []byte("half"), errFailing }
func (*failing) UnmarshalBinary([]byte) error  { return errFailing }

func TestErrorOfAMarshalerIsPassedOn(t *testing.T) {
	c, err := codecFor[failing]()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Append(nil, failing{}); err != errFailing {
		t.Errorf("Append: %v", err)
	}
	if _, err := c.Append([]byte("prefix"), failing{}); err != errFailing {
		t.Errorf("Append to a prefix: %v", err)
	}
	if _, err := c.Decode(nil); err != errFailing {
		t.Errorf("Decode: %v", err)
	}
}

func TestValueThatJSONCannotWriteIsAnError(t *testing.T) {
	c, err := codecFor[float64]()
	if err != nil {
		t.Fatal(err)
	}
	if data, err := c.Append(nil, math.NaN()); err == nil {
		t.Errorf("NaN is %q", data)
	}
}

func TestCodecsMayBeUsedConcurrently(t *testing.T) {
	c, err := codecFor[base]()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan bool)
	for i := range 4 {
		go func() {
			defer func() { done <- true }()
			for range 50 {
				data, err := c.Append(nil, base{i})
				if err != nil {
					t.Error(err)
				}
				if got, err := c.Decode(data); err != nil || got.ID != i {
					t.Errorf("%v, %v", got, err)
				}
			}
		}()
	}
	for range 4 {
		<-done
	}
}

// decoder returns a function that decodes data, and what it decodes to again and again.
func decoder[V any](t testing.TB) func(t *testing.T, data []byte) {
	c, err := codecFor[V]()
	if err != nil {
		t.Fatal(err)
	}
	return func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		v, err := c.Decode(data)
		if !bytes.Equal(data, before) {
			t.Errorf("Decode of a %T has changed %q to %q", v, before, data)
		}
		if err != nil {
			return
		}
		again, err := c.Append(nil, v)
		if err != nil {
			return // some decode what they do not encode: URLs, for one
		}
		w, err := c.Decode(again)
		if err != nil {
			t.Errorf("%q decodes to %v; that is encoded as %q, which decodes to %v", data, v, again, err)
		}
		if third, err := c.Append(nil, w); err != nil || len(third) != len(again) {
			t.Errorf("%q decodes to %v; that is encoded as %q, and that as %q, %v", data, v, again, third, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	decoders := []func(*testing.T, []byte){
		decoder[ByteView](f), decoder[string](f), decoder[[]byte](f), decoder[Named](f), decoder[namedBytes](f),
		decoder[*wrapperspb.StringValue](f), decoder[*structpb.Value](f), decoder[time.Time](f), decoder[*url.URL](f),
		decoder[netip.Addr](f), decoder[celsius](f), decoder[*ledger](f), decoder[flattened](f), decoder[secret](f), decoder[level](f),
		decoder[user](f), decoder[*user](f), decoder[map[string][]int](f), decoder[float64](f), decoder[any](f), decoder[tree](f),
	}
	for _, s := range []string{"", "null", `{"Name":"a","Friends":[{}]}`, `"secret x"`, "\n\x01a", "http://a/b", "{", "\xff\xff\xff\xff", "\x01\x00\x00\x00\x0e\xbbK7\xe5\x07\x5b\xcd\x15\xff\xff"} {
		f.Add([]byte(s))
	}
	raw, _ := base64.StdEncoding.DecodeString("CgNhYmM=")
	f.Add(raw)
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, decode := range decoders {
			decode(t, data)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	bench := func(name string, decode func(data []byte), data []byte) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				decode(data)
			}
		})
	}
	kilo := bytes.Repeat([]byte("k"), 1024)
	bench("ByteView", func(data []byte) { viewCodec{}.Decode(data) }, kilo)
	bench("bytes", func(data []byte) { bytesCodec{}.Decode(data) }, kilo)
	users, _ := codecFor[user]()
	ada, _ := users.Append(nil, user{Name: "Ada", Tags: []string{"a", "b"}})
	bench("JSON", func(data []byte) { users.Decode(data) }, ada)
}
