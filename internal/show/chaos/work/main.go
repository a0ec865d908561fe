// Command work is the task of the demonstration. It says in a file when it
// starts and ends and prints the output of its run id in several pieces.
//
//	work FILE
//
// Each line of FILE is one write: "start RUN PID MICROSECONDS" or "end …".
// An output that cannot be written ends it with 3 and without an end line.
package main

import (
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/skepdev/skep/internal/show/chaos/payload"
)

func main() { os.Exit(run()) }

func run() int {
	id := os.Getenv("SWARMING_TASK_ID")
	if len(os.Args) != 2 || id == "" {
		fmt.Fprintln(os.Stderr, "work: want a FILE, and a run id in SWARMING_TASK_ID")
		return 2
	}
	f, err := os.OpenFile(os.Args[1], os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		fmt.Fprintln(os.Stderr, "work:", err)
		return 2
	}
	say := func(what string) error {
		_, err := fmt.Fprintf(f, "%s %s %d %d\n", what, id, os.Getpid(), time.Now().UnixMicro())
		return err
	}
	if err := say("start"); err != nil {
		fmt.Fprintln(os.Stderr, "work:", err)
		return 2
	}
	pause := payload.Pause(id) / (payload.Size / payload.Piece)
	for piece := range slices.Chunk(payload.Of(id), payload.Piece) {
		if _, err := os.Stdout.Write(piece); err != nil {
			return 3
		}
		time.Sleep(pause)
	}
	if err := say("end"); err != nil {
		return 2
	}
	return 0
}
