package engine

import "testing"

func TestRepository(t *testing.T) {
	for ref, want := range map[string]string{
		"bot":                               "bot",
		"bot:latest":                        "bot",
		"docker.io/library/bot:latest":      "bot",
		"docker.io/team/bot@sha256:00":      "team/bot",
		"team/bot:1":                        "team/bot",
		"registry.example.com:5000/bot":     "registry.example.com:5000/bot",
		"registry.example.com:5000/bot:1":   "registry.example.com:5000/bot",
		"registry.example.com/library/b@x:": "registry.example.com/library/b",
	} {
		if got := Repository(ref); got != want {
			t.Errorf("repository of %s is %s, want %s", ref, got, want)
		}
	}
}
