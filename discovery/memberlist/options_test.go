package memberlist

import (
	"strings"
	"testing"

	"github.com/hashicorp/memberlist"

	"github.com/shoalcache/shoal"
)

func TestBadOptionIsNamed(t *testing.T) {
	with := func(change func(*memberlist.Config)) *memberlist.Config {
		config := memberlist.DefaultLANConfig()
		change(config)
		return config
	}
	for name, tests := range map[string][]Options{
		"Options.Bind": {
			{Bind: "7946"}, {Bind: "localhost:7946"}, {Bind: ":gossip"}, {Bind: ":65536"}, {Bind: "fe80::1:7946"}, {Bind: "[fe80::1%eth0]:7946"},
		},
		"Options.Advertise":       {{Advertise: "10.0.0.1"}, {Advertise: ":7946"}, {Advertise: "10.0.0.1:0"}, {Advertise: "0.0.0.0:7946"}, {Advertise: "host:7946"}},
		"Options.Seeds":           {{Seeds: []string{"10.0.0.1:7946", "host"}}, {Seeds: []string{""}}, {Seeds: []string{":7946"}}, {Seeds: []string{"host:0"}}, {Seeds: []string{"http://host:7946"}}},
		"Options.Key":             {{Key: []byte{}}, {Key: make([]byte, 15)}, {Key: make([]byte, 64)}},
		"Options.Config:":         {{Config: new(memberlist.Config)}},
		"Options.Config.Delegate": {{Config: with(func(c *memberlist.Config) { c.Delegate = announcement("") })}},
		"Options.Config.Events":   {{Config: with(func(c *memberlist.Config) { c.Events = new(members) })}},
	} {
		for _, opts := range tests {
			if d, err := New(&opts); err == nil || d != nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%+v: %v, want one that names %s", opts, err, name)
			}
		}
	}
}

func TestZeroOptionsAreGood(t *testing.T) {
	for _, opts := range []*Options{nil, {}, {Bind: "127.0.0.1:0"}, {Bind: "[::1]:0"}, {Bind: "[::]:7946", Advertise: "[2001:db8::1]:1"}} {
		if d, err := New(opts); d == nil || err != nil {
			t.Errorf("%+v: %v", opts, err)
		}
	}
}

func TestSelfThatCannotBeAnnouncedIsAnError(t *testing.T) {
	d, err := New(&Options{Bind: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	err = d(t.Context(), shoal.Peer{Addr: "http://host/" + strings.Repeat("x", 501)}, func([]shoal.Peer) { t.Error("it is listed") })
	if err == nil || !strings.Contains(err.Error(), "shoal.Options.Self") {
		t.Errorf("%v, want one that names shoal.Options.Self", err)
	}
}

func TestWhereOthersReachThisProcess(t *testing.T) {
	for _, test := range []struct {
		bind, advertise, self string
		addr                  string
		port                  int
	}{
		{":7946", "", "http://10.0.0.1:8080", "10.0.0.1", 1},
		{"[::]:7946", "", "http://[2001:db8::1]:8080", "2001:db8::1", 1},
		{":7946", "192.0.2.1:99", "http://10.0.0.1:8080", "192.0.2.1", 99},
		{"10.0.0.2:7946", "", "http://10.0.0.1:8080", "", 1},
		{":7946", "", "http://host:8080", "", 1},
		{":7946", "", "http://0.0.0.0:8080", "", 1},
		{":7946", "", "unix:///run/socket", "", 1},
		{":7946", "", "", "", 1},
	} {
		var d discovery
		var err error
		if d.bind, err = parseAddr(test.bind, true); err != nil {
			t.Fatal(err)
		}
		if test.advertise != "" {
			if d.advertise, err = parseAddr(test.advertise, false); err != nil {
				t.Fatal(err)
			}
		}
		d.Config = new(memberlist.Config)
		if addr, port := d.advertised(test.self, 1); addr != test.addr || port != test.port {
			t.Errorf("%+v: got %q, %d", test, addr, port)
		}
	}
}

func FuzzMeta(f *testing.F) {
	for _, addr := range []string{"http://10.0.0.1:8080", "https://host/path", "unix:///run/socket", "ftp://x", "", "http://%zz"} {
		f.Add(addr)
	}
	f.Fuzz(func(t *testing.T, addr string) {
		if _, err := shoal.New(&shoal.Options{Self: addr}); err != nil && isBaseURL(addr) {
			t.Errorf("%q is listed, and is no Self: %v", addr, err)
		}
		ipOf(addr)
	})
}
