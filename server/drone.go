package server

import (
	"context"
	"net/http"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/skepdev/skep/api/dronepb"
	"github.com/skepdev/skep/queen"
	"github.com/skepdev/skep/store"
)

// droneVersion is the metadata in which a drone says its version.
// spec host.md §3.4.
const droneVersion = "drone-agent-version"

type droneVersionKey struct{}

// withDroneVersion keeps what a drone says of its version for reportDrone.
func withDroneVersion(r *http.Request) *http.Request {
	v := r.Header.Get(droneVersion)
	if v == "" {
		return r
	}
	return r.WithContext(context.WithValue(r.Context(), droneVersionKey{}, v))
}

var droneStatus = map[queen.Status]dronepb.ReportDroneResponse_Status{
	queen.OK:             dronepb.ReportDroneResponse_OK,
	queen.UnknownUUID:    dronepb.ReportDroneResponse_UNKNOWN_UUID,
	queen.VersionRefused: dronepb.ReportDroneResponse_VERSION_REFUSED,
}

// RunQueen ends leases of drones and moves devices until ctx ends.
func (s *Server) RunQueen(ctx context.Context) error { return s.queen.Run(ctx) }

func (s *Server) reportDrone(ctx context.Context, req *dronepb.ReportDroneRequest) (*dronepb.ReportDroneResponse, error) {
	if err := s.mustServer(ctx, permReportDrone); err != nil {
		return nil, err
	}
	version, _ := ctx.Value(droneVersionKey{}).(string)
	r, err := s.queen.Report(ctx, queen.Report{
		UUID: req.DroneUuid, Key: req.RegistrationKey, Capacity: int(req.LoadIndicators.GetDutCapacity()),
		Description: clean(req.DroneDescription), Hive: req.Hive, Version: version,
	})
	if err != nil {
		return nil, err
	}
	s.metrics.reports[r.Status].Add(1)
	out := &dronepb.ReportDroneResponse{Status: droneStatus[r.Status], DroneUuid: r.UUID, Message: r.Message}
	if r.Lease == 0 {
		return out, nil
	}
	out.ExpirationTime, out.Lease = timestamppb.New(r.Expires), durationpb.New(r.Lease)
	for _, d := range r.Duts {
		out.AssignedDuts = append(out.AssignedDuts, d.Name)
		out.Assignments = append(out.Assignments, &dronepb.Assignment{Dut: d.Name, Generation: d.Generation})
		if d.Gone || d.Leaving {
			out.DrainingDuts = append(out.DrainingDuts, d.Name)
		}
	}
	return out, nil
}

func (s *Server) releaseDuts(ctx context.Context, req *dronepb.ReleaseDutsRequest) (*emptypb.Empty, error) {
	if err := s.mustServer(ctx, permReportDrone); err != nil {
		return nil, err
	}
	var duts []store.Dut
	for _, name := range req.Duts {
		duts = append(duts, store.Dut{Name: name})
	}
	for _, a := range req.Assignments {
		duts = append(duts, store.Dut{Name: a.Dut, Generation: a.Generation})
	}
	return &emptypb.Empty{}, s.queen.Release(ctx, req.DroneUuid, duts)
}

func (s *Server) declareDuts(ctx context.Context, req *dronepb.DeclareDutsRequest) (*dronepb.DeclareDutsResponse, error) {
	if err := s.mustServer(ctx, permDeclareDuts); err != nil {
		return nil, err
	}
	d := queen.Declaration{Incremental: req.Incremental, Removed: req.RemovedDuts, Confirmed: req.ConfirmRemoval}
	for _, dut := range req.AvailableDuts {
		d.Duts = append(d.Duts, store.Dut{Name: dut.Name, Hive: dut.Hive})
	}
	c, err := s.queen.Declare(ctx, d)
	if err != nil {
		return nil, err
	}
	return &dronepb.DeclareDutsResponse{Added: int32(c.Added), Removed: int32(c.Removed), Moved: int32(c.Moved)}, nil
}

func (s *Server) listDrones(ctx context.Context, _ *dronepb.ListDronesRequest) (*dronepb.ListDronesResponse, error) {
	if err := s.mustServer(ctx, permInspectDrones); err != nil {
		return nil, err
	}
	drones, err := s.store.Drones(ctx)
	if err != nil {
		return nil, err
	}
	out := &dronepb.ListDronesResponse{}
	for _, d := range drones {
		out.Drones = append(out.Drones, &dronepb.ListDronesResponse_Drone{
			Id: d.UUID, ExpirationTime: timestamppb.New(d.Expires), DroneDescription: d.Description,
			Hive: d.Hive, DutCapacity: uint32(d.Capacity), Version: d.Version,
		})
	}
	return out, nil
}

func (s *Server) listDuts(ctx context.Context, _ *dronepb.ListDutsRequest) (*dronepb.ListDutsResponse, error) {
	if err := s.mustServer(ctx, permInspectDrones); err != nil {
		return nil, err
	}
	duts, err := s.store.Duts(ctx)
	if err != nil {
		return nil, err
	}
	out := &dronepb.ListDutsResponse{}
	for _, d := range duts {
		out.Duts = append(out.Duts, &dronepb.ListDutsResponse_Dut{Id: d.Name, AssignedDrone: d.Drone, Draining: d.Gone || d.Leaving, Hive: d.Hive})
	}
	return out, nil
}
