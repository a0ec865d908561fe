package client

import (
	"context"

	pb "github.com/skepdev/skep/api/swarmingpb"

	"google.golang.org/protobuf/types/known/emptypb"
)

const serviceSwarming = "swarming.v2.Swarming"

// GetDetails returns versions and addresses.
func (c *Client) GetDetails(ctx context.Context) (*pb.ServerDetails, error) {
	return call[pb.ServerDetails](ctx, c.rpc, serviceSwarming, "GetDetails", &emptypb.Empty{})
}

// GetToken makes a bootstrap token.
func (c *Client) GetToken(ctx context.Context) (*pb.BootstrapToken, error) {
	return call[pb.BootstrapToken](ctx, c.rpc, serviceSwarming, "GetToken", &emptypb.Empty{})
}

// GetPermissions tells the caller what it may do.
func (c *Client) GetPermissions(ctx context.Context, req *pb.PermissionsRequest) (*pb.ClientPermissions, error) {
	return call[pb.ClientPermissions](ctx, c.rpc, serviceSwarming, "GetPermissions", req)
}
