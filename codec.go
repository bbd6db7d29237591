package shoal

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"

	"google.golang.org/protobuf/proto"
)

// A Codec turns values into bytes and back. Without one, []byte, string and [ByteView] stay as they are, and so do types
// made of the first two (a []byte is copied, for callers may write); a [proto.Message] becomes protobuf; a type with
// MarshalBinary and UnmarshalBinary what these make of it; anything else JSON (in which strings that are not UTF-8 change).
//
// Its methods may be called concurrently. If it has a method DecodedLen(data []byte) int, that says of an encoding how long it
// would be if it were not compressed, from which [GroupOptions].Share takes what a decoded value costs.
type Codec[V any] interface {
	Append(b []byte, v V) ([]byte, error) // appends the encoding of v to b
	Decode(data []byte) (V, error)        // may keep data, must not change it
}

// CodecFor returns the Codec that a [Group] of V has by default, for one that goes around it. It fails where NewGroup would
// panic: if V would not come back as it went in.
func CodecFor[V any]() (Codec[V], error) { return codecFor[V]() }

// codecFor returns the Codec that V has without the user's doing, or says why V would not come back as it went in.
func codecFor[V any]() (Codec[V], error) {
	for _, c := range []any{viewCodec{}, stringCodec{}, bytesCodec{}} {
		if c, ok := c.(Codec[V]); ok {
			return c, nil
		}
	}
	t := reflect.TypeFor[V]()
	if t.Implements(reflect.TypeFor[proto.Message]()) {
		if t.Kind() != reflect.Pointer {
			return nil, fmt.Errorf("%s does not say which message it is", t)
		}
		m := reflect.New(t.Elem()).Interface().(proto.Message).ProtoReflect()
		if m.Descriptor() == nil || reflect.TypeOf(m.New().Interface()) != t {
			return nil, fmt.Errorf("%s is not itself a generated message", t)
		}
		return protoCodec[V]{}, nil
	}
	if applies, lost := binaryMethods.of(t, true); lost != "" {
		return nil, errors.New(lost)
	} else if applies {
		return binaryCodec[V]{}, nil
	}
	ownJSON, _ := jsonMethods.of(t, true)
	ownText, _ := textMethods.of(t, true)
	if isString, isSlice := t.Kind() == reflect.String, t.Kind() == reflect.Slice; !ownJSON && !ownText &&
		(isString || isSlice && t.Elem().Kind() == reflect.Uint8) {
		return kindCodec[V]{}, nil
	}
	if lost := lostInJSON(t, true, nil); lost != "" {
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
		r.SetString(NewByteView(data).s)
	} else {
		r.SetBytes(append([]byte{}, data...))
	}
	return v, nil
}

// A protoCodec is that of a pointer to a generated message.
type protoCodec[V any] struct{}

func (protoCodec[V]) Append(b []byte, v V) ([]byte, error) {
	return proto.MarshalOptions{}.MarshalAppend(b, any(v).(proto.Message))
}

func (protoCodec[V]) Decode(data []byte) (v V, err error) {
	m := any(v).(proto.Message).ProtoReflect().New().Interface()
	if err := proto.Unmarshal(data, m); err != nil {
		return v, err
	}
	return m.(V), nil
}

// A binaryCodec is that of a V or *V with MarshalBinary and UnmarshalBinary.
type binaryCodec[V any] struct{}

func (binaryCodec[V]) Append(b []byte, v V) ([]byte, error) {
	if r := reflect.ValueOf(v); r.Kind() == reflect.Pointer && r.IsNil() {
		return b, fmt.Errorf("a nil %T has no encoding", v)
	}
	m, ok := any(&v).(encoding.BinaryMarshaler)
	if !ok {
		m = any(v).(encoding.BinaryMarshaler)
	}
	data, err := m.MarshalBinary()
	return append(b, data...), err // data may be the value's own
}

func (binaryCodec[V]) Decode(data []byte) (v V, err error) {
	data = bytes.Clone(data) // UnmarshalBinary may change what it gets
	if m, ok := any(&v).(encoding.BinaryUnmarshaler); ok {
		return v, m.UnmarshalBinary(data)
	}
	v = reflect.New(reflect.TypeFor[V]().Elem()).Interface().(V)
	return v, any(v).(encoding.BinaryUnmarshaler).UnmarshalBinary(data)
}

type jsonCodec[V any] struct{}

func (jsonCodec[V]) Append(b []byte, v V) ([]byte, error) {
	data, err := json.Marshal(&v) // by address: its marshaler may be the pointer's
	return append(b, data...), err
}

func (jsonCodec[V]) Decode(data []byte) (v V, err error) {
	data = bytes.Clone(data) // as with UnmarshalBinary
	return v, json.Unmarshal(data, &v)
}
