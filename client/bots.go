package client

import (
	"context"

	pb "github.com/skepdev/skep/api/swarmingpb"
)

const serviceBots = "swarming.v2.Bots"

// GetBot returns a bot. A bot that is gone is put together from its last event, with deleted set.
func (c *Client) GetBot(ctx context.Context, req *pb.BotRequest) (*pb.BotInfo, error) {
	return call[pb.BotInfo](ctx, c.rpc, serviceBots, "GetBot", req)
}

// DeleteBot forgets a bot and gives up its task. A bot that still runs comes back with its next call.
func (c *Client) DeleteBot(ctx context.Context, req *pb.BotRequest) (*pb.DeleteResponse, error) {
	return call[pb.DeleteResponse](ctx, c.rpc, serviceBots, "DeleteBot", req)
}

// ListBotEvents returns the history of a bot, newest first.
func (c *Client) ListBotEvents(ctx context.Context, req *pb.BotEventsRequest) (*pb.BotEventsResponse, error) {
	return call[pb.BotEventsResponse](ctx, c.rpc, serviceBots, "ListBotEvents", req)
}

// TerminateBot queues a task that makes a bot end. A second call finds the task of the first.
func (c *Client) TerminateBot(ctx context.Context, req *pb.TerminateRequest) (*pb.TerminateResponse, error) {
	return call[pb.TerminateResponse](ctx, c.rpc, serviceBots, "TerminateBot", req)
}

// ListBotTasks returns the runs of a bot, newest first.
func (c *Client) ListBotTasks(ctx context.Context, req *pb.BotTasksRequest) (*pb.TaskListResponse, error) {
	return call[pb.TaskListResponse](ctx, c.rpc, serviceBots, "ListBotTasks", req)
}

// ListBots returns bots in order of their ids.
func (c *Client) ListBots(ctx context.Context, req *pb.BotsRequest) (*pb.BotInfoListResponse, error) {
	return call[pb.BotInfoListResponse](ctx, c.rpc, serviceBots, "ListBots", req)
}

// CountBots counts bots.
func (c *Client) CountBots(ctx context.Context, req *pb.BotsCountRequest) (*pb.BotsCount, error) {
	return call[pb.BotsCount](ctx, c.rpc, serviceBots, "CountBots", req)
}

// GetBotDimensions returns every dimension that bots of a pool have, or of all visible pools.
func (c *Client) GetBotDimensions(ctx context.Context, req *pb.BotsDimensionsRequest) (*pb.BotsDimensions, error) {
	return call[pb.BotsDimensions](ctx, c.rpc, serviceBots, "GetBotDimensions", req)
}
