// Package need is for tests that cannot do without something of the machine.
package need

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// Skip skips t loudly because a component is missing. Where SKEP_TEST_REQUIRE,
// a list with commas, names the component, t fails.
func Skip(t testing.TB, component, why string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("SKEP_TEST_REQUIRE"), ","), component) {
		t.Fatalf("SKEP_TEST_REQUIRE names %s: %s", component, why)
	}
	t.Skipf("SKIPPED, no %s: %s", component, why)
}

// Root skips t unless it runs as root, which why says what for.
func Root(t testing.TB, why string) {
	t.Helper()
	if os.Geteuid() != 0 {
		Skip(t, "root", why)
	}
}
