package botcli

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/bot"
	"github.com/skepdev/skep/bot/code"
	"github.com/skepdev/skep/bot/platform"
	"github.com/skepdev/skep/internal/logfile"
	"github.com/skepdev/skep/internal/proc"
	"github.com/skepdev/skep/runner"
)

// Environment of start_bot. None of these reach a task.
const (
	envBotID      = "SWARMING_BOT_ID"      // overrides the bot id
	envToken      = "SKEP_BOT_TOKEN"       // the bot's credential
	envBootstrap  = "SKEP_BOOTSTRAP_TOKEN" // buys the bot one of its own
	envReboot     = "SKEP_REBOOT"          // "none" = never restart the host
	envStartAhead = "SKEP_START_AHEAD"     // "0" = start each task's processes only when it comes
	envIdentity   = "SKEP_BOT_IDENTITY"    // "gce" = show the identity of this Compute Engine VM
	envMetadata   = "GCE_METADATA_HOST"    // where that is asked for, else metadataHost
	envService    = "SKEP_SERVICE"         // (internal) a Windows service keeps this bot running
	envGuard      = "SKEP_GUARD_PID"       // (internal) who watches over the update that this is
	envLockFD     = "SKEP_LOCK_FD"         // (internal) the lock, kept over an exec
)

// metadataHost answers on Compute Engine only.
const metadataHost = "169.254.169.254"

// site is one bot's place: its executable and what it brings.
type site struct {
	exe    string // absolute
	dir    string // bot directory: the executable's
	config code.Config

	secrets map[string]string // credentials that came in the environment, by name
}

// openSite finds the executable, enters its directory and reads its
// configuration. spec bot.md §1.2.
func openSite() (*site, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if exe, err = filepath.EvalSymlinks(exe); err != nil {
		return nil, err
	}
	s := &site{exe: exe, dir: filepath.Dir(exe)}
	if s.config, err = code.Read(exe); err != nil {
		return nil, err
	}
	return s, os.Chdir(s.dir)
}

// startSlave is start_bot after the hook setup_bot. spec bot.md §1.3.
func startSlave(e Env) int {
	e.Args = slices.DeleteFunc(e.Args, func(a string) bool { return a == "--survive" })
	return start(e, maySetUp())
}

func startBot(e Env) int { return start(e, false) }

func start(e Env, setUp bool) int {
	s, err := openSite()
	if err != nil {
		return fail(e, err)
	}
	lock, err := s.occupy()
	if err != nil {
		return fail(e, err)
	}
	if err := s.enterSlot(lock); err != nil {
		return fail(e, err)
	}
	code, err := s.run(e, lock, setUp)
	if err != nil {
		return fail(e, err)
	}
	return code
}

// occupy makes the directory this bot's, or says why it cannot be.
func (s *site) occupy() (*bot.Lock, error) {
	if v := os.Getenv(envLockFD); v != "" {
		os.Unsetenv(envLockFD)
		if fd, err := strconv.ParseUint(v, 10, 31); err == nil {
			if lock, err := bot.AdoptLock(uintptr(fd)); err == nil {
				return lock, nil
			}
		}
	}
	if err := bot.CheckName(s.exe); err != nil {
		return nil, err
	}
	if err := bot.CheckDir(s.dir); err != nil {
		return nil, err
	}
	lock, err := bot.TakeLock(s.dir)
	if err != nil {
		return nil, err
	}
	return lock, bot.MarkDir(s.dir)
}

func (s *site) run(e Env, lock *bot.Lock, setUp bool) (int, error) {
	debug.SetGCPercent(40)
	// It waits for most of its time; a second processor is mostly spent on
	// looking for work, a tenth of what a bot costs in a row of short tasks.
	runtime.GOMAXPROCS(1)
	logs, err := logfile.Open(filepath.Join(s.dir, "logs", "swarming_bot.log"))
	if err != nil {
		return 0, err
	}
	defer logs.Close()
	log := slog.New(logfile.Tee(logfile.NewHandler(logs, slog.LevelDebug), logfile.NewHandler(e.Stderr, slog.LevelError)))
	s.takeSecrets(log)
	mourn()

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	b, err := s.newBot(ctx, log, lock, setUp)
	if err != nil {
		log.Error("cannot start", "err", err)
		return 1, nil
	}
	b.HandleSignals(ctx)
	if err := heedService(s.dir, b); err != nil {
		log.Error("the service cannot stop this bot", "err", err)
	}
	if err := b.OpenDoor(ctx); err != nil {
		log.Warn("skep-bot shell will not find this bot", "err", err)
	}
	if stray := strayArgs(e.Args); len(stray) > 0 {
		b.Error(fmt.Sprintf("unexpected arguments %q were ignored", stray))
	}
	if s.mayReboot() {
		go askReboot(ctx, b, log)
	}
	go trimMemory(ctx)
	go openService(log).run(ctx, b.Alive)
	err = b.Run(ctx)
	_ = os.Remove(bot.SocketFile)
	return 0, err
}

// takeSecrets takes the credentials out of the environment, before anything is
// started. decisions.md 9.
func (s *site) takeSecrets(log *slog.Logger) {
	s.secrets = map[string]string{}
	for _, name := range []string{envToken, envBootstrap} {
		v, err := bot.TakeSecret(name)
		if err != nil {
			log.Error("a credential stays visible in /proc", "name", name, "err", err)
		}
		if v != "" {
			s.secrets[name] = v
		}
	}
}

// environ is the environment of the process that follows this one: it takes
// the credentials out again.
func (s *site) environ() []string {
	env := os.Environ()
	for name, v := range s.secrets {
		env = append(env, name+"="+v)
	}
	return env
}

// newBot wires a bot for this site. When ctx ends, nothing that looks at the
// machine goes on.
func (s *site) newBot(ctx context.Context, log *slog.Logger, lock *bot.Lock, setUp bool) (*bot.Bot, error) {
	id := botID()
	setEnvironment(id)
	version := make(chan string, 1)
	go func() {
		v, err := code.Version(s.exe)
		if err != nil {
			log.Error("the bot's digest is unknown", "err", err)
		}
		version <- v
	}()
	machine := platform.New(ctx, platform.Options{BotID: id, Dir: s.dir, Output: output})
	if err := runner.Recover(s.dir, log); err != nil {
		log.Warn("recover from the last run", "err", err)
	}
	credential, err := bot.OpenCredential(s.dir, id, s.secrets[envToken], s.secrets[envBootstrap])
	if err != nil {
		return nil, fmt.Errorf("credential: %w", err)
	}
	hooks, err := s.hooks(log)
	if err != nil {
		return nil, err
	}
	auth := bot.NewAuth(hooks, credential.Token)
	if os.Getenv(envIdentity) == "gce" {
		auth.WithVM(bot.NewVMIdentity(cmp.Or(os.Getenv(envMetadata), metadataHost), s.config.Server))
	}
	cert, err := bot.OpenClientCert(s.dir)
	if err != nil {
		return nil, err
	}
	headers := auth.Headers
	starter := runner.NewStarter(runner.Config{Exe: s.exe, BotDir: s.dir, MinFree: machine.MinFree, Log: log})
	// Not sooner: what a closed process starts cannot be given a user namespace,
	// which the starter just tried; and even we may not write our own memory
	// through /proc afterwards.
	if err := bot.HideProcess(); err != nil {
		log.Warn("this process stays visible to its user's other processes", "err", err)
	}
	roots, err := s.roots()
	if err != nil {
		return nil, err
	}
	opt := botapi.Options{Server: s.config.Server, BotID: id, Dir: s.dir, Headers: headers, RootCAs: roots, Log: log}
	if cert != nil {
		opt.Certificate = cert.Certificate
	}
	client, err := botapi.NewClient(opt)
	if err != nil {
		return nil, err
	}
	own := <-version
	code := s.updater(own, client, log)
	cfg := bot.Config{
		ID: id, Dir: s.dir, Version: own, Code: code, Credential: credential, ClientCert: cert, Server: s.config.Server, Client: client, Headers: headers,
		RootCAs: []byte(s.config.TLSCA), Machine: machine,
		Runner:     starter,
		Hooks:      hooks,
		SetUp:      setUp,
		Auth:       auth,
		Output:     output,
		StartAhead: os.Getenv(envStartAhead) != "0",
		Restart:    func(reason string) error { return s.become(log, lock, code, s.exe, reason) },
		Become:     func(exe, reason string) error { return s.become(log, lock, code, exe, reason) },
		Clean:      func() []error { return clean(s.dir, starter) },
		Log:        log,
	}
	if s.mayReboot() {
		cfg.Reboot = (&bot.Host{Output: output, Log: log}).Reboot
	}
	return bot.New(cfg), nil
}

// askReboot tells the server when the host could not be restarted: better now
// than when it must be.
func askReboot(ctx context.Context, b *bot.Bot, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := (&bot.Host{Output: output, Log: log}).MayReboot(ctx); err != nil && !errors.Is(ctx.Err(), context.Canceled) {
		b.Error(err.Error())
	}
}

// clean makes a bot's directory tidy, and its caches.
func clean(dir string, starter *runner.Starter) []error {
	errs := bot.CleanDir(dir)
	if err := starter.Clean(context.Background()); err != nil {
		errs = append(errs, err)
	}
	return errs
}

func (s *site) mayReboot() bool {
	return s.config.Reboot != "none" && os.Getenv(envReboot) != "none"
}

// roots are the certificates that may vouch for the server; nil = the system's.
func (s *site) roots() (*x509.CertPool, error) {
	if s.config.TLSCA == "" {
		return nil, nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(s.config.TLSCA)) {
		return nil, skep.Invalidf("tls_ca", "holds no certificate")
	}
	return pool, nil
}

// botID is SWARMING_BOT_ID or the short host name. spec bot.md §7.1, row B1.
func botID() string {
	if id := os.Getenv(envBotID); id != "" {
		return id
	}
	host, err := os.Hostname()
	if err != nil || host == "" {
		return "localhost"
	}
	host, _, _ = strings.Cut(strings.ToLower(host), ".")
	return host
}

// setEnvironment sets what helpers look at. spec bot.md §1.4.
func setEnvironment(id string) {
	os.Setenv("SWARMING_HEADLESS", "1")
	os.Setenv(envBotID, id)
	os.Unsetenv("SWARMING_SERVER")
	os.Unsetenv("SWARMING_TASK_ID")
}

// output runs a helper program; a failed one's error holds what it complained
// about.
func output(ctx context.Context, name string, args ...string) ([]byte, error) {
	return proc.Output(ctx, nil, name, args...)
}

// strayArgs are arguments of start_bot that mean nothing. spec bot.md §1.3.
func strayArgs(args []string) []string {
	return slices.DeleteFunc(slices.Clone(args), func(a string) bool { return a == "--test-mode" })
}

// trimMemory gives back what starting took: an idle bot should cost little.
func trimMemory(ctx context.Context) {
	t := time.NewTimer(2 * time.Second)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
		debug.FreeOSMemory()
	}
}
