package cas

import (
	"bytes"
	"strings"
	"testing"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/skepdev/skep"
)

func TestDigestText(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		ok       bool
	}{
		{"empty blob", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855/0", true},
		{"no size", Empty.Hash.String(), false},
		{"negative size", Empty.Hash.String() + "/-1", false},
		{"upper case", strings.ToUpper(Empty.Hash.String()) + "/0", false},
		{"short hash", "abcd/4", false},
		{"not hex", strings.Repeat("g", 64) + "/4", false},
		{"size with a sign", Empty.Hash.String() + "/+1", true},
		{"nothing", "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := ParseDigest(tc.in)
			if (err == nil) != tc.ok {
				t.Fatalf("ParseDigest(%q) = %v, want ok %v", tc.in, err, tc.ok)
			}
			if err != nil && skep.KindOf(err) != skep.Invalid {
				t.Errorf("kind %v, want Invalid", skep.KindOf(err))
			}
		})
	}
}

func hashes(t *rapid.T) Digest {
	return Sum(rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "blob"))
}

func directories(t *rapid.T) *Directory {
	names := rapid.SliceOfDistinct(rapid.StringMatching(`[a-zé ]{1,8}[a-z.]?`), rapid.ID[string]).Draw(t, "names")
	d := &Directory{}
	for _, n := range names {
		switch rapid.IntRange(0, 2).Draw(t, "kind") {
		case 0:
			d.Files = append(d.Files, File{n, hashes(t), rapid.Bool().Draw(t, "x")})
		case 1:
			d.Dirs = append(d.Dirs, Dir{n, hashes(t)})
		case 2:
			d.Symlinks = append(d.Symlinks, Symlink{n, rapid.StringMatching(`[a-z/]{1,9}`).Draw(t, "target")})
		}
	}
	return d
}

// The messages are those of the generated code, byte for byte.
func TestDirectoryAgreesWithREAPI(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := directories(t)
		got := d.Encode()
		want := &repb.Directory{}
		digest := func(d Digest) *repb.Digest { return &repb.Digest{Hash: d.Hash.String(), SizeBytes: d.Size} }
		for _, f := range d.Files {
			want.Files = append(want.Files, &repb.FileNode{Name: f.Name, Digest: digest(f.Digest), IsExecutable: f.Executable})
		}
		for _, s := range d.Dirs {
			want.Directories = append(want.Directories, &repb.DirectoryNode{Name: s.Name, Digest: digest(s.Digest)})
		}
		for _, l := range d.Symlinks {
			want.Symlinks = append(want.Symlinks, &repb.SymlinkNode{Name: l.Name, Target: l.Target})
		}
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, b) {
			t.Fatalf("got %x\nwant %x", got, b)
		}
		back, err := DecodeDirectory(got)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(d, back); diff != "" {
			t.Fatalf("decoded (-want +got):\n%s", diff)
		}
	})
}

func TestBadDirectories(t *testing.T) {
	x := Sum([]byte("x"))
	for _, tc := range []struct {
		name string
		dir  Directory
		want string
	}{
		{"parent", Directory{Dirs: []Dir{{"..", x}}}, `".." is no name`},
		{"absolute", Directory{Files: []File{{"/etc", x, false}}}, "holds a slash"},
		{"inner slash", Directory{Files: []File{{"a/b", x, false}}}, "holds a slash"},
		{"no name", Directory{Files: []File{{"", x, false}}}, "is no name"},
		{"zero byte", Directory{Files: []File{{"a\x00", x, false}}}, "zero byte"},
		{"twice, two kinds", Directory{Files: []File{{"a", x, false}}, Dirs: []Dir{{"a", x}}}, "stands twice"},
		{"twice, one kind", Directory{Files: []File{{"a", x, false}, {"a", x, true}}}, "stands twice"},
		{"link to nothing", Directory{Symlinks: []Symlink{{"a", ""}}}, "no usable target"},
		{"long name", Directory{Files: []File{{strings.Repeat("a", 256), x, false}}}, "255 at most"},
		{"not UTF-8", Directory{Files: []File{{"a\xff", x, false}}}, "not UTF-8"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := DecodeDirectory(tc.dir.Encode())
			if err == nil || !strings.Contains(err.Error(), tc.want) || skep.KindOf(err) != skep.Invalid {
				t.Errorf("got %v, want an Invalid error with %q", err, tc.want)
			}
		})
	}
}

func TestEscapes(t *testing.T) {
	for _, tc := range []struct {
		dir, target string
		want        bool
	}{
		{"", "a", false},
		{"", "..", true},
		{"a", "..", false},
		{"a", "../..", true},
		{"a/b", "../../c", false},
		{"a/b", "../../../c", true},
		{"", "/etc/passwd", true},
		{"a", "b/../../../x", true},
		{"", `C:\x`, true},
		{"", "a/../b", false},
	} {
		if got := Escapes(tc.dir, tc.target); got != tc.want {
			t.Errorf("Escapes(%q, %q) = %v", tc.dir, tc.target, got)
		}
	}
}

func FuzzDecodeDirectory(f *testing.F) {
	x := Sum([]byte("x"))
	f.Add((&Directory{Files: []File{{"a", x, true}}, Dirs: []Dir{{"b", x}}, Symlinks: []Symlink{{"c", "a"}}}).Encode())
	f.Add([]byte{0x0a, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := DecodeDirectory(b)
		if err != nil {
			return
		}
		again, err := DecodeDirectory(d.Encode())
		if err != nil {
			t.Fatalf("what was read cannot be read again: %v", err)
		}
		if diff := cmp.Diff(d, again); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzParseDigest(f *testing.F) {
	f.Add(Empty.String())
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := ParseDigest(s); err == nil {
			if again, err := ParseDigest(d.String()); err != nil || again != d {
				t.Fatalf("%q: %v %v", s, again, err)
			}
		}
	})
}
