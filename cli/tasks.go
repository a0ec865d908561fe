package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	pb "github.com/skepdev/skep/api/swarmingpb"
)

// newTasksCommand: ListTasks or CountTasks. spec/cli-and-ui.md §3.4.
func newTasksCommand(env *Env) *cobra.Command {
	var conn connection
	var o outputFlags
	var l taskListing
	var tags []string
	var count bool
	cmd := &cobra.Command{
		Use:     "tasks [flags]",
		Short:   "List or count tasks, newest first",
		Example: "  skep tasks --tag pool:default --state completed -o table",
		Args:    noArgs,
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			state, err := l.query(cmd)
			if err != nil {
				return err
			}
			if count {
				switch {
				case l.start.IsZero():
					return usageErrorf(cmd, "--count needs --start")
				case cmd.Flags().Changed("limit"):
					return usageErrorf(cmd, "--count and --limit exclude each other")
				case cmd.Flags().Changed("field"):
					return usageErrorf(cmd, "--count and --field exclude each other")
				}
			}
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			if count {
				res, err := f.CountTasks(ctx, &pb.TasksCountRequest{Start: l.start.proto(), State: state, Tags: tags})
				if err != nil {
					return err
				}
				return o.emit(env.Stdout, "json", func() (any, error) { return protoJSON(res) },
					func(w *tableWriter) { w.row(fmt.Sprint(res.Count)) })
			}
			items, err := f.listTasks(ctx, &pb.TasksWithPerfRequest{Start: l.start.proto(), State: state, Tags: tags}, l.limit)
			if err != nil {
				return err
			}
			return o.emit(env.Stdout, "json", func() (any, error) { return protoJSONList(items) },
				func(w *tableWriter) { tasksTable(w, items) })
		}),
	}
	l.register(cmd)
	cmd.Flags().StringArrayVar(&tags, "tag", nil, "`KEY:VALUE` the tasks have; repeatable, all must hold")
	cmd.Flags().BoolVar(&count, "count", false, "count them; needs --start")
	o.register(cmd, "json-output", "json")
	conn.register(cmd)
	return cmd
}

// taskListing are the filters that tasks and bot-tasks share.
type taskListing struct {
	limit  int
	state  string
	start  instant
	fields []string
}

func (l *taskListing) register(cmd *cobra.Command) {
	cmd.Flags().IntVar(&l.limit, "limit", 200, "list at most this many")
	cmd.Flags().StringVar(&l.state, "state", "ALL", "only tasks in `STATE`, as pending, completed_success, bot_died")
	cmd.Flags().Var(&l.start, "start", "created at or after, RFC 3339 or Unix seconds")
	cmd.Flags().StringArrayVar(&l.fields, "field", nil, "no effect; accepted for old command lines")
	_ = cmd.Flags().MarkHidden("field")
}

func (l *taskListing) query(cmd *cobra.Command) (pb.StateQuery, error) {
	if l.limit < 1 {
		return 0, usageErrorf(cmd, "--limit must be at least 1")
	}
	name := strings.ToUpper(l.state)
	if name == "" {
		name = "PENDING"
	}
	v, ok := pb.StateQuery_value["QUERY_"+name]
	if !ok {
		var names []string
		for i := range int32(len(pb.StateQuery_name)) {
			names = append(names, strings.ToLower(strings.TrimPrefix(pb.StateQuery_name[i], "QUERY_")))
		}
		return 0, usageErrorf(cmd, "--state %q: want one of %s", l.state, strings.Join(names, ", "))
	}
	return pb.StateQuery(v), nil
}
