package trouble

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skepdev/skep/host/pool"
	"github.com/skepdev/skep/internal/jsonfd"
	"github.com/skepdev/skep/internal/show/form"
	"github.com/skepdev/skep/internal/stage/ownpool"
)

// answerBound is for one who behaves, beside those who do not.
var answerBound = form.Of(time.Second, 5*time.Second)

const (
	memoryBound = 128 << 20 // of the service, afterwards
	crowdBound  = 100 << 20 // of the service while 10,000 clients say nothing; promise L8
)

// maxClients is how many the service takes.
var maxClients = form.Of(10_000, 400)

// protocol speaks nonsense to the socket of a pool.
func (s *show) protocol(ctx context.Context) error {
	p := s.pool("fuzzed")
	if _, err := p.Start(ctx, "--min", "2", "--max", "4", "--max-clients", fmt.Sprint(maxClients)); err != nil {
		return err
	}
	if _, err := p.Await(ctx, time.Minute, "stocked", ownpool.Quiet(2)); err != nil {
		return err
	}
	f := &fuzzer{path: p.At(), refusals: map[string]int{}}
	err := errors.Join(f.run(ctx, form.Of(60*time.Second, 4*time.Second)), f.crowd(ctx, p.Pid()), f.deaf(ctx))
	if err != nil {
		p.Kill()
		return err
	}
	st, err := p.Await(ctx, time.Minute, "quiet after nonsense", func(st *pool.Status) bool { return ownpool.Quiet(2)(st) && st.Clients == 1 })
	if err != nil {
		return err
	}
	rss, files, err := sizeOf(p.Pid())
	if err != nil {
		return err
	}
	fmt.Printf("nonsense: %d connections, %.1f MB, %d refusals %v; others were answered within %v (bound %v)\n", f.conns.Load(), float64(f.bytes.Load())/1e6, f.refused.Load(), f.refusals, time.Duration(f.worst.Load()).Round(time.Millisecond), answerBound)
	fmt.Printf("afterwards: %d ready, %d lost, %d MiB resident, %d open files\n", st.Ready, st.Totals.Lost, rss>>20, files)
	var errs []error
	if rss > memoryBound {
		errs = append(errs, fmt.Errorf("%d MiB are resident, want %d at most", rss>>20, memoryBound>>20))
	}
	if files > 60 {
		errs = append(errs, fmt.Errorf("%d files are open", files))
	}
	if time.Duration(f.worst.Load()) > answerBound {
		errs = append(errs, errors.New("one who behaves waits too long"))
	}
	if f.refusals[pool.ReasonMalformed] == 0 || f.refusals[pool.ReasonInvalid] == 0 || f.refusals[pool.ReasonTooMany] == 0 {
		errs = append(errs, fmt.Errorf("the refusals are %v: not all kinds of nonsense were tried", f.refusals))
	}
	return errors.Join(append(errs, p.Stop(ctx))...)
}

// sizeOf is the resident memory and the number of open files of a process.
func sizeOf(pid int) (rss int64, files int, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, 0, err
	}
	var size, resident int64
	if _, err := fmt.Sscanf(string(b), "%d %d", &size, &resident); err != nil {
		return 0, 0, err
	}
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	return resident * int64(os.Getpagesize()), len(fds), err
}

type fuzzer struct {
	path           string
	conns, refused atomic.Int64
	bytes, worst   atomic.Int64

	mu       sync.Mutex
	refusals map[string]int
}

// words are messages to begin with; most are valid.
var words = []string{
	`{"id":1,"echo":{"text":"x"}}`, `{"id":2,"get":{"for":"x","timeout_ms":50}}`, `{"id":3,"get":{"for":"x","timeout_ms":-1}}`, `{"id":4,"status":{}}`,
	`{"id":5,"confirm":{"room":"skep-000000-1","generation":1}}`, `{"id":6,"release":{"room":"../../x"}}`, `{"id":7,"bind":{"room":"x","at":"/"}}`,
	`{"id":8,"exec":{"room":"x","args":["sh"]}}`, `{"id":9,"signal":{"room":"x","exec":5,"signal":99}}`, `{"id":10,"get":{"for":"x","hold_ms":99999999}}`,
	`{"id":0,"status":{}}`, `{"id":11}`, `{"id":12,"echo":{"text":"x"},"status":{}}`, `{"id":13,"shutdown":[]}`, `{"id":14,"nothing":1}`, `[]`, `null`, `{"id":1e999,"status":{}}`,
	`{"id":15,"get":{"for":"\u0000"}}`, "\x00\xff\xfe", "",
}

// nonsense is what one connection says.
func nonsense() []byte {
	var b bytes.Buffer
	switch rand.N(8) {
	case 0: // bytes
		for range rand.N(4000) {
			b.WriteByte(byte(rand.N(256)))
		}
	case 1: // a line without an end, or with one too late
		b.WriteString(`{"id":1,"echo":{"text":"`)
		b.Write(bytes.Repeat([]byte("x"), jsonfd.MaxLine-30+rand.N(80)))
		b.WriteString("\"}}\n")
	case 2: // much deeper than anybody needs
		b.Write(bytes.Repeat([]byte(`{"echo":`), 1+rand.N(8000)))
		b.WriteByte('\n')
	default:
		for range 1 + rand.N(100) {
			w := []byte(words[rand.N(len(words))])
			if len(w) > 0 && rand.N(4) == 0 { // changed somewhere
				w[rand.N(len(w))] = byte(rand.N(256))
			}
			b.Write(w)
			b.WriteByte('\n')
		}
		if rand.N(3) == 0 { // cut off
			b.Truncate(rand.N(b.Len() + 1))
		}
	}
	return b.Bytes()
}

// run speaks nonsense over some connections at a time, and sense over one.
func (f *fuzzer) run(ctx context.Context, length time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	var all sync.WaitGroup
	errs := make([]error, 9)
	for i := range errs[1:] {
		all.Go(func() {
			for ctx.Err() == nil && errs[i+1] == nil {
				errs[i+1] = f.one()
			}
		})
	}
	all.Go(func() {
		for ctx.Err() == nil && errs[0] == nil {
			errs[0] = f.sense(context.WithoutCancel(ctx))
			time.Sleep(10 * time.Millisecond)
		}
	})
	all.Wait()
	return errors.Join(errs...)
}

// sense is one who behaves.
func (f *fuzzer) sense(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	began := time.Now()
	c, err := pool.Dial(ctx, f.path)
	if err != nil {
		return err
	}
	defer c.Close()
	if text, err := c.Echo(ctx, "sense"); err != nil || text != "sense" {
		return fmt.Errorf("beside nonsense an echo is answered with %q, %w", text, err)
	}
	f.worst.Store(max(f.worst.Load(), int64(time.Since(began))))
	return nil
}

// one is a connection that speaks nonsense. Whatever comes back is an answer of
// the protocol, and every refusal has its kind, reason and sentence.
func (f *fuzzer) one() error {
	c, err := net.Dial("unix", f.path)
	if err != nil {
		return err
	}
	defer c.Close()
	f.conns.Add(1)
	said := nonsense()
	f.bytes.Add(int64(len(said)))
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		_, _ = c.Write(said)
		if u, ok := c.(*net.UnixConn); ok {
			_ = u.CloseWrite()
		}
	}()
	err = f.answers(c)
	_ = c.Close()
	<-wrote
	return err
}

func (f *fuzzer) answers(c net.Conn) error {
	r := bufio.NewReaderSize(c, 2*jsonfd.MaxLine)
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			if len(line) > jsonfd.MaxLine || errors.Is(err, bufio.ErrBufferFull) || errors.Is(err, os.ErrDeadlineExceeded) {
				return fmt.Errorf("an answer of %d bytes: %w", len(line), err)
			}
			return nil //nolint:nilerr // the connection ended, as it may
		}
		var a pool.Response
		d := json.NewDecoder(bytes.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&a); err != nil {
			return fmt.Errorf("the answer %.200q: %w", line, err)
		}
		if e := a.Error; e != nil {
			if e.Kind == "" || e.Reason == "" || e.Text == "" || e.Kind == "internal" {
				return fmt.Errorf("a refusal without kind, reason or sentence: %.300q", line)
			}
			f.refused.Add(1)
			f.mu.Lock()
			f.refusals[e.Reason]++
			f.mu.Unlock()
		}
	}
}

// crowd are more connections than may be, most of which say nothing, to the
// service pid.
func (f *fuzzer) crowd(ctx context.Context, pid int) error {
	var held []net.Conn
	defer func() {
		for _, c := range held {
			_ = c.Close()
		}
	}()
	for range maxClients + 50 {
		c, err := net.Dial("unix", f.path)
		if err != nil {
			return fmt.Errorf("connection %d: %w", len(held), err)
		}
		held = append(held, c)
		f.conns.Add(1)
	}
	away := make(chan bool, len(held))
	for _, c := range held {
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		go func() {
			line, err := bufio.NewReader(c).ReadBytes('\n')
			var a pool.Response
			away <- err == nil && json.Unmarshal(line, &a) == nil && a.Error != nil && a.Error.Reason == pool.ReasonTooMany
		}()
	}
	turned := 0
	for range held {
		if !<-away {
			continue
		}
		if turned++; turned == len(held)-maxClients { // the others are told nothing
			for _, c := range held {
				_ = c.SetReadDeadline(time.Unix(1, 0))
			}
		}
	}
	f.mu.Lock()
	f.refusals[pool.ReasonTooMany] += turned
	f.mu.Unlock()
	if turned < len(held)-maxClients {
		return fmt.Errorf("of %d connections %d were turned away: at most %d may be", len(held), turned, maxClients)
	}
	first, _, err := sizeOf(pid)
	if err != nil {
		return err
	}
	// What letting them in left behind goes with the next collection, two minutes later at most.
	rss, start := first, time.Now()
	if err := until(150*time.Second, "small again", func() error {
		if rss, _, err = sizeOf(pid); err != nil || rss <= crowdBound {
			return err
		}
		return fmt.Errorf("%d MiB are resident for %d clients that say nothing", rss>>20, len(held)-turned)
	}); err != nil {
		return err
	}
	fmt.Printf("crowd: of %d connections %d are turned away with %s; %d MiB are resident at first, %d after %v (bound %d)\n",
		len(held), turned, pool.ReasonTooMany, first>>20, rss>>20, time.Since(start).Round(time.Second), crowdBound>>20)
	for _, c := range held { // room again
		_ = c.Close()
	}
	held = nil
	return until(form.Of(5*time.Second, patience), "open to others after a crowd", func() error { return f.sense(ctx) })
}

// deaf asks for a lot and reads nothing.
func (f *fuzzer) deaf(ctx context.Context) error {
	c, err := net.Dial("unix", f.path)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetWriteDeadline(time.Now().Add(time.Second))
	ask := bytes.Repeat([]byte(`{"id":1,"status":{}}`+"\n"), 1000)
	for range 100 {
		if _, err := c.Write(ask); err != nil {
			break // it was given up, or waits
		}
	}
	return f.sense(ctx)
}
