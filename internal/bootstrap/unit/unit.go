// Package unit is the systemd unit of a bot. The bootstrap script and skep-bot's
// bootstrap-vm install the same one. It needs no templates, which skep-bot does
// without.
package unit

import (
	_ "embed"
	"strings"
)

//go:embed skep-bot.service
var text string

// Name is what the unit is called.
const Name = "skep-bot.service"

// Data fills it in. Whoever does checks that the values are good in a unit.
type Data struct {
	Server string // for people
	User   string // account
	Dir    string // the bot's directory
	Extra  string // more lines of the service, each with its end
}

// Fill returns the unit.
func Fill(d Data) string {
	return strings.NewReplacer("@SERVER@", d.Server, "@USER@", d.User, "@DIR@", d.Dir, "@EXTRA@\n", d.Extra).Replace(text)
}
