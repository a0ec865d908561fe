package cli_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// fetchMain prints what is at an URL.
func fetchMain() {
	res, err := http.Get(os.Args[1]) //nolint:noctx // a script waits for it
	if err == nil {
		defer res.Body.Close()
		_, err = io.Copy(os.Stdout, res.Body)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// cloudMain is a plug-in program of docs/wire/provider-exec.md whose machines
// are real bots on this host, of whatever server the order names: cloud DIR VERB.
// What it starts ends with it, so cloud DIR serve starts the machines.
func cloudMain() {
	dir, err := filepath.Abs(os.Args[1])
	if err != nil {
		panic(err)
	}
	c := cloud{dir: dir, name: os.Getenv("SKEP_NAME")}
	if os.Args[2] == "serve" {
		c.serve()
	}
	answer, err := c.do(os.Args[2])
	if err != nil {
		answer = map[string]any{"error": map[string]string{"class": "transient", "reason": "cloud", "text": err.Error()}}
	}
	_ = json.NewEncoder(os.Stdout).Encode(answer)
}

type cloud struct{ dir, name string }

// record is a machine, DIR/NAME.json; its bot is in DIR/NAME.
type record struct {
	Request string            `json:"request"`
	Created time.Time         `json:"created"`
	Labels  map[string]string `json:"labels"`
	Server  string            `json:"server"`
}

func (c *cloud) path() string { return filepath.Join(c.dir, c.name+".json") }

func (c *cloud) read(path string) (r record, err error) {
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	return r, err
}

func (c *cloud) write(r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.path()+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(c.path()+".new", c.path())
}

func describe(name string, r record) map[string]any {
	return map[string]any{"name": name, "url": "cloud:" + name + "/" + r.Request, "created": r.Created, "labels": r.Labels}
}

func (c *cloud) do(verb string) (map[string]any, error) {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, err
	}
	switch verb {
	case "create":
		return c.create()
	case "get":
		r, err := c.read(c.path())
		if errors.Is(err, fs.ErrNotExist) {
			return map[string]any{"error": map[string]string{"class": "not_found", "reason": "cloud", "text": "no " + c.name}}, nil
		}
		return map[string]any{"instance": describe(c.name, r)}, err
	case "delete":
		endBots(c.dir, c.name)
		for _, path := range []string{filepath.Join(c.dir, c.name), c.path()} {
			if err := os.RemoveAll(path); err != nil {
				return nil, err
			}
		}
		return map[string]any{"done": true}, nil
	case "list":
		paths, err := filepath.Glob(filepath.Join(c.dir, "*.json"))
		all := []any{}
		for _, path := range paths {
			if r, err := c.read(path); err == nil { // else it is being taken away
				all = append(all, describe(strings.TrimSuffix(filepath.Base(path), ".json"), r))
			}
		}
		return map[string]any{"instances": all}, err
	}
	return nil, fmt.Errorf("unknown verb %s", verb)
}

func (c *cloud) create() (map[string]any, error) {
	request := os.Getenv("SKEP_REQUEST_ID")
	r, err := c.read(c.path())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r = record{Request: request, Created: time.Now(), Server: os.Getenv("SKEP_SERVER")}
		if err := json.Unmarshal([]byte(os.Getenv("SKEP_LABELS")), &r.Labels); err != nil {
			return nil, err
		}
		if err := c.write(r); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	case r.Request != request:
		return map[string]any{"error": map[string]string{"class": "conflict", "reason": "cloud", "text": c.name + " exists"}}, nil
	}
	return map[string]any{"done": true}, nil
}

// serve starts the bots of machines that have none, until it is killed.
func (c *cloud) serve() {
	for ; ; time.Sleep(50 * time.Millisecond) {
		paths, _ := filepath.Glob(filepath.Join(c.dir, "*.json"))
		for _, path := range paths {
			c.name = strings.TrimSuffix(filepath.Base(path), ".json")
			home := filepath.Join(c.dir, c.name)
			if _, err := os.Stat(home); err == nil {
				continue
			}
			r, err := c.read(path)
			if err == nil {
				err = c.start(r.Server)
			}
			if now, gone := c.read(path); err != nil || gone != nil || now.Request != r.Request { // or it was taken away meanwhile
				fmt.Fprintln(os.Stderr, c.name, err)
				endBots(c.dir, c.name)
				_ = os.RemoveAll(home)
			}
		}
	}
}

// start makes the machine a bot: it asks its server for the bot code, as an
// image does.
func (c *cloud) start(server string) error {
	token, err := os.ReadFile(c.dir + ".token") // of its bots; a server that is open needs none
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	req, err := http.NewRequest(http.MethodGet, server+"/bot_code?bot_id="+c.name, nil) //nolint:noctx // a script waits for it
	if err != nil {
		return err
	}
	req.Header.Set("Accept-Encoding", "identity") // the bot is this test's executable: to pack it takes a minute
	if len(token) > 0 {
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("bot code: %s", res.Status)
	}
	bot := filepath.Join(c.dir, c.name, "swarming_bot")
	if err := os.MkdirAll(filepath.Dir(bot), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(bot, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o700)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, res.Body)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	cmd := exec.Command("setsid", bot, "start_bot")
	cmd.Dir = filepath.Dir(bot)
	cmd.Env = append(os.Environ(), "SWARMING_BOT_ID="+c.name)
	if len(token) > 0 {
		cmd.Env = append(cmd.Env, "SKEP_BOT_TOKEN="+strings.TrimSpace(string(token)))
	}
	return cmd.Start() // it outlives this program
}
