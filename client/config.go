package client

import (
	"context"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/skepdev/skep/api/skeppb"
)

const serviceConfig = "skep.v1.Config"

// GetConfig returns the configuration that the server follows, and what it refuses. Its digest is empty when there is
// none.
func (c *Client) GetConfig(ctx context.Context) (*skeppb.ConfigState, error) {
	return call[skeppb.ConfigState](ctx, c.rpc, serviceConfig, "Get", &emptypb.Empty{})
}
