package client

import (
	"context"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/skepdev/skep/api/dronepb"
	"github.com/skepdev/skep/api/prpc"
)

// ReportDrone registers a drone or prolongs its lease. It is sent once: a drone has its own pauses.
// version is the drone's, a number as text; "" says nothing of it. spec host.md §3.4
func (c *Client) ReportDrone(ctx context.Context, version string, req *dronepb.ReportDroneRequest) (*dronepb.ReportDroneResponse, error) {
	if version != "" {
		ctx = prpc.WithMetadata(ctx, "drone-agent-version", version)
	}
	return call[dronepb.ReportDroneResponse](ctx, c.once, "drone_queen.Drone", "ReportDrone", req)
}

// ReleaseDuts gives devices of a drone back. It is sent once.
func (c *Client) ReleaseDuts(ctx context.Context, req *dronepb.ReleaseDutsRequest) error {
	_, err := call[emptypb.Empty](ctx, c.once, "drone_queen.Drone", "ReleaseDuts", req)
	return err
}

// DeclareDuts says which devices there are.
func (c *Client) DeclareDuts(ctx context.Context, req *dronepb.DeclareDutsRequest) (*dronepb.DeclareDutsResponse, error) {
	return call[dronepb.DeclareDutsResponse](ctx, c.rpc, "drone_queen.InventoryProvider", "DeclareDuts", req)
}

// ListDrones returns the drones of a queen.
func (c *Client) ListDrones(ctx context.Context) (*dronepb.ListDronesResponse, error) {
	return call[dronepb.ListDronesResponse](ctx, c.rpc, "drone_queen.Inspect", "ListDrones", &dronepb.ListDronesRequest{})
}

// ListDuts returns the devices of a queen.
func (c *Client) ListDuts(ctx context.Context) (*dronepb.ListDutsResponse, error) {
	return call[dronepb.ListDutsResponse](ctx, c.rpc, "drone_queen.Inspect", "ListDuts", &dronepb.ListDutsRequest{})
}
