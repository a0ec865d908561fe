package client

import (
	"context"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/skepdev/skep/api/providerpb"
	"github.com/skepdev/skep/api/providerpb/instancespb"
	"github.com/skepdev/skep/api/skeppb"
)

const serviceMachines = "skep.v1.Machines"

// MachineStatus says how pools of machines do; "" = all.
func (c *Client) MachineStatus(ctx context.Context, pool string) (*skeppb.StatusResponse, error) {
	return call[skeppb.StatusResponse](ctx, c.rpc, serviceMachines, "Status", &skeppb.StatusRequest{Pool: pool})
}

// DrainMachine lets a machine go after its task, or a pool keep none until
// UndrainMachine.
func (c *Client) DrainMachine(ctx context.Context, name string) (*skeppb.MachineResponse, error) {
	return call[skeppb.MachineResponse](ctx, c.rpc, serviceMachines, "Drain", &skeppb.MachineRequest{Name: name})
}

// UndrainMachine takes the drain of a pool back.
func (c *Client) UndrainMachine(ctx context.Context, name string) (*skeppb.MachineResponse, error) {
	return call[skeppb.MachineResponse](ctx, c.rpc, serviceMachines, "Undrain", &skeppb.MachineRequest{Name: name})
}

// ReplaceMachine has a machine, or outdated ones of a pool, replaced after
// their tasks.
func (c *Client) ReplaceMachine(ctx context.Context, name string) (*skeppb.MachineResponse, error) {
	return call[skeppb.MachineResponse](ctx, c.rpc, serviceMachines, "Replace", &skeppb.MachineRequest{Name: name})
}

// ReleaseMachinePool takes a pool from the only server that reached its
// machines, whose state is lost.
func (c *Client) ReleaseMachinePool(ctx context.Context, prefix string) (*skeppb.MachineResponse, error) {
	return call[skeppb.MachineResponse](ctx, c.rpc, serviceMachines, "Release", &skeppb.MachineRequest{Name: prefix})
}

// StepMachine runs one step of the provider by its name.
func (c *Client) StepMachine(ctx context.Context, step, id string) (*skeppb.MachineResponse, error) {
	return call[skeppb.MachineResponse](ctx, c.rpc, serviceMachines, "Step", &skeppb.StepRequest{Step: step, Id: id})
}

// GetMachinePool returns a pool of machines that the caller owns.
func (c *Client) GetMachinePool(ctx context.Context, prefix string) (*providerpb.Config, error) {
	return call[providerpb.Config](ctx, c.rpc, "config.Configuration", "Get", &providerpb.GetRequest{Id: prefix})
}

// ListMachinePools returns a page of the pools of machines.
func (c *Client) ListMachinePools(ctx context.Context, req *providerpb.ListRequest) (*providerpb.ListResponse, error) {
	return call[providerpb.ListResponse](ctx, c.rpc, "config.Configuration", "List", req)
}

// UpdateMachinePool resizes a pool of machines that the caller owns.
func (c *Client) UpdateMachinePool(ctx context.Context, req *providerpb.UpdateRequest) (*providerpb.Config, error) {
	return call[providerpb.Config](ctx, c.rpc, "config.Configuration", "Update", req)
}

// ListMachines returns a page of the machines that req selects.
func (c *Client) ListMachines(ctx context.Context, req *instancespb.ListRequest) (*instancespb.ListResponse, error) {
	return call[instancespb.ListResponse](ctx, c.rpc, "instances.Instances", "List", req)
}

// GetMachine returns one machine.
func (c *Client) GetMachine(ctx context.Context, req *instancespb.GetRequest) (*instancespb.Instance, error) {
	return call[instancespb.Instance](ctx, c.rpc, "instances.Instances", "Get", req)
}

// DeleteMachine drains a machine.
func (c *Client) DeleteMachine(ctx context.Context, req *instancespb.DeleteRequest) error {
	_, err := call[emptypb.Empty](ctx, c.rpc, "instances.Instances", "Delete", req)
	return err
}
