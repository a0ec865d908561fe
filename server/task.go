package server

import (
	"context"
	"fmt"

	"google.golang.org/genproto/googleapis/rpc/status"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api"
	"github.com/skepdev/skep/api/prpc"
	"github.com/skepdev/skep/api/skeppb"
	pb "github.com/skepdev/skep/api/swarmingpb"
)

// maxBatch bounds the ids of one call. spec api-v2.md §6.3.
const maxBatch = 1000

// find loads a task that the caller may see.
func (s *Server) find(ctx context.Context, text string, p permission) (*skep.TaskRequest, *skep.Task, error) {
	id, err := skep.ParseTaskID(text)
	if err != nil {
		return nil, nil, err
	}
	req, task, err := s.sched.Find(ctx, id)
	if err != nil {
		if skep.KindOf(err) == skep.NotFound {
			err = skep.Errorf(skep.NotFound, "no such task")
		}
		return nil, nil, err
	}
	return req, task, mustForTask(ctx, p, req)
}

func (s *Server) getResult(ctx context.Context, req *pb.TaskIdWithPerfRequest) (*pb.TaskResultResponse, error) {
	r, t, err := s.find(ctx, req.TaskId, permGetTask)
	if err != nil {
		return nil, err
	}
	return api.Result(r, t, req.IncludePerformanceStats), nil
}

func (s *Server) getRequest(ctx context.Context, req *pb.TaskIdRequest) (*pb.TaskRequestResponse, error) {
	r, _, err := s.find(ctx, req.TaskId, permGetTask)
	if err != nil {
		return nil, err
	}
	return api.Request(r), nil
}

// batch checks a list of ids: not too many, all well formed, none twice.
func batch(field string, ids []string) error {
	if len(ids) == 0 || len(ids) > maxBatch {
		return skep.Invalidf(field, "has %d ids, want 1 to %d", len(ids), maxBatch)
	}
	seen := make(map[skep.TaskID]bool, len(ids))
	for _, text := range ids {
		id, err := skep.ParseTaskID(text)
		if err != nil {
			return err
		}
		if seen[id] {
			return skep.Invalidf(field, "%s is there twice", text)
		}
		seen[id] = true
	}
	return nil
}

func (s *Server) batchGetResult(ctx context.Context, req *pb.BatchGetResultRequest) (*pb.BatchGetResultResponse, error) {
	if err := batch("task_ids", req.TaskIds); err != nil {
		return nil, err
	}
	out := &pb.BatchGetResultResponse{}
	for _, id := range req.TaskIds {
		item := &pb.BatchGetResultResponse_ResultOrError{TaskId: id}
		r, t, err := s.find(ctx, id, permGetTask)
		if err != nil {
			item.Outcome = &pb.BatchGetResultResponse_ResultOrError_Error{Error: s.itemStatus(ctx, err)}
		} else {
			item.Outcome = &pb.BatchGetResultResponse_ResultOrError_Result{Result: api.Result(r, t, req.IncludePerformanceStats)}
		}
		out.Results = append(out.Results, item)
	}
	return out, ctx.Err()
}

// itemStatus tells of one item what may be told.
func (s *Server) itemStatus(ctx context.Context, err error) *status.Status {
	st := prpc.StatusOf(err)
	if skep.KindOf(err) == skep.Internal {
		s.log.ErrorContext(ctx, "read task", "err", err)
		return &status.Status{Code: 13, Message: "storage error"}
	}
	return &status.Status{Code: st.Code, Message: st.Message}
}

func (s *Server) listTaskStates(ctx context.Context, req *pb.TaskStatesRequest) (*pb.TaskStates, error) {
	if err := batch("task_id", req.TaskId); err != nil {
		return nil, err
	}
	out := &pb.TaskStates{}
	for _, id := range req.TaskId {
		_, t, err := s.find(ctx, id, permGetTask)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", id, err)
		}
		out.States = append(out.States, pb.TaskState(t.State))
	}
	return out, nil
}

func (s *Server) getStdout(ctx context.Context, req *pb.TaskIdWithOffsetRequest) (*pb.TaskOutputResponse, error) {
	switch {
	case req.Offset < 0:
		return nil, skep.Invalidf("offset", "is negative")
	case req.Length < 0:
		return nil, skep.Invalidf("length", "is negative")
	}
	_, t, err := s.find(ctx, req.TaskId, permGetTask)
	if err != nil {
		return nil, err
	}
	out, err := s.store.Output(ctx, t.ID, t.OutputSize, req.Offset, req.Length)
	if err != nil {
		return nil, err
	}
	return &pb.TaskOutputResponse{Output: out, State: pb.TaskState(t.State)}, nil
}

func (s *Server) watch(ctx context.Context, req *skeppb.WatchRequest) (*skeppb.WatchResponse, error) {
	if req.Offset < 0 {
		return nil, skep.Invalidf("offset", "is negative")
	}
	if err := req.Wait.CheckValid(); req.Wait != nil && (err != nil || req.Wait.AsDuration() < 0) {
		return nil, skep.Invalidf("wait", "is not a duration of 0 s or more")
	}
	r, t, err := s.find(ctx, req.TaskId, permGetTask)
	if err != nil {
		return nil, err
	}
	v, err := s.sched.Watch(ctx, t.ID, req.Offset, skep.TaskState(req.KnownState), req.Wait.AsDuration())
	if err != nil {
		return nil, err
	}
	out := &skeppb.WatchResponse{Output: v.Output, Offset: v.Offset, State: pb.TaskState(v.Task.State)}
	if v.Task.State.Final() {
		out.Result = api.Result(r, v.Task, false)
	}
	return out, nil
}

func (s *Server) cancelTask(ctx context.Context, req *pb.TaskCancelRequest) (*pb.CancelResponse, error) {
	_, t, err := s.find(ctx, req.TaskId, permCancelTask)
	if err != nil {
		return nil, err
	}
	canceled, wasRunning, err := s.sched.Cancel(ctx, t.ID, req.KillRunning)
	if err != nil {
		return nil, err
	}
	return &pb.CancelResponse{Canceled: canceled, WasRunning: wasRunning}, nil
}
