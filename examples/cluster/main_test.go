package main

import (
	"strings"
	"testing"
	"time"
)

func TestOptionsThatMakeNoSense(t *testing.T) {
	for want, change := range map[string]func(*options){
		"-peers, -clients and":   func(o *options) { o.peers = 0 },
		"-clients and -owners":   func(o *options) { o.owners = 0 },
		"-latency and -min":      func(o *options) { o.latency = -time.Second },
		"-writes is from":        func(o *options) { o.writes = 1.5 },
		`memberlist, not "dns"`:  func(o *options) { o.discovery = "dns" },
		"kill, rolling, scale,":  func(o *options) { o.scenario = "flood" },
		"-keep is not for":       func(o *options) { o.scenario, o.keep = "kill", true },
		"at least 2 -peers":      func(o *options) { o.scenario, o.peers = "kill", 1 },
		"not for -discovery sta": func(o *options) { o.scenario, o.discovery = "scale", "static" },
		"":                       func(o *options) { o.scenario = "scale" },
	} {
		opts := options{peers: 3, owners: 1, clients: 1, discovery: "memberlist"}
		change(&opts)
		err := opts.invalid()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
