package warm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/cache"
	"github.com/skepdev/skep/host/pool"
	"github.com/skepdev/skep/internal/show/form"
	"github.com/skepdev/skep/internal/stage/ownpool"
)

// dearest is what a clean room may add to a task at the median.
const dearest = 10 * time.Millisecond

// showCleanRoom runs the same task beside a bot and in clean rooms, and then
// tasks that leave marks wherever they can, each followed by one that looks for
// them, with the runtimes that are named or all that there are.
func showCleanRoom(ctx context.Context, dir string, runtimes []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	im, err := ownpool.MakeImage(dir, map[string]string{"bin/show": self}) // for Canary
	if err != nil {
		return err
	}
	if len(runtimes) == 0 {
		runtimes = []string{"oci", "runc", "lxc"}
		if form.Short() {
			runtimes = runtimes[:1]
		}
	}
	for i, rt := range runtimes {
		if err := cleanRooms(ctx, filepath.Join(dir, rt), rt, im, i == 0); err != nil {
			return fmt.Errorf("%s: %w", rt, err)
		}
	}
	return nil
}

func cleanRooms(ctx context.Context, dir, runtime string, im ownpool.Image, compare bool) (err error) {
	if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // rooms' users pass through
		return err
	}
	skep, err := filepath.Abs("bin/skep")
	if err != nil {
		return err
	}
	s := &ownpool.Service{Skep: skep, Dir: filepath.Join(dir, "pool"), Runtime: runtime, Image: im}
	if _, err := s.Start(ctx, "--min", "4", "--max", "8"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Stop(ctx)) }()
	if _, err := s.Await(ctx, patience, "stocked", ownpool.Quiet(4)); err != nil {
		return err
	}
	inside, err := ownpool.StartBots(ctx, skep, filepath.Join(dir, "inside"), s.At(), "SKEP_INPUTS="+string(cache.Link))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, inside.Fleet.Stop()) }()
	if compare {
		outside, err := ownpool.StartBots(ctx, skep, filepath.Join(dir, "outside"), "")
		if err != nil {
			return err
		}
		if err := errors.Join(cost(ctx, s, outside, inside), outside.Fleet.Stop()); err != nil {
			return err
		}
	}
	return canaries(ctx, s, dir, nest{method: string(cache.Link), bots: inside})
}

// cost compares, task by task in turns, how long a bot had them.
func cost(ctx context.Context, s *ownpool.Service, outside, inside *ownpool.Bots) error {
	n := form.Of(300, 40)
	var missed error
	for range form.Of(1, 3) {
		out, in, err := s.RoomCost(ctx, 4, outside, inside, n)
		if err != nil {
			return err
		}
		more := quantile(in, 0.5) - quantile(out, 0.5)
		fmt.Printf("a task outside     p50 %8v  p99 %8v   n %d\n", round(quantile(out, 0.5)), round(quantile(out, 0.99)), n)
		fmt.Printf("in a clean room    p50 %8v  p99 %8v   %v more at the median   bound %v\n", round(quantile(in, 0.5)), round(quantile(in, 0.99)), round(more), bound(dearest))
		if more <= bound(dearest) {
			return nil
		}
		missed = fmt.Errorf("a clean room costs %v at the median, want %v", more, bound(dearest))
	}
	return missed
}

// must are places that a task may write to: a canary that never left a mark in
// one of them says nothing of it.
var must = []string{
	"/tmp", "/dev/shm", "work directory", "TMPDIR", "named cache", "process", "port",
	"abstract socket", "path socket", "path socket in /tmp",
	"SysV shared memory", "SysV message queue", "SysV semaphore", "POSIX message queue",
	"input written by copy", "input cut off by copy", "input mapped by copy", "input replaced by copy", "input replaced by link",
}

// never are places that no task in a room has; the kernel's keys are their
// user's, who is the same in all rooms, and some settings of a network, one's own
// too, are the whole host's.
var never = []string{"session keyring", "user keyring", "user session keyring", "process keyring", "thread keyring", "persistent keyring", "host name", "domain name", "mount", "route", "sysctl", "own namespaces' sysctl"}

// nest is a fleet whose bot brings inputs to its tasks in one way.
type nest struct {
	method string
	bots   *ownpool.Bots
	inputs cas.Digest
}

// nests starts a fleet for each way that works for tasks in rooms here, but for
// that of the first, which runs.
func nests(ctx context.Context, s *ownpool.Service, dir string, first nest) (list []nest, err error) {
	tree := filepath.Join(dir, "tree")
	for _, name := range inputFiles {
		at := filepath.Join(tree, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, inputText(name), 0o755)); err != nil {
			return nil, err
		}
	}
	list = []nest{first}
	defer func() {
		if err != nil {
			err = errors.Join(err, leave(list))
		}
	}()
	for _, m := range []cache.Method{cache.Copy, cache.Reflink} {
		if m == cache.Reflink && !clones(dir) {
			fmt.Println("NOT TESTED: inputs by reflink, which the file system here has not")
			continue
		}
		b, err := ownpool.StartBots(ctx, s.Skep, filepath.Join(dir, string(m)), s.At(), "SKEP_INPUTS="+string(m))
		if err != nil {
			return nil, err
		}
		list = append(list, nest{method: string(m), bots: b})
	}
	for i := range list {
		if list[i].inputs, err = list[i].bots.Upload(ctx, tree); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// clones reports whether files of a directory can share their blocks.
func clones(dir string) bool {
	a, err := os.Create(filepath.Join(dir, "a"))
	if err != nil {
		return false
	}
	defer a.Close()
	b, err := os.Create(filepath.Join(dir, "b"))
	if err != nil {
		return false
	}
	defer b.Close()
	_, err = a.WriteString("a")
	return err == nil && unix.IoctlFileClone(int(b.Fd()), int(a.Fd())) == nil
}

// leave ends all but the first, which is its maker's.
func leave(list []nest) error {
	var errs []error
	for _, n := range list[1:] {
		errs = append(errs, n.bots.Fleet.Stop())
	}
	return errors.Join(errs...)
}

// canaries runs pairs of tasks, of which the second looks for what the first has
// left, as does the host.
func canaries(ctx context.Context, s *ownpool.Service, dir string, first nest) (err error) {
	list, err := nests(ctx, s, dir, first)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, leave(list)) }()
	n := form.Of(200, 10)
	places, kept := map[string]int{}, 0
	host := lookAtHost()
	for i := range n {
		at := list[i%len(list)]
		mark := fmt.Sprintf("%s%d-%06d", anyMark, os.Getpid(), i)
		last := fmt.Sprintf("%s%d-%06d", anyMark, os.Getpid(), i-len(list))
		out, _, err := at.bots.Do(ctx, ownpool.Task{Command: []string{"/bin/show", "canary", "leave", mark, last, s.At()}, Inputs: at.inputs, Cache: "left"})
		if err != nil {
			return err
		}
		t, err := read(out, at.method)
		if err != nil {
			return fmt.Errorf("round %d: the task that leaves marks: %w", i, err)
		}
		for p := range t.places {
			places[p]++
		}
		kept += t.kept
		rand.Shuffle(len(t.details), func(i, j int) { t.details[i], t.details[j] = t.details[j], t.details[i] })
		// Another cache at the same place, or none. A command has 128 words at most; the
		// host looks at all.
		look := ownpool.Task{Command: append([]string{"/bin/show", "canary", "look", mark}, t.details[:min(100, len(t.details))]...), Inputs: at.inputs, Cache: []string{"", "other"}[i/len(list)%2]}
		if out, _, err = at.bots.Do(ctx, look); err != nil {
			return err
		}
		if _, err := read(out, at.method); err != nil {
			return fmt.Errorf("round %d: the next task: %w", i, err)
		}
		// A room goes when its task has ended, and what lies in it with it.
		if _, err := s.Await(ctx, patience, "rid of the rooms that were used", func(st *pool.Status) bool { return st.Leased+st.Used+st.Ending == 0 }); err != nil {
			return err
		}
		if err := host.has(mark, t, s, at); err != nil {
			return fmt.Errorf("round %d: on the host: %w", i, err)
		}
	}
	for _, p := range slices.Sorted(maps.Keys(places)) {
		fmt.Printf("  marks in %-40s %4d rounds\n", p, places[p])
	}
	var blind, wrong []string
	for _, p := range never {
		if places[p] > 0 {
			wrong = append(wrong, p)
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("marks were left in %q, which a room refuses", wrong)
	}
	for _, p := range must {
		if places[p] == 0 {
			blind = append(blind, p)
		}
	}
	if len(blind) > 0 {
		return fmt.Errorf("no mark was ever left in %q: the canary sees too little to say anything", blind)
	}
	if kept != n-len(list) {
		return fmt.Errorf("a named cache was kept for the next task of its name %d times of %d", kept, n-len(list))
	}
	st, err := s.Await(ctx, patience, "quiet", func(st *pool.Status) bool { return st.Used+st.Leased+st.Ending == 0 })
	if err != nil {
		return err
	}
	fmt.Printf("%s: %d canary rounds, marks left in %d places: none found by the next task or on the host; %d sysctls of the host as before; %d rooms served\n", s.Runtime, n, len(places), len(host.sysctls), st.Totals.Served)
	return nil
}

// tale is what a canary wrote.
type tale struct {
	places  map[string]bool // that took the mark
	details []string        // for the one that looks
	kept    int             // 1 = its named cache had the mark of the task before
}

// read reads it; whatever was found is an error.
func read(out, method string) (t tale, err error) {
	t.places = map[string]bool{}
	var wrong []string
	done := false
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		switch word, rest, _ := strings.Cut(line, " "); word {
		case "took":
			if i := strings.LastIndexByte(rest, ' '); i > 0 && strings.Contains(rest[i:], "=") {
				t.details = append(t.details, rest[i+1:])
				rest = rest[:i]
			}
			if strings.HasPrefix(rest, "input ") {
				rest += " by " + method
			}
			t.places[rest] = true
		case "kept":
			t.kept = 1
		case "done":
			done = true
		default:
			wrong = append(wrong, line)
		}
	}
	if !done && len(wrong) == 0 {
		wrong = []string{"it did not come to its end"}
	}
	if len(wrong) > 0 {
		return t, fmt.Errorf("%.2000q", wrong)
	}
	return t, nil
}

// hostState is what the host had before any mark was left.
type hostState struct{ sysctls map[string]string }

func lookAtHost() *hostState { return &hostState{readSysctls()} }

// has looks for a mark, or for what it did, where the host could have it.
func (h *hostState) has(mark string, t tale, s *ownpool.Service, at nest) error {
	var wrong []string
	for _, dir := range []string{"/", "/tmp", "/dev/shm", "/dev/mqueue", "/var", "/run", "/etc", "/root", "/bin", "/dev"} {
		found, _ := filepath.Glob(filepath.Join(dir, mark+"*"))
		wrong = append(wrong, found...)
	}
	for _, dir := range []string{s.Dir, at.bots.Dir} {
		wrong = append(wrong, h.files(dir, mark)...)
	}
	for _, p := range processes(mark) {
		wrong = append(wrong, fmt.Sprint("process ", p))
	}
	for _, path := range []string{"/proc/self/mounts", "/proc/net/unix", "/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname"} {
		if b, _ := os.ReadFile(path); strings.Contains(string(b), mark) {
			wrong = append(wrong, path)
		}
	}
	if routes, err := os.ReadFile("/proc/net/route"); err == nil && strings.Contains(string(routes), "006433C6") {
		wrong = append(wrong, "a route to 198.51.100.0/24")
	}
	c := &canary{mark: mark}
	for _, kind := range []string{"shm", "msg", "sem"} {
		b, _ := os.ReadFile("/proc/sysvipc/" + kind)
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 0 && f[0] == strconv.Itoa(c.key()) {
				wrong = append(wrong, "System V "+kind)
			}
		}
	}
	if openQueue(mark, unix.O_RDWR) == nil {
		wrong = append(wrong, "POSIX message queue")
	}
	// The kernel lets go of the keyrings of a user namespace a moment later.
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		keys, err := os.ReadFile("/proc/keys")
		if err != nil {
			return err
		}
		if !strings.Contains(string(keys), mark) {
			break
		}
		if time.Now().After(end) {
			wrong = append(wrong, "keys, 5 s after the task")
			break
		}
	}
	return errors.Join(listed(wrong), h.changed(t), intact(filepath.Join(at.bots.Dir, "state")))
}

func listed(wrong []string) error {
	if len(wrong) == 0 {
		return nil
	}
	return fmt.Errorf("it has the mark: %q", wrong)
}

// files are those of a directory with the mark in their names, but for what is
// in the named cache that the task gave it to.
func (h *hostState) files(dir, mark string) (list []string) {
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.Contains(d.Name(), mark) && !strings.Contains(path, "/c/") {
			list = append(list, path)
		}
		return nil
	})
	return list
}

// changed compares the host's sysctls with what they were. One that the task
// could not write to was changed by somebody else; it is said, and is no leak.
func (h *hostState) changed(t tale) error {
	var wrong []string
	for path, now := range readSysctls() {
		was, ok := h.sysctls[path]
		if !ok || was == now {
			continue
		}
		value := "sysctl=" + path + "=" + strings.TrimSpace(now)
		if slices.Contains(t.details, value) {
			wrong = append(wrong, value)
			_ = os.WriteFile(path, []byte(was), 0o644)
			continue
		}
		fmt.Printf("%s was %q and is %q; the task could not write to it\n", path, was, now)
		h.sysctls[path] = now
	}
	return listed(wrong)
}

// intact hashes the files of the caches of inputs below dir: their names are
// their digests.
func intact(dir string) error {
	n := 0
	var wrong []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || filepath.Base(filepath.Dir(path)) != "cas_cache" {
			return nil //nolint:nilerr // what goes while we look is nobody's input
		}
		h, err := cas.ParseHash(strings.TrimSuffix(d.Name(), ".x"))
		if err != nil {
			return nil //nolint:nilerr // no blob
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		n++
		if cas.Sum(b).Hash != h {
			wrong = append(wrong, path)
		}
		return nil
	})
	if n < len(inputFiles) {
		err = errors.Join(err, fmt.Errorf("%d inputs are in the bot's cache, want %d", n, len(inputFiles)))
	}
	if len(wrong) > 0 {
		err = errors.Join(err, fmt.Errorf("changed in the bot's cache: %q", wrong))
	}
	return err
}
