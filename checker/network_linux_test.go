package checker

// network_linux_test.go: a network of real IP packets, which a relay carries from one namespace to another, or loses.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A network joins hosts, each of them a network namespace with one interface, a TUN device. What is sent there comes to
// the relay, which is this process, packet by packet. The namespaces have no names: the kernel takes them away when their
// processes and this one have ended, however that comes, so nothing can be left behind.
type network struct {
	hosts []*host

	mu    sync.Mutex // guards what follows
	rng   *rand.Rand
	loss  [][]float64 // share of packets, by sender and receiver
	delay [][]time.Duration
}

// A host is a namespace, which belongs to one thread, and what is started by that.
type host struct {
	addr string
	tun  *os.File
	do   chan func() // to be done in the namespace
}

// newNetwork makes a network of that many hosts. It skips t where that is not permitted.
func newNetwork(t *testing.T, size int, seed uint64) *network {
	n := &network{rng: rand.New(rand.NewPCG(seed, 2))}
	var relays sync.WaitGroup
	t.Cleanup(func() {
		for _, h := range n.hosts {
			h.tun.Close()
			close(h.do)
		}
		relays.Wait()
	})
	for i := range size {
		h, err := newHost(i)
		switch {
		case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOSYS):
			t.Skipf("this takes network namespaces and /dev/net/tun, as root has them: %v", err)
		case err != nil:
			t.Fatal(err)
		}
		n.hosts = append(n.hosts, h)
		n.loss, n.delay = append(n.loss, make([]float64, size)), append(n.delay, make([]time.Duration, size))
	}
	for i := range size {
		relays.Go(func() { n.relay(i) })
	}
	return n
}

func newHost(i int) (*host, error) {
	h := &host{addr: fmt.Sprintf("10.1.1.%d", i+1), do: make(chan func())}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its goroutine, since nobody else can use it
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- os.NewSyscallError("unshare", err)
			return
		}
		err := h.plug(byte(i + 1))
		made <- err
		if err != nil {
			return
		}
		for f := range h.do {
			f()
		}
	}()
	return h, <-made
}

// plug gives the namespace its interface.
func (h *host) plug(last byte) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	}
	ifr, err := unix.NewIfreq(nic)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		return os.NewSyscallError("TUNSETIFF", err)
	}
	h.tun = os.NewFile(uintptr(fd), "/dev/net/tun")
	err = configure(nic, unix.SIOCSIFADDR, func(ifr *unix.Ifreq) error { return ifr.SetInet4Addr([]byte{10, 1, 1, last}) })
	if err == nil {
		err = configure(nic, unix.SIOCSIFNETMASK, func(ifr *unix.Ifreq) error { return ifr.SetInet4Addr([]byte{255, 255, 255, 0}) })
	}
	if err == nil {
		err = setUp(nic, true)
	}
	if err == nil {
		err = setUp("lo", true)
	}
	if err != nil {
		h.tun.Close()
	}
	return err
}

const nic = "shoal"

// setUp switches an interface on or off.
func setUp(name string, up bool) error {
	return configure(name, unix.SIOCSIFFLAGS, func(ifr *unix.Ifreq) error {
		if up {
			ifr.SetUint16(unix.IFF_UP)
		} else {
			ifr.SetUint16(0)
		}
		return nil
	})
}

// configure changes what the interface of that name in this thread's namespace is.
func configure(name string, what uint, set func(*unix.Ifreq) error) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		err = set(ifr)
	}
	if err == nil {
		err = os.NewSyscallError("ioctl", unix.IoctlIfreq(s, what, ifr))
	}
	if err != nil {
		return fmt.Errorf("configure %s (%#x): %w", name, what, err)
	}
	return nil
}

// inside calls f in the namespace.
func (h *host) inside(f func() error) error {
	done := make(chan error)
	h.do <- func() { done <- f() }
	return <-done
}

// relay carries what host from sends to whom it is for.
func (n *network) relay(from int) {
	packet := make([]byte, 1<<16)
	for {
		size, err := n.hosts[from].tun.Read(packet)
		if errors.Is(err, os.ErrClosed) {
			return
		} else if err != nil {
			<-time.After(10 * time.Millisecond) // it is switched off
			continue
		}
		const version4, header = 4, 20
		if size < header || packet[0]>>4 != version4 {
			continue
		}
		to := int(binary.BigEndian.Uint32(packet[16:])) - (10<<24 | 1<<16 | 1<<8 | 1)
		if to < 0 || to >= len(n.hosts) || to == from {
			continue
		}
		n.mu.Lock()
		lost, delay := n.rng.Float64() < n.loss[from][to], n.delay[from][to]
		n.mu.Unlock()
		if lost {
			continue
		}
		carried := append([]byte(nil), packet[:size]...)
		time.AfterFunc(delay, func() { n.hosts[to].tun.Write(carried) }) // into what is switched off: lost
	}
}

// lose loses a share of the packets from one host to another.
func (n *network) lose(from, to int, share float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss[from][to] = share
}

// slow delays all packets, on each way by another time of up to the longest.
func (n *network) slow(rng *rand.Rand, longest time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for from := range n.delay {
		for to := range n.delay {
			n.delay[from][to] = time.Duration(rng.Int64N(int64(longest)))
		}
	}
}

// partition cuts those on different sides off from each other.
func (n *network) partition(side []int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for from := range n.loss {
		for to := range n.loss {
			if side[from] != side[to] {
				n.loss[from][to] = 1
			}
		}
	}
}

// heal loses no packet any more.
func (n *network) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, to := range n.loss {
		clear(to)
	}
}
