package machine

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/store"
)

// suffixed is the label that gives the machines of devices a suffix too.
// spec §6.
const suffixed = "use_suffix"

// vmID names a machine: by its number in the pool, or by its device.
func vmID(prefix string, index int, dut string) string {
	if dut == "" {
		return prefix + "-" + strconv.Itoa(index)
	}
	return prefix + "-" + dutName(dut)
}

// dutName shortens a device's name: what is dropped of a name is replaced by a
// digest of all of it. Should two become one all the same, checkDevices says so.
func dutName(dut string) string {
	var short strings.Builder
	run := false
	for _, c := range strings.ToLower(dut) {
		digit := c >= '0' && c <= '9'
		legal := digit || c >= 'a' && c <= 'z' || c == '-'
		if digit || legal && !run {
			short.WriteRune(c)
		}
		run = legal && !digit && c != '-'
	}
	s := strings.Trim(short.String(), "-")
	for strings.Contains(s, "--") {
		s = strings.ReplaceAll(s, "--", "-")
	}
	sum := sha256.Sum256([]byte(dut))
	return strings.TrimPrefix(s[:min(len(s), 24)]+"-"+hex.EncodeToString(sum[:5]), "-")
}

// maxHostname is the longest name of a host, and of an instance.
const maxHostname = 63

// CheckDevice returns an Invalid error about field when the machine of a lab
// device would have too long a name in the pool with this prefix. The suffix
// that a label may ask for, now or later, counts.
func CheckDevice(field, prefix, dut string) error {
	if n := len(vmID(prefix, 0, dut)) + len("-ab12"); n > maxHostname {
		return skep.Invalidf(field, "the machine of device %.40q would have a name of %d characters, %s-… and a suffix; %d at most are allowed: choose a shorter prefix", dut, n, prefix, maxHostname)
	}
	return nil
}

// checkDevices returns an Invalid error when the machines of two devices would
// have one name: one of them would never come. promise P16.
func checkDevices(duts []string) error {
	seen := make(map[string]string, len(duts))
	for _, d := range duts {
		name := dutName(d)
		if other, is := seen[name]; is && other != d {
			return skep.Invalidf("config.duts", "the machines of devices %.40q and %.40q would have one name, …-%s; rename one of the devices", other, d, name)
		}
		seen[name] = d
	}
	return nil
}

// serverURL makes what a Config names as the server of its bots, a host or an
// URL, an URL.
func serverURL(swarming string) string {
	if swarming == "" || strings.Contains(swarming, "://") {
		return swarming
	}
	return "https://" + swarming
}

// hostname draws the name of an instance.
func hostname(id, dut string, labels map[string]string) string {
	if dut != "" && labels[suffixed] != "true" {
		return id
	}
	const digits = "abcdefghijklmnopqrstuvwxyz0123456789"
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	for i := range b {
		b[i] = digits[int(b[i])%len(digits)]
	}
	return id + "-" + string(b[:])
}

// requestID names a call to a cloud, so that its repetition is known as one. It
// holds the generation: a hostname that is used again gets another. spec §6, §17 D3.
func requestID(what, hostname string, generation int64) string {
	return uuid.NewSHA1(uuid.Nil, fmt.Appendf(nil, "%s-%s-%d", what, hostname, generation)).String()
}

// jitter spreads the ends of machines made together: [L, L + L/10) in whole
// seconds, or what can be told. spec §8. u is from [0, 1).
func jitter(lifetime time.Duration, u float64) time.Duration {
	if lifetime < 10*time.Second {
		return lifetime
	}
	more := time.Duration(u * float64(lifetime/10)).Truncate(time.Second)
	return lifetime + min(more, math.MaxInt64-lifetime)
}

// scaling is the type of a pool for metrics. spec §4.
func scaling(a provider.Amount) string {
	if a.Max == 0 || len(a.Windows) > 0 || a.Max > a.Min {
		return "dynamic"
	}
	return "fixed"
}

// ref is where a machine's instance is.
func ref(v *store.VM) provider.Ref {
	return provider.Ref{Project: v.Project, Zone: v.Zone, Name: v.Hostname}
}
