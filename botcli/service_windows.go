package botcli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"

	"github.com/skepdev/skep/bot"
	"github.com/skepdev/skep/internal/backoff"
	"github.com/skepdev/skep/internal/proc"
)

const (
	serviceName   = "skep-bot"
	stopPatience  = 30 * time.Second // that the service manager is asked for, again and again, while the bot drains
	stopHeartbeat = 5 * time.Second
)

// runService is what the service manager starts: it keeps the bot of this
// directory running, ends with it when it ends by itself with code 0, and has
// it drain when the service is stopped. The bot is a process of its own, which
// replaces itself when it updates; it hears of a stop by an event of Windows.
func runService(e Env) int {
	is, err := svc.IsWindowsService()
	if err != nil {
		return fail(e, err)
	}
	if !is {
		return fail(e, fmt.Errorf("this is for the service manager: sc.exe create %s binPath= \"…\\swarming_bot.exe service\"", serviceName))
	}
	s, err := openSite()
	if err != nil {
		return fail(e, err)
	}
	h, err := newKeeper(s)
	if err != nil {
		return fail(e, err)
	}
	if err := svc.Run(serviceName, h); err != nil {
		return fail(e, err)
	}
	return 0
}

// keeper is the service: svc.Handler.
type keeper struct {
	exe         string
	drain, stop windows.Handle // events
}

// eventName is one for a bot's directory, so that a service that was killed
// finds the bot that it left behind.
func eventName(dir, what string) (*uint16, error) {
	sum := sha256.Sum256([]byte(strings.ToLower(dir)))
	return windows.UTF16PtrFromString(`Local\skep-bot-` + hex.EncodeToString(sum[:8]) + "-" + what)
}

func newKeeper(s *site) (*keeper, error) {
	k := &keeper{exe: s.exe}
	for what, h := range map[string]*windows.Handle{"drain": &k.drain, "stop": &k.stop} {
		name, err := eventName(s.dir, what)
		if err != nil {
			return nil, err
		}
		// Only this account and administrators may set it: the default of a service.
		if *h, err = windows.CreateEvent(nil, 1, 0, name); err != nil && err != windows.ERROR_ALREADY_EXISTS { //nolint:errorlint // a number
			return nil, fmt.Errorf("make the event %s: %w", what, err)
		}
		if err := windows.ResetEvent(*h); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// Execute implements svc.Handler.
func (k *keeper) Execute(_ []string, requests <-chan svc.ChangeRequest, status chan<- svc.Status) (bool, uint32) {
	const accepts = svc.AcceptStop | svc.AcceptShutdown
	status <- svc.Status{State: svc.StartPending}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan struct{})
	go func() { defer close(ended); k.keep(ctx) }()
	status <- svc.Status{State: svc.Running, Accepts: accepts}
	now := svc.Status{State: svc.Running, Accepts: accepts}
	beat := time.NewTicker(stopHeartbeat)
	defer beat.Stop()
	for {
		select {
		case <-ended:
			status <- svc.Status{State: svc.StopPending}
			return false, 0
		case <-beat.C:
			if now.State == svc.StopPending {
				now.CheckPoint++
				status <- now
			}
		case r := <-requests:
			switch r.Cmd {
			case svc.Interrogate:
				status <- now
			case svc.Stop, svc.Shutdown:
				cancel() // it is not started again
				event := k.drain
				if r.Cmd == svc.Shutdown { // Windows waits for seconds
					event = k.stop
				}
				_ = windows.SetEvent(event)
				now = svc.Status{State: svc.StopPending, Accepts: svc.AcceptShutdown, CheckPoint: 1, WaitHint: uint32(stopPatience.Milliseconds())}
				status <- now
			}
		}
	}
}

// keep runs the bot, again after a fault, until it ends well or ctx ends.
func (k *keeper) keep(ctx context.Context) {
	pause := backoff.Exponential{Min: 2 * time.Second, Max: time.Minute}
	for ctx.Err() == nil {
		began := time.Now()
		p, err := proc.Start(&proc.Cmd{Path: k.exe, Args: []string{k.exe, "start_slave"}, Env: append(os.Environ(), envService+"=1")})
		if err == nil && p.Wait().Code == 0 {
			return
		}
		if time.Since(began) > time.Minute {
			pause.Reset()
		}
		_ = pause.Sleep(ctx, 0)
	}
}

// heedService drains or stops the bot when the service of its directory is
// told to stop.
func heedService(dir string, b *bot.Bot) error {
	if os.Getenv(envService) == "" {
		return nil
	}
	var events [2]windows.Handle
	for i, what := range []string{"drain", "stop"} {
		name, err := eventName(dir, what)
		if err != nil {
			return err
		}
		if events[i], err = windows.OpenEvent(windows.SYNCHRONIZE, false, name); err != nil {
			return fmt.Errorf("the service's event %s: %w", what, err)
		}
	}
	go func() {
		if n, err := windows.WaitForMultipleObjects(events[:], false, windows.INFINITE); err == nil && n == windows.WAIT_OBJECT_0 {
			b.Drain("the service is stopped")
		}
		if _, err := windows.WaitForSingleObject(events[1], windows.INFINITE); err == nil {
			b.Stop("Windows shuts down")
		}
	}()
	return nil
}
