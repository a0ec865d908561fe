package rollout

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/bot/code"
)

// Platform is what an executable runs on, in Go's words.
type Platform struct{ OS, Arch string }

// String returns OS/ARCH.
func (p Platform) String() string { return p.OS + "/" + p.Arch }

// Release names the parts of bot code by the SHA-256 of their content.
type Release struct {
	Exes          map[string]string `json:"exes"`            // by platform
	Files         map[string]string `json:"files,omitempty"` // by name in the zip
	ServerVersion string            `json:"server_version,omitempty"`
	TLSCA         string            `json:"tls_ca,omitempty"` // PEM
	Reboot        string            `json:"reboot,omitempty"` // as in code.Config
}

// ID returns the release's name: a digest over all of it.
func (r *Release) ID() string {
	b, err := json.Marshal(r) // with sorted keys
	if err != nil {
		panic(err) // it holds texts only
	}
	return hash(b)
}

// parts are the hashes of all that it is made of, each once, in order.
func (r *Release) parts() []string {
	all := slices.AppendSeq(slices.Collect(maps.Values(r.Exes)), maps.Values(r.Files))
	slices.Sort(all)
	return slices.Compact(all)
}

func hash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Build is bot code as it is handed out.
type Build struct {
	Release string
	Platform
	URL    string // of the server that the bot calls
	TLSCA  string // PEM certificates that vouch for it, "" = the system's
	Digest string // SHA-256 of all bytes, lowercase hex

	exeHash   string
	exe, tail []byte

	gzipOnce sync.Once
	gzipped  []byte
}

// Size returns the number of bytes.
func (b *Build) Size() int64 { return int64(len(b.exe) + len(b.tail)) }

// Reader returns the bytes, from the start.
func (b *Build) Reader() *io.SectionReader {
	return io.NewSectionReader(b, 0, b.Size())
}

// ReadAt reads bytes of the build.
func (b *Build) ReadAt(p []byte, off int64) (n int, err error) {
	if off < int64(len(b.exe)) {
		n = copy(p, b.exe[off:])
		off += int64(n)
	}
	if n < len(p) && off >= int64(len(b.exe)) && off < b.Size() {
		n += copy(p[n:], b.tail[off-int64(len(b.exe)):])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Gzip returns the bytes compressed, which is done once.
func (b *Build) Gzip() []byte {
	b.gzipOnce.Do(func() {
		var out bytes.Buffer
		z := gzip.NewWriter(&out)
		if _, err := io.Copy(z, b.Reader()); err == nil && z.Close() == nil {
			b.gzipped = out.Bytes()
		}
	})
	return b.gzipped
}

// compose makes a build of a release. part returns the content with a hash.
func compose(id string, r *Release, p Platform, url string, part func(hash string) ([]byte, error)) (*Build, error) {
	want, ok := r.Exes[p.String()]
	if !ok {
		return nil, skep.Errorf(skep.NotFound, "there is no skep-bot for %s", p)
	}
	exe, err := part(want)
	if err != nil {
		return nil, err
	}
	var files []code.File
	for name, h := range r.Files {
		data, err := part(h)
		if err != nil {
			return nil, err
		}
		files = append(files, code.File{Name: name, Data: data})
	}
	cfg := code.Config{Server: url, ServerVersion: r.ServerVersion, TLSCA: r.TLSCA, Reboot: r.Reboot}
	tail := &tailWriter{skip: len(exe)}
	sum := sha256.New()
	if err := code.Compose(io.MultiWriter(sum, tail), exe, cfg, files...); err != nil {
		return nil, fmt.Errorf("compose the bot for %s: %w", p, err)
	}
	return &Build{Release: id, Platform: p, URL: url, TLSCA: r.TLSCA, Digest: hex.EncodeToString(sum.Sum(nil)), exeHash: want, exe: exe, tail: tail.Bytes()}, nil
}

// tailWriter keeps what comes after the first skip bytes.
type tailWriter struct {
	skip int
	bytes.Buffer
}

func (t *tailWriter) Write(p []byte) (int, error) {
	n := min(t.skip, len(p))
	t.skip -= n
	t.Buffer.Write(p[n:])
	return len(p), nil
}
