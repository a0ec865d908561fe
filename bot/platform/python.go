package platform

import (
	"context"
	"encoding/json"
	"strings"
	"time"
)

// pythonAsk makes an interpreter describe itself in one line.
const pythonAsk = `import json, sys; print(json.dumps([sys.executable, sys.version, "%d.%d.%d" % sys.version_info[:3]]))`

// python adds what the python3 on PATH says of itself; nothing when there is
// none. The packages are not listed: pip takes seconds. spec bot.md §7.1, §7.3.
func (p *Platform) python(ctx context.Context, s *slowFacts) {
	if p.opt.Output == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	out, err := p.opt.Output(ctx, "python3", "-I", "-S", "-c", pythonAsk)
	var said [3]string
	if err != nil || json.Unmarshal(out, &said) != nil || said[2] == "" {
		return
	}
	s.dimensions["python"] = prefixes(said[2])
	s.state["python"] = map[string]any{"executable": said[0], "version": said[1], "packages": nil}
}

// prefixes of "3.11.2" are "3", "3.11" and "3.11.2".
func prefixes(version string) []string {
	var out []string
	for i := range len(version) {
		if version[i] == '.' {
			out = append(out, version[:i])
		}
	}
	return append(out, strings.TrimSuffix(version, "."))
}
