package platform

import (
	"regexp"
	"slices"
	"strings"
	"sync"
)

// cpuInfo is what /proc/cpuinfo says of the first processor.
type cpuInfo struct {
	name   string // brand
	vendor string
	flags  []string
	extra  map[string]string // every other key
}

func parseCPUInfo(data string) cpuInfo {
	c := cpuInfo{extra: map[string]string{}}
	for line := range strings.Lines(data) {
		k, v, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		k, v = strings.TrimSpace(k), strings.TrimSpace(v)
		if _, seen := c.extra[k]; seen {
			continue
		}
		c.extra[k] = v
	}
	c.vendor = c.extra["vendor_id"]
	c.flags = strings.Fields(c.extra["flags"])
	for _, k := range []string{"model name", "Processor", "cpu model", "cpu", "Hardware"} {
		if c.name = c.extra[k]; c.name != "" {
			break
		}
	}
	return c
}

// cpuModels finds Intel's model number in a brand string; the most telling
// pattern first. spec bot.md §7.1.
var cpuModels = sync.OnceValue(func() []*regexp.Regexp {
	return []*regexp.Regexp{
		regexp.MustCompile(` ([A-Za-z]\d-\d{4}[A-Z]{0,2} v\d)\b`),
		regexp.MustCompile(` ([A-Za-z]\d-\d{4}[A-Z]{0,2})\b`),
		regexp.MustCompile(` ([A-Z]\d{4})\b`),
	}
})

// cpuType is the word for a machine name as uname tells it.
func cpuType(machine string) string {
	switch machine {
	case "amd64", "x86_64", "i386", "i686", "i86pc", "386":
		return "x86"
	case "aarch64", "arm64":
		return "arm64"
	case "mips64":
		return "mips"
	}
	return machine
}

// cpuDimension returns the values of dimension cpu, sorted.
func cpuDimension(machine, bits string, c cpuInfo) []string {
	typ := cpuType(machine)
	out := []string{typ, typ + "-" + bits}
	add := func(model string) {
		if model = strings.ReplaceAll(strings.TrimSpace(model), " ", "_"); model != "" {
			out = append(out, typ+"-"+bits+"-"+model)
		}
	}
	switch {
	case typ == "x86":
		if slices.Contains(c.flags, "avx2") {
			add("avx2")
		}
		if c.vendor == "GenuineIntel" {
			for _, re := range cpuModels() {
				if m := re.FindStringSubmatch(c.name); m != nil {
					add(m[1])
					break
				}
			}
		}
	case strings.HasPrefix(typ, "arm"):
		out = append(out, "arm", "arm-"+bits)
		add(c.extra["Hardware"])
	case typ == "mips", strings.HasPrefix(typ, "ppc64"):
		add(c.name)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
