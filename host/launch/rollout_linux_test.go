package launch_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/engine"
	"github.com/skepdev/skep/host/launch"
	"github.com/skepdev/skep/internal/need"
	"github.com/skepdev/skep/internal/proc"
	"github.com/skepdev/skep/internal/stage/ownengine"
)

// registry starts Debian's docker-registry on loopback and returns its address.
func registry(t *testing.T, dir string) string {
	t.Helper()
	path, err := proc.LookPath("docker-registry")
	if err != nil {
		need.Skip(t, "docker-registry", err.Error())
	}
	conf := filepath.Join(dir, "registry.yml")
	text := fmt.Sprintf("version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: %s\nhttp:\n  addr: 127.0.0.1:0\nlog:\n  level: info\n", filepath.Join(dir, "registry"))
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "registry.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p, err := proc.Start(&proc.Cmd{
		Path: path, Args: []string{"docker-registry", "serve", conf}, Env: os.Environ(), Files: []*os.File{nil, log, log},
		NewGroup: true, ParentDeath: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Kill()
		<-p.Done()
	})
	var addr string
	await(t, "registry that says where it listens", func() error {
		text, err := os.ReadFile(log.Name())
		if err != nil {
			return err
		}
		m := listening.FindSubmatch(text)
		if m == nil {
			return errors.New(string(text))
		}
		addr = string(m[1])
		return nil
	})
	return addr
}

var listening = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

// await looks again and again: neither engine nor registry tells of all that is
// waited for here.
func await(t *testing.T, what string, ok func() error) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("no %s within a minute: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// push builds deploy/bot-image with a bot, pushes it and returns its name with
// its digest; the engine has it no more.
func push(t *testing.T, e *ownengine.Engine, addr, bot string) string {
	t.Helper()
	tag := addr + "/skep-bot:" + filepath.Base(bot)
	pack(t, e, bot, tag)
	docker := func(args ...string) string {
		t.Helper()
		out, err := e.Docker(t.Context(), args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	docker("push", "--quiet", tag)
	ref := docker("image", "inspect", "--format", "{{index .RepoDigests 0}}", tag)
	if !strings.HasPrefix(ref, addr+"/skep-bot@sha256:") {
		t.Fatalf("pushed as %q", ref)
	}
	docker("image", "rm", ref, tag)
	if _, err := e.Image(t.Context(), ref); skep.KindOf(err) != skep.NotFound {
		t.Fatalf("the engine still has %s: %v", ref, err)
	}
	return ref
}

// Against a real registry and a real engine: images come by digest, before
// anything is drained for them; a roll-out leaves no more slots empty than it
// may; the image that it replaced goes. A digest that nobody has stops nothing.
// promises D8, D9.
func TestRolloutFromARegistry(t *testing.T) {
	e := ownengine.ForTest(t)
	dir := filepath.Dir(e.Dir)
	addr := registry(t, dir)
	busy, idle := filepath.Join(dir, "busybot"), filepath.Join(dir, "skep-bot")
	build(t, "./testdata/busybot", busy)
	build(t, "../../cmd/skep-bot", idle)
	first, second := push(t, e, addr, busy), push(t, e, addr, idle)

	const slots = 3
	var settings atomic.Pointer[launch.Settings]
	want := func(image string) {
		settings.Store(&launch.Settings{Slots: slots, Image: image, MaxUnavailable: 1})
	}
	want(first)
	l, log := runLauncher(t, e, dir, func() launch.Settings { return *settings.Load() })
	ctx := t.Context()
	labels := map[string]string{launch.LabelLauncher: "skep"}
	// running counts those that run, and those of them that have an image.
	running := func(ref string) (all, of int) {
		id := ""
		if i, err := e.Image(ctx, ref); err == nil {
			id = i.ID
		}
		list, err := e.List(ctx, labels)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list {
			if c.State == engine.Running {
				all++
				if c.ImageID == id {
					of++
				}
			}
		}
		return all, of
	}
	await(t, "full host", func() error {
		if all, of := running(first); all != slots || of != slots {
			return fmt.Errorf("%d run, %d of them the first image; %s", all, of, l.Status().ImageNote)
		}
		return nil
	})

	// One that no registry has: it is said, and nothing changes.
	nobody := addr + "/skep-bot@sha256:" + strings.Repeat("0", 64)
	want(nobody)
	l.Wake()
	await(t, "word of an image that is nowhere", func() error {
		if note := l.Status().ImageNote; note == "" {
			return errors.New("nothing is said")
		}
		return nil
	})
	if all, of := running(first); all != slots || of != slots {
		t.Errorf("for an image that is nowhere %d run, %d of them the first", all, of)
	}

	// Each of the first image has a bot with a task in hand: it is asked to end, and
	// does so once its task is done, here as soon as it was asked. Those of the second
	// find no server, and so have no bot: their first process is asked.
	roll := func(from, to string) {
		t.Helper()
		before := log.String()
		want(to)
		l.Wake()
		least, early := slots, false
		await(t, "roll-out", func() error {
			drains := strings.Count(log.String()[len(before):], "cause=image") // before the image is looked for: it may come in between
			if _, err := e.Image(ctx, to); skep.KindOf(err) == skep.NotFound && drains > 0 {
				early = true
			}
			for i := range slots {
				slot := filepath.Join(dir, "b", launch.SlotName(i))
				if said, err := os.ReadFile(filepath.Join(slot, "signals")); err == nil && strings.HasSuffix(string(said), "\n") { // it wrote all of it
					if err := os.WriteFile(filepath.Join(slot, "done"), nil, 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			all, of := running(to)
			least = min(least, all)
			if all != slots || of != slots {
				return fmt.Errorf("%d run, %d of them the wanted image; %s", all, of, l.Status().ImageNote)
			}
			return nil
		})
		if least < slots-1 {
			t.Errorf("during the roll-out %d ran, want %d at least", least, slots-1)
		}
		if early {
			t.Error("a bot was drained for an image that was not here yet")
		}
		if n := strings.Count(log.String()[len(before):], "msg=\"bot asked to end\""); n != slots {
			t.Errorf("%d bots were asked to end for the roll-out, want %d", n, slots)
		}
		l.Wake() // the next look at images
		await(t, "host without the old image", func() error {
			if _, err := e.Image(ctx, from); skep.KindOf(err) != skep.NotFound {
				return fmt.Errorf("it is still here: %w", err)
			}
			return nil
		})
		t.Logf("rolled out to %d slots; at least %d ran", slots, least)
	}
	for i := range slots {
		lock := filepath.Join(dir, "b", launch.SlotName(i), "swarming/swarming.lck")
		await(t, "bot", func() error {
			if b, err := os.ReadFile(lock); err != nil || len(b) == 0 {
				return fmt.Errorf("%q, %w", b, err)
			}
			return nil
		})
	}
	roll(first, second)
	for i := range slots {
		slot := filepath.Join(dir, "b", launch.SlotName(i))
		if got, err := os.ReadFile(filepath.Join(slot, "signals")); err != nil || string(got) != "bot terminated\n" {
			t.Errorf("slot %d got %q, want one SIGTERM of its bot; %v", i, got, err)
		}
		for _, f := range []string{"signals", "done", "swarming/swarming.lck"} {
			if err := os.Remove(filepath.Join(slot, f)); err != nil {
				t.Fatal(err)
			}
		}
	}
	roll(second, first)

	// Nothing of the host is in a container but its own directory. promise D14.
	for i := range slots {
		slot := launch.SlotName(i)
		out, err := e.Docker(t.Context(), "inspect", "--format", "{{range .Mounts}}{{.Source}}:{{.Destination}} {{end}}{{.HostConfig.Privileged}} {{.HostConfig.PidMode}}{{.HostConfig.IpcMode}}", slot)
		if want := filepath.Join(dir, "b", slot) + ":/b false private"; err != nil || out != want {
			t.Errorf("container %s has %q, want %q; %v", slot, out, want, err)
		}
	}

	// An engine that answers while all its containers are frozen: they are thawed,
	// and stay.
	list, err := e.List(t.Context(), labels)
	if err != nil {
		t.Fatal(err)
	}
	args, began := []string{"pause"}, time.Now()
	for _, c := range list {
		args = append(args, c.ID)
	}
	if _, err := e.Docker(t.Context(), args...); err != nil {
		t.Fatal(err)
	}
	await(t, "thawed host", func() error {
		for _, c := range list {
			if now, err := e.Inspect(t.Context(), c.ID); err != nil || now.State != engine.Running {
				return fmt.Errorf("container %s is %s: %w", c.Name, now.State, err)
			}
		}
		return nil
	})
	t.Logf("%d frozen containers run again after %v", len(list), time.Since(began))
}

// lines is a log that can be read while it is written.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
