package server

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strconv"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/internal/jsonscan"
)

// decodeMembers reads a JSON object: field returns where a member goes, nil
// for one that is not known. It does for the calls that are made all the time
// what decode does for the others, in a third of the time; names must be
// written as they are.
func decodeMembers(body []byte, field func(name []byte) any) error {
	err := jsonscan.Members(body, func(name, value []byte) error {
		if to := field(name); to != nil {
			return member(name, value, to)
		}
		return nil
	})
	return badBody(err)
}

// badBody tells what jsonscan says against a body.
func badBody(err error) error {
	if errors.Is(err, jsonscan.ErrSyntax) || errors.Is(err, jsonscan.ErrNotObject) {
		return skep.Invalidf("body", "is not the JSON expected: %v", err)
	}
	return err
}

// member decodes one member of a body, of which the scanner knows that it is
// JSON. Plain values are read here, others by encoding/json.
func member(name, value []byte, to any) error {
	if plainMember(value, to) {
		return nil
	}
	err := json.Unmarshal(value, to)
	if te, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return skep.Invalidf(string(name), "is a JSON %s, want %s", te.Value, te.Type)
	}
	if err != nil {
		return skep.Invalidf(string(name), "is not the JSON expected: %v", err)
	}
	return nil
}

// plainMember stores a value whose text is what it means. It returns false
// where it is not sure.
func plainMember(value []byte, to any) (ok bool) {
	switch to := to.(type) {
	case *string:
		text, ok := plainText(value)
		if ok {
			*to = string(text)
		}
		return ok
	case *[]byte:
		text, ok := plainText(value)
		if !ok {
			return false
		}
		b := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
		n, err := base64.StdEncoding.Decode(b, text)
		if err == nil {
			*to = b[:n]
		}
		return err == nil
	case *bool:
		switch string(value) {
		case "true":
			*to = true
		case "false":
			*to = false
		default:
			return false
		}
		return true
	case *int64:
		n, err := strconv.ParseInt(string(value), 10, 64)
		if err == nil {
			*to = n
		}
		return err == nil
	case *float64:
		f, err := strconv.ParseFloat(string(value), 64)
		if err == nil && isNumber(value) {
			*to = f
			return true
		}
		return false
	case **int64:
		n := new(int64)
		if ok = plainMember(value, n); ok {
			*to = n
		}
		return ok
	case **float64:
		f := new(float64)
		if ok = plainMember(value, f); ok {
			*to = f
		}
		return ok
	}
	return false
}

// isNumber tells a JSON number from the other values.
func isNumber(value []byte) bool {
	return len(value) > 0 && (value[0] == '-' || value[0] >= '0' && value[0] <= '9')
}

// plainText returns what stands between the quotes of a JSON string without
// escapes.
func plainText(value []byte) (text []byte, ok bool) {
	if len(value) < 2 || value[0] != '"' || bytes.IndexByte(value, '\\') >= 0 {
		return nil, false
	}
	return value[1 : len(value)-1], true
}

// updateField returns the field of u that a member of a task_update goes to.
func updateField(u *botapi.TaskUpdate, name []byte) any {
	switch string(name) {
	case "id":
		return &u.ID
	case "task_id":
		return &u.TaskID
	case "session":
		return &u.Session
	case "cost_usd":
		return &u.CostUSD
	case "output":
		return &u.Output
	case "output_chunk_start":
		return &u.OutputChunkStart
	case "duration":
		return &u.Duration
	case "exit_code":
		return &u.ExitCode
	case "hard_timeout":
		return &u.HardTimeout
	case "io_timeout":
		return &u.IOTimeout
	case "canceled":
		return &u.Canceled
	case "bot_overhead":
		return &u.BotOverhead
	case "cas_output_root":
		return &u.CASOutputRoot
	case "cipd_pins":
		return &u.CIPDPins
	case "isolated_stats":
		return &u.IsolatedStats
	case "cipd_stats":
		return &u.CIPDStats
	case "named_caches_stats":
		return &u.NamedCachesStats
	case "cache_trim_stats":
		return &u.CacheTrimStats
	case "cleanup_stats":
		return &u.CleanupStats
	case "wait":
		return &u.Wait
	case "watched":
		return &u.Watched
	}
	return nil
}
