//go:build !linux

package platform

import (
	"context"
	"runtime"
	"strconv"
)

var osNames = map[string]string{"darwin": "Mac", "windows": "Windows"}

// look reads what stays the same. On these systems it is what the bot needs to
// be found; hooks may add the rest. spec bot.md §7.2.
func (p *Platform) look() facts {
	f := p.common()
	name := osNames[runtime.GOOS]
	if name == "" {
		name = runtime.GOOS
	}
	f.dimensions["os"] = []string{name}
	f.dimensions["cpu"] = cpuDimension(runtime.GOARCH, strconv.Itoa(strconv.IntSize), cpuInfo{})
	f.dimensions["gce"] = flag(false)
	f.state["cost_usd_hour"] = osCost(runtime.GOOS, runtime.NumCPU())
	return f
}

func (p *Platform) lookSlowly(ctx context.Context) slowFacts {
	s := slowFacts{dimensions: map[string][]string{}, state: map[string]any{"python": nil}}
	p.python(ctx, &s)
	return s
}

func (p *Platform) lookAgainOS(map[string]any) {}
