//go:build race

package runner

const raceEnabled = true // processes start slowly and are large
