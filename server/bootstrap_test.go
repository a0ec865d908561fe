package server

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"text/template"
)

// bootstrapScript is the built-in script for a POSIX shell.
func bootstrapScript(t *testing.T, data bootstrapData) string {
	t.Helper()
	text, err := scripts.ReadFile("script/bootstrap.sh")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := template.Must(template.New("").Parse(string(text))).Execute(&b, data); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// runScript feeds text to sh in an empty directory, with args, and returns what
// it printed and left.
func runScript(t *testing.T, text string, args ...string) (out string, left []string, err error) {
	t.Helper()
	sh, lookErr := exec.LookPath("sh")
	if lookErr != nil {
		t.Skip("there is no POSIX shell here")
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), sh, append([]string{"-s", "--"}, args...)...)
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(text)
	b, err := cmd.CombinedOutput()
	entries, derr := os.ReadDir(dir)
	if derr != nil {
		t.Fatal(derr)
	}
	for _, e := range entries {
		left = append(left, e.Name())
	}
	return string(b), left, err
}

var everyPlatform = func() (list []platformCode) {
	for _, p := range platforms {
		list = append(list, platformCode{p.OS, p.Arch, quoteSh(strings.Repeat("0", 64))})
	}
	return list
}()

// A download that breaks off anywhere does nothing at all.
func TestBootstrapCutShort(t *testing.T) {
	text := bootstrapScript(t, bootstrapData{Server: quoteSh("http://127.0.0.1:1"), Token: quoteSh("skep_x"), TLSCA: quoteSh(""), Code: everyPlatform})
	body := strings.Index(text, "{ #")
	for cut := body + 1; cut < len(text)-1; cut += 211 {
		out, left, err := runScript(t, text[:cut])
		if err == nil || len(left) > 0 {
			t.Fatalf("cut after %d of %d bytes it ended with %v, left %q and said:\n%s", cut, len(text), err, left, out)
		}
	}
}

// What a server is called and what a token says stays text.
func TestBootstrapRunsNothingOfItsValues(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "ran")
	evil := "x'; touch " + mark + "; echo '$(touch " + mark + ")`touch " + mark + "`\n touch " + mark
	text := bootstrapScript(t, bootstrapData{Server: quoteSh(strings.ReplaceAll(evil, "\n", " ")), Token: quoteSh(evil), TLSCA: quoteSh(evil), Code: everyPlatform})
	for _, args := range [][]string{{"--print"}, {"--print", "--service"}, {"--print", "--rc-local", "--id", "b1"}, {"--id", "x;y"}, {"--user", "$(id)"}, {"--dir", "a b"}} {
		out, left, _ := runScript(t, text, args...)
		if _, err := os.Stat(mark); err == nil {
			t.Fatalf("%v: a value ran; output:\n%s", args, out)
		}
		if len(left) > 0 {
			t.Errorf("%v: left %q", args, left)
		}
	}
}
