package server

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"text/template"
)

// bootstrapScript is a script as a server makes it.
func bootstrapScript(t *testing.T, name string, quote func(string) string) string {
	t.Helper()
	text, err := scripts.ReadFile("script/" + name)
	if err != nil {
		t.Fatal(err)
	}
	data := bootstrapData{Server: quote("https://skep.example"), Token: quote(""), TLSCA: quote("")}
	for _, p := range platforms {
		data.Code = append(data.Code, platformCode{p.OS, p.Arch, quote(strings.Repeat("a", 64))})
	}
	var b strings.Builder
	if err := template.Must(template.New(name).Parse(string(text))).Execute(&b, data); err != nil {
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
