package client

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/skepdev/skep/api/skeppb"
)

const serviceSteer = "skep.v1.Bots"

// DrainBot gives a bot no new work until UndrainBot. What it runs when the
// deadline is over is cancelled; negative = never.
func (c *Client) DrainBot(ctx context.Context, bot, reason string, deadline time.Duration) (*skeppb.BotOrders, error) {
	req := &skeppb.DrainRequest{BotId: bot, Reason: reason}
	if deadline >= 0 {
		req.Deadline = durationpb.New(deadline)
	}
	return call[skeppb.BotOrders](ctx, c.rpc, serviceSteer, "Drain", req)
}

// UndrainBot takes DrainBot back.
func (c *Client) UndrainBot(ctx context.Context, bot, reason string) (*skeppb.BotOrders, error) {
	return call[skeppb.BotOrders](ctx, c.rpc, serviceSteer, "Undrain", &skeppb.SteerRequest{BotId: bot, Reason: reason})
}

// QuarantineBot gives a bot no new work, as it is ill, until UnquarantineBot.
func (c *Client) QuarantineBot(ctx context.Context, bot, reason string) (*skeppb.BotOrders, error) {
	return call[skeppb.BotOrders](ctx, c.rpc, serviceSteer, "Quarantine", &skeppb.SteerRequest{BotId: bot, Reason: reason})
}

// UnquarantineBot takes QuarantineBot back. What the bot says of itself stays.
func (c *Client) UnquarantineBot(ctx context.Context, bot, reason string) (*skeppb.BotOrders, error) {
	return call[skeppb.BotOrders](ctx, c.rpc, serviceSteer, "Unquarantine", &skeppb.SteerRequest{BotId: bot, Reason: reason})
}

// GetOrders returns what a bot was told by these.
func (c *Client) GetOrders(ctx context.Context, bot string) (*skeppb.BotOrders, error) {
	return call[skeppb.BotOrders](ctx, c.rpc, serviceSteer, "GetOrders", &skeppb.SteerRequest{BotId: bot})
}

// ListAlarms returns what somebody should look at.
func (c *Client) ListAlarms(ctx context.Context) (*skeppb.Alarms, error) {
	return call[skeppb.Alarms](ctx, c.rpc, serviceSteer, "ListAlarms", &emptypb.Empty{})
}
