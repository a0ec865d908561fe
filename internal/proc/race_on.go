//go:build race

package proc

import "os"

// withRace hands the race detector's own settings on to children that are
// built with it too, whatever else of the environment they get: by its default
// each of them would sleep for a second before it ends.
func withRace(env []string) []string {
	if v, ok := os.LookupEnv("GORACE"); ok {
		return append(env[:len(env):len(env)], "GORACE="+v)
	}
	return env
}
