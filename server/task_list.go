package server

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api"
	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/store"
)

// taskQuery is what the listings of tasks have in common.
type taskQuery struct {
	limit      int32
	cursor     string
	kind       int
	start, end *timestamppb.Timestamp
	state      pb.StateQuery
	tags       []string
}

func stateFilter(q pb.StateQuery) (store.StateFilter, error) {
	states, failure, err := api.States(q)
	return store.StateFilter{States: states, Failure: failure, NoMatch: states != nil && len(states) == 0}, err
}

// listing returns one page and the cursor of the next, "" at the end.
func (s *Server) listing(ctx context.Context, q taskQuery) (items []store.Listed, next string, err error) {
	f := store.TaskFilter{}
	if f.Limit, err = api.Limit(q.limit); err != nil {
		return nil, "", err
	}
	if f.Tags, err = api.Tags(q.tags); err != nil {
		return nil, "", err
	}
	if f.Start, f.End, err = api.Range(q.start, q.end); err != nil {
		return nil, "", err
	}
	if f.State, err = stateFilter(q.state); err != nil {
		return nil, "", err
	}
	c, err := s.cursors.open(q.kind, q.cursor)
	if err != nil {
		return nil, "", err
	}
	if err := inRange(c.Task, f.Start, f.End); err != nil {
		return nil, "", err
	}
	f.Below = c.Task
	if items, err = s.store.ListTasks(ctx, f); err != nil {
		return nil, "", err
	}
	if len(items) == f.Limit {
		next = s.cursors.seal(cursor{Kind: q.kind, Task: items[len(items)-1].Task.ID})
	}
	return items, next, nil
}

// inRange refuses a cursor that the time range of this call has left behind.
func inRange(at skep.TaskID, start, end time.Time) error {
	if at == 0 {
		return nil
	}
	if t := at.Created(); (!start.IsZero() && t.Before(start)) || (!end.IsZero() && !t.Before(end)) {
		return skep.Invalidf("cursor", "invalid time range: the cursor is outside of the requested range")
	}
	return nil
}

func (s *Server) listTasks(ctx context.Context, req *pb.TasksWithPerfRequest) (*pb.TaskListResponse, error) {
	if err := s.mustPools(ctx, permListTasks, taggedPools(req.Tags)); err != nil {
		return nil, err
	}
	if err := createdSort(req.Sort); err != nil {
		return nil, err
	}
	items, next, err := s.listing(ctx, taskQuery{req.Limit, req.Cursor, cursorTasks, req.Start, req.End, req.State, req.Tags})
	if err != nil {
		return nil, err
	}
	out := &pb.TaskListResponse{Cursor: next, Now: s.nowPB()}
	for _, l := range items {
		out.Items = append(out.Items, api.Result(l.Request, l.Task, req.IncludePerformanceStats))
	}
	return out, nil
}

func (s *Server) listTaskRequests(ctx context.Context, req *pb.TasksRequest) (*pb.TaskRequestsResponse, error) {
	if err := s.mustPools(ctx, permListTasks, taggedPools(req.Tags)); err != nil {
		return nil, err
	}
	if err := createdSort(req.Sort); err != nil {
		return nil, err
	}
	items, next, err := s.listing(ctx, taskQuery{req.Limit, req.Cursor, cursorTaskRequests, req.Start, req.End, req.State, req.Tags})
	if err != nil {
		return nil, err
	}
	out := &pb.TaskRequestsResponse{Cursor: next, Now: s.nowPB()}
	for _, l := range items {
		out.Items = append(out.Items, api.Request(l.Request))
	}
	return out, nil
}

func createdSort(q pb.SortQuery) error {
	if q != pb.SortQuery_QUERY_CREATED_TS {
		return skep.Invalidf("sort", "only QUERY_CREATED_TS is possible here")
	}
	return nil
}

func (s *Server) countTasks(ctx context.Context, req *pb.TasksCountRequest) (*pb.TasksCount, error) {
	if err := s.mustPools(ctx, permListTasks, taggedPools(req.Tags)); err != nil {
		return nil, err
	}
	if req.Start == nil {
		return nil, skep.Invalidf("start", "is required")
	}
	var f store.TaskFilter
	var err error
	if f.Tags, err = api.Tags(req.Tags); err != nil {
		return nil, err
	}
	if f.Start, f.End, err = api.Range(req.Start, req.End); err != nil {
		return nil, err
	}
	if f.State, err = stateFilter(req.State); err != nil {
		return nil, err
	}
	n, err := s.store.CountTasks(ctx, f)
	if err != nil {
		return nil, err
	}
	return &pb.TasksCount{Count: int32(n), Now: s.nowPB()}, nil
}

func (s *Server) cancelTasks(ctx context.Context, req *pb.TasksCancelRequest) (*pb.TasksCancelResponse, error) {
	if len(req.Tags) == 0 {
		return nil, skep.Invalidf("tags", "at least one is required")
	}
	if err := s.mustPools(ctx, permCancelPool, taggedPools(req.Tags)); err != nil {
		return nil, err
	}
	state := pb.StateQuery_QUERY_PENDING
	if req.KillRunning {
		state = pb.StateQuery_QUERY_PENDING_RUNNING
	}
	items, next, err := s.listing(ctx, taskQuery{req.Limit, req.Cursor, cursorCancelTasks, req.Start, req.End, state, req.Tags})
	if err != nil {
		return nil, err
	}
	for _, l := range items {
		_, _, err := s.sched.Cancel(ctx, l.Task.ID, req.KillRunning)
		if err != nil && skep.KindOf(err) != skep.NotFound { // else it was pruned meanwhile
			return nil, err
		}
	}
	return &pb.TasksCancelResponse{Cursor: next, Now: s.nowPB(), Matched: int32(len(items))}, nil
}

func (s *Server) nowPB() *timestamppb.Timestamp { return timestamppb.New(s.o.Now()) }
