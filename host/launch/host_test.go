package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/engine"
	"github.com/skepdev/skep/host/engine/enginetest"
)

// barren is an engine that has an image and makes no container.
type barren struct {
	enginetest.Fake
	created atomic.Int64 // that it was to make
}

func newBarren() *barren {
	b := &barren{}
	b.AddImage(engine.Image{ID: "sha256:1", Names: []string{"bot"}})
	b.Fail = func(call string) error {
		if call != "create" {
			return nil
		}
		b.created.Add(1)
		return errors.New("this engine makes nothing")
	}
	return b
}

func (b *barren) count() int { return int(b.created.Load()) }

// openIdle returns a launcher of an empty host with one slot.
func openIdle(t *testing.T, reboot func() error) (*Launcher, *barren) {
	t.Helper()
	e := newBarren()
	dir := t.TempDir()
	l, err := Open(Options{
		Engine: e, Root: filepath.Join(dir, "root"), StateDir: filepath.Join(dir, "state"), LockDir: filepath.Join(dir, "locks"), Host: "h",
		Settings: func() Settings { return Settings{Slots: 1, Image: "bot"} },
		Reboot:   func(context.Context, string) error { return reboot() },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	l.image = "sha256:1"
	return l, e
}

// A host that was told to reboot fills no slot until it is gone, although the
// control file is not there any more, and is told once.
func TestRebootingHostStaysEmpty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reboots := 0
		l, e := openIdle(t, func() error { reboots++; return nil })
		if err := l.RequestReboot(); err != nil {
			t.Fatal(err)
		}
		for i := range 5 { // the control file's end wakes it
			if _, err := l.step(t.Context(), keyHost); err != nil {
				t.Fatal(err)
			}
			if _, err := l.step(t.Context(), SlotName(0)); err != nil {
				t.Fatal(err)
			}
			if reboots != 1 || l.has(rebootStamp) || e.count() != 0 {
				t.Fatalf("step %d: %d reboots, control file %v, %d containers made", i, reboots, l.has(rebootStamp), e.count())
			}
		}
		if err := l.RequestReboot(); err != nil || l.has(rebootStamp) {
			t.Errorf("asked again: %v, control file %v; the host would reboot twice", err, l.has(rebootStamp))
		}
		if l.Status().Rebooting == "" {
			t.Error("status does not tell of the reboot")
		}
		time.Sleep(treatAgain + time.Second) // it did not come
		_, _ = l.step(t.Context(), keyHost)
		_, _ = l.step(t.Context(), SlotName(0))
		if l.Status().Rebooting != "" || e.count() == 0 {
			t.Error("a host that does not reboot stays empty for ever")
		}
	})
}

// A reboot that fails is still asked for, and the host stays drained.
func TestFailedRebootIsStillAsked(t *testing.T) {
	fail := errors.New("no permission")
	l, e := openIdle(t, func() error { return fail })
	if err := l.RequestReboot(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := l.step(t.Context(), keyHost); !errors.Is(err, fail) {
			t.Fatalf("step = %v", err)
		}
		if _, err := l.step(t.Context(), SlotName(0)); err != nil {
			t.Fatal(err)
		}
		if !l.has(rebootStamp) || e.count() != 0 {
			t.Fatalf("control file %v, %d containers made", l.has(rebootStamp), e.count())
		}
	}
	fail = nil
	if _, err := l.step(t.Context(), keyHost); err != nil || l.has(rebootStamp) {
		t.Errorf("step = %v, control file %v", err, l.has(rebootStamp))
	}
}

// What the control files and the host's age say holds from the first look on.
func TestDrainedFromTheStart(t *testing.T) {
	for _, why := range []string{hostStamp, rebootStamp, "age"} {
		t.Run(fmt.Sprint(why), func(t *testing.T) {
			l, e := openIdle(t, func() error { return nil })
			o := l.o
			if why == "age" {
				o.Settings = func() Settings { return Settings{Slots: 1, Image: "bot", MaxHostAge: time.Hour} }
				o.HostAge = func() (time.Duration, error) { return 2 * time.Hour, nil }
			} else if err := os.WriteFile(filepath.Join(l.o.Root, why), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			_ = l.Close()
			l, err := Open(o)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			l.image = "sha256:1"
			if _, err := l.step(t.Context(), SlotName(0)); err != nil || e.count() != 0 {
				t.Errorf("%v, %d containers made", err, e.count())
			}
		})
	}
}

// A host that nobody may reboot is never too old.
func TestHostThatNobodyMayReboot(t *testing.T) {
	l, e := openIdle(t, nil)
	l.o.Reboot = nil
	l.o.Settings = func() Settings { return Settings{Slots: 1, Image: "bot", MaxHostAge: time.Hour} }
	l.o.HostAge = func() (time.Duration, error) { return 2 * time.Hour, nil }
	if _, err := l.step(t.Context(), keyHost); err != nil || l.Status().Drain != "" {
		t.Errorf("%v, it drains for %q", err, l.Status().Drain)
	}
	if _, _ = l.step(t.Context(), SlotName(0)); e.count() != 1 {
		t.Errorf("%d containers made", e.count())
	}
}

// Images are looked at again when it is the image that a container lacks, not
// for a network or a mount that is not there.
func TestImageLookedAtWhenItIsGone(t *testing.T) {
	for _, tc := range []struct {
		image string
		looks bool
	}{{"sha256:1", false}, {"sha256:gone", true}} {
		t.Run(tc.image, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, e := openIdle(t, func() error { return nil })
				e.Fail = func(call string) error {
					if call == "create" {
						return skep.Errorf(skep.NotFound, "network n not found")
					}
					return nil
				}
				looked := false
				l.images.List = nil
				l.images.Step = func(context.Context, string) (time.Duration, error) { looked = true; return 0, nil }
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan struct{})
				go func() { _ = l.images.Run(ctx); close(ended) }()
				synctest.Wait()
				if err := l.create(ctx, Action{Slot: SlotName(0), Image: tc.image}); skep.KindOf(err) != skep.NotFound {
					t.Errorf("create = %v", err)
				}
				synctest.Wait()
				cancel()
				<-ended
				if looked != tc.looks {
					t.Errorf("images were looked at: %v, want %v", looked, tc.looks)
				}
			})
		})
	}
}

// An update of the engine that fails puts a reboot off three times, whether one
// launcher tries or each pass is another; and so the next reboot. promise D16.
func TestFailedUpdateDoesNotKeepTheHost(t *testing.T) {
	for _, passes := range []bool{false, true} {
		t.Run(fmt.Sprintf("passes %v", passes), func(t *testing.T) {
			reboots, updates := 0, 0
			l, _ := openIdle(t, func() error { reboots++; return nil })
			l.o.UpdateEngine = func(context.Context) error { updates++; return errors.New("no such package") }
			step := func() error {
				if passes {
					_ = l.Close()
					next, err := Open(l.o)
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _ = next.Close() })
					l = next
				}
				_, err := l.step(t.Context(), keyHost)
				return err
			}
			for n := 1; n <= 2; n++ {
				updates = 0
				l.setRebooting("") // the host is back
				if err := l.RequestReboot(); err != nil {
					t.Fatal(err)
				}
				for i := range maxUpdates {
					if err := step(); err == nil || reboots != n-1 || !l.has(rebootStamp) {
						t.Fatalf("try %d: %v, %d reboots, control file %v", i, err, reboots, l.has(rebootStamp))
					}
				}
				if err := step(); err != nil || reboots != n || updates != maxUpdates+1 {
					t.Fatalf("then: %v, %d reboots after %d updates", err, reboots, updates)
				}
			}
		})
	}
}

// Of each slot the last 20 deaths stay, with the last MiB of their output, also
// for the next launcher. promise D13.
func TestDeathsAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, e := openIdle(t, func() error { return nil })
		e.Fail = nil
		e.Output = string(make([]byte, maxLog)) + "the end"
		for i := range maxDeaths + 5 {
			if _, err := l.step(t.Context(), SlotName(0)); err != nil {
				t.Fatal(err)
			}
			list, err := e.List(t.Context(), nil)
			if err != nil || len(list) != 1 {
				t.Fatalf("death %d: %d containers, %v", i, len(list), err)
			}
			time.Sleep(time.Minute)
			e.End(list[0].ID, 3)
			l.stale()
		}
		if _, err := l.step(t.Context(), SlotName(0)); err != nil {
			t.Fatal(err)
		}
		kept, err := readDeaths(filepath.Join(l.o.StateDir, "deaths"))
		if err != nil || len(kept[SlotName(0)]) != maxDeaths {
			t.Fatalf("%d deaths are kept, want %d; %v", len(kept[SlotName(0)]), maxDeaths, err)
		}
		for _, d := range kept[SlotName(0)] {
			text, err := os.ReadFile(d.Log)
			if err != nil || len(text) != maxLog || !strings.HasSuffix(string(text), "the end") || d.ExitCode != 3 || d.Asked {
				t.Fatalf("%+v: %d bytes of output, %v", d, len(text), err)
			}
		}
		files, err := os.ReadDir(filepath.Join(l.o.StateDir, "deaths", SlotName(0)))
		if err != nil || len(files) != 2*maxDeaths {
			t.Errorf("%d files, want %d; %v", len(files), 2*maxDeaths, err)
		}
	})
}

// The socket says how the host is, drains and goes on, and refuses with a
// reason. promise D12.
func TestHandler(t *testing.T) {
	l, _ := openIdle(t, func() error { return nil })
	h := l.Handler()
	ask := func(method, url string, code int) string {
		t.Helper()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, url, nil))
		if w.Code != code {
			t.Errorf("%s %s: %d %s, want %d", method, url, w.Code, w.Body, code)
		}
		return w.Body.String()
	}
	has := func(stamp string, want bool) {
		t.Helper()
		if l.has(stamp) != want {
			t.Errorf("control file %s is there: %v, want %v", stamp, !want, want)
		}
	}
	ask("POST", "/drain?slot=000", 200)
	has("000"+slotStamp, true)
	var st Status
	if err := json.Unmarshal([]byte(ask("GET", "/status", 200)), &st); err != nil || len(st.Slots) != 1 || !st.Slots[0].Stamped || st.Wanted != 1 {
		t.Errorf("status %+v, %v", st, err)
	}
	ask("POST", "/undrain?slot=000", 200)
	has("000"+slotStamp, false)
	ask("POST", "/drain", 200)
	ask("POST", "/reboot", 200)
	has(hostStamp, true)
	has(rebootStamp, true)
	ask("POST", "/undrain", 200)
	has(hostStamp, false)
	has(rebootStamp, false)
	for _, url := range []string{"/drain?slot=../x", "/undrain?slot=a/b"} {
		if text := ask("POST", url, 400); !strings.Contains(text, `"reason":"invalid"`) {
			t.Errorf("%s: %s", url, text)
		}
	}
	l.o.Reboot = nil
	if text := ask("POST", "/reboot", 412); !strings.Contains(text, "--reboot-command") {
		t.Errorf("reboot without a command: %s", text)
	}
	if text := ask("GET", "/metrics", 200); !strings.Contains(text, "skep_host_containers_wanted 1") {
		t.Errorf("metrics: %s", text)
	}
}
