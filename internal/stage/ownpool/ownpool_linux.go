package ownpool

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/skepdev/skep/host/pool"
	"github.com/skepdev/skep/internal/proc"
)

// Image is a base image: busybox and nothing else.
type Image struct{ File, Digest string }

var applets = []string{"sh", "cat", "echo", "true", "sleep", "id", "ls", "mkdir", "touch", "ps", "find", "grep", "test", "rm", "mount", "ip", "ipcs", "wc", "hostname", "setsid", "sed"}

// MakeImage writes the image, with files besides, by their paths.
func MakeImage(dir string, files map[string]string) (Image, error) {
	busybox, err := proc.LookPath("busybox")
	if err != nil {
		return Image{}, errors.New("no busybox on this host; install busybox-static")
	}
	bin, err := os.ReadFile(busybox)
	if err != nil {
		return Image{}, err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, data []byte) {
		h.Size = int64(len(data))
		err = errors.Join(err, w.WriteHeader(&h))
		_, werr := w.Write(data)
		err = errors.Join(err, werr)
	}
	for _, d := range []string{"bin", "etc", "root", "var", "run"} {
		add(tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	add(tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, nil)
	add(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, bin)
	for _, a := range applets {
		add(tar.Header{Name: "bin/" + a, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
	}
	for at, from := range files {
		data, rerr := os.ReadFile(from)
		err = errors.Join(err, rerr)
		add(tar.Header{Name: at, Typeflag: tar.TypeReg, Mode: 0o755}, data)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return Image{}, err
	}
	sum := sha256.Sum256(b.Bytes())
	im := Image{filepath.Join(dir, "base.tar"), "sha256:" + hex.EncodeToString(sum[:])}
	return im, os.WriteFile(im.File, b.Bytes(), 0o644)
}

// Service is a real `skep pool start`.
type Service struct {
	Skep    string // the executable
	Dir     string // of the pool; its log is beside it
	Runtime string
	Image   Image
	Socket  string // "" = in Dir

	p *proc.Process // of the last Start; nil = not started, or ended

	names map[string]bool // that its rooms' cgroups begin with, of all its runs
}

var prefix = regexp.MustCompile(`"key":"(skep-[0-9a-f]+-)[0-9]+"`)

// learn remembers how this run calls its rooms: other pools may run.
func (s *Service) learn() {
	if s.names == nil {
		s.names = map[string]bool{}
	}
	journal, _ := os.ReadFile(filepath.Join(s.Dir, "journal"))
	for _, m := range prefix.FindAllSubmatch(journal, -1) {
		s.names[string(m[1])] = true
	}
}

// At is where its socket is.
func (s *Service) At() string { return cmp.Or(s.Socket, filepath.Join(s.Dir, "socket")) }

// Args are those of the executable that start it.
func (s *Service) Args(flags ...string) []string {
	args := []string{"pool", "start", "--dir", s.Dir, "--runtime", s.Runtime, "--base", s.Image.File, "--digest", s.Image.Digest, "--log-level", "error"}
	if s.Socket != "" {
		args = append(args, "--socket", s.Socket)
	}
	return append(args, flags...)
}

// Start starts it and returns how long its socket took to answer.
func (s *Service) Start(ctx context.Context, flags ...string) (time.Duration, error) {
	if err := os.MkdirAll(s.Dir, 0o711); err != nil {
		return 0, err
	}
	log, err := os.OpenFile(s.Dir+".log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	began := time.Now()
	s.p, err = proc.Start(&proc.Cmd{
		Path: s.Skep, Args: append([]string{s.Skep}, s.Args(flags...)...), Env: os.Environ(), Files: []*os.File{nil, nil, log}, ParentDeath: true,
	})
	if err != nil {
		return 0, err
	}
	for {
		c, err := pool.Dial(ctx, s.At())
		if err == nil {
			_, err = c.Echo(ctx, "hello")
			_ = c.Close()
		}
		if err == nil {
			return time.Since(began), nil
		}
		if time.Since(began) > time.Minute {
			return 0, fmt.Errorf("the pool does not come up: %w\n%s", err, s.Said())
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// Said is the end of its log.
func (s *Service) Said() string {
	b, _ := os.ReadFile(s.Dir + ".log")
	if len(b) > 3000 {
		b = b[len(b)-3000:]
	}
	return string(b)
}

// Pid is the service's process id, 0 when it does not run.
func (s *Service) Pid() int {
	if s.p == nil {
		return 0
	}
	return s.p.Pid
}

// Kill is kill -9, of the one process.
func (s *Service) Kill() {
	s.learn()
	_ = s.p.Kill()
	s.p.Wait()
	s.p = nil
}

// Stop ends it as its client does, and looks for what it left.
func (s *Service) Stop(ctx context.Context) error {
	s.learn()
	c, err := pool.Dial(ctx, s.At())
	if err != nil {
		return err
	}
	err = c.Shutdown(ctx)
	_ = c.Close()
	if st := s.p.Wait(); st.Code != 0 || st.Err != nil {
		err = errors.Join(err, st.Err, fmt.Errorf("the pool ended with exit code %d\n%s", st.Code, s.Said()))
	}
	s.p = nil
	return errors.Join(err, s.Strays())
}

// Await waits until ok says so of the status.
func (s *Service) Await(ctx context.Context, limit time.Duration, what string, ok func(*pool.Status) bool) (*pool.Status, error) {
	c, err := pool.Dial(ctx, s.At())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	for began := time.Now(); ; {
		st, err := c.Status(ctx)
		if err != nil {
			return nil, err
		}
		if ok(st) {
			return st, nil
		}
		if time.Since(began) > limit {
			return st, fmt.Errorf("not %s after %v: %d ready, %d making, %d leased, %d used, %d ending, %d waiting; paused: %s\n%s", what, limit, st.Ready, st.Making, st.Leased, st.Used, st.Ending, st.Waiting, st.Paused, s.Said())
		}
		time.Sleep(time.Millisecond)
	}
}

// Quiet is for Await: ready rooms in stock, and nothing under way.
func Quiet(ready int) func(*pool.Status) bool {
	return func(st *pool.Status) bool {
		return st.Ready >= ready && st.Making+st.Leased+st.Used+st.Ending+st.Waiting == 0
	}
}

// Strays looks for everything that a pool can leave on a host.
func (s *Service) Strays() error {
	var left []string
	for _, pattern := range []string{filepath.Join(s.Dir, "rooms", "*"), filepath.Join(s.Dir, "oci", "*"), filepath.Join(s.Dir, "oci", ".*"), s.At(), filepath.Join(s.Dir, ".s*")} {
		found, _ := filepath.Glob(pattern)
		left = append(left, found...)
	}
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d os.DirEntry, err error) error {
		if i := strings.LastIndexByte(d.Name(), '-') + 1; err == nil && d.IsDir() && s.names[d.Name()[:i]] {
			left = append(left, path)
		}
		return nil
	})
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, s.Dir) {
			left = append(left, "mount "+strings.TrimSpace(line))
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		b, _ := os.ReadFile(p)
		line := strings.ReplaceAll(string(b), "\x00", " ")
		seen, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "mountinfo"))
		if strings.Contains(line, s.Dir) || strings.HasPrefix(line, "/.skep/room") && strings.Contains(string(seen), s.Dir) {
			left = append(left, "process "+filepath.Base(filepath.Dir(p))+" "+line)
		}
	}
	if journal, err := os.ReadFile(filepath.Join(s.Dir, "journal")); err == nil {
		begun, ended := strings.Count(string(journal), `{"begin"`), strings.Count(string(journal), `{"end"`)
		if begun > ended {
			left = append(left, fmt.Sprintf("%d entries of the journal", begun-ended))
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("left behind by the pool:\n  %s", strings.Join(left, "\n  "))
	}
	return nil
}
