package botcli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep/bot/guest"
)

func TestInstallSystemd(t *testing.T) {
	var told []string
	s := &systemd{dir: t.TempDir(), tell: func(_ context.Context, args ...string) error {
		told = append(told, strings.Join(args, " "))
		return nil
	}}
	v := vm{user: "swarming", metadata: metadataHost}
	g := guest.Service{Dir: "/b/swarming", Exe: "/b/swarming/swarming_bot", Server: "https://skep.example.com", Bot: "bots-0-ab12"}
	for range 2 { // the second time nothing is written
		told = nil
		if err := s.install(t.Context(), v, g); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]string{"daemon-reload", "enable skep-bot.service", "start --no-block skep-bot.service"}, told); d != "" {
			t.Error(d)
		}
	}
	path := filepath.Join(s.dir, "skep-bot.service")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"\nUser=swarming\n", "\nWorkingDirectory=/b/swarming\n", "\nExecStart=/b/swarming/swarming_bot start_slave\n", "\nEnvironment=SWARMING_BOT_ID=bots-0-ab12\n",
		"\nEnvironment=SKEP_BOT_IDENTITY=gce\n", "\nOOMPolicy=continue\n", "\nRestart=on-failure\n", "\nRestartSec=2\n", "\nLimitNOFILE=50000\n", "\nEnvironmentFile=-/etc/swarming/env\n",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the unit lacks %q:\n%s", want, text)
		}
	}
	if strings.Contains(string(text), "@") || strings.Contains(string(text), "GCE_METADATA_HOST") {
		t.Errorf("the unit:\n%s", text)
	}
	v.metadata = "127.0.0.1:80"
	if err := s.install(t.Context(), v, g); err != nil {
		t.Fatal(err)
	}
	if text, _ = os.ReadFile(path); !strings.Contains(string(text), "\nEnvironment=GCE_METADATA_HOST=127.0.0.1:80\n") {
		t.Errorf("the unit:\n%s", text)
	}
	g.Server = "https://%n"
	if err := s.install(t.Context(), v, g); err == nil {
		t.Error("a server that would be something else in a unit was taken")
	}
	g.Server = "https://a"
	s.tell = func(context.Context, ...string) error { return errors.New("no bus") }
	if err := s.install(t.Context(), v, g); err == nil || !strings.Contains(err.Error(), "systemctl daemon-reload: no bus") {
		t.Errorf("%v", err)
	}
}

func TestParseVM(t *testing.T) {
	t.Setenv(envMetadata, "")
	for args, want := range map[string]string{
		"--dir /b/swarming --user u --provider :metadata":                              "",
		"-dir /b/swarming -user u -server https://s -python /usr/bin/python3":          "",
		"--dir /b/swarming/ --user u --provider p --account a@b --patience 5m --ca /x": "",
		"":                                              `--dir is ""`,
		"--dir b --user u --provider p":                 `--dir is "b"`,
		"--dir /b%n --user u --provider p":              "characters that a service cannot start from",
		"--dir /b --provider p":                         `--user is ""`,
		"--dir /b --user -x --provider p":               `--user is "-x"`,
		"--dir /b --user u":                             "give --provider or --server",
		"--dir /b --user u --provider p x":              "an argument too many",
		"--dir /b --user u --provider p --patience -1s": "--patience is -1s",
		"--what": "not defined",
	} {
		v, err := parseVM(Env{Args: strings.Fields(args)})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
		if err == nil && (v.dir != "/b/swarming" || v.metadata != metadataHost || v.patience < time.Minute) {
			t.Errorf("%s: %+v", args, v)
		}
	}
	var out bytes.Buffer
	if code := Run(Env{Args: []string{"bootstrap-vm", "--help"}, Stdout: &out, Stderr: &out}); code != 0 || !strings.Contains(out.String(), "--provider HOST|:metadata") {
		t.Errorf("%d %s", code, out.String())
	}
	out.Reset()
	if code := Run(Env{Args: []string{"bootstrap-vm", "--dir", "/b", "--user", "no-such-account-here", "--provider", "p"}, Stdout: &out, Stderr: &out}); code != 1 || !strings.Contains(out.String(), "there is no account") {
		t.Errorf("%s", fmt.Sprint(code, out.String()))
	}
}
