//go:build !linux

package disk

import "errors"

func mountSmall(string, string) error { return errors.ErrUnsupported }

func unmount(string) {}
