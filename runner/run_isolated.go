package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/cas/cache"
	"github.com/skepdev/skep/cas/remote"
	"github.com/skepdev/skep/internal/proc"
	"github.com/skepdev/skep/runner/named"
)

// initFlag makes run_isolated the PID 1 of a task's namespace.
const initFlag = "--init"

// RunIsolatedMain is the subcommand run_isolated. It waits on standard input
// for one job, prepares it, and on a second word runs the command. It exits 0
// whatever the command returned, and 1 after a failure of its own.
// spec bot.md §5.
func RunIsolatedMain(args []string) int {
	if slices.Contains(args, initFlag) {
		return proc.InitMain()
	}
	if slices.Contains(args, cleanFlag) {
		return cleanMain()
	}
	proc.KeepDescriptors()
	proc.Undumpable()
	term := catchSignals()
	r := &isolatedRun{
		output: inheritedOutput(isolatedOutputFD, "output"),
		start:  make(chan struct{}), stop: make(chan struct{}, 1), parentGone: make(chan struct{}, 2),
	}
	words := json.NewDecoder(inherited(0, "words"))
	if code, ok := nextWord(words, &r.setup, "run_isolated"); !ok {
		return code
	}
	log, closeLog := openLog(filepath.Join(r.BotDir, "logs", "run_isolated.log"))
	defer closeLog()
	r.log = log
	r.dirs = dirsOf(&r.setup)
	r.sit()
	if code, ok := awaitWord(words, &r.job, "run_isolated", r.Ahead, r.warm()); !ok {
		return code
	}
	r.Place.Label = taskLabel(r.job.TaskID)
	go r.listen(words)
	go func() {
		for range term {
			r.requestStop()
		}
	}()
	if runtime.GOOS != "windows" {
		r.news = os.NewFile(isolatedNewsFD, "news")
		go func() {
			_, _ = inherited(isolatedLifeFD, "life").Read(make([]byte, 1))
			r.parentGone <- struct{}{}
		}()
	}
	return r.run()
}

// isolatedRun is one job of run_isolated.
type isolatedRun struct {
	setup
	job    isolatedJob
	log    *slog.Logger
	output *os.File // the task's standard output and error
	news   *os.File // to task_runner; nil where there is none

	start      chan struct{} // closed on the word to start
	stop       chan struct{} // capacity 1
	parentGone chan struct{} // task_runner or bot_main died

	dirs      dirs
	res       result
	named     *named.Caches
	cas       *cache.Cache   // nil: there is none, and none is needed
	client    *remote.Client // nil until something is transferred
	headers   atomic.Pointer[map[string]string]
	inputs    *cache.Result  // nil: the task has none
	top       string         // below which installed caches are
	installed []botapi.Cache // with the task now

	view *proc.View // what the task sees; nil = everything
	seat *proc.Seat // where the command will start; nil = on any thread
	room *cleanRoom // nil = the command runs here
}

func (r *isolatedRun) listen(words *json.Decoder) {
	started := false
	for {
		var w isolatedWord
		if words.Decode(&w) != nil {
			r.parentGone <- struct{}{}
			return
		}
		if w.Go && !started {
			started = true
			close(r.start)
		}
		if w.Stop {
			r.requestStop()
		}
		if w.Headers != nil {
			r.headers.Store(&w.Headers)
		}
	}
}

func (r *isolatedRun) requestStop() {
	select {
	case r.stop <- struct{}{}:
	default:
	}
}

// run does the job.
func (r *isolatedRun) run() int {
	err := r.prepare()
	if err == nil {
		err = r.command()
	}
	r.endInputs()
	r.returnCaches()
	r.cleanup()
	r.settleCache()
	if err != nil {
		r.log.Error("task not run", "task", r.job.TaskID, "err", err)
		r.res.InternalFailure = text(err.Error())
	}
	if werr := writeResult(r.Dir, &r.res); werr != nil {
		r.log.Error("result not written", "task", r.job.TaskID, "err", werr)
		return 1
	}
	_ = r.output.Close() // the end of the task's output
	r.tell(isolatedNews{Done: true})
	if err != nil {
		return 1
	}
	return 0
}

func (r *isolatedRun) tell(n isolatedNews) {
	if r.news != nil {
		_ = json.NewEncoder(r.news).Encode(n)
	}
}

func text(s string) *string { return &s }

func seconds(since time.Time) float64 { return time.Since(since).Seconds() }

// ownPIDs reports whether the task gets a PID namespace, whose PID 1 sees to
// its view.
func (r *isolatedRun) ownPIDs() bool { return r.Place.Method == proc.MethodPIDNS || r.Place.Hidden }

// sit enters the task's view of the file system ahead. Whoever mounts
// something below ir for a task must do so before, or leave the seat.
func (r *isolatedRun) sit() {
	if r.Hide == "" {
		return
	}
	r.view = &proc.View{Hide: r.Hide, Keep: []string{r.dirs.run, r.dirs.out, r.dirs.temp}}
	if rel, err := filepath.Rel(r.Hide, r.Storage.Cache); err != nil || !filepath.IsLocal(rel) {
		r.view.Cover = []string{r.Storage.Cache} // shared by bots; hidden like the bot's own
	}
	if !r.ownPIDs() {
		r.seat = proc.NewSeat(r.view)
	}
}

// prepare writes the files of the run.
func (r *isolatedRun) prepare() error {
	d := &r.dirs
	if r.job.wantsBotFile() {
		if err := errors.Join(os.WriteFile(d.botFile, r.job.BotFile, 0o600), r.own(d.botFile)); err != nil {
			return err
		}
	}
	if len(r.job.Agent) > 0 {
		d.agent = filepath.Join(d.temp, "bb_agent_ctx.json")
		if err := os.WriteFile(d.agent, r.job.Agent, 0o600); err != nil {
			return err
		}
	}
	r.res.Stats.TrimCaches = &botapi.OperationStats{}
	r.res.Stats.Isolated = &botapi.IsolatedStats{}
	return r.own(d.agent)
}

// own gives paths to the task's user; "" is skipped.
func (r *isolatedRun) own(paths ...string) error { return ownedBy(r.User, paths...) }

// command runs the task's command. What is the task's own fault becomes exit
// code 1 and a text in its output; the error is ours.
func (r *isolatedRun) command() error {
	j := &r.job
	if len(j.Command) == 0 {
		return r.refuse("the task has no command")
	}
	if j.Pool != "" {
		if err := r.enterRoom(); err != nil {
			return err
		}
		defer r.leaveRoom()
	}
	if err := r.stage(); err != nil {
		if errors.Is(err, errStopped) {
			return r.canceled()
		}
		return err
	}
	if err := r.workDir(); err != nil {
		return r.refuse(fmt.Sprintf("the task's relative_cwd %q cannot be used: %v", j.RelativeCwd, err))
	}
	env := taskEnviron(j, r.dirs)
	argv := r.dirs.command(j.Command, j.TaskID)
	// The PATH of the task's own environment counts, not ours.
	path, notFound := argv[0], error(nil)
	if r.room == nil { // a room looks in itself
		path, notFound = lookup(argv[0], r.dirs.cwd, newEnviron(env).get("PATH"), r.mayExecute)
	}
	if err := r.writeContext(); err != nil {
		return err
	}
	if r.room != nil {
		if err := r.furnishRoom(); err != nil {
			return err
		}
	}
	ready := time.Now()

	select { // the server must know of the task before it runs
	case <-r.start:
	case <-r.parentGone:
		return errors.New("the bot's process is gone")
	}
	select {
	case <-r.stop:
		return r.canceled()
	default:
	}
	if notFound != nil {
		return r.refuse(fmt.Sprintf("cannot start %q: %v", argv[0], notFound))
	}
	if time.Since(ready) > time.Second { // the deadline in it would be early
		if err := r.writeContext(); err != nil {
			return err
		}
	}
	cmd := &proc.Cmd{Path: path, Args: argv, Env: env, Dir: r.dirs.cwd, User: r.User, Files: []*os.File{nil, r.output, r.output}}
	cmd.View, cmd.Seat = r.view, r.seat
	if r.ownPIDs() {
		exe, err := os.Executable()
		if err != nil {
			return err
		}
		r.Place.Init = []string{exe, "run_isolated", initFlag}
	}
	began := time.Now()
	p, err := r.startCommand(cmd)
	if err != nil {
		if e, ok := errors.AsType[*proc.ExecError](err); ok && e.Program() {
			return r.refuse(fmt.Sprintf("cannot start %q: %v", path, e.Err))
		}
		return fmt.Errorf("start the command: %w", err)
	}
	r.tell(isolatedNews{Started: true})
	r.log.Info("command started", "task", j.TaskID)
	r.attend(p)
	status := p.Wait()
	if status.Err != nil {
		return fmt.Errorf("the command's end is not known: %w", status.Err)
	}
	if r.room != nil {
		if err := r.room.end(); err != nil {
			return err
		}
	}
	elapsed := status.Ended.Sub(began).Seconds()
	code := int64(status.Code)
	r.res.ExitCode, r.res.Duration = &code, &elapsed
	r.sweep()
	r.log.Info("command ended", "task", j.TaskID, "exit_code", code, "took", status.Ended.Sub(began))
	return r.sendOutputs()
}

// startCommand starts the command in the task's room or place.
func (r *isolatedRun) startCommand(cmd *proc.Cmd) (command, error) {
	if r.room != nil {
		return r.room.start(cmd, r.job.MaxProcesses, r.job.MaxMemory)
	}
	return r.Place.Start(cmd)
}

// command is the task's first process, wherever it runs.
type command interface {
	Done() <-chan struct{}
	Wait() proc.Status
	Terminate() error // SIGTERM
	Kill() error
}

// stage brings what the task needs into its run directory: trimmed caches,
// inputs, named caches. spec bot.md §5.2.
func (r *isolatedRun) stage() error {
	if err := r.openCaches(); err != nil {
		return err
	}
	r.trimCaches()
	if r.job.wantsInputs() {
		if err := r.fetchInputs(); err != nil {
			return err
		}
	} else if err := r.placeCaches(r.dirs.run, nil); err != nil {
		return err
	}
	return r.placeOutputs()
}

// canceled is the result of a task that did not begin.
func (r *isolatedRun) canceled() error {
	code := int64(-1)
	r.res.ExitCode, r.res.Duration = &code, new(float64)
	return nil
}

// refuse ends the task before its command runs: exit code 1, and the reason
// where its user looks for it.
func (r *isolatedRun) refuse(why string) error {
	fmt.Fprintln(r.output, why)
	code := int64(1)
	r.res.ExitCode, r.res.Duration = &code, new(float64)
	return nil
}

// workDir makes the command's directory below ir and never leaves it: a link
// inside cannot lead out.
func (r *isolatedRun) workDir() error {
	root, err := os.OpenRoot(r.dirs.run)
	if err != nil {
		return err
	}
	defer root.Close()
	rel := filepath.Clean(filepath.FromSlash(r.job.RelativeCwd))
	if r.job.RelativeCwd == "" {
		rel = "."
	}
	if !filepath.IsLocal(rel) {
		return errors.New("it leaves the run directory")
	}
	if err := makeDirs(root, rel, r.own1(root)); err != nil {
		return err
	}
	r.dirs.cwd = filepath.Join(r.dirs.run, rel)
	return nil
}

// own1 is own for a path below root.
func (r *isolatedRun) own1(root *os.Root) func(string) error {
	return func(rel string) error {
		if r.User == nil {
			return nil
		}
		return root.Lchown(rel, int(r.User.UID), int(r.User.GID))
	}
}

// makeDirs makes rel and its parents below root; made is called for each new
// one.
func makeDirs(root *os.Root, rel string, made func(string) error) error {
	if rel == "." {
		return nil
	}
	if err := makeDirs(root, filepath.Dir(rel), made); err != nil {
		return err
	}
	switch err := root.Mkdir(rel, 0o700); {
	case err == nil:
		return made(rel)
	case errors.Is(err, os.ErrExist):
		fi, err := root.Stat(rel)
		if err != nil {
			return err
		}
		if !fi.IsDir() {
			return fmt.Errorf("%s is not a directory", rel)
		}
		return nil
	default:
		return err
	}
}

// writeContext writes the task's LUCI_CONTEXT, whose deadline counts from now.
func (r *isolatedRun) writeContext() error {
	j := &r.job
	ctx := j.Context
	if ctx == nil {
		ctx = map[string]json.RawMessage{}
	}
	d := deadline{GracePeriod: float64(j.GracePeriod)}
	if j.HardTimeout > 0 {
		d.SoftDeadline = float64(time.Now().UnixMicro())/1e6 + float64(j.HardTimeout)
	}
	b, err := json.Marshal(d)
	if err != nil {
		return err
	}
	ctx["deadline"] = b
	if b, err = json.Marshal(ctx); err != nil {
		return err
	}
	return os.WriteFile(r.dirs.context, b, 0o600)
}

// attend waits for the command and ends it when its time is over, when it is
// told to, or when our parents are gone.
func (r *isolatedRun) attend(p command) {
	var hard, grace <-chan time.Time
	if r.job.HardTimeout > 0 {
		hard = time.After(time.Duration(r.job.HardTimeout) * time.Second)
	}
	terminate := func() {
		if grace != nil {
			return // it has been told
		}
		if r.job.GracePeriod > 0 {
			_ = p.Terminate()
		}
		grace = time.After(time.Duration(r.job.GracePeriod) * time.Second)
	}
	for {
		select {
		case <-p.Done():
			return
		case <-hard:
			r.res.HadHardTimeout = true
			r.log.Info("hard timeout", "task", r.job.TaskID)
			terminate()
		case <-r.stop:
			r.log.Info("told to stop", "task", r.job.TaskID)
			terminate()
		case <-grace:
			_ = p.Kill()
			_ = r.Place.Kill(sweepLimit)
		case <-r.parentGone:
			// Nobody is left to report to.
			_ = p.Kill()
			r.sweep()
			os.Exit(1)
		}
	}
}

// sweep ends what the command left behind.
func (r *isolatedRun) sweep() {
	if err := errors.Join(r.Place.Kill(sweepLimit), proc.SweepChildren(sweepLimit)); err != nil {
		r.log.Error("processes of the task survive", "task", r.job.TaskID, "err", err)
	}
}

// cleanup empties the run's directories.
func (r *isolatedRun) cleanup() {
	began := time.Now()
	for _, dir := range []string{r.dirs.run, r.dirs.temp, r.dirs.out} {
		if err := emptyTree(dir); err != nil {
			r.log.Error("directory not emptied", "task", r.job.TaskID, "dir", dir, "err", err)
		}
	}
	if r.dirs.scratch != "" {
		if err := removeTree(r.dirs.scratch); err != nil {
			r.log.Error("directory not removed", "task", r.job.TaskID, "dir", r.dirs.scratch, "err", err)
		}
	}
	r.res.Stats.Cleanup = &botapi.OperationStats{Duration: seconds(began)}
}
