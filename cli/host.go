package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/engine"
	"github.com/skepdev/skep/host/engine/docker"
	"github.com/skepdev/skep/host/launch"
	"github.com/skepdev/skep/internal/proc"
)

// newHostCommand: the container launcher. spec host.md part 1.
func newHostCommand(env *Env) *cobra.Command {
	cmd := group("host", "Keep bot containers running on this computer")
	once := group("once", "Do one pass, as cron would")
	once.AddCommand(newLaunchCommand(env, true))
	run := newLaunchCommand(env, false)
	cmd.AddCommand(once, run, newHostStatusCommand(env),
		newHostAskCommand(env, "drain", "Let a slot's bot, or all of the host, finish and start no other"),
		newHostAskCommand(env, "undrain", "Take a drain back: slots get bots again"),
		newHostAskCommand(env, "reboot", "Drain the host and restart it when it is empty"))
	return cmd
}

// hostFlags are those of the launcher that is known, and ours beside them.
// spec host.md §1.1.
type hostFlags struct {
	verbose, canary                    bool
	slots                              int
	dockerVersion, imageName, registry string
	maxAge, maxHostAge, rebootGrace    int // minutes
	server                             string

	image, engine, engineRestart, rebootCommand                          string
	root, stateDir, lockDir, socket, tokenDir, caFile, settings, network string
	hostname, name, owner, version, socketGroup                          string
	callTimeout, deadline, stopGrace, refresh                            time.Duration
	deadlines                                                            map[string]string
	maxUnavailable                                                       int
	addHosts, mounts                                                     []string
}

const defaultSocket = "/run/skep-host.sock"

func newLaunchCommand(env *Env, once bool) *cobra.Command {
	var f hostFlags
	cmd := &cobra.Command{
		Use: "run [flags]", Short: "Keep the containers running", Args: noArgs,
		Long: "Keep a number of bot containers running: on what the container engine tells, and a look at everything every minute.",
	}
	if once {
		cmd.Use, cmd.Short = "launch [flags]", "Bring the host to its number of containers"
		cmd.Long = "Bring the host to its number of containers, in one pass that leaves nothing behind; fit for cron every 5 minutes."
	}
	fl := cmd.Flags()
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "log more")
	fl.IntVar(&f.slots, "num-containers", 10, "wanted containers")
	fl.BoolVarP(&f.canary, "canary", "c", false, "update the engine to its newest version before a reboot")
	fl.StringVar(&f.dockerVersion, "docker-version", "", "`VERSION` of docker-ce to install before a reboot (default: do not touch)")
	fl.IntVar(&f.maxAge, "max-container-uptime", 240, "`MINUTES` after which a container is asked to end; 0 = never")
	fl.IntVar(&f.maxHostAge, "max-host-uptime", 1440, "`MINUTES` after which the host reboots, and up to 20 % more; 0 = never")
	fl.IntVar(&f.rebootGrace, "reboot-grace-period", 240, "`MINUTES` that bots have before the host reboots anyway")
	fl.StringVar(&f.imageName, "image-name", "swarm_docker:latest", "`NAME` of the image in the registry project")
	fl.StringVar(&f.registry, "registry-project", "chromium-container-registry", "`PROJECT` at gcr.io")
	fl.StringVar(&f.server, "swarming-server", "https://chromium-swarm.appspot.com", "`URL` of the server")
	fl.StringVar(&f.image, "image", "", "whole `NAME` of the image, best with @sha256:…; instead of --image-name")
	fl.StringVar(&f.engine, "engine", docker.DefaultHost, "`SOCKET` of the container engine")
	fl.StringVar(&f.engineRestart, "engine-restart-command", "systemctl restart docker", "`COMMAND` against an engine that hangs, \"\" = none")
	fl.StringVar(&f.rebootCommand, "reboot-command", "/sbin/shutdown -r now", "`COMMAND` that restarts the host, \"\" = none may, whatever its uptime")
	fl.StringVar(&f.root, "root", "/b", "`DIR` of control files and of the slots' directories")
	fl.StringVar(&f.stateDir, "state-dir", "/var/lib/skep-host", "`DIR` of journal and post-mortems")
	fl.StringVar(&f.lockDir, "lock-dir", "/var/lock", "`DIR` of one lock file a container")
	fl.StringVar(&f.tokenDir, "token-dir", "", "`DIR` with 000.tok or 000.bootstrap.tok for each slot's bot")
	fl.StringVar(&f.caFile, "ca-file", "", "`FILE` with certificates that vouch for the server")
	fl.StringVar(&f.settings, "settings", "", "JSON `FILE` with num_containers, image, max_container_uptime, max_unavailable in place of the flags; followed when it changes")
	fl.StringVar(&f.network, "network", "", "`NETWORK` of the containers (default: the engine's bridge)")
	fl.StringArrayVar(&f.addHosts, "add-host", nil, "`NAME:ADDRESS` that containers know; repeatable")
	fl.StringArrayVar(&f.mounts, "mount", nil, "`SOURCE:TARGET[:ro]` of the host that containers see; repeatable")
	fl.StringVar(&f.hostname, "hostname", "", "`NAME` of this host (default: its own)")
	fl.StringVar(&f.name, "name", "skep", "`NAME` of this launcher: it owns the containers with this label")
	fl.StringVar(&f.owner, "bot-user", "", "`USER` who owns new slot directories (default: root)")
	fl.StringVar(&f.version, "package-version", "", "`ID` of this launcher's package; containers of another are replaced")
	fl.DurationVar(&f.callTimeout, "engine-timeout", engine.Timeout, "what a call into the engine may take")
	fl.DurationVar(&f.deadline, "drain-deadline", 4*time.Hour, "what a drain may take before the bot is stopped")
	fl.StringToStringVar(&f.deadlines, "drain-deadline-for", nil, "the same for `CAUSE=DURATION`: stamp, host, reboot, hostage, surplus, age, image, version")
	fl.DurationVar(&f.stopGrace, "stop-grace", 30*time.Second, "what a stopped bot has before its container is killed")
	fl.DurationVar(&f.refresh, "refresh-image", 5*time.Minute, "between looks for a newer image under a name without digest; 0 = never")
	fl.IntVar(&f.maxUnavailable, "max-unavailable", 1, "slots that a roll-out may leave without a bot that takes work")
	if !once {
		registerSocket(cmd, &f.socket)
		fl.StringVar(&f.socketGroup, "socket-group", "", "`GROUP` whose members may use the socket too")
	}
	cmd.RunE = env.action(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
		return f.run(ctx, env, cmd, once)
	})
	return cmd
}

func (f *hostFlags) run(ctx context.Context, env *Env, cmd *cobra.Command, once bool) error {
	o, live, err := f.options(env, cmd)
	if err != nil {
		return err
	}
	e, err := docker.New(f.engine, f.callTimeout)
	if err != nil {
		return err
	}
	defer e.Close()
	o.Engine = e
	l, err := launch.Open(o)
	if err != nil {
		return err
	}
	defer l.Close()
	if once {
		return l.Once(ctx)
	}
	door, err := openDoor(f.socket, f.socketGroup, l.Handler())
	if err != nil {
		return err
	}
	var parts sync.WaitGroup
	defer parts.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	parts.Go(func() { door(ctx) })
	follow, err := live.follow(f.settings, l.Wake, o.Log)
	if err != nil {
		return err
	}
	parts.Go(func() { follow(ctx) })
	if err := l.Run(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func (f *hostFlags) options(env *Env, cmd *cobra.Command) (launch.Options, *hostSettings, error) {
	var o launch.Options
	if runtime.GOOS != "linux" {
		return o, nil, errors.New("skep host is for Linux")
	}
	if f.maxHostAge != 0 && f.maxHostAge < 60 {
		return o, nil, usageErrorf(cmd, "--max-host-uptime is %d, want 0 or at least 60", f.maxHostAge)
	}
	if f.slots < 0 || f.slots > 1000 {
		return o, nil, usageErrorf(cmd, "--num-containers is %d, want 0 to 1000", f.slots)
	}
	level := slog.LevelInfo
	if f.verbose {
		level = slog.LevelDebug
	}
	o = launch.Options{
		Name: f.name, Root: f.root, StateDir: f.stateDir, LockDir: f.lockDir, Server: f.server, CAFile: f.caFile, TokenDir: f.tokenDir,
		Network: f.network, Version: f.version, Hosts: f.addHosts, HostAge: hostAge,
		Log: slog.New(slog.NewTextHandler(env.Stderr, &slog.HandlerOptions{Level: level})),
	}
	o.EngineSocket, _ = strings.CutPrefix(f.engine, "unix://")
	if !filepath.IsAbs(o.EngineSocket) {
		o.EngineSocket = "" // not a file
	}
	fqdn := f.hostname
	if fqdn == "" {
		name, err := os.Hostname()
		if err != nil {
			return o, nil, err
		}
		fqdn = cmp.Or(canonical(name), name)
	}
	o.FQDN = fqdn
	o.Host, _, _ = strings.Cut(fqdn, ".")
	for _, d := range []string{"/dev/kvm", "/dev/net/tun"} { // the second only beside the first. spec host.md §1.4
		if _, err := os.Stat(d); err != nil {
			break
		}
		o.Devices = append(o.Devices, d)
	}
	for _, m := range f.mounts {
		parts := strings.Split(m, ":")
		if len(parts) < 2 || len(parts) > 3 || !filepath.IsAbs(parts[0]) || len(parts) == 3 && parts[2] != "ro" {
			return o, nil, usageErrorf(cmd, "--mount is %q, want SOURCE:TARGET or SOURCE:TARGET:ro with whole paths", m)
		}
		o.Mounts = append(o.Mounts, engine.Mount{Source: parts[0], Target: parts[1], ReadOnly: len(parts) == 3})
	}
	for _, p := range []*string{&o.Root, &o.StateDir, &o.LockDir, &o.CAFile} {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return o, nil, err
		}
		*p = abs
	}
	if f.owner != "" {
		u, err := user.Lookup(f.owner)
		if err != nil {
			return o, nil, usageErrorf(cmd, "--bot-user: %v", err)
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err := errors.Join(err1, err2); err != nil {
			return o, nil, err
		}
		o.Owner = [2]int{uid, gid}
	}
	if words := strings.Fields(f.engineRestart); len(words) > 0 {
		o.RestartEngine = func(ctx context.Context) error { return helper(ctx, words...) }
	}
	if words := strings.Fields(f.rebootCommand); len(words) > 0 {
		o.Reboot = func(ctx context.Context, _ string) error { return helper(ctx, words...) }
	}
	if f.dockerVersion != "" || f.canary {
		o.UpdateEngine = f.updateEngine
	}
	live, err := f.liveSettings(cmd)
	if err != nil {
		return o, nil, err
	}
	o.Settings = live.now
	return o, live, nil
}

// updateEngine installs the engine's package. spec host.md §1.6.
func (f *hostFlags) updateEngine(ctx context.Context) error {
	_ = helper(ctx, "apt-get", "update", "-q") // an old list may do
	what := "docker-ce"
	if !f.canary {
		what += "=" + f.dockerVersion
	}
	return helper(ctx, "apt-get", "install", "-q", "-y", "--allow-downgrades", what)
}

const helperTime = 10 * time.Minute

func helper(ctx context.Context, words ...string) error {
	ctx, cancel := context.WithTimeout(ctx, helperTime)
	defer cancel()
	_, err := proc.Output(ctx, nil, words[0], words[1:]...)
	return err
}

// canonical is a host's fully qualified name, "" when nobody knows.
func canonical(name string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	cname, err := net.DefaultResolver.LookupCNAME(ctx, name)
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(cname, ".")
}

func hostAge() (time.Duration, error) {
	b, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(b), " ")
	secs, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0, fmt.Errorf("/proc/uptime: %w", err)
	}
	return time.Duration(secs * float64(time.Second)), nil
}

func registerSocket(cmd *cobra.Command, socket *string) {
	cmd.Flags().StringVar(socket, "socket", defaultSocket, "`PATH` of the socket where skep host run listens")
}

func newHostStatusCommand(env *Env) *cobra.Command {
	var socket, output string
	cmd := &cobra.Command{Use: "status [flags]", Short: "Show the containers of this host", Args: noArgs}
	registerSocket(cmd, &socket)
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	cmd.RunE = env.action(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
		body, err := askHost(ctx, socket, http.MethodGet, "/status", nil)
		if err != nil {
			return err
		}
		if output == "json" {
			_, err := env.Stdout.Write(body)
			return err
		}
		var st launch.Status
		if err := json.Unmarshal(body, &st); err != nil {
			return err
		}
		printHost(env.Stdout, st)
		return nil
	})
	return cmd
}

func printHost(w io.Writer, st launch.Status) {
	fmt.Fprintf(w, "%s: %d of %d containers run, image %s\n", st.Host, st.Running, st.Wanted, cmp.Or(st.ImageID, "not here yet: "+st.ImageNote))
	if st.Drain != "" {
		fmt.Fprintf(w, "draining: %s\n", st.Drain)
	}
	if st.Problem != "" {
		fmt.Fprintf(w, "problem: %s\n", oneLine(st.Problem))
	}
	for _, s := range st.Slots {
		fmt.Fprintf(w, "%-6s %-10s %-12.12s", s.Slot, s.State, cmp.Or(s.Container, "-"))
		if s.Drain != nil {
			fmt.Fprintf(w, " drains for %s until %s", s.Drain.Cause, s.Drain.Deadline.Format(time.RFC3339))
		}
		if s.Last != nil {
			fmt.Fprintf(w, " died %s with %d", s.Last.Ended.Format(time.RFC3339), s.Last.ExitCode)
		}
		if s.Problem != "" {
			fmt.Fprintf(w, " problem: %s", oneLine(s.Problem))
		}
		fmt.Fprintln(w)
	}
}

func newHostAskCommand(env *Env, verb, short string) *cobra.Command {
	var socket string
	cmd := &cobra.Command{Use: verb + " [flags]", Short: short, Args: noArgs}
	if verb != "reboot" {
		cmd.Use, cmd.Args = verb+" [flags] [SLOT]", cobra.MaximumNArgs(1)
	}
	registerSocket(cmd, &socket)
	cmd.RunE = env.action(func(ctx context.Context, _ *cobra.Command, args []string) error {
		q := url.Values{}
		if len(args) > 0 {
			q.Set("slot", args[0])
		}
		_, err := askHost(ctx, socket, http.MethodPost, "/"+verb, q)
		return err
	})
	return cmd
}

// askHost makes one request of the launcher that runs here.
func askHost(ctx context.Context, socket, method, path string, q url.Values) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	t := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://host"+path+"?"+q.Encode(), nil)
	if err != nil {
		return nil, err
	}
	res, err := t.RoundTrip(req)
	if errors.Is(err, fs.ErrPermission) {
		return nil, skep.Errorf(skep.Denied, "this user may not ask the skep host at %s: %v; root may, and members of its --socket-group", socket, err)
	}
	if err != nil {
		return nil, skep.Errorf(skep.Unavailable, "no skep host run answers at %s: %v", socket, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 8<<20))
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		var said struct{ Reason, Error string }
		_ = json.Unmarshal(body, &said)
		return nil, skep.Errorf(skep.ParseKind(said.Reason), "%s", cmp.Or(said.Error, string(bytes.TrimSpace(body)), res.Status))
	}
	return body, nil
}
