module github.com/shoalcache/shoal

go 1.26

require (
	github.com/cespare/xxhash/v2 v2.3.0
	github.com/golang/groupcache v0.0.0-20241129210726-2c02b8208cf8
	golang.org/x/sync v0.22.0
	google.golang.org/protobuf v1.36.12
)

require github.com/golang/protobuf v1.5.4 // indirect
