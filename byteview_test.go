//lint:file-ignore SA4017 Methods are called here for their panics.

package shoal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unsafe"
)

type (
	namedString string
	namedBytes  []byte
)

// views are views of the same bytes, however they were made.
func views(data string) map[string]ByteView {
	spacious := append(make([]byte, 0, len(data)+100), data...)
	return map[string]ByteView{
		"string":      NewByteView(data),
		"namedString": NewByteView(namedString(data)),
		"bytes":       NewByteView([]byte(data)),
		"namedBytes":  NewByteView(namedBytes(data)),
		"spacious":    NewByteView(spacious),
		"slice":       NewByteView("<"+data+">").Slice(1, 1+len(data)),
	}
}

var viewData = []string{"", "a", "abc", "\x00\xff", "naïve ☃", strings.Repeat("long ", 1000)}

func TestViewReadsAsItsBytesDo(t *testing.T) {
	for _, s := range viewData {
		for name, v := range views(s) {
			what := fmt.Sprintf("%s of %.10q", name, s)
			if v.Len() != len(s) || v.String() != s || string(v.ByteSlice()) != s || string(v.bytes()) != s {
				t.Errorf("%s: %d bytes, %.10q, %.10q, %.10q", what, v.Len(), v.String(), v.ByteSlice(), v.bytes())
			}
			for i := range len(s) {
				if v.At(i) != s[i] {
					t.Errorf("%s: At(%d) is %d", what, i, v.At(i))
				}
				if i > 20 {
					break
				}
			}
			for from := 0; from <= len(s) && from < 8; from++ {
				if got := v.SliceFrom(from).String(); got != s[from:] {
					t.Errorf("%s: SliceFrom(%d) is %.10q", what, from, got)
				}
				for to := from; to <= len(s) && to < 8; to++ {
					if got := v.Slice(from, to).String(); got != s[from:to] {
						t.Errorf("%s: Slice(%d, %d) is %q", what, from, to, got)
					}
				}
			}
			for _, room := range []int{0, 1, 3, len(s), len(s) + 5} {
				dest, plain := make([]byte, room), make([]byte, room)
				if got, want := v.Copy(dest), copy(plain, s); got != want || !bytes.Equal(dest, plain) {
					t.Errorf("%s: Copy into %d is %d", what, room, got)
				}
			}
			if err := iotest.TestReader(v.Reader(), []byte(s)); err != nil {
				t.Errorf("%s: Reader: %v", what, err)
			}
			var b bytes.Buffer
			if n, err := v.WriteTo(&b); n != int64(len(s)) || err != nil || b.String() != s {
				t.Errorf("%s: WriteTo is %d, %v, %.10q", what, n, err, b.String())
			}
			if got := fmt.Sprint(v); got != s {
				t.Errorf("%s: prints as %.10q", what, got)
			}
		}
	}
}

func TestViewIsReadAtAnyOffset(t *testing.T) {
	const s = "0123456789"
	for _, v := range views(s) {
		for off := int64(-1); off < 13; off++ {
			for _, room := range []int{0, 1, 5, 20} {
				got, want := make([]byte, room), make([]byte, room)
				n, err := v.ReadAt(got, off)
				m, plain := strings.NewReader(s).ReadAt(want, off)
				if n != m || (err == nil) != (plain == nil) || (err == io.EOF) != (plain == io.EOF) || !bytes.Equal(got, want) {
					t.Errorf("ReadAt %d into %d: %d, %v; want %d, %v", off, room, n, err, m, plain)
				}
			}
		}
	}
}

func TestViewsAreEqualIfTheirBytesAre(t *testing.T) {
	for _, a := range viewData {
		for name, v := range views(a) {
			for _, b := range viewData {
				for _, w := range views(b) {
					if v.Equal(w) != (a == b) || v.EqualString(b) != (a == b) || v.EqualBytes([]byte(b)) != (a == b) {
						t.Errorf("%s of %.10q and %.10q: %v, %v, %v", name, a, b, v.Equal(w), v.EqualString(b), v.EqualBytes([]byte(b)))
					}
				}
			}
		}
	}
	if !(ByteView{}).EqualBytes(nil) {
		t.Error("the zero value is not equal to nil")
	}
}

func TestZeroViewIsEmpty(t *testing.T) {
	for name, v := range map[string]ByteView{
		"zero":        {},
		"nil":         NewByteView([]byte(nil)),
		"namedNil":    NewByteView(namedBytes(nil)),
		"empty":       NewByteView([]byte{}),
		"emptyString": NewByteView(""),
		"emptyTail":   NewByteView(make([]byte, 0, 100)),
	} {
		if v.Len() != 0 || v.String() != "" || len(v.ByteSlice()) != 0 || len(v.bytes()) != 0 || !v.Equal(ByteView{}) {
			t.Errorf("%s: %d bytes, %q", name, v.Len(), v.String())
		}
		if n, err := v.Reader().Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("%s: reads %d, %v", name, n, err)
		}
	}
}

func TestNewByteViewSharesMemory(t *testing.T) {
	s, b := strings.Repeat("s", 10), []byte("bytes")
	for name, c := range map[string]struct {
		view ByteView
		data *byte
	}{
		"string":      {NewByteView(s), unsafe.StringData(s)},
		"namedString": {NewByteView(namedString(s)), unsafe.StringData(s)},
		"bytes":       {NewByteView(b), &b[0]},
		"namedBytes":  {NewByteView(namedBytes(b)), &b[0]},
		"slice":       {NewByteView(b).Slice(2, 4), &b[2]},
		"sliceFrom":   {NewByteView(b).SliceFrom(2), &b[2]},
	} {
		if got := unsafe.StringData(c.view.s); got != c.data {
			t.Errorf("%s: it is a copy", name)
		}
		if got := unsafe.StringData(c.view.String()); got != c.data {
			t.Errorf("%s: String is a copy", name)
		}
		if got := unsafe.SliceData(c.view.bytes()); got != c.data {
			t.Errorf("%s: bytes is a copy", name)
		}
	}
}

func TestBytesOfAViewCannotBeAppendedTo(t *testing.T) {
	v := NewByteView([]byte("0123456789")).Slice(0, 5)
	if b := v.bytes(); cap(b) != 5 {
		t.Errorf("capacity %d, want 5", cap(b))
	}
}

func TestByteSliceIsACopy(t *testing.T) {
	v := NewByteView([]byte("bytes"))
	clear(v.ByteSlice())
	if !v.EqualString("bytes") {
		t.Errorf("the view has become %q", v)
	}
}

func TestViewsDoNotAllocate(t *testing.T) {
	s, b := strings.Repeat("s", 100), bytes.Repeat([]byte("b"), 100)
	var sink int
	if n := testing.AllocsPerRun(100, func() {
		v, w := NewByteView(s), NewByteView(b)
		sink += v.Slice(1, 50).Len() + len(w.String()) + len(w.SliceFrom(3).bytes())
		if v.Equal(w) || v.EqualBytes(b) || w.EqualString(s) {
			sink++
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestViewPanicsOutOfRange(t *testing.T) {
	v := NewByteView([]byte("abc")[:2])
	for name, f := range map[string]func(){
		"At(2)":          func() { v.At(2) },
		"At(-1)":         func() { v.At(-1) },
		"Slice(0, 3)":    func() { v.Slice(0, 3) },
		"Slice(2, 1)":    func() { v.Slice(2, 1) },
		"SliceFrom(3)":   func() { v.SliceFrom(3) },
		"zero SliceFrom": func() { ByteView{}.SliceFrom(1) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s does not panic", name)
				}
			}()
			f()
		}()
	}
}

func TestWriteToReportsTheError(t *testing.T) {
	broken := errors.New("broken")
	r, w := io.Pipe()
	r.CloseWithError(broken)
	if n, err := NewByteView("abc").WriteTo(w); n != 0 || err != broken {
		t.Errorf("got %d, %v", n, err)
	}
}
