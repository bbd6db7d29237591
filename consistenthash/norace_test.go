//go:build !race

package consistenthash_test

const race = false
