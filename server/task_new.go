package server

import (
	"context"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api"
	pb "github.com/skepdev/skep/api/swarmingpb"
)

// defaultRealm is the realm of tasks that name none. decisions.md 14.
const defaultRealm = "skep:default"

// topPriority is the best priority that anybody may ask for; better ones need
// a permission. spec api-v2.md §6.1.
const topPriority = 20

// newTask takes a task in. The steps and their order are spec api-v2.md §6.1.
func (s *Server) newTask(ctx context.Context, req *pb.NewTaskRequest) (*pb.TaskRequestMetadataResponse, error) {
	pool, err := api.Pool(req)
	if err != nil {
		return nil, err
	}
	if err := s.mustPool(ctx, permCreateTask, pool); err != nil {
		return nil, err
	}
	sub, err := api.NewTask(req)
	if err != nil {
		return nil, err
	}
	r := sub.Request
	r.Authenticated = callerOf(ctx).identity
	if err := s.place(ctx, r, pool); err != nil {
		return nil, err
	}
	if r.Parent != "" {
		if err := s.adopt(ctx, r); err != nil {
			return nil, err
		}
	}
	if r.Priority < topPriority && s.mustPool(ctx, permHighPrio, pool) != nil {
		r.Priority = topPriority
	}
	if err := s.cannot(r); err != nil {
		return nil, err
	}
	r.Tags = api.AutoTags(r, "none", "none")
	if req.EvaluateOnly {
		r.CreatedAt = s.o.Now()
		return &pb.TaskRequestMetadataResponse{Request: api.Request(r)}, nil
	}
	if s.o.Pin != nil {
		defer s.o.Pin(inputsOf(r))()
	}
	stored, task, err := s.sched.Submit(ctx, r, sub.Secret)
	if err != nil {
		return nil, err
	}
	return &pb.TaskRequestMetadataResponse{TaskId: task.ID.String(), Request: api.Request(stored), TaskResult: api.Result(stored, task, false)}, nil
}

// inputsOf are the input trees of a request.
func inputsOf(r *skep.TaskRequest) (refs []skep.CASReference) {
	for _, sl := range r.Slices {
		if in := sl.Properties.CASInput; in != nil {
			refs = append(refs, *in)
		}
	}
	return refs
}

// adopt checks the parent of a new task and takes over its user.
func (s *Server) adopt(ctx context.Context, r *skep.TaskRequest) error {
	id, err := skep.ParseTaskID(r.Parent)
	if err != nil {
		return err
	}
	parent, task, err := s.sched.Find(ctx, id)
	switch {
	case skep.KindOf(err) == skep.NotFound:
		return skep.Errorf(skep.NotFound, "parent_task_id: no such task: %s", r.Parent)
	case err != nil:
		return err
	case parent.IsTermination():
		return skep.Invalidf("parent_task_id", "%s is a termination task", r.Parent)
	case task.State.Final():
		return skep.Errorf(skep.Precondition, "parent_task_id: task %s has ended (%s)", r.Parent, task.State)
	}
	r.User = parent.User
	return nil
}

// cannot refuses what would be dropped silently.
func (s *Server) cannot(r *skep.TaskRequest) error {
	refuse := func(format string, args ...any) error { return skep.Errorf(skep.Precondition, format, args...) }
	switch {
	case r.ResultDB:
		return refuse("resultdb.enable: ResultDB is not configured on this server; send the task without it")
	case r.PubSubTopic != "":
		return refuse("pubsub_topic: this server sends no notifications; send the task without it")
	}
	for i, sl := range r.Slices {
		if len(sl.Properties.Outputs) > 0 && s.o.CASInstance == "" {
			return refuse("task_slices[%d].properties.outputs: this server has no content-addressed storage, outputs would be lost; print what matters", i)
		}
	}
	return nil
}
