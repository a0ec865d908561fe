package machines

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/bench/simbot"
)

// crowd are the bots of a cloud's machines. Each comes when its machine was
// asked for, waits for work, and leaves when it is told to.
type crowd struct {
	started chan struct{} // closed when the server is known
	url     string
	dials   chan struct{} // bounds how many come at once

	mu       sync.Mutex
	bots     map[string]*simbot.Bot // that are there, by name
	known    map[string]bool        // names that were made
	firstErr error
	left     map[string]time.Time // by machine, when its bot began to leave
	between  []time.Duration      // from there to the call for the next one
	made     []time.Time
	ending   bool
	wg       sync.WaitGroup
}

func newCrowd() *crowd {
	return &crowd{
		started: make(chan struct{}), dials: make(chan struct{}, 32), bots: map[string]*simbot.Bot{}, known: map[string]bool{}, left: map[string]time.Time{},
	}
}

// serve says where the server is.
func (c *crowd) serve(url string) {
	c.url = url
	close(c.started)
}

// succeeded notes that a machine is asked for.
func (c *crowd) succeeded(vm string) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if at, ok := c.left[vm]; ok {
		c.between = append(c.between, now.Sub(at))
		delete(c.left, vm)
	}
}

// come brings the bot of a machine, once.
func (c *crowd) come(name, vm string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known[name] || c.ending {
		return
	}
	c.known[name] = true
	c.made = append(c.made, time.Now())
	c.wg.Go(func() {
		if err := c.live(name, vm); err != nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.firstErr == nil && !c.ending {
				c.firstErr = fmt.Errorf("bot %s: %w", name, err)
			}
		}
	})
}

// pollWait is how long a poll may be held, in seconds.
const pollWait = 50

func (c *crowd) live(name, vm string) error {
	<-c.started
	c.dials <- struct{}{}
	b, err := simbot.Dial(c.url, name)
	<-c.dials
	if err != nil {
		return err
	}
	defer b.Close()
	c.mu.Lock()
	c.bots[name] = b
	ending := c.ending
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.bots, name)
		c.mu.Unlock()
	}()
	for !ending {
		if err := b.Ask(pollWait); err != nil {
			return err
		}
		cmd, task, err := b.Answer()
		switch {
		case err != nil:
			return err
		case cmd == botapi.CmdTerminate:
			c.mu.Lock()
			c.left[vm] = time.Now()
			c.mu.Unlock()
			return b.Leave(task)
		case cmd != botapi.CmdSleep:
			return fmt.Errorf("it was told to %s %s", cmd, task)
		}
	}
	return nil
}

// there is how many bots are connected.
func (c *crowd) there() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.bots)
}

// took are the times between a bot's leave and the call for its successor.
func (c *crowd) took() []time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]time.Duration(nil), c.between...)
}

// madeSince are the times from then until each later machine was made.
func (c *crowd) madeSince(then time.Time) (out []time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, at := range c.made {
		if at.After(then) {
			out = append(out, at.Sub(then))
		}
	}
	return out
}

// fault is the first thing that went wrong with a bot.
func (c *crowd) fault() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.firstErr
}

// end lets go of all bots.
func (c *crowd) end() error {
	c.mu.Lock()
	c.ending = true
	for _, b := range c.bots {
		_ = b.Close()
	}
	c.mu.Unlock()
	c.wg.Wait()
	return c.fault()
}

// cpuOf is the processor time of a process.
func cpuOf(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * time.Second / 100 // USER_HZ is 100 everywhere
}

// residentOf is the memory of a process that is in RAM, in bytes.
func residentOf(pid int) int64 { return statusOf(pid, "VmRSS:") }

// peakOf is the most that residentOf ever was.
func peakOf(pid int) int64 { return statusOf(pid, "VmHWM:") }

func statusOf(pid int, field string) int64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == field {
			kib, _ := strconv.ParseInt(f[1], 10, 64)
			return kib << 10
		}
	}
	return 0
}
