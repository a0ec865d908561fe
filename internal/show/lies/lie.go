package lies

import (
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/skepdev/skep/bot/code"
)

// lie is something that a server hands out in place of bot code.
type lie struct {
	name   string
	digest string // that the bot is told to become
	hand   func(w http.ResponseWriter, r *http.Request)
	want   string // in the bot_error
	tries  bool   // it may be tried with is_fine, which fails; it is no bot then

	dir, mark string
	said      string
	memory    int64
}

// executed is what was run of the lie, "nothing" as a rule.
func (l *lie) executed() string {
	data, err := os.ReadFile(l.mark)
	if err != nil {
		return "nothing"
	}
	return strings.Join(strings.Fields(string(data)), " ")
}

func (l *lie) mayRun() string {
	if l.tries {
		return "is_fine"
	}
	return "nothing"
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// bytesOf serves data, with ranges, whatever is asked for.
func bytesOf(data []byte) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		if from := r.Header.Get("Range"); from != "" {
			var at int
			if _, err := fmt.Sscanf(from, "bytes=%d-", &at); err != nil || at > len(data) {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(data[at:])
			return
		}
		_, _ = w.Write(data)
	}
}

// all returns the lies, with a directory below dir for each.
func all(dir string) ([]*lie, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	me, err := os.ReadFile(self)
	if err != nil {
		return nil, err
	}
	var lies []*lie
	add := func(name, want string, make func(l *lie, mark string) ([]byte, error)) {
		if err != nil {
			return
		}
		l := &lie{name: name, want: want, dir: filepath.Join(dir, fmt.Sprint("bot", len(lies))), mark: filepath.Join(dir, fmt.Sprint("ran", len(lies)))}
		var data []byte
		if data, err = make(l, l.mark); err != nil {
			err = fmt.Errorf("%s: %w", name, err)
			return
		}
		if l.digest == "" {
			l.digest = digest(data)
		}
		if l.hand == nil {
			l.hand = bytesOf(data)
		}
		lies = append(lies, l)
	}
	// tattler is an executable of this platform that tells when it is run.
	tattler := func(mark string) []byte { return composed(me, code.File{Name: markName, Data: []byte(mark)}) }
	script := func(mark string) []byte { return fmt.Appendf(nil, "#!/bin/sh\necho ran \"$@\" >>%s\n", mark) }

	add("half of the promised code", "it is not run", func(l *lie, mark string) ([]byte, error) {
		whole := tattler(mark)
		l.digest = digest(whole)
		return whole[:len(whole)/2], nil
	})
	add("the promised code without its last byte", "it is not run", func(l *lie, mark string) ([]byte, error) {
		whole := tattler(mark)
		l.digest = digest(whole)
		return whole[:len(whole)-1], nil
	})
	add("one bit of it changed", "it is not run", func(l *lie, mark string) ([]byte, error) {
		whole := tattler(mark)
		l.digest = digest(whole)
		whole[len(whole)/3] ^= 1
		return whole, nil
	})
	add("other code than promised", "it is not run", func(l *lie, mark string) ([]byte, error) {
		l.digest = digest([]byte("something else"))
		return tattler(mark), nil
	})
	add("a web page", "it is not run", func(l *lie, _ string) ([]byte, error) {
		l.digest = digest([]byte("something else"))
		return []byte("<html>Please log in to this network</html>"), nil
	})
	add("a path for a digest", "no digest of bot code", func(l *lie, mark string) ([]byte, error) {
		l.digest = "../../../../etc/passwd"
		return tattler(mark), nil
	})
	for _, p := range []struct{ os, arch string }{{"windows", "amd64"}, {"darwin", runtime.GOARCH}, {"linux", otherArch()}} {
		add("skep-bot for "+p.os+"/"+p.arch+", as promised", "an executable for "+p.os+"/"+p.arch, func(*lie, string) ([]byte, error) {
			exe, err := foreign(dir, p.os, p.arch)
			return composed(exe), err
		})
	}
	add("a script, as promised", "no executable", func(_ *lie, mark string) ([]byte, error) { return script(mark), nil })
	add("a script with a bot's configuration, as promised", "no executable", func(_ *lie, mark string) ([]byte, error) {
		return composed(script(mark)), nil
	})
	add("an executable without a configuration, as promised", "no configuration", func(*lie, string) ([]byte, error) { return me, nil })
	add("a zip that unpacks to 1 GiB, as promised", "is longer than", func(*lie, string) ([]byte, error) {
		return zipped(me, func(z *zip.Writer) error {
			w, err := z.Create(code.ConfigName)
			if err == nil {
				_, err = io.CopyN(w, zeros{}, 1<<30)
			}
			return err
		})
	})
	add("a zip of 300,000 files, as promised", "the most that a bot has", func(*lie, string) ([]byte, error) {
		return zipped(me, func(z *zip.Writer) error {
			for i := range 300_000 {
				if _, err := z.CreateHeader(&zip.FileHeader{Name: fmt.Sprint(i)}); err != nil {
					return err
				}
			}
			return nil
		})
	})
	add("gzip that unpacks without end", "longer than", func(l *lie, _ string) ([]byte, error) {
		l.digest = digest([]byte("gzip"))
		var member bytes.Buffer // of which any number may follow each other
		z := gzip.NewWriter(&member)
		if _, err := io.CopyN(z, zeros{}, 64<<20); err != nil {
			return nil, err
		}
		if err := z.Close(); err != nil {
			return nil, err
		}
		l.hand = func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			for {
				if _, err := w.Write(member.Bytes()); err != nil {
					return
				}
			}
		}
		return nil, nil
	})
	add("bytes without end", "longer than", func(l *lie, _ string) ([]byte, error) {
		l.digest = digest([]byte("endless"))
		l.hand = func(w http.ResponseWriter, _ *http.Request) { _, _ = io.Copy(w, zeros{}) }
		return nil, nil
	})
	add("code for this platform that is not fine, as promised", "not fine", func(l *lie, mark string) ([]byte, error) {
		l.tries = true
		return tattler(mark), nil
	})
	return lies, err
}

// composed is exe as bot code.
func composed(exe []byte, files ...code.File) []byte {
	var b bytes.Buffer
	if err := code.Compose(&b, exe, code.Config{Server: "http://127.0.0.1:9"}, files...); err != nil {
		return nil // exe could not be made, which is told elsewhere
	}
	return b.Bytes()
}

// zipped is exe with a zip that fill fills.
func zipped(exe []byte, fill func(*zip.Writer) error) ([]byte, error) {
	var b bytes.Buffer
	b.Write(exe)
	z := zip.NewWriter(&b)
	z.SetOffset(int64(len(exe)))
	if err := fill(z); err != nil {
		return nil, err
	}
	err := z.Close()
	return b.Bytes(), err
}

func otherArch() string {
	if runtime.GOARCH == "amd64" {
		return "arm64"
	}
	return "amd64"
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
