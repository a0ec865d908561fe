//go:build !linux

package botcli

import "errors"

func inContainer(e Env) int { return fail(e, errors.New("containers are for Linux")) }
