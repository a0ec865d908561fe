package warm

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/pool"
	"github.com/skepdev/skep/host/room"
	"github.com/skepdev/skep/internal/backoff"
	"github.com/skepdev/skep/internal/jsonfd"
	"github.com/skepdev/skep/internal/peercred"
	"github.com/skepdev/skep/internal/proc"
)

// client is one connection. Its fields are the service's mutex's.
type client struct {
	s      *Service
	conn   *jsonfd.Conn
	number uint64
	uid    uint32
	rooms  map[*cell]bool
	execs  map[uint64]running // by the id of their request
	binds  int                // under way
	asked  map[uint64]bool    // shutdowns to answer
	gone   bool

	sending sync.Mutex
	out     []*pool.Response
	writing bool // by a goroutine of its own, while there is something
}

type running struct {
	cell *cell
	exec uint64 // the room's id of it
}

// maxBusy is how many requests of a connection may be under way.
const maxBusy = 64

// accept takes connections until the listener is closed.
func (s *Service) accept(serving *sync.WaitGroup) {
	pause := backoff.Exponential{Min: 5 * time.Millisecond, Max: time.Second}
	for {
		uc, err := s.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, mostly
			s.mu.Lock()
			s.failed("accept", err.Error())
			s.mu.Unlock()
			_ = pause.Sleep(s.ctx, 0)
			continue
		}
		pause.Reset()
		if c := s.admit(uc); c != nil {
			serving.Go(c.serve)
		}
	}
}

// admit makes a client of a connection whose peer may come in.
func (s *Service) admit(uc *net.UnixConn) *client {
	c := &client{s: s, conn: jsonfd.NewConn(uc), rooms: map[*cell]bool{}, execs: map[uint64]running{}, asked: map[uint64]bool{}}
	cred, err := peercred.Of(uc)
	s.mu.Lock()
	var refusal *pool.Error
	switch {
	case err != nil:
		refusal = pool.Refusef(skep.Denied, pool.ReasonDenied, "the kernel does not say who you are: %v", err)
	case !s.allowed(cred):
		refusal = pool.Refusef(skep.Denied, pool.ReasonDenied, "user %d may not use this pool; skep pool start --allow-user %d lets it in", cred.UID, cred.UID)
	case len(s.clients) >= s.o.MaxClients:
		refusal = pool.Refusef(skep.Exhausted, pool.ReasonTooMany, "the pool has %d clients, which is its limit; try again later", len(s.clients))
	}
	if refusal != nil {
		s.totals.Rejected++
		s.mu.Unlock()
		_ = uc.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		_ = c.conn.Send(&pool.Response{Error: refusal})
		_ = uc.Close()
		return nil
	}
	defer s.mu.Unlock()
	c.uid = uint32(cred.UID)
	s.totals.Clients++
	c.number = s.totals.Clients
	s.clients[c] = true
	return c
}

func (s *Service) allowed(cred peercred.Cred) bool {
	return cred.UID == 0 || cred.UID == os.Geteuid() || slices.Contains(s.o.Users, uint32(cred.UID)) ||
		slices.ContainsFunc(s.o.Groups, func(gid uint32) bool { return cred.InGroup(int(gid)) })
}

// serve reads requests until the connection ends. One that is no message ends
// it, and nobody else's. C3 of mission.md.
func (c *client) serve() {
	defer c.leave()
	for {
		line, err := c.conn.Receive()
		var r pool.Request
		if err == nil {
			err = jsonfd.Decode(line, &r)
			if err == nil {
				err = c.take(&r)
			}
			if err != nil {
				err = fmt.Errorf("%w: %w", errMalformed, err)
			}
		}
		if err == nil {
			continue
		}
		if errors.Is(err, errMalformed) || errors.Is(err, jsonfd.ErrTooLong) || errors.Is(err, io.ErrUnexpectedEOF) {
			c.s.mu.Lock()
			c.s.totals.Rejected++
			c.s.mu.Unlock()
			c.answer(&pool.Response{ID: r.ID, Error: pool.Refusef(skep.Invalid, pool.ReasonMalformed, "%v; the connection ends", err)})
			c.finish()
		}
		return
	}
}

var errMalformed = errors.New("not a message")

// leave ends everything that the connection had.
func (c *client) leave() {
	_ = c.conn.Close()
	c.conn.Drop()
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	c.gone = true
	delete(s.clients, c)
	s.waiters = slices.DeleteFunc(s.waiters, func(w *waiter) bool {
		if w.client == c {
			w.stop()
			s.totals.Refused++
		}
		return w.client == c
	})
	for room := range c.rooms {
		s.abandoned(room)
	}
	s.fill()
}

// answer sends a line, after those before it. It does not wait: one who does
// not read delays nobody but itself, and is gone after a while.
func (c *client) answer(r *pool.Response) {
	c.sending.Lock()
	defer c.sending.Unlock()
	if len(c.out) > 4*maxBusy {
		_ = c.conn.Close()
		return
	}
	c.out = append(c.out, r)
	if !c.writing {
		c.writing = true
		go c.write()
	}
}

func (c *client) write() {
	for {
		c.sending.Lock()
		if len(c.out) == 0 {
			c.out, c.writing = nil, false
			c.sending.Unlock()
			return
		}
		r := c.out[0]
		c.out = c.out[1:]
		c.sending.Unlock()
		_ = c.conn.Socket().SetWriteDeadline(time.Now().Add(10 * time.Second))
		if c.conn.Send(r) != nil {
			_ = c.conn.Close() // the reader of its requests sees the end
		}
	}
}

// finish closes the connection after what is to be said was.
func (c *client) finish() {
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		c.sending.Lock()
		writing := c.writing
		c.sending.Unlock()
		if !writing {
			break
		}
		time.Sleep(time.Millisecond)
	}
	_ = c.conn.Close()
}

// farewell answers those who asked for shutdown.
func (c *client) farewell(err error) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	for id := range c.asked {
		r := &pool.Response{ID: id, Done: err == nil}
		if err != nil {
			r.Error = pool.Refusef(skep.Unavailable, pool.ReasonCannot, "%v", err)
		}
		c.answer(r)
	}
}

// mayManage says that the client is root or the service's own user.
func (c *client) mayManage() bool { return c.uid == 0 || int(c.uid) == os.Geteuid() }

// waiter is a get that has no room yet.
type waiter struct {
	client *client
	id     uint64
	get    *pool.Get
	asked  time.Time
	timer  *time.Timer
}

func (w *waiter) stop() {
	if w.timer != nil {
		w.timer.Stop()
	}
}

func (w *waiter) refuse(e *pool.Error) {
	w.stop()
	w.client.s.totals.Refused++
	w.client.answer(&pool.Response{ID: w.id, Error: e})
}

// take does what r asks for. The error says that r is no message.
func (c *client) take(r *pool.Request) error {
	n := 0
	for _, set := range []bool{r.Echo != nil, r.Get != nil, r.Confirm != nil, r.Bind != nil, r.Exec != nil, r.Signal != nil, r.Release != nil, r.Status != nil, r.Rebase != nil, r.Shutdown != nil} {
		if set {
			n++
		}
	}
	if n != 1 || r.ID == 0 {
		return errors.New("it needs an id of 1 or more and exactly one request")
	}
	var files []*os.File
	var err error
	switch {
	case r.Bind != nil:
		files, err = c.conn.Take(1)
	case r.Exec != nil:
		files, err = c.conn.Take(3)
	}
	if err != nil {
		return err
	}
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if refusal := c.do(r, files); refusal != nil {
		closeAll(files)
		c.answer(&pool.Response{ID: r.ID, Error: refusal})
	}
	return nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

const day = 24 * 60 * 60 * 1000

func (c *client) do(r *pool.Request, files []*os.File) *pool.Error {
	s := c.s
	invalid := func(format string, args ...any) *pool.Error {
		return pool.Refusef(skep.Invalid, pool.ReasonInvalid, format, args...)
	}
	switch {
	case r.Echo != nil:
		c.answer(&pool.Response{ID: r.ID, Echo: r.Echo})
	case r.Status != nil:
		st := s.status()
		c.answer(&pool.Response{ID: r.ID, Status: st})
	case r.Rebase != nil:
		switch {
		case !c.mayManage():
			return pool.Refusef(skep.Denied, pool.ReasonDenied, "user %d may use this pool and not change it; root and the user that it runs as may", c.uid)
		case !filepath.IsAbs(r.Rebase.File):
			return invalid("file: %q is not an absolute path", cut(r.Rebase.File, 200))
		case s.stopping:
			return pool.Refusef(skep.Unavailable, pool.ReasonStopping, "the pool is stopping")
		}
		id, base := r.ID, Base{File: r.Rebase.File, Digest: r.Rebase.Digest}
		s.rebasing.Go(func() {
			res := &pool.Response{ID: id, Done: true}
			if err := s.rebase(base); err != nil {
				res = &pool.Response{ID: id, Error: pool.Refusef(skep.KindOf(err), pool.ReasonCannot, "%v", err)}
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			c.answer(res)
		})
	case r.Shutdown != nil:
		switch {
		case !c.mayManage():
			return pool.Refusef(skep.Denied, pool.ReasonDenied, "user %d may use this pool and not end it; root and the user that it runs as may", c.uid)
		case len(c.asked) >= maxBusy:
			return c.tooBusy()
		}
		c.asked[r.ID] = true
		go s.stop()
	case r.Get != nil:
		g := r.Get
		switch {
		case len(g.For) > 128 || strings.ContainsFunc(g.For, func(r rune) bool { return r < ' ' || r == 0x7f }):
			return invalid("for: an id is at most 128 characters, none of them a control character")
		case g.TimeoutMS < 0 || g.TimeoutMS > day:
			return invalid("timeout_ms is %d, want 0 to %d", g.TimeoutMS, day)
		case g.HoldMS < 0 || g.HoldMS > 60_000:
			return invalid("hold_ms is %d, want 0 to 60000", g.HoldMS)
		case c.busy() >= maxBusy:
			return c.tooBusy()
		}
		s.demand.add(s.o.Now())
		s.wait(&waiter{client: c, id: r.ID, get: g, asked: time.Now()}, false)
	case r.Confirm != nil:
		if r.Confirm.KeepMS < 0 || r.Confirm.KeepMS > day {
			return invalid("keep_ms is %d, want 0 to %d", r.Confirm.KeepMS, day)
		}
		cell, refusal := c.claim(r.Confirm.Lease)
		if refusal != nil {
			return refusal
		}
		cell.move(cellUsed)
		cell.linger = time.Duration(r.Confirm.KeepMS) * time.Millisecond
		c.answer(&pool.Response{ID: r.ID, Room: cell.room()})
	case r.Bind != nil:
		if !filepath.IsAbs(r.Bind.At) || filepath.Clean(r.Bind.At) == "/" || len(r.Bind.At) > 4000 || strings.Contains(r.Bind.At, "\x00") {
			return invalid("at: %q is no absolute path to bind at", r.Bind.At)
		}
		if c.busy() >= maxBusy { // each is a thread of ours
			return c.tooBusy()
		}
		cell, refusal := c.claim(r.Bind.Lease)
		if refusal != nil {
			return refusal
		}
		cell.move(cellUsed)
		c.binds++
		go func() {
			defer closeAll(files)
			res := &pool.Response{ID: r.ID, Done: true}
			if err := bind(cell.body, cell.Spec.FirstID, files[0], filepath.Clean(r.Bind.At), r.Bind.ReadOnly); err != nil {
				res = &pool.Response{ID: r.ID, Error: pool.Refusef(skep.Precondition, pool.ReasonBind, "bind at %s: %v", r.Bind.At, err)}
			}
			s.mu.Lock()
			c.binds--
			s.mu.Unlock()
			c.answer(res)
		}()
	case r.Exec != nil:
		return c.exec(r, files)
	case r.Signal != nil:
		run, ok := c.execs[r.Signal.Exec]
		if !ok || run.cell.Spec.Name != r.Signal.Room {
			return pool.Refusef(skep.NotFound, pool.ReasonNotYours, "no exec %d runs in room %s", r.Signal.Exec, r.Signal.Room)
		}
		if r.Signal.Signal < 1 || r.Signal.Signal > 64 {
			return invalid("signal is %d, want 1 to 64", r.Signal.Signal)
		}
		if _, err := run.cell.body.order(room.Order{Signal: &room.Signal{Exec: run.exec, Signal: r.Signal.Signal}}, func(room.News) {}); err != nil {
			return pool.Refusef(skep.NotFound, pool.ReasonGone, "%s", errEnded)
		}
		c.answer(&pool.Response{ID: r.ID, Done: true})
	case r.Release != nil:
		cell, refusal := c.claim(r.Release.Lease)
		if refusal != nil {
			return refusal
		}
		s.retire(cell)
		s.fill()
		go func() {
			res := &pool.Response{ID: r.ID, Done: true}
			if err := cell.body.kill(10 * time.Second); err != nil {
				res = &pool.Response{ID: r.ID, Error: pool.Refusef(skep.Unavailable, pool.ReasonCannot, "room %s still has processes: %v", cell.Spec.Name, err)}
			}
			c.answer(res)
		}()
	}
	return nil
}

// busy is how many requests of the connection are under way.
func (c *client) busy() int { return c.waiting() + len(c.execs) + c.binds }

func (c *client) tooBusy() *pool.Error {
	return pool.Refusef(skep.Exhausted, pool.ReasonTooMany, "this connection has %d requests under way, which is the limit", maxBusy)
}

func (c *client) waiting() (n int) {
	for _, w := range c.s.waiters {
		if w.client == c {
			n++
		}
	}
	return n
}

// wait gives w a room, or lets it wait: first, when it was promised one
// before.
func (s *Service) wait(w *waiter, first bool) {
	switch {
	case s.stopping:
		w.refuse(pool.Refusef(skep.Unavailable, pool.ReasonStopping, "the pool is stopping"))
		return
	case len(s.stock) > 0 && (first || len(s.waiters) == 0):
		s.handOut(w, s.stock[0])
		return
	case w.get.TimeoutMS == 0:
		why := "the pool has no container ready"
		if s.paused != "" {
			why += ": " + s.paused
		}
		w.refuse(pool.Refusef(skep.Exhausted, pool.ReasonNoStock, "%s", why))
		s.fill()
		return
	}
	if first {
		s.waiters = slices.Insert(s.waiters, 0, w)
	} else {
		s.waiters = append(s.waiters, w)
	}
	if w.timer == nil {
		w.timer = time.AfterFunc(time.Duration(w.get.TimeoutMS)*time.Millisecond, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if i := slices.Index(s.waiters, w); i >= 0 {
				s.waiters = slices.Delete(s.waiters, i, i+1)
				why := ""
				if s.paused != "" {
					why = "; the last one could not be made: " + s.paused
				}
				w.refuse(pool.Refusef(skep.Exhausted, pool.ReasonNoStock, "no container became ready within %d ms%s", w.get.TimeoutMS, why))
			}
		})
	}
	s.fill()
}

// claim returns a room that is the client's, or that nobody has a connection
// for and that went to the same user.
func (c *client) claim(l pool.Lease) (*cell, *pool.Error) {
	s := c.s
	cell := s.rooms[l.Room]
	switch {
	case cell == nil || cell.state == cellMaking || cell.state == cellReady:
		return nil, pool.Refusef(skep.NotFound, pool.ReasonNotYours, "room %q is not handed out", l.Room)
	case cell.owner != nil && cell.owner != c, c.uid != cell.uid && c.uid != 0, l.Generation != 0 && l.Generation != cell.lease.Generation:
		return nil, pool.Refusef(skep.Denied, pool.ReasonNotYours, "room %s is not yours", l.Room)
	case cell.state == cellEnding:
		return nil, pool.Refusef(skep.NotFound, pool.ReasonGone, "%s", errEnded)
	}
	if cell.owner == nil {
		s.detach(cell)
		cell.owner = c
		c.rooms[cell] = true
	}
	return cell, nil
}

func (c *client) exec(r *pool.Request, files []*os.File) *pool.Error {
	s, e := c.s, r.Exec
	switch {
	case len(e.Args) == 0 || e.Args[0] == "":
		return pool.Refusef(skep.Invalid, pool.ReasonInvalid, "args: no command")
	case e.Dir != "" && !filepath.IsAbs(e.Dir):
		return pool.Refusef(skep.Invalid, pool.ReasonInvalid, "dir: %q is not absolute", e.Dir)
	case c.execs[r.ID].cell != nil:
		return pool.Refusef(skep.Invalid, pool.ReasonInvalid, "id %d is that of an exec that runs", r.ID)
	case c.busy() >= maxBusy:
		return c.tooBusy()
	}
	cell, refusal := c.claim(e.Lease)
	if refusal != nil {
		return refusal
	}
	if l := e.Limits; l != nil {
		if l.Memory < 0 || l.Processes < 0 || l.MilliCPU < 0 {
			return pool.Refusef(skep.Invalid, pool.ReasonInvalid, "limits: one is negative")
		}
		if cell.Group == nil {
			return pool.Refusef(skep.Precondition, pool.ReasonCannot, "this host has no cgroups to limit a room with")
		}
		if err := cell.Group.Limit(lower(*l, s.o.Limits)); err != nil {
			return pool.Refusef(skep.Precondition, pool.ReasonCannot, "limit the room: %v", err)
		}
	}
	cell.move(cellUsed)
	id := r.ID
	c.execs[id] = running{cell: cell}
	started := false
	roomID, err := cell.body.order(room.Order{Exec: &room.Exec{Args: e.Args, Env: e.Env, Dir: e.Dir, Task: e.Task}}, func(n room.News) {
		var res *pool.Response
		switch {
		case n.Exit != nil:
			res = &pool.Response{ID: id, Exit: &pool.Exit{Code: *n.Exit}}
		case n.Error == errEnded || n.Error != "" && started:
			res = &pool.Response{ID: id, Error: pool.Refusef(skep.Unavailable, pool.ReasonGone, "%s", errEnded)}
		case n.Error != "":
			res = &pool.Response{ID: id, Error: pool.Refusef(skep.Precondition, pool.ReasonExec, "%s", n.Error)}
		default:
			started = true
			c.answer(&pool.Response{ID: id, Started: &pool.Started{PID: n.PID}})
			return
		}
		go func() { // the mutex may be held by who ended the room
			s.mu.Lock()
			delete(c.execs, id)
			s.mu.Unlock()
			c.answer(res)
		}()
	}, files...)
	closeAll(files)
	if err != nil {
		delete(c.execs, id)
		return pool.Refusef(skep.Unavailable, pool.ReasonGone, "%s", errEnded)
	}
	c.execs[id] = running{cell: cell, exec: roomID}
	return nil
}

// lower returns the stricter of asked and own, field by field.
func lower(asked pool.Limits, own proc.Limits) proc.Limits {
	pick := func(a, b int64) int64 {
		if a == 0 || b > 0 && b < a {
			return b
		}
		return a
	}
	return proc.Limits{Memory: pick(asked.Memory, own.Memory), Processes: pick(asked.Processes, own.Processes), MilliCPU: pick(asked.MilliCPU, own.MilliCPU)}
}

// status returns how the pool is; the mutex is held.
func (s *Service) status() *pool.Status {
	o := s.observe()
	st := &pool.Status{
		Running: !s.stopping, Socket: s.o.Socket, Runtime: s.o.Runtime.Name(), Base: s.o.Base.Digest,
		UptimeMS: s.o.Now().Sub(s.began).Milliseconds(), Capacity: s.o.Size.Max, Wanted: s.o.Size.Want(o),
		Ready: o.Ready, Making: o.Making, Waiting: o.Waiting, Clients: len(s.clients), Paused: s.paused,
		Totals: s.totals, Errors: slices.Clone(s.failures),
	}
	var held []*cell
	for _, c := range s.rooms {
		switch c.state {
		case cellLeased:
			st.Leased++
			held = append(held, c)
		case cellUsed:
			st.Used++
			held = append(held, c)
		case cellEnding:
			st.Ending++
		default: // counted above
		}
	}
	slices.SortFunc(held, func(a, b *cell) int { return a.out.Compare(b.out) })
	for _, c := range held[:min(100, len(held))] {
		st.Held = append(st.Held, pool.Held{Room: c.Spec.Name, For: c.purpose, UID: c.uid, AgeMS: s.o.Now().Sub(c.out).Milliseconds(), Used: c.state == cellUsed})
	}
	// A line holds 64 KiB: of the errors the newest that fit.
	for size := 0; ; {
		size = 0
		for _, f := range st.Errors {
			size += len(f.Text) + 100
		}
		if size < 30<<10 {
			break
		}
		st.Errors = st.Errors[1:]
	}
	return st
}
