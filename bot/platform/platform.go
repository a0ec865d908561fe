// Package platform says what machine a bot runs on: its dimensions, which
// tasks ask for, and its state, which people read. spec bot.md §7.
//
// What takes time (other programs, network) is found out once, beside the
// bot's start; Ready tells when. All else is read from files that the kernel
// serves, so that a poll costs well below a millisecond.
package platform

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// refreshAfter is how old the changing part of the state may be. The poll
// after a task thus costs nothing; people do not see the difference.
const refreshAfter = 10 * time.Second

// MaxTempFiles is how many entries the directory for temporary files may have
// before the bot says it is ill. spec bot.md §8.6.
const MaxTempFiles = 1024

// Options say about which bot to report.
type Options struct {
	BotID   string
	Dir     string           // bot directory, absolute
	Root    string           // "" = this machine; else a directory with proc, sys and etc of another
	TempDir string           // "" = os.TempDir()
	Now     func() time.Time // nil = time.Now

	// Output runs a program and returns its standard output; nil = no program
	// is asked.
	Output func(ctx context.Context, name string, args ...string) ([]byte, error)
	// Getenv reads the bot's environment; nil = os.Getenv.
	Getenv func(string) string
}

// Platform knows the machine. It may be used by many goroutines.
type Platform struct {
	opt     Options
	started time.Time
	fixed   facts // never changes after New

	ready chan struct{}
	slow  slowFacts // set before ready is closed

	mu      sync.Mutex
	dynamic map[string]any
	at      time.Time
	caches  cacheReader
	rules   rules
}

// facts are the dimensions and the state that last as long as the process.
type facts struct {
	dimensions map[string][]string
	state      map[string]any
}

// slowFacts are the fixed facts that other programs or the network tell.
type slowFacts facts

// New looks at the machine (a few milliseconds) and starts to find out the
// rest. ctx ends that search, not the Platform.
func New(ctx context.Context, opt Options) *Platform {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Getenv == nil {
		opt.Getenv = os.Getenv
	}
	if opt.TempDir == "" {
		opt.TempDir = os.TempDir()
	}
	p := &Platform{opt: opt, started: opt.Now(), ready: make(chan struct{}), rules: defaultRules()}
	p.caches.path = filepath.Join(opt.Dir, "c", "state.json")
	p.fixed = p.look()
	go func() {
		defer close(p.ready)
		p.slow = p.lookSlowly(ctx)
	}()
	return p
}

// Ready is closed when the slow facts are known; until then Dimensions and
// State lack them.
func (p *Platform) Ready() <-chan struct{} { return p.ready }

// Dimensions returns a copy of the machine's dimensions. spec bot.md §7.1.
func (p *Platform) Dimensions() map[string][]string {
	d := maps.Clone(p.fixed.dimensions)
	select {
	case <-p.ready:
		maps.Copy(d, p.slow.dimensions)
	default:
	}
	d["id"] = []string{p.opt.BotID}
	if names := p.caches.names(); len(names) > 0 {
		d["caches"] = names
	}
	return d
}

// State returns the machine's state. The caller may add to the map; the values
// are shared. spec bot.md §7.3.
func (p *Platform) State() map[string]any {
	s := maps.Clone(p.fixed.state)
	select {
	case <-p.ready:
		maps.Copy(s, p.slow.state)
	default:
	}
	maps.Copy(s, p.changing())
	if items := p.caches.items(); len(items) > 0 {
		s["named_caches"] = items
	}
	now := p.opt.Now()
	s["running_time"] = int64(now.Sub(p.started).Seconds())
	return s
}

// Quarantine returns why this machine must not get tasks now, "" if it may.
// spec bot.md §8.6.
func (p *Platform) Quarantine() string {
	reason, _ := p.changing()["quarantined"].(string)
	return reason
}

func (p *Platform) changing() map[string]any {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := p.opt.Now(); p.dynamic == nil || now.Sub(p.at) >= refreshAfter {
		p.dynamic, p.at = p.lookAgain(), now
	}
	return p.dynamic
}

// lookAgain reads what changes.
func (p *Platform) lookAgain() map[string]any {
	s := map[string]any{"ip": localIP()}
	n, err := countEntries(p.opt.TempDir, MaxTempFiles*4)
	switch {
	case err != nil:
		s["nb_files_in_temp"] = "N/A"
		s["quarantined"] = fmt.Sprintf("the directory for temporary files, %s, cannot be read: %v", p.opt.TempDir, err)
	default:
		s["nb_files_in_temp"] = n
		if n > MaxTempFiles {
			s["quarantined"] = fmt.Sprintf("%s has %d entries, more than %d; clean it", p.opt.TempDir, n, MaxTempFiles)
		}
	}
	if reason := p.diskFault(); reason != "" && s["quarantined"] == nil {
		s["quarantined"] = reason
	}
	p.lookAgainOS(s)
	return s
}

// common fills what is the same on every system.
func (p *Platform) common() facts {
	cpus := runtime.NumCPU() // of the affinity mask
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	f := facts{
		dimensions: map[string][]string{
			"pool":          p.pools(),
			"cores":         {strconv.Itoa(cpus)},
			"cipd_platform": {cipdPlatform(runtime.GOOS, runtime.GOARCH)},
		},
		state: map[string]any{
			"cwd":          p.opt.Dir,
			"pid":          os.Getpid(),
			"hostname":     p.fqdn(strings.ToLower(host)),
			"started_ts":   float64(p.started.UnixMilli()) / 1000,
			"rbe_instance": nil,
			"user":         p.user(),
			"env":          p.environment(),
			"display_resolution": map[string]any{
				"horizontal": "unavailable", "vertical": "unavailable",
			},
		},
	}
	if l := locale(p.opt.Getenv); l != "" {
		f.dimensions["locale"] = []string{l}
	}
	return f
}

// envPools names the pools that who made this machine wants its bot in, with
// commas between them: provider.EnvPools. A server with bots.cfg says it itself.
const envPools = "SKEP_BOT_POOLS"

func (p *Platform) pools() []string {
	named := strings.FieldsFunc(p.opt.Getenv(envPools), func(r rune) bool { return r == ',' })
	if len(named) == 0 {
		return []string{"default"}
	}
	return named
}

// environment is the part of the bot's environment that is shown to people.
// spec bot.md §1.4. A token instead of its path is not.
func (p *Platform) environment() map[string]string {
	env := map[string]string{}
	for _, k := range []string{"ISOLATED_CACHE_SIZE", "PATH", "SWARMING_ALLOW_ANY_USER", "SWARMING_EXTERNAL_BOT_SETUP", "SWARMING_NEVER_REBOOT"} {
		if v := p.opt.Getenv(k); v != "" {
			env[k] = v
		}
	}
	if v := p.opt.Getenv("LUCI_MACHINE_TOKEN"); filepath.IsAbs(v) {
		env["LUCI_MACHINE_TOKEN"] = v
	}
	return env
}

// user names the account from the environment or, as a service has none, from
// its number.
func (p *Platform) user() string {
	for _, k := range []string{"USER", "LOGNAME", "USERNAME"} {
		if v := p.opt.Getenv(k); v != "" {
			return v
		}
	}
	return userName(p.path("etc/passwd"), os.Getuid())
}

func userName(passwd string, uid int) string {
	data, _ := os.ReadFile(passwd)
	for line := range strings.Lines(string(data)) {
		f := strings.Split(line, ":")
		if len(f) > 2 && f[2] == strconv.Itoa(uid) {
			return f[0]
		}
	}
	return strconv.Itoa(uid)
}

// fqdn looks for a longer name of host where no server has to be asked.
func (p *Platform) fqdn(host string) string {
	if strings.Contains(host, ".") {
		return host
	}
	data, _ := os.ReadFile(p.path("etc/hosts"))
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		names := strings.Fields(line)
		if len(names) < 2 || !slices.Contains(names[1:], host) {
			continue
		}
		for _, n := range names[1:] {
			if strings.HasPrefix(strings.ToLower(n), host+".") {
				return strings.ToLower(n)
			}
		}
	}
	return host
}

// path returns a path of the machine looked at.
func (p *Platform) path(rel string) string {
	if p.opt.Root == "" {
		return "/" + rel
	}
	return filepath.Join(p.opt.Root, rel)
}

// word returns the trimmed content of a one-line file, "" if unreadable.
func (p *Platform) word(rel string) string {
	data, err := os.ReadFile(p.path(rel))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

func (p *Platform) exists(rel string) bool {
	_, err := os.Stat(p.path(rel))
	return err == nil
}

// locale follows the rules of the C library for LC_CTYPE; the locale "C" is
// none. spec bot.md §7.1.
func locale(getenv func(string) string) string {
	for _, k := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		switch v := getenv(k); {
		case v == "":
			continue
		case v == "C", v == "POSIX", strings.HasPrefix(v, "C."):
			return ""
		default:
			return strings.Replace(v, ".utf8", ".UTF-8", 1)
		}
	}
	return ""
}

// cipdPlatform is os-arch as packages name it.
func cipdPlatform(goos, goarch string) string {
	if goos == "darwin" {
		goos = "mac"
	}
	switch goarch {
	case "arm":
		goarch = "armv6l"
	case "loong64", "amd64", "386", "arm64", "riscv64":
	}
	return goos + "-" + goarch
}

// countEntries counts the entries of dir, at most limit.
func countEntries(dir string, limit int) (int, error) {
	f, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n := 0
	for n < limit {
		names, err := f.Readdirnames(256)
		n += len(names)
		if len(names) == 0 {
			if err.Error() == "EOF" {
				err = nil
			}
			return n, err
		}
	}
	return n, nil
}

// flag is how a yes-or-no dimension is written.
func flag(b bool) []string {
	if b {
		return []string{"1"}
	}
	return []string{"0"}
}

// cacheReader reads the names and sizes of local named caches. spec bot.md §5.5.
type cacheReader struct {
	path string

	mu   sync.Mutex
	seen time.Time
	size int64
	last map[string]json.RawMessage
}

// items returns name → [value, timestamp] as the state shows it. The file is
// read again when it changed.
func (c *cacheReader) items() map[string]json.RawMessage {
	c.mu.Lock()
	defer c.mu.Unlock()
	st, err := os.Stat(c.path)
	if err != nil {
		c.last, c.seen = nil, time.Time{}
		return nil
	}
	if st.ModTime().Equal(c.seen) && st.Size() == c.size {
		return c.last
	}
	data, err := os.ReadFile(c.path)
	if err != nil {
		return nil
	}
	c.seen, c.size, c.last = st.ModTime(), st.Size(), parseCaches(data)
	return c.last
}

func parseCaches(data []byte) map[string]json.RawMessage {
	var f struct {
		Items [][2]json.RawMessage `json:"items"`
	}
	if json.Unmarshal(data, &f) != nil {
		return nil
	}
	out := map[string]json.RawMessage{}
	for _, it := range f.Items {
		var name string
		if json.Unmarshal(it[0], &name) == nil && name != "" && len(it[1]) > 0 {
			out[name] = it[1]
		}
	}
	return out
}

func (c *cacheReader) names() []string {
	return slices.Sorted(maps.Keys(c.items()))
}
