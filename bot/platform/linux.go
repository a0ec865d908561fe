//go:build linux

package platform

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// look reads what stays the same. spec bot.md §7.1, §7.3.
func (p *Platform) look() facts {
	f := p.common()
	cpuText, _ := os.ReadFile(p.path("proc/cpuinfo"))
	cpu := parseCPUInfo(string(cpuText))
	pci := p.pciDevices()
	ram := p.ramMB()
	disks := p.solidDisks()
	gce := p.word("sys/class/dmi/id/product_name") == "Google Compute Engine"

	d := f.dimensions
	d["os"] = p.osDimension()
	d["cpu"] = cpuDimension(machineName(), strconv.Itoa(strconv.IntSize), cpu)
	d["gpu"] = p.gpuDimension(pci)
	d["gce"] = flag(gce)
	d["ssd"] = flag(len(disks) > 0)
	d["kvm"] = flag(p.exists("dev/kvm"))
	d["inside_docker"] = p.insideDocker()
	d["display_attached"] = flag(p.displayAttached())
	set := func(k string, v ...string) {
		if len(v) > 0 && v[0] != "" {
			d[k] = v
		}
	}
	set("kernel", p.word("proc/sys/kernel/osrelease"))
	set("cpu_governor", p.word("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"))
	set("device_tree_compatible", p.deviceTree()...)
	typ, cost := machineType(runtime.NumCPU(), ram)
	set("machine_type", typ)

	s := f.state
	s["cpu_name"] = cpu.name
	s["ram"] = ram
	s["ssd"] = disks
	s["audio"] = p.deviceNames(pci, "0401", "0403")
	s["gpu"] = p.deviceNames(pci, "03")
	s["cost_usd_hour"] = cost + osCost("linux", runtime.NumCPU()) + p.diskCost()
	if v := p.opt.Getenv("DOCKER_HOST_HOSTNAME"); v != "" {
		s["docker_host_hostname"] = v
	}
	return f
}

func (p *Platform) lookSlowly(ctx context.Context) slowFacts {
	s := slowFacts{dimensions: map[string][]string{}, state: map[string]any{}}
	s.state["python"] = nil
	var py, cloud slowFacts
	var wg sync.WaitGroup
	wg.Go(func() {
		py = slowFacts{dimensions: map[string][]string{}, state: map[string]any{}}
		p.python(ctx, &py)
	})
	if p.fixed.dimensions["gce"][0] == "1" {
		wg.Go(func() { cloud = p.gce(ctx) })
	}
	wg.Wait()
	for _, f := range []slowFacts{py, cloud} {
		for k, v := range f.dimensions {
			s.dimensions[k] = v
		}
		for k, v := range f.state {
			s.state[k] = v
		}
	}
	return s
}

func (p *Platform) lookAgainOS(s map[string]any) {
	s["disks"] = p.disks()
	if up, _, ok := strings.Cut(p.word("proc/uptime"), "."); ok {
		s["uptime"], _ = strconv.Atoi(up)
	}
	if p.exists("var/run/reboot-required") {
		s["reboot_required"] = true
	}
	if t := p.temperatures(); len(t) > 0 {
		s["temp"] = t
	}
}

// osDimension names the distribution and every prefix of its version.
func (p *Platform) osDimension() []string {
	rel := parseRelease(p.word("etc/os-release"))
	out := []string{"Linux"}
	if id := rel["ID"]; id != "" {
		name := strings.ToUpper(id[:1]) + id[1:]
		out = append(out, name)
		if v := osVersion(rel, p.word("etc/debian_version")); v != "" {
			for _, pre := range prefixes(v) {
				out = append(out, name+"-"+pre)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func parseRelease(text string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(text) {
		k, v, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || strings.HasPrefix(k, "#") {
			continue
		}
		out[k] = strings.Trim(v, `"'`)
	}
	return out
}

// osVersion returns the most precise version that some source tells.
func osVersion(rel map[string]string, debian string) string {
	v := rel["VERSION_ID"]
	candidates := strings.Fields(rel["VERSION"] + " " + rel["PRETTY_NAME"])
	if rel["ID"] == "debian" {
		candidates = append(candidates, debian)
	}
	for _, c := range candidates {
		more := strings.Count(c, ".") > strings.Count(v, ".") || v == ""
		if more && isVersion(c) && strings.HasPrefix(c, v) {
			v = c
		}
	}
	return v
}

func isVersion(s string) bool {
	return s != "" && strings.Trim(s, "0123456789.") == "" && s[0] != '.'
}

// machineName is what uname -m says.
func machineName() string {
	switch runtime.GOARCH {
	case "amd64":
		return "x86_64"
	case "386":
		return "i686"
	case "arm64":
		return "aarch64"
	case "arm":
		return "armv7l"
	case "loong64":
		return "loongarch64"
	}
	return runtime.GOARCH
}

func (p *Platform) ramMB() int {
	for line := range strings.Lines(p.word("proc/meminfo")) {
		if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				kb, _ := strconv.Atoi(f[0])
				return kb / 1024
			}
		}
	}
	return 0
}

// solidDisks lists the block devices that do not rotate. Memory and files that
// pose as disks are none.
func (p *Platform) solidDisks() []string {
	out := []string{}
	dirs, _ := filepath.Glob(p.path("sys/block/*"))
	for _, dir := range dirs {
		name := filepath.Base(dir)
		if strings.HasPrefix(name, "loop") || strings.HasPrefix(name, "ram") {
			continue
		}
		rel := "sys/block/" + name
		if p.word(rel+"/queue/rotational") == "0" && p.word(rel+"/size") != "0" {
			out = append(out, name)
		}
	}
	return out
}

func (p *Platform) insideDocker() []string {
	if p.exists(".dockerenv") || p.exists(".docker_env") || strings.Contains(p.word("proc/self/cgroup"), ":/k8s.io") {
		return []string{"1", "stock"}
	}
	return []string{"0"}
}

// displayAttached asks the kernel, so that no X server is needed.
func (p *Platform) displayAttached() bool {
	files, _ := filepath.Glob(p.path("sys/class/drm/*/status"))
	return slices.ContainsFunc(files, func(f string) bool {
		data, _ := os.ReadFile(f)
		return strings.TrimSpace(string(data)) == "connected"
	})
}

func (p *Platform) deviceTree() []string {
	var out []string
	for _, part := range strings.Split(p.word("sys/firmware/devicetree/base/compatible"), ",") {
		if part != "" && !strings.Contains(part, "\x00") {
			out = append(out, part)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (p *Platform) temperatures() map[string]float64 {
	out := map[string]float64{}
	zones, _ := filepath.Glob(p.path("sys/class/thermal/thermal_zone*/temp"))
	for _, z := range zones {
		data, err := os.ReadFile(z)
		if err != nil {
			continue // a zone of a sleeping device cannot be read
		}
		if v, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil {
			out[filepath.Base(filepath.Dir(z))] = float64(v) / 1000
		}
	}
	return out
}

// disks maps mount points of real devices to their room. A file system that
// does not answer is not waited for: only local devices are asked.
func (p *Platform) disks() map[string]map[string]float64 {
	out := map[string]map[string]float64{}
	for _, m := range p.mounts() {
		if s, err := statSpace(m); err == nil && s.total > 0 {
			out[m] = map[string]float64{"size_mb": megabytes(s.total), "free_mb": megabytes(s.free)}
		}
	}
	return out
}

func (p *Platform) mounts() []string {
	var out []string
	for line := range strings.Lines(p.word("proc/mounts")) {
		f := strings.Fields(line)
		if len(f) < 3 || !strings.HasPrefix(f[0], "/dev/") || strings.HasPrefix(f[0], "/dev/loop") {
			continue
		}
		out = append(out, unescapeMount(f[1]))
	}
	return out
}

// unescapeMount undoes the octal escapes of /proc/mounts.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// diskCost is for the whole size of each device once: a task pays for the
// disk, not for what others left free on it.
func (p *Platform) diskCost() float64 {
	var gb float64
	seen := map[string]bool{}
	for line := range strings.Lines(p.word("proc/mounts")) {
		f := strings.Fields(line)
		if len(f) < 3 || !strings.HasPrefix(f[0], "/dev/") || strings.HasPrefix(f[0], "/dev/loop") || seen[f[0]] {
			continue
		}
		seen[f[0]] = true
		if s, err := statSpace(unescapeMount(f[1])); err == nil {
			gb += float64(s.total) / (1 << 30)
		}
	}
	return gb * usdGBHour
}

// gce asks the metadata server of Compute Engine. spec bot.md §7.1.
func (p *Platform) gce(ctx context.Context) slowFacts {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	s := slowFacts{dimensions: map[string][]string{}, state: map[string]any{}}
	ask := func(key string) string { return metadata(ctx, key) }
	gceDimensions(ask, s.dimensions)
	if typ := lastElement(ask("instance/machine-type")); typ != "" {
		s.dimensions["machine_type"] = []string{typ}
	}
	return s
}
