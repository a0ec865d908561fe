package code

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep"
)

var config = Config{Server: "https://skep.example", ServerVersion: "1", TLSCA: "-----BEGIN CERTIFICATE-----\n"}

func compose(t *testing.T, exe string, files ...File) string {
	t.Helper()
	var b bytes.Buffer
	if err := Compose(&b, []byte(exe), config, files...); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "swarming_bot.zip")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestComposeAndRead(t *testing.T) {
	path := compose(t, "#!/bin/sh\nexit 0\n", File{"hooks/bot_config.star", []byte("pass\n")})
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(config, got); d != "" {
		t.Errorf("config (-want +got):\n%s", d)
	}
	hook, err := ReadFile(path, "hooks/bot_config.star")
	if err != nil || string(hook) != "pass\n" {
		t.Errorf("hook = %q, %v", hook, err)
	}
	if _, err := ReadFile(path, "nothing"); skep.KindOf(err) != skep.NotFound {
		t.Errorf("missing file: %v", err)
	}
	data, _ := os.ReadFile(path)
	sum := sha256.Sum256(data)
	if v, err := Version(path); err != nil || v != hex.EncodeToString(sum[:]) {
		t.Errorf("version = %s, %v", v, err)
	}
}

func TestComposeIsReproducible(t *testing.T) {
	a, _ := os.ReadFile(compose(t, "exe", File{"b", nil}, File{"a", []byte("1")}))
	b, _ := os.ReadFile(compose(t, "exe", File{"a", []byte("1")}, File{"b", nil}))
	if !bytes.Equal(a, b) {
		t.Error("equal arguments gave different bytes")
	}
	// The digest is pinned: a new version of Go must not change a fleet's bots.
	sum := sha256.Sum256(a)
	const want = "5824c2f4c975446a9f4df0f5127b6b5ace71dc9d2992cf147c947c4374057601"
	if got := hex.EncodeToString(sum[:]); got != want {
		t.Errorf("digest = %s, want %s", got, want)
	}
}

func TestComposeRefuses(t *testing.T) {
	whole, _ := os.ReadFile(compose(t, "exe"))
	tests := []struct {
		name  string
		exe   []byte
		cfg   Config
		files []File
		want  string
	}{
		{"a bot with a zip", whole, config, nil, "carries a zip already"},
		{"a trailing slash", nil, Config{Server: "https://a/"}, nil, "must be written"},
		{"plain HTTP to another machine", nil, Config{Server: "http://a.example"}, nil, "plain HTTP"},
		{"an unknown way to reboot", nil, Config{Server: "https://a", Reboot: "hard"}, nil, "reboot"},
		{"a name twice", nil, config, []File{{"x", nil}, {"x", nil}}, "twice"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := Compose(&bytes.Buffer{}, tt.exe, tt.cfg, tt.files...)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("err = %v, want %q in it", err, tt.want)
			}
		})
	}
}

func TestBareExecutable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "skep-bot")
	if err := os.WriteFile(path, []byte("\x7fELF"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); !errors.Is(err, ErrBare) {
		t.Errorf("err = %v, want ErrBare", err)
	}
}

// Existing start scripts call `python3 swarming_bot.zip start_bot`.
func TestPythonStartsTheExecutable(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3")
	}
	path := compose(t, "#!/bin/sh\necho started \"$@\"\nexit 3\n")
	out, err := exec.Command(python, path, "start_bot", "--test-mode").CombinedOutput()
	if got := string(out); got != "started start_bot --test-mode\n" {
		t.Errorf("output = %q (%v)", got, err)
	}
	if e, ok := errors.AsType[*exec.ExitError](err); !ok || e.ExitCode() != 3 {
		t.Errorf("err = %v, want exit code 3", err)
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"server":"https://a","server_version":"1"}`))
	f.Add([]byte(`{"server":"http://127.0.0.1:8900","reboot":"none","enable_ts_monitoring":false}`))
	f.Add([]byte(`{"server":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseConfig(data)
		if err == nil && c.Validate() != nil {
			t.Errorf("accepted %+v", c)
		}
	})
}
