package client

import (
	"context"

	"github.com/skepdev/skep/api/skeppb"
)

// GetRollout returns where a release of bot code stands.
func (c *Client) GetRollout(ctx context.Context) (*skeppb.Rollout, error) {
	return call[skeppb.Rollout](ctx, c.rpc, "skep.v1.Rollouts", "GetRollout", &skeppb.GetRolloutRequest{})
}

// HaltRollout gives the new release to nobody any more.
func (c *Client) HaltRollout(ctx context.Context, reason string) (*skeppb.Rollout, error) {
	return call[skeppb.Rollout](ctx, c.rpc, "skep.v1.Rollouts", "HaltRollout", &skeppb.HaltRolloutRequest{Reason: reason})
}

// ResumeRollout begins a halted rollout again.
func (c *Client) ResumeRollout(ctx context.Context) (*skeppb.Rollout, error) {
	return call[skeppb.Rollout](ctx, c.rpc, "skep.v1.Rollouts", "ResumeRollout", &skeppb.ResumeRolloutRequest{})
}
