//go:build race

package machine

// raceEnabled is for what takes ten times as long with the race detector, which
// sees the same of less.
const raceEnabled = true
