package dns_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// Types of records, and codes of answers.
const (
	typeA, typeAAAA, typeSRV = 1, 28, 33

	noError, servFail, nxDomain, refused = 0, 2, 3, 5
)

// A server is one of the DNS. What it tells of a name comes in another order each time.
type server struct {
	addr  string       // where it listens, over UDP and TCP
	asked atomic.Int64 // questions but for AAAA: one for each look, or two if it fails

	mu      sync.Mutex // guards what follows
	records map[question][][]byte
	codes   map[question]byte
}

type question struct {
	name string
	of   uint16
}

// newServer returns a server that listens until t ends.
func newServer(t *testing.T) *server {
	s := unheard()
	streams, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = streams.Addr().String()
	packets, err := net.ListenPacket("udp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for q := make([]byte, 1<<16); ; {
			n, from, err := packets.ReadFrom(q)
			if err != nil {
				return
			}
			a := s.answer(q[:n])
			if len(a) > 1232 { // the most that Go takes
				a = a[:n]
				a[2] |= 1 << 1 // truncated
				clear(a[6:12])
			}
			packets.WriteTo(a, from)
		}
	})
	serving.Go(func() {
		for {
			c, err := streams.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { s.serve(c) })
		}
	})
	t.Cleanup(func() {
		streams.Close()
		packets.Close()
		serving.Wait()
	})
	return s
}

// unheard returns a server that does not listen.
func unheard() *server {
	return &server{records: make(map[question][][]byte), codes: make(map[question]byte)}
}

// serve answers what comes over a stream.
func (s *server) serve(c net.Conn) {
	defer c.Close()
	for {
		var length [2]byte
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return
		}
		q := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(c, q); err != nil {
			return
		}
		a := s.answer(q)
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...)); err != nil {
			return
		}
	}
}

// resolver returns one that asks s alone.
func (s *server) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, StrictErrors: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		if s.addr == "" {
			return nil, errors.New("there is no way to it")
		}
		return new(net.Dialer).DialContext(ctx, network, s.addr)
	}}
}

// tell makes s answer questions for a name's records of a type with these: addresses, or targets as "host:port".
func (s *server) tell(of uint16, name string, values ...string) {
	var all [][]byte
	for _, v := range values {
		if of != typeSRV {
			all = append(all, netip.MustParseAddr(v).AsSlice())
			continue
		}
		host, port, _ := net.SplitHostPort(v)
		n, _ := strconv.Atoi(port)
		data := binary.BigEndian.AppendUint16(make([]byte, 4, 64), uint16(n)) // after priority and weight
		for label := range strings.SplitSeq(strings.TrimSuffix(host, "."), ".") {
			if label != "" {
				data = append(append(data, byte(len(label))), label...)
			}
		}
		all = append(all, append(data, 0))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.codes, question{name, of})
	s.records[question{name, of}] = all
}

// fail makes s answer such questions with code alone.
func (s *server) fail(of uint16, name string, code byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.codes[question{name, of}] = code
}

func (s *server) answer(q []byte) []byte {
	end := 12
	var name strings.Builder
	for ; q[end] != 0; end += 1 + int(q[end]) {
		name.Write(q[end+1 : end+1+int(q[end])])
		name.WriteByte('.')
	}
	what := question{name.String(), binary.BigEndian.Uint16(q[end+1:])}
	if what.of != typeAAAA {
		s.asked.Add(1)
	}
	end += 5

	s.mu.Lock()
	defer s.mu.Unlock()
	code, fails := s.codes[what]
	records := s.records[what]
	if fails {
		records = nil
	} else if !slices.ContainsFunc([]uint16{typeA, typeAAAA, typeSRV}, func(of uint16) bool {
		return s.records[question{what.name, of}] != nil
	}) {
		code = nxDomain
	}
	a := slices.Clone(q[:end])
	copy(a[2:], []byte{0x84, 0x80 | code, 0, 1, 0, 0, 0, 0, 0, 0})
	binary.BigEndian.PutUint16(a[6:], uint16(len(records)))
	for _, i := range rand.Perm(len(records)) {
		a = append(a, 0xc0, 12) // the name in the question
		a = binary.BigEndian.AppendUint16(a, what.of)
		a = append(a, 0, 1, 0, 0, 0, 5) // of the Internet, for five seconds
		a = binary.BigEndian.AppendUint16(a, uint16(len(records[i])))
		a = append(a, records[i]...)
	}
	return a
}

// looks waits until s has been asked n times more.
func (s *server) looks(t *testing.T, n int64) {
	t.Helper()
	enough := s.asked.Load() + n
	eventually(t, func() bool { return s.asked.Load() >= enough })
}
