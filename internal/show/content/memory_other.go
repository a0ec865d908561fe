//go:build !linux

package content

import "errors"

func resident(int) (float64, error) { return 0, errors.ErrUnsupported }

func proportional(int) (float64, error) { return 0, errors.ErrUnsupported }
