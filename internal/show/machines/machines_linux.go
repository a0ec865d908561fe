package machines

import (
	"fmt"
	"os"

	"github.com/skepdev/skep/internal/show/form"
)

// Main runs a demonstration by its name.
func Main(args []string) int {
	if len(args) > 0 {
		if args[0] != "worker" {
			form.Say()
		}
		switch args[0] {
		case "laptop":
			return Laptop()
		case "lab":
			return Lab()
		case "cloud":
			return Cloud()
		case "guest":
			return Guests()
		case "two":
			return Two()
		case "scale":
			return Scale()
		case "worker": // what these kill
			return Worker(args[1:])
		}
	}
	fmt.Fprintln(os.Stderr, "usage: show machines laptop, lab, cloud, guest, scale or two")
	return 2
}
