// Package plot draws the bar charts of the programs beside it.
package plot

import (
	"bytes"
	"errors"
	"fmt"
	"image/color"
	"math"
	"os"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	_ "gonum.org/v1/plot/vg/vgsvg" // makes WriterTo know svg
)

// A Series is one bar for each name of a chart. NaN is no bar.
type Series struct {
	Name   string // for the legend; a chart of one series has none
	Values []float64
}

// colors can be told apart in print and by those who see fewer of them (Okabe and Ito).
var colors = []color.Color{
	color.RGBA{0x00, 0x72, 0xb2, 0xff}, color.RGBA{0xe6, 0x9f, 0x00, 0xff}, color.RGBA{0x00, 0x9e, 0x73, 0xff},
	color.RGBA{0xcc, 0x79, 0xa7, 0xff}, color.RGBA{0x56, 0xb4, 0xe9, 0xff}, color.RGBA{0xd5, 0x5e, 0x00, 0xff},
}

func init() { plot.DefaultFont.Variant, plotter.DefaultFont.Variant = "Sans", "Sans" }

// Bars writes an SVG file of horizontal bars from top to bottom: for each name, one of each series, with its value beside
// it. The axis says what the values are.
func Bars(file, title, axis string, names []string, series ...Series) error {
	const bar, gap = vg.Length(11), vg.Length(9)
	p := plot.New()
	p.BackgroundColor = color.White
	p.Title.Text, p.Title.Padding = title, 8
	p.X.Label.Text, p.X.Min = axis, 0
	p.Y.Label.Text = " " // a margin
	p.Legend.Top, p.Legend.Padding, p.Legend.XOffs = true, 3, -8
	grid := plotter.NewGrid()
	grid.Horizontal.Color, grid.Vertical.Color = nil, color.Gray{0xdd}
	p.Add(grid)

	downwards := make([]string, len(names)) // y grows upwards
	for i, name := range names {
		downwards[len(names)-1-i] = name
	}
	p.NominalY(downwards...)
	p.Y.Min, p.Y.Max = -0.5, float64(len(names))-0.5

	longest := 0.
	for s, ser := range series {
		if len(ser.Values) != len(names) {
			return errors.New("plot: as many values are needed as there are names")
		}
		values, labels := make(plotter.Values, len(names)), plotter.XYLabels{}
		for i, v := range ser.Values {
			if math.IsNaN(v) {
				continue
			}
			y := len(names) - 1 - i
			values[y] = v
			longest = max(longest, v)
			labels.XYs = append(labels.XYs, plotter.XY{X: v, Y: float64(y)})
			label := fmt.Sprintf("%.0f", v)
			if v < 100 {
				label = fmt.Sprintf("%.1f", v)
			}
			labels.Labels = append(labels.Labels, label)
		}
		bars, err := plotter.NewBarChart(values, bar)
		if err != nil {
			return err
		}
		bars.Horizontal, bars.Color, bars.LineStyle.Width = true, colors[s%len(colors)], 0
		bars.Offset = bar * vg.Length(float64(len(series)-1)/2-float64(s))
		p.Add(bars)
		if len(series) > 1 {
			p.Legend.Add(ser.Name, bars)
		}
		if len(labels.XYs) == 0 {
			continue
		}
		beside, err := plotter.NewLabels(labels)
		if err != nil {
			return err
		}
		for i := range beside.TextStyle {
			beside.TextStyle[i].Font.Size, beside.TextStyle[i].YAlign = 9, text.YCenter
		}
		beside.Offset = vg.Point{X: 3, Y: bars.Offset}
		p.Add(beside)
	}
	p.X.Max = 1.35 * longest // room for the legend, right of the bars
	if longest == 0 {
		p.X.Max = 1
	}
	height := vg.Length(len(names))*(bar*vg.Length(len(series))+gap) + 80
	drawing, err := p.WriterTo(720, height, "svg")
	if err != nil {
		return err
	}
	var svg bytes.Buffer
	if _, err := drawing.WriteTo(&svg); err != nil {
		return err
	}
	// Where there is no Liberation Sans, Arial is as wide, and a browser's own choice would be a serif.
	family := []byte("font-family:Liberation Sans")
	return os.WriteFile(file, bytes.ReplaceAll(svg.Bytes(), family, append(family, ",Arial,sans-serif"...)), 0o644)
}
