package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/skepdev/skep/internal/need"
)

func pkg(t *testing.T) *pack {
	exe := filepath.Join(t.TempDir(), "skep")
	if err := os.WriteFile(exe, []byte("#!/bin/sh\necho x\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return &pack{channel: "canary", version: "1.2.3", arch: "amd64", exe: exe, units: "../../deploy/systemd", license: "../../LICENSE", at: time.Unix(1e9, 0)}
}

func TestEqualInputsMakeEqualBytes(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	for _, dir := range []string{a, b} {
		if err := pkg(t).write(dir); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"skep-canary-linux_1.2.3_amd64.deb", "skep-canary-linux_1.2.3_amd64.tar.gz"} {
		x, err := os.ReadFile(filepath.Join(a, name))
		if err != nil {
			t.Fatal(err)
		}
		if y, _ := os.ReadFile(filepath.Join(b, name)); !bytes.Equal(x, y) {
			t.Errorf("%s differs", name)
		}
	}
}

func TestRefused(t *testing.T) {
	for _, change := range []func(*pack){
		func(p *pack) { p.channel = "edge" }, func(p *pack) { p.version = "v1" }, func(p *pack) { p.exe = "nowhere" },
	} {
		p := pkg(t)
		change(p)
		if err := p.write(t.TempDir()); err == nil {
			t.Errorf("%+v was packed", p)
		}
	}
}

// Debian's own tool reads what we made.
func TestDebianReadsIt(t *testing.T) {
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		need.Skip(t, "dpkg", err.Error())
	}
	dir := t.TempDir()
	if err := pkg(t).write(dir); err != nil {
		t.Fatal(err)
	}
	deb := filepath.Join(dir, "skep-canary-linux_1.2.3_amd64.deb")
	for flag, want := range map[string][]string{
		"-I": {"Package: skep-canary", "Version: 1.2.3", "Architecture: amd64", "Conflicts: skep\n"},
		"-c": {"./usr/bin/skep", "./lib/systemd/system/skep-drone.service", "./lib/systemd/system/skep-host.service", "./lib/systemd/system/skep-pool.service", "root/root", "-rwxr-xr-x"},
	} {
		out, err := exec.Command("dpkg-deb", flag, deb).CombinedOutput()
		if err != nil {
			t.Errorf("dpkg-deb %s: %v\n%s", flag, err, out)
		}
		for _, w := range want {
			if !bytes.Contains(out, []byte(w)) {
				t.Errorf("dpkg-deb %s does not say %q:\n%s", flag, w, out)
			}
		}
	}
	if out, err := exec.Command("dpkg-deb", "-x", deb, filepath.Join(dir, "root")).CombinedOutput(); err != nil {
		t.Errorf("dpkg-deb -x: %v\n%s", err, out)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "root", "usr", "bin", "skep")); err != nil || string(b) != "#!/bin/sh\necho x\n" {
		t.Errorf("unpacked: %q, %v", b, err)
	}
}
