package botapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// ErrBadCommand is in the chain of a Poll error when an answer came that is no
// command. It used up the request's UUID: asked again with the same one, the
// server would repeat the answer. spec bot.md §2.7.
var ErrBadCommand = errors.New("not a command")

// Error is a call without success: refused, or not answered.
type Error struct {
	Path       string        // which call
	Status     int           // HTTP status; 0 when no answer came
	Reason     string        // ErrorResponse.Reason, "" from a foreign server
	Field      string        // ErrorResponse.Field
	Text       string        // for a person
	Transient  bool          // the same call may succeed later
	RetryAfter time.Duration // what the server asked for; 0 = nothing

	cause error
}

func (e *Error) Error() string {
	if e.Status == 0 || e.Status == http.StatusOK {
		return fmt.Sprintf("%s: %s", e.Path, e.Text)
	}
	return fmt.Sprintf("%s: %d: %s", e.Path, e.Status, e.Text)
}

// Unwrap returns the network's or the context's error, if there was one.
func (e *Error) Unwrap() error { return e.cause }

// IsTransient reports whether the same call may succeed later: no connection,
// a broken answer, 408, 429 or 5xx. It is false for a call that its own caller
// gave up, and for errors that are not of a Client. spec bot.md §2.2.
func IsTransient(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Transient
}

// StatusOf returns the HTTP status of a refusal, 0 for any other error.
func StatusOf(err error) int {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Status
	}
	return 0
}

func refusal(path string, res *http.Response, body []byte) error {
	e := &Error{Path: path, Status: res.StatusCode, Text: http.StatusText(res.StatusCode)}
	isJSON := strings.HasPrefix(strings.ToLower(res.Header.Get("Content-Type")), "application/json")
	var er struct {
		ErrorResponse
		Text string `json:"text"` // the Python server's word
	}
	switch {
	case json.Unmarshal(body, &er) == nil && er.Error != "":
		e.Text, e.Reason, e.Field = er.Error, er.Reason, er.Field
	case er.Text != "":
		e.Text = er.Text
	case len(body) > 0 && utf8.Valid(body) && strings.HasPrefix(res.Header.Get("Content-Type"), "text/plain"):
		e.Text = firstLine(string(body))
	}
	switch {
	case res.StatusCode == http.StatusRequestTimeout, res.StatusCode == http.StatusTooManyRequests, res.StatusCode >= 500:
		e.Transient = true
	case res.StatusCode == http.StatusNotFound && !isJSON:
		// Not the Bot API's answer: something before the server, or a server that
		// is just being replaced. spec bot.md §2.2.
		e.Transient = true
	}
	if secs, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && secs > 0 {
		e.RetryAfter = time.Duration(min(secs, 3600)) * time.Second
	}
	return e
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	if r := []rune(s); len(r) > 500 {
		return string(r[:500]) + "…"
	}
	return s
}
