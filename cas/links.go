package cas

import (
	"path"
	"strings"
)

// maxHops is how many links Linux follows in one path (path_resolution(7)).
const maxHops = 40

// LeavingLink follows each symlink of a tree through the others and returns the
// path of one that leads outside of it, "" when there is none. links are
// targets by slash-separated paths below the root; each alone stays inside, as
// Escapes says. What does not leave a tree as text can leave it that way: ".."
// is taken where a link led to.
func LeavingLink(links map[string]string) string {
	for name, target := range links {
		at, rest, hops := parentOf(name), strings.Split(target, "/"), 0
		for len(rest) > 0 {
			part := rest[0]
			rest = rest[1:]
			if part == "" || part == "." {
				continue
			}
			if part == ".." {
				if at == "" {
					return name
				}
				at = parentOf(at)
				continue
			}
			next := path.Join(at, part)
			if further, ok := links[next]; ok {
				if hops++; hops > maxHops {
					break // the system gives up here too
				}
				rest = append(strings.Split(further, "/"), rest...)
				continue
			}
			at = next // a file, a directory, or nothing yet
		}
	}
	return ""
}

func parentOf(p string) string {
	if p = path.Dir(p); p == "." {
		return ""
	}
	return p
}
