package shoal

// groupcache.go: the wire of golang/groupcache, answered so that a fleet can change over process by process.

import (
	"errors"
	"net/http"
	"net/url"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/shoalcache/shoal/shoalpb"
)

// groupcache answers a GET. In path is what came after /_groupcache/: a group, a slash and a key, both as
// [url.QueryEscape] left them, whence a space may be a plus. Groupcache's server reads them otherwise, and takes "a b"
// and "a+b" for the same key.
//
// Groupcache has no word for "not mine": if this process does not own the key, it loads it all the same, and does not
// keep it.
func (a *answering) groupcache(r *http.Request, path string) {
	refuse := func(status int, reason shoalpb.Refused_Reason, text string) {
		a.c.refused[reason].Add(1)
		http.Error(a.w, text, status)
	}
	name, key, found := strings.Cut(path, "/")
	name, badName := url.QueryUnescape(name)
	key, badKey := url.QueryUnescape(key)
	if err := errors.Join(badName, badKey); err != nil || !found {
		refuse(http.StatusBadRequest, shoalpb.Refused_MALFORMED, "the path is not GROUP/KEY")
		return
	}
	if err := a.c.checkKey(key); err != nil {
		refuse(http.StatusRequestEntityTooLarge, shoalpb.Refused_TOO_LARGE, err.Error())
		return
	}
	g := a.c.group(name)
	if g == nil {
		refuse(http.StatusNotFound, shoalpb.Refused_NO_GROUP, "no such group: "+name)
		return
	}
	result, _, err, ok := g.answerNow(key, question{callers: 1})
	if _, others := err.(*notOwner); others || !ok {
		a.patient()
		result, err = g.load(r.Context(), key, want{})
	}
	switch {
	case errors.Is(err, ErrNotFound):
		http.Error(a.w, err.Error(), http.StatusNotFound)
		return
	case err != nil:
		http.Error(a.w, err.Error(), http.StatusInternalServerError)
		return
	}
	body, err := proto.Marshal(&shoalpb.GroupcacheGetResponse{Value: result.value.bytes()})
	if err != nil {
		http.Error(a.w, err.Error(), http.StatusInternalServerError)
		return
	}
	a.w.Header().Set("Content-Type", "application/x-protobuf")
	a.w.Write(body)
}
