package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/archive"
	"github.com/skepdev/skep/cas/remote"
	"github.com/skepdev/skep/internal/specimen"
)

// killTree is what is transferred while processes are killed: files that go
// into packs, and one that is a stream.
const (
	killFiles = 150
	killSmall = 3 << 20
	killLarge = 16 << 20
)

// killing is the demonstration under way.
type killing struct {
	*site
	rng  *rand.Rand
	bot  *member
	to   *remote.Client
	base map[string]time.Duration // of an undisturbed upload and an undisturbed task

	n     int // of trees
	tree  string
	root  cas.Digest
	walk  string // what a walk of the tree prints
	tally map[string]int

	mu       sync.Mutex
	acked    []cas.Digest // blobs that the server said it has
	violated []string
}

// kills shows that kill -9 of the server and of a bot, at random points of
// uploads and downloads, hands out nothing corrupt, loses nothing that was
// acknowledged, leaves no temporary file behind once what was killed runs
// again, and that every transfer comes to its end.
func kills(ctx context.Context, o options) (err error) {
	s, err := plan{bin: o.bin, cacheSize: 256 << 20}.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	fmt.Printf("seed %d, %d kills\n", o.seed, o.kills)
	k := &killing{site: s, rng: rand.New(rand.NewPCG(o.seed, 3)), base: map[string]time.Duration{}, tally: map[string]int{}}
	if k.bot, err = s.addBot(ctx, "kills-1"); err != nil {
		return err
	}
	if k.to, err = remote.New(remote.Options{URL: s.url, Patience: time.Minute}); err != nil {
		return err
	}
	defer k.to.Close()
	if err := k.undisturbed(ctx); err != nil {
		return fmt.Errorf("without any kill: %w", err)
	}
	reading, stop := context.WithCancel(ctx)
	var readers sync.WaitGroup
	defer readers.Wait()
	defer stop()
	readers.Go(func() { k.read(reading) })
	began := time.Now()
	for n := range o.kills {
		if err := k.round(ctx, n); err != nil {
			return fmt.Errorf("kill %d: %w\nthe server: %s\nthe bot: %s", n+1, err, tail(s.path("server.log")), tail(k.bot.log))
		}
	}
	stop()
	readers.Wait()
	if err := k.verifyAll(ctx); err != nil {
		return err
	}
	fmt.Printf("%d kills in %v: %s\n", o.kills, time.Since(began).Round(time.Second), k.counts())
	fmt.Printf("every transfer came to its end; %d acknowledged blobs are there and whole; no temporary file was left\n", len(k.acked))
	if len(k.violated) > 0 {
		return fmt.Errorf("%d violations, such as: %s", len(k.violated), strings.Join(k.violated[:min(5, len(k.violated))], "; "))
	}
	return nil
}

func (k *killing) counts() string {
	var out []string
	for _, name := range []string{
		"server during upload", "server during download", "bot during download",
		"transfer under way", "temporary files at that moment", "tasks run again", "blobs read meanwhile",
	} {
		out = append(out, fmt.Sprintf("%s %d", name, k.tally[name]))
	}
	return strings.Join(out, ", ")
}

func (k *killing) violate(format string, args ...any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.violated = append(k.violated, fmt.Sprintf(format, args...))
}

// undisturbed measures how long what is killed takes.
func (k *killing) undisturbed(ctx context.Context) error {
	for range 2 { // the first finds everything cold
		if err := k.next(ctx); err != nil {
			return err
		}
		began := time.Now()
		if err := k.upload(ctx); err != nil {
			return err
		}
		k.base["upload"] = time.Since(began)
		began = time.Now()
		if err := k.task(ctx); err != nil {
			return err
		}
		k.base["download"] = time.Since(began)
	}
	fmt.Printf("undisturbed: upload %v, task with inputs and outputs %v\n",
		k.base["upload"].Round(time.Millisecond), k.base["download"].Round(time.Millisecond))
	return nil
}

// next makes a new tree.
func (k *killing) next(ctx context.Context) (err error) {
	if k.tree != "" {
		if err := os.RemoveAll(k.tree); err != nil {
			return err
		}
	}
	k.n++
	k.tree = k.path(fmt.Sprint("tree-", k.n))
	seed := k.rng.Uint64()
	if err := specimen.Small(k.tree, specimen.Shape{Files: killFiles, Bytes: killSmall, Seed: seed}); err != nil {
		return err
	}
	if err := specimen.Large(filepath.Join(k.tree, "large"), killLarge, seed); err != nil {
		return err
	}
	k.walk, err = walkHere(ctx, k.tree)
	return err
}

// upload archives the tree; when it returns the server has acknowledged it.
func (k *killing) upload(ctx context.Context) error {
	tree, err := archive.Upload(ctx, k.to, k.tree, archive.Options{})
	if err != nil {
		return err
	}
	k.root = tree.Root
	return k.acknowledge(ctx, tree.Root)
}

// acknowledge notes all blobs of a tree that the server has.
func (k *killing) acknowledge(ctx context.Context, root cas.Digest) error {
	dirs, err := k.to.Tree(ctx, root)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.acked = append(k.acked, root)
	for _, d := range dirs {
		for _, f := range d.Files {
			k.acked = append(k.acked, f.Digest)
		}
		for _, s := range d.Dirs {
			k.acked = append(k.acked, s.Digest)
		}
	}
	return nil
}

// keepOutputs walks its inputs and makes them its outputs, with something that
// no store has.
const keepOutputs = walk + `
mkdir "$0/copy" && cp -a . "$0/copy/" && head -c 4000000 /dev/urandom > "$0/noise" && chmod -R u+w "$0"`

// task runs a task on the bot until it comes to its end: one that died with
// its bot runs again.
func (k *killing) task(ctx context.Context) error {
	for range 5 {
		r, err := k.run(ctx, job{bot: k.bot.id, command: []string{"sh", "-c", keepOutputs, "${ISOLATED_OUTDIR}"}, inputs: k.root})
		if err != nil {
			return err
		}
		if r.State == pb.TaskState_BOT_DIED {
			k.tally["tasks run again"]++
			continue
		}
		if err := r.good(); err != nil {
			return err
		}
		if r.output != k.walk {
			k.violate("task %s had other inputs: %s, want %s", r.TaskId, r.output, k.walk)
		}
		out := r.CasOutputRoot.GetDigest()
		if out == nil {
			return fmt.Errorf("task %s has no outputs", r.TaskId)
		}
		root, err := cas.NewDigest(out.Hash, out.SizeBytes)
		if err != nil {
			return err
		}
		return k.acknowledge(ctx, root)
	}
	return errors.New("the task died with its bot five times")
}

// round kills once.
func (k *killing) round(ctx context.Context, n int) error {
	phase, victim, step := "upload", "server", k.upload
	if n%2 == 1 {
		phase, step = "download", k.task
		if n%4 == 3 {
			victim = "bot"
		}
	} else if err := k.next(ctx); err != nil {
		return err
	}
	after := time.Duration(k.rng.Float64() * 1.1 * float64(k.base[phase]))
	done := make(chan error, 1)
	go func() { done <- step(ctx) }()
	over := false
	select {
	case err := <-done:
		if err != nil {
			return err
		}
		over = true
	case <-time.After(after):
	}
	kill := k.killServer
	if victim == "bot" {
		kill = k.killBot
	}
	k.tally[victim+" during "+phase]++
	if !over {
		k.tally["transfer under way"]++
	}
	if err := kill(ctx); err != nil {
		return fmt.Errorf("%s during %s: %w", victim, phase, err)
	}
	if !over {
		select {
		case err := <-done:
			if err != nil {
				return fmt.Errorf("%s killed during %s: %w", victim, phase, err)
			}
		case <-time.After(2 * time.Minute):
			return fmt.Errorf("%s killed during %s: it did not come to its end in 2 min", victim, phase)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if victim == "bot" {
		// What a kill left is removed before the first task: run one.
		if err := k.task(ctx); err != nil {
			return err
		}
		k.noLeftovers(k.bot.dir, k.bot.p.Started, "cas_cache/tmp-*", "cas_cache/trees/tmp-*", "c/tmp-*", "w*", "ir*")
	}
	return nil
}

// killServer kills the server, starts it again, and looks at what it knows.
func (k *killing) killServer(ctx context.Context) error {
	if err := killWait(k.server); err != nil {
		return err
	}
	if left, _ := filepath.Glob(k.path("state", "cas", "tmp", "*")); len(left) > 0 {
		k.tally["temporary files at that moment"]++
	}
	if err := k.startServer(ctx); err != nil {
		return err
	}
	k.noLeftovers(k.path("state", "cas"), k.server.Started, "tmp/*", "quarantine/*")
	k.mu.Lock()
	acked := append([]cas.Digest(nil), k.acked...)
	k.mu.Unlock()
	missing, err := k.to.Missing(ctx, acked)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		k.violate("%d of %d acknowledged blobs are lost, such as %s", len(missing), len(acked), missing[0])
	}
	return nil
}

func (k *killing) killBot(context.Context) error {
	if err := killWait(k.bot.p); err != nil {
		return err
	}
	if left, _ := filepath.Glob(filepath.Join(k.bot.dir, "cas_cache", "tmp-*")); len(left) > 0 {
		k.tally["temporary files at that moment"]++
	}
	return k.startBot(k.bot)
}

// noLeftovers looks for files of before since.
func (k *killing) noLeftovers(dir string, since time.Time, patterns ...string) {
	for _, p := range patterns {
		left, _ := filepath.Glob(filepath.Join(dir, p))
		for _, path := range left {
			if fi, err := os.Lstat(path); err == nil && fi.ModTime().Before(since) {
				k.violate("%s is of %v and something was killed and started again at %v", path, fi.ModTime().Format(time.TimeOnly), since.Format(time.TimeOnly))
			}
		}
	}
}

// read reads acknowledged blobs all the time, over all kills, and checks each.
func (k *killing) read(ctx context.Context) {
	rng := rand.New(rand.NewPCG(1, 4))
	for ctx.Err() == nil {
		k.mu.Lock()
		d := k.acked[rng.IntN(len(k.acked))]
		k.mu.Unlock()
		if err := k.readOne(ctx, d); err != nil && ctx.Err() == nil {
			k.violate("read %s: %v", d, err)
		}
		k.mu.Lock()
		k.tally["blobs read meanwhile"]++
		k.mu.Unlock()
		select {
		case <-time.After(5 * time.Millisecond): // it shall not take the machine for itself
		case <-ctx.Done():
		}
	}
}

func (k *killing) readOne(ctx context.Context, d cas.Digest) error {
	return k.to.Read(ctx, d, io.Discard) // which verifies
}

// verifyAll reads every acknowledged blob once more.
func (k *killing) verifyAll(ctx context.Context) error {
	seen := map[cas.Digest]bool{}
	var small []cas.Digest
	for _, d := range k.acked {
		if seen[d] {
			continue
		}
		seen[d] = true
		if d.Size <= 1<<20 {
			small = append(small, d)
		} else if err := k.readOne(ctx, d); err != nil {
			return fmt.Errorf("read %s: %w", d, err)
		}
	}
	return k.to.ReadBatch(ctx, small, func(cas.Digest, []byte) error { return nil })
}
