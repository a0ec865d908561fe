package trouble

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/skepdev/skep/host/launch"
	"github.com/skepdev/skep/internal/show/form"
	"github.com/skepdev/skep/internal/stage/ownengine"
)

// seenBound is how long a launcher may take to see that its engine is back.
var seenBound = form.Of(2*time.Second, 10*time.Second)

// hostFlags are those of a launcher called name. Nothing of it reboots anything.
func (s *show) hostFlags(name, engine, image string) []string {
	return []string{
		"--engine", engine, "--image", image, "--refresh-image", "0", "--num-containers", "2", "--root", s.path(name + "/b"), "--state-dir", s.path(name + "/state"),
		"--lock-dir", s.path(name + "/locks"), "--swarming-server", "http://127.0.0.1:1", "--hostname", name, "--name", name, "--network", "none",
		"--reboot-command", "", "--engine-restart-command", "", "--max-host-uptime", "0",
	}
}

func (s *show) host(name, socket, engine, image string) (*program, error) {
	p, err := s.start(name, append([]string{"host", "run", "--socket", s.path(socket)}, s.hostFlags(name, engine, image)...)...)
	if err != nil {
		return nil, err
	}
	return p, until(patience, "up", func() error { _, err := s.status(socket); return err })
}

func (s *show) status(socket string) (st launch.Status, err error) {
	out, err := exec.Command(s.skep, "host", "status", "-o", "json", "--socket", s.path(socket)).Output()
	if err != nil {
		return st, err
	}
	return st, json.Unmarshal(out, &st)
}

// noEngine: a launcher without an engine.
func (s *show) noEngine(ctx context.Context) error {
	if err := os.Mkdir(s.path("late"), 0o711); err != nil { //nolint:gosec // as an engine's
		return err
	}
	p, err := s.host("lonely", "host.sock", "unix://"+s.path("late/socket"), "tiny-late:1")
	if err != nil {
		return err
	}
	s.waits("host run without an engine", p.cmd.Process.Pid)
	err = until(patience, "told", func() error {
		st, err := s.status("host.sock")
		if err == nil && !strings.Contains(st.Slots[0].Problem, "engine") && !strings.Contains(st.Slots[0].Problem, "docker") {
			err = fmt.Errorf("slot 000 says %q", st.Slots[0].Problem)
		}
		return err
	})
	if err != nil {
		return err
	}
	once := s.command(append([]string{"host", "once", "launch"}, s.hostFlags("once", "unix://"+s.path("no-engine"), "x")...)...)
	said := make(chan error, 1) // five pings take 15 s
	go func() { said <- s.refused(ctx, "unavailable", "host once, no engine", once) }()
	s.atEnd(func() error { return <-said })
	return nil
}

// brokenContainers: launchers whose containers do not live.
func (s *show) brokenContainers(ctx context.Context) error {
	for _, broken := range [][]string{{"ends", "/bin/busybox", "false"}, {"missing", "/no/such/program"}} {
		name, args := broken[0], broken[1:]
		// One engine each: the names of containers are those of slots.
		engine, err := ownengine.Start(ctx, s.path("d"+name))
		if err != nil {
			return err
		}
		s.engines = append(s.engines, engine)
		if err := engine.Tiny(ctx, "tiny-"+name+":1", name, args...); err != nil {
			return err
		}
		p, err := s.host("broken-"+name, name+".sock", engine.Host(), "tiny-"+name+":1")
		if err != nil {
			return err
		}
		s.waits("host run, containers' first process "+name, p.cmd.Process.Pid)
	}
	p, err := s.host("absent", "absent.sock", s.engines[0].Host(), "127.0.0.1:1/absent:1")
	if err != nil {
		return err
	}
	s.waits("host run, an image that is nowhere", p.cmd.Process.Pid)
	if _, err := s.mount("broken-ro/b"); err != nil {
		return err
	}
	if p, err = s.host("broken-ro", "ro.sock", s.engines[0].Host(), "tiny-ends:1"); err != nil {
		return err
	}
	s.waits("host run, --root takes nothing", p.cmd.Process.Pid)
	for socket, want := range map[string]string{"missing.sock": "no such file", "absent.sock": "absent", "ro.sock": "read-only"} {
		err := until(patience, "told", func() error {
			st, err := s.status(socket)
			if err == nil && !strings.Contains(st.Slots[0].Problem+st.ImageNote, want) {
				err = fmt.Errorf("%s: slot 000 says %q, the image %q", socket, st.Slots[0].Problem, st.ImageNote)
			}
			return err
		})
		if err != nil {
			return err
		}
		st, _ := s.status(socket)
		fmt.Printf("said  %-48s %.110s\n", "status of "+socket, st.Slots[0].Problem+st.ImageNote)
	}
	return nil
}

// engineComes starts the engine that a launcher has missed all the time.
func (s *show) engineComes(ctx context.Context) error {
	for name, least := range map[string]int{"ends.sock": 4} { // 0, 0, 1, 2, 4 s between them
		st, err := s.status(name)
		if err != nil {
			return err
		}
		if st.Slots[0].Deaths < least || st.Slots[0].Deaths > 12 {
			return fmt.Errorf("%s: %d deaths of slot 000, want %d to 12", name, st.Slots[0].Deaths, least)
		}
		fmt.Printf("containers that end at once: slot 000 died %d times, exit code %d is kept\n", st.Slots[0].Deaths, st.Slots[0].Last.ExitCode)
	}
	e, err := ownengine.Start(ctx, s.path("late"))
	if err != nil {
		return err
	}
	began := time.Now()
	s.engines = append(s.engines, e)
	err = until(patience, "seen", func() error {
		st, err := s.status("host.sock")
		if err == nil && st.Slots[0].Problem != "" {
			err = errors.New(st.Slots[0].Problem)
		}
		return err
	})
	took := time.Since(began)
	if err != nil {
		return err
	}
	fmt.Printf("the missing engine came: the launcher sees it within %v (bound %v)\n", took.Round(time.Millisecond), seenBound)
	if took > seenBound {
		return fmt.Errorf("the launcher sees its engine after %v", took)
	}
	return nil
}
