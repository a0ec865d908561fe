package cli

import (
	"context"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/user"
	"strconv"
	"sync"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/localsocket"
	"github.com/skepdev/skep/internal/peercred"
)

// openDoor listens at the launcher's socket and returns what serves it until
// its context ends. Only root, our own user and, when one is named, members of
// a group come in.
func openDoor(path, group string, h http.Handler) (func(context.Context), error) {
	gid, mode := -1, fs.FileMode(0o600)
	if group != "" {
		g, err := user.LookupGroup(group)
		if err != nil {
			return nil, skep.Errorf(skep.Invalid, "--socket-group: %w", err)
		}
		if gid, err = strconv.Atoi(g.Gid); err != nil {
			return nil, err
		}
		mode = 0o660
	}
	l, err := localsocket.Listen(path, mode, gid)
	if err != nil {
		return nil, err
	}
	srv := localsocket.NewServer(h, func(c net.Conn) error { return mayAsk(c, gid) })
	return func(ctx context.Context) {
		var serving sync.WaitGroup
		serving.Go(func() { _ = srv.Serve(l) }) // ends with Close
		<-ctx.Done()
		_ = srv.Close()
		serving.Wait()
	}, nil
}

func mayAsk(c net.Conn, gid int) error {
	cred, err := peercred.Of(c)
	switch {
	case err != nil:
		return skep.Errorf(skep.Denied, "the kernel does not say who you are: %v", err)
	case cred.UID == 0 || cred.UID == os.Geteuid() || cred.InGroup(gid):
		return nil
	}
	return skep.Errorf(skep.Denied, "user %d may not ask this launcher; root may, and members of its --socket-group", cred.UID)
}
