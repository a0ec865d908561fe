package code

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// first returns the first bytes of an executable for a platform.
func first(platform string) string {
	b := make([]byte, 512)
	le := binary.LittleEndian
	switch goos, arch, _ := strings.Cut(platform, "/"); goos {
	case "linux":
		copy(b, "\x7fELF\x02\x01")
		le.PutUint16(b[18:], map[string]uint16{"amd64": 62, "arm64": 183}[arch])
	case "darwin":
		le.PutUint32(b, 0xfeedfacf)
		le.PutUint32(b[4:], map[string]uint32{"amd64": 0x01000007, "arm64": 0x0100000c}[arch])
	case "windows":
		copy(b, "MZ")
		le.PutUint32(b[60:], 128)
		copy(b[128:], "PE\x00\x00")
		le.PutUint16(b[132:], map[string]uint16{"amd64": 0x8664, "arm64": 0xaa64}[arch])
	}
	return string(b)
}

func TestInspect(t *testing.T) {
	all := []string{"linux/amd64", "linux/arm64", "darwin/amd64", "darwin/arm64", "windows/amd64", "windows/arm64"}
	for _, built := range all {
		path := compose(t, first(built))
		for _, here := range all {
			goos, arch, _ := strings.Cut(here, "/")
			if err := Inspect(path, goos, arch); (err == nil) != (built == here) {
				t.Errorf("%s on %s: %v", built, here, err)
			}
		}
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	if err := Inspect(compose(t, string(whole)), runtime.GOOS, runtime.GOARCH); err != nil {
		t.Errorf("this test as a bot: %v", err)
	}
	for _, tt := range []struct{ name, exe, want string }{
		{"a script", "#!/bin/sh\nexit 0\n", "no executable"},
		{"nothing", "", "no executable"},
		{"32 bits", "\x7fELF\x01\x01" + strings.Repeat("\x00", 100), "no executable"},
		{"an MZ that leads nowhere", "MZ" + strings.Repeat("\xff", 100), "no executable"},
	} {
		if err := Inspect(compose(t, tt.exe), "linux", "amd64"); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q in it", tt.name, err, tt.want)
		}
	}
	if err := Inspect(write(t, []byte(first("linux/amd64"))), "linux", "amd64"); !errors.Is(err, ErrBare) {
		t.Errorf("an executable without a zip: %v", err)
	}
}

func write(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bot")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Whatever is appended to an executable is read in bounded memory.
func TestZipBombs(t *testing.T) {
	var deep bytes.Buffer // a small file that unpacks to 64 MiB
	z := zip.NewWriter(&deep)
	w, err := z.Create(ConfigName)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(w, zeros{}, 64<<20); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	var wide bytes.Buffer // many files
	z = zip.NewWriter(&wide)
	for range 70_000 {
		if _, err := z.CreateHeader(&zip.FileHeader{Name: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	liar := bytes.Clone(wide.Bytes()) // the same, and says that it has one
	end := bytes.LastIndex(liar, []byte("PK\x05\x06"))
	binary.LittleEndian.PutUint16(liar[end+10:], 1)
	binary.LittleEndian.PutUint32(liar[end+12:], 47)
	for name, tt := range map[string]struct {
		data []byte
		want string
	}{
		"deep": {deep.Bytes(), "longer than"}, "wide": {wide.Bytes(), "the most that a bot has"}, "liar": {liar, "there is no config"},
	} {
		var err error
		path := write(t, tt.data)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err = Read(path)
		runtime.ReadMemStats(&after)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q in it", name, err, tt.want)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 32<<20 {
			t.Errorf("%s: %d bytes of memory", name, got)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// FuzzInspect takes whatever a server may call a bot: what is accepted has a
// configuration that holds, and nothing of it is trusted before.
func FuzzInspect(f *testing.F) {
	var b bytes.Buffer
	if err := Compose(&b, []byte(first("linux/amd64")), config, File{HooksName, []byte("pass\n")}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(b.Bytes()[:len(b.Bytes())-30])
	f.Add([]byte(first("windows/arm64")))
	f.Add([]byte("PK\x05\x06" + strings.Repeat("\x00", 18)))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, size := bytes.NewReader(data), int64(len(data))
		if err := inspect(r, size, "linux", "amd64"); err == nil {
			conf, err := readFile(r, size, ConfigName)
			if c, err2 := ParseConfig(conf); err != nil || err2 != nil || c.Validate() != nil {
				t.Errorf("accepted %+v, %v, %v", c, err, err2)
			}
		}
		for _, name := range []string{ConfigName, HooksName} {
			if got, err := readFile(r, size, name); err == nil && len(got) > maxFile {
				t.Errorf("%s has %d bytes", name, len(got))
			}
		}
	})
}
