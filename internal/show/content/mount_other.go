//go:build !linux

package content

import (
	"context"
	"errors"
)

func mountMemory(string, int64) (func() error, error) { return nil, errors.ErrUnsupported }

func mountSharing(context.Context, string, string, int64) (string, func() error, error) {
	return "", nil, errors.ErrUnsupported
}
