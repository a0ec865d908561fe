package disk

import (
	"bytes"
	"io"
	"testing"
	"testing/iotest"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

func TestUploadUnnamedCutShort(t *testing.T) {
	data := bytes.Repeat([]byte("unnamed "), 300<<10)
	d := cas.Sum(data)
	s, err := Open(t.Context(), Options{Dir: t.TempDir(), MinFree: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	up, err := s.UploadUnnamed(t.Context(), d.Size)
	if err != nil {
		t.Fatal(err)
	}
	if err := up.Take(bytes.NewReader(data[1:]), func() {}); err != nil {
		t.Fatal(err)
	}
	if got, err := up.Commit(t.Context()); skep.KindOf(err) != skep.Invalid {
		t.Errorf("too short: %v, %v", got, err)
	}
	if err := up.Close(); err != nil {
		t.Error(err)
	}
	nothingStays(t, s)
}

func nothingStays(t *testing.T, s *Store) {
	t.Helper()
	if u := s.Usage(); u.Blobs != 0 || u.Reserved != 0 || u.OpenedUploads != 0 {
		t.Errorf("after it: %+v", u)
	}
	f, err := s.root.Open(tempDir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if names, _ := f.Readdirnames(-1); len(names) > 0 {
		t.Errorf("files stay: %v", names)
	}
}

func TestUploadUnnamedCommits(t *testing.T) {
	data := bytes.Repeat([]byte("unnamed "), 300<<10)
	d := cas.Sum(data)
	s, err := Open(t.Context(), Options{Dir: t.TempDir(), MinFree: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.UploadUnnamed(t.Context(), smallMax); skep.KindOf(err) != skep.Invalid {
		t.Errorf("a small blob: %v", err)
	}
	left, err := s.UploadUnnamed(t.Context(), d.Size)
	if err != nil {
		t.Fatal(err)
	}
	if err := left.Take(io.MultiReader(bytes.NewReader(data), bytes.NewReader(data)), func() {}); skep.KindOf(err) != skep.Invalid {
		t.Errorf("more bytes than announced: %v", err)
	}
	if err := left.Close(); err != nil {
		t.Fatal(err)
	}
	nothingStays(t, s)
	for range 2 { // the second finds it there
		up, err := s.UploadUnnamed(t.Context(), d.Size)
		if err != nil {
			t.Fatal(err)
		}
		if err := up.Take(iotest.HalfReader(bytes.NewReader(data)), func() {}); err != nil {
			t.Fatal(err)
		}
		if got, err := up.Commit(t.Context()); got != d || err != nil {
			t.Fatal(got, err)
		}
		if _, err := up.Commit(t.Context()); skep.KindOf(err) != skep.Conflict {
			t.Errorf("Commit again: %v", err)
		}
		if err := up.Close(); err != nil {
			t.Error(err)
		}
	}
	r, err := s.Open(t.Context(), d, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if u := s.Usage(); u.Blobs != 1 || u.Reserved != 0 || u.OpenedUploads != 0 {
		t.Errorf("after it: %+v", u)
	}
}
