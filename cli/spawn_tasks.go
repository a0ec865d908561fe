package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/skepdev/skep/api/clipb"
	pb "github.com/skepdev/skep/api/swarmingpb"
)

// spawnParallel is how many NewTask calls of spawn-tasks run at once.
const spawnParallel = 8

// newSpawnTasksCommand: many NewTask calls from a file. spec/cli-and-ui.md
// §3.2, but the output is in the order of the input, what was created is
// written even when another task failed, and a missing request_uuid is filled
// in so that calls can be retried.
func newSpawnTasksCommand(env *Env) *cobra.Command {
	var o outputFlags
	var conn connection
	var input string
	var cancelExtra bool
	cmd := &cobra.Command{
		Use:     "spawn-tasks --json-input FILE [flags]",
		Short:   "Submit the tasks described in a file",
		Long:    "Submit the tasks described in a file: {\"requests\": [NewTaskRequest, ...]} in protobuf JSON.\n\nThe output lists the tasks that were created, in the order of the input; it is written\neven when one of them failed, and the exit code is 1 then.",
		Example: "  skep spawn-tasks --json-input tasks.json --json-output spawned.json\n  skep collect --requests-json spawned.json",
		Args:    noArgs,
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			if input == "" {
				return usageErrorf(cmd, "--json-input is required")
			}
			reqs, err := readSpawnInput(env, input)
			if err != nil {
				return fmt.Errorf("--json-input: %w", err)
			}
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			for _, r := range reqs {
				r.User = cmp.Or(r.User, env.Getenv("USER"))
				r.ParentTaskId = cmp.Or(r.ParentTaskId, parentTask(env, f.url))
				r.RequestUuid = cmp.Or(r.RequestUuid, newUUID())
			}
			created, spawnErr := spawn(ctx, env, f, reqs)
			err = o.emit(env.Stdout, "json",
				func() (any, error) { return spawnOutput(created) },
				func(w *tableWriter) {
					var list []*pb.TaskResultResponse
					for _, c := range created {
						list = append(list, c.GetTaskResult())
					}
					tasksTable(w, list)
				})
			return errors.Join(spawnErr, err)
		}),
	}
	cmd.Flags().StringVarP(&input, "json-input", "j", "", "`FILE` with the tasks, - for stdin")
	o.register(cmd, "json-output")
	cmd.Flags().BoolVar(&cancelExtra, "cancel-extra-tasks", false, "no effect; accepted for old command lines")
	_ = cmd.Flags().MarkHidden("cancel-extra-tasks")
	conn.register(cmd)
	return cmd
}

// readSpawnInput reads SpawnTasksInput strictly: an unknown field is an error.
func readSpawnInput(env *Env, path string) ([]*pb.NewTaskRequest, error) {
	var data []byte
	var err error
	if path == "-" {
		data, err = io.ReadAll(env.Stdin)
	} else {
		data, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, err
	}
	in := &clipb.SpawnTasksInput{}
	if err := protojson.Unmarshal(data, in); err != nil {
		return nil, fmt.Errorf("%s: want {\"requests\": [...]}: %w", path, err)
	}
	if len(in.Requests) == 0 {
		return nil, fmt.Errorf("%s: requests is empty", path)
	}
	return in.Requests, nil
}

// spawn creates all tasks and returns those created, in the order of reqs. A
// failure keeps later ones from being started; its error names the request.
func spawn(ctx context.Context, env *Env, f *fleet, reqs []*pb.NewTaskRequest) ([]*pb.TaskRequestMetadataResponse, error) {
	bar := newProgress(env.Stderr, len(reqs), "spawn")
	defer bar.done()
	results := make([]*pb.TaskRequestMetadataResponse, len(reqs))
	work := make(chan int)
	var wg sync.WaitGroup
	var failed firstError
	for range min(spawnParallel, len(reqs)) {
		wg.Go(func() {
			for i := range work {
				res, err := f.NewTask(ctx, reqs[i])
				if err != nil {
					failed.set(fmt.Errorf("requests[%d] %q: %w", i, reqs[i].Name, err))
					continue
				}
				results[i] = res
				bar.add(1)
			}
		})
	}
	for i := range reqs {
		if failed.get() != nil {
			break
		}
		work <- i
	}
	close(work)
	wg.Wait()
	var created []*pb.TaskRequestMetadataResponse
	for _, r := range results {
		if r != nil {
			created = append(created, r)
		}
	}
	if err := failed.get(); err != nil {
		return created, fmt.Errorf("%d of %d tasks were created: %w", len(created), len(reqs), err)
	}
	return created, nil
}

// firstError keeps the first of many errors; safe for many callers.
type firstError struct {
	mu  sync.Mutex
	err error
}

func (f *firstError) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
}

func (f *firstError) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// spawnOutput is what spawn-tasks and trigger write.
func spawnOutput(created []*pb.TaskRequestMetadataResponse) (any, error) {
	return protoJSON(&clipb.SpawnTasksOutput{Tasks: created})
}
