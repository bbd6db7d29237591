package etcd

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/shoalcache/shoal"
)

// What becomes of a list is tested here by itself, for a bubble holds no etcd.

// reader is a discovery that keeps what it has listed, addresses with spaces between, in lists.
func reader() (d *discovery, lists *[]string) {
	lists = new([]string)
	return &discovery{
		Options: Options{Prefix: "/shoal/", TTL: 10 * time.Second, Logger: slog.New(slog.DiscardHandler)},
		known:   make(map[string]entry),
		set: func(list []shoal.Peer) {
			var addrs []string
			for _, p := range list {
				addrs = append(addrs, p.Addr)
			}
			*lists = append(*lists, strings.Join(addrs, " "))
		},
	}, lists
}

func kv(name string, revision int64, addr string) *mvccpb.KeyValue {
	return &mvccpb.KeyValue{Key: []byte("/shoal/" + name), ModRevision: revision, Value: fmt.Appendf(nil, `{"Addr":%q}`, addr)}
}

func put(name string, revision int64, addr string) *clientv3.Event {
	return &clientv3.Event{Type: clientv3.EventTypePut, Kv: kv(name, revision, addr)}
}

func gone(name string) *clientv3.Event {
	return &clientv3.Event{Type: clientv3.EventTypeDelete, Kv: &mvccpb.KeyValue{Key: []byte("/shoal/" + name)}}
}

// changes is what a session does with events, when they are due.
func (d *discovery) changes(events ...*clientv3.Event) time.Duration {
	d.hear()
	d.change(events)
	return d.publish()
}

func wantLists(t *testing.T, lists *[]string, want ...string) {
	t.Helper()
	if !slices.Equal(*lists, want) {
		t.Errorf("it has listed %q, want %q", *lists, want)
	}
}

func TestListIsHeldAfterSilenceInWhichTheLeaseDidNotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, lists := reader()
		d.replace([]*mvccpb.KeyValue{kv("1", 1, "a"), kv("2", 2, "b"), kv("3", 3, "c")})
		d.publish()
		time.Sleep(d.TTL * 2 / 3)
		if wait := d.changes(gone("2"), gone("3")); wait != d.TTL {
			t.Errorf("who has gone stays for %v, want %v", wait, d.TTL)
		}
		time.Sleep(d.TTL / 5)
		d.changes(put("2", 4, "b"))
		time.Sleep(d.TTL / 3)
		d.hear()
		wantLists(t, lists, "a b c")
		time.Sleep(d.TTL / 3)
		d.hear()
		time.Sleep(d.TTL / 3)
		d.publish()
		wantLists(t, lists, "a b c", "a b")
	})
}

func TestWhoGoesWhileThereIsWordFromEtcdIsTakenAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, lists := reader()
		d.replace([]*mvccpb.KeyValue{kv("1", 1, "a"), kv("2", 2, "b")})
		d.publish()
		time.Sleep(d.TTL/3 + time.Second/2) // as late as word from etcd is in peace
		d.changes(gone("2"))
		wantLists(t, lists, "a b", "a")
	})
}

func TestListReadAgainTakesNobodyForOneTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, lists := reader()
		d.replace([]*mvccpb.KeyValue{kv("1", 1, "a"), kv("2", 2, "b")})
		d.publish()
		time.Sleep(time.Hour)
		d.replace([]*mvccpb.KeyValue{kv("1", 9, "a"), kv("4", 10, "d")})
		wait := d.publish()
		wantLists(t, lists, "a b", "a b d")
		time.Sleep(wait)
		if wait := d.publish(); wait != 0 {
			t.Errorf("there is more to wait for: %v", wait)
		}
		wantLists(t, lists, "a b", "a b d", "a d")
	})
}

func TestAddressIsListedOnceAndAsTheLatestSaysIt(t *testing.T) {
	d, _ := reader()
	var last []shoal.Peer
	d.set = func(list []shoal.Peer) { last = list }
	for i, id := range []string{"2", "0", "1"} {
		d.put(&mvccpb.KeyValue{Key: []byte("/shoal/" + id), ModRevision: int64(i + 1), Value: fmt.Appendf(nil, `{"Addr":"a","ID":%q}`, id)})
	}
	d.publish()
	if want := []shoal.Peer{{ID: "1", Addr: "a"}}; !slices.Equal(last, want) {
		t.Errorf("got %v, want %v", last, want)
	}
}

func TestListThatIsTheSameIsNotSaidAgain(t *testing.T) {
	d, lists := reader()
	d.replace([]*mvccpb.KeyValue{kv("1", 1, "a")})
	d.publish()
	d.changes(put("1", 2, "a"), gone("9"))
	wantLists(t, lists, "a")
}

func TestBadValueIsLoggedOnceHoweverOftenTheListIsRead(t *testing.T) {
	d, lists := reader()
	var logged strings.Builder
	d.Logger = slog.New(slog.NewTextHandler(&logged, nil))
	for range 3 {
		d.replace([]*mvccpb.KeyValue{kv("1", 1, "a"), kv("2", 2, "")})
		d.publish()
	}
	wantLists(t, lists, "a")
	if n := strings.Count(logged.String(), "\n"); n != 1 || !strings.Contains(logged.String(), "/shoal/2") {
		t.Errorf("it has logged %s", &logged)
	}
}
