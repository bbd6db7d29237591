package shoal

import (
	"io"
	"strings"
	"unsafe"
)

// A ByteView is a read-only slice of bytes. It is a value, as a string is: it is copied by assignment, its zero value
// is empty, and any number of goroutines may read it. Views of the same bytes share them; the bytes live as long as any
// view of them does.
type ByteView struct {
	s string
}

// NewByteView returns a view of data without copying: data must not be changed any more.
func NewByteView[T ~[]byte | ~string](data T) ByteView {
	// Both kinds begin with a pointer and a length, which is all that a string has.
	return ByteView{*(*string)(unsafe.Pointer(&data))}
}

// bytes returns the bytes themselves, which nobody may change.
func (v ByteView) bytes() []byte { return unsafe.Slice(unsafe.StringData(v.s), len(v.s)) }

// Len returns the number of bytes.
func (v ByteView) Len() int { return len(v.s) }

// ByteSlice returns a copy of the bytes.
func (v ByteView) ByteSlice() []byte { return []byte(v.s) }

// String returns the bytes as a string, without copying.
func (v ByteView) String() string { return v.s }

// At returns the byte at index i. It panics if i is out of range.
func (v ByteView) At(i int) byte { return v.s[i] }

// Slice returns a view of the bytes from index from up to but not including to. It panics if they are out of range.
func (v ByteView) Slice(from, to int) ByteView { return ByteView{v.s[from:to]} }

// SliceFrom returns a view of the bytes from index from. It panics if from is out of range.
func (v ByteView) SliceFrom(from int) ByteView { return ByteView{v.s[from:]} }

// Copy copies bytes into dest and returns how many: the smaller of the two lengths.
func (v ByteView) Copy(dest []byte) int { return copy(dest, v.s) }

// Equal reports whether both views have the same bytes.
func (v ByteView) Equal(w ByteView) bool { return v.s == w.s }

// EqualString reports whether the bytes are those of s.
func (v ByteView) EqualString(s string) bool { return v.s == s }

// EqualBytes reports whether the bytes are those of b.
func (v ByteView) EqualBytes(b []byte) bool { return v.s == string(b) }

// Reader returns a new reader of the bytes, which is also what [http.ServeContent] asks for.
func (v ByteView) Reader() io.ReadSeeker { return strings.NewReader(v.s) }

// ReadAt implements [io.ReaderAt].
func (v ByteView) ReadAt(p []byte, off int64) (n int, err error) {
	return strings.NewReader(v.s).ReadAt(p, off)
}

// WriteTo implements [io.WriterTo].
func (v ByteView) WriteTo(w io.Writer) (n int64, err error) {
	return strings.NewReader(v.s).WriteTo(w)
}
