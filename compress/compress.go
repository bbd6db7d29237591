// Package compress makes values smaller, on the wire and in memory: its Codec goes around the one that a group has, and
// what that makes of a value is what peers send and keep. Values are compressed once, when they are loaded or set, and
// decompressed by each Get that does not share what it decodes (see [shoal.GroupOptions].Share). All processes of a fleet
// must use it for a group, or none.
//
// The algorithm is S2, an extension of Snappy, by github.com/klauspost/compress.
package compress

import (
	"errors"
	"fmt"

	"github.com/klauspost/compress/s2"

	"github.com/shoalcache/shoal"
)

// New returns a Codec that compresses the encodings of inner that are longer than from bytes, if that makes them an eighth
// smaller at least. Others take one byte more. If inner is nil, it is the Codec that groups of V have by default; New
// fails if they have none.
func New[V any](inner shoal.Codec[V], from int) (shoal.Codec[V], error) {
	if inner == nil {
		var err error
		if inner, err = shoal.CodecFor[V](); err != nil {
			return nil, fmt.Errorf("compress: %w", err)
		}
	}
	return codec[V]{inner, from}, nil
}

type codec[V any] struct {
	inner shoal.Codec[V]
	from  int
}

// The first byte says what follows.
const plain, compressed = 0, 1

// longest is how long what was compressed may have been: what claims more has come to harm, or means it.
const longest = 1 << 30

func (c codec[V]) Append(b []byte, v V) ([]byte, error) {
	at := len(b)
	b, err := c.inner.Append(append(b, plain), v)
	if err != nil {
		return b, err
	}
	if data := b[at+1:]; len(data) > c.from && len(data) <= longest {
		if small := s2.Encode(nil, data); len(small) <= len(data)-len(data)/8 {
			b[at] = compressed
			b = append(b[:at+1], small...)
		}
	}
	return b, nil
}

var errForm = errors.New("compress: the value was not encoded by this codec")

func (c codec[V]) Decode(data []byte) (v V, err error) {
	if len(data) == 0 || data[0] > compressed {
		return v, errForm
	}
	kind, data := data[0], data[1:]
	if kind == compressed {
		if n, err := s2.DecodedLen(data); err != nil || n > longest {
			return v, errForm
		}
		if data, err = s2.Decode(nil, data); err != nil {
			return v, fmt.Errorf("compress: %w", err)
		}
	}
	return c.inner.Decode(data)
}

// DecodedLen is for [shoal.GroupOptions].Share.
func (c codec[V]) DecodedLen(data []byte) int {
	if len(data) > 0 && data[0] == compressed {
		if n, err := s2.DecodedLen(data[1:]); err == nil && n <= longest {
			return n
		}
	}
	return len(data)
}
