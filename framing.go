package shoal

// framing.go: messages one after the other, each after its length.

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// readMessage reads a message after its length.
func readMessage(r *bufio.Reader, most int64) ([]byte, error) {
	size, err := readSize(r)
	if err != nil {
		return nil, err
	}
	if size > uint64(most) {
		return nil, fmt.Errorf("%d bytes are more than MaxBodyBytes, %d", size, most)
	}
	return readBytes(r, size)
}

// wholeMessage reports whether r can give another message without waiting.
func wholeMessage(r *bufio.Reader) bool {
	b, _ := r.Peek(min(r.Buffered(), binary.MaxVarintLen64))
	size, n := binary.Uvarint(b)
	return n > 0 && uint64(r.Buffered()-n) >= size
}

// readSize reads the length before a message. Its error is io.EOF only if there is nothing at all.
func readSize(r *bufio.Reader) (uint64, error) { return binary.ReadUvarint(r) }

// readBytes reads size bytes. It takes memory as bytes come, not as they are announced.
func readBytes(r *bufio.Reader, size uint64) ([]byte, error) {
	if size <= uint64(r.Buffered()) {
		data, _ := r.Peek(int(size))
		data = bytes.Clone(data) // which clears no memory first
		r.Discard(len(data))
		return data, nil
	}
	if size <= 1<<20 {
		data := make([]byte, size)
		_, err := io.ReadFull(r, data)
		return data, err
	}
	var data bytes.Buffer
	data.Grow(1 << 20)
	_, err := io.CopyN(&data, r, int64(size))
	return data.Bytes(), err
}
