package runner

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// allowed are the names that a task gets from the bot's environment; a
// trailing * matches any rest. decisions.md 13.
var allowed = []string{
	"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_*", "TZ", "TERM", "DISPLAY",
	"XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS",
	"http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy",
	"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_*",
}

// allowedWindows are what programs on Windows cannot do without.
var allowedWindows = []string{
	"ALLUSERSPROFILE", "APPDATA", "COMMONPROGRAMFILES", "COMMONPROGRAMFILES(X86)", "COMMONPROGRAMW6432",
	"COMPUTERNAME", "COMSPEC", "HOMEDRIVE", "HOMEPATH", "LOCALAPPDATA", "NUMBER_OF_PROCESSORS", "OS", "PATHEXT",
	"PROCESSOR_*", "PROGRAMDATA", "PROGRAMFILES", "PROGRAMFILES(X86)", "PROGRAMW6432", "PSMODULEPATH", "PUBLIC",
	"SYSTEMDRIVE", "SYSTEMROOT", "USERDOMAIN", "USERNAME", "USERPROFILE", "WINDIR",
}

// baseEnviron takes the allowed variables, and those named by pass, out of the
// bot's environment.
func baseEnviron(environ, pass []string) []string {
	names := slices.Concat(allowed, pass)
	if runtime.GOOS == "windows" {
		names = append(names, allowedWindows...)
	}
	var out []string
	for _, kv := range environ {
		name, _, ok := strings.Cut(kv, "=")
		if ok && name != "" && slices.ContainsFunc(names, func(p string) bool { return matchName(p, name) }) {
			out = append(out, kv)
		}
	}
	return out
}

func matchName(pattern, name string) bool {
	if runtime.GOOS == "windows" {
		pattern, name = strings.ToUpper(pattern), strings.ToUpper(name)
	}
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name, prefix)
	}
	return pattern == name
}

// environ is an environment being composed; later values win, and order is
// that of the first mention.
type environ struct {
	names  []string
	values map[string]string
}

func newEnviron(kvs []string) *environ {
	e := &environ{values: map[string]string{}}
	for _, kv := range kvs {
		if k, v, ok := strings.Cut(kv, "="); ok {
			e.put(k, v)
		}
	}
	return e
}

// set sets name, or removes it when value is empty.
func (e *environ) set(name, value string) {
	if value == "" {
		e.remove(name)
		return
	}
	e.put(name, value)
}

func (e *environ) put(name, value string) {
	if _, ok := e.values[name]; !ok {
		e.names = append(e.names, name)
	}
	e.values[name] = value
}

func (e *environ) remove(name string) {
	if _, ok := e.values[name]; ok {
		delete(e.values, name)
		e.names = slices.DeleteFunc(e.names, func(n string) bool { return n == name })
	}
}

func (e *environ) get(name string) string { return e.values[name] }

func (e *environ) list() []string {
	out := make([]string, len(e.names))
	for i, n := range e.names {
		out[i] = n + "=" + e.values[n]
	}
	return out
}

// dirs are the paths of one run that placeholders and variables name.
type dirs struct{ run, out, temp, scratch, home, context, agent, botFile, cwd string }

// taskEnviron composes the task's environment. spec bot.md §1.4, items 1 to 6;
// item 1 is in job.Environ already.
func taskEnviron(job *isolatedJob, d dirs) []string {
	e := newEnviron(job.Environ)
	if d.home != "" {
		// The task's user may not enter the bot's home and owns none of the
		// bot's session.
		e.put("HOME", d.home)
		e.put("USER", taskUserName)
		e.put("LOGNAME", taskUserName)
		e.remove("XDG_RUNTIME_DIR")
		e.remove("DBUS_SESSION_BUS_ADDRESS")
	}
	e.put("LUCI_CONTEXT", d.context)
	for k, v := range job.Env {
		e.set(k, d.replace(v, job.TaskID))
	}
	for k, paths := range job.EnvPrefixes {
		var list []string
		for _, p := range paths {
			list = append(list, filepath.Join(d.run, filepath.FromSlash(p)))
		}
		if old := e.get(k); old != "" {
			list = append(list, old)
		}
		e.set(k, strings.Join(list, string(os.PathListSeparator)))
	}
	for _, name := range tempNames() {
		e.put(name, d.temp)
	}
	slices.Sort(e.names) // maps have no order; a task may compare two runs
	return e.list()
}

// taskUserName is USER of a task that does not run as the bot. No account has
// its ids.
const taskUserName = "skep-task"

func tempNames() []string {
	switch runtime.GOOS {
	case "windows":
		return []string{"TMPDIR", "TMP", "TEMP"}
	case "darwin":
		return []string{"TMPDIR", "MAC_CHROMIUM_TMPDIR"}
	default:
		return []string{"TMPDIR"}
	}
}

// cipdArch is the architecture half of ${platform}. spec bot.md §5.3.
func cipdArch() string {
	if runtime.GOARCH == "arm" {
		return "armv6l"
	}
	return runtime.GOARCH
}

// replace substitutes the placeholders of commands and environment values.
// spec bot.md §5.6.
func (d *dirs) replace(s, task string) string {
	if !strings.Contains(s, "${") {
		return s
	}
	suffix := ""
	if runtime.GOOS == "windows" {
		suffix = ".exe"
	}
	s = strings.ReplaceAll(s, "${EXECUTABLE_SUFFIX}", suffix)
	if task != "" {
		s = strings.ReplaceAll(s, "${SWARMING_TASK_ID}", task)
	}
	for _, p := range []struct{ name, path string }{{"${ISOLATED_OUTDIR}", d.out}, {botFilePlaceholder, d.botFile}} {
		if p.path != "" && strings.Contains(s, p.name) {
			s = filepath.FromSlash(strings.ReplaceAll(s, p.name, p.path))
		}
	}
	return s
}

// command substitutes the placeholders of every argument.
func (d *dirs) command(argv []string, task string) []string {
	out := make([]string, len(argv))
	agent := d.agent // only the first one is replaced
	for i, a := range argv {
		if agent != "" && a == agentPlaceholder {
			out[i], agent = agent, ""
			continue
		}
		out[i] = d.replace(a, task)
	}
	return out
}

// wantsBotFile reports whether the task can come to know of the file that
// on_before_task fills. Most cannot, and every file costs.
func (j *isolatedJob) wantsBotFile() bool {
	names := func(s string) bool { return strings.Contains(s, botFilePlaceholder) }
	if len(j.BotFile) > 0 || slices.ContainsFunc(j.Command, names) {
		return true
	}
	for _, v := range j.Env {
		if names(v) {
			return true
		}
	}
	return false
}

const botFilePlaceholder = "${SWARMING_BOT_FILE}"

const agentPlaceholder = "${BUILDBUCKET_AGENT_CONTEXT_FILE}"
