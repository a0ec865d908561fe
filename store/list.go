package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/skepdev/skep"
)

// StateFilter selects tasks by state. The zero value selects all.
type StateFilter struct {
	States  []skep.TaskState
	Failure *bool // also demands this failure flag
	NoMatch bool  // nothing can match
}

// TaskFilter selects tasks for a listing.
type TaskFilter struct {
	State StateFilter
	Tags  [][]string  // ANDed; each entry holds alternative "key:value" tags
	Start time.Time   // created at or after; zero = no limit
	End   time.Time   // created before; zero = no limit
	Below skep.TaskID // only older ids: the cursor of a page; 0 = from the newest
	Limit int
}

// where returns the condition on a row t of tasks, and its arguments.
func (f *TaskFilter) where() (cond string, args []any) {
	arg := func(v any) string {
		args = append(args, v)
		return fmt.Sprintf("$%d", len(args))
	}
	list := func(vs []int64) string {
		ps := make([]string, len(vs))
		for i, v := range vs {
			ps[i] = arg(v)
		}
		return strings.Join(ps, ",")
	}
	conds := []string{"1 = 1"}
	for _, alternatives := range f.Tags {
		ids := make([]int64, len(alternatives))
		for i, t := range alternatives {
			ids[i] = tagID(t)
		}
		// A listing is by time and stops early: what most tasks have is found at once.
		// PostgreSQL knows from its statistics when the index on tags serves better.
		conds = append(conds, "t.tags IN (SELECT g.tags FROM task_tags g WHERE g.tag IN ("+list(ids)+"))")
	}
	if len(f.State.States) > 0 {
		ids := make([]int64, len(f.State.States))
		for i, s := range f.State.States {
			ids[i] = int64(s)
		}
		conds = append(conds, "t.state IN ("+list(ids)+")")
	}
	if f.State.Failure != nil {
		conds = append(conds, "t.failure = "+arg(bit(*f.State.Failure)))
	}
	if !f.Start.IsZero() {
		conds = append(conds, "t.id >= "+arg(skep.FirstTaskID(f.Start)))
	}
	if !f.End.IsZero() {
		conds = append(conds, "t.id < "+arg(skep.FirstTaskID(f.End)))
	}
	if f.Below != 0 {
		conds = append(conds, "t.id < "+arg(f.Below))
	}
	return strings.Join(conds, " AND "), args
}

// Listed is one task of a listing with its request.
type Listed struct {
	Task    *skep.Task
	Request *skep.TaskRequest
}

// ListTasks returns the tasks that match, newest first, at most f.Limit.
func (r reads) ListTasks(ctx context.Context, f TaskFilter) ([]Listed, error) {
	if f.State.NoMatch {
		return nil, nil
	}
	cond, args := f.where()
	args = append(args, f.Limit)
	rows, err := r.q.query(ctx, fmt.Sprintf(`SELECT %s, r.body FROM `+taskTable+` JOIN task_requests r ON r.id = t.id WHERE %s ORDER BY t.id DESC LIMIT $%d`,
		taskColumns, cond, len(args)), args...)
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	defer rows.Close()
	var out []Listed
	for rows.Next() {
		l, err := scanListed(rows)
		if err != nil {
			return nil, fmt.Errorf("list tasks: %w", err)
		}
		if l.hasTags(f.Tags) {
			out = append(out, l)
		}
	}
	return out, rows.Err()
}

// hasTags checks a match of the tag index against the tags themselves.
func (l *Listed) hasTags(filter [][]string) bool {
	for _, alternatives := range filter {
		if !slices.ContainsFunc(alternatives, func(t string) bool {
			_, ok := slices.BinarySearch(l.Request.Tags, t)
			return ok
		}) {
			return false
		}
	}
	return true
}

func scanListed(row scanner) (l Listed, err error) {
	var body string
	if l.Task, err = scanTask(row, &body); err != nil {
		return l, err
	}
	l.Request, err = decodeRequest(l.Task.ID, body)
	return l, err
}

// Find returns those of the tasks that exist, with their requests.
func (r reads) Find(ctx context.Context, ids ...skep.TaskID) (map[skep.TaskID]Listed, error) {
	size := 1 // a few sizes, so that few statements are prepared
	for size < len(ids) {
		size *= 8
	}
	marks := make([]string, size)
	args := make([]any, size)
	for i := range size {
		marks[i] = fmt.Sprintf("$%d", i+1)
		args[i] = skep.TaskID(0)
		if i < len(ids) {
			args[i] = ids[i]
		}
	}
	rows, err := r.q.query(ctx, `SELECT `+taskColumns+`, r.body FROM `+taskTable+` JOIN task_requests r ON r.id = t.id WHERE t.id IN (`+strings.Join(marks, ",")+`)`, args...)
	if err != nil {
		return nil, fmt.Errorf("read tasks: %w", err)
	}
	defer rows.Close()
	out := make(map[skep.TaskID]Listed, len(ids))
	for rows.Next() {
		l, err := scanListed(rows)
		if err != nil {
			return nil, fmt.Errorf("read tasks: %w", err)
		}
		out[l.Task.ID] = l
	}
	return out, rows.Err()
}

// CountTasks returns how many tasks match.
func (r reads) CountTasks(ctx context.Context, f TaskFilter) (int, error) {
	if f.State.NoMatch {
		return 0, nil
	}
	cond, args := f.where()
	var n int
	if _, err := r.q.row(ctx, fmt.Sprintf(`SELECT COUNT(*) FROM tasks t WHERE %s`, cond), args, &n); err != nil {
		return 0, fmt.Errorf("count tasks: %w", err)
	}
	return n, nil
}
