// Package shoalpb is the wire between Shoal's processes: shoal.proto, which is the contract, and what protoc makes of it.
package shoalpb

//go:generate protoc --go_out=. --go_opt=paths=source_relative shoal.proto
