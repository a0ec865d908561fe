package botcli

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"syscall"
	"time"

	"github.com/skepdev/skep/bot"
	"github.com/skepdev/skep/bot/code"
	"github.com/skepdev/skep/internal/atomicfile"
	"github.com/skepdev/skep/internal/backoff"
	"github.com/skepdev/skep/internal/proc"
)

// Environment of a container that is to become a bot. spec host.md §1.4.
const (
	envCode   = "SWARM_URL"    // where /bot_code is
	envCAFile = "SKEP_CA_FILE" // PEM certificates that vouch for it; "" = the system's
	envDir    = "SKEP_BOT_DIR" // the bot's directory; "" = /b/swarming
)

const (
	exitReboot  = 10               // the bot asked for a restart of its "host". spec host.md §1.4
	rebootGrace = 10 * time.Second // for the bot to end what it does
	maxCode     = 256 << 20        // bytes of a bot
	codeTimeout = 2 * time.Minute  // for one download
)

// inContainer is the first process of a bot's container: it fetches the bot,
// runs it, passes signals and its exit code on, reaps, and ends, with the
// container, when the bot has or asks for a reboot. spec host.md §1.4.
func inContainer(e Env) int {
	secrets := map[string]string{}
	for _, name := range []string{envToken, envBootstrap} {
		v, err := bot.TakeSecret(name)
		if err != nil {
			return fail(e, err)
		}
		if v != "" {
			secrets[name] = v
		}
	}
	if err := bot.HideProcess(); err != nil {
		return fail(e, err)
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGHUP)
	c := &container{env: e, secrets: secrets, dir: os.Getenv(envDir), signals: signals}
	if c.dir == "" {
		c.dir = "/b/swarming"
	}
	return c.run()
}

type container struct {
	env     Env
	secrets map[string]string
	dir     string
	signals chan os.Signal
}

func (c *container) run() int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	type got struct {
		exe string
		err error
	}
	fetched := make(chan got, 1)
	go func() {
		exe, err := c.bot(ctx)
		fetched <- got{exe, err}
	}()
	var g got
	for g == (got{}) {
		select {
		case g = <-fetched:
		case sig := <-c.signals:
			end := 0 // there is no bot that could have work
			switch sig {
			case syscall.SIGTERM, syscall.SIGINT:
			case syscall.SIGUSR1:
				end = exitReboot
			default:
				continue
			}
			cancel()
			<-fetched // what it has on disk is removed
			return end
		}
	}
	if g.err != nil {
		return fail(c.env, g.err)
	}
	env := os.Environ()
	for name, v := range c.secrets {
		env = append(env, name+"="+v)
	}
	p, err := proc.Start(&proc.Cmd{Path: g.exe, Args: []string{g.exe, "start_bot"}, Env: env, Dir: c.dir, Files: []*os.File{nil, os.Stdout, os.Stderr}})
	if err != nil {
		return fail(c.env, err)
	}
	proc.ReapOrphans(p)
	return c.serve(p)
}

// serve passes signals on until the bot has ended.
func (c *container) serve(p *proc.Process) int {
	var late <-chan time.Time
	for {
		select {
		case <-p.Done():
			if late != nil {
				return exitReboot
			}
			status := p.Wait()
			if status.Signal {
				return 128 - status.Code
			}
			return status.Code
		case <-late:
			return exitReboot // the kernel ends the rest
		case sig := <-c.signals:
			if sig == syscall.SIGUSR1 {
				if late == nil {
					late = time.After(rebootGrace)
				}
				sig = syscall.SIGINT
			}
			_ = p.Signal(sig.(syscall.Signal)) // gone: Done tells
		}
	}
}

// bot brings the bot's executable into its directory and returns its path. A
// server that does not answer is asked again; in the meantime the bot that was
// here before does as well, and updates itself.
func (c *container) bot(ctx context.Context) (string, error) {
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return "", err
	}
	exe := filepath.Join(c.dir, "swarming_bot")
	client, from, err := c.client()
	if err != nil {
		return "", err
	}
	pause := backoff.Exponential{Min: 500 * time.Millisecond, Max: 30 * time.Second}
	for try := 0; ; try++ {
		err := c.fetch(ctx, client, from, exe)
		if err == nil {
			return exe, nil
		}
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		fmt.Fprintf(c.env.Stderr, "skep-bot: the bot's code cannot be fetched: %v\n", err)
		if _, old := code.Read(exe); old == nil && try > 0 {
			fmt.Fprintln(c.env.Stderr, "skep-bot: the bot that is here already goes on; it updates itself")
			return exe, nil
		}
		if err := pause.Sleep(ctx, 0); err != nil {
			return "", err
		}
	}
}

func (c *container) client() (*http.Client, string, error) {
	from := os.Getenv(envCode)
	u, err := url.Parse(from)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, "", fmt.Errorf("%s is %q, want https://SERVER/bot_code", envCode, from)
	}
	q := u.Query()
	q.Set("bot_id", botID())
	u.RawQuery = q.Encode()
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if file := os.Getenv(envCAFile); file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, "", err
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, "", fmt.Errorf("%s holds no certificate", file)
		}
	}
	return &http.Client{Timeout: codeTimeout, Transport: &http.Transport{TLSClientConfig: conf, Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}}, u.String(), nil
}

// fetch replaces exe in one step with what the server hands out, when that is a
// bot with the digest that the server's answer names.
func (c *container) fetch(ctx context.Context, client *http.Client, from, exe string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return err
	}
	for _, name := range []string{envBootstrap, envToken} {
		if v := c.secrets[name]; v != "" {
			req.Header.Set("Authorization", "Bearer "+v)
		}
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 256))
		return fmt.Errorf("%s: %s", res.Status, text)
	}
	sum := sha256.New()
	// Beside the bot's directory: the bot refuses one in which a download lies that
	// was cut short.
	tmp := c.dir + ".fetch"
	if err := errors.Join(os.RemoveAll(tmp), os.Mkdir(tmp, 0o700)); err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	next := filepath.Join(tmp, "swarming_bot")
	err = atomicfile.WriteFrom(next, 0o755, func(w io.Writer) error {
		n, err := io.Copy(io.MultiWriter(w, sum), io.LimitReader(res.Body, maxCode+1))
		if err == nil && n > maxCode {
			err = errors.New("the bot is too large")
		}
		return err
	})
	if err != nil {
		return err
	}
	want := path.Base(res.Request.URL.Path)
	if got := hex.EncodeToString(sum.Sum(nil)); len(want) == len(got) && want != got {
		return fmt.Errorf("the bot has digest %s, want %s", got, want)
	}
	if _, err := code.Read(next); err != nil {
		return err
	}
	return os.Rename(next, exe)
}
