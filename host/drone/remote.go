package drone

import (
	"context"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/dronepb"
	"github.com/skepdev/skep/client"
)

// Remote is the queen of a server.
type Remote struct {
	Client      *client.Client
	Key         string        // of this drone's registration: the same after a restart
	Description string        // the host's name
	Hive        func() string // of the moment
	Version     string        // of this drone, a number; "" = it does not say
}

// Report implements Queen.
func (r *Remote) Report(ctx context.Context, uuid string, capacity int) (Answer, error) {
	resp, err := r.Client.ReportDrone(ctx, r.Version, &dronepb.ReportDroneRequest{
		DroneUuid: uuid, RegistrationKey: r.Key, DroneDescription: r.Description, Hive: r.Hive(),
		LoadIndicators: &dronepb.ReportDroneRequest_LoadIndicators{DutCapacity: uint32(capacity)},
	})
	if err != nil {
		return Answer{}, err
	}
	a := Answer{UUID: resp.DroneUuid, Lease: resp.Lease.AsDuration()}
	if resp.ExpirationTime != nil {
		a.Expires = resp.ExpirationTime.AsTime()
	}
	switch resp.Status {
	case dronepb.ReportDroneResponse_OK:
	case dronepb.ReportDroneResponse_UNKNOWN_UUID:
		return Answer{Unknown: true}, nil
	case dronepb.ReportDroneResponse_VERSION_REFUSED:
		a.Refused = "version: " + resp.Message
	default:
		return Answer{}, skep.Errorf(skep.Unavailable, "the queen answers %s: %s", resp.Status, resp.Message)
	}
	at := map[string]int{}
	for i, name := range resp.AssignedDuts {
		at[name] = i
		a.Duts = append(a.Duts, Assignment{Dut: name})
	}
	for _, d := range resp.DrainingDuts {
		if i, ok := at[d]; ok {
			a.Duts[i].Draining = true
		}
	}
	for _, d := range resp.Assignments {
		if i, ok := at[d.Dut]; ok {
			a.Duts[i].Generation = d.Generation
		}
	}
	return a, nil
}

// Release implements Queen.
func (r *Remote) Release(ctx context.Context, uuid string, duts []Assignment) error {
	req := &dronepb.ReleaseDutsRequest{DroneUuid: uuid}
	for _, d := range duts {
		if d.Generation == 0 {
			req.Duts = append(req.Duts, d.Dut)
			continue
		}
		req.Assignments = append(req.Assignments, &dronepb.Assignment{Dut: d.Dut, Generation: d.Generation})
	}
	return r.Client.ReleaseDuts(ctx, req)
}
