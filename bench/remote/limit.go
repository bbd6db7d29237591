//go:build unix

package main

// limit.go: the yardstick. One TCP connection carries what all callers ask, and nothing but that:
//
//	question: length uint32, id uint32, key; or, with the top bit of the id set, keys: of each, length uint16 and key
//	answer:   length uint32, id uint32, value; or, of each key, length uint32 and value
//
// An id is the caller's slot. There is no checksum, no error, no deadline, and no end.

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"runtime"
	"sync"
)

const (
	severalKeys = 1 << 31
	// Long values are neither gathered before they are written, nor, for most of their length, read through a buffer.
	buffer = 16 << 10
)

// serveLimit answers whoever connects, in the loop that reads: answers leave when nobody waits to be read.
func serveLimit(l net.Listener, all []values) {
	held := make(map[string][]byte)
	for _, v := range all {
		for i, key := range v.keys {
			held[key] = bytes.Clone(v.at(i))
		}
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go answerLimit(conn, held)
	}
}

func answerLimit(conn net.Conn, held map[string][]byte) {
	defer conn.Close()
	r, w := bufio.NewReaderSize(conn, buffer), bufio.NewWriterSize(conn, 64<<10)
	write := func(header []byte, value []byte) {
		if len(value) < buffer {
			w.Write(header)
			w.Write(value)
			return
		}
		w.Flush()
		(&net.Buffers{header, value}).WriteTo(conn)
	}
	header, question := make([]byte, 8), []byte(nil)
	for {
		if r.Buffered() < len(header) && w.Flush() != nil {
			return
		}
		if _, err := io.ReadFull(r, header); err != nil {
			return
		}
		n, id := int(binary.BigEndian.Uint32(header)), binary.BigEndian.Uint32(header[4:])
		if cap(question) < n {
			question = make([]byte, n)
		}
		question = question[:n]
		if _, err := io.ReadFull(r, question); err != nil {
			return
		}
		if id&severalKeys == 0 {
			value := held[string(question)]
			binary.BigEndian.PutUint32(header, uint32(len(value)))
			write(header, value)
			continue
		}
		sum := 0
		for key := range severalOf(question) {
			sum += 4 + len(held[string(key)])
		}
		binary.BigEndian.PutUint32(header, uint32(sum))
		w.Write(header)
		for key := range severalOf(question) {
			value := held[string(key)]
			write(binary.BigEndian.AppendUint32(header[:0], uint32(len(value))), value)
		}
	}
}

// severalOf goes through the keys of a question.
func severalOf(question []byte) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(question) > 0 {
			n := 2 + int(binary.BigEndian.Uint16(question))
			if !yield(question[2:n]) {
				return
			}
			question = question[n:]
		}
	}
}

// A mux is the asking end of the connection.
type mux struct {
	conn net.Conn
	r    *bufio.Reader // of who reads
	wake chan struct{} // wakes the goroutine that reads

	mu      sync.Mutex // guards what follows
	slots   []*slot
	free    []uint32
	asked   int    // that have not been answered
	pending []byte // what has been asked and not been written
	written []byte // the other buffer, of who writes
	writing bool   // somebody does, and will write what is pending, too
	reading bool   // somebody does, as long as there are answers to come
}

// A slot is where a caller waits for its answer.
type slot struct {
	answer []byte
	done   chan struct{}
}

func dialLimit(addr string) (*mux, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	m := &mux{conn: conn, r: bufio.NewReaderSize(conn, buffer), wake: make(chan struct{}, 1)}
	go m.read()
	return m, nil
}

// ask returns the answer to a question, which question appends to what is to be written. The first who asks writes for all
// who ask meanwhile; if others wait for answers, it lets those run first who have just got theirs: they will ask again.
// If nobody reads, it then does, up to its own answer: who is alone waits for no other goroutine.
func (m *mux) ask(flag uint32, question func(buf []byte) []byte) []byte {
	m.mu.Lock()
	if len(m.free) == 0 {
		m.free = append(m.free, uint32(len(m.slots)))
		m.slots = append(m.slots, &slot{done: make(chan struct{}, 1)})
	}
	id := m.free[len(m.free)-1]
	m.free = m.free[:len(m.free)-1]
	s := m.slots[id]
	m.asked++
	begin := len(m.pending)
	m.pending = binary.BigEndian.AppendUint32(append(m.pending, 0, 0, 0, 0), id|flag)
	m.pending = question(m.pending)
	binary.BigEndian.PutUint32(m.pending[begin:], uint32(len(m.pending)-begin-8))
	reads := false
	if !m.writing {
		m.writing = true
		if len(m.slots)-len(m.free) > 1 {
			m.mu.Unlock()
			runtime.Gosched()
			m.mu.Lock()
		}
		for len(m.pending) > 0 {
			now := m.pending
			m.pending, m.written = m.written[:0], nil
			m.mu.Unlock()
			if _, err := m.conn.Write(now); err != nil {
				log.Fatal(err)
			}
			m.mu.Lock()
			m.written = now
		}
		m.writing = false
		reads = !m.reading && m.asked > 0
		m.reading = m.reading || reads
	}
	m.mu.Unlock()

	if reads {
		more := true
		for more && len(s.done) == 0 {
			more = m.receive()
		}
		if more {
			m.wake <- struct{}{}
		}
	}
	<-s.done
	answer := s.answer
	s.answer = nil
	m.mu.Lock()
	m.free = append(m.free, id)
	m.mu.Unlock()
	return answer
}

// read reads whenever who asked first has its own answer and others have not.
func (m *mux) read() {
	for range m.wake {
		for m.receive() {
		}
	}
}

// receive hands the next answer to who waits for it, and reports whether more are to come. If not, nobody reads any more.
func (m *mux) receive() (more bool) {
	header, err := m.r.Peek(8)
	if err != nil {
		log.Fatal(err)
	}
	answer, id := make([]byte, binary.BigEndian.Uint32(header)), binary.BigEndian.Uint32(header[4:])
	m.r.Discard(len(header))
	if _, err := io.ReadFull(m.r, answer); err != nil {
		log.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.slots[id&^severalKeys]
	s.answer = answer
	s.done <- struct{}{}
	m.asked--
	m.reading = m.asked > 0
	return m.reading
}

func (m *mux) close() {
	m.conn.Close()
	close(m.wake)
}

func (m *mux) get(key string, want []byte) error {
	got := m.ask(0, func(buf []byte) []byte { return append(buf, key...) })
	return same(key, got, want)
}

func (m *mux) many(keys []string, want [][]byte) error {
	all := m.ask(severalKeys, func(buf []byte) []byte {
		for _, key := range keys {
			buf = append(binary.BigEndian.AppendUint16(buf, uint16(len(key))), key...)
		}
		return buf
	})
	for i, key := range keys {
		if len(all) < 4 {
			return fmt.Errorf("no answer for %q", key)
		}
		n := 4 + int(binary.BigEndian.Uint32(all))
		if err := same(key, all[4:n], want[i]); err != nil {
			return err
		}
		all = all[n:]
	}
	return nil
}
