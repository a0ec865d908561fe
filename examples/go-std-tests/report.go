package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// report prints one line per package and a summary, and returns whether both
// ways agree on every package: on ok or fail, and on which tests there are.
// That a test skips itself may depend on the user it runs as, and is counted.
func report(w io.Writer, packages []*pkg, fleet, direct map[*pkg]verdict) bool {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "PACKAGE\tSKEP\tGO TEST\tTESTS\tTIME\tBOT\t")
	agree, tests, skips, ok := 0, 0, 0, 0
	bots := map[string]bool{}
	var busy time.Duration
	var details []string
	for _, p := range packages {
		f, d := fleet[p], direct[p]
		bots[f.bot] = true
		busy += f.took
		tests += len(f.tests)
		skips += skipsApart(f, d)
		if f.ok {
			ok++
		}
		verdict := ""
		if why := disagreement(p, f, d); why == "" {
			agree++
		} else {
			verdict = "DISAGREE"
			details = append(details, fmt.Sprintf("%s: %s\n  on the fleet:\n%s\n  directly:\n%s", p.Path, why, indent(f.note), indent(d.note)))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%.2fs\t%s\t%s\n", p.Path, word(f), word(d), len(f.tests), f.took.Seconds(), f.bot, verdict)
	}
	_ = t.Flush()
	fmt.Fprintf(w, "\n%d of %d packages agree; %d ok, %d failed, one of them the control; %d tests, %.1f s of tests on %d bots",
		agree, len(packages), ok, len(packages)-ok, tests, busy.Seconds(), len(bots))
	if skips > 0 {
		fmt.Fprintf(w, "; %d tests skip themselves one way only", skips)
	}
	fmt.Fprintln(w)
	for _, d := range details {
		fmt.Fprintln(w, "\n"+d)
	}
	return agree == len(packages)
}

func word(v verdict) string {
	if v.ok {
		return "ok"
	}
	return "FAIL"
}

// apart are the packages on which the two disagree.
func apart(packages []*pkg, fleet, direct map[*pkg]verdict) (odd []*pkg) {
	for _, p := range packages {
		if disagreement(p, fleet[p], direct[p]) != "" {
			odd = append(odd, p)
		}
	}
	return odd
}

// disagreement says in what the two differ, or nothing.
func disagreement(p *pkg, f, d verdict) string {
	switch {
	case f.ok != d.ok:
		return fmt.Sprintf("skep says %s, go test says %s", word(f), word(d))
	case p.Path == "control" && f.ok:
		return "the control did not fail"
	case len(f.tests) == 0:
		return "no test ran"
	}
	var apart []string
	for _, name := range slices.Sorted(maps.Keys(f.tests)) {
		if d.tests[name] == "" || (f.tests[name] == "fail") != (d.tests[name] == "fail") {
			apart = append(apart, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.tests)) {
		if f.tests[name] == "" {
			apart = append(apart, name)
		}
	}
	if len(apart) > 0 {
		return "they differ in " + strings.Join(apart, ", ")
	}
	return ""
}

// skipsApart counts tests that only one of the two skipped.
func skipsApart(f, d verdict) (n int) {
	for name, r := range f.tests {
		if r != d.tests[name] && (r == "skip" || d.tests[name] == "skip") {
			n++
		}
	}
	return n
}

func indent(s string) string {
	if s == "" {
		return "    (nothing)"
	}
	return "    " + strings.ReplaceAll(s, "\n", "\n    ")
}
