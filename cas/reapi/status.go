package reapi

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// grpcCode is the one table from kinds of errors to gRPC.
var grpcCode = map[skep.Kind]codes.Code{
	skep.Internal: codes.Internal, skep.Invalid: codes.InvalidArgument, skep.NotFound: codes.NotFound,
	skep.Conflict: codes.Aborted, skep.Precondition: codes.FailedPrecondition, skep.Denied: codes.PermissionDenied,
	skep.Unauthenticated: codes.Unauthenticated, skep.Exhausted: codes.ResourceExhausted, skep.Unavailable: codes.Unavailable,
}

// status returns err as clients see it. What nobody classified is logged whole
// and told as "internal error"; what is the digest of the blob that it is
// about, if any.
func (s *Service) status(ctx context.Context, err error, what string) error {
	if err == nil {
		return nil
	}
	var missing *cas.MissingError
	switch st, ok := status.FromError(err); {
	case ok:
		return st.Err()
	case errors.As(err, &missing):
		return status.Error(codes.NotFound, missing.Error()+": it was never written, or has been evicted")
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.Unavailable, "the server is ending; try again")
	}
	kind := skep.KindOf(err)
	if kind == skep.Internal {
		s.log.ErrorContext(ctx, "content-addressed storage failed", "digest", what, "err", err)
		text := "internal error"
		if what != "" {
			text += " with blob " + what
		}
		return status.Error(codes.Internal, text)
	}
	return status.Error(grpcCode[kind], err.Error())
}
