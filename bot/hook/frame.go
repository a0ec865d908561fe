package hook

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

// MaxFrame bounds a frame in either direction: two scripts as JSON strings fit.
const MaxFrame = 16 << 20

// Request is one frame from the bot to its hook host. Exactly one of Load, Call
// and Eval is set.
type Request struct {
	ID   uint64       `json:"id"`
	Load *LoadRequest `json:"load,omitempty"`
	Call *CallRequest `json:"call,omitempty"`
	Eval *EvalRequest `json:"eval,omitempty"`
}

// LoadRequest is the first request: what to run.
type LoadRequest struct {
	Base     *Script `json:"base,omitempty"`
	Injected *Script `json:"injected,omitempty"`
}

// CallRequest calls one hook.
type CallRequest struct {
	Hook string            `json:"hook"`
	Args []json.RawMessage `json:"args,omitempty"`
	Bot  Bot               `json:"bot"`

	LimitMS int64 `json:"limit_ms"` // of each function called
}

// EvalRequest runs statements of a person at `skep-bot shell`. What they define
// is there for the next one, as long as the host lives. Values of expressions
// come as ActionPrint.
type EvalRequest struct {
	Source string          `json:"source"`
	Bot    Bot             `json:"bot"`
	Status json.RawMessage `json:"status"` // what status() returns

	LimitMS int64 `json:"limit_ms"`
}

// Answer is one frame from the hook host. Those with an Action come while a
// hook runs; one without ends the request.
type Answer struct {
	ID     uint64            `json:"id"`
	Action *Action           `json:"action,omitempty"`
	Loaded *Loaded           `json:"loaded,omitempty"`
	Value  json.RawMessage   `json:"value,omitempty"`
	Args   []json.RawMessage `json:"args,omitempty"`
	Error  *Error            `json:"error,omitempty"`
	Last   bool              `json:"last,omitempty"` // the host ends now
}

// Loaded says what each script defines.
type Loaded struct {
	Base     []string `json:"base"`
	Injected []string `json:"injected"`
}

// WriteFrame writes v as four bytes of length, most significant first, and
// JSON.
func WriteFrame(w io.Writer, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(data) > MaxFrame {
		return fmt.Errorf("a frame of %d bytes, at most %d are allowed", len(data), MaxFrame)
	}
	buf := make([]byte, 4, 4+len(data))
	binary.BigEndian.PutUint32(buf, uint32(len(data)))
	_, err = w.Write(append(buf, data...))
	return err
}

// ReadFrame reads one frame into v. The error is io.EOF only between frames.
// Memory is taken as bytes arrive, not as the length promises.
func ReadFrame(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := int64(binary.BigEndian.Uint32(head[:]))
	if n > MaxFrame {
		return fmt.Errorf("a frame of %d bytes, at most %d are allowed", n, MaxFrame)
	}
	data, err := io.ReadAll(io.LimitReader(r, n))
	if err != nil {
		return err
	}
	if int64(len(data)) < n {
		return io.ErrUnexpectedEOF
	}
	return json.Unmarshal(data, v)
}
