package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/remote"
)

// outputs is a tree of what a task leaves. The task made every name in it and
// runs under other rights than we do, so nothing is opened but through a root,
// and nothing is taken that the task could not have read.
type outputs struct {
	run  *isolatedRun
	dirs map[string]*outDir // by slash-separated path, "" = the root
	n    int
	srcs []remote.Source
}

type outDir struct {
	files map[string]cas.File
	links map[string]cas.Symlink
	dirs  map[string]bool
}

// sendOutputs uploads what is in the output directory, and what the task's
// request calls its outputs, as one tree. spec bot.md §5.7.
func (r *isolatedRun) sendOutputs() error {
	j := &r.job
	if r.dirs.out == "" || len(j.Outputs) == 0 && isEmpty(r.dirs.out) {
		return nil
	}
	if j.CAS == nil {
		r.log.Warn("outputs are dropped: the manifest names no storage", "task", j.TaskID)
		return nil
	}
	defer allProcessors()()
	began := time.Now()
	o := &outputs{run: r, dirs: map[string]*outDir{}}
	out, err := os.OpenRoot(r.dirs.out)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := o.add(out, ".", "", false, 0); err != nil {
		return fmt.Errorf("outputs: %w", err)
	}
	in, err := os.OpenRoot(r.dirs.run)
	if err != nil {
		return err
	}
	defer in.Close()
	for _, name := range j.Outputs {
		rel := path.Clean(filepath.ToSlash(name))
		if !filepath.IsLocal(filepath.FromSlash(rel)) {
			r.log.Warn("output leaves the run directory; left out", "task", j.TaskID, "output", name)
			continue
		}
		if err := o.add(in, rel, rel, true, 0); err != nil {
			return fmt.Errorf("output %s: %w", name, err)
		}
	}
	if len(o.dirs) == 0 || o.n == 0 {
		return nil
	}
	root := o.tree("")
	to, err := r.storage()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), uploadLimit)
	defer cancel()
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case <-r.parentGone: // nobody is left to report to
			os.Exit(1)
		case <-over:
		}
	}()
	stats, err := to.Upload(ctx, o.srcs, nil)
	if err != nil {
		return fmt.Errorf("upload outputs: %w", err)
	}
	r.res.CASOutputRoot = &botapi.CASReference{Instance: j.CAS.Instance, Digest: botapi.CASDigest{Hash: root.Hash.String(), SizeBytes: root.Size}}
	r.res.Stats.Isolated.Upload = &botapi.TransferStats{
		Duration: seconds(began), ItemsCold: cas.PackSizes(stats.Cold), ItemsHot: cas.PackSizes(stats.Hot),
	}
	return nil
}

const (
	patience    = 10 * time.Minute // without any progress
	uploadLimit = 50 * time.Minute
	maxOutputs  = 1_000_000 // entries
)

func isEmpty(dir string) bool {
	f, err := os.Open(dir)
	if err != nil {
		return true
	}
	defer f.Close()
	names, _ := f.Readdirnames(1)
	return len(names) == 0
}

// add takes in what is at name below root, as the slash-separated path as; ""
// is the top. follow takes what a link points to, if that is below root; else
// a link stays one, unless it leaves the tree.
func (o *outputs) add(root *os.Root, name, as string, follow bool, depth int) error {
	log := o.run.log.With("task", o.run.job.TaskID, "output", as)
	if o.n++; o.n > maxOutputs {
		return fmt.Errorf("more than %d entries", maxOutputs)
	}
	if depth > cas.MaxDepth {
		return fmt.Errorf("%s is more than %d directories deep", as, cas.MaxDepth)
	}
	if o.taken(as) {
		log.Warn("the output directory has this output already; left out")
		return nil
	}
	fi, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		log.Warn("output does not exist")
		return nil
	}
	if err == nil && fi.Mode()&fs.ModeSymlink != 0 {
		target, lerr := root.Readlink(name)
		if lerr != nil {
			return lerr
		}
		if !follow && !cas.Escapes(path.Dir("/" + as)[1:], filepath.ToSlash(target)) {
			o.dir(path.Dir(as)).links[path.Base(as)] = cas.Symlink{Name: path.Base(as), Target: filepath.ToSlash(target)}
			return nil
		}
		if fi, err = root.Stat(name); err != nil {
			log.Warn("output is a link that leads out, or nowhere; left out", "err", err)
			return nil //nolint:nilerr // it is told
		}
	}
	if err != nil {
		return err
	}
	if as != "" && cas.CheckName(path.Base(as)) != nil {
		log.Warn("output's name cannot be stored; left out")
		return nil //nolint:nilerr // it is told
	}
	switch {
	case fi.IsDir():
		return o.addDir(root, name, as, follow, depth)
	case fi.Mode().IsRegular():
		return o.addFile(root, name, as)
	}
	log.Warn("output is neither file nor directory; left out", "mode", fi.Mode().String())
	return nil
}

// taken reports whether as, or something in place of a directory above it, is
// in the tree and is no directory.
func (o *outputs) taken(as string) bool {
	for as != "" && as != "." {
		if d := o.dirs[parent(as)]; d != nil {
			_, file := d.files[path.Base(as)]
			_, link := d.links[path.Base(as)]
			if file || link {
				return true
			}
		}
		as = parent(as)
	}
	return false
}

func parent(as string) string {
	if p := path.Dir(as); p != "." {
		return p
	}
	return ""
}

// dir returns a directory of the tree, made with those above it.
func (o *outputs) dir(as string) *outDir {
	if as == "." {
		as = ""
	}
	d := o.dirs[as]
	if d == nil {
		d = &outDir{map[string]cas.File{}, map[string]cas.Symlink{}, map[string]bool{}}
		o.dirs[as] = d
		if as != "" {
			o.dir(parent(as)).dirs[path.Base(as)] = true
		}
	}
	return d
}

func (o *outputs) addDir(root *os.Root, name, as string, follow bool, depth int) error {
	f, err := o.open(root, name, as)
	if f == nil {
		return err
	}
	defer f.Close()
	if as == "" {
		o.n-- // the top is no entry
	} else {
		o.dir(as)
	}
	for {
		entries, err := f.ReadDir(1000)
		for _, e := range entries {
			if err := o.add(root, path.Join(name, e.Name()), path.Join(as, e.Name()), follow, depth+1); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// open opens what the task could have opened; nil without an error when it
// could not.
func (o *outputs) open(root *os.Root, name, as string) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|nonBlock, 0) // a pipe must not hold us up
	if err != nil {
		o.run.log.Warn("output cannot be opened; left out", "task", o.run.job.TaskID, "output", as, "err", err)
		return nil, nil
	}
	fi, err := f.Stat()
	if err == nil && !readable(fi, o.run.User) {
		o.run.log.Warn("output is not the task's to read; left out", "task", o.run.job.TaskID, "output", as)
		return nil, f.Close()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (o *outputs) addFile(root *os.Root, name, as string) error {
	f, err := o.open(root, name, as)
	if f == nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return nil // it was one a moment ago
	}
	d, err := cas.SumReader(f)
	if err != nil {
		return err
	}
	base := path.Base(as)
	o.dir(parent(as)).files[base] = cas.File{Name: base, Digest: d, Executable: fi.Mode()&0o111 != 0}
	o.srcs = append(o.srcs, remote.Source{Digest: d, Open: func() (io.ReadSeekCloser, error) {
		f, err := o.open(root, name, as)
		if f == nil && err == nil {
			err = fmt.Errorf("%s is gone", as)
		}
		return f, err
	}})
	return nil
}

// tree adds the Directory messages below as and returns the digest of as.
func (o *outputs) tree(as string) cas.Digest {
	var d cas.Directory
	if in := o.dirs[as]; in != nil {
		for _, f := range in.files {
			d.Files = append(d.Files, f)
		}
		for _, l := range in.links {
			d.Symlinks = append(d.Symlinks, l)
		}
		for name := range in.dirs {
			d.Dirs = append(d.Dirs, cas.Dir{Name: name, Digest: o.tree(strings.TrimPrefix(as+"/"+name, "/"))})
		}
	}
	m := d.Encode()
	digest := cas.Sum(m)
	o.srcs = append(o.srcs, remote.Source{Digest: digest, Data: m})
	return digest
}

// placeOutputs makes the directories in which the task's outputs will be, so
// that it need not. spec bot.md §5.2.
func (r *isolatedRun) placeOutputs() error {
	if len(r.job.Outputs) == 0 {
		return nil
	}
	root, err := os.OpenRoot(r.dirs.run)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, name := range r.job.Outputs {
		rel := filepath.Clean(filepath.FromSlash(name))
		if !filepath.IsLocal(rel) {
			continue
		}
		if err := makeDirs(root, filepath.Dir(rel), r.own1(root)); err != nil {
			r.log.Warn("directory of an output not made", "task", r.job.TaskID, "output", name, "err", err)
		}
	}
	return nil
}
