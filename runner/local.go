package runner

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/skepdev/skep/internal/proc"
)

// Local is a task's command outside of a bot, as skep reproduce runs it: with
// the environment, the placeholders and the lookup that a bot would use, but as
// the user that runs it and in directories of that user's choice.
type Local struct {
	TaskID, Server string
	BotID          string   // which bot the task is to believe it is on
	Environ        []string // of this process; of it the task gets what a bot would pass on
	Command        []string
	RelativeCwd    string
	Env            map[string]string
	EnvPrefixes    map[string][]string
	Caches         []string // paths of named caches, which come empty

	Run, Out, Temp string // absolute; Run holds the inputs
}

// Cmd makes what the task expects to find and returns what to start; its Files
// are the caller's. A task that a bot would refuse is an error.
func (l *Local) Cmd() (*proc.Cmd, error) {
	r := &isolatedRun{dirs: dirs{run: l.Run, out: l.Out, temp: l.Temp, context: filepath.Join(l.Temp, "luci_ctx.json")}}
	r.job = isolatedJob{
		TaskID: l.TaskID, Command: l.Command, RelativeCwd: l.RelativeCwd, Env: l.Env, EnvPrefixes: l.EnvPrefixes,
		Environ: slices.Concat(baseEnviron(l.Environ, nil), []string{
			"SWARMING_HEADLESS=1", "SWARMING_BOT_ID=" + l.BotID, "SWARMING_TASK_ID=" + l.TaskID, "SWARMING_SERVER=" + l.Server, "CIPD_ARCHITECTURE=" + cipdArch(),
		}),
	}
	if err := os.WriteFile(r.dirs.context, []byte("{}"), 0o600); err != nil {
		return nil, err
	}
	if r.job.wantsBotFile() {
		r.dirs.botFile = filepath.Join(l.Temp, "bot_file.json")
		if err := os.WriteFile(r.dirs.botFile, []byte("{}"), 0o600); err != nil {
			return nil, err
		}
	}
	if err := r.workDir(); err != nil {
		return nil, fmt.Errorf("relative_cwd %q: %w", l.RelativeCwd, err)
	}
	root, err := os.OpenRoot(l.Run)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	for _, c := range l.Caches {
		if err := emptyCache(root, filepath.FromSlash(c)); err != nil {
			return nil, fmt.Errorf("named cache at %q: %w", c, err)
		}
	}
	env := taskEnviron(&r.job, r.dirs)
	argv := r.dirs.command(l.Command, l.TaskID)
	path, err := lookup(argv[0], r.dirs.cwd, newEnviron(env).get("PATH"), r.mayExecute)
	if err != nil {
		return nil, err
	}
	return &proc.Cmd{Path: path, Args: argv, Env: env, Dir: r.dirs.cwd}, nil
}

// emptyCache makes the directory of a named cache. As in a bot, nothing may be
// there before. spec bot.md §5.5.
func emptyCache(root *os.Root, path string) error {
	if err := root.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	err := root.Mkdir(path, 0o755)
	if errors.Is(err, os.ErrExist) {
		return errors.New("the inputs already have something there; a bot refuses that too")
	}
	return err
}
