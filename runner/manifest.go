package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/skepdev/skep/api/botapi"
)

// requiredKeys are what a manifest cannot do without. spec bot.md §4.2.
var requiredKeys = []string{"bot_dimensions", "bot_id", "grace_period", "hard_timeout", "io_timeout", "task_id"}

// parseManifest reads a manifest and says in one sentence what is wrong with
// it. The manifest it returns beside an error holds what could be read, so
// that the task can be failed by its id.
func parseManifest(raw json.RawMessage) (*botapi.Manifest, error) {
	m := &botapi.Manifest{}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(raw, &keys); err != nil {
		return m, errors.New("the manifest is not a JSON object")
	}
	if err := json.Unmarshal(raw, m); err != nil {
		loose := botapi.ManifestTask(raw)
		m.TaskID = loose
		if t, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return m, fmt.Errorf("the manifest's %s is a %s, want %s", t.Field, t.Value, jsonType(t.Type.Kind().String()))
		}
		return m, fmt.Errorf("the manifest does not decode: %w", err)
	}
	for _, k := range requiredKeys {
		if v, ok := keys[k]; !ok || string(v) == "null" {
			return m, fmt.Errorf("the manifest has no %s", k)
		}
	}
	switch {
	case m.TaskID == "":
		return m, errors.New("the manifest's task_id is empty")
	case strings.ContainsAny(m.TaskID, "/?#% "):
		return m, fmt.Errorf("the manifest's task_id %q is not an id", m.TaskID)
	case m.HardTimeout < 0, m.IOTimeout < 0, m.GracePeriod < 0:
		return m, errors.New("the manifest has a negative time limit")
	case max(m.HardTimeout, m.IOTimeout, m.GracePeriod) > maxSeconds:
		return m, errors.New("the manifest has a time limit of more than a year")
	}
	for k, v := range m.Env {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(v, "\x00") {
			return m, fmt.Errorf("the manifest's env %q cannot be in an environment", k)
		}
	}
	for _, a := range m.Command {
		if strings.Contains(a, "\x00") {
			return m, errors.New("the manifest's command has a NUL byte")
		}
	}
	return m, nil
}

// maxSeconds keeps sums of time limits far from overflow.
const maxSeconds = 366 * 24 * 3600

func jsonType(kind string) string {
	switch kind {
	case "int64", "int":
		return "an integer"
	case "map", "struct":
		return "an object"
	case "slice":
		return "a list"
	default:
		return "a " + kind
	}
}

// unsupported reports inputs that this bot cannot provide yet.
func unsupported(m *botapi.Manifest) (string, *botapi.ClientError) {
	if in := m.CIPDInput; in != nil && len(in.Packages) > 0 {
		e := &botapi.ClientError{MissingCAS: []botapi.MissingCAS{}}
		for _, p := range in.Packages {
			p.Status = "not_supported"
			e.MissingCIPD = append(e.MissingCIPD, p)
		}
		return "this bot cannot install packages yet; run the task without cipd_input", e
	}
	return "", nil
}

// taskServer is where the task's calls go: the manifest's host when it has the
// origin of the bot's own server. decisions.md 19.
func taskServer(host, server string) string {
	h, err1 := url.Parse(host)
	s, err2 := url.Parse(server)
	if host == "" || err1 != nil || err2 != nil || h.Scheme != s.Scheme || h.Host != s.Host {
		return server
	}
	return h.Scheme + "://" + h.Host
}
