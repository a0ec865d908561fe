package botcli

import (
	"github.com/skepdev/skep/bot"
	"github.com/skepdev/skep/bot/hook/script"
)

// hookHost is the child process in which hooks run. A task of the same user
// must not reach into it: it speaks for the administrator.
func hookHost(Env) int {
	_ = bot.HideProcess()
	return script.Main()
}
