//go:build !windows

package botcli

import (
	"errors"

	"github.com/skepdev/skep/bot"
)

func runService(e Env) int {
	return fail(e, errors.New("service is for the service manager of Windows; elsewhere /bootstrap installs a unit that runs start_slave"))
}

func heedService(string, *bot.Bot) error { return nil }
