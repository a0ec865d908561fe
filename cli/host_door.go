package cli

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/user"
	"strconv"
	"sync"
	"time"

	"github.com/skepdev/skep"
)

// openDoor listens at the launcher's socket and returns what serves it until
// its context ends. Only root, our own user and, when one is named, members of
// a group come in.
func openDoor(ctx context.Context, path, group string, h http.Handler) (func(context.Context), error) {
	if c, err := net.Dial("unix", path); err == nil {
		_ = c.Close()
		return nil, skep.Errorf(skep.Conflict, "another program listens at %s; give this one a --socket of its own", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	gid, mode := -1, fs.FileMode(0o600)
	if group != "" {
		g, err := user.LookupGroup(group)
		if err != nil {
			return nil, err
		}
		if gid, err = strconv.Atoi(g.Gid); err != nil {
			return nil, err
		}
		mode = 0o660
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	err = os.Chmod(path, mode)
	if gid >= 0 {
		err = errors.Join(err, os.Chown(path, -1, gid))
	}
	if err != nil {
		_ = l.Close()
		return nil, err
	}
	srv := &http.Server{Handler: h, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10}
	return func(ctx context.Context) {
		var serving sync.WaitGroup
		serving.Go(func() { _ = srv.Serve(peers{l, gid}) }) // ends with Close
		<-ctx.Done()
		_ = srv.Close()
		serving.Wait()
	}, nil
}

// peers lets only those in who may.
type peers struct {
	net.Listener
	gid int
}

func (p peers) Accept() (net.Conn, error) {
	for {
		c, err := p.Listener.Accept()
		if err != nil {
			return nil, err
		}
		uid, err := peerUser(c)
		if err == nil && (uid == 0 || uid == os.Geteuid() || p.member(uid)) {
			return c, nil
		}
		_ = c.Close()
	}
}

func (p peers) member(uid int) bool {
	if p.gid < 0 {
		return false
	}
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return false
	}
	ids, err := u.GroupIds()
	if err != nil {
		return false
	}
	for _, id := range ids {
		if id == strconv.Itoa(p.gid) {
			return true
		}
	}
	return false
}
