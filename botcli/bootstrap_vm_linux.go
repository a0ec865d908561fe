package botcli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/bot/guest"
	"github.com/skepdev/skep/internal/atomicfile"
	"github.com/skepdev/skep/internal/bootstrap/unit"
	"github.com/skepdev/skep/internal/proc"
)

// systemd is where units are and who is told of them.
type systemd struct {
	dir  string
	tell func(ctx context.Context, args ...string) error
}

func (v vm) host() (own func(string) error, install func(context.Context, guest.Service) error, err error) {
	account, err := user.Lookup(v.user)
	if err != nil {
		return nil, nil, skep.Errorf(skep.Precondition, "there is no account %s; make it, or name another with --user", v.user)
	}
	uid, err1 := strconv.Atoi(account.Uid)
	gid, err2 := strconv.Atoi(account.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return nil, nil, err
	}
	s := &systemd{dir: "/etc/systemd/system", tell: func(ctx context.Context, args ...string) error {
		_, err := proc.Output(ctx, nil, "systemctl", args...)
		return err
	}}
	return func(path string) error { return os.Lchown(path, uid, gid) },
		func(ctx context.Context, g guest.Service) error { return s.install(ctx, v, g) }, nil
}

// install puts the unit in place and has it started, now and with the machine.
// A bot that runs goes on: it is not known to be idle. What it waits for may be
// waiting for us, so that nobody waits here.
func (s *systemd) install(ctx context.Context, v vm, g guest.Service) error {
	extra := []string{
		"Environment=SWARMING_BOT_ID=" + g.Bot,
		"Environment=" + envIdentity + "=gce",
		"Environment=SWARMING_EXTERNAL_BOT_SETUP=1", // for hooks of others: the start of the bot is taken care of
		"EnvironmentFile=-/etc/swarming/env",
		"LimitNOFILE=50000",
	}
	if v.metadata != metadataHost {
		extra = append(extra, "Environment="+envMetadata+"="+v.metadata)
	}
	text := unit.Fill(unit.Data{Server: g.Server, User: v.user, Dir: g.Dir, Extra: strings.Join(extra, "\n") + "\n"})
	if strings.ContainsAny(g.Server+v.metadata+g.Bot, "% \t\r\n\"'\\$") {
		return skep.Errorf(skep.Invalid, "the names of servers hold characters that a unit cannot")
	}
	path := filepath.Join(s.dir, unit.Name)
	has, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if string(has) != text {
		if err := atomicfile.Write(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	for _, args := range [][]string{{"daemon-reload"}, {"enable", unit.Name}, {"start", "--no-block", unit.Name}} {
		if err := s.tell(ctx, args...); err != nil {
			return fmt.Errorf("systemctl %s: %w", strings.Join(args, " "), err)
		}
	}
	return nil
}
