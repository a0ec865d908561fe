package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/archive"
	"github.com/skepdev/skep/cas/cache"
	"github.com/skepdev/skep/cas/remote"
	"github.com/skepdev/skep/internal/debris"
	"github.com/skepdev/skep/internal/specimen"
)

const (
	casLarge  = 1 << 30 // bytes of the large file
	casRounds = 3       // of the small tree
)

// storage measures content-addressed storage as tasks and their submitters use
// it: the same packages, this process as the client, a real skep server with a
// directory of its own. A round does everything once, and the yardsticks
// beside it; a sample takes a second, not a millisecond, so that there are a
// few rounds and no 300. Median and P99, the worst of them, are of the cold
// download of the tree of small files.
func storage(ctx context.Context, r *run) (*Report, error) {
	b := &casBench{run: r, rounds: casRounds}
	if r.N > 0 {
		b.rounds = r.N
	}
	large := r.Large
	if large == 0 {
		large = casLarge
	}
	if err := b.room(large); err != nil {
		return nil, err
	}
	small, err := b.smallTree(ctx)
	if err != nil {
		return nil, err
	}
	trees := []*casTree{small}
	if large > 0 {
		fmt.Fprintln(r.Progress, "write the large file")
		t := &casTree{name: "large", dir: filepath.Join(r.dir, "large"), rounds: b.rounds, source: "one file"}
		if err := errors.Join(os.Mkdir(t.dir, 0o755), specimen.Large(filepath.Join(t.dir, "file"), large, 1)); err != nil {
			return nil, err
		}
		trees = append(trees, t)
	}
	extra := map[string]any{}
	for _, t := range trees {
		if t.files, t.bytes, err = specimen.Size(t.dir); err != nil {
			return nil, err
		}
		t.took, t.yards, t.lacks = map[string][]float64{}, map[string][]float64{}, map[string]string{}
		for n := range t.rounds {
			fmt.Fprintf(r.Progress, "%s, round %d of %d\n", t.name, n+1, t.rounds)
			if err := b.round(ctx, t); err != nil {
				return nil, fmt.Errorf("%s: %w", t.name, err)
			}
		}
		t.report(extra)
	}
	if b.engine != nil {
		b.engine.about(extra)
	}
	cold := slices.Clone(small.took["cold"])
	sp := spreadOf(cold)
	return &Report{Unit: "ms", Median: sp.Median, P99: sp.P99, N: len(cold), Extra: extra}, nil
}

// casBench is the case under way.
type casBench struct {
	*run
	rounds int
	engine *service // the last one, for what it said of its database
}

// casTree is one of the two trees, and what was measured with it.
type casTree struct {
	name   string
	dir    string
	source string
	rounds int
	files  int
	bytes  int64
	took   map[string][]float64 // ms, one for each round
	yards  map[string][]float64 // ms, of the machine itself, some for each round
	lacks  map[string]string    // methods that do not work here, and why
	rss    float64              // of the server, MiB, the most
}

// remove removes what a step made; many files stay until the end of the case.
// An ext4 without a journal does not use an inode again for a minute after its
// file was removed, and looks at each of them for every file that it makes: cp
// -r of the small tree takes 0.3 s, and 5 s after a few removals.
func (t *casTree) remove(dir string) error {
	if t.files > 100 {
		return nil
	}
	return debris.Remove(dir)
}

// room refuses a disk on which the measurement would not fit.
func (b *casBench) room(large int64) error {
	free, err := cache.Free(b.dir)
	if err != nil {
		return err
	}
	if need := 3<<30 + 6*max(large, 0); free < need {
		return fmt.Errorf("%d MiB are free in %s, and %d MiB are needed; --dir names another place, --large a smaller file", free>>20, b.dir, need>>20)
	}
	return nil
}

func (b *casBench) smallTree(ctx context.Context) (*casTree, error) {
	t := &casTree{name: "small", rounds: b.rounds}
	var ok bool
	if t.dir, ok = specimen.GoSource(ctx); ok {
		t.source = "source of Go's standard library"
		return t, nil
	}
	fmt.Fprintln(b.Progress, "write the tree of small files")
	t.dir, t.source = filepath.Join(b.dir, "small"), "generated"
	return t, specimen.Small(t.dir, specimen.Shape{})
}

// time runs one step and notes in took how long that was. What is to be written to the
// disk before is written first: it would be another step's.
func (b *casBench) time(took map[string][]float64, name string, step func() error) error {
	settleDisk(b.dir)
	began := time.Now()
	if err := step(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	took[name] = append(took[name], ms(time.Since(began)))
	return nil
}

// round measures everything once with a tree, from an empty server on.
func (b *casBench) round(ctx context.Context, t *casTree) (err error) {
	if err := b.yardsticks(ctx, t); err != nil {
		return err
	}
	s, err := b.start(ctx, "server", nil, "--cas-min-free", "64MiB")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop(), debris.Remove(s.stateDir)) }()
	b.engine = s
	var root cas.Digest
	up := func(stat string) func() error {
		return func() error {
			c, err := remote.New(remote.Options{URL: s.URL})
			if err != nil {
				return err
			}
			defer c.Close()
			tree, err := archive.Upload(ctx, c, t.dir, archive.Options{StatCache: stat})
			if err == nil {
				root = tree.Root
			}
			return err
		}
	}
	stat := filepath.Join(b.dir, "stat")
	defer os.Remove(stat)
	if err := b.time(t.took, "archive_empty", up("")); err != nil {
		return err
	}
	first := root
	if err := errors.Join(b.time(t.took, "archive_present", up("")), up(stat)(), b.time(t.took, "archive_unchanged", up(stat))); err != nil {
		return err
	}
	if root != first {
		return fmt.Errorf("the tree became %s and then %s", first, root)
	}
	if err := b.yardsticks(ctx, t); err != nil {
		return err
	}
	if err := b.download(ctx, t, s, root); err != nil {
		return err
	}
	if m, err := memoryOf(s.pid()); err == nil {
		t.rss = max(t.rss, m.RSS)
	}
	return nil
}

// download makes the tree from the server, on two machines, and again from the
// cache by every method.
func (b *casBench) download(ctx context.Context, t *casTree, s *service, root cas.Digest) (err error) {
	overlay, err := b.machine(t, s, root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.remove(overlay.dir)) }()
	at, err := b.machine(t, s, root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.remove(at.dir)) }()
	if err := b.fill(ctx, t, at, "cold", cache.Link, true); err != nil {
		return err
	}
	if err := at.clear(); err != nil {
		return err
	}
	if t.lacks[string(cache.Overlay)] == "" {
		if err := b.fill(ctx, t, overlay, "cold_overlay", cache.Overlay, true); err != nil {
			if ctx.Err() != nil {
				return err
			}
			t.lacks[string(cache.Overlay)] = err.Error()
		}
		if err := overlay.clear(); err != nil {
			return err
		}
	}
	if err := b.yardsticks(ctx, t); err != nil {
		return err
	}
	for _, m := range []cache.Method{cache.Link, cache.Overlay, cache.Copy, cache.Reflink} {
		if t.lacks[string(m)] != "" {
			continue
		}
		// An overlay's lower directory is made with the first one.
		if err := at.make(ctx, m, false); err != nil {
			if ctx.Err() != nil {
				return err
			}
			t.lacks[string(m)] = err.Error()
			if err := at.clear(); err != nil {
				return err
			}
			continue
		}
		if err := at.clear(); err != nil {
			return err
		}
		if err := b.fill(ctx, t, at, "warm_"+string(m), m, false); err != nil {
			return err
		}
		if err := at.check(t); err != nil {
			return fmt.Errorf("%s: %w", m, err)
		}
		if err := at.clear(); err != nil {
			return err
		}
	}
	return nil
}

// machine makes a machine with an empty cache.
func (b *casBench) machine(t *casTree, s *service, root cas.Digest) (*casMachine, error) {
	dir, err := os.MkdirTemp(b.dir, "machine-")
	return &casMachine{dir: dir, server: s.URL, root: root, remove: t.remove}, err
}

// fill gives the tree to a task and notes how long that took, as the task's
// own statistics would: a bot has opened its cache before the task comes.
func (b *casBench) fill(ctx context.Context, t *casTree, m *casMachine, name string, method cache.Method, cold bool) error {
	settleDisk(b.dir)
	if err := m.make(ctx, method, cold); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	t.took[name] = append(t.took[name], ms(m.res.Duration))
	return nil
}

// casMachine is a machine with a cache, on which one task after the other
// starts. Each opens the cache and the connection anew, as a process of its
// own would.
type casMachine struct {
	dir    string
	server string
	root   cas.Digest
	remove func(dir string) error

	n    int // of tasks
	task string
	res  *cache.Result
}

// foreignUID is nobody's: a task that may not write to what is linked.
const foreignUID = 54321

// make gives the tree to a task.
func (m *casMachine) make(ctx context.Context, method cache.Method, cold bool) error {
	m.n++
	m.task = filepath.Join(m.dir, fmt.Sprint("task-", m.n))
	run, scratch := filepath.Join(m.task, "run"), filepath.Join(m.task, "scratch")
	if err := os.Mkdir(m.task, 0o755); err != nil {
		return err
	}
	if err := errors.Join(os.Mkdir(run, 0o755), os.Mkdir(scratch, 0o700)); err != nil {
		return err
	}
	how := cache.How{Method: method, UID: -1, Scratch: scratch}
	opt := cache.Options{Dir: filepath.Join(m.dir, "cas_cache"), MinFree: 64 << 20}
	if method == cache.Link {
		if os.Geteuid() == 0 {
			how.UID, how.GID = foreignUID, foreignUID
		} else {
			opt.Trusted = true // who is not root cannot make directories for others
		}
	}
	from, err := remote.New(remote.Options{URL: m.server})
	if err != nil {
		return err
	}
	defer from.Close()
	c, err := cache.Open(opt)
	if err != nil {
		return err
	}
	defer c.Close()
	if m.res, err = c.Materialise(ctx, from, m.root, run, how); err != nil {
		return err
	}
	if got := len(m.res.Cold) > 0; got != cold {
		return fmt.Errorf("%d blobs were fetched and %d were here", len(m.res.Cold), len(m.res.Hot))
	}
	return nil
}

// check compares what the task got with the tree, by number and size.
func (m *casMachine) check(t *casTree) error {
	files, bytes, err := specimen.Size(filepath.Join(m.task, "run"))
	if err == nil && (files != t.files || bytes != t.bytes) {
		err = fmt.Errorf("a task got %d files of %d bytes, want %d of %d", files, bytes, t.files, t.bytes)
	}
	return err
}

// clear ends the task.
func (m *casMachine) clear() error {
	if m.res != nil {
		if err := m.res.Undo(); err != nil {
			return err
		}
	}
	m.res = nil
	return m.remove(m.task)
}
