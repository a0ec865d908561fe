package client

import (
	"context"
	"time"

	"github.com/skepdev/skep/api/skeppb"
	pb "github.com/skepdev/skep/api/swarmingpb"

	"google.golang.org/protobuf/types/known/durationpb"
)

// Watch asks once for news of a task: output from byte offset on, or a state other than known. The server holds the
// answer up to wait, at most 50 s. It is not retried: callers loop anyway, and can tell their user of an outage.
func (c *Client) Watch(ctx context.Context, taskID string, offset int64, known pb.TaskState, wait time.Duration) (*skeppb.WatchResponse, error) {
	return call[skeppb.WatchResponse](ctx, c.once, "skep.v1.Tasks", "Watch", &skeppb.WatchRequest{
		TaskId: taskID, Offset: offset, KnownState: known, Wait: durationpb.New(wait),
	})
}
