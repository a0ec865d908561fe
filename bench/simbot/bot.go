// Package simbot is a bot without processes: it only talks to a server, in few
// instructions, so that many of them beside a server leave the machine to it.
package simbot

import (
	"bytes"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/skepdev/skep/api/botapi"
)

// pollJSON is what a bot says of itself when it polls: dimensions and state of
// a bot as recorded in api/testdata/captures/bot_poll_run.json, with the list
// of packages filled up to the length that the request had on the wire.
//
//go:embed poll.json
var pollJSON []byte

// Bot is one. Its calls are made one at a time; each ends the life of what the
// one before returned.
type Bot struct {
	*Wire
	id      string
	session []byte
	polls   uint64
	buf     []byte

	attributes []byte // of a poll, without the closing brace
}

// Dial connects a bot to a server's URL and shakes hands.
func Dial(url, id string) (*Bot, error) {
	var a botapi.Attributes
	if err := json.Unmarshal(pollJSON, &a); err != nil {
		return nil, err
	}
	a.Dimensions["id"] = []string{id}
	w, err := DialWire(url)
	if err != nil {
		return nil, err
	}
	b := &Bot{Wire: w, id: id}
	if err := b.shake(a); err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("bot %s: %w", id, err)
	}
	return b, nil
}

func (b *Bot) shake(a botapi.Attributes) error {
	body, err := json.Marshal(botapi.HandshakeRequest{Attributes: a, SessionID: "s"})
	if err != nil {
		return err
	}
	ans, err := b.Post(botapi.PathHandshake, JSON, body)
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
func (b *Bot) keep(ans []byte) error {
	s := jsonText(ans, "session")
	if s == nil {
		return fmt.Errorf("an answer without a session: %.200s", ans)
	}
	b.session = append(b.session[:0], s...)
	return nil
}

// request begins a request that says all of the bot.
func (b *Bot) request() []byte {
	p := append(b.buf[:0], b.attributes...)
	p = append(p, `,"session":"`...)
	p = append(p, b.session...)
	return append(p, '"')
}

// Ask sends a poll that may be held for wait seconds.
func (b *Bot) Ask(wait int) error {
	b.polls++
	p := append(b.request(), `,"request_uuid":"0508930d-1ae4-4158-8d81-`...)
	p = AppendPadded(p, b.polls)
	p = append(p, `","wait":`...)
	p = strconv.AppendInt(p, int64(wait), 10)
	p = append(p, '}')
	b.buf = p
	return b.send(botapi.PathPoll, JSON, p)
}

// Answer reads the answer to a poll: its command, which is CmdSleep, CmdRun or
// CmdTerminate, and the task that it is about, if any.
func (b *Bot) Answer() (cmd string, task []byte, err error) {
	ans, err := b.receive(botapi.PathPoll)
	if err != nil {
		return "", nil, err
	}
	if err := b.keep(ans); err != nil {
		return "", nil, err
	}
	switch text := jsonText(ans, "cmd"); string(text) {
	case botapi.CmdSleep:
		return botapi.CmdSleep, nil, nil
	case botapi.CmdRun:
		cmd = botapi.CmdRun
	case botapi.CmdTerminate:
		cmd = botapi.CmdTerminate
	default:
		return "", nil, fmt.Errorf("poll: command %q", text)
	}
	if task = jsonText(ans, "task_id"); task == nil {
		return "", nil, fmt.Errorf("%s without a task: %.200s", cmd, ans)
	}
	return cmd, task, nil
}

// Update sends a task update with more members, which begin with a comma.
func (b *Bot) Update(task, more []byte) error {
	p := append(b.buf[:0], `{"cost_usd":3.51960326457144e-05,"id":"`...)
	p = append(p, b.id...)
	p = append(p, `","session":"`...)
	p = append(p, b.session...)
	p = append(p, `","task_id":"`...)
	p = append(p, task...)
	p = append(p, '"')
	p = append(p, more...)
	p = append(p, '}')
	b.buf = p
	ans, err := b.Post(botapi.PathTaskUpdate+"/"+string(task), JSON, p)
	if err != nil {
		return err
	}
	if !bytes.Contains(ans, []byte(`"ok":true`)) || !bytes.Contains(ans, []byte(`"must_stop":false`)) {
		return fmt.Errorf("update of %s: %.200s", task, ans)
	}
	return b.keep(ans)
}

// Leave ends the task that asked the bot to end, says that the bot ends, and
// hangs up. spec bot.md §3.4.
func (b *Bot) Leave(task []byte) error {
	defer b.Close()
	task = bytes.Clone(task)
	if err := b.Update(task, []byte(`,"duration":0,"exit_code":0`)); err != nil {
		return err
	}
	p := append(b.request(), `,"event":"`+botapi.EventShutdown+`","message":"terminated"}`...)
	b.buf = p
	_, err := b.Post(botapi.PathEvent, JSON, p)
	return err
}

// outputBytes is what a simulated task prints. decisions.md 32.
const outputBytes = 1024

// Output is what a simulated task prints, 1 KiB.
var Output = bytes.Repeat([]byte("0123456789abcde\n"), outputBytes/16)

// What the three updates of a task say beside what every one says: that it
// runs, what it prints, how it ended.
var (
	AtStart    = []byte(nil)
	WithOutput = []byte(`,"output":"` + base64.StdEncoding.EncodeToString(Output) + `","output_chunk_start":0`)
	AtLast     = []byte(`,"bot_overhead":0.9584836959838867,"duration":0.04378771781921387,"exit_code":0,"hard_timeout":false,"io_timeout":false`)
)

// AppendPadded appends n with 12 digits.
func AppendPadded(b []byte, n uint64) []byte {
	for div := uint64(100_000_000_000); div > 0; div /= 10 {
		b = append(b, byte('0'+n/div%10))
	}
	return b
}
