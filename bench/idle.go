package bench

import "context"

func idle(ctx context.Context, r *run) (*Report, error)     { return nil, nil }
func dispatch(ctx context.Context, r *run) (*Report, error) { return nil, nil }
func overhead(ctx context.Context, r *run) (*Report, error) { return nil, nil }
