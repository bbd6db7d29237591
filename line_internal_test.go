package shoal

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalcache/shoal/shoalpb"
)

// A briefStream is a transport to where a stream ends after a first word, and nothing else is answered.
type briefStream struct{}

type brief struct{ io.Reader }

func (brief) Write(b []byte) (int, error) { return len(b), nil }
func (brief) Close() error                { return nil }

func (briefStream) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Header.Get("Upgrade") == "" {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	first, _ := shoalpb.AppendReply(nil, &shoalpb.Reply{Sender: &shoalpb.Sender{Incarnation: 5}})
	return &http.Response{
		StatusCode: http.StatusSwitchingProtocols,
		Header:     http.Header{"Upgrade": {protocol}},
		Body:       brief{strings.NewReader(string(first))},
	}, nil
}

// A stream that ends at once is not kept, wherever it is in being opened, and callers leave by their contexts.
func TestStreamThatEndsAtOnceIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := New(&Options{Transport: briefStream{}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Shutdown(context.Background())
		for range 100 {
			l := c.lineTo("http://x")
			l.open()
			synctest.Wait()
			if len(l.streams) > 0 || l.retry == 0 {
				t.Fatalf("%d streams, tried again at %v", len(l.streams), l.retry)
			}
		}
		l := c.lineTo("http://x")
		w, err := l.dial()
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		l.streamsLocked([]*wire{w}) // which has ended
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		k := c.newCall(l, nil, nil, 0)
		k.req.Op = &shoalpb.Request_Hello{Hello: new(shoalpb.Hello)}
		began := time.Now()
		if _, err := k.next(ctx); err != ctx.Err() || time.Since(began) != 100*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		k.end()
	})
}
