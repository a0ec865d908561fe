// Package foreign shows what can be shown of bots for other systems on this
// one: the Windows executable starts under Wine, shakes hands and runs tasks;
// what is for macOS compiles.
package foreign

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/bot/code"
	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/internal/proc"
	"github.com/skepdev/skep/internal/stage/fleet"
)

const botID = "wine-1"

// errBlocked marks what this machine lacks, as opposed to what is wrong with
// the bot. Neither passes.
var errBlocked = errors.New("BLOCKED")

// Main runs the demonstration and returns an exit code.
func Main(args []string) int {
	flags := flag.NewFlagSet("foreign", flag.ExitOnError)
	_ = flags.Parse(args)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "skep-foreign-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = errors.Join(windows(ctx, dir), darwin(ctx))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "show foreign:", err)
		return 1
	}
	fmt.Println("passed")
	return 0
}

// darwin compiles everything for macOS, tests too, and runs those that look at
// what a bot does there without needing it.
func darwin(ctx context.Context) error {
	for _, args := range [][]string{
		{"run", "./internal/crosscheck", "darwin/amd64", "darwin/arm64"},
		{"test", "./bot", "./bot/code", "./bot/platform", "./server", "-run", "Reboot|Inspect|Darwin|Mac|Format|Bootstrap|Plist|Platform"},
	} {
		start := time.Now()
		out, err := exec.CommandContext(ctx, "go", args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
		fmt.Printf("darwin: go %s: ok, %v\n", strings.Join(args[:2], " "), time.Since(start).Round(time.Second))
	}
	return nil
}

// wine is a Windows of its own in dir.
type wine struct{ exe, dir string }

func openWine(ctx context.Context, dir string) (*wine, error) {
	w := &wine{dir: filepath.Join(dir, "wine")}
	for _, name := range []string{"/usr/lib/wine/wine64", "wine64", "wine"} {
		if exe, err := exec.LookPath(name); err == nil {
			w.exe = exe
			break
		}
	}
	if w.exe == "" {
		return nil, fmt.Errorf("%w: there is no Wine here; on Debian: apt-get install --no-install-recommends wine wine64", errBlocked)
	}
	if err := os.Mkdir(w.dir, 0o700); err != nil {
		return nil, err
	}
	version, _ := w.run(ctx, "--version")
	start := time.Now()
	out, err := w.run(ctx, "wineboot", "--init")
	if err != nil {
		return nil, fmt.Errorf("%w: Wine does not start: %w\n%s", errBlocked, err, out)
	}
	fmt.Printf("%s is ready after %v\n", strings.TrimSpace(version), time.Since(start).Round(time.Millisecond))
	dll := filepath.Join(w.dir, "drive_c", "windows", "system32", "bcryptprimitives.dll")
	if _, err := os.Stat(dll); err == nil {
		return w, nil
	}
	fmt.Println("this Wine has no bcryptprimitives.dll, which every Go program wants; it is lent one that forwards to advapi32")
	return w, os.WriteFile(dll, forwarder("bcryptprimitives.dll", "ProcessPrng", "advapi32.SystemFunction036"), 0o644)
}

func (w *wine) environ() []string {
	return []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + w.dir, "WINEPREFIX=" + w.dir, "WINEDEBUG=-all", "WINEDLLOVERRIDES=mscoree,mshtml=",
		"SWARMING_BOT_ID=" + botID, "SKEP_REBOOT=none",
	}
}

func (w *wine) run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	// A file, since Wine leaves services behind that would hold a pipe open.
	out, err := os.CreateTemp(w.dir, "out")
	if err != nil {
		return "", err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd := exec.CommandContext(ctx, w.exe, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = w.environ(), out, out
	err = cmd.Run()
	text, _ := os.ReadFile(out.Name())
	return string(text), err
}

// close ends all that runs in it.
func (w *wine) close() {
	cmd := exec.Command("wineserver", "-k")
	cmd.Env = w.environ()
	_ = cmd.Run()
}

func windows(ctx context.Context, dir string) (err error) {
	builds := filepath.Join(dir, "builds")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(builds, "skep-bot-windows-amd64.exe"), "./cmd/skep-bot")
	cmd.Env = append(os.Environ(), "GOOS=windows", "GOARCH=amd64", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build skep-bot for Windows: %w\n%s", err, out)
	}
	w, err := openWine(ctx, dir)
	if err != nil {
		return err
	}
	defer w.close()
	skep, err := filepath.Abs("bin/skep")
	if err != nil {
		return err
	}
	f, err := fleet.Start(ctx, "", skep, "server", "--listen", "127.0.0.1:0", "--state-dir", filepath.Join(dir, "state"), "--bot-dir", builds)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Stop()) }()
	home := filepath.Join(dir, "bot")
	exe := filepath.Join(home, "swarming_bot.exe")
	if err := os.Mkdir(home, 0o700); err != nil {
		return err
	}
	digest, err := download(ctx, f.URL, exe)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			logs, _ := filepath.Glob(filepath.Join(home, "logs", "*.log"))
			for _, l := range logs {
				text, _ := os.ReadFile(l)
				err = fmt.Errorf("%w\n%s:\n%s", err, filepath.Base(l), text[max(0, len(text)-2000):])
			}
		}
	}()
	out, err := w.run(ctx, exe, "version")
	if err != nil || strings.TrimSpace(out) != digest {
		return fmt.Errorf("version: %w\n%s", cmp.Or(err, fmt.Errorf("want %s", digest)), out)
	}
	fmt.Printf("windows: version prints the digest that the server promised, %s\n", digest)
	if out, err = w.run(ctx, exe, "is_fine"); err != nil {
		return fmt.Errorf("is_fine: %w\n%s", err, out)
	}
	fmt.Println("windows: is_fine is content")
	return live(ctx, w, f, exe, digest, skep)
}

// live lets the bot connect, run tasks and end.
func live(ctx context.Context, w *wine, f *fleet.Fleet, exe, digest, skep string) error {
	out, err := os.Create(filepath.Join(w.dir, "bot.log"))
	if err != nil {
		return err
	}
	defer out.Close()
	start := time.Now()
	p, err := proc.Start(&proc.Cmd{
		Path: w.exe, Args: []string{w.exe, exe, "start_bot"}, Dir: filepath.Dir(exe), Files: []*os.File{nil, out, out}, NewGroup: true, Env: w.environ(),
	})
	if err != nil {
		return err
	}
	defer func() { _ = p.Kill() }()
	api, err := client.New(client.Options{Server: f.URL})
	if err != nil {
		return err
	}
	var b *pb.BotInfo
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if b, err = api.GetBot(ctx, &pb.BotRequest{BotId: botID}); err == nil {
			break
		}
		select {
		case <-p.Done():
			text, _ := os.ReadFile(out.Name())
			return fmt.Errorf("the bot ended, exit code %d\n%s", p.Wait().Code, text)
		default:
		}
		if time.Now().After(end) {
			return fmt.Errorf("no handshake: %w", err)
		}
	}
	if b.Version != digest {
		return fmt.Errorf("it says that it runs %s, want %s", b.Version, digest)
	}
	fmt.Printf("windows: connected after %v, as %v\n", time.Since(start).Round(time.Millisecond), dimension(b, "os"))
	for _, t := range []struct {
		line []string
		want string
		code int
	}{
		{[]string{"cmd", "/c", "echo hi"}, "hi", 0},
		{[]string{"cmd", "/c", "exit 3"}, "", 3},
		{[]string{"cmd", "/c", "echo %SWARMING_TASK_ID%"}, "", 0},
	} {
		start := time.Now()
		cmd := exec.CommandContext(ctx, skep, append([]string{"run", "--server", f.URL, "-d", "id=" + botID, "--"}, t.line...)...)
		got, err := cmd.Output()
		if e, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || e.ExitCode() != t.code) || err == nil && t.code != 0 || !strings.Contains(string(got), t.want) {
			return fmt.Errorf("task %q: %q, %w", t.line, got, err)
		}
		fmt.Printf("windows: task %q: %q, exit code %d, %v\n", t.line, got, t.code, time.Since(start).Round(time.Millisecond))
	}
	if _, err := api.TerminateBot(ctx, &pb.TerminateRequest{BotId: botID}); err != nil {
		return err
	}
	select {
	case <-p.Done():
	case <-time.After(30 * time.Second):
		return errors.New("the bot did not end when it was terminated")
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(exe), "w?*")); len(left) > 0 {
		return fmt.Errorf("left behind: %v", left)
	}
	fmt.Printf("windows: terminated, exit code %d\n", p.Wait().Code)
	return nil
}

func dimension(b *pb.BotInfo, key string) []string {
	for _, d := range b.Dimensions {
		if d.Key == key {
			return d.Value
		}
	}
	return nil
}

// download fetches the Windows bot as a person does, and returns the digest
// that its address promises.
func download(ctx context.Context, server, to string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server+"/bot_code?os=windows&arch=amd64", nil)
	if err != nil {
		return "", err
	}
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return "", fmt.Errorf("/bot_code answers %s", res.Status)
	}
	digest := path.Base(res.Request.URL.Path)
	f, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return "", err
	}
	if _, err := io.Copy(f, res.Body); err != nil {
		return "", err
	}
	if err := f.Close(); err != nil {
		return "", err
	}
	have, err := code.Version(to)
	if err == nil && have != digest {
		err = fmt.Errorf("what came is %s, not %s", have, digest)
	}
	return digest, err
}
