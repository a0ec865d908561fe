package archive

import (
	"path"
	"strings"

	"github.com/bmatcuk/doublestar/v4"

	"github.com/skepdev/skep"
)

// globs are patterns as .gitignore has them: one without a slash matches a name
// at any depth, one with a slash a path from the root; ** matches directories;
// one that ends in a slash matches directories only.
type globs []glob

type glob struct {
	pattern string
	dirs    bool // directories only
	not     bool // what matches is out again
}

// parseGlobs reads patterns; field names the option in errors.
func parseGlobs(field string, patterns []string) (globs, error) {
	var out globs
	for _, p := range patterns {
		var g glob
		rest, not := strings.CutPrefix(p, "!")
		rest, g.dirs = strings.CutSuffix(rest, "/")
		g.not = not
		anchored := strings.Contains(rest, "/")
		rest = strings.TrimPrefix(rest, "/")
		if !anchored {
			rest = "**/" + rest
		}
		if rest == "" || rest == "**/" || !doublestar.ValidatePattern(rest) {
			return nil, skep.Invalidf(field, "%q is no pattern", p)
		}
		g.pattern = rest
		out = append(out, g)
	}
	return out, nil
}

// match reports whether the last pattern that matches the path says yes.
func (gs globs) match(name string, dir bool) bool {
	yes := false
	for _, g := range gs {
		if yes != g.not || g.dirs && !dir {
			continue // it would change nothing
		}
		if doublestar.MatchUnvalidated(g.pattern, name) {
			yes = !g.not
		}
	}
	return yes
}

// covers reports whether a pattern matches the path or a directory above it.
func (gs globs) covers(name string, dir bool) bool {
	for ; name != "."; name, dir = path.Dir(name), true {
		if gs.match(name, dir) {
			return true
		}
	}
	return false
}

// Escape returns a pattern that matches exactly the path.
func Escape(p string) string {
	var b strings.Builder
	b.WriteByte('/')
	for _, r := range strings.TrimPrefix(p, "/") {
		if strings.ContainsRune(`*?[]{}\!`, r) {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}
