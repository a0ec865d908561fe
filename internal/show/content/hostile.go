package content

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/skepdev/skep"
	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/archive"
	"github.com/skepdev/skep/cas/remote"
	"github.com/skepdev/skep/internal/specimen"
)

// attack is the demonstration under way: a site with one bot.
type attack struct {
	*site
	bot    *member
	to     *remote.Client
	short  bool
	failed []string
}

// hostile shows that content which is not what it says, or has no place in a
// directory, is refused, or fetched again where that helps, with a cause that
// names it; that nothing is written outside of the work directory; and that
// server and bot work on.
func hostile(ctx context.Context, o options) (err error) {
	var failed []string
	for _, part := range []struct {
		name string
		run  func(context.Context, *attack) error
	}{
		{name: "writes that are not what they say", run: badWrites},
		{name: "trees that have no place in a directory", run: badTrees},
		{name: "blobs that went away", run: goneBlobs},
		{name: "disks that are full", run: fullDisks},
	} {
		fmt.Println(part.name)
		if err := attackWith(ctx, o, nil, &failed, part.run); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	fmt.Println("a storage that lies")
	l := &liar{blobs: map[cas.Hash][]byte{}, lies: map[cas.Hash]*lie{}}
	url, stop, err := l.serve()
	if err != nil {
		return err
	}
	defer stop()
	if err := attackWith(ctx, o, []string{"--cas", url}, &failed, func(ctx context.Context, a *attack) error { return a.lies(ctx, l) }); err != nil {
		return fmt.Errorf("a storage that lies: %w", err)
	}
	fmt.Println("a storage that evicts")
	if err := evicting(ctx, o, &failed); err != nil {
		return fmt.Errorf("a storage that evicts: %w", err)
	}
	if len(failed) > 0 {
		return fmt.Errorf("%d of them went wrong: %s", len(failed), strings.Join(failed, "; "))
	}
	return nil
}

func attackWith(ctx context.Context, o options, args []string, failed *[]string, run func(context.Context, *attack) error) (err error) {
	s, err := plan{bin: o.bin, server: args}.open(ctx)
	if err != nil {
		return err
	}
	a := &attack{site: s, short: o.short}
	defer func() {
		*failed = append(*failed, a.failed...)
		err = errors.Join(err, s.close())
	}()
	if a.to, err = remote.New(remote.Options{URL: s.url, Patience: 2 * time.Second}); err != nil {
		return err
	}
	defer a.to.Close()
	if a.bot, err = s.addBot(ctx, "victim"); err != nil {
		return err
	}
	if err := a.works(ctx); err != nil {
		return fmt.Errorf("before anything happened: %w", err)
	}
	before, err := a.all()
	if err != nil {
		return err
	}
	if err := run(ctx, a); err != nil {
		return fmt.Errorf("%w\nthe server: %s\nthe bot: %s", err, tail(s.path("server.log")), tail(a.bot.log))
	}
	if err := a.works(ctx); err != nil {
		return fmt.Errorf("afterwards: %w", err)
	}
	after, err := a.all()
	if err != nil {
		return err
	}
	for _, path := range a.strange(before, after) {
		a.failed = append(a.failed, "outside of the work directory there is now "+path)
	}
	return nil
}

// say prints one attempt with what became of it. Without want in it, it went
// wrong.
func (a *attack) say(what, got, want string) {
	verdict := "  "
	if !strings.Contains(got, want) || strings.Contains(got, "COMPLETED") != strings.Contains(want, "COMPLETED") {
		verdict = "✗ "
		a.failed = append(a.failed, fmt.Sprintf("%s: %s; want %q in it", what, got, want))
	}
	if len(got) > 220 {
		got = got[:220] + "…"
	}
	fmt.Printf("%s%-44s %s\n", verdict, what, got)
}

// works runs a task without inputs on the bot.
func (a *attack) works(ctx context.Context) error {
	r, err := a.run(ctx, job{bot: a.bot.id, command: []string{"true"}})
	if err == nil {
		err = r.good()
	}
	return err
}

// all lists everything that there is below the site, with its path in it.
func (a *attack) all() (map[string]bool, error) {
	paths := map[string]bool{}
	err := filepath.WalkDir(a.root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(a.root, path)
		paths[filepath.ToSlash(rel)] = true
		return err
	})
	return paths, err
}

// expected are the names that server and bot give to what comes meanwhile.
// Whatever a hostile tree might make, in their own directories too, has another,
// or the bytes of forbidden.
var expected = regexp.MustCompile(`^(made(/.*)?` +
	`|[a-z]+\.log` +
	`|state/skep\.db(-wal|-shm)?` +
	`|state/cas(/(lock|README|blobs(/[0-9a-f]{2}(/[0-9a-f]{64})?)?|packs(/[0-9a-f]+\.(pack|idx|use))?|tmp(/[0-9a-z]+)?|quarantine(/[^/]+)?))?` +
	`|bots/victim/(cas_cache(/([0-9a-f]{64}(\.x)?|[a-z]+(\.(json|lock))?|trees/[0-9a-f]{64}.*))?|c(/(state\.json|named))?|logs/[a-z_]+\.log)` +
	`|bots/victim/w(/([a-z_]+[0-9A-Za-z]*(\.json|\.sock)?|it[0-9a-z]+/(home|luci_ctx\.[0-9a-z]+\.json)))?)$`)

// forbidden is the content of files that no tree may have.
const forbidden = "this must not be written\n"

// strange says what came that has no place: a path, or a file that the cache
// and the storage do not know by its hash, with the bytes of a refused tree.
func (a *attack) strange(before, after map[string]bool) (found []string) {
	hash := cas.Sum([]byte(forbidden)).Hash.String()
	for path := range after {
		if !before[path] && !expected.MatchString(path) {
			found = append(found, path)
			continue
		}
		full := a.path(filepath.FromSlash(path))
		fi, err := os.Lstat(full)
		if err != nil || !fi.Mode().IsRegular() || fi.Size() != int64(len(forbidden)) || strings.HasPrefix(filepath.Base(path), hash) {
			continue
		}
		if b, err := os.ReadFile(full); err == nil && string(b) == forbidden {
			found = append(found, path+" with the bytes of a refused tree")
		}
	}
	slices.Sort(found)
	return found
}

// fate runs a task with inputs and tells what became of it: its state, the
// digests that its result names as missing, and what its bot said.
func (a *attack) fate(ctx context.Context, inputs cas.Digest) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 12*time.Minute)
	defer cancel()
	r, err := a.run(ctx, job{bot: a.bot.id, command: []string{"sh", "-c", "find . -type f | xargs -r cat | wc -c"}, inputs: inputs})
	if err != nil {
		return "", err
	}
	words := []string{r.State.String()}
	if len(r.MissingCas) > 0 {
		words = append(words, "missing_cas "+r.MissingCas[0].GetDigest().GetHash()[:8])
	}
	if r.State == pb.TaskState_COMPLETED {
		words = append(words, strings.TrimSpace(r.output))
	}
	events, err := a.client.ListBotEvents(ctx, &pb.BotEventsRequest{BotId: a.bot.id, Limit: 20})
	if err != nil {
		return "", err
	}
	for _, e := range events.Items {
		// An event names the try, which is the task's id but for the last digit.
		if len(e.TaskId) == len(r.TaskId) && e.TaskId[:len(e.TaskId)-1] == r.TaskId[:len(r.TaskId)-1] && e.Message != "" {
			words = append(words, e.Message)
			break
		}
	}
	return strings.Join(words, ": "), nil
}

// try runs a task with bad inputs.
func (a *attack) try(ctx context.Context, what string, inputs cas.Digest, want string) error {
	got, err := a.fate(ctx, inputs)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	a.say(what, got, want)
	return nil
}

// store writes blobs to the server as they are.
func (a *attack) store(ctx context.Context, blobs ...[]byte) error {
	list := make([]remote.Source, len(blobs))
	for i, b := range blobs {
		list[i] = remote.Source{Digest: cas.Sum(b), Data: b}
	}
	_, err := a.to.Upload(ctx, list, nil)
	return err
}

// badTrees gives a bot trees that no directory can be made of.
func badTrees(ctx context.Context, a *attack) error {
	data := []byte(forbidden)
	file := cas.Sum(data)
	abs := a.path("absolute")
	deep := [][]byte{(&cas.Directory{Files: []cas.File{{Name: "f", Digest: file}}}).Encode()}
	for range 10_000 {
		deep = append(deep, (&cas.Directory{Dirs: []cas.Dir{{Name: "d", Digest: cas.Sum(deep[len(deep)-1])}}}).Encode())
	}
	if err := a.store(ctx, append(deep, data)...); err != nil {
		return err
	}
	inside := (&cas.Directory{Files: []cas.File{{Name: "f", Digest: file}}}).Encode()
	if err := a.store(ctx, inside); err != nil {
		return err
	}
	for _, t := range []struct {
		name string
		dir  cas.Directory
		want string
	}{
		{"a file called ../escaped", cas.Directory{Files: []cas.File{{Name: "../escaped", Digest: file}}}, `"../escaped" holds a slash`},
		{"a file called ../../../escaped", cas.Directory{Files: []cas.File{{Name: "../../../escaped", Digest: file}}}, "holds a slash"},
		{"a file with an absolute path", cas.Directory{Files: []cas.File{{Name: abs, Digest: file}}}, "holds a slash"},
		{"a file called ..", cas.Directory{Files: []cas.File{{Name: "..", Digest: file}}}, `".." is no name`},
		{"a file without a name", cas.Directory{Files: []cas.File{{Name: "", Digest: file}}}, `"" is no name`},
		{"a directory called ../d", cas.Directory{Dirs: []cas.Dir{{Name: "../d", Digest: cas.Sum(inside)}}}, "holds a slash"},
		{"a name with a zero byte", cas.Directory{Files: []cas.File{{Name: "a\x00b", Digest: file}}}, "zero byte"},
		{"two files of one name", cas.Directory{Files: []cas.File{{Name: "f", Digest: file}, {Name: "f", Digest: cas.Empty}}}, "stands twice"},
		{"a file and a directory of one name", cas.Directory{Files: []cas.File{{Name: "f", Digest: file}}, Dirs: []cas.Dir{{Name: "f", Digest: cas.Sum(inside)}}}, "stands twice"},
		{"a symlink and a directory of one name", cas.Directory{Symlinks: []cas.Symlink{{Name: "d", Target: "."}}, Dirs: []cas.Dir{{Name: "d", Digest: cas.Sum(inside)}}}, "stands twice"},
		{"a symlink to ../../escaped", cas.Directory{Symlinks: []cas.Symlink{{Name: "l", Target: "../../escaped"}}}, "outside of the tree"},
		{"a symlink to /etc", cas.Directory{Symlinks: []cas.Symlink{{Name: "l", Target: "/etc"}}}, "outside of the tree"},
		{"symlinks that leave together", cas.Directory{Symlinks: []cas.Symlink{{Name: "a", Target: "."}, {Name: "b", Target: "a/a/../.."}}}, "leaves the tree"},
		{"a tree 10,000 directories deep", cas.Directory{Dirs: []cas.Dir{{Name: "d", Digest: cas.Sum(deep[len(deep)-1])}}}, "more than 256 directories deep"},
	} {
		msg := t.dir.Encode()
		if err := a.store(ctx, msg); err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
		if err := a.try(ctx, t.name, cas.Sum(msg), t.want); err != nil {
			return err
		}
	}
	junk := []byte("\xff\xff this is no Directory message")
	if err := a.store(ctx, junk); err != nil {
		return err
	}
	return a.try(ctx, "a root that is no directory", cas.Sum(junk), "malformed message")
}

// good makes a tree of a few files on the server, one of them large.
func (a *attack) good(ctx context.Context, name string, seed uint64, large int64) (tree *archive.Tree, err error) {
	dir := a.path("made", name)
	if err := specimen.Small(dir, specimen.Shape{Files: 20, Bytes: 200 << 10, Seed: seed}); err != nil {
		return nil, err
	}
	if err := specimen.Large(filepath.Join(dir, "large"), large, seed); err != nil {
		return nil, err
	}
	return archive.Upload(ctx, a.to, dir, archive.Options{})
}

// largeFile is the file of a tree of good.
func largeFile(ctx context.Context, from *remote.Client, t *archive.Tree) (cas.Digest, error) {
	dirs, err := from.Tree(ctx, t.Root)
	if err != nil {
		return cas.Digest{}, err
	}
	for _, d := range dirs {
		for _, f := range d.Files {
			if f.Name == "large" {
				return f.Digest, nil
			}
		}
	}
	return cas.Digest{}, errors.New("there is no large file")
}

// goneBlobs takes blobs away from the server, or damages them on its disk,
// behind its back.
func goneBlobs(ctx context.Context, a *attack) error {
	const large = 2 << 20
	find := func(t *archive.Tree) (cas.Digest, error) { return largeFile(ctx, a.to, t) }
	blob := func(d cas.Digest) string {
		h := d.Hash.String()
		return a.path("state", "cas", "blobs", h[:2], h)
	}
	removed, err := a.good(ctx, "removed", 1, large)
	if err != nil {
		return err
	}
	gone, err := find(removed)
	if err != nil {
		return err
	}
	if err := os.Remove(blob(gone)); err != nil {
		return err
	}
	if err := a.try(ctx, "a blob whose file was removed", removed.Root, "CLIENT_ERROR: missing_cas "+gone.Hash.String()[:8]); err != nil {
		return err
	}
	// Who still has it sends it again, and then it is there.
	if _, err := archive.Upload(ctx, a.to, a.path("made", "removed"), archive.Options{}); err != nil {
		return err
	}
	if err := a.try(ctx, "the same, archived again", removed.Root, "COMPLETED"); err != nil {
		return err
	}
	bent, err := a.good(ctx, "bent", 2, large)
	if err != nil {
		return err
	}
	d, err := find(bent)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(blob(d), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	var b [1]byte
	_, err = f.ReadAt(b[:], large/2)
	b[0] ^= 0x10
	_, werr := f.WriteAt(b[:], large/2)
	if err := errors.Join(err, werr, f.Close()); err != nil {
		return err
	}
	if err := a.try(ctx, "a bit that turned on the server's disk", bent.Root, "CLIENT_ERROR: missing_cas "+d.Hash.String()[:8]); err != nil {
		return err
	}
	if left, _ := filepath.Glob(a.path("state", "cas", "quarantine", "*")); len(left) == 0 {
		a.failed = append(a.failed, "the damaged blob is not in the quarantine")
	}
	if _, err := archive.Upload(ctx, a.to, a.path("made", "bent"), archive.Options{}); err != nil {
		return err
	}
	if err := a.try(ctx, "the same, archived again", bent.Root, "COMPLETED"); err != nil {
		return err
	}
	// What the bot has it need not be given again.
	if err := os.Remove(blob(gone)); err != nil {
		return err
	}
	if err := a.try(ctx, "a blob that the bot still has", removed.Root, "COMPLETED"); err != nil {
		return err
	}
	never := cas.Sum([]byte("never written"))
	return a.try(ctx, "a root that nobody wrote", never, "CLIENT_ERROR: missing_cas "+never.Hash.String()[:8])
}

// lies has the bot fetch from a storage that lies.
func (a *attack) lies(ctx context.Context, l *liar) error {
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	half := func(b []byte) []byte { return b[:len(b)/2] }
	more := func(b []byte) []byte { return append(b, "and more"...) }
	none := func([]byte) []byte { return nil }
	noise := rand.NewChaCha8([32]byte{9})
	for _, size := range []int{1000, 3 << 20} {
		// A stream is read up to the size of the digest, and what was read is right.
		excess := "came as other bytes"
		if size > 1<<20 {
			excess = "COMPLETED"
		}
		for _, c := range []struct {
			name  string
			bend  func([]byte) []byte
			times int
			want  string
		}{
			{"one bit other", flip, -1, "came as other bytes"},
			{"half of it", half, -1, fmt.Sprint("/", size)},
			{"half of it, once", half, 1, "COMPLETED"},
			{"more than it", more, -1, excess},
			{"nothing", none, -1, fmt.Sprint("/", size)},
			{"nothing, once", none, 1, "COMPLETED"},
		} {
			// A stream that breaks off is tried again as one of a server that went
			// away: a bot does so for 10 min without any progress.
			if size > 1<<20 && (c.name == "half of it" || c.name == "nothing") {
				if a.short || c.name == "nothing" {
					continue
				}
				fmt.Println("  the next takes 10 min")
			}
			data := make([]byte, size)
			_, _ = noise.Read(data)
			d := l.put(data)
			root := l.put((&cas.Directory{Files: []cas.File{{Name: "f", Digest: d}}}).Encode())
			l.mu.Lock()
			l.lies[d.Hash] = &lie{bend: c.bend, left: c.times}
			l.mu.Unlock()
			began := time.Now()
			got, err := a.fate(ctx, root)
			what := fmt.Sprintf("%s, of a blob of %d bytes", c.name, size)
			if err != nil {
				a.say(what, fmt.Sprintf("after %v: %v", time.Since(began).Round(time.Second), err), c.want)
				return err
			}
			if c.want == "COMPLETED" {
				c.want = fmt.Sprintf("COMPLETED: %d", size)
			}
			a.say(what, got, c.want)
		}
	}
	msg := (&cas.Directory{Files: []cas.File{{Name: "empty", Digest: cas.Empty}}}).Encode()
	root := l.put(msg)
	l.mu.Lock()
	l.lies[root.Hash] = &lie{bend: func([]byte) []byte {
		return (&cas.Directory{Symlinks: []cas.Symlink{{Name: "l", Target: "/etc"}}}).Encode()
	}, left: -1}
	l.mu.Unlock()
	return a.try(ctx, "another directory than the root's", root, "came as other bytes")
}

// fullDisks fills the server's disk, and then the bot's.
func fullDisks(ctx context.Context, a *attack) error {
	const small, large = 24 << 20, 40 << 20
	unmount, err := mountMemory(a.path("bots", a.bot.id, "cas_cache"), small)
	if err != nil {
		if os.Geteuid() == 0 {
			return err
		}
		fmt.Println("  UNPROVEN, it takes root: no small disk can be mounted here:", err)
		return nil
	}
	tree, err := a.good(ctx, "large", 5, large)
	if err != nil {
		return errors.Join(err, unmount())
	}
	err = a.try(ctx, "inputs larger than the bot's disk", tree.Root, "the disk of the bot is full")
	if err == nil {
		if left, _ := filepath.Glob(filepath.Join(a.bot.dir, "cas_cache", "tmp-*")); len(left) > 0 {
			a.failed = append(a.failed, fmt.Sprintf("a full disk leaves %q", left))
		}
		var fits *archive.Tree
		if fits, err = a.good(ctx, "fits", 6, 1<<20); err == nil {
			err = a.try(ctx, "then inputs that fit", fits.Root, "COMPLETED")
		}
	}
	// The bot's next runner looks at its cache already: it has to go first.
	if err := errors.Join(err, end("the bot", a.bot.p, 20*time.Second), unmount(), a.startBot(a.bot)); err != nil {
		return err
	}
	if err := end("the server", a.server, 15*time.Second); err != nil {
		return err
	}
	if unmount, err = mountMemory(a.path("state", "cas"), small); err != nil {
		return err
	}
	defer func() { _ = unmount() }()
	a.args = append(a.args, "--cas-min-free", "1MiB")
	if err := a.startServer(ctx); err != nil {
		return err
	}
	_, err = a.good(ctx, "larger", 7, large)
	a.say("an upload larger than the server's disk", fmt.Sprint(err), fmt.Sprint(large))
	if skep.KindOf(err) != skep.Exhausted {
		a.failed = append(a.failed, fmt.Sprintf("an upload larger than the server's disk is refused as kind %v, want Exhausted", skep.KindOf(err)))
	}
	fits, err := a.good(ctx, "small", 8, 1<<20)
	if err != nil {
		a.say("then one that fits", err.Error(), "COMPLETED")
	} else if err := a.try(ctx, "then one that fits", fits.Root, "COMPLETED"); err != nil {
		return err
	}
	if left, _ := filepath.Glob(a.path("state", "cas", "tmp", "*")); len(left) > 0 {
		a.failed = append(a.failed, fmt.Sprintf("a full disk leaves %q", left))
	}
	if err := end("the server", a.server, 15*time.Second); err != nil {
		return err
	}
	if err := unmount(); err != nil {
		return err
	}
	return a.startServer(ctx)
}

// badWrites sends the server what is not what it says.
func badWrites(ctx context.Context, a *attack) error {
	w, err := dialRaw(strings.TrimPrefix(a.url, "http://"))
	if err != nil {
		return err
	}
	defer w.close()
	noise := rand.NewChaCha8([32]byte{8})
	for _, size := range []int{1000, 3 << 20} {
		data := make([]byte, size)
		_, _ = noise.Read(data)
		d := cas.Sum(data)
		other := bytes.Clone(data)
		other[size/2] ^= 1
		larger, smaller := d, d
		larger.Size++
		smaller.Size--
		for _, c := range []struct {
			name string
			d    cas.Digest
			data []byte
			want string
		}{
			{"one bit other than the digest", d, other, "InvalidArgument"},
			{"the digest with a size too large", larger, data, "InvalidArgument"},
			{"the digest with a size too small", smaller, data, "InvalidArgument"},
			{"half of it, and the end", d, data[:size/2], "InvalidArgument"},
		} {
			what := fmt.Sprintf("%s, %d bytes", c.name, size)
			if size < 1<<20 {
				a.say(what+", batch", w.batch(ctx, c.d, c.data), c.want)
			}
			a.say(what+", stream", w.stream(ctx, c.d, c.data, true), c.want)
		}
		a.say(fmt.Sprintf("a stream that breaks off, %d bytes", size), w.stream(ctx, d, data[:size/2], false), "Canceled")
		missing, err := a.to.Missing(ctx, []cas.Digest{d, larger, smaller, cas.Sum(other)})
		if err != nil {
			return err
		}
		if len(missing) != 4 {
			a.failed = append(a.failed, fmt.Sprintf("of 4 blobs that were refused the server has %d", 4-len(missing)))
		}
		a.say(fmt.Sprintf("then what the digest says, %d bytes", size), w.stream(ctx, d, data, true), "OK")
	}
	return nil
}
