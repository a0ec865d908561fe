package reconcile

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// After a crash at any byte of the last line the journal holds what was
// acknowledged, and may hold what was being written.
func TestJournalAgreesWithAMap(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		path := filepath.Join(dir, "journal")
		_ = os.Remove(path)
		j, err := OpenJournal(path)
		if err != nil {
			rt.Fatal(err)
		}
		want := map[string]Entry{}
		for range rapid.IntRange(1, 60).Draw(rt, "changes") {
			key := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "key")
			switch rapid.IntRange(0, 3).Draw(rt, "what") {
			case 0, 1:
				e := Entry{Key: key, Step: rapid.StringN(0, 9, 40).Draw(rt, "step"), Generation: rapid.Uint64().Draw(rt, "generation"), At: time.Unix(0, 0).UTC()}
				if err := j.Begin(context.Background(), e); err != nil {
					rt.Fatal(err)
				}
				e.Step = strings.ToValidUTF8(e.Step, "\uFFFD")
				want[key] = e
			case 2:
				if err := j.End(context.Background(), key); err != nil {
					rt.Fatal(err)
				}
				delete(want, key)
			case 3:
				if err := j.Close(); err != nil {
					rt.Fatal(err)
				}
				f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
				if err != nil {
					rt.Fatal(err)
				}
				torn := `{"begin":{"key":"torn","step":"x"}}`
				_, _ = f.WriteString(torn[:rapid.IntRange(0, len(torn)).Draw(rt, "torn at")])
				_ = f.Close()
				if j, err = OpenJournal(path); err != nil {
					rt.Fatal(err)
				}
			}
		}
		got := map[string]Entry{}
		entries, err := j.Entries(context.Background())
		if err != nil {
			rt.Fatal(err)
		}
		for _, e := range entries {
			got[e.Key] = e
		}
		if d := cmp.Diff(want, got); d != "" {
			rt.Errorf("entries (-want +got):\n%s", d)
		}
		if err := j.Close(); err != nil {
			rt.Error(err)
		}
	})
}

func TestJournalStaysSmall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, err := OpenJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	note := []byte(`"` + strings.Repeat("x", 4096) + `"`)
	for range 300 {
		if err := j.Begin(t.Context(), Entry{Key: "a", Step: "make", Note: note}); err != nil {
			t.Fatal(err)
		}
	}
	if fi, err := os.Stat(path); err != nil || fi.Size() > 2*journalSlack {
		t.Errorf("%d bytes for one entry (%v)", fi.Size(), err)
	}
}

func TestJournalNamesADamagedLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	for _, text := range []string{"what\n", `{"begin":{"key":"a"}}` + "\n" + `{}` + "\n", `{"begin":{"key":"a"},"end":"b"}` + "\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenJournal(path); err == nil || !strings.Contains(err.Error(), "not a line of a journal") {
			t.Errorf("%q: %v", text, err)
		}
		if b, _ := os.ReadFile(path); string(b) != text {
			t.Errorf("%q was changed to %q", text, b)
		}
	}
}

func FuzzJournal(f *testing.F) {
	f.Add([]byte(`{"begin":{"key":"a","step":"s","at":"2026-01-02T03:04:05Z","note":{}}}` + "\n" + `{"end":"a"}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "journal")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := OpenJournal(path)
		if err != nil {
			return
		}
		want, _ := j.Entries(t.Context())
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		if j, err = OpenJournal(path); err != nil {
			t.Fatalf("what it wrote itself: %v", err)
		}
		defer j.Close()
		got, _ := j.Entries(t.Context())
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("read again (-want +got):\n%s", d)
		}
	})
}
