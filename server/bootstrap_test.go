package server

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep/internal/bootstrap"
)

// bootstrapScript is a script as a server makes it.
func bootstrapScript(t *testing.T, name string, quote func(string) string) string {
	t.Helper()
	text, err := scripts.ReadFile("script/" + name)
	if err != nil {
		t.Fatal(err)
	}
	data := bootstrap.Data{Server: quote("https://skep.example"), Token: quote(""), TLSCA: quote("")}
	for _, p := range platforms {
		data.Code = append(data.Code, bootstrap.Code{OS: p.OS, Arch: p.Arch, Digest: quote(strings.Repeat("a", 64))})
	}
	var b strings.Builder
	if err := bootstrap.Fill(&b, name, string(text), data); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestBootstrapPlist looks at what a Mac would be given.
func TestBootstrapPlist(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("no shell")
	}
	bin := t.TempDir() // with a uname that says Darwin
	if err := os.WriteFile(filepath.Join(bin, "uname"), []byte("#!/bin/sh\n[ \"$1\" = -m ] && echo arm64 || echo Darwin\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, how := range []string{"--service", "--at-login"} {
		cmd := exec.Command(sh, "-s", "--", how, "--print", "--dir", "/Users/bot/skep-bot", "--id", "mac-1")
		cmd.Stdin = strings.NewReader(bootstrapScript(t, "bootstrap.sh", quoteSh))
		cmd.Env = []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=/nonexistent"}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", how, err, out)
		}
		var texts []string
		for d := xml.NewDecoder(strings.NewReader(string(out))); ; {
			tok, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: not well-formed: %v\n%s", how, err, out)
			}
			if c, ok := tok.(xml.CharData); ok && strings.TrimSpace(string(c)) != "" {
				texts = append(texts, string(c))
			}
		}
		got := strings.Join(texts, " ")
		for _, want := range []string{"Label dev.skep.bot", "/Users/bot/skep-bot/swarming_bot start_slave", "SWARMING_BOT_ID mac-1", "SuccessfulExit"} {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in %s", how, want, got)
			}
		}
	}
}

// bootstrapOnLinux runs the script where /etc is etc and su does nothing, in a
// directory with a bot.
func bootstrapOnLinux(t *testing.T, etc string, args ...string) string {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("the script finds out that this is no Linux")
	}
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	bin, home := t.TempDir(), t.TempDir()
	dir := filepath.Join(home, "bot")
	for name, text := range map[string]string{filepath.Join(bin, "su"): "#!/bin/sh\n", filepath.Join(dir, "swarming_bot"): "#!/bin/sh\n"} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(sh, append([]string{"-s", "--", "--dir", dir}, args...)...)
	cmd.Stdin = strings.NewReader(strings.ReplaceAll(bootstrapScript(t, "bootstrap.sh", quoteSh), "/etc/", etc+"/"))
	cmd.Env = []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + home}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return strings.ReplaceAll(string(out), dir, "DIR")
}

// What is installed runs: the line stands before the exit that rc.local ends
// with. Row B5.
func TestBootstrapRcLocal(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	line := "su -s /bin/sh " + me.Username + " -c 'sh DIR/start_bot.sh' &\n"
	for name, tc := range map[string]struct{ before, want string }{
		"none":             {"", "#!/bin/sh\n" + line},
		"ends with exit":   {"#!/bin/sh -e\nif x; then\n  exit 1\nfi\necho hi\nexit 0\n", "#!/bin/sh -e\nif x; then\n  exit 1\nfi\necho hi\n" + line + "exit 0\n"},
		"without exit":     {"#!/bin/sh\necho hi\n", "#!/bin/sh\necho hi\n" + line},
		"without last end": {"#!/bin/sh\necho hi", "#!/bin/sh\necho hi\n" + line},
	} {
		t.Run(name, func(t *testing.T) {
			etc := t.TempDir()
			file := filepath.Join(etc, "rc.local")
			if tc.before != "" {
				if err := os.WriteFile(filepath.Join(etc, "real"), []byte(tc.before), 0o644); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink("real", file); err != nil {
					t.Fatal(err)
				}
			}
			printed := bootstrapOnLinux(t, etc, "--rc-local", "--print")
			if !strings.Contains(printed, line) || !strings.Contains(printed, "./swarming_bot start_slave") {
				t.Errorf("--print shows\n%s", printed)
			}
			bootstrapOnLinux(t, etc, "--rc-local")
			got, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, regexp.MustCompile(`sh /\S+/bot/start`).ReplaceAllString(string(got), "sh DIR/start")); diff != "" {
				t.Error(diff)
			}
			if st, err := os.Stat(file); err != nil || st.Mode()&0o111 != 0o111 {
				t.Errorf("%v %v", st.Mode(), err)
			}
		})
	}
}

func TestBootstrapAtLogin(t *testing.T) {
	printed := bootstrapOnLinux(t, t.TempDir(), "--at-login", "--print")
	for _, want := range []string{"[Desktop Entry]\n", "Exec=sh DIR/start_bot.sh\n", "./swarming_bot start_slave"} {
		if !strings.Contains(printed, want) {
			t.Errorf("no %q in\n%s", want, printed)
		}
	}
}

// TestBootstrapWindows looks at what a Windows would be given.
func TestBootstrapWindows(t *testing.T) {
	text := bootstrapScript(t, "bootstrap.ps1", quotePS)
	for _, want := range []string{
		"$create = \"sc.exe create skep-bot binPath= '$serve' start= auto\"",
		"$serve = \"`\"$exe`\" service\"",
		"sc.exe create skep-bot binPath= $serve start= auto",
		"$run = \"`\"$exe`\" start_slave\"",
		"'amd64' = '" + strings.Repeat("a", 64) + "'",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}
