package script

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"go.starlark.net/lib/json"
	startime "go.starlark.net/lib/time"
	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"

	"github.com/skepdev/skep/internal/proc"
)

// Limits of the library.
const (
	maxFile    = 4 << 20   // bytes that read_file returns
	maxList    = 10_000    // entries that list_dir returns
	maxOutput  = 256 << 10 // bytes of each output of a command
	maxPattern = 1 << 10
	maxMatches = 10_000

	defaultTimeout = 30 * time.Second
)

// library returns what every script can name.
func library() starlark.StringDict {
	host, _ := os.Hostname()
	return starlark.StringDict{
		"struct":    starlark.NewBuiltin("struct", starlarkstruct.Make),
		"json":      json.Module,
		"time":      startime.Module,
		"read_file": starlark.NewBuiltin("read_file", readFile),
		"list_dir":  starlark.NewBuiltin("list_dir", listDir),
		"exists":    starlark.NewBuiltin("exists", exists),
		"run":       starlark.NewBuiltin("run", runCommand),
		"env":       starlark.NewBuiltin("env", env),
		"re": &starlarkstruct.Module{Name: "re", Members: starlark.StringDict{
			"search":   starlark.NewBuiltin("search", reSearch),
			"find_all": starlark.NewBuiltin("find_all", reFindAll),
			"replace":  starlark.NewBuiltin("replace", reReplace),
		}},
		"platform": &starlarkstruct.Module{Name: "platform", Members: starlark.StringDict{
			"os":          starlark.String(runtime.GOOS),
			"arch":        starlark.String(runtime.GOARCH),
			"cpus":        starlark.MakeInt(runtime.NumCPU()),
			"hostname":    starlark.String(strings.ToLower(host)),
			"uptime_secs": starlark.NewBuiltin("uptime_secs", uptimeSecs),
		}},
	}
}

func readFile(_ *starlark.Thread, fn *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	var path string
	limit := 1 << 20
	if err := starlark.UnpackArgs(fn.Name(), args, kwargs, "path", &path, "max_bytes?", &limit); err != nil {
		return nil, err
	}
	if limit < 0 || limit > maxFile {
		return nil, fmt.Errorf("read_file: max_bytes is %d, want 0 to %d", limit, maxFile)
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if m := st.Mode(); m&(fs.ModeNamedPipe|fs.ModeSocket) != 0 || m.IsDir() {
		return nil, fmt.Errorf("read_file: %s is not a file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)))
	if err != nil {
		return nil, err
	}
	return starlark.String(strings.ToValidUTF8(string(data), "\uFFFD")), nil
}

func listDir(_ *starlark.Thread, fn *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	var path string
	if err := starlark.UnpackArgs(fn.Name(), args, kwargs, "path", &path); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(maxList + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(names) > maxList {
		return nil, fmt.Errorf("list_dir: %s has more than %d entries", path, maxList)
	}
	slices.Sort(names)
	return groups(names), nil
}

func exists(_ *starlark.Thread, fn *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	var path string
	if err := starlark.UnpackArgs(fn.Name(), args, kwargs, "path", &path); err != nil {
		return nil, err
	}
	_, err := os.Stat(path)
	return starlark.Bool(err == nil), nil
}

func env(_ *starlark.Thread, fn *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	var name string
	var def starlark.Value = starlark.None
	if err := starlark.UnpackArgs(fn.Name(), args, kwargs, "name", &name, "default?", &def); err != nil {
		return nil, err
	}
	if v, ok := os.LookupEnv(name); ok {
		return starlark.String(v), nil
	}
	return def, nil
}

func uptimeSecs(_ *starlark.Thread, fn *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	if err := starlark.UnpackArgs(fn.Name(), args, kwargs); err != nil {
		return nil, err
	}
	d, ok := hostUptime()
	if !ok {
		return starlark.None, nil
	}
	return starlark.Float(d.Seconds()), nil
}

// commands ends the command that runs when the host must end.
var commands struct {
	sync.Mutex
	cancel context.CancelFunc
}

// stopCommand kills the command that a hook runs, if any, and gives that a
// moment.
func stopCommand() {
	commands.Lock()
	cancel := commands.cancel
	commands.Unlock()
	if cancel != nil {
		cancel()
		time.Sleep(20 * time.Millisecond)
	}
}

func runCommand(t *starlark.Thread, fn *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	var argv *starlark.List
	var timeout starlark.Value = starlark.Float(defaultTimeout.Seconds())
	var extra *starlark.Dict
	dir := ""
	limit := 64 << 10
	if err := starlark.UnpackArgs(fn.Name(), args, kwargs, "args", &argv, "timeout?", &timeout, "env?", &extra, "cwd?", &dir, "max_output?", &limit); err != nil {
		return nil, err
	}
	secs, ok := starlark.AsFloat(timeout)
	if !ok || secs <= 0 {
		return nil, fmt.Errorf("run: timeout is %s, want seconds above 0", show(timeout))
	}
	if limit < 0 || limit > maxOutput {
		return nil, fmt.Errorf("run: max_output is %d, want 0 to %d", limit, maxOutput)
	}
	o := proc.RunOptions{Dir: dir, MaxOutput: limit}
	for i := range argv.Len() {
		s, ok := starlark.AsString(argv.Index(i))
		if !ok || strings.ContainsRune(s, 0) {
			return nil, fmt.Errorf("run: argument %d is a %s, want a string", i, argv.Index(i).Type())
		}
		o.Args = append(o.Args, s)
	}
	if extra != nil {
		o.Env = os.Environ()
		for _, kv := range extra.Items() {
			k, ok1 := starlark.AsString(kv[0])
			v, ok2 := starlark.AsString(kv[1])
			if !ok1 || !ok2 || k == "" || strings.ContainsAny(k, "=\x00") || strings.ContainsRune(v, 0) {
				return nil, errors.New("run: env is not a dict of string to string")
			}
			o.Env = append(o.Env, k+"="+v)
		}
	}
	wait := time.Duration(min(secs, 3600) * float64(time.Second))
	if r := runOf(t); r != nil {
		wait = min(wait, time.Until(r.ends)+100*time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	commands.Lock()
	commands.cancel = cancel
	commands.Unlock()
	defer func() {
		commands.Lock()
		commands.cancel = nil
		commands.Unlock()
	}()
	res, err := proc.Run(ctx, o)
	if err != nil {
		return nil, err
	}
	return starlarkstruct.FromStringDict(starlarkstruct.Default, starlark.StringDict{
		"code":      starlark.MakeInt(res.Status.Code),
		"stdout":    text(res.Stdout),
		"stderr":    text(res.Stderr),
		"timed_out": starlark.Bool(res.TimedOut),
		"truncated": starlark.Bool(res.Truncated),
	}), nil
}

func text(b []byte) starlark.String { return starlark.String(strings.ToValidUTF8(string(b), "\uFFFD")) }

func compile(pattern string) (*regexp.Regexp, error) {
	if len(pattern) > maxPattern {
		return nil, fmt.Errorf("a pattern of %d bytes, at most %d are allowed", len(pattern), maxPattern)
	}
	return regexp.Compile(pattern)
}

// groups is a list of strings.
func groups(m []string) starlark.Value {
	l := make([]starlark.Value, len(m))
	for i, g := range m {
		l[i] = starlark.String(g)
	}
	return starlark.NewList(l)
}

// reSearch returns the first match and its groups as a list, or None.
func reSearch(_ *starlark.Thread, fn *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	var pattern, s string
	if err := starlark.UnpackArgs(fn.Name(), args, kwargs, "pattern", &pattern, "text", &s); err != nil {
		return nil, err
	}
	re, err := compile(pattern)
	if err != nil {
		return nil, err
	}
	m := re.FindStringSubmatch(s)
	if m == nil {
		return starlark.None, nil
	}
	return groups(m), nil
}

// reFindAll returns such a list for every match.
func reFindAll(_ *starlark.Thread, fn *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	var pattern, s string
	if err := starlark.UnpackArgs(fn.Name(), args, kwargs, "pattern", &pattern, "text", &s); err != nil {
		return nil, err
	}
	re, err := compile(pattern)
	if err != nil {
		return nil, err
	}
	var l []starlark.Value
	for _, m := range re.FindAllStringSubmatch(s, maxMatches) {
		l = append(l, groups(m))
	}
	return starlark.NewList(l), nil
}

func reReplace(_ *starlark.Thread, fn *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	var pattern, with, s string
	if err := starlark.UnpackArgs(fn.Name(), args, kwargs, "pattern", &pattern, "replacement", &with, "text", &s); err != nil {
		return nil, err
	}
	re, err := compile(pattern)
	if err != nil {
		return nil, err
	}
	return starlark.String(re.ReplaceAllString(s, with)), nil
}
