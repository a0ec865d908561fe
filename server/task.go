package server

import (
	"context"

	"google.golang.org/genproto/googleapis/rpc/status"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api"
	"github.com/skepdev/skep/api/prpc"
	"github.com/skepdev/skep/api/skeppb"
	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/store"
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
	return req, task, s.mustTask(ctx, p, req)
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

// batch reads the tasks of a list of ids: not too many, all well formed, none
// twice.
func (s *Server) batch(ctx context.Context, field string, texts []string) (ids []skep.TaskID, found map[skep.TaskID]store.Listed, err error) {
	if len(texts) == 0 || len(texts) > maxBatch {
		return nil, nil, skep.Invalidf(field, "has %d ids, want 1 to %d", len(texts), maxBatch)
	}
	seen := make(map[skep.TaskID]bool, len(texts))
	for _, text := range texts {
		id, err := skep.ParseTaskID(text)
		if err != nil {
			return nil, nil, err
		}
		if seen[id] {
			return nil, nil, skep.Invalidf(field, "%s is there twice", text)
		}
		seen[id] = true
		ids = append(ids, id)
	}
	found, err = s.store.Find(ctx, ids...)
	return ids, found, err
}

// item returns one task of a batch that the caller may see.
func (s *Server) item(ctx context.Context, found map[skep.TaskID]store.Listed, id skep.TaskID) (store.Listed, error) {
	l, ok := found[id]
	if !ok {
		return l, skep.Errorf(skep.NotFound, "no such task")
	}
	return l, s.mustTask(ctx, permGetTask, l.Request)
}

func (s *Server) batchGetResult(ctx context.Context, req *pb.BatchGetResultRequest) (*pb.BatchGetResultResponse, error) {
	ids, found, err := s.batch(ctx, "task_ids", req.TaskIds)
	if err != nil {
		return nil, err
	}
	out := &pb.BatchGetResultResponse{}
	for i, id := range ids {
		one := &pb.BatchGetResultResponse_ResultOrError{TaskId: req.TaskIds[i]}
		if l, err := s.item(ctx, found, id); err != nil {
			st := prpc.StatusOf(err)
			one.Outcome = &pb.BatchGetResultResponse_ResultOrError_Error{Error: &status.Status{Code: st.Code, Message: st.Message}}
		} else {
			one.Outcome = &pb.BatchGetResultResponse_ResultOrError_Result{Result: api.Result(l.Request, l.Task, req.IncludePerformanceStats)}
		}
		out.Results = append(out.Results, one)
	}
	return out, nil
}

func (s *Server) listTaskStates(ctx context.Context, req *pb.TaskStatesRequest) (*pb.TaskStates, error) {
	ids, found, err := s.batch(ctx, "task_id", req.TaskId)
	if err != nil {
		return nil, err
	}
	out := &pb.TaskStates{}
	for i, id := range ids {
		l, err := s.item(ctx, found, id)
		if err != nil {
			return nil, skep.Errorf(skep.KindOf(err), "%s: %w", req.TaskId[i], err)
		}
		out.States = append(out.States, pb.TaskState(l.Task.State))
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
