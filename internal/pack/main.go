// Command pack makes the packages that hosts install: a Debian package and a
// tarball of skep with its systemd units, for a channel. Equal inputs make
// equal bytes: no time, user or order of a directory gets in. Row L7.
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/md5" //nolint:gosec // the format of md5sums
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

func main() {
	var p pack
	flag.StringVar(&p.channel, "channel", "stable", "stable or canary")
	flag.StringVar(&p.version, "version", "", "as 1.2.3")
	flag.StringVar(&p.arch, "arch", "", "amd64 or arm64")
	flag.StringVar(&p.exe, "skep", "", "the executable")
	flag.StringVar(&p.units, "units", "deploy/systemd", "directory of units")
	flag.StringVar(&p.license, "license", "LICENSE", "the license")
	out := flag.String("out", "dist", "where to")
	epoch := flag.Int64("epoch", 0, "time of all files, in seconds")
	flag.Parse()
	p.at = time.Unix(*epoch, 0).UTC()
	if err := p.write(*out); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

type pack struct {
	channel, version, arch, exe, units, license string
	at                                          time.Time
}

var versionOf = regexp.MustCompile(`^[0-9][0-9A-Za-z.+~-]*$`)

// file is one entry of an archive.
type file struct {
	name string // absolute
	mode int64
	data []byte
}

func (p *pack) write(dir string) error {
	switch {
	case p.channel != "stable" && p.channel != "canary":
		return fmt.Errorf("channel %q is neither stable nor canary", p.channel)
	case !versionOf.MatchString(p.version):
		return fmt.Errorf("version %q is not one of Debian's", p.version)
	}
	files, err := p.files()
	if err != nil {
		return err
	}
	deb, err := p.deb(files)
	if err != nil {
		return err
	}
	ball, err := p.tarball(files, "skep-"+p.version+"/")
	if err != nil {
		return err
	}
	base := fmt.Sprintf("skep-%s-%s_%s_%s", p.channel, "linux", p.version, p.arch)
	for name, data := range map[string][]byte{base + ".deb": deb, base + ".tar.gz": ball} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
		fmt.Println(name)
	}
	return nil
}

func (p *pack) files() ([]file, error) {
	var errs []error
	read := func(path string) []byte {
		b, err := os.ReadFile(path)
		errs = append(errs, err)
		return b
	}
	files := []file{{"/usr/bin/skep", 0o755, read(p.exe)}}
	units, err := filepath.Glob(filepath.Join(p.units, "*.service")) // sorted
	errs = append(errs, err)
	for _, u := range units {
		files = append(files, file{"/lib/systemd/system/" + filepath.Base(u), 0o644, read(u)})
	}
	files = append(files,
		file{"/usr/share/doc/skep/channel", 0o644, []byte(p.channel + "\n")},
		file{"/usr/share/doc/skep/copyright", 0o644, read(p.license)},
	)
	return files, errors.Join(errs...)
}

// tarball packs files below prefix, each directory before what is in it.
func (p *pack) tarball(files []file, prefix string) ([]byte, error) {
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression) // without a time of its own
	if err != nil {
		return nil, err
	}
	w := tar.NewWriter(z)
	seen := map[string]bool{}
	var errs []error
	add := func(h tar.Header, data []byte) {
		h.ModTime, h.Uname, h.Gname, h.Format = p.at, "root", "root", tar.FormatUSTAR
		errs = append(errs, w.WriteHeader(&h))
		_, err := w.Write(data)
		errs = append(errs, err)
	}
	for _, f := range files {
		name := prefix + strings.TrimPrefix(f.name, "/")
		for i := range name {
			if dir := name[:i+1]; name[i] == '/' && !seen[dir] {
				seen[dir] = true
				add(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil)
			}
		}
		add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: f.mode, Size: int64(len(f.data))}, f.data)
	}
	errs = append(errs, w.Close(), z.Close())
	return out.Bytes(), errors.Join(errs...)
}

// deb makes a Debian package: an ar archive of a version, a control tarball and
// the files. deb(5), deb-control(5).
func (p *pack) deb(files []file) ([]byte, error) {
	var sums strings.Builder
	size := 0
	for _, f := range files {
		fmt.Fprintf(&sums, "%x  %s\n", md5.Sum(f.data), strings.TrimPrefix(f.name, "/"))
		size += len(f.data)
	}
	name, other := "skep", "skep-canary"
	if p.channel == "canary" {
		name, other = other, name
	}
	control := fmt.Sprintf(`Package: %s
Version: %s
Architecture: %s
Maintainer: skep <skep@localhost>
Installed-Size: %d
Section: devel
Priority: optional
Conflicts: %s
Provides: skep-channel
Description: hands tasks to a fleet of bots, and keeps the fleet alive
 The %s build of skep: server, command line, and the programs that keep
 bots alive on a host. It is one static executable and needs no other package.
`, name, p.version, p.arch, (size+1023)/1024, other, p.channel)
	head, err := p.tarball([]file{{"/control", 0o644, []byte(control)}, {"/md5sums", 0o644, []byte(sums.String())}}, "./")
	if err != nil {
		return nil, err
	}
	data, err := p.tarball(files, "./")
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	out.WriteString("!<arch>\n")
	for _, m := range []struct {
		name string
		data []byte
	}{{"debian-binary", []byte("2.0\n")}, {"control.tar.gz", head}, {"data.tar.gz", data}} {
		p.member(&out, path.Base(m.name), m.data)
	}
	return out.Bytes(), nil
}

// member writes one member of an ar archive, whose sizes are even.
func (p *pack) member(w io.Writer, name string, data []byte) {
	fmt.Fprintf(w, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", name, p.at.Unix(), 0, 0, "100644", len(data))
	_, _ = w.Write(data)
	if len(data)%2 == 1 {
		_, _ = io.WriteString(w, "\n")
	}
}
