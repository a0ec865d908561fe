package prpc

import (
	"context"
	"maps"
	"slices"

	"github.com/skepdev/skep/api/prpc/discoverypb"

	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// registerDiscovery makes the server describe itself (spec/prpc.md §10).
func (s *Server) registerDiscovery() error {
	service := discoverypb.File_prpc_discoverypb_discovery_proto.Services().ByName("Discovery")
	err := s.Register(service, Methods{
		"Describe": Unary(func(context.Context, *discoverypb.Void) (*discoverypb.DescribeResponse, error) {
			return s.description(), nil
		}),
	})
	if err == nil {
		s.methods[string(service.FullName())+"/Describe"].open = true
	}
	return err
}

// description returns the descriptors of all services, made once.
func (s *Server) description() *discoverypb.DescribeResponse {
	if d := s.describe.Load(); d != nil {
		return d
	}
	d := &discoverypb.DescribeResponse{
		Description: &descriptorpb.FileDescriptorSet{},
		Services:    slices.Sorted(maps.Keys(s.services)),
	}
	seen := map[string]bool{}
	for _, name := range d.Services {
		addFile(d.Description, seen, s.services[name].ParentFile())
	}
	s.describe.Store(d)
	return d
}

// addFile adds f and before it what it imports, each once.
func addFile(set *descriptorpb.FileDescriptorSet, seen map[string]bool, f protoreflect.FileDescriptor) {
	if seen[f.Path()] {
		return
	}
	seen[f.Path()] = true
	for i := range f.Imports().Len() {
		addFile(set, seen, f.Imports().Get(i).FileDescriptor)
	}
	set.File = append(set.File, protodesc.ToFileDescriptorProto(f))
}
