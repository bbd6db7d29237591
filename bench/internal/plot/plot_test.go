package plot

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBarsShowNamesAndValues(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bars.svg")
	err := Bars(file, "How long", "metres", []string{"snake", "worm", "eel"},
		Series{"grown up", []float64{3, 0.25, math.NaN()}}, Series{"young", []float64{1.5, 0.1, 123.4}})
	if err != nil {
		t.Fatal(err)
	}
	svg, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<svg", "How long", "metres", "snake", "worm", "eel", "grown up", "young", "1.5", ">123<"} {
		if !strings.Contains(string(svg), want) {
			t.Errorf("the file does not contain %q", want)
		}
	}
}

func TestBarsNeedAValueForEachName(t *testing.T) {
	if err := Bars(filepath.Join(t.TempDir(), "bars.svg"), "", "", []string{"a", "b"}, Series{"", []float64{1}}); err == nil {
		t.Error("no error")
	}
}
