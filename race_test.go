//go:build race

package shoal

// raceEnabled says that the race detector is on, which takes heap of its own and drops things from pools.
const raceEnabled = true
