package bench

import (
	"bytes"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"sync/atomic"

	"github.com/skepdev/skep/api/botapi"
)

// pollJSON is what a bot says of itself when it polls: dimensions and state of
// a bot as recorded in api/testdata/captures/bot_poll_run.json, with the list
// of packages filled up to the length that the request had on the wire.
//
//go:embed poll.json
var pollJSON []byte

// simBot is a bot that has no processes: it only talks.
type simBot struct {
	*wire
	id      string
	session []byte
	polls   uint64
	buf     []byte

	attributes []byte // of a poll, without the closing brace
}

// dialBot connects a bot and shakes hands.
func dialBot(url, id string) (*simBot, error) {
	var a botapi.Attributes
	if err := json.Unmarshal(pollJSON, &a); err != nil {
		return nil, err
	}
	a.Dimensions["id"] = []string{id}
	w, err := dialWire(url)
	if err != nil {
		return nil, err
	}
	b := &simBot{wire: w, id: id}
	if err := b.shake(a); err != nil {
		w.Close()
		return nil, fmt.Errorf("bot %s: %w", id, err)
	}
	return b, nil
}

func (b *simBot) shake(a botapi.Attributes) error {
	body, err := json.Marshal(botapi.HandshakeRequest{Attributes: a, SessionID: "s"})
	if err != nil {
		return err
	}
	ans, err := b.post(botapi.PathHandshake, jsonType, body)
	if err != nil {
		return err
	}
	if err := b.keep(ans); err != nil {
		return err
	}
	if body, err = json.Marshal(a); err != nil {
		return err
	}
	b.attributes = bytes.TrimSuffix(body, []byte("}"))
	return nil
}

// keep notes the newest session.
func (b *simBot) keep(ans []byte) error {
	s := jsonText(ans, "session")
	if s == nil {
		return fmt.Errorf("an answer without a session: %.200s", ans)
	}
	b.session = append(b.session[:0], s...)
	return nil
}

// ask sends a poll that may be held for wait seconds.
func (b *simBot) ask(wait int) error {
	b.polls++
	p := append(b.buf[:0], b.attributes...)
	p = append(p, `,"session":"`...)
	p = append(p, b.session...)
	p = append(p, `","request_uuid":"0508930d-1ae4-4158-8d81-`...)
	p = appendPadded(p, b.polls)
	p = append(p, `","wait":`...)
	p = strconv.AppendInt(p, int64(wait), 10)
	p = append(p, '}')
	b.buf = p
	return b.send(botapi.PathPoll, jsonType, p)
}

// answer reads the answer to a poll; run is empty when there was no work.
func (b *simBot) answer() (run []byte, err error) {
	ans, err := b.receive(botapi.PathPoll)
	if err != nil {
		return nil, err
	}
	if err := b.keep(ans); err != nil {
		return nil, err
	}
	switch cmd := jsonText(ans, "cmd"); string(cmd) {
	case botapi.CmdSleep:
		return nil, nil
	case botapi.CmdRun:
		if run = jsonText(ans, "task_id"); run == nil {
			return nil, fmt.Errorf("a manifest without a task: %.200s", ans)
		}
		return run, nil
	default:
		return nil, fmt.Errorf("poll: command %q", cmd)
	}
}

// update sends a task update with more members, which begin with a comma.
func (b *simBot) update(run, more []byte) error {
	p := append(b.buf[:0], `{"cost_usd":3.51960326457144e-05,"id":"`...)
	p = append(p, b.id...)
	p = append(p, `","session":"`...)
	p = append(p, b.session...)
	p = append(p, `","task_id":"`...)
	p = append(p, run...)
	p = append(p, '"')
	p = append(p, more...)
	p = append(p, '}')
	b.buf = p
	ans, err := b.post(botapi.PathTaskUpdate+"/"+string(run), jsonType, p)
	if err != nil {
		return err
	}
	if !bytes.Contains(ans, []byte(`"ok":true`)) || !bytes.Contains(ans, []byte(`"must_stop":false`)) {
		return fmt.Errorf("update of %s: %.200s", run, ans)
	}
	return b.keep(ans)
}

// outputBytes is what a simulated task prints. decisions.md 32.
const outputBytes = 1024

var (
	output      = bytes.Repeat([]byte("0123456789abcde\n"), outputBytes/16)
	moreOutput  = []byte(`,"output":"` + base64.StdEncoding.EncodeToString(output) + `","output_chunk_start":0`)
	moreAtLast  = []byte(`,"bot_overhead":0.9584836959838867,"duration":0.04378771781921387,"exit_code":0,"hard_timeout":false,"io_timeout":false`)
	moreAtStart = []byte(nil)
)

// appendPadded appends n with 12 digits.
func appendPadded(b []byte, n uint64) []byte {
	for div := uint64(100_000_000_000); div > 0; div /= 10 {
		b = append(b, byte('0'+n/div%10))
	}
	return b
}

// scattered turns numbers into others of 12 digits, no two into the same, so
// that ids made of them come in no order, as random ones do.
func scattered(n uint64) uint64 { return n * 618_033_988_749 % 1_000_000_000_000 }

// sequence numbers the tasks of this process.
var sequence atomic.Uint64
