package shoal

// exchange.go: what a wire is made of: a connection that was upgraded, a request that goes on while the answer comes, or one
// POST.

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

// dial opens a stream: by an upgrade of a connection, which only HTTP/1.1 has, or else by a POST whose body goes on while
// the answer comes. (The first took 20% less CPU in bench/remote for 16 callers.)
func (l *line) dial() (*wire, error) {
	w := l.newWire(l.cache.life, true)
	w.stream, w.wake = true, make(chan struct{}, 1)
	late := time.AfterFunc(l.cache.opts.PeerTimeout, func() { w.cancel(context.DeadlineExceeded) })
	from, err := w.upgrade()
	if err != nil {
		from, err = w.duplex()
	}
	var r *bufio.Reader
	if err == nil {
		size := 128 << 10
		if l.isOfWrites() { // whose answers are short
			size = 16 << 10
		}
		r = w.reader(from, size)
		err = w.take(r) // a first word, which shows that what is said there comes here
	}
	if !late.Stop() && err == nil {
		err = context.DeadlineExceeded
	}
	if err != nil {
		w.fail(err)
		return nil, err
	}
	w.mu.Lock()
	w.since = l.cache.clock.now()
	w.lookLocked(w.since+idleStream, w.since)
	w.mu.Unlock()
	go w.write()
	go func() { w.fail(fmt.Errorf("%w: %w", errEnded, w.read(r))) }()
	return w, nil
}

// upgrade makes a stream of a connection, and returns what is to be read from it.
func (w *wire) upgrade() (io.Reader, error) {
	post, err := w.request(nil)
	if err != nil {
		return nil, err
	}
	post.Header.Set("Connection", "Upgrade")
	post.Header.Set("Upgrade", protocol)
	resp, err := w.cache.opts.Transport.RoundTrip(post)
	if err != nil {
		return nil, err
	}
	conn, ok := resp.Body.(io.ReadWriteCloser)
	if !ok || resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Upgrade") != protocol {
		resp.Body.Close()
		return nil, fmt.Errorf("no upgrade: %s", resp.Status)
	}
	w.to, w.direct = conn, true
	context.AfterFunc(w.ctx, func() { conn.Close() })
	return conn, nil
}

// duplex makes a stream of a request that goes on while the answer comes.
func (w *wire) duplex() (io.Reader, error) {
	body, to := io.Pipe()
	context.AfterFunc(w.ctx, func() { body.CloseWithError(errEnded) }) // the transport may wait for it
	post, err := w.request(body)
	if err != nil {
		return nil, err
	}
	post.Header.Set("Content-Type", streamType)
	resp, err := w.cache.opts.Transport.RoundTrip(post)
	if err != nil {
		body.CloseWithError(err)
		return nil, err
	}
	if got := resp.Header.Get("Content-Type"); got != streamType || resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		body.CloseWithError(errEnded)
		return nil, fmt.Errorf("no stream: %s, Content-Type %q", resp.Status, got)
	}
	w.to = to
	context.AfterFunc(w.ctx, func() { resp.Body.Close() })
	return resp.Body, nil
}

// request returns a POST to where w leads.
func (w *wire) request(body io.Reader) (*http.Request, error) {
	to, err := target(w.line.addr)
	if err != nil {
		return nil, err
	}
	return http.NewRequestWithContext(w.ctx, http.MethodPost, to.String(), body)
}

// post sends what has been put on w, and takes in the answers.
func (w *wire) post() {
	w.mu.Lock()
	w.begun = true
	body := w.out
	nobody := w.inFlight.Load() == 0
	w.wordedLocked()
	w.mu.Unlock()
	if nobody {
		w.fail(errEnded)
		return
	}
	w.fail(w.exchange(body))
}

// exchange posts body, and returns why there are no more answers.
func (w *wire) exchange(body []byte) error {
	post, err := w.request(bytes.NewReader(body))
	if err != nil {
		return err
	}
	wanted := mediaType
	if w.several {
		wanted = streamType
	}
	post.Header.Set("Content-Type", wanted)
	if !w.line.isOfWrites() {
		// Asking twice does no harm, so net/http may do it when a kept connection turns out to be dead. The nil says so
		// without being sent.
		post.Header["Idempotency-Key"] = nil
	}
	resp, err := w.cache.opts.Transport.RoundTrip(post) // no http.Client: a redirect is not followed, it is not Shoal's answer
	if err != nil {
		w.line.down.Store(true)
		return causeOf(w.ctx, err)
	}
	if w.line.down.CompareAndSwap(true, false) {
		w.line.isBack()
	}
	defer resp.Body.Close()
	switch got := resp.Header.Get("Content-Type"); {
	case got == wanted:
	case got == mediaType && resp.StatusCode == http.StatusUnsupportedMediaType:
		w.line.onlySingle()
		return errNotUnderstood
	case got == mediaType: // one answer to all of it
		w.mu.Lock()
		w.oneAnswer = true
		w.mu.Unlock()
	default:
		return fmt.Errorf("what answers there is not Shoal: %s, Content-Type %q", resp.Status, got)
	}
	err = w.read(w.reader(resp.Body, 16<<10))
	if w.several && !w.oneAnswer && w.sender == nil && w.ctx.Err() == nil {
		// Not even who answers has been said: what is in between does not let it through.
		w.line.onlySingle()
		return fmt.Errorf("%w: %w", errEnded, err)
	}
	return err
}
