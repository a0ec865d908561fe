package content

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/internal/specimen"
)

// walk prints what a directory is: two digests, of its entries with their
// kinds, executable bits and targets, and of the contents of its files. It
// needs GNU find, sort and coreutils, and nothing of ours.
const walk = `LC_ALL=C; export LC_ALL
{ find . -type f -perm -100 -printf 'x %P\n'; find . -type f ! -perm -100 -printf '- %P\n'
  find . -type l -printf 'l %P %l\n'; find . -mindepth 1 -type d -printf 'd %P\n'; } | sort | sha256sum
find . -type f -print0 | sort -z | xargs -0 -r sha256sum | sha256sum`

// walkHere runs walk on a directory of ours.
func walkHere(ctx context.Context, dir string) (string, error) {
	cmd := exec.CommandContext(ctx, "sh", "-c", walk)
	cmd.Dir = dir
	out, err := cmd.Output()
	return string(out), err
}

// specimenTree is a directory that is archived.
type specimenTree struct {
	name, dir string
}

// trees shows that real trees come out of a task's inputs as they went into
// the storage, that a second task on the same bot finds them there, and that
// bots may share one cache.
func trees(ctx context.Context, o options) (err error) {
	s, err := plan{bin: o.bin}.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	list, err := s.specimens(ctx, o)
	if err != nil {
		return err
	}
	bot, err := s.addBot(ctx, "trees-1")
	if err != nil {
		return err
	}
	if r, err := s.run(ctx, job{bot: bot.id, command: []string{"true"}}); err != nil {
		return err
	} else if err := r.good(); err != nil {
		return err
	}
	for _, t := range list {
		if err := s.roundTrip(ctx, bot, t); err != nil {
			return fmt.Errorf("%s: %w\n%s", t.name, err, tail(bot.log))
		}
	}
	if err := s.runIn(ctx, bot, list[len(list)-1]); err != nil {
		return err
	}
	return share(ctx, o)
}

// specimens are Go's source, one large file, and a tree with everything that
// the others have not: symlinks, also to directories and to nothing, empty
// directories, empty files, odd names.
func (s *site) specimens(ctx context.Context, o options) ([]specimenTree, error) {
	var list []specimenTree
	if dir, ok := specimen.GoSource(ctx); ok {
		list = append(list, specimenTree{"Go's source", dir})
	} else {
		dir := s.path("small")
		if err := specimen.Small(dir, specimen.Shape{}); err != nil {
			return nil, err
		}
		list = append(list, specimenTree{"a tree like Go's source", dir})
	}
	n := int64(1 << 30)
	if o.short {
		n = 128 << 20
	}
	large := s.path("large")
	if err := errors.Join(os.Mkdir(large, 0o755), specimen.Large(filepath.Join(large, "file"), n, o.seed)); err != nil {
		return nil, err
	}
	list = append(list, specimenTree{fmt.Sprintf("one file of %d MiB", n>>20), large})
	odd := s.path("odd")
	if err := specimen.Small(odd, specimen.Shape{Files: 500, Bytes: 4 << 20, Seed: o.seed}); err != nil {
		return nil, err
	}
	err := errors.Join(
		os.MkdirAll(filepath.Join(odd, "empty", "below"), 0o755),
		os.WriteFile(filepath.Join(odd, "nothing"), nil, 0o644),
		os.WriteFile(filepath.Join(odd, "nothing.sh"), nil, 0o755),
		os.WriteFile(filepath.Join(odd, "name with \\ \" ' ü and blanks "), []byte("x"), 0o644),
		os.WriteFile(filepath.Join(odd, "-rf"), []byte("#!/bin/sh\n"), 0o755),
		os.Symlink("empty/below", filepath.Join(odd, "to-directory")),
		os.Symlink("../nothing", filepath.Join(odd, "empty", "up")),
		os.Symlink("not/there", filepath.Join(odd, "to-nothing")),
	)
	return append(list, specimenTree{"symlinks, modes, empty directories, odd names", odd}), err
}

// skep runs a subcommand of the command line and returns what it prints.
func (s *site) skep(ctx context.Context, args ...string) (stdout string, err error) {
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, "skep"), args...)
	cmd.Env = s.environ("SKEP_SERVER=" + s.url)
	cmd.Dir = s.root
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("skep %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(errOut.Bytes()))
	}
	return out.String(), nil
}

// roundTrip archives a tree, has a task of a bot walk it, twice, and fetches
// it again.
func (s *site) roundTrip(ctx context.Context, bot *member, t specimenTree) error {
	want, err := walkHere(ctx, t.dir)
	if err != nil {
		return err
	}
	files, bytes, err := specimen.Size(t.dir)
	if err != nil {
		return err
	}
	fmt.Printf("%s: %d files, %.1f MiB\n", t.name, files, float64(bytes)/(1<<20))
	began := time.Now()
	printed, err := s.skep(ctx, "cas", "archive", t.dir)
	if err != nil {
		return err
	}
	root, err := cas.ParseDigest(strings.TrimSpace(printed))
	if err != nil {
		return err
	}
	fmt.Printf("  skep cas archive     %8v   %s\n", time.Since(began).Round(time.Millisecond), root)
	var took [2]float32
	for n, name := range []string{"a task, cold", "a task, warm"} {
		r, err := s.run(ctx, job{bot: bot.id, command: []string{"sh", "-c", walk}, inputs: root})
		if err != nil {
			return err
		}
		if err := r.good(); err != nil {
			return err
		}
		d := r.download()
		if d == nil {
			return fmt.Errorf("%s: its result says nothing of its inputs", name)
		}
		took[n] = d.Duration
		fmt.Printf("  %-20s %8v   %d items fetched (%.1f MiB), %d were here (%.1f MiB)\n", name,
			time.Duration(float64(d.Duration)*float64(time.Second)).Round(time.Millisecond),
			d.NumItemsCold, float64(d.TotalBytesItemsCold)/(1<<20), d.NumItemsHot, float64(d.TotalBytesItemsHot)/(1<<20))
		if r.output != want {
			return fmt.Errorf("%s: its inputs are not the tree: a walk printed\n%swant\n%s", name, r.output, want)
		}
		if n == 0 && d.NumItemsCold == 0 {
			return errors.New("the first task found everything in a cache that was empty")
		}
		if n == 1 && (d.NumItemsCold > 0 || d.NumItemsHot == 0) {
			return fmt.Errorf("the second task fetched %d items, found %d; want none and some", d.NumItemsCold, d.NumItemsHot)
		}
	}
	// A tree of a few files is made in a few ms either way.
	if bytes > 64<<20 && took[1] >= took[0] {
		return fmt.Errorf("the second task waited %.3f s for its inputs and the first %.3f s", took[1], took[0])
	}
	to := s.path("down")
	began = time.Now()
	if _, err := s.skep(ctx, "cas", "download", root.String(), to); err != nil {
		return err
	}
	fmt.Printf("  skep cas download    %8v\n", time.Since(began).Round(time.Millisecond))
	got, err := walkHere(ctx, to)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("what was downloaded is not the tree: a walk printed\n%swant\n%s", got, want)
	}
	return os.RemoveAll(to)
}

// runIn does it in one command, with outputs: a task copies its inputs to its
// outputs.
func (s *site) runIn(ctx context.Context, bot *member, t specimenTree) error {
	want, err := walkHere(ctx, t.dir)
	if err != nil {
		return err
	}
	to := s.path("outputs")
	began := time.Now()
	if _, err := s.skep(ctx, "run", "-d", "id="+bot.id, "-d", "pool=default", "-i", t.dir, "-O", to, "--",
		"sh", "-c", `mkdir "$0/copy" && for f in * .[!.]*; do [ "$f" = .[!.]\* ] || cp -a -- "$f" "$0/copy/"; done`, "${ISOLATED_OUTDIR}"); err != nil {
		return err
	}
	copied := filepath.Join(to, "copy")
	got, err := walkHere(ctx, copied)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("skep run -i -O: the outputs are not the inputs: a walk printed\n%swant\n%s", got, want)
	}
	fmt.Printf("skep run -i -O         %8v   outputs as the inputs\n", time.Since(began).Round(time.Millisecond))
	return nil
}
