package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestMain lets this test's executable be the demo, with its peers.
func TestMain(m *testing.M) {
	if os.Getenv("SHOAL_TEST_CLUSTER") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// A demo is the demo while it runs.
type demo struct {
	*exec.Cmd
	stdout bytes.Buffer
	stderr awaited
	gone   chan struct{} // closed when no process is left that has the demo's standard error, and all have it
}

// startDemo starts the demo with args.
func startDemo(t *testing.T, args ...string) *demo {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	d := &demo{
		Cmd:    exec.CommandContext(t.Context(), self, args...),
		stderr: awaited{text: "/stats", seen: make(chan struct{})},
		gone:   make(chan struct{}),
	}
	d.Env = append(os.Environ(), "SHOAL_TEST_CLUSTER=1")
	d.Stdout, d.Stderr = &d.stdout, write
	err = d.Start()
	write.Close()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(d.gone)
		defer read.Close()
		io.Copy(&d.stderr, read)
	}()
	return d
}

// end waits for the demo, and fails t if it leaves a process.
func (d *demo) end(t *testing.T) error {
	t.Helper()
	err := d.Wait()
	select {
	case <-d.gone:
	case <-time.After(20 * time.Second):
		t.Fatalf("a process is left\n%s", &d.stderr)
	}
	return err
}

// useOwnCacheDir keeps the test's databases out of the user's cache directory.
func useOwnCacheDir(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"XDG_CACHE_HOME", "HOME", "LocalAppData"} {
		t.Setenv(name, dir)
	}
}

// smallTrace returns the name of a trace of n requests for 40 keys.
func smallTrace(t *testing.T, n int) string {
	var lines strings.Builder
	for i := range n {
		fmt.Fprintf(&lines, "%d %d\n", i*i%79, 100+i%1000)
	}
	return traceFile(t, gzipped(t, lines.String()))
}

func TestEveryKeyIsLoadedOnce(t *testing.T) {
	useOwnCacheDir(t)
	d := startDemo(t, "-json", "-peers", "3", "-clients", "8", "-trace", smallTrace(t, 1000))
	if err := d.end(t); err != nil {
		t.Fatalf("%v\n%s", err, &d.stderr)
	}
	var got summary
	if err := json.Unmarshal(d.stdout.Bytes(), &got); err != nil {
		t.Fatalf("%v in %q", err, d.stdout.String())
	}
	if got.Peers != 3 || got.Requests != 1000 || got.UniqueKeys != 40 || got.Loads != 40 ||
		got.Errors != 0 || got.Direct.Errors != 0 {
		t.Errorf("%+v", got)
	}
	if answered := got.HitsLocal + got.HitsPeer + got.Loads; answered > 1000 || got.HitsLocal == 0 || got.HitsPeer == 0 {
		t.Errorf("%d hits here, %d at a peer and %d loads for 1000 requests", got.HitsLocal, got.HitsPeer, got.Loads)
	}
}

func TestNoReadIsOlderThanAnUpdate(t *testing.T) {
	useOwnCacheDir(t)
	temp := t.TempDir()
	for _, name := range []string{"TMPDIR", "TMP", "TEMP"} {
		t.Setenv(name, temp)
	}
	trace := smallTrace(t, 2000)
	for range 2 { // the first run's updates are nothing to the second
		d := startDemo(t, "-json", "-writes", "0.1", "-peers", "3", "-clients", "8", "-trace", trace)
		if err := d.end(t); err != nil {
			t.Fatalf("%v\n%s", err, &d.stderr)
		}
		var got summary
		if err := json.Unmarshal(d.stdout.Bytes(), &got); err != nil {
			t.Fatalf("%v in %q", err, d.stdout.String())
		}
		if got.Requests != 2000 || got.Updates < 150 || got.Updates > 250 || got.StaleReads != 0 || got.Errors != 0 ||
			got.Loads <= 40 || got.Direct.Errors != 0 {
			t.Errorf("%+v", got)
		}
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestNoProcessIsLeft(t *testing.T) {
	useOwnCacheDir(t)
	trace := smallTrace(t, 10)
	for _, test := range []struct {
		name   string
		signal os.Signal
		fails  bool
	}{
		{"interrupted", os.Interrupt, false},
		{"killed", os.Kill, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			if runtime.GOOS == "windows" && test.signal == os.Interrupt {
				t.Skip("no such signal here")
			}
			d := startDemo(t, "-keep", "-peers", "2", "-trace", trace)
			select {
			case <-d.stderr.seen:
			case <-d.gone:
				t.Fatalf("ended early: %v\n%s", d.Wait(), &d.stderr)
			}
			if err := d.Process.Signal(test.signal); err != nil {
				t.Fatal(err)
			}
			if err := d.end(t); (err != nil) != test.fails {
				t.Errorf("%v\n%s", err, &d.stderr)
			}
		})
	}
}

// An awaited is a writer that tells when text has been written to it.
type awaited struct {
	text string
	seen chan struct{} // closed then

	mu      sync.Mutex // guards written
	written strings.Builder
}

func (a *awaited) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := strings.Contains(a.written.String(), a.text)
	a.written.Write(p)
	if !before && strings.Contains(a.written.String(), a.text) {
		close(a.seen)
	}
	return len(p), nil
}

func (a *awaited) String() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.written.String()
}
