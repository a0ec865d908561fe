//go:build !linux

package bench

import (
	"context"
	"errors"
)

var errNeedsLinux = errors.New("containers need Linux")

func warmPool(context.Context, *run) (*Report, error)  { return nil, errNeedsLinux }
func cleanRoom(context.Context, *run) (*Report, error) { return nil, errNeedsLinux }
func refill(context.Context, *run) (*Report, error)    { return nil, errNeedsLinux }
