package client

import (
	"context"

	pb "github.com/skepdev/skep/api/swarmingpb"
)

const serviceTasks = "swarming.v2.Tasks"

// GetResult returns how a task is doing.
func (c *Client) GetResult(ctx context.Context, req *pb.TaskIdWithPerfRequest) (*pb.TaskResultResponse, error) {
	return call[pb.TaskResultResponse](ctx, c.rpc, serviceTasks, "GetResult", req)
}

// BatchGetResult returns how up to 1000 tasks are doing, in the order asked for.
func (c *Client) BatchGetResult(ctx context.Context, req *pb.BatchGetResultRequest) (*pb.BatchGetResultResponse, error) {
	return call[pb.BatchGetResultResponse](ctx, c.rpc, serviceTasks, "BatchGetResult", req)
}

// GetRequest returns what was asked for.
func (c *Client) GetRequest(ctx context.Context, req *pb.TaskIdRequest) (*pb.TaskRequestResponse, error) {
	return call[pb.TaskRequestResponse](ctx, c.rpc, serviceTasks, "GetRequest", req)
}

// CancelTask gives up a task.
func (c *Client) CancelTask(ctx context.Context, req *pb.TaskCancelRequest) (*pb.CancelResponse, error) {
	return call[pb.CancelResponse](ctx, c.rpc, serviceTasks, "CancelTask", req)
}

// GetStdout returns a piece of the output. It is short only at the current end of the output.
func (c *Client) GetStdout(ctx context.Context, req *pb.TaskIdWithOffsetRequest) (*pb.TaskOutputResponse, error) {
	return call[pb.TaskOutputResponse](ctx, c.rpc, serviceTasks, "GetStdout", req)
}

// NewTask makes a task. With a request_uuid the call may be repeated.
func (c *Client) NewTask(ctx context.Context, req *pb.NewTaskRequest) (*pb.TaskRequestMetadataResponse, error) {
	return call[pb.TaskRequestMetadataResponse](ctx, c.rpc, serviceTasks, "NewTask", req)
}

// ListTasks returns results, newest task first.
func (c *Client) ListTasks(ctx context.Context, req *pb.TasksWithPerfRequest) (*pb.TaskListResponse, error) {
	return call[pb.TaskListResponse](ctx, c.rpc, serviceTasks, "ListTasks", req)
}

// ListTaskStates returns the states of up to 1000 tasks.
func (c *Client) ListTaskStates(ctx context.Context, req *pb.TaskStatesRequest) (*pb.TaskStates, error) {
	return call[pb.TaskStates](ctx, c.rpc, serviceTasks, "ListTaskStates", req)
}

// ListTaskRequests returns requests, newest task first.
func (c *Client) ListTaskRequests(ctx context.Context, req *pb.TasksRequest) (*pb.TaskRequestsResponse, error) {
	return call[pb.TaskRequestsResponse](ctx, c.rpc, serviceTasks, "ListTaskRequests", req)
}

// CancelTasks gives up a page of tasks, some time after the answer.
func (c *Client) CancelTasks(ctx context.Context, req *pb.TasksCancelRequest) (*pb.TasksCancelResponse, error) {
	return call[pb.TasksCancelResponse](ctx, c.rpc, serviceTasks, "CancelTasks", req)
}

// CountTasks counts tasks.
func (c *Client) CountTasks(ctx context.Context, req *pb.TasksCountRequest) (*pb.TasksCount, error) {
	return call[pb.TasksCount](ctx, c.rpc, serviceTasks, "CountTasks", req)
}
