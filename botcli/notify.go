package botcli

import (
	"context"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"
)

// service tells a service manager that asks for it how the bot is: the
// protocol of sd_notify(3). The zero value tells nobody.
type service struct {
	socket   string
	watchdog time.Duration // how often it wants to hear of us; 0 = never
	log      *slog.Logger
}

// openService takes what the service manager left in the environment: it is
// not for the processes that we start, and stays for the next one after exec.
func openService(log *slog.Logger) *service {
	s := &service{socket: os.Getenv("NOTIFY_SOCKET"), log: log}
	if us, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64); err == nil && us > 0 {
		s.watchdog = time.Duration(us) * time.Microsecond
	}
	return s
}

const tellLimit = 5 * time.Second

func (s *service) tell(state string) {
	if s.socket == "" {
		return
	}
	name := s.socket
	if name[0] == '@' {
		name = "\x00" + name[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err == nil {
		_ = c.SetWriteDeadline(time.Now().Add(tellLimit)) // it may not read, and its queue be full
		_, err = c.Write([]byte(state))
		_ = c.Close()
	}
	if err != nil {
		s.log.Warn("the service manager does not hear us", "err", err)
	}
}

// run says that the bot is up and, as long as alive answers, that it lives.
func (s *service) run(ctx context.Context, alive func() bool) {
	if s.socket == "" {
		return
	}
	s.tell("READY=1\nMAINPID=" + strconv.Itoa(os.Getpid()))
	if s.watchdog <= 0 {
		return
	}
	t := time.NewTicker(s.watchdog / 3)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if alive() {
				s.tell("WATCHDOG=1")
			}
		}
	}
}
