package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/internal/proc"
	"github.com/skepdev/skep/runner"
)

// newReproduceCommand: run a task's command on this machine.
// spec/cli-and-ui.md §3.6.
func newReproduceCommand(env *Env) *cobra.Command {
	var conn connection
	var st storageFlags
	var work, out string
	var ignored [2]string
	cmd := &cobra.Command{
		Use:   "reproduce TASK",
		Short: "Run a task's command on this machine",
		Long: "Run the command of a task's last slice on this machine the way a bot would: with its inputs, its\n" +
			"environment and empty named caches.\n\nSecret bytes and time limits are not reproduced.",
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
			r := reproduction{env: env, task: args[0], server: f.url, props: props}
			if r.work, err = emptyDir("--work", work); err != nil {
				return err
			}
			if r.out, err = emptyDir("--out", out); err != nil {
				return err
			}
			if err := r.inputs(ctx, &conn, &st, f); err != nil {
				return err
			}
			return r.run(ctx)
		}),
	}
	cmd.Flags().StringVar(&work, "work", "work", "`DIR` to run in; it is cleared first")
	cmd.Flags().StringVar(&out, "out", "out", "`DIR` for ${ISOLATED_OUTDIR}; it is cleared first")
	for i, name := range []string{"realm", "results-host"} {
		cmd.Flags().StringVar(&ignored[i], name, "", "no effect; accepted for old command lines")
		_ = cmd.Flags().MarkHidden(name)
	}
	st.register(cmd)
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
	env          *Env
	task, server string
	props        *pb.TaskProperties
	work, out    string
}

// inputs fetches the tree that the task starts with.
func (r *reproduction) inputs(ctx context.Context, conn *connection, st *storageFlags, f *fleet) error {
	ref := r.props.GetCasInputRoot()
	if ref.GetDigest().GetHash() == "" {
		return nil
	}
	instance, root, err := reference(ref)
	if err != nil {
		return fmt.Errorf("inputs of task %s: %w", r.task, err)
	}
	c, err := st.open(ctx, r.env, conn, f, instance)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := fetch(ctx, r.env, c, root, r.work, false); err != nil {
		return fmt.Errorf("inputs of task %s: %w", r.task, err)
	}
	return nil
}

// local is the task as a bot would start it.
func (r *reproduction) local(temp string) *runner.Local {
	l := &runner.Local{
		TaskID: r.task, Server: r.server, BotID: "reproduce", Environ: r.env.Environ(), Command: r.props.Command, RelativeCwd: r.props.RelativeCwd,
		Env: map[string]string{}, EnvPrefixes: map[string][]string{}, Run: r.work, Out: r.out, Temp: temp,
	}
	for _, e := range r.props.Env {
		l.Env[e.Key] = e.Value
	}
	for _, p := range r.props.EnvPrefixes {
		l.EnvPrefixes[p.Key] = append(l.EnvPrefixes[p.Key], p.Value...)
	}
	for _, c := range r.props.Caches {
		l.Caches = append(l.Caches, c.Path)
	}
	return l
}

func (r *reproduction) run(ctx context.Context) error {
	temp, err := os.MkdirTemp("", "skep-reproduce-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	cmd, err := r.local(temp).Cmd()
	if err != nil {
		return err
	}
	files, finish, err := r.files()
	if err != nil {
		return err
	}
	cmd.Files = files
	defer r.outputs()
	p, err := proc.Start(cmd)
	if err != nil {
		finish()
		return fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	defer context.AfterFunc(ctx, func() { end(p) })()
	status := p.Wait()
	finish()
	switch {
	case status.Err != nil:
		return fmt.Errorf("%s: %w", quoteCommand(cmd.Args), status.Err)
	case status.Code != 0:
		return fmt.Errorf("the command failed with exit code %d: %s", status.Code, quoteCommand(cmd.Args))
	}
	return nil
}

// outputs says where what a bot would have uploaded is.
func (r *reproduction) outputs() {
	if entries, err := os.ReadDir(r.out); err == nil && len(entries) > 0 {
		fmt.Fprintf(r.env.Stderr, "${ISOLATED_OUTDIR} was %s\n", r.out)
	}
	for _, o := range r.props.Outputs {
		if path := filepath.Join(r.work, filepath.FromSlash(o)); present(path) {
			fmt.Fprintf(r.env.Stderr, "output %s is %s\n", o, path)
		} else {
			fmt.Fprintf(r.env.Stderr, "output %s was not made\n", o)
		}
	}
}

func present(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
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
