package server

import (
	"context"
	"errors"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/dronepb"
	"github.com/skepdev/skep/api/providerpb"
	"github.com/skepdev/skep/api/providerpb/instancespb"
	"github.com/skepdev/skep/api/providerpb/projectspb"
	"github.com/skepdev/skep/api/prpc"
	"github.com/skepdev/skep/api/skeppb"
	pb "github.com/skepdev/skep/api/swarmingpb"
)

// before refuses callers who may do nothing before their body is read; for the
// others each method decides.
func (s *Server) before(ctx context.Context) (context.Context, error) {
	if c := callerOf(ctx); c.scope == "" && !isVMCall(ctx) {
		return ctx, skep.Errorf(skep.Unauthenticated, "this server wants a token (SKEP_TOKEN)")
	}
	return ctx, nil
}

// register fills the RPC surface. A method without a handler does not start.
func (s *Server) register() error {
	swarming := pb.File_swarmingpb_services_proto.Services()
	skepTasks := skeppb.File_skeppb_tasks_proto.Services().ByName("Tasks")
	drones := dronepb.File_dronepb_drone_queen_proto.Services()
	service := func(name protoreflect.Name) protoreflect.ServiceDescriptor { return swarming.ByName(name) }
	return errors.Join(
		s.rpc.Register(service("Tasks"), prpc.Methods{
			"GetResult":        prpc.Unary(s.getResult),
			"BatchGetResult":   prpc.Unary(s.batchGetResult),
			"GetRequest":       prpc.Unary(s.getRequest),
			"CancelTask":       prpc.Unary(s.cancelTask),
			"GetStdout":        prpc.Unary(s.getStdout),
			"NewTask":          prpc.Unary(s.newTask),
			"ListTasks":        prpc.Unary(s.listTasks),
			"ListTaskStates":   prpc.Unary(s.listTaskStates),
			"ListTaskRequests": prpc.Unary(s.listTaskRequests),
			"CancelTasks":      prpc.Unary(s.cancelTasks),
			"CountTasks":       prpc.Unary(s.countTasks),
		}),
		s.rpc.Register(service("Bots"), prpc.Methods{
			"GetBot":           prpc.Unary(s.getBot),
			"DeleteBot":        prpc.Unary(s.deleteBot),
			"ListBotEvents":    prpc.Unary(s.listBotEvents),
			"TerminateBot":     prpc.Unary(s.terminateBot),
			"ListBotTasks":     prpc.Unary(s.listBotTasks),
			"ListBots":         prpc.Unary(s.listBots),
			"CountBots":        prpc.Unary(s.countBots),
			"GetBotDimensions": prpc.Unary(s.getBotDimensions),
		}),
		s.rpc.Register(service("Swarming"), prpc.Methods{
			"GetDetails":     prpc.Unary(s.getDetails),
			"GetToken":       prpc.Unary(s.getToken),
			"GetPermissions": prpc.Unary(s.getPermissions),
		}),
		s.rpc.Register(skeppb.File_skeppb_rollouts_proto.Services().ByName("Rollouts"), prpc.Methods{
			"GetRollout":    prpc.Unary(s.getRollout),
			"HaltRollout":   prpc.Unary(s.haltRollout),
			"ResumeRollout": prpc.Unary(s.resumeRollout),
		}),
		s.rpc.Register(skeppb.File_skeppb_config_proto.Services().ByName("Config"), prpc.Methods{
			"Get": prpc.Unary(s.getConfig),
		}),
		s.rpc.Register(skeppb.File_skeppb_bots_proto.Services().ByName("Bots"), prpc.Methods{
			"Drain":        prpc.Unary(s.drainBot),
			"Undrain":      prpc.Unary(s.undrainBot),
			"Quarantine":   prpc.Unary(s.quarantineBot),
			"Unquarantine": prpc.Unary(s.unquarantineBot),
			"GetOrders":    prpc.Unary(s.getOrders),
			"ListAlarms":   prpc.Unary(s.listAlarms),
		}),
		s.rpc.Register(drones.ByName("Drone"), prpc.Methods{
			"ReportDrone": prpc.Unary(s.reportDrone),
			"ReleaseDuts": prpc.Unary(s.releaseDuts),
		}),
		s.rpc.Register(drones.ByName("InventoryProvider"), prpc.Methods{
			"DeclareDuts": prpc.Unary(s.declareDuts),
		}),
		s.rpc.Register(drones.ByName("Inspect"), prpc.Methods{
			"ListDrones": prpc.Unary(s.listDrones),
			"ListDuts":   prpc.Unary(s.listDuts),
		}),
		s.rpc.Register(providerpb.File_providerpb_config_proto.Services().ByName("Configuration"), prpc.Methods{
			"Get":    prpc.Unary(s.getMachinePool),
			"List":   prpc.Unary(s.listMachinePools),
			"Update": prpc.Unary(s.updateMachinePool),
			"Ensure": prpc.Unary(s.ensureMachinePool),
			"Delete": prpc.Unary(s.deleteMachinePool),
		}),
		s.rpc.Register(instancespb.File_providerpb_instancespb_instances_proto.Services().ByName("Instances"), prpc.Methods{
			"Get":    prpc.Unary(s.getMachine),
			"List":   prpc.Unary(s.listMachines),
			"Delete": prpc.Unary(s.deleteMachine),
		}),
		s.rpc.Register(projectspb.File_providerpb_projectspb_projects_proto.Services().ByName("Projects"), prpc.Methods{
			"Get":    prpc.Unary(s.getProject),
			"List":   prpc.Unary(s.listProjects),
			"Ensure": prpc.Unary(s.ensureProject),
			"Delete": prpc.Unary(s.deleteProject),
		}),
		s.rpc.Register(skeppb.File_skeppb_machines_proto.Services().ByName("Machines"), prpc.Methods{
			"Status":  prpc.Unary(s.machineStatus),
			"Drain":   prpc.Unary(s.drainMachine),
			"Undrain": prpc.Unary(s.undrainMachine),
			"Replace": prpc.Unary(s.replaceMachine),
			"Release": prpc.Unary(s.releaseMachines),
			"Step":    prpc.Unary(s.stepMachine),
		}),
		s.rpc.Register(skepTasks, prpc.Methods{
			"Watch": prpc.Unary(s.watch),
		}),
	)
}
