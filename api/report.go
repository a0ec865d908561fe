package api

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/cas"
)

// Report validates a task_update and returns it as the scheduler takes it.
// spec scheduler.md §9.5, bot.md §2.10.
func Report(bot skep.BotID, u *botapi.TaskUpdate) (skep.Report, error) {
	r := skep.Report{Bot: bot, Start: u.OutputChunkStart, Output: u.Output}
	if u.TaskID == "" {
		return r, skep.Invalidf("task_id", "is required")
	}
	var err error
	if r.Task, err = skep.ParseTaskID(u.TaskID); err != nil {
		return r, err
	}
	for field, v := range map[string]*float64{"cost_usd": u.CostUSD, "duration": u.Duration, "bot_overhead": u.BotOverhead} {
		if v != nil && !isAmount(*v) {
			return r, skep.Invalidf(field, "is %v, want a number that is not negative, nor beyond a 32-bit float", *v)
		}
	}
	switch {
	case u.OutputChunkStart < 0:
		return r, skep.Invalidf("output_chunk_start", "is negative")
	case u.OutputChunkStart > math.MaxInt64-int64(len(u.Output)):
		return r, skep.Invalidf("output_chunk_start", "is too large")
	case (u.Duration == nil) != (u.ExitCode == nil):
		return r, skep.Invalidf("duration", "must be sent together with exit_code")
	case u.BotOverhead != nil && u.Duration == nil:
		return r, skep.Invalidf("bot_overhead", "needs duration")
	}
	if u.CostUSD != nil {
		r.CostUSD = *u.CostUSD
	}
	if !u.Final() {
		return r, nil
	}
	r.Ending = &skep.Ending{ExitCode: u.ExitCode, Duration: u.Duration, HardTimeout: u.HardTimeout, IOTimeout: u.IOTimeout, Canceled: u.Canceled}
	r.Outcome, err = outcome(u)
	return r, err
}

// isAmount reports whether v can be a time or a cost; clients get them as
// 32-bit floats.
func isAmount(v float64) bool { return v >= 0 && v <= math.MaxFloat32 }

// amount is v where it can be one. Of a statistic that cannot, as when a clock
// was set back, there is none: it does not fail the end of a task.
func amount(v float64) float64 {
	if !isAmount(v) {
		return 0
	}
	return v
}

func outcome(u *botapi.TaskUpdate) (*skep.Outcome, error) {
	o := &skep.Outcome{}
	if c := u.CASOutputRoot; c != nil {
		if c.Digest.SizeBytes < 0 || c.Digest.Hash == "" || len(c.Digest.Hash) > 128 {
			return nil, skep.Invalidf("cas_output_root", "is not a digest")
		}
		o.CASOutput = &skep.CASReference{Instance: c.Instance, Hash: c.Digest.Hash, Size: c.Digest.SizeBytes}
	}
	if p := u.CIPDPins; p != nil {
		o.CIPDPins = &skep.CIPDPins{Packages: packages(p.Packages)}
		if p.ClientPackage != nil {
			o.CIPDPins.Client = &packages([]botapi.CIPDPackage{*p.ClientPackage})[0]
		}
	}
	if u.BotOverhead == nil { // statistics count only with it
		return o, nil
	}
	s := &skep.Stats{BotOverhead: *u.BotOverhead}
	if i := u.IsolatedStats; i != nil {
		var err error
		if s.Download, err = transfer("isolated_stats.download", i.Download); err != nil {
			return nil, err
		}
		if s.Upload, err = transfer("isolated_stats.upload", i.Upload); err != nil {
			return nil, err
		}
	}
	if u.CIPDStats != nil {
		s.Packages = amount(u.CIPDStats.Duration)
	}
	if u.CacheTrimStats != nil {
		s.CacheTrim = amount(u.CacheTrimStats.Duration)
	}
	if n := u.NamedCachesStats; n != nil {
		s.CachesInstall, s.CachesRemove = amount(n.Install.Duration), amount(n.Uninstall.Duration)
	}
	if u.CleanupStats != nil {
		s.Cleanup = amount(u.CleanupStats.Duration)
	}
	o.Stats = s
	return o, nil
}

func transfer(field string, t *botapi.TransferStats) (*skep.TransferStats, error) {
	if t == nil {
		return nil, nil
	}
	for _, items := range [][]byte{t.ItemsCold, t.ItemsHot} {
		if _, err := cas.UnpackSizes(items); err != nil {
			return nil, skep.Invalidf(field, "is not a packed list of sizes: %v", err)
		}
	}
	return &skep.TransferStats{
		Duration: amount(t.Duration), InitialItems: max(0, t.InitialNumberItems), InitialSize: max(0, t.InitialSize), ItemsCold: t.ItemsCold, ItemsHot: t.ItemsHot,
	}, nil
}

func packages(ps []botapi.CIPDPackage) []skep.CIPDPackage {
	var out []skep.CIPDPackage
	for _, p := range ps {
		out = append(out, skep.CIPDPackage{Name: p.PackageName, Version: p.Version, Path: p.Path})
	}
	return out
}

// maxMessage bounds the texts that bots send to be kept.
const maxMessage = 64 << 10

// ErrorReport validates a task_error and returns it as a report that ends the
// task. spec scheduler.md §9.6.
func ErrorReport(bot skep.BotID, e *botapi.TaskErrorRequest) (skep.Report, error) {
	r := skep.Report{Bot: bot}
	if e.TaskID == "" {
		return r, skep.Invalidf("task_id", "is required")
	}
	var err error
	if r.Task, err = skep.ParseTaskID(e.TaskID); err != nil {
		return r, err
	}
	r.Outcome = &skep.Outcome{Message: Clip(e.Message)}
	if c := e.ClientError; c != nil {
		for i, m := range c.MissingCAS {
			hash, size, ok := strings.Cut(m.Digest, "/")
			n, err := strconv.ParseInt(size, 10, 64)
			if !ok || err != nil || n < 0 {
				return r, skep.Invalidf(fmt.Sprintf("client_error.missing_cas[%d].digest", i), "%.100q is not <hash>/<size>", m.Digest)
			}
			r.Outcome.MissingCAS = append(r.Outcome.MissingCAS, skep.CASReference{Instance: m.Instance, Hash: hash, Size: n})
		}
		r.Outcome.MissingCIPD = packages(c.MissingCIPD)
	}
	r.Ending = &skep.Ending{Lost: true}
	if len(r.Outcome.MissingCAS)+len(r.Outcome.MissingCIPD) > 0 {
		r.Ending = &skep.Ending{MissingIn: true}
	}
	return r, nil
}

// Clip bounds a text that a bot sent, and makes it valid UTF-8 without NUL,
// which the database cannot hold.
func Clip(s string) string {
	if len(s) > maxMessage {
		s = s[:maxMessage] + "…"
	}
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", "�"), "�")
}
