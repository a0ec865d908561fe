package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
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
	base map[string]time.Duration // how long the transfer of an undisturbed upload, and of a task, is under way

	n     int // of trees
	tree  string
	root  cas.Digest
	files map[string]bool // hashes of the tree's files, by which the bot's cache has them
	walk  string          // what a walk of the tree prints
	sent  atomic.Int64    // bytes of the upload under way; 0 = there is none, or nothing was sent
	tally map[string]int

	mu       sync.Mutex
	acked    []cas.Digest // blobs that the server said it has
	violated []string
}

// kills shows that kill -9 of the server and of a bot, at random points of
// uploads and downloads, hands out nothing corrupt, loses nothing that was
// acknowledged, leaves no temporary file behind once what was killed runs
// again, and that every transfer comes to its end. Only kills count that hit a
// transfer; others are printed, too.
func kills(ctx context.Context, o options) (err error) {
	s, err := plan{bin: o.bin, cacheSize: 256 << 20}.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	fmt.Printf("seed %d, %d kills that hit a transfer\n", o.seed, o.kills)
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
	total := 0
	for ; k.tally[hit] < o.kills; total++ {
		if total == 5*o.kills+10 {
			return fmt.Errorf("of %d kills %d hit a transfer: %s", total, k.tally[hit], k.counts())
		}
		if err := k.round(ctx); err != nil {
			return fmt.Errorf("kill %d: %w\nthe server: %s\nthe bot: %s", total+1, err, tail(s.path("server.log")), tail(k.bot.log))
		}
	}
	stop()
	readers.Wait()
	if err := k.verifyAll(ctx); err != nil {
		return err
	}
	fmt.Printf("%d kills in %v, %d of them hit a transfer: %s\n", total, time.Since(began).Round(time.Second), k.tally[hit], k.counts())
	fmt.Printf("every transfer came to its end; %d acknowledged blobs are there and whole; no temporary file was left\n", len(k.acked))
	if len(k.violated) > 0 {
		return fmt.Errorf("%d violations, such as: %s", len(k.violated), strings.Join(k.violated[:min(5, len(k.violated))], "; "))
	}
	return nil
}

// hit counts the kills that count.
const hit = "a transfer was hit"

func (k *killing) counts() string {
	var out []string
	for _, name := range []string{
		"server during upload", "server during download", "bot during download", "nothing under way", "temporary files at that moment", "tasks run again", "blobs read meanwhile",
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
		for _, p := range []struct {
			phase string
			step  func(context.Context) error
		}{{"upload", k.upload}, {"download", k.task}} {
			done := make(chan error, 1)
			go func() { done <- p.step(ctx) }()
			under, _, err := k.follow(done, p.phase, math.MaxInt64)
			if err != nil {
				return err
			}
			if k.base[p.phase] = under; under == 0 {
				return fmt.Errorf("nobody saw the %s while it was under way", p.phase)
			}
		}
	}
	fmt.Printf("undisturbed: an upload is under way for %v, inputs and outputs of a task for %v\n",
		k.base["upload"].Round(time.Millisecond), k.base["download"].Round(time.Millisecond))
	return nil
}

// follow waits until the transfer of a phase has been under way for so long
// altogether, or its step has ended.
func (k *killing) follow(done <-chan error, phase string, so time.Duration) (under time.Duration, over bool, err error) {
	for last := time.Now(); ; {
		select {
		case err := <-done:
			return under, true, err
		case <-time.After(time.Millisecond):
		}
		now := time.Now()
		if k.underWay(phase) {
			if under += now.Sub(last); under >= so {
				return under, false, nil
			}
		}
		last = now
	}
}

// underWay looks whether there is a transfer at this moment: an upload that has
// sent bytes and was not acknowledged, a stream that the server takes in, or
// inputs of which the bot has some and not all.
func (k *killing) underWay(phase string) bool {
	if some, _ := filepath.Glob(k.path("state", "cas", "tmp", "*")); len(some) > 0 {
		return true
	}
	if phase == "upload" {
		return k.sent.Load() > 0
	}
	names, err := os.ReadDir(filepath.Join(k.bot.dir, "cas_cache"))
	if err != nil {
		return false
	}
	have := map[string]bool{}
	for _, e := range names {
		name := strings.TrimSuffix(e.Name(), ".x")
		if strings.HasPrefix(name, "tmp-") {
			return true
		}
		if k.files[name] {
			have[name] = true
		}
	}
	return len(have) > 0 && len(have) < len(k.files)
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
	defer k.sent.Store(0)
	tree, err := archive.Upload(ctx, k.to, k.tree, archive.Options{Sent: func(n int64) { k.sent.Add(n) }})
	if err != nil {
		return err
	}
	k.sent.Store(0)
	k.root = tree.Root
	dirs, err := k.to.Tree(ctx, tree.Root)
	if err != nil {
		return err
	}
	k.files = map[string]bool{}
	for _, d := range dirs {
		for _, f := range d.Files {
			k.files[f.Digest.Hash.String()] = true
		}
	}
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
func (k *killing) round(ctx context.Context) error {
	// What was hit least is next.
	phase, victim, step := "upload", "server", k.upload
	for _, c := range []struct{ victim, phase string }{{"server", "download"}, {"bot", "download"}} {
		if k.tally[c.victim+" during "+c.phase] < k.tally[victim+" during "+phase] {
			phase, victim, step = c.phase, c.victim, k.task
		}
	}
	if err := k.next(ctx); err != nil {
		return err
	}
	if phase == "download" {
		if err := k.upload(ctx); err != nil {
			return err
		}
	}
	done := make(chan error, 1)
	go func() { done <- step(ctx) }()
	_, over, err := k.follow(done, phase, time.Duration(k.rng.Float64()*float64(k.base[phase])))
	if err != nil {
		return err
	}
	kill, p := k.killServer, k.server
	if victim == "bot" {
		kill, p = k.killBot, k.bot.p
	}
	if err := freeze(p); err != nil { // nothing ends between the look and the kill
		return err
	}
	if !over && k.underWay(phase) {
		k.tally[victim+" during "+phase]++
		k.tally[hit]++
	} else {
		k.tally["nothing under way"]++
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
