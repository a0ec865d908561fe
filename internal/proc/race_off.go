//go:build !race

package proc

func withRace(env []string) []string { return env }
