//go:build unix

package main

// server.go: the process that holds the values. It is this program again, told by its environment what to be; it says
// where it listens, and then, for every line that it reads, what it has used; it ends when there are no more. Where the
// server is another's program, it starts that and answers for it.

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/golang/groupcache"

	"github.com/shoalcache/shoal"
)

// serverEnv is the variable with what to serve: a name of servers, and then sizes and numbers of values.
const serverEnv = "SHOAL_BENCH_REMOTE"

// servers hold values. They return where, and what they have used.
var servers = map[string]func(all []values) (addr string, used func() usage){
	"shoal": func(all []values) (string, func() usage) {
		l := listen()
		self := "http://" + l.Addr().String()
		c, err := shoal.New(&shoal.Options{Self: self, Discovery: shoal.Static(self)})
		if err != nil {
			log.Fatal(err)
		}
		go http.Serve(l, c)
		ctx := context.Background()
		if err := c.Ready(ctx); err != nil {
			log.Fatal(err)
		}
		g := shoal.NewGroup[shoal.ByteView](c, "values", nil, &shoal.GroupOptions[shoal.ByteView]{MaxBytes: 1 << 30})
		for _, v := range all {
			for i, key := range v.keys {
				if err := g.Set(ctx, key, shoal.NewByteView(v.at(i))); err != nil {
					log.Fatal(err)
				}
			}
		}
		return self, usageHere
	},
	"groupcache": func(all []values) (string, func() usage) {
		l := listen()
		self := "http://" + l.Addr().String()
		pool := groupcache.NewHTTPPoolOpts(self, nil)
		pool.Set(self)
		go http.Serve(l, pool)
		var next []byte
		g := groupcache.NewGroup("values", 1<<30, groupcache.GetterFunc(func(_ context.Context, _ string, dest groupcache.Sink) error {
			return dest.SetBytes(next)
		}))
		for _, v := range all {
			for i, key := range v.keys {
				next = v.at(i)
				var kept groupcache.ByteView
				if err := g.Get(context.Background(), key, groupcache.ByteViewSink(&kept)); err != nil {
					log.Fatal(err)
				}
			}
		}
		return self, usageHere
	},
	"limit": func(all []values) (string, func() usage) {
		l := listen()
		go serveLimit(l, all)
		return l.Addr().String(), usageHere
	},
	"memcached": func(all []values) (string, func() usage) {
		me, err := user.Current() // root must be told to stay root
		if err != nil {
			log.Fatal(err)
		}
		port := freePort()
		conn, used := start(port, "memcached", "-l", "127.0.0.1", "-p", port, "-U", "0", "-u", me.Username,
			"-m", "1024", "-c", "4096", "-I", "2m")
		fill(conn, all, func(w io.Writer, key string, value []byte) {
			fmt.Fprintf(w, "set %s 0 0 %d\r\n%s\r\n", key, len(value), value)
		})
		return "127.0.0.1:" + port, used
	},
	"redis": func(all []values) (string, func() usage) {
		port := freePort()
		conn, used := start(port, "redis-server", "--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no")
		fill(conn, all, func(w io.Writer, key string, value []byte) {
			fmt.Fprintf(w, "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", len(key), key, len(value), value)
		})
		return "127.0.0.1:" + port, used
	},
}

// serve is the life of the process: of one server.
func serve(what string) {
	log.SetFlags(0)
	log.SetPrefix("remote, " + what + ": ")
	fields := strings.Fields(what)
	var all []values
	for _, field := range fields[1:] {
		var size, n int
		if _, err := fmt.Sscanf(field, "%dx%d", &size, &n); err != nil {
			log.Fatal(err)
		}
		all = append(all, newValues(size, n))
	}
	addr, used := servers[fields[0]](all)
	runtime.GC()
	fmt.Println(addr)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		u := used()
		fmt.Println(u.cpu.Nanoseconds(), u.mallocs)
	}
	if other != nil {
		other.Kill()
	}
}

// other is the process of a server that is another's program.
var other *os.Process

// start starts a program that listens at port, and connects to it.
func start(port, name string, args ...string) (net.Conn, func() usage) {
	cmd := exec.Command(name, args...)
	if err := cmd.Start(); err != nil {
		log.Fatal(err)
	}
	other = cmd.Process
	var err error
	for range 100 {
		var conn net.Conn
		if conn, err = net.Dial("tcp", "127.0.0.1:"+port); err == nil {
			return conn, func() usage { return usageOf(cmd.Process.Pid) }
		}
		time.Sleep(50 * time.Millisecond)
	}
	cmd.Process.Kill()
	log.Fatal(err)
	return nil, nil
}

// fill writes all values to a server that answers each with a line, and closes the connection.
func fill(conn net.Conn, all []values, set func(w io.Writer, key string, value []byte)) {
	defer conn.Close()
	go func() {
		w := bufio.NewWriter(conn)
		for _, v := range all {
			for i, key := range v.keys {
				set(w, key, v.at(i))
			}
		}
		w.Flush()
	}()
	answers := bufio.NewScanner(conn)
	for _, v := range all {
		for range v.keys {
			if !answers.Scan() || answers.Text() != "STORED" && answers.Text() != "+OK" {
				other.Kill()
				log.Fatalf("a value was not set: %q, %v", answers.Text(), answers.Err())
			}
		}
	}
}

func listen() net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	return l
}

func freePort() string {
	l := listen()
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// usage is what a process has used so far.
type usage struct {
	cpu     time.Duration
	mallocs float64 // NaN if not known
}

func (u usage) since(before usage) usage {
	return usage{u.cpu - before.cpu, u.mallocs - before.mallocs}
}

func usageHere() usage {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		log.Fatal(err)
	}
	return usage{time.Duration(r.Utime.Nano() + r.Stime.Nano()), float64(m.Mallocs)}
}

// usageOf is that of another process, in hundredths of a second, in which Linux tells it.
func usageOf(pid int) usage {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		log.Fatal(err)
	}
	_, after, _ := bytes.Cut(stat, []byte(") ")) // the name, which may be anything, ends there
	fields := strings.Fields(string(after))
	if len(fields) < 13 {
		log.Fatalf("/proc/%d/stat: %q", pid, stat)
	}
	user, bad1 := strconv.Atoi(fields[11])
	system, bad2 := strconv.Atoi(fields[12])
	if err := errors.Join(bad1, bad2); err != nil {
		log.Fatal(err)
	}
	return usage{time.Duration(user+system) * 10 * time.Millisecond, math.NaN()}
}

// A server is the process, as the one that asks sees it.
type server struct {
	addr  string
	cmd   *exec.Cmd
	ask   io.WriteCloser
	lines *bufio.Scanner
}

// launch starts a server of all, and returns when it holds them.
func launch(name string, all []values) *server {
	program, err := os.Executable()
	if err != nil {
		log.Fatal(err)
	}
	what := name
	for _, v := range all {
		what += fmt.Sprintf(" %dx%d", v.size, len(v.keys))
	}
	s := &server{cmd: exec.Command(program)}
	s.cmd.Env = append(os.Environ(), serverEnv+"="+what)
	s.cmd.Stderr = os.Stderr
	out, bad1 := s.cmd.StdoutPipe()
	s.ask, err = s.cmd.StdinPipe()
	if err := errors.Join(bad1, err, s.cmd.Start()); err != nil {
		log.Fatal(err)
	}
	s.lines = bufio.NewScanner(out)
	s.addr = s.line()
	return s
}

func (s *server) line() string {
	if !s.lines.Scan() {
		log.Fatalf("the server's process is gone: %v", s.cmd.Wait())
	}
	return s.lines.Text()
}

func (s *server) usage() usage {
	if _, err := io.WriteString(s.ask, "\n"); err != nil {
		log.Fatal(err)
	}
	var u usage
	if _, err := fmt.Sscan(s.line(), (*int64)(&u.cpu), &u.mallocs); err != nil {
		log.Fatal(err)
	}
	return u
}

func (s *server) stop() {
	s.ask.Close()
	if err := s.cmd.Wait(); err != nil {
		log.Print(err)
	}
}
