package shoal

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"runtime"
	"slices"

	"google.golang.org/protobuf/proto"
)

// A Codec turns values into bytes and back. Without one, []byte, string and [ByteView] stay as they are, and so do types
// made of the first two (a []byte is copied, for callers may write); a [proto.Message] becomes protobuf; a type with
// MarshalBinary and UnmarshalBinary what these make of it; anything else JSON.
//
// Its methods may be called concurrently.
type Codec[V any] interface {
	Append(b []byte, v V) ([]byte, error) // appends the encoding of v to b
	Decode(data []byte) (V, error)        // may keep data, must not change it
}

// codecFor returns the Codec that V has without the user's doing, or says why V would not come back as it went in.
func codecFor[V any]() (Codec[V], error) {
	t := reflect.TypeFor[V]()
	for _, c := range []any{viewCodec{}, stringCodec{}, bytesCodec{}} {
		if c, ok := c.(Codec[V]); ok {
			return c, nil
		}
	}
	if t.Implements(reflect.TypeFor[proto.Message]()) {
		if t.Kind() != reflect.Pointer {
			return nil, fmt.Errorf("%s does not say which message it is", t)
		}
		return protoCodec[V]{}, nil
	}
	for _, f := range textForms {
		if !f.has(t) {
			continue
		}
		if from := promoted(t, f.marshal); from != "" {
			return nil, fmt.Errorf("%s is encoded by the %s of its embedded %s, which leaves out the rest", t, f.marshal, from)
		}
		if f.codec {
			return binaryCodec[V]{}, nil
		}
		return jsonCodec[V]{}, nil
	}
	if t.Kind() == reflect.String || t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8 {
		return kindCodec[V]{}, nil
	}
	if lost := lostInJSON(t, nil); lost != "" {
		return nil, fmt.Errorf("JSON does not keep %s", lost)
	}
	return jsonCodec[V]{}, nil
}

type viewCodec struct{}

func (viewCodec) Append(b []byte, v ByteView) ([]byte, error) { return append(b, v.s...), nil }
func (viewCodec) Decode(data []byte) (ByteView, error)        { return NewByteView(data), nil }

type stringCodec struct{}

func (stringCodec) Append(b []byte, v string) ([]byte, error) { return append(b, v...), nil }
func (stringCodec) Decode(data []byte) (string, error)        { return NewByteView(data).s, nil }

type bytesCodec struct{}

func (bytesCodec) Append(b []byte, v []byte) ([]byte, error) { return append(b, v...), nil }
func (bytesCodec) Decode(data []byte) ([]byte, error)        { return append([]byte{}, data...), nil }

// A kindCodec is that of a named type of string or []byte.
type kindCodec[V any] struct{}

func (kindCodec[V]) Append(b []byte, v V) ([]byte, error) {
	r := reflect.ValueOf(v)
	if r.Kind() == reflect.String {
		return append(b, r.String()...), nil
	}
	return append(b, r.Bytes()...), nil
}

func (kindCodec[V]) Decode(data []byte) (v V, err error) {
	r := reflect.ValueOf(&v).Elem()
	if r.Kind() == reflect.String {
		r.SetString(string(data))
	} else {
		r.SetBytes(bytes.Clone(data))
	}
	return v, nil
}

// A protoCodec is that of a pointer to a generated message.
type protoCodec[V any] struct{}

func (protoCodec[V]) Append(b []byte, v V) ([]byte, error) {
	return proto.MarshalOptions{}.MarshalAppend(b, any(v).(proto.Message))
}

func (protoCodec[V]) Decode(data []byte) (v V, err error) {
	m := any(v).(proto.Message).ProtoReflect().Type().New().Interface()
	if err := proto.Unmarshal(data, m); err != nil {
		return v, err
	}
	return m.(V), nil
}

// A binaryCodec is that of a V or *V with MarshalBinary and UnmarshalBinary.
type binaryCodec[V any] struct{}

func (binaryCodec[V]) Append(b []byte, v V) ([]byte, error) {
	switch m := any(&v).(type) {
	case encoding.BinaryAppender:
		return m.AppendBinary(b)
	case encoding.BinaryMarshaler:
		return appendMarshaled(b, m)
	}
	if m, ok := any(v).(encoding.BinaryAppender); ok {
		return m.AppendBinary(b)
	}
	return appendMarshaled(b, any(v).(encoding.BinaryMarshaler))
}

func appendMarshaled(b []byte, m encoding.BinaryMarshaler) ([]byte, error) {
	data, err := m.MarshalBinary()
	if len(b) == 0 {
		return data, err
	}
	return append(b, data...), err
}

func (binaryCodec[V]) Decode(data []byte) (v V, err error) {
	// The contract of UnmarshalBinary lets it change data, that of Decode does not.
	data = bytes.Clone(data)
	if m, ok := any(&v).(encoding.BinaryUnmarshaler); ok {
		return v, m.UnmarshalBinary(data)
	}
	v = reflect.New(reflect.TypeFor[V]().Elem()).Interface().(V)
	return v, any(v).(encoding.BinaryUnmarshaler).UnmarshalBinary(data)
}

type jsonCodec[V any] struct{}

func (jsonCodec[V]) Append(b []byte, v V) ([]byte, error) {
	data, err := json.Marshal(v)
	if len(b) == 0 {
		return data, err
	}
	return append(b, data...), err
}

func (jsonCodec[V]) Decode(data []byte) (v V, err error) {
	return v, json.Unmarshal(data, &v)
}

// A textForm is a pair of methods by which a type encodes itself: with codec, as a group's values; without, in JSON.
type textForm struct {
	marshal, unmarshal string
	marshaler, back    reflect.Type
	codec              bool
}

var textForms = []textForm{
	{"MarshalBinary", "UnmarshalBinary", reflect.TypeFor[encoding.BinaryMarshaler](), reflect.TypeFor[encoding.BinaryUnmarshaler](), true},
	{"MarshalJSON", "UnmarshalJSON", reflect.TypeFor[json.Marshaler](), reflect.TypeFor[json.Unmarshaler](), false},
	{"MarshalText", "UnmarshalText", reflect.TypeFor[encoding.TextMarshaler](), reflect.TypeFor[encoding.TextUnmarshaler](), false},
}

// has reports whether values of t encode themselves and can be made again.
func (f textForm) has(t reflect.Type) bool {
	either := func(i reflect.Type) bool { return t.Implements(i) || reflect.PointerTo(t).Implements(i) }
	return t.Kind() != reflect.Interface && either(f.marshaler) && either(f.back)
}

// promoted returns the name of the embedded field whose method stands for t's, or "" if the method is t's own.
func promoted(t reflect.Type, method string) string {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t.NumField() == 1 {
		return "" // a struct of nothing else loses nothing
	}
	m, ok := t.MethodByName(method)
	if !ok {
		m, ok = reflect.PointerTo(t).MethodByName(method)
	}
	if !ok {
		return ""
	}
	// The compiler writes a wrapper for a promoted method, which has no line in any file.
	if file, _ := runtime.FuncForPC(m.Func.Pointer()).FileLine(m.Func.Pointer()); file != "<autogenerated>" {
		return ""
	}
	for field := range t.Fields() {
		if _, ok := reflect.PointerTo(field.Type).MethodByName(method); field.Anonymous && ok {
			return field.Name
		}
		if _, ok := field.Type.MethodByName(method); field.Anonymous && ok {
			return field.Name
		}
	}
	return ""
}

// lostInJSON describes the first part of t that encoding/json drops in silence or cannot make again, or returns "".
// Inside are the types that t is part of.
func lostInJSON(t reflect.Type, inside []reflect.Type) string {
	if slices.Contains(inside, t) {
		return ""
	}
	for _, f := range textForms[1:] {
		if f.has(t) {
			if from := promoted(t, f.marshal); from != "" {
				return fmt.Sprintf("all of %s, which is encoded by the %s of its embedded %s", t, f.marshal, from)
			}
			return ""
		}
	}
	inside = append(inside, t)
	switch t.Kind() {
	case reflect.Chan, reflect.Func, reflect.UnsafePointer, reflect.Complex64, reflect.Complex128, reflect.Uintptr:
		return t.String()
	case reflect.Interface:
		if t.NumMethod() > 0 {
			return fmt.Sprintf("what %s stands for", t)
		}
	case reflect.Pointer, reflect.Slice, reflect.Array:
		return lostInJSON(t.Elem(), inside)
	case reflect.Map:
		if k := t.Key().Kind(); k != reflect.String && (k < reflect.Int || k > reflect.Uint64) && !textForms[2].has(t.Key()) {
			return fmt.Sprintf("%s as a key", t.Key())
		}
		return lostInJSON(t.Elem(), inside)
	case reflect.Struct:
		for field := range t.Fields() {
			if field.Tag.Get("json") == "-" || field.Name == "_" {
				continue // said to be left out
			}
			if !field.IsExported() && !field.Anonymous {
				return fmt.Sprintf("the field %s of %s, which is not exported", field.Name, t)
			}
			if lost := lostInJSON(field.Type, inside); lost != "" {
				return lost
			}
		}
	}
	return ""
}
