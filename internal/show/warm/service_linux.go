package warm

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/skepdev/skep/host/pool"
)

// image is a base image: busybox and nothing else.
type image struct{ file, digest string }

var applets = []string{"sh", "cat", "echo", "true", "sleep", "id", "ls", "mkdir", "touch", "ps", "find", "grep", "test", "rm", "mount", "ip", "ipcs", "wc", "hostname", "setsid", "sed"}

// makeImage writes the image, with files besides, by their paths.
func makeImage(dir string, files map[string]string) (image, error) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return image{}, errors.New("no busybox on this host; install busybox-static")
	}
	bin, err := os.ReadFile(busybox)
	if err != nil {
		return image{}, err
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
		return image{}, err
	}
	sum := sha256.Sum256(b.Bytes())
	im := image{filepath.Join(dir, "base.tar"), "sha256:" + hex.EncodeToString(sum[:])}
	return im, os.WriteFile(im.file, b.Bytes(), 0o644)
}

// service is a real `skep pool start`.
type service struct {
	skep, dir, runtime string
	image              image
	cmd                *exec.Cmd
	log                *os.File
}

func (s *service) socket() string { return filepath.Join(s.dir, "socket") }

// start starts it and returns how long its socket took to answer.
func (s *service) start(ctx context.Context, flags ...string) (time.Duration, error) {
	if err := os.MkdirAll(s.dir, 0o711); err != nil {
		return 0, err
	}
	var err error
	if s.log, err = os.OpenFile(s.dir+".log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return 0, err
	}
	s.cmd = exec.Command(s.skep, append([]string{"pool", "start", "--dir", s.dir, "--runtime", s.runtime, "--base", s.image.file, "--digest", s.image.digest, "--log-level", "error"}, flags...)...)
	s.cmd.Stderr = s.log
	began := time.Now()
	if err := s.cmd.Start(); err != nil {
		return 0, err
	}
	for {
		c, err := pool.Dial(ctx, s.socket())
		if err == nil {
			_, err = c.Echo(ctx, "hello")
			_ = c.Close()
		}
		if err == nil {
			return time.Since(began), nil
		}
		if time.Since(began) > time.Minute {
			return 0, fmt.Errorf("the pool does not come up: %w\n%s", err, s.said())
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (s *service) said() string {
	b, _ := os.ReadFile(s.dir + ".log")
	if len(b) > 3000 {
		b = b[len(b)-3000:]
	}
	return string(b)
}

// kill is kill -9.
func (s *service) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	_ = s.log.Close()
}

// stop ends it as its client does, and looks for what it left.
func (s *service) stop(ctx context.Context) error {
	c, err := pool.Dial(ctx, s.socket())
	if err != nil {
		return err
	}
	err = c.Shutdown(ctx)
	_ = c.Close()
	if werr := s.cmd.Wait(); werr != nil {
		err = errors.Join(err, fmt.Errorf("the pool ended with %w\n%s", werr, s.said()))
	}
	_ = s.log.Close()
	return errors.Join(err, s.strays())
}

// await waits until ok says so of the status.
func (s *service) await(ctx context.Context, limit time.Duration, what string, ok func(*pool.Status) bool) (*pool.Status, error) {
	c, err := pool.Dial(ctx, s.socket())
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
			return st, fmt.Errorf("not %s after %v: %d ready, %d making, %d leased, %d used, %d ending, %d waiting; paused: %s\n%s", what, limit, st.Ready, st.Making, st.Leased, st.Used, st.Ending, st.Waiting, st.Paused, s.said())
		}
		time.Sleep(time.Millisecond)
	}
}

func quiet(ready int) func(*pool.Status) bool {
	return func(st *pool.Status) bool {
		return st.Ready >= ready && st.Making+st.Leased+st.Used+st.Ending+st.Waiting == 0
	}
}

// strays looks for everything that a pool can leave on a host.
func (s *service) strays() error {
	var left []string
	for _, pattern := range []string{filepath.Join(s.dir, "rooms", "*"), filepath.Join(s.dir, "oci", "*"), filepath.Join(s.dir, "oci", ".*"), s.socket(), filepath.Join(s.dir, ".s*")} {
		found, _ := filepath.Glob(pattern)
		left = append(left, found...)
	}
	for _, h := range []string{"/sys/fs/cgroup"} {
		_ = filepath.WalkDir(h, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() && strings.HasPrefix(d.Name(), "skep-") && len(strings.Split(d.Name(), "-")) >= 3 && len(strings.Split(d.Name(), "-")[1]) == 6 {
				left = append(left, path)
			}
			return nil
		})
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, s.dir) {
			left = append(left, "mount "+strings.TrimSpace(line))
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		b, _ := os.ReadFile(p)
		line := strings.ReplaceAll(string(b), "\x00", " ")
		seen, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "mountinfo"))
		if strings.Contains(line, s.dir) || strings.HasPrefix(line, "/.skep/room") && strings.Contains(string(seen), s.dir) {
			left = append(left, "process "+filepath.Base(filepath.Dir(p))+" "+line)
		}
	}
	if journal, err := os.ReadFile(filepath.Join(s.dir, "journal")); err == nil {
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
