// Command busybot stands for skep-bot in an image of deploy/bot-image: the
// first process of a container, a bot with the lock that bots have, and its
// task, which is done when /b/done is there. Each writes what signals it gets to
// /b/signals, and does nothing more about them.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	who := os.Args[1] // container, bot, task
	signals := make(chan os.Signal, 10)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		for s := range signals {
			f, err := os.OpenFile("/b/signals", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
			check(err)
			_, err = fmt.Fprintln(f, who, s)
			check(err)
			check(f.Close())
		}
	}()
	switch who {
	case "container":
		start("bot")
	case "bot":
		const path = "/b/swarming/swarming.lck"
		check(os.MkdirAll(filepath.Dir(path), 0o755))
		lock, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
		check(err)
		check(syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB))
		check(lock.Truncate(0))
		_, err = fmt.Fprint(lock, os.Getpid())
		check(err)
		start("task", lock) // which has the open file, too
	case "task":
		for {
			if _, err := os.Stat("/b/done"); err == nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

func start(who string, files ...*os.File) {
	cmd := exec.Command("/proc/self/exe", who)
	cmd.ExtraFiles, cmd.Stderr = files, os.Stderr
	check(cmd.Run())
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "busybot:", err)
		os.Exit(1)
	}
}
