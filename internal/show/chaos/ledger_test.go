package chaos

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestLedgerReadsWhileTheFileGrows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lines")
	l, err := newLedger(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	w, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	add := func(s string) {
		t.Helper()
		if _, err := w.WriteString(s); err != nil {
			t.Fatal(err)
		}
		if err := l.read(); err != nil {
			t.Fatal(err)
		}
	}
	add("start 5a01 7 1000000\nsta")
	if l.said("5a01") != wordStart || l.said("5a11") != "" || l.ended() != 0 {
		t.Errorf("%q %q %d", l.said("5a01"), l.said("5a11"), l.ended())
	}
	add("rt 5a11 8 2000000\nend 5a01 7 3000000\nnonsense\nend 5a")
	if l.said("5a01") != wordEnd || l.said("5a11") != wordStart || l.ended() != 1 {
		t.Errorf("%q %q %d", l.said("5a01"), l.said("5a11"), l.ended())
	}
	lines, bad := l.all()
	want := []line{
		{wordStart, "5a01", 7, time.Unix(1, 0)},
		{wordStart, "5a11", 8, time.Unix(2, 0)},
		{wordEnd, "5a01", 7, time.Unix(3, 0)},
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"nonsense", "end 5a"}, bad); diff != "" {
		t.Error(diff)
	}
}

func TestLinesOfTasks(t *testing.T) {
	for _, s := range []string{"", "start", "begin 5a01 1 2", "start 5a01 x 2", "start 5a01 1 y", "start 5a01 1 2 3"} {
		if got, err := parseLine(s); err == nil {
			t.Errorf("%q is %v", s, got)
		}
	}
}
