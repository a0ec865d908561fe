//go:build !linux && !windows

package botcli

import (
	"context"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/bot/guest"
)

func (v vm) host() (func(string) error, func(context.Context, guest.Service) error, error) {
	return nil, nil, skep.Errorf(skep.Precondition, "bootstrap-vm is for Linux and Windows; here use the script of /bootstrap")
}
