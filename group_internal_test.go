package shoal

import (
	"context"
	"testing"
)

// Between a caller's look at memory and the start of its load, another load may have ended. Loading and counting again
// would break the promise of one load; here every caller comes that late.
func TestLoadLooksAtMemoryAgain(t *testing.T) {
	cache, err := New(nil)
	if err != nil {
		t.Fatal(err)
	}
	g := NewGroup(cache, "g", func(context.Context, string) (string, error) { return "value", nil }, nil)
	for range 3 {
		if f, err := g.group.load(t.Context(), "key"); f.value.String() != "value" || err != nil {
			t.Errorf("%q, %v", f.value, err)
		}
	}
	if s := g.Stats(); s.Loads != 1 {
		t.Errorf("%d loads", s.Loads)
	}
}
