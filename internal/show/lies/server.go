package lies

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/skepdev/skep/api/botapi"
)

// liar is a server that tells its one bot to become a lie, then to run a task,
// then to end.
type liar struct {
	l    *lie
	url  string
	http *http.Server
	told chan struct{} // closed when the bot refused and ran a task
	end  chan struct{} // closed when it may end

	mu       sync.Mutex
	once     sync.Once
	versions map[string]bool // that the bot said it runs
	asked    int             // for code
	refused  bool
	output   []byte
	exit     *int
	ended    bool
}

const (
	runID  = "5a00000000000111"
	stopID = "5a00000000000211"
)

func serve(l *lie) (*liar, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &liar{
		l: l, url: "http://" + ln.Addr().String(), told: make(chan struct{}), end: make(chan struct{}), versions: map[string]bool{},
	}
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = s.http.Serve(ln) }()
	return s, nil
}

func (s *liar) close()  { _ = s.http.Close() }
func (s *liar) mayEnd() { close(s.end) }

// ServeHTTP answers the Bot API.
func (s *liar) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, botapi.PathBotCode) {
		s.mu.Lock()
		s.asked++
		s.mu.Unlock()
		s.l.hand(w, r)
		return
	}
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	switch path := r.URL.Path; {
	case path == botapi.PathHandshake, path == botapi.PathPoll:
		var a struct {
			Version string  `json:"version"`
			Wait    float64 `json:"wait"`
		}
		_ = json.Unmarshal(body, &a)
		s.mu.Lock()
		s.versions[a.Version] = true
		s.mu.Unlock()
		if path == botapi.PathHandshake {
			fmt.Fprint(w, `{"session":"s"}`)
			return
		}
		fmt.Fprint(w, s.poll(r, a.Wait > 0))
	case path == botapi.PathEvent:
		var e struct {
			Event   string `json:"event"`
			Message string `json:"message"`
		}
		_ = json.Unmarshal(body, &e)
		s.event(e.Event, e.Message)
		fmt.Fprint(w, `{}`)
	case strings.HasPrefix(path, botapi.PathTaskUpdate):
		s.update(w, r, body)
	case path == botapi.PathServerPing:
		fmt.Fprint(w, "Server up")
	default:
		fmt.Fprint(w, `{}`)
	}
}

// poll is the answer of the moment: become the lie; once that was refused, run
// a task; in the end, terminate.
func (s *liar) poll(r *http.Request, waits bool) string {
	s.mu.Lock()
	refused, ran := s.refused, s.exit != nil
	s.mu.Unlock()
	switch {
	case !refused:
		return fmt.Sprintf(`{"cmd":"update","version":%q}`, s.l.digest)
	case !ran:
		return `{"cmd":"run","manifest":{"task_id":"` + runID + `","bot_id":"liar","bot_dimensions":{"id":["liar"]},"dimensions":{"id":["liar"]},"command":["sh","-c","echo still here"],"hard_timeout":60,"grace_period":5,"io_timeout":0,"service_accounts":{"system":{"service_account":"none"},"task":{"service_account":"none"}}}}`
	}
	if !waits {
		return `{"cmd":"sleep","duration":0}`
	}
	select {
	case <-s.end:
		return `{"cmd":"terminate","task_id":"` + stopID + `"}`
	case <-r.Context().Done():
		return `{"cmd":"sleep","duration":0}`
	}
}

func (s *liar) event(kind, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if kind == botapi.EventError && strings.Contains(text, s.l.digest) {
		s.refused = true
		s.l.said, _, _ = strings.Cut(text, "\n")
		s.l.said = strings.ReplaceAll(s.l.said, s.l.digest, "…")
	}
}

func (s *liar) update(w http.ResponseWriter, r *http.Request, body []byte) {
	var u struct {
		Output   []byte  `json:"output"`
		ExitCode *int    `json:"exit_code"`
		Wait     float64 `json:"wait"`
	}
	_ = json.Unmarshal(body, &u)
	if u.Wait > 0 {
		select {
		case <-r.Context().Done():
		case <-s.end:
		}
		return
	}
	ours := strings.HasSuffix(r.URL.Path, runID)
	s.mu.Lock()
	if ours {
		s.output = append(s.output, u.Output...)
		if u.ExitCode != nil {
			s.exit = u.ExitCode
			s.once.Do(func() { close(s.told) })
		}
	} else {
		s.ended = true
	}
	s.mu.Unlock()
	fmt.Fprint(w, `{"ok":true,"must_stop":false}`)
}

func (s *liar) state() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf("it asked for code %d times, refused: %v, ran: %v", s.asked, s.refused, s.exit != nil)
}

// verdict says what the bot did wrong. version is what it must have been all
// the time.
func (s *liar) verdict(version string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	if len(s.versions) != 1 || !s.versions[version] {
		errs = append(errs, fmt.Errorf("it said that it runs %v, want only %s", s.versions, version))
	}
	if !strings.Contains(s.l.said, s.l.want) {
		errs = append(errs, fmt.Errorf("its bot_error is %q, want %q in it", s.l.said, s.l.want))
	}
	if string(s.output) != "still here\n" || *s.exit != 0 {
		errs = append(errs, fmt.Errorf("its task printed %q and ended with %d", s.output, *s.exit))
	}
	return errors.Join(errs...)
}
