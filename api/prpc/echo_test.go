package prpc

import (
	"context"
	"testing"

	pb "github.com/skepdev/skep/api/swarmingpb"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

const echoPath = "/prpc/echo.Echo/Say"

// echoService is a service with one method, Say, from a pair to a pair.
func echoService(t testing.TB) protoreflect.ServiceDescriptor {
	t.Helper()
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: proto.String("echo.proto"), Package: proto.String("echo"), Syntax: proto.String("proto3"),
		Dependency: []string{"swarmingpb/common.proto"},
		Service: []*descriptorpb.ServiceDescriptorProto{{
			Name: proto.String("Echo"),
			Method: []*descriptorpb.MethodDescriptorProto{{
				Name:      proto.String("Say"),
				InputType: proto.String(".swarming.v2.StringListPair"), OutputType: proto.String(".swarming.v2.StringListPair"),
			}},
		}},
	}, protoregistry.GlobalFiles)
	if err != nil {
		t.Fatal(err)
	}
	return file.Services().Get(0)
}

type pair = pb.StringListPair

// echoServer serves Say with say, or says what it heard when say is nil.
func echoServer(t testing.TB, opt Options, say func(context.Context, *pair) (*pair, error)) *Server {
	t.Helper()
	if say == nil {
		say = func(_ context.Context, p *pair) (*pair, error) { return p, nil }
	}
	s := NewServer(opt)
	if err := s.Register(echoService(t), Methods{"Say": Unary(say)}); err != nil {
		t.Fatal(err)
	}
	return s
}

func encode(t testing.TB, m proto.Message) string {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
