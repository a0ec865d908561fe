package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/internal/proc"
)

// newReproduceCommand: run a task's command on this machine.
// spec/cli-and-ui.md §3.6.
func newReproduceCommand(env *Env) *cobra.Command {
	var conn connection
	var work, out string
	var ignored [3]string
	cmd := &cobra.Command{
		Use:   "reproduce TASK",
		Short: "Run a task's command on this machine",
		Long: "Run the command of a task's last slice on this machine, with its environment and working directory.\n\n" +
			"Named caches, secret bytes and time limits are not reproduced.",
		Args: exactly("a task id"),
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if err := checkTaskIDs(args); err != nil {
				return err
			}
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			req, err := f.GetRequest(ctx, &pb.TaskIdRequest{TaskId: args[0]})
			if err != nil {
				return err
			}
			props, err := reproducible(req)
			if err != nil {
				return fmt.Errorf("task %s %w", args[0], err)
			}
			r := reproduction{env: env, props: props}
			if r.work, err = emptyDir("--work", work); err != nil {
				return err
			}
			if r.out, err = emptyDir("--out", out); err != nil {
				return err
			}
			return r.run(ctx)
		}),
	}
	cmd.Flags().StringVar(&work, "work", "work", "`DIR` to run in; it is cleared first")
	cmd.Flags().StringVar(&out, "out", "out", "`DIR` for ${ISOLATED_OUTDIR}; it is cleared first")
	for i, name := range []string{"cas-addr", "realm", "results-host"} {
		cmd.Flags().StringVar(&ignored[i], name, "", "no effect; accepted for old command lines")
		_ = cmd.Flags().MarkHidden(name)
	}
	conn.register(cmd)
	return cmd
}

// reproducible returns the last slice's properties, or why they cannot be run
// here.
func reproducible(req *pb.TaskRequestResponse) (*pb.TaskProperties, error) {
	var props *pb.TaskProperties
	if n := len(req.TaskSlices); n > 0 {
		props = req.TaskSlices[n-1].Properties
	}
	switch {
	case len(props.GetCommand()) == 0:
		return nil, errors.New("has no command")
	case props.GetCasInputRoot().GetDigest().GetHash() != "":
		return nil, errors.New("has inputs in content-addressed storage, which this version cannot fetch yet")
	case len(props.GetCipdInput().GetPackages()) > 0:
		return nil, errors.New("needs packages, which this version cannot install yet")
	}
	return props, nil
}

// emptyDir makes an empty directory of path and returns it absolute. It does
// not clear what can hardly be meant.
func emptyDir(flag, path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", flag, err)
	}
	cwd, _ := os.Getwd()
	home, _ := os.UserHomeDir()
	for _, keep := range []string{cwd, home} {
		if rel, err := filepath.Rel(abs, keep); err == nil && keep != "" && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
			return "", fmt.Errorf("%s: %s is or holds %s and is not cleared; name a directory of its own", flag, abs, keep)
		}
	}
	if err := os.RemoveAll(abs); err != nil {
		return "", fmt.Errorf("%s: %w", flag, err)
	}
	if err := os.MkdirAll(abs, 0o755); err != nil {
		return "", fmt.Errorf("%s: %w", flag, err)
	}
	return abs, nil
}

// reproduction is one command to run.
type reproduction struct {
	env       *Env
	props     *pb.TaskProperties
	work, out string
}

func (r *reproduction) run(ctx context.Context) error {
	botFile, err := os.CreateTemp("", "bot_file*.json")
	if err != nil {
		return err
	}
	botFile.Close()
	defer os.Remove(botFile.Name())
	cwd := filepath.Join(r.work, filepath.FromSlash(r.props.RelativeCwd))
	if err := os.MkdirAll(cwd, 0o755); err != nil {
		return err
	}
	environ := r.environ()
	command := r.command(botFile.Name())
	exe, err := lookPath(command[0], cwd, environ)
	if err != nil {
		return err
	}
	files, finish, err := r.files()
	if err != nil {
		return err
	}
	p, err := proc.Start(&proc.Cmd{Path: exe, Args: command, Env: environ, Dir: cwd, Files: files})
	if err != nil {
		finish()
		return fmt.Errorf("start %s: %w", exe, err)
	}
	defer context.AfterFunc(ctx, func() { end(p) })()
	status := p.Wait()
	finish()
	switch {
	case status.Err != nil:
		return fmt.Errorf("%s: %w", quoteCommand(command), status.Err)
	case status.Code != 0:
		return fmt.Errorf("the command failed with exit code %d: %s", status.Code, quoteCommand(command))
	}
	return nil
}

// end gives the process a moment to end by itself.
func end(p *proc.Process) {
	_ = p.Terminate()
	select {
	case <-p.Done():
	case <-time.After(5 * time.Second):
		_ = p.Kill()
	}
}

// files are the process's descriptors; where ours are not files, output is
// copied, and finish waits for that.
func (r *reproduction) files() (files []*os.File, finish func(), err error) {
	var finishers []func()
	finish = func() {
		for _, f := range finishers {
			f()
		}
	}
	stdin, _ := r.env.Stdin.(*os.File)
	files = []*os.File{stdin}
	for _, w := range []io.Writer{r.env.Stdout, r.env.Stderr} {
		if f, ok := w.(*os.File); ok {
			files = append(files, f)
			continue
		}
		in, out, err := os.Pipe()
		if err != nil {
			finish()
			return nil, nil, err
		}
		copied := make(chan struct{})
		go func() { defer close(copied); _, _ = io.Copy(w, in); in.Close() }()
		finishers = append(finishers, func() { out.Close(); <-copied })
		files = append(files, out)
	}
	return files, finish, nil
}

// environ is our environment with the task's on top: an empty value removes a
// variable, prefixes go in front of it.
func (r *reproduction) environ() []string {
	environ := r.env.Environ()
	for _, e := range r.props.Env {
		environ = setEnv(environ, e.Key, e.Value)
	}
	for _, p := range r.props.EnvPrefixes {
		var parts []string
		for _, v := range p.Value {
			parts = append(parts, filepath.Join(r.work, filepath.FromSlash(v)))
		}
		if old := getEnv(environ, p.Key); old != "" {
			parts = append(parts, old)
		}
		environ = setEnv(environ, p.Key, strings.Join(parts, string(os.PathListSeparator)))
	}
	return environ
}

func getEnv(environ []string, key string) string {
	for _, e := range slices.Backward(environ) {
		if k, v, _ := strings.Cut(e, "="); k == key {
			return v
		}
	}
	return ""
}

func setEnv(environ []string, key, value string) []string {
	environ = slices.DeleteFunc(slices.Clone(environ), func(e string) bool { return strings.HasPrefix(e, key+"=") })
	if value == "" {
		return environ
	}
	return append(environ, key+"="+value)
}

// command replaces the placeholders of spec/cli-and-ui.md §3.6.
func (r *reproduction) command(botFile string) []string {
	suffix := ""
	if runtime.GOOS == "windows" {
		suffix = ".exe"
	}
	replace := strings.NewReplacer("${ISOLATED_OUTDIR}", r.out, "${EXECUTABLE_SUFFIX}", suffix, "${SWARMING_BOT_FILE}", botFile)
	out := make([]string, len(r.props.Command))
	for i, a := range r.props.Command {
		out[i] = replace.Replace(a)
	}
	return out
}

// lookPath finds the executable as the task's shell would: a name with a
// slash below dir, any other in the PATH of environ.
func lookPath(name, dir string, environ []string) (string, error) {
	candidates := []string{""}
	if runtime.GOOS == "windows" {
		candidates = []string{"", ".exe", ".bat", ".cmd", ".com"}
	}
	dirs := filepath.SplitList(getEnv(environ, "PATH"))
	if strings.ContainsAny(name, `/`+string(filepath.Separator)) {
		dirs = []string{dir}
	}
	for _, d := range dirs {
		for _, suffix := range candidates {
			path := name + suffix
			if !filepath.IsAbs(path) {
				path = filepath.Join(d, path)
			}
			if info, err := os.Stat(path); err == nil && !info.IsDir() && (runtime.GOOS == "windows" || info.Mode()&0o111 != 0) {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("no executable %s is found", name)
}
