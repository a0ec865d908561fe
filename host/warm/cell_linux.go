package warm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skepdev/skep/host/pool"
	"github.com/skepdev/skep/host/room"
	"github.com/skepdev/skep/internal/debris"
	"github.com/skepdev/skep/internal/jsonfd"
	"github.com/skepdev/skep/internal/peercred"
	"github.com/skepdev/skep/internal/proc"
	"github.com/skepdev/skep/reconcile"
)

// cellState is where in its life a room is.
type cellState string

const (
	cellMaking cellState = "making" // a creator is at it; ends in ready, or in ending when it fails
	cellReady  cellState = "ready"  // in stock; a get takes it, its own end or too much stock ends it
	cellLeased cellState = "leased" // handed out; back to ready when its client goes and did nothing in it
	cellUsed   cellState = "used"   // confirmed, or something was done in it; never in stock again
	cellEnding cellState = "ending" // an ender is at it, until nothing of it is left
)

// cellMoves is the whole life of a room: a move not listed here is a bug.
var cellMoves = map[cellState][]cellState{
	cellMaking: {cellReady, cellEnding},
	cellReady:  {cellLeased, cellEnding},
	cellLeased: {cellReady, cellUsed, cellEnding},
	cellUsed:   {cellEnding},
}

// cell is one room. Its fields are the service's mutex's.
type cell struct {
	note
	state   cellState
	seen    time.Time // when it last said that it lives
	out     time.Time // when it was handed out
	purpose string
	lease   reconcile.Lease
	owner   *client       // nil = it waits for one until expiry
	uid     uint32        // of the client that it went to
	linger  time.Duration // how long it outlives its connection
	expiry  *time.Timer

	body *body // nil = it never said hello, or an earlier service's
}

func newCell(n note, state cellState) *cell {
	return &cell{note: n, state: state}
}

func (c *cell) move(to cellState) {
	if c.state == to {
		return
	}
	if !slices.Contains(cellMoves[c.state], to) {
		panic(fmt.Sprintf("room %s: %s cannot become %s", c.Spec.Name, c.state, to))
	}
	c.state = to
}

// body is the live end of a room: its first process.
type body struct {
	conn  *jsonfd.Conn
	pidfd int // of the first process; -1 once closed

	mu    sync.Mutex
	calls map[uint64]func(room.News) // by order
	last  uint64
	over  chan struct{} // closed when the connection has ended
}

// make makes a room: a step of the makers.
func (s *Service) make(ctx context.Context, name string) (time.Duration, error) {
	s.mu.Lock()
	c := s.rooms[name]
	if c == nil || c.state != cellMaking {
		s.mu.Unlock()
		return 0, nil
	}
	s.mu.Unlock()
	began := time.Now()
	b, err := s.birth(ctx, c)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil || s.stopping {
		if s.makeCtx.Err() == nil {
			s.totals.Failed++
			s.failed("make", err.Error())
			s.paused = cut(err.Error(), 200)
			pause := s.circuit.Failed("make")
			s.log.Warn("room not made", "room", name, "err", err, "took", time.Since(began), "again", pause)
		}
		if b != nil {
			c.body = b
		}
		s.retire(c)
		return 0, nil
	}
	s.totals.Made++
	s.paused = ""
	s.circuit.Succeeded("make")
	s.took += (time.Since(began) - s.took) / 4
	s.metrics.made.Observe(time.Since(began).Seconds())
	c.body, c.seen = b, s.o.Now()
	s.ready(c)
	s.fill()
	go s.attend(c, b)
	return 0, nil
}

// birth makes the room, after it is in the journal, and waits for its hello.
func (s *Service) birth(ctx context.Context, c *cell) (*body, error) {
	spec := &c.Spec
	raw, err := json.Marshal(c.note)
	if err != nil {
		return nil, err
	}
	if err := s.journal.Begin(ctx, reconcile.Entry{Key: spec.Name, Step: "make", At: s.o.Now().UTC(), Note: raw}); err != nil {
		return nil, err
	}
	l, err := s.layOut(spec)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	if c.Group != nil {
		if err := c.Group.Make(); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, birthLimit, fmt.Errorf("the container did not come up within %s", birthLimit))
	defer cancel()
	type hello struct {
		b   *body
		err error
	}
	came, greeted := make(chan hello, 1), make(chan struct{})
	spec.Greeted = greeted
	go func() {
		b, err := s.greet(l, spec)
		close(greeted)
		came <- hello{b, err}
	}()
	unblock := context.AfterFunc(ctx, func() { _ = l.SetDeadline(time.Unix(1, 0)) })
	defer unblock()
	startErr := s.o.Runtime.Start(ctx, spec)
	if startErr != nil {
		_ = l.SetDeadline(time.Unix(1, 0))
	}
	h := <-came
	if err := context.Cause(ctx); err != nil && (startErr != nil || h.err != nil) {
		startErr = errors.Join(err, startErr)
	}
	if startErr != nil {
		return h.b, startErr
	}
	if h.err != nil {
		return nil, fmt.Errorf("no hello from the container: %w", h.err)
	}
	_ = os.Remove(filepath.Join(spec.Run, room.SocketName)) // the room's own users need not see it
	if c.Group != nil {
		if err := c.Group.Take(h.b.pid()); err != nil {
			return h.b, err
		}
		if err := c.Group.Limit(s.o.Limits); err != nil {
			return h.b, err
		}
	}
	return h.b, nil
}

const birthLimit = 60 * time.Second

// layOut makes the room's directory, with the socket that it says hello at.
func (s *Service) layOut(spec *Spec) (*net.UnixListener, error) {
	if err := private(spec.Dir, spec.FirstID); err != nil {
		return nil, err
	}
	for _, sub := range []string{"upper", "work", "root", "run"} {
		if err := os.Mkdir(filepath.Join(spec.Dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	for _, sub := range []string{"upper", "work"} { // the room's, where its runtime mounts them in its user namespace
		if err := os.Chown(filepath.Join(spec.Dir, sub), int(spec.FirstID), int(spec.FirstID)); err != nil {
			return nil, err
		}
	}
	if err := os.Link(s.program, filepath.Join(spec.Run, room.ProgramName)); err != nil {
		return nil, err
	}
	path := filepath.Join(spec.Run, room.SocketName)
	l, err := listenLong(path)
	if err != nil {
		return nil, err
	}
	if err := os.Chown(path, int(spec.FirstID), int(spec.FirstID)); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

// private sees to it that dir is there, and that of all users of the host but
// root only the rooms' root gets into it.
func private(dir string, first uint32) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := os.Chown(dir, 0, int(first)); err != nil {
		return err
	}
	return os.Chmod(dir, 0o710) //nolint:gosec // as said
}

// listenLong listens at a path that may be longer than an address can be.
func listenLong(path string) (*net.UnixListener, error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	return l, nil
}

// greet takes the room's connection and its hello. Nothing of a client's has
// run in the room yet, so the first of its users to connect is the right one.
func (s *Service) greet(l *net.UnixListener, spec *Spec) (*body, error) {
	var uc *net.UnixConn
	for uc == nil {
		peer, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		cred, err := peercred.Of(peer)
		if err == nil && uint32(cred.UID) == spec.FirstID {
			uc = peer
			break
		}
		s.log.Warn("somebody else came to a room's socket", "room", spec.Name, "cred", cred, "err", err)
		_ = peer.Close()
	}
	var err error
	b := &body{conn: jsonfd.NewConn(uc), calls: map[uint64]func(room.News){}, over: make(chan struct{})}
	if b.pidfd, err = peerPidfd(uc); err != nil {
		_ = uc.Close()
		return nil, err
	}
	_ = uc.SetReadDeadline(time.Now().Add(birthLimit))
	line, err := b.conn.Receive()
	var n room.News
	if err == nil {
		err = jsonfd.Decode(line, &n)
	}
	if err == nil && !n.Hello {
		err = errors.New("its first word is no hello")
	}
	if err != nil {
		_ = unix.PidfdSendSignal(b.pidfd, unix.SIGKILL, nil, 0)
		b.close()
		return nil, err
	}
	_ = uc.SetReadDeadline(time.Time{})
	return b, nil
}

// peerPidfd returns a descriptor of the process at the other end: an id could
// come to mean another. L21 of promises.md.
func peerPidfd(uc *net.UnixConn) (fd int, err error) {
	raw, err := uc.SyscallConn()
	if err != nil {
		return -1, err
	}
	cerr := raw.Control(func(s uintptr) {
		if fd, err = unix.GetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_PEERPIDFD); err == nil {
			return
		}
		var cred *unix.Ucred // a kernel before 6.5; the peer has not ended, as its connection is open
		if cred, err = unix.GetsockoptUcred(int(s), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			fd, err = unix.PidfdOpen(int(cred.Pid), 0)
		}
	})
	return fd, errors.Join(cerr, err)
}

// pid returns the first process's id on the host, 0 when it has ended.
func (b *body) pid() int {
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", b.pidfd))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(info)) {
		var pid int
		if n, _ := fmt.Sscanf(line, "Pid: %d", &pid); n == 1 && pid > 0 {
			return pid
		}
	}
	return 0
}

func (b *body) close() {
	_ = b.conn.Close()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pidfd >= 0 {
		_ = unix.Close(b.pidfd)
		b.pidfd = -1
	}
}

// kill ends the room's processes and returns when none is left.
func (b *body) kill(limit time.Duration) error {
	b.mu.Lock()
	fd, err := -1, error(nil)
	if b.pidfd >= 0 {
		if fd, err = unix.FcntlInt(uintptr(b.pidfd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		}
	}
	b.mu.Unlock()
	if fd < 0 {
		return err
	}
	defer unix.Close(fd)
	return proc.AwaitEnd(fd, limit)
}

// order sends o; answer gets every line about it, and one with an Error when
// the room ends.
func (b *body) order(o room.Order, answer func(room.News), files ...*os.File) (uint64, error) {
	b.mu.Lock()
	b.last++
	o.ID = b.last
	b.calls[o.ID] = answer
	b.mu.Unlock()
	_ = b.conn.Socket().SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	err := b.conn.Send(o, files...)
	if err != nil {
		_ = b.conn.Close() // it takes no orders; attend sees to it
		b.mu.Lock()
		delete(b.calls, o.ID)
		b.mu.Unlock()
	}
	return o.ID, err
}

// attend reads what a room says until it ends.
func (s *Service) attend(c *cell, b *body) {
	defer b.conn.Drop()
	for {
		line, err := b.conn.Receive()
		var n room.News
		if err == nil {
			err = jsonfd.Decode(line, &n)
		}
		if err != nil {
			break
		}
		b.mu.Lock()
		answer := b.calls[n.ID]
		if n.Exit != nil || n.Error != "" || n.Pong {
			delete(b.calls, n.ID)
		}
		b.mu.Unlock()
		if answer != nil {
			answer(n)
		}
	}
	b.mu.Lock()
	calls := b.calls
	b.calls = map[uint64]func(room.News){}
	b.mu.Unlock()
	close(b.over)
	for _, answer := range calls {
		answer(room.News{Error: errEnded})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.state != cellEnding {
		s.totals.Lost++
		s.failed("room", "room "+c.Spec.Name+" ended by itself while it was "+string(c.state))
		s.retire(c)
		s.fill()
	}
}

const errEnded = "the room has ended"

// retire begins the end of a room; the mutex is held.
func (s *Service) retire(c *cell) {
	if c.state == cellEnding {
		return
	}
	c.move(cellEnding)
	if i := slices.Index(s.stock, c); i >= 0 {
		s.stock = slices.Delete(s.stock, i, i+1)
	}
	s.detach(c)
	s.leases.Give(c.lease)
	s.enders.Wake(c.Spec.Name)
}

// detach ends the room's bond with its client.
func (s *Service) detach(c *cell) {
	if c.owner != nil {
		delete(c.owner.rooms, c)
		c.owner = nil
	}
	if c.expiry != nil {
		c.expiry.Stop()
		c.expiry = nil
	}
}

// end removes a room: a step of the enders, repeated until it is done.
func (s *Service) end(ctx context.Context, name string) (time.Duration, error) {
	if name == keyBases {
		return 0, s.pruneBases()
	}
	s.mu.Lock()
	c := s.rooms[name]
	if c == nil || c.state != cellEnding {
		s.mu.Unlock()
		return 0, nil
	}
	b := c.body
	s.mu.Unlock()
	if b != nil {
		if err := b.kill(10 * time.Second); err != nil {
			return 0, fmt.Errorf("end the room's processes: %w", err)
		}
	}
	err := s.remove(ctx, c)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.failed("remove", name+": "+err.Error())
		return 0, err
	}
	if b != nil {
		b.close()
	}
	delete(s.rooms, name)
	s.totals.Removed++
	s.enders.Wake(keyBases)
	s.closeIfEmpty()
	s.fill()
	return 0, nil
}

func (s *Service) remove(ctx context.Context, c *cell) error {
	if err := s.o.Runtime.Remove(ctx, &c.Spec); err != nil {
		return err
	}
	if c.Group != nil {
		if err := c.Group.Remove(5 * time.Second); err != nil {
			return err
		}
	}
	if err := s.removeDir(&c.Spec); err != nil {
		return err
	}
	return s.journal.End(ctx, c.Spec.Name)
}

// removeDir removes a room's directory, which must be one of the pool's own
// and hold no mounts: they are the room's, and gone with it. L20 of
// promises.md.
func (s *Service) removeDir(spec *Spec) error {
	if !roomName.MatchString(spec.Name) || filepath.Join(s.o.Dir, "rooms", spec.Name) != spec.Dir {
		return fmt.Errorf("%s is not a directory of this pool; nothing was removed", spec.Dir)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], spec.Dir+"/") {
			if err := unix.Unmount(f[4], unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
				return fmt.Errorf("unmount %s: %w", f[4], err)
			}
		}
	}
	return debris.Remove(spec.Dir)
}

// ready puts a room into stock, or gives it to who waits longest.
func (s *Service) ready(c *cell) {
	if s.outdated(c) {
		s.retire(c)
		return
	}
	c.move(cellReady)
	s.stock = append(s.stock, c)
	s.serve()
}

// serve gives rooms to those who wait.
func (s *Service) serve() {
	for len(s.waiters) > 0 && len(s.stock) > 0 {
		w := s.waiters[0]
		s.waiters = s.waiters[1:]
		s.handOut(w, s.stock[0])
	}
}

// freshFor is how long a room is believed to live without being asked. L3 of
// promises.md; that its first process ends is known at once.
const freshFor = time.Minute

// handOut gives c, which is in stock, to w.
func (s *Service) handOut(w *waiter, c *cell) {
	if i := slices.Index(s.stock, c); i >= 0 {
		s.stock = slices.Delete(s.stock, i, i+1)
	}
	now := s.o.Now()
	c.move(cellLeased)
	c.owner, c.uid, c.purpose, c.out, c.linger = w.client, w.client.uid, w.get.For, now, time.Duration(w.get.HoldMS)*time.Millisecond
	w.client.rooms[c] = true
	c.lease, _ = s.leases.Take(c.Spec.Name, fmt.Sprint(w.client.number), now, now.Add(100*365*24*time.Hour))
	if now.Sub(c.seen) < freshFor {
		s.served(w, c)
		return
	}
	var once sync.Once
	late := time.AfterFunc(time.Second, func() {
		once.Do(func() { s.checked(w, c, false) })
	})
	_, err := c.body.order(room.Order{Ping: true}, func(n room.News) {
		once.Do(func() {
			late.Stop()
			go s.checked(w, c, n.Pong)
		})
	})
	if err != nil {
		once.Do(func() {
			late.Stop()
			go s.checked(w, c, false)
		})
	}
}

// checked goes on with a room that was asked whether it lives.
func (s *Service) checked(w *waiter, c *cell, lives bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if lives {
		c.seen = s.o.Now()
	}
	switch {
	case c.state != cellLeased || c.owner != w.client: // the client or the room went meanwhile
		if w.client.gone {
			return
		}
		s.wait(w, true)
	case s.outdated(c): // another base image was asked for meanwhile
		s.retire(c)
		s.wait(w, true)
	case !lives:
		s.failed("room", "room "+c.Spec.Name+" did not answer and was not handed out")
		s.retire(c)
		s.wait(w, true)
	default:
		s.served(w, c)
	}
}

func (s *Service) served(w *waiter, c *cell) {
	s.totals.Served++
	s.gave = time.Now()
	s.metrics.got.Observe(s.gave.Sub(w.asked).Seconds())
	w.stop()
	if w.get.Confirm {
		c.move(cellUsed)
		c.linger = 0
	}
	w.client.answer(&pool.Response{ID: w.id, Room: c.room()})
	s.fill()
}

func (c *cell) room() *pool.Room {
	return &pool.Room{
		Lease: pool.Lease{Room: c.Spec.Name, Generation: c.lease.Generation},
		UID:   c.Spec.FirstID + room.TaskUID, GID: c.Spec.FirstID + room.TaskGID,
	}
}

// abandoned is what becomes of a room whose connection has ended.
func (s *Service) abandoned(c *cell) {
	s.detach(c)
	if c.linger > 0 {
		c.expiry = time.AfterFunc(c.linger, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if c.owner == nil && (c.state == cellLeased || c.state == cellUsed) {
				c.expiry = nil
				s.giveUp(c)
			}
		})
		return
	}
	s.giveUp(c)
}

// giveUp puts a room that nobody did anything in back, and ends any other.
func (s *Service) giveUp(c *cell) {
	if c.state != cellLeased || s.outdated(c) {
		s.retire(c)
		return
	}
	s.leases.Give(c.lease)
	c.lease, c.purpose = reconcile.Lease{}, ""
	s.totals.Returned++
	s.ready(c)
}
