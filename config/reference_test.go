package config

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type protoMessage struct {
	name, comment string // name as the rules have it
	file          string
	fields        []protoField
	enum          bool
}

type protoField struct {
	name, kind, number, comment string
}

var (
	openLine  = regexp.MustCompile(`^(message|enum|oneof|service) (\w+) \{$`)
	fieldLine = regexp.MustCompile(`^((?:repeated |optional )?[\w.]+|map<[\w., ]+>) (\w+) = (\d+)(?: \[.*\])?;$`)
	valueLine = regexp.MustCompile(`^(\w+) = (\d+);$`)
)

// parseProtos reads messages, fields and comments from the .proto files, which
// are ours and have one statement per line.
func parseProtos(t *testing.T) []*protoMessage {
	t.Helper()
	var out []*protoMessage
	for _, path := range []string{
		"configpb/settings.proto", "configpb/pools.proto", "configpb/bots.proto", "configpb/common.proto",
		"../api/providerpb/config.proto", "../api/providerpb/projectspb/projects.proto",
	} {
		name := strings.TrimSuffix(filepath.Base(path), ".proto")
		if name == "config" {
			name = "vms"
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var stack []*protoMessage
		var names, comment []string
		for line := range strings.Lines(string(b)) {
			line = strings.TrimSpace(line)
			if text, ok := strings.CutPrefix(line, "//"); ok {
				comment = append(comment, strings.TrimSpace(text))
				continue
			}
			said := strings.Join(comment, " ")
			comment = nil
			if m := openLine.FindStringSubmatch(line); m != nil {
				if m[1] == "oneof" {
					stack = append(stack, stack[len(stack)-1])
					names = append(names, "")
					continue
				}
				names = append(names, m[2])
				var full []string
				for _, n := range names {
					if n != "" {
						full = append(full, n)
					}
				}
				one := &protoMessage{name: strings.Join(full, "."), comment: said, file: name, enum: m[1] == "enum"}
				out = append(out, one)
				stack = append(stack, one)
			} else if line == "}" {
				stack, names = stack[:len(stack)-1], names[:len(names)-1]
			} else if m := fieldLine.FindStringSubmatch(line); m != nil && len(stack) > 0 {
				top := stack[len(stack)-1]
				top.fields = append(top.fields, protoField{m[2], m[1], m[3], said})
			} else if m := valueLine.FindStringSubmatch(line); m != nil && len(stack) > 0 {
				top := stack[len(stack)-1]
				top.fields = append(top.fields, protoField{m[1], "", m[2], said})
			}
		}
	}
	return out
}

// reference is the part of docs/configuration.md that is made of the comments
// in the protos.
func reference(t *testing.T) string {
	var b strings.Builder
	file := ""
	for _, m := range parseProtos(t) {
		if m.file != file {
			file = m.file
			title := file + ".cfg"
			if file == "common" {
				title = "What they share"
			}
			fmt.Fprintf(&b, "\n### %s\n", title)
		}
		if strings.HasPrefix(m.comment, "Refused") || len(m.fields) == 0 || strings.HasSuffix(m.name, "Request") || strings.HasSuffix(m.name, "Response") {
			continue
		}
		fmt.Fprintf(&b, "\n#### `%s`\n\n%s\n\n", m.name, m.comment)
		if m.enum {
			b.WriteString("| value | # | meaning |\n|---|---|---|\n")
		} else {
			b.WriteString("| field | # | type | meaning |\n|---|---|---|---|\n")
		}
		for _, f := range m.fields {
			comment := strings.ReplaceAll(f.comment, "|", `\|`)
			if m.enum {
				fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.name, f.number, comment)
			} else {
				fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.name, f.number, f.kind, comment)
			}
		}
	}
	return b.String()
}

// TestReference holds docs/configuration.md to the protos. SKEP_UPDATE_DOCS=1
// writes it.
func TestReference(t *testing.T) {
	const doc, begin = "../docs/configuration.md", "<!-- The rest is made of the comments in config/configpb: SKEP_UPDATE_DOCS=1 go test ./config -run TestReference -->\n"
	b, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	head, got, ok := strings.Cut(string(b), begin)
	if !ok {
		t.Fatalf("%s lacks the line %s", doc, begin)
	}
	want := reference(t)
	if os.Getenv("SKEP_UPDATE_DOCS") != "" {
		if err := os.WriteFile(doc, []byte(head+begin+want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s is not what the protos say (-want +got)\n%s", doc, diff)
	}
}
