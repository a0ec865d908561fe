// Package localsocket is the Unix sockets at which programs of a host are
// asked: made so that no living one is taken away, and open to those who may.
package localsocket

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/skepdev/skep"
)

// Listener is a socket at a path, which Close removes.
type Listener struct {
	*net.UnixListener
	path string
	hide sync.Once
}

// Hide removes the path, once: nobody new finds it, and somebody else may have
// it. Those who are on their way are accepted still.
func (l *Listener) Hide() (err error) {
	l.hide.Do(func() { err = ignoreGone(os.Remove(l.path)) })
	return err
}

// Close ends it. Until then nobody else takes the path.
func (l *Listener) Close() error { return errors.Join(l.Hide(), l.UnixListener.Close()) }

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Listen makes a socket at path with a mode, and a group unless gid is
// negative, before anybody can reach it. What a killed program left there is
// removed, as by Clear, whose errors it has; of several that want the path at
// once, one gets it.
func Listen(path string, mode fs.FileMode, gid int) (*Listener, error) {
	unlock, err := lockDir(path)
	if err != nil {
		return nil, skep.Errorf(skep.Precondition, "the directory of the socket %s: %w", path, err)
	}
	defer unlock()
	if err := Clear(path); err != nil {
		return nil, err
	}
	l, err := bind(path, mode, gid)
	if err != nil {
		return nil, skep.Errorf(skep.Precondition, "the socket %s: %w; name another path for it", path, err)
	}
	return &Listener{UnixListener: l, path: path}, nil
}

// NewServer returns a server of a socket. Whom may returns an error for is told
// so: 403, with a reason and a sentence.
func NewServer(h http.Handler, may func(net.Conn) error) *http.Server {
	type refusal struct{}
	return &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			err, _ := r.Context().Value(refusal{}).(error)
			if err == nil {
				h.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusForbidden)
			_ = json.NewEncoder(w).Encode(map[string]string{"reason": skep.Denied.String(), "error": err.Error()})
		}),
		ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, refusal{}, may(c))
		},
	}
}

// answerTime is how long a listener may take to let a connection in. One that
// lives and is slow is not taken for dead: only a refusal is.
const answerTime = time.Second

// Clear removes a socket at path that nobody listens at any more, as a killed
// program leaves it. Nil when nothing is there.
//
// Errors: Conflict when somebody listens there, Precondition when what is there
// is no socket or cannot be removed. Both leave it alone.
func Clear(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return skep.Errorf(skep.Precondition, "the socket %s: %w", path, err)
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return skep.Errorf(skep.Precondition, "%s is there and is no socket; remove it, or name another path for the socket", path)
	}
	switch err := dial(path); {
	case errors.Is(err, fs.ErrPermission):
		return skep.Errorf(skep.Precondition, "the socket %s is another user's, and whether somebody listens there cannot be told; remove it, or name another path for this program's", path)
	case err == nil, !refused(err) && !errors.Is(err, fs.ErrNotExist):
		return skep.Errorf(skep.Conflict, "another program listens at %s; stop it, or name another path for this one's socket", path)
	}
	if err := ignoreGone(os.Remove(path)); err != nil {
		return skep.Errorf(skep.Precondition, "the socket %s, where nobody listens any more: %w", path, err)
	}
	return nil
}

func dial(path string) error {
	c, err := net.DialTimeout("unix", path, answerTime)
	if err == nil {
		_ = c.Close()
	}
	return err
}
