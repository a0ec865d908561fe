package cli

import (
	"context"
	"encoding/json"

	"github.com/spf13/cobra"

	pb "github.com/skepdev/skep/api/swarmingpb"
)

// newTaskShowCommand: GetRequest and GetResult on one page.
func newTaskShowCommand(env *Env) *cobra.Command {
	var conn connection
	var o outputFlags
	cmd := &cobra.Command{
		Use:   "show TASK",
		Short: "Show what a task is and how it goes",
		Args:  exactly("a task id"),
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
			res, err := f.GetResult(ctx, &pb.TaskIdWithPerfRequest{TaskId: args[0], IncludePerformanceStats: true})
			if err != nil {
				return err
			}
			return o.emit(env.Stdout, "table",
				func() (any, error) {
					request, err := protoJSON(req)
					if err != nil {
						return nil, err
					}
					result, err := protoJSON(res)
					return struct {
						Request json.RawMessage `json:"request"`
						Result  json.RawMessage `json:"result"`
					}{request, result}, err
				},
				func(w *tableWriter) { taskFields(w, req, res) })
		}),
	}
	o.register(cmd, "json-output")
	conn.register(cmd)
	return cmd
}
