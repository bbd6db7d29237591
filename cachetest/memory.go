package cachetest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
)

// A network makes n hosts that reach one another.
type network func(t testing.TB, n int) []host

// A host is where a cache runs.
type host struct {
	addr      string
	transport http.RoundTripper // nil: the cache's own
	serve     func(http.Handler)
}

// inMemory is a network of function calls.
func inMemory(t testing.TB, n int) []host {
	all := &memory{handlers: make(map[string]http.Handler)}
	hosts := make([]host, n)
	for i := range hosts {
		name := fmt.Sprintf("cache-%d", i)
		hosts[i] = host{
			addr:      "http://" + name,
			transport: all,
			serve:     func(h http.Handler) { all.serve(name, h) },
		}
	}
	return hosts
}

// memory is a RoundTripper that calls handlers.
type memory struct {
	mu       sync.Mutex // guards handlers
	handlers map[string]http.Handler
}

func (m *memory) serve(name string, h http.Handler) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.handlers[name] = h
}

func (m *memory) RoundTrip(req *http.Request) (*http.Response, error) {
	m.mu.Lock()
	handler := m.handlers[req.URL.Host]
	m.mu.Unlock()
	if handler == nil {
		return nil, fmt.Errorf("cachetest: no cache at %s", req.URL.Host)
	}
	// As over a wire, nothing of the caller's context arrives but its end.
	ctx, cancel := context.WithCancel(context.Background())
	stop := context.AfterFunc(req.Context(), cancel)
	asked := req.Clone(ctx)
	asked.RequestURI = req.URL.RequestURI()
	if asked.Body == nil {
		asked.Body = http.NoBody
	}

	body := &pipe{more: make(chan struct{}, 1)}
	w := &responseWriter{out: body, header: make(http.Header), begun: make(chan struct{})}
	context.AfterFunc(ctx, func() { body.end(context.Canceled) })
	go func() {
		defer func() {
			w.WriteHeader(http.StatusOK)
			body.end(io.EOF)
			asked.Body.Close()
		}()
		handler.ServeHTTP(w, asked)
	}()

	select {
	case <-w.begun:
	case <-req.Context().Done():
		return nil, context.Cause(req.Context())
	}
	return &http.Response{
		StatusCode:    w.status,
		Status:        fmt.Sprint(w.status, " ", http.StatusText(w.status)),
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        w.sent,
		ContentLength: -1,
		Request:       req,
		Body: &memoryBody{body, func() {
			stop()
			cancel()
		}},
	}, nil
}

// memoryBody ends the handler's context when it is closed, as a closed connection would.
type memoryBody struct {
	*pipe
	closed func()
}

func (b *memoryBody) Close() error {
	b.closed()
	b.end(io.ErrClosedPipe)
	return nil
}

// A pipe is what the handler has written and the caller not read. Unlike io.Pipe's, writers do not wait for readers.
type pipe struct {
	more chan struct{} // has an element when there is something to look at

	mu  sync.Mutex // guards what follows
	buf bytes.Buffer
	err error // after what is in buf
}

func (p *pipe) Write(data []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return 0, p.err
	}
	p.wake()
	return p.buf.Write(data)
}

// end makes err the end of the pipe, unless it has one.
func (p *pipe) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
		p.wake()
	}
}

func (p *pipe) wake() {
	select {
	case p.more <- struct{}{}:
	default:
	}
}

func (p *pipe) Read(data []byte) (int, error) {
	for {
		p.mu.Lock()
		if p.buf.Len() > 0 {
			defer p.mu.Unlock()
			return p.buf.Read(data)
		}
		if p.err != nil {
			defer p.mu.Unlock()
			p.wake() // for other readers
			return 0, p.err
		}
		p.mu.Unlock()
		<-p.more
	}
}

// responseWriter is the handler's side.
type responseWriter struct {
	out    *pipe
	header http.Header // the handler's
	status int
	sent   http.Header   // what header was when it was sent
	begun  chan struct{} // closed when status and sent are there
}

func (w *responseWriter) Header() http.Header { return w.header }

func (w *responseWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status, w.sent = status, w.header.Clone()
		close(w.begun)
	}
}

func (w *responseWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.out.Write(p)
}

// EnableFullDuplex says that a request's body may be read while the answer is written.
func (w *responseWriter) EnableFullDuplex() error { return nil }

// Flush implements http.Flusher. Only the header can have been held back.
func (w *responseWriter) Flush() { w.WriteHeader(http.StatusOK) }
