package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	pb "github.com/skepdev/skep/api/swarmingpb"
)

// newTriggerCommand: NewTask, and no waiting. spec/cli-and-ui.md §3.1.
func newTriggerCommand(env *Env) *cobra.Command {
	var t taskFlags
	var o outputFlags
	var conn connection
	cmd := &cobra.Command{
		Use:         "trigger [flags] -- COMMAND...",
		Short:       "Submit one task and leave; prints its id",
		Example:     "  skep trigger -d os=Linux --task-name hello -- echo hi",
		Annotations: map[string]string{annotationStops: "yes"},
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageErrorf(cmd, "no command; write it after --, as in: skep trigger -- echo hi")
			}
			req, err := t.request(cmd, env, args, t.dimensionName)
			if err != nil {
				return err
			}
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			req.ParentTaskId = parentTask(env, f.url)
			res, err := f.NewTask(ctx, req)
			if err != nil {
				return err
			}
			f.notef("task %s, %s/task?id=%s", res.TaskId, f.url, res.TaskId)
			f.notef("to collect its result: skep collect -S %s %s", f.url, res.TaskId)
			if o.format == "" && o.jsonPath != "-" {
				fmt.Fprintln(env.Stdout, res.TaskId)
			}
			return o.emit(env.Stdout, "",
				func() (any, error) { return spawnOutput([]*pb.TaskRequestMetadataResponse{res}) },
				func(w *tableWriter) { tasksTable(w, []*pb.TaskResultResponse{res.GetTaskResult()}) })
		}),
	}
	t.expiration, t.hardTimeout, t.ioTimeout, t.gracePeriod = 21600, 3600, 1200, 30
	t.register(cmd)
	t.registerTrigger(cmd)
	o.register(cmd, "json-output", "dump-json")
	conn.register(cmd)
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// dimensionName is the existing client's name of a task: k=v joined by _.
func (t *taskFlags) dimensionName() string {
	var parts []string
	for _, d := range t.dimensions.sorted() {
		parts = append(parts, d.key+"="+d.value)
	}
	return strings.Join(parts, "_")
}
