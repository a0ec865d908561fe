package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/skepdev/skep/api/clipb"
	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/cas/archive"
)

// newCollectCommand: wait for tasks and gather how they went.
// spec/cli-and-ui.md §3.3.
func newCollectCommand(env *Env) *cobra.Command {
	var conn connection
	c := collector{env: env, conn: &conn}
	var format string
	var requests string
	var stdout []string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "collect [TASK...]",
		Short: "Wait for tasks and gather their results",
		Long:  "Wait for tasks and gather their results.\n\nThe exit code is 0 although tasks failed; what happened to each stands in the summary.",
		Example: "  skep spawn-tasks --json-input tasks.json --json-output spawned.json\n" +
			"  skep collect --requests-json spawned.json --json-output results.json --task-output-stdout json",
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			ids, err := collectIDs(cmd, requests, args)
			if err != nil {
				return err
			}
			if timeout > 0 && !c.wait {
				return usageErrorf(cmd, "--timeout needs --wait")
			}
			if err := c.setSinks(cmd, stdout); err != nil {
				return err
			}
			if c.fleet, err = conn.open(env); err != nil {
				return err
			}
			entries := c.collect(ctx, ids, timeout)
			if err := c.write(entries, ids, format); err != nil {
				return err
			}
			if ctx.Err() != nil {
				return errInterrupted
			}
			return c.sinkErr.get()
		}),
	}
	f := cmd.Flags()
	f.StringVar(&requests, "requests-json", "", "read task ids from `FILE`, the output of spawn-tasks")
	f.BoolVar(&c.wait, "wait", true, "wait for the tasks to end")
	f.BoolVar(&c.eager, "eager", false, "stop at the first task that ends")
	f.DurationVar(&timeout, "timeout", 0, "wait at most this long, as 10m; 0 = no limit")
	f.BoolVar(&c.perf, "perf", false, "include performance statistics")
	registerPath(cmd, &c.jsonPath, "write the summary to `FILE`, - for stdout", "json-output", "task-summary-json")
	f.BoolVar(&c.python, "task-summary-python", false, "write the summary in its old form, {\"shards\": [...]}")
	f.StringArrayVar(&stdout, "task-output-stdout", nil, "where output of tasks goes: `none, console, json, dir[:PATH] or all`; repeatable")
	f.StringVar(&c.dir, "output-dir", "", "`DIR` for output files of tasks, in DIR/TASK, which is cleared first, and for what dir puts into files")
	f.IntVar(&c.parallel, "output-fetch-concurrency", 8, "how many outputs are fetched at once")
	f.VarP(newChoice(&format, "", "table", "json"), "format", "o", "print the summary as `table|json` to stdout")
	c.st.register(cmd)
	conn.register(cmd)
	return cmd
}

// collectIDs gathers the ids of arguments and of a file that spawn-tasks wrote.
func collectIDs(cmd *cobra.Command, path string, ids []string) ([]string, error) {
	if path != "" {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("--requests-json: %w", err)
		}
		spawned := &clipb.SpawnTasksOutput{}
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(data, spawned); err != nil {
			return nil, fmt.Errorf("--requests-json: %s: want {\"tasks\": [...]}: %w", path, err)
		}
		for _, t := range spawned.Tasks {
			ids = append(ids, t.TaskId)
		}
	}
	if len(ids) == 0 {
		return nil, usageErrorf(cmd, "no task ids; give them as arguments or with --requests-json")
	}
	return ids, checkTaskIDs(ids)
}

// collector waits for tasks.
type collector struct {
	env                       *Env
	conn                      *connection
	st                        storageFlags
	fleet                     *fleet
	wait, eager, perf, python bool
	toConsole, toJSON, toDir  bool
	jsonPath, dir             string
	parallel                  int

	console sync.Mutex // one task's output at a time
	sinkErr firstError // an output file that could not be written
}

// setSinks reads --task-output-stdout.
func (c *collector) setSinks(cmd *cobra.Command, words []string) error {
	for _, word := range words {
		kind, dir, _ := strings.Cut(word, ":")
		switch kind {
		case "none":
		case "console":
			c.toConsole = true
		case "json":
			c.toJSON = true
		case "dir":
			c.toDir = true
			if dir != "" {
				c.dir = dir
			}
		case "all":
			c.toConsole, c.toJSON, c.toDir = true, true, c.dir != ""
		default:
			return usageErrorf(cmd, "--task-output-stdout %q: want none, console, json, dir[:PATH] or all", word)
		}
	}
	if c.toDir && c.dir == "" {
		return usageErrorf(cmd, "--task-output-stdout dir needs --output-dir, or dir:PATH")
	}
	if c.dir != "" {
		if err := os.MkdirAll(c.dir, 0o755); err != nil {
			return fmt.Errorf("--output-dir: %w", err)
		}
	}
	if c.parallel < 1 {
		return usageErrorf(cmd, "--output-fetch-concurrency must be at least 1")
	}
	return nil
}

// Texts of entries without a result, which users of the JSON match.
const (
	errorTimeout  = "rpc_timeout"
	errorCanceled = "rpc_canceled"
)

// Limits of one BatchGetResult round, spec/cli-and-ui.md §3.3.
const (
	collectChunk    = 500
	collectParallel = 10
)

// fewTasks may be asked about often: after the end of one, the next may be
// near, and the question is small.
const fewTasks = 50

// collect returns one entry per id, when all have ended, or sooner as the
// flags say. It does not fail: what went wrong stands in the entries.
func (c *collector) collect(ctx context.Context, ids []string, timeout time.Duration) map[string]*clipb.ResultSummaryEntry {
	wait, stop := context.WithCancel(ctx)
	if timeout > 0 {
		wait, stop = context.WithTimeout(ctx, timeout)
	}
	defer stop()
	bar := newProgress(c.env.Stderr, len(ids), "collect")
	entries := map[string]*clipb.ResultSummaryEntry{}
	pending := slices.Clone(ids)
	var fetches sync.WaitGroup
	slots := make(chan struct{}, c.parallel)
	delay := newPollDelay()
	for len(pending) > 0 {
		found := c.poll(wait, pending)
		left := pending[:0:0]
		ended := 0
		for _, id := range pending {
			e := found[id]
			switch {
			case e == nil || c.wait && e.Error == "" && !isFinal(e.Results.GetState()):
				left = append(left, id)
				if e != nil {
					entries[id] = e // the latest, should waiting end
				}
			default:
				entries[id] = e
				ended++
				bar.add(1)
				if e.Results != nil && (c.toConsole || c.toJSON || c.dir != "") {
					fetches.Go(func() {
						slots <- struct{}{}
						defer func() { <-slots }()
						c.fetch(ctx, id, e)
					})
				}
			}
		}
		if ended > 0 && len(left) <= fewTasks {
			delay.reset()
		}
		pending = left
		if c.eager && ended > 0 || len(pending) > 0 && delay.sleep(wait) != nil {
			break
		}
	}
	fetches.Wait()
	bar.done()
	for _, id := range pending {
		e := entries[id]
		if e == nil {
			e = &clipb.ResultSummaryEntry{}
			entries[id] = e
		}
		switch {
		case ctx.Err() != nil:
			e.Error = errorCanceled
		case wait.Err() != nil:
			e.Error = errorTimeout
		}
	}
	return entries
}

// poll asks once for all ids. An id that is not in the answer is to be asked
// again: its call failed in a way that may pass.
func (c *collector) poll(ctx context.Context, ids []string) map[string]*clipb.ResultSummaryEntry {
	found := map[string]*clipb.ResultSummaryEntry{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, collectParallel)
	for chunk := range slices.Chunk(ids, collectChunk) {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			answers, err := c.batch(ctx, chunk)
			mu.Lock()
			defer mu.Unlock()
			for i, id := range chunk {
				switch {
				case err == nil:
					found[id] = answers[i]
				case ctx.Err() == nil && !isTransient(err):
					found[id] = &clipb.ResultSummaryEntry{Error: err.Error()}
				}
			}
		})
	}
	wg.Wait()
	return found
}

// batch returns one entry per id, in their order.
func (c *collector) batch(ctx context.Context, ids []string) ([]*clipb.ResultSummaryEntry, error) {
	res, err := c.fleet.BatchGetResult(ctx, &pb.BatchGetResultRequest{TaskIds: ids, IncludePerformanceStats: c.perf})
	if err != nil {
		return nil, err
	}
	if len(res.Results) != len(ids) {
		return nil, fmt.Errorf("the server answered %d of %d tasks", len(res.Results), len(ids))
	}
	entries := make([]*clipb.ResultSummaryEntry, len(ids))
	for i, r := range res.Results {
		if r.TaskId != ids[i] {
			return nil, fmt.Errorf("the server answered for task %s, not %s", r.TaskId, ids[i])
		}
		entries[i] = &clipb.ResultSummaryEntry{Results: r.GetResult()}
		if e := r.GetError(); e != nil {
			entries[i].Error = e.Message
		}
	}
	return entries, nil
}

// fetch gets the output of one ended task and puts it where the flags say.
func (c *collector) fetch(ctx context.Context, id string, e *clipb.ResultSummaryEntry) {
	if !isFinal(e.Results.State) {
		return
	}
	if c.dir != "" && e.Results.CasOutputRoot != nil {
		if err := c.fetchFiles(ctx, id, e); err != nil {
			e.Error = err.Error()
		}
	}
	var buf bytes.Buffer
	if err := c.fleet.copyStdout(ctx, id, &buf); err != nil {
		e.Error = fmt.Sprintf("fetch the output: %v", err)
		return
	}
	output := buf.Bytes()
	if c.toJSON {
		e.Output = strings.ToValidUTF8(string(output), "\uFFFD")
	}
	if c.toDir {
		path := filepath.Join(c.dir, id+".txt")
		if err := os.WriteFile(path, output, 0o644); err != nil {
			c.sinkErr.set(fmt.Errorf("--output-dir: %w", err))
		} else {
			e.Outputs = append(e.Outputs, path)
		}
	}
	if c.toConsole {
		c.console.Lock()
		defer c.console.Unlock()
		fmt.Fprintf(c.env.Stdout, "%s: %s\n", id, stateLine(e.Results))
		if len(output) > 0 && output[len(output)-1] != '\n' {
			output = append(output, '\n')
		}
		if _, err := c.env.Stdout.Write(output); err != nil {
			c.sinkErr.set(fmt.Errorf("write the output: %w", err))
		}
	}
}

// fetchFiles puts the output files of a task into a directory of its own.
func (c *collector) fetchFiles(ctx context.Context, id string, e *clipb.ResultSummaryEntry) error {
	instance, root, err := reference(e.Results.CasOutputRoot)
	if err != nil {
		return fmt.Errorf("output files: %w", err)
	}
	from, err := c.st.open(ctx, c.env, c.conn, c.fleet, instance)
	if err != nil {
		return err
	}
	defer from.Close()
	dir := filepath.Join(c.dir, id)
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("output files: %w", err)
	}
	out, err := archive.Extract(ctx, from, root, dir, archive.Target{})
	if err != nil {
		return fmt.Errorf("output files: %w", err)
	}
	for _, p := range out.Files {
		e.Outputs = append(e.Outputs, filepath.Join(dir, filepath.FromSlash(p)))
	}
	return nil
}

// stateLine is the console form of how a task went.
func stateLine(r *pb.TaskResultResponse) string {
	if r.State == pb.TaskState_COMPLETED {
		return fmt.Sprintf("COMPLETED, exit code %d", r.ExitCode)
	}
	return r.State.String()
}

// write puts out the summary as the flags say; entries are in the order of ids
// where the form has an order.
func (c *collector) write(entries map[string]*clipb.ResultSummaryEntry, ids []string, format string) error {
	if c.jsonPath != "" || format == "json" {
		summary, err := c.summary(entries, ids)
		if err != nil {
			return err
		}
		path := c.jsonPath
		if path == "" || path != "-" && format == "json" {
			err = writeJSON(c.env.Stdout, "-", summary)
		}
		if path != "" {
			err = errors.Join(err, writeJSON(c.env.Stdout, path, summary))
		}
		if err != nil {
			return err
		}
	}
	if format == "table" || format == "" && c.jsonPath == "" && !c.toConsole {
		t := newTable(c.env.Stdout)
		t.row("TASK", "STATE", "EXIT", "DURATION", "BOT", "NAME", "ERROR")
		for _, id := range ids {
			r := entries[id].GetResults()
			t.row(id, taskStateCell(r), exitCell(r), durationCell(r), r.GetBotId(), r.GetName(), entries[id].GetError())
		}
		return t.flush()
	}
	return nil
}

func (c *collector) summary(entries map[string]*clipb.ResultSummaryEntry, ids []string) (any, error) {
	if !c.python {
		out := map[string]json.RawMessage{}
		for id, e := range entries {
			raw, err := protoJSON(e)
			if err != nil {
				return nil, err
			}
			out[id] = raw
		}
		return out, nil
	}
	shards := make([]json.RawMessage, len(ids))
	for i, id := range ids {
		e := entries[id]
		if e == nil || e.Results == nil {
			shards[i] = json.RawMessage("null")
			continue
		}
		raw, err := protoJSON(e.Results)
		if err != nil {
			return nil, err
		}
		if shards[i], err = withOutput(raw, e.Output); err != nil {
			return nil, err
		}
	}
	return map[string]any{"shards": shards}, nil
}

// withOutput adds the field "output" to the JSON of a result.
func withOutput(result json.RawMessage, output string) (json.RawMessage, error) {
	field, err := json.Marshal(output)
	if err != nil {
		return nil, err
	}
	body := strings.TrimSuffix(string(result), "}")
	if body != "{" {
		body += ","
	}
	return json.RawMessage(body + `"output":` + string(field) + "}"), nil
}
