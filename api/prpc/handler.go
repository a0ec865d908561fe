package prpc

import (
	"context"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Handler serves one method. Unary makes one.
type Handler struct {
	in, out protoreflect.MessageDescriptor
	request func() proto.Message
	serve   func(context.Context, proto.Message) (proto.Message, error)
}

// Methods are the handlers of a service, by method name.
type Methods map[string]Handler

// message is satisfied by *T where T is a generated message.
type message[T any] interface {
	*T
	proto.Message
}

// Unary makes a Handler of a function with typed messages:
//
//	prpc.Methods{"GetResult": prpc.Unary(h.getResult)} // func (h *handler) getResult(context.Context, *pb.Req) (*pb.Resp, error)
//
// The function gets a request of its own, and must not keep the response after it returned. CallFrom gives it what
// else is known of the call. An error becomes a status as StatusOf says; a nil response without one is INTERNAL.
func Unary[Req, Resp any, PReq message[Req], PResp message[Resp]](f func(context.Context, PReq) (PResp, error)) Handler {
	return Handler{
		in:      PReq(nil).ProtoReflect().Descriptor(),
		out:     PResp(nil).ProtoReflect().Descriptor(),
		request: func() proto.Message { return PReq(new(Req)) },
		serve: func(ctx context.Context, req proto.Message) (proto.Message, error) {
			resp, err := f(ctx, req.(PReq))
			if err != nil || resp == nil {
				return nil, err // a nil *Resp in an interface would not look nil
			}
			return resp, nil
		},
	}
}
