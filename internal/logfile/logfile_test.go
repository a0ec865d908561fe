package logfile

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/slogtest"

	"github.com/google/go-cmp/cmp"
)

func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "logs", "x.log")
	f, err := OpenSized(path, 10, 2)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if _, err := fmt.Fprintf(f, "line %d\n", i); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, suffix := range []string{"", ".1", ".2", ".3"} {
		b, _ := os.ReadFile(path + suffix)
		got[suffix] = string(b)
	}
	want := map[string]string{"": "line 4\n", ".1": "line 3\n", ".2": "line 2\n", ".3": ""}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("files (-want +got):\n%s", d)
	}
	if _, err := f.Write([]byte("x")); err == nil {
		t.Error("a closed file takes writes")
	}
}

func TestReopenAppends(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	for range 2 {
		f, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(f, "again")
		f.Close()
	}
	got, _ := os.ReadFile(path)
	if string(got) != "again\nagain\n" {
		t.Errorf("file = %q", got)
	}
}

func TestLineFormat(t *testing.T) {
	var b bytes.Buffer
	log := slog.New(NewHandler(&b, slog.LevelInfo)).With("bot", "b1")
	log.Debug("unseen")
	log.Warn("task moved", "task", "5a1", "err", `it said "no"`, "empty", "")
	want := `^\d+ \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} UTC W: task moved bot=b1 task=5a1 err="it said \\"no\\"" empty=""` + "\n$"
	if !regexp.MustCompile(want).MatchString(b.String()) {
		t.Errorf("line = %q, want it to match %s", b.String(), want)
	}
}

// The rules for handlers, where they apply: a record without time is not ours.
func TestHandlerKeepsSlogsRules(t *testing.T) {
	var b bytes.Buffer
	slogtest.Run(t, func(t *testing.T) slog.Handler {
		b.Reset()
		return NewHandler(&b, slog.LevelDebug)
	}, func(t *testing.T) map[string]any {
		if strings.HasSuffix(t.Name(), "zero-time") {
			t.Skip("every record of ours has a time")
		}
		_, rest, _ := strings.Cut(strings.TrimSpace(b.String()), ": ")
		out := map[string]any{slog.TimeKey: true, slog.LevelKey: true, slog.MessageKey: strings.Fields(rest)[0]}
		for _, w := range strings.Fields(rest)[1:] {
			key, v, ok := strings.Cut(w, "=")
			if !ok {
				continue
			}
			m := out
			for {
				group, tail, more := strings.Cut(key, ".")
				if !more {
					break
				}
				if m[group] == nil {
					m[group] = map[string]any{}
				}
				m, key = m[group].(map[string]any), tail
			}
			m[key] = v
		}
		return out
	})
}

func TestTee(t *testing.T) {
	var all, errs bytes.Buffer
	log := slog.New(Tee(NewHandler(&all, slog.LevelDebug), NewHandler(&errs, slog.LevelError)))
	log.Info("one")
	log.WithGroup("g").With("a", 1).Error("two")
	if got := strings.Count(all.String(), "\n"); got != 2 {
		t.Errorf("file has %d lines, want 2", got)
	}
	if got := errs.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "E: two g.a=1") {
		t.Errorf("stderr = %q, want the error alone", got)
	}
}
