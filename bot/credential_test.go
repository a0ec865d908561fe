package bot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skepdev/skep/api/botapi"
)

func open(t *testing.T, dir, id, given, bootstrap string) *Credential {
	t.Helper()
	c, err := OpenCredential(dir, id, given, bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A bootstrap token buys one credential, also when the bot dies in between.
func TestCredentialIsBoughtOnce(t *testing.T) {
	dir := t.TempDir()
	tok := filepath.Join(dir, BootstrapFile)
	if err := os.WriteFile(tok, []byte("skep_boot\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := open(t, dir, "a", "", "")
	if got := c.Token(); got != "skep_boot" {
		t.Fatalf("it shows %q, want the bootstrap token", got)
	}
	now := time.Unix(1_000_000_000, 0)
	first, err := c.Request(now)
	if err != nil {
		t.Fatal(err)
	}
	// The answer was lost and the bot killed.
	c = open(t, dir, "a", "", "")
	again, err := c.Request(now)
	if err != nil || *again != *first {
		t.Fatalf("asked for %+v, then for %+v, %v", first, again, err)
	}
	if c.Token() != "skep_boot" {
		t.Error("it shows a credential that nobody accepted")
	}
	if err := c.Accept(&botapi.Credential{ID: "another", Expires: 1}); err != nil || c.Token() != "skep_boot" {
		t.Errorf("it took an answer that is not for it: %v", err)
	}
	if err := c.Accept(&botapi.Credential{ID: first.ID, Expires: now.Add(90 * 24 * time.Hour).Unix()}); err != nil {
		t.Fatal(err)
	}
	if got := c.Token(); !strings.HasPrefix(got, "skep_"+first.ID+"_") {
		t.Errorf("it shows %q", got)
	}
	if _, err := os.Stat(tok); !os.IsNotExist(err) {
		t.Errorf("the bootstrap token is still there: %v", err)
	}
	if st, err := os.Stat(filepath.Join(dir, CredentialFile)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the credential has mode %v, %v", st.Mode(), err)
	}

	// It lasts, is renewed in time, and is of no use elsewhere.
	c = open(t, dir, "a", "", "")
	if req, _ := c.Request(now.Add(59 * 24 * time.Hour)); req != nil {
		t.Error("renewed too early")
	}
	late := now.Add(61 * 24 * time.Hour)
	if !c.Due(late) || c.Due(late) || !c.Due(late.Add(2*time.Hour)) {
		t.Error("renewal is due once an hour")
	}
	if req, _ := c.Request(late); req == nil || req.ID == first.ID {
		t.Errorf("asked for %+v", req)
	}
	for name, other := range map[string]*Credential{"another bot": open(t, dir, "b", "", "")} {
		if other.Token() != "" {
			t.Errorf("%s has the credential", name)
		}
	}
	moved := t.TempDir()
	data, _ := os.ReadFile(filepath.Join(dir, CredentialFile))
	if err := os.WriteFile(filepath.Join(moved, CredentialFile), data, 0o600); err != nil {
		t.Fatal(err)
	}
	if open(t, moved, "a", "", "").Token() != "" {
		t.Error("a copy in another directory is taken")
	}
}

func TestGivenTokenNeedsNoCredential(t *testing.T) {
	c := open(t, t.TempDir(), "a", "skep_given", "")
	if req, err := c.Request(time.Now()); req != nil || err != nil || c.Token() != "skep_given" {
		t.Errorf("request %+v, %v, token %q", req, err, c.Token())
	}
}

// A bot that was away until its credential expired, or whose credential was
// revoked, comes back with a new bootstrap token; one whose credential is good
// leaves no token lying about.
func TestBootstrapTokenReplacesARefusedCredential(t *testing.T) {
	now := time.Unix(1_000_000_000, 0)
	buy := func(c *Credential) string {
		req, err := c.Request(now)
		if err != nil || req == nil {
			t.Fatalf("asked for %v, %v", req, err)
		}
		if err := c.Accept(&botapi.Credential{ID: req.ID, Expires: now.Add(90 * 24 * time.Hour).Unix()}); err != nil {
			t.Fatal(err)
		}
		return c.Token()
	}
	dir := t.TempDir()
	tok := filepath.Join(dir, BootstrapFile)
	first := buy(open(t, dir, "a", "", "skep_boot"))
	if open(t, dir, "a", "", "").Refused() {
		t.Error("without a bootstrap token there is something else to show")
	}

	if err := os.WriteFile(tok, []byte("skep_boot2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := open(t, dir, "a", "", "")
	if got := c.Token(); got != first {
		t.Fatalf("it shows %q before its own was refused", got)
	}
	if !c.Refused() || c.Token() != "skep_boot2" || c.Refused() {
		t.Fatalf("refused, it shows %q, want the bootstrap token, once", c.Token())
	}
	second := buy(c)
	if second == first || open(t, dir, "a", "", "").Token() != second {
		t.Errorf("it shows %q after it bought another", second)
	}

	if err := os.WriteFile(tok, []byte("skep_boot3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c = open(t, dir, "a", "", "")
	if err := c.Accept(nil); err != nil || c.Token() != second { // a handshake that worked
		t.Errorf("it shows %q, %v", c.Token(), err)
	}
	if _, err := os.Stat(tok); !os.IsNotExist(err) {
		t.Errorf("the unused bootstrap token is still there: %v", err)
	}
}
