package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skepdev/skep/api/prpc"
	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/bot/code"
	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/internal/proc"
)

// programs are the executables of a run.
type programs struct {
	Skep, Bot, Work string // absolute
}

// build makes those of the programs that are not in dir, from this module.
func build(ctx context.Context, dir string) (programs, error) {
	p := programs{filepath.Join(dir, "skep"), filepath.Join(dir, "skep-bot"), filepath.Join(dir, "work")}
	for out, pkg := range map[string]string{p.Skep: "cmd/skep", p.Bot: "cmd/skep-bot", p.Work: "internal/show/chaos/work"} {
		if _, err := os.Stat(out); err == nil {
			continue
		}
		text, err := proc.Output(ctx, append(os.Environ(), "CGO_ENABLED=0"), "sh", "-c",
			`exec go build -trimpath -ldflags="-s -w" -o "$0" "$1" 2>&1`, out, "github.com/skepdev/skep/"+pkg)
		if err != nil {
			return p, fmt.Errorf("build %s: %w\n%s", pkg, err, text)
		}
		if err := os.Chmod(out, 0o755); err != nil { // tasks may be other users
			return p, err
		}
	}
	return p, nil
}

// fleet is what one run starts: a server, its bots, perhaps a database, all
// below one directory, whose name marks its processes.
type fleet struct {
	root string
	form form
	prog programs
	rng  *rand.Rand

	url      string
	server   *keeper // skep server, or skep up
	database *keeper // nil on SQLite
	bots     []*member
	ledger   *ledger
	tasks    *submitter
	readers  *readers
	client   *client.Client // with patience, for looking

	begun  time.Time       // when everything was up first
	places map[string]bool // cgroups that were seen; used by one goroutine
	struck map[strike]bool // strikes whose During was done
	kills  []kill
	died   atomic.Int64 // tasks that were in the hands of a bot that was killed
}

// member is one bot.
type member struct {
	id   string
	keep *keeper // nil when somebody else keeps it
	window
}

// process returns the bot's process id, 0 when it does not run.
func (m *member) pid() int {
	if m.keep == nil {
		return lockHolder(m.dir)
	}
	if p := m.keep.process(); p != nil {
		select {
		case <-p.Done():
		default:
			return p.Pid
		}
	}
	return 0
}

// newFleet prepares everything below root and starts nothing but a database's
// set-up.
func newFleet(root string, f form, prog programs, rng *rand.Rand) (*fleet, error) {
	if err := os.Chmod(root, 0o755); err != nil { // tasks may be other users
		return nil, err
	}
	fl := &fleet{root: root, form: f, prog: prog, rng: rng, places: map[string]bool{}, struck: map[strike]bool{}}
	port, err := freePort(rng)
	if err != nil {
		return nil, err
	}
	fl.url = fmt.Sprintf("http://127.0.0.1:%d", port)
	if err := os.Mkdir(fl.path("log"), 0o755); err != nil {
		return nil, err
	}
	if fl.ledger, err = newLedger(fl.path("lines")); err != nil {
		return nil, err
	}
	acks, err := os.OpenFile(fl.path("acknowledged"), os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	if fl.client, err = client.New(client.Options{
		Server: fl.url, Timeout: 20 * time.Second,
		Retry: prpc.Retry{Times: 100, First: 50 * time.Millisecond, Max: 500 * time.Millisecond, For: time.Minute, Refused: -1},
	}); err != nil {
		return nil, err
	}
	impatient, err := client.New(client.Options{Server: fl.url, Timeout: 10 * time.Second, Retry: prpc.Retry{Times: -1}})
	if err != nil {
		return nil, err
	}
	fl.tasks = &submitter{client: impatient, tag: fmt.Sprintf("chaos-%x", rng.Uint64()), command: []string{prog.Work, fl.path("lines")}, file: acks}
	fl.readers = &readers{client: fl.client, tasks: fl.tasks, said: fl.ledger.said, taken: map[string]bool{}, streams: map[string]string{}}
	return fl, nil
}

func (fl *fleet) path(elem ...string) string {
	return filepath.Join(append([]string{fl.root}, elem...)...)
}

func (fl *fleet) listen() string { return strings.TrimPrefix(fl.url, "http://") }

// freePort draws a port outside of the range that outgoing connections use: a
// client that tries to reach a server which is down could otherwise meet
// itself there.
func freePort(rng *rand.Rand) (int, error) {
	for range 100 {
		port := 20000 + rng.IntN(10000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		return port, l.Close()
	}
	return 0, errors.New("no free port")
}

// environ is the environment of what the run starts. What forces bots to hold
// or start tasks in another way is let through.
func (fl *fleet) environ(more ...string) []string {
	env := append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + fl.root, "LANG=C.UTF-8"}, more...)
	for _, name := range []string{"SKEP_CONTAINMENT", "SKEP_START_AHEAD"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// addServer makes the server a process of its own. dsn is "" for SQLite.
func (fl *fleet) addServer(dsn string) {
	args := []string{fl.prog.Skep, "server", "--listen", fl.listen(), "--state-dir", fl.path("state")}
	env := fl.environ()
	if dsn != "" {
		env = append(env, "SKEP_DB="+dsn)
	}
	fl.server = &keeper{name: string(victimServer), log: fl.path("log", "server"), cmd: func() *proc.Cmd {
		return &proc.Cmd{Path: args[0], Args: args, Env: env, Dir: fl.root}
	}}
}

// addBots makes the bots, each in a directory of its own, as the server's
// /bot_code would hand them out.
func (fl *fleet) addBots() error {
	exe, err := os.ReadFile(fl.prog.Bot)
	if err != nil {
		return err
	}
	var bot bytes.Buffer
	if err := code.Compose(&bot, exe, code.Config{Server: fl.url, Reboot: "none"}); err != nil {
		return err
	}
	for i := range fl.form.Bots {
		id := fmt.Sprintf("chaos-%d", i+1)
		dir := fl.path("bots", id)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		path := filepath.Join(dir, "swarming_bot")
		if err := os.WriteFile(path, bot.Bytes(), 0o755); err != nil {
			return err
		}
		env := fl.environ("SWARMING_BOT_ID="+id, "SKEP_REBOOT=none")
		fl.bots = append(fl.bots, &member{id: id, window: window{dir: dir}, keep: &keeper{name: id, log: fl.path("log", id), cmd: func() *proc.Cmd {
			return &proc.Cmd{Path: path, Args: []string{path, "start_bot"}, Env: env, Dir: dir}
		}}})
	}
	return nil
}

// keepers returns what is to be kept running, in the order of need.
func (fl *fleet) keepers() []*keeper {
	var out []*keeper
	if fl.database != nil {
		out = append(out, fl.database)
	}
	out = append(out, fl.server)
	for _, b := range fl.bots {
		if b.keep != nil {
			out = append(out, b.keep)
		}
	}
	return out
}

// run does the whole run: it starts everything, submits, kills, waits until
// all tasks have ended, gathers what is to be seen, and ends everything.
func (fl *fleet) run(ctx context.Context) (*evidence, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var kept errgroup.Group
	defer func() {
		cancel()
		_ = kept.Wait() // what it says was said already
		fl.killLeft()
	}()
	failed := make(chan error, 64)
	for _, k := range fl.keepers() {
		kept.Go(func() error {
			err := k.run(ctx)
			if err != nil {
				failed <- err
			}
			return err
		})
	}
	if err := fl.ready(ctx, 30*time.Second); err != nil {
		return nil, errors.Join(err, drain(failed))
	}
	fl.begun = time.Now()
	if len(fl.bots) == 0 {
		if err := fl.meet(ctx); err != nil {
			return nil, err
		}
	}
	parts, stop := context.WithTimeout(ctx, fl.form.Patience)
	defer stop()
	var g errgroup.Group
	hunted := make(chan struct{})
	g.Go(func() error { fl.tasks.run(parts, fl.form.Tasks, fl.scarce, hunted); return nil })
	read, stopReading := context.WithCancel(parts)
	defer stopReading()
	var reading errgroup.Group
	for range fl.form.Readers {
		reading.Go(func() error { fl.readers.run(read); return nil })
	}
	huntErr := fl.hunt(parts)
	close(hunted)
	_ = g.Wait()
	waitErr := fl.await(parts)
	stopReading()
	_ = reading.Wait()
	e, err := fl.gather(ctx)
	if err != nil {
		return nil, errors.Join(err, huntErr, waitErr, drain(failed))
	}
	fl.end(e)
	return e, errors.Join(huntErr, drain(failed)) // what did not end in time is among the violations
}

func drain(c chan error) error {
	var errs []error
	for {
		select {
		case err := <-c:
			errs = append(errs, err)
		default:
			return errors.Join(errs...)
		}
	}
}

// ready waits until the server answers for its database.
func (fl *fleet) ready(ctx context.Context, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		if fl.isReady(ctx) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the server at %s is not ready after %v; its last words: %s", fl.url, patience, lastLine(fl.server.log))
		case <-time.After(25 * time.Millisecond):
		}
	}
}

// lastLine returns the last line of a log.
func lastLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

func (fl *fleet) isReady(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fl.url+"/readyz", nil)
	if err != nil {
		return false
	}
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	_ = res.Body.Close()
	return res.StatusCode == http.StatusOK
}

// batch bounds how many tasks one call asks about.
const batch = 250

// await waits until every acknowledged task has ended.
func (fl *fleet) await(ctx context.Context) error {
	waiting := slices.Compact(slices.Sorted(slices.Values(fl.acknowledged())))
	for len(waiting) > 0 {
		some := waiting[:min(batch, len(waiting))]
		ans, err := fl.client.BatchGetResult(ctx, &pb.BatchGetResultRequest{TaskIds: some})
		if err != nil {
			return fmt.Errorf("ask for %d tasks: %w", len(waiting), err)
		}
		kept := slices.Clone(waiting[len(some):])
		for _, r := range ans.Results { // one that is not known need not be waited for
			if st := r.GetResult().GetState(); st == pb.TaskState_PENDING || st == pb.TaskState_RUNNING {
				kept = append(kept, r.TaskId)
			}
		}
		if len(kept) == len(waiting) {
			select {
			case <-ctx.Done():
				return fmt.Errorf("%d tasks have not ended: %w", len(kept), ctx.Err())
			case <-time.After(100 * time.Millisecond):
			}
		}
		waiting = kept
	}
	return nil
}

// acknowledged reads the client's list back from its file.
func (fl *fleet) acknowledged() []string {
	b, err := os.ReadFile(fl.path("acknowledged"))
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}

// gather asks the server and the files for everything that is judged.
func (fl *fleet) gather(ctx context.Context) (*evidence, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	e := &evidence{
		Tasks: fl.tasks.sent, Acked: fl.acknowledged(), Refused: fl.tasks.refused, Streams: fl.readers.streams,
		Results: map[string]result{}, Outputs: map[string][]byte{}, Kills: fl.kills, Plan: fl.form.all(), Soon: fl.form.TreeGone, Phases: fl.form.Phases,
	}
	for ids := range slices.Chunk(slices.Compact(slices.Sorted(slices.Values(e.Acked))), batch) {
		ans, err := fl.client.BatchGetResult(ctx, &pb.BatchGetResultRequest{TaskIds: ids})
		if err != nil {
			return nil, fmt.Errorf("read results: %w", err)
		}
		for _, r := range ans.Results {
			if t := r.GetResult(); t != nil {
				e.Results[r.TaskId] = resultOf(t)
			}
		}
	}
	for cursor := ""; ; {
		ans, err := fl.client.ListTasks(ctx, &pb.TasksWithPerfRequest{
			Limit: 500, Cursor: cursor, State: pb.StateQuery_QUERY_ALL, Tags: fl.tasks.request(0).Tags,
		})
		if err != nil {
			return nil, fmt.Errorf("list tasks: %w", err)
		}
		for _, t := range ans.Items {
			e.Listed = append(e.Listed, t.TaskId)
		}
		if cursor = ans.Cursor; cursor == "" {
			break
		}
	}
	if err := fl.outputs(ctx, e); err != nil {
		return nil, err
	}
	if err := fl.ledger.read(); err != nil {
		return nil, err
	}
	e.Lines, e.BadLine = fl.ledger.all()
	return e, nil
}

func resultOf(t *pb.TaskResultResponse) result {
	r := result{State: t.State, Bot: t.BotId, ExitCode: t.ExitCode}
	if t.StartedTs != nil {
		r.Started = t.StartedTs.AsTime()
	}
	if t.CompletedTs != nil {
		r.Completed = t.CompletedTs.AsTime()
	}
	return r
}

func (fl *fleet) outputs(ctx context.Context, e *evidence) error {
	type output struct {
		id   string
		data []byte
	}
	g, ctx := errgroup.WithContext(ctx)
	ids, outputs := make(chan string), make(chan output)
	g.Go(func() error {
		defer close(ids)
		for id := range e.Results {
			select {
			case ids <- id:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range 4 {
		g.Go(func() error {
			for id := range ids {
				ans, err := fl.client.GetStdout(ctx, &pb.TaskIdWithOffsetRequest{TaskId: id})
				if err != nil {
					return fmt.Errorf("read output of %s: %w", id, err)
				}
				outputs <- output{id, ans.Output}
			}
			return nil
		})
	}
	done := make(chan error, 1)
	go func() { done <- g.Wait(); close(outputs) }()
	for o := range outputs {
		e.Outputs[o.id] = o.data
	}
	return <-done
}

// Patience with what was asked to end.
const (
	botEnds    = 20 * time.Second
	serverEnds = 15 * time.Second
)

// end drains the bots, ends the server and the database, and notes what is
// left of them.
func (fl *fleet) end(e *evidence) {
	var g errgroup.Group
	clean := make([]bool, len(fl.bots))
	for i, b := range fl.bots {
		if b.keep != nil {
			g.Go(func() error { clean[i] = b.keep.end(botEnds); return nil })
		} else {
			clean[i] = true
		}
	}
	_ = g.Wait()
	for i, ok := range clean {
		if !ok {
			e.Left = append(e.Left, fl.bots[i].id+" did not drain")
		}
	}
	if !fl.server.end(serverEnds) {
		e.Left = append(e.Left, fl.server.name+" did not end")
	}
	if fl.database != nil {
		fl.database.end(serverEnds)
	}
	for _, k := range fl.keepers() {
		for _, x := range k.unexpected() {
			if !fl.excused(x) {
				e.Exits = append(e.Exits, x)
			}
		}
	}
	e.Left = append(e.Left, fl.left()...)
}

// excused reports whether a process ended because its database was down, or
// not up yet.
func (fl *fleet) excused(x exit) bool {
	if fl.database != nil && x.Name == fl.server.name && x.At.Before(fl.begun) {
		return true
	}
	return slices.ContainsFunc(fl.kills, func(k kill) bool {
		return k.Victim == victimDatabase && x.At.After(k.At) && x.At.Before(k.At.Add(databaseEnds)) &&
			(x.Name == string(victimDatabase) || x.Name == string(victimServer))
	})
}

// left returns what is still there a moment after everything was ended.
func (fl *fleet) left() []string {
	var ps []process
	var err error
	for range 40 {
		if ps, err = marked(fl.root); err == nil && len(ps) == 0 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	var out []string
	if err != nil {
		out = append(out, err.Error())
	}
	for _, p := range ps {
		out = append(out, "process "+p.String())
	}
	for dir := range fl.places {
		if _, err := os.Stat(dir); err == nil {
			out = append(out, "cgroup "+dir)
		}
	}
	for _, b := range fl.bots {
		dirs, _ := filepath.Glob(filepath.Join(b.dir, "w*"))
		for _, dir := range dirs {
			out = append(out, "work directory "+dir)
		}
	}
	slices.Sort(out)
	return out
}

// killLeft ends whatever this run started and did not end.
func (fl *fleet) killLeft() {
	ps, _ := marked(fl.root)
	for _, p := range ps {
		_ = p.kill()
	}
}
