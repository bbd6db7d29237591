module github.com/shoalcache/shoal/checker

go 1.26

replace github.com/shoalcache/shoal => ../

require (
	github.com/anishathalye/porcupine v1.3.1
	github.com/shoalcache/shoal v0.0.0
	golang.org/x/sys v0.47.0
	google.golang.org/protobuf v1.36.12
)

require (
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	golang.org/x/sync v0.22.0 // indirect
)
