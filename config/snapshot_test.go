package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	"github.com/skepdev/skep/api/providerpb"
	"github.com/skepdev/skep/api/providerpb/projectspb"
	"github.com/skepdev/skep/config/configpb"
)

func faultsOf(files Files) []string {
	_, err := New(files)
	var fs Faults
	if !errors.As(err, &fs) {
		return nil
	}
	return texts(fs)
}

// in makes a bots.cfg of a group's fields, each in a line of its own from 2 on.
func in(fields ...string) Files {
	return Files{"bots.cfg": "bot_group {\n" + strings.Join(fields, "\n") + "\n}"}
}

func pools(fields ...string) Files {
	return Files{"pools.cfg": "pool { name: \"a\" realm: \"p:r\"\n" + strings.Join(fields, "\n") + "\n}"}
}

func TestFaults(t *testing.T) {
	const token = `auth { require_token {} }`
	for _, c := range []struct {
		name  string
		files Files
		want  []string
	}{
		{"nothing", Files{}, nil},
		{"empty files", Files{"settings.cfg": "", "pools.cfg": "", "bots.cfg": ""}, nil},
		{"all files at once", Files{"settings.cfg": "max_bot_sleep_time: 0\n\nbot_death_timeout_secs: 59", "pools.cfg": "pool {}", "bots.cfg": "bot_group {}"}, []string{
			"bots.cfg:1: bot_group[0].auth: is required",
			"pools.cfg:1: pool[0].name: is required",
			"pools.cfg:1: pool[0].realm: is required",
			"settings.cfg:1: max_bot_sleep_time: is 0, want 1 to 3600",
			"settings.cfg:3: bot_death_timeout_secs: is 59, want 60 to 86400",
		}},
		{"what LUCI has and we not", in(`auth { require_luci_machine_token: true }`, `auth { require_service_account: "a@b.c" }`, `auth { require_luci_machine_token_secure { ca_id: 1 } }`, `system_service_account: "bot"`, `bot_config_script_rev: "1"`), []string{
			"bots.cfg:2: bot_group[0].auth[0].require_luci_machine_token: is not supported: skep has no LUCI machine tokens; use require_token or require_client_certificate",
			"bots.cfg:3: bot_group[0].auth[1].require_service_account: is not supported: skep cannot check OAuth tokens; use require_token",
			"bots.cfg:4: bot_group[0].auth[2].require_luci_machine_token_secure: is not supported: skep has no LUCI machine tokens; use require_token or require_client_certificate",
			`bots.cfg:5: bot_group[0].system_service_account: "bot" is not supported: skep has no service accounts; take it out`,
			"bots.cfg:6: bot_group[0].bot_config_script_rev: is not supported: is internal; take it out",
		}},
		{"harmless things of LUCI", in(token, `system_service_account: "none"`, `rbe_migration { hybrid_mode: true }`, `auth { require_luci_machine_token: false require_token {} }`), nil},
		{"two methods in one", in(`auth { require_token {} require_client_certificate {} }`, `auth { log_if_failed: true }`, `auth { ip_whitelist: "x" }`), []string{
			"bots.cfg:2: bot_group[0].auth[0].require_client_certificate: excludes require_token, which is given too; put it into an auth of its own",
			"bots.cfg:3: bot_group[0].auth[1]: proves nothing; give it require_token {}, require_client_certificate {}, require_gce_vm_token or an ip_whitelist",
			`bots.cfg:4: bot_group[0].auth[2].ip_whitelist: there is no ip_list "x"; add ip_list { name: "x" network: "10.1.0.0/16" }`,
		}},
		{"networks", in(`auth { ip_network: ["10.1.0.0/16", "10.1.2.3", "::1", "10.1.0.1/16", "a", "::ffff:10.0.0.0/104", "fe80::1%eth0"] }`), []string{
			`bots.cfg:2: bot_group[0].auth[0].ip_network[3]: "10.1.0.1/16" has bits set behind its length; did you mean 10.1.0.0/16?`,
			`bots.cfg:2: bot_group[0].auth[0].ip_network[4]: "a" is neither a network as 10.1.0.0/16 nor an address`,
			`bots.cfg:2: bot_group[0].auth[0].ip_network[5]: "::ffff:10.0.0.0/104" is an IPv4 network in IPv6 form; write it as IPv4`,
			`bots.cfg:2: bot_group[0].auth[0].ip_network[6]: "fe80::1%eth0" is neither a network as 10.1.0.0/16 nor an address`,
		}},
		{"a VM token", in(`auth { require_gce_vm_token {} }`, `auth { require_gce_vm_token { project: "p" jwks_url: "http://10.0.0.1/x" } }`, `auth { require_gce_vm_token { project: "p" jwks_url: "http://127.0.0.1:1/x" } }`), []string{
			"bots.cfg:2: bot_group[0].auth[0].require_gce_vm_token.project: is required",
			`bots.cfg:3: bot_group[0].auth[1].require_gce_vm_token.jwks_url: "http://10.0.0.1/x" is not an https URL`,
		}},
		{"ids", in(token, `bot_id: ["a{1..3}", "a2", "b{1..2}{3..4}", "c{3..1}", "d{x}", "e{01..3}", "f{a,,b}", "g--1", "h:1", "i}", "", "j{1..200000}"]`), []string{
			`bots.cfg:3: bot_group[0].bot_id[10]: is empty`,
			`bots.cfg:3: bot_group[0].bot_id[1]: bot "a2" is in a group already, in line 1`,
			`bots.cfg:3: bot_group[0].bot_id[2]: "b1{3..4}" has a brace that does not belong to one {a..b} or {a,b,c}`,
			`bots.cfg:3: bot_group[0].bot_id[3]: {3..1} is empty: 3 is more than 1`,
			`bots.cfg:3: bot_group[0].bot_id[4]: {x} is neither {a..b} nor {a,b,c}`,
			`bots.cfg:3: bot_group[0].bot_id[5]: {01..3} is not {a..b} with whole numbers that do not begin with 0`,
			`bots.cfg:3: bot_group[0].bot_id[6]: {a,,b} has an empty alternative`,
			`bots.cfg:3: bot_group[0].bot_id[7]: "g--1" holds --; groups name the host, the part before it`,
			`bots.cfg:3: bot_group[0].bot_id[8]: id has value "h:1" with a colon`,
			`bots.cfg:3: bot_group[0].bot_id[9]: "i}" has a brace that does not belong to one {a..b} or {a,b,c}`,
			`bots.cfg:3: bot_group[0].bot_id[11]: is more ids than this file may still have: 99991`,
		}},
		{"prefixes", Files{"bots.cfg": "bot_group { " + token + " bot_id_prefix: \"ab\" }\nbot_group { " + token + " bot_id_prefix: [\"abc\", \"b\", \"ab\"] }"}, []string{
			`bots.cfg:2: bot_group[1].bot_id_prefix[2]: "ab" is in a group already, in line 1`,
			`bots.cfg:2: bot_group[1].bot_id_prefix[0]: "abc" begins with "ab", which is a prefix too`,
		}},
		{"two groups for all others", Files{"bots.cfg": "bot_group { " + token + " }\nbot_group { " + token + " }"}, []string{
			"bots.cfg:2: bot_group[1]: has neither bot_id nor bot_id_prefix, and so has the group in line 1; only one can be for all others",
		}},
		{"forced dimensions", in(token, `dimensions: ["pool:a", "x", "id:a", "k: v", "k:", "1k:v", "os:a:b", "os:a:b"]`), []string{
			`bots.cfg:3: bot_group[0].dimensions[1]: "x" is not key:value`,
			`bots.cfg:3: bot_group[0].dimensions[2]: the id of a bot cannot be forced`,
			`bots.cfg:3: bot_group[0].dimensions[3]: k has value " v" with surrounding blanks`,
			`bots.cfg:3: bot_group[0].dimensions[4]: k has an empty value`,
			`bots.cfg:3: bot_group[0].dimensions[5]: key "1k" must match ^[a-zA-Z\-_.][0-9a-zA-Z\-_.]*$`,
			`bots.cfg:3: bot_group[0].dimensions[7]: "os:a:b" is there already`,
		}},
		{"trusted dimensions without pool", Files{"bots.cfg": `trusted_dimensions: "os"`}, []string{`bots.cfg:1: trusted_dimensions: lacks "pool", which only the server may set`}},
		{"a pool that does not exist", Files{"bots.cfg": inB, "pools.cfg": onePool}, []string{`bots.cfg:1: bot_group[0].dimensions[0]: pools.cfg has no pool "b"`}},
		{"any pool exists without pools.cfg", Files{"bots.cfg": inB}, nil},
		{"scripts", Files{"bots.cfg": "bot_group { " + token + " bot_config_script: \"../x.py\" }\nbot_group { bot_id: \"a\" " + token + " bot_config_script: \"x.sh\" }\nbot_group { bot_id: \"b\" " + token + ` bot_config_script: "x.py" bot_config_script_star: "y.star" }`, "scripts/x.py": "", "scripts/z.exe": ""}, []string{
			`bots.cfg:1: bot_group[0].bot_config_script: "../x.py" is not the name of a file under scripts/ ending in .py or .star`,
			`bots.cfg:2: bot_group[1].bot_config_script: "x.sh" is not the name of a file under scripts/ ending in .py or .star`,
			`bots.cfg:3: bot_group[2].bot_config_script_star: there is no file scripts/y.star`,
			`scripts/z.exe: is neither a .star nor a .py, bootstrap.sh or bootstrap.ps1; take it out`,
		}},
		{"hooks with mistakes", Files{"scripts/a.star": "def get_state(bot):\n    return {\n        'a': 1,,\n    }\n", "scripts/b.star": "def get_state(bot):\n    return bots\n\nload('a.star', 'x')\n", "scripts/c.star": "fail('only when it runs')", "scripts/d.py": "def get_state(bot)"}, []string{
			"scripts/a.star:3: got ',', want primary expression",
			"scripts/b.star:2: undefined: bots (did you mean bot?)",
			"scripts/b.star:4: there is no load: a script stands alone",
		}},
		{"bootstrap scripts with mistakes", Files{"scripts/bootstrap.sh": "curl {{.Server}}\n{{.Tokn}}", "scripts/bootstrap.ps1": "{{range .Code}}{{.OS}}"}, []string{
			`scripts/bootstrap.ps1: bootstrap.ps1:1: unexpected EOF`,
			`scripts/bootstrap.sh: bootstrap.sh:2:2: executing "bootstrap.sh" at <.Tokn>: can't evaluate field Tokn in type bootstrap.Data`,
		}},
		{"what pools cannot have", pools(`external_schedulers { id: "x" }`, `schedulers { }`, `bot_monitoring: "x"`, `task_template_deployment: "x"`, `scheduling_algorithm: SCHEDULING_ALGORITHM_LIFO`, `rbe_migration { rbe_instance: "i" rbe_mode_percent: 10 bot_mode_allocation { mode: RBE percent: 100 } }`), []string{
			"pools.cfg:2: pool[0].external_schedulers: is not supported: skep has no external schedulers",
			"pools.cfg:3: pool[0].schedulers: is not supported: is obsolete; take it out; say with grant who may do what",
			"pools.cfg:4: pool[0].bot_monitoring: is not supported: use the server's metrics",
			"pools.cfg:5: pool[0].task_template_deployment: is not supported: skep has no task templates; put what they add into the tasks",
			"pools.cfg:6: pool[0].scheduling_algorithm: is not supported: skep hands out the oldest task of a priority first; take it out",
			"pools.cfg:7: pool[0].rbe_migration.bot_mode_allocation[0].mode: is RBE, want SWARMING: skep has no remote scheduler",
			"pools.cfg:7: pool[0].rbe_migration.rbe_mode_percent: is 10, want 0: skep has no remote scheduler",
		}},
		{"a remote scheduler that has nothing to do", pools(`rbe_migration { rbe_instance: "i" bot_mode_allocation { mode: SWARMING percent: 100 } }`, `enforced_realm_permissions: REALM_PERMISSION_TASKS_GET`), nil},
		{"names of pools", Files{"pools.cfg": "pool { name: \"a\" name: \"b\" realm: \"x\" }\npool { name: \"a\" name: \"b:c\" name: \"\" realm: \"p:r\" default_task_realm: \"P:r\" }"}, []string{
			`pools.cfg:1: pool[0].realm: "x" is not <project>:<realm> of lower-case letters, digits and -_./`,
			`pools.cfg:2: pool[1].name[0]: pool "a" is there already, in line 1`,
			`pools.cfg:2: pool[1].name[1]: pool has value "b:c" with a colon`,
			`pools.cfg:2: pool[1].name[2]: is empty`,
			`pools.cfg:2: pool[1].default_task_realm: "P:r" is not <project>:<realm> of lower-case letters, digits and -_./`,
		}},
		{"our fields of pools", pools(`max_bot_uptime_secs: 0`, `max_host_uptime_secs: 60`, `recovery { action: ACTION_RUN }`, `recovery { action: ACTION_RESTART_BOT command: "x" budget: 0 }`, `recovery {}`, `circuit_breaker {}`, `foreign_bots { policy: POLICY_LISTED }`, `foreign_bots { }`, `informational_dimension_re: "("`, `warm_pool: "run/pool"`), []string{
			"pools.cfg:3: pool[0].max_host_uptime_secs: is 60, want 0 or 3600 to 31536000",
			"pools.cfg:4: pool[0].recovery[0].command: is required with ACTION_RUN",
			"pools.cfg:5: pool[0].recovery[1].budget: is 0, want 1 to 100",
			"pools.cfg:5: pool[0].recovery[1].command: is for ACTION_RUN only",
			"pools.cfg:6: pool[0].recovery[2].action: is required",
			"pools.cfg:7: pool[0].circuit_breaker.percent: is required",
			"pools.cfg:8: pool[0].foreign_bots.allowed_digest: is required with POLICY_LISTED",
			"pools.cfg:9: pool[0].foreign_bots: is given twice, first in line 8",
			"pools.cfg:10: pool[0].informational_dimension_re[0]: \"(\" is no regular expression: error parsing regexp: missing closing ): `^(?:()$`",
			`pools.cfg:11: pool[0].warm_pool: "run/pool" is not the absolute path of a socket`,
		}},
		{"grants", pools(`grant { to: "ann" role: ROLE_READER }`, `grant { to: "user:*x" role: ROLE_READER }`, `grant { to: "group:g" role: ROLE_READER }`, `grant { to: "user:" }`), []string{
			`pools.cfg:2: pool[0].grant[0].to[0]: "ann" is not user:NAME or bot:NAME, or group:NAME`,
			`pools.cfg:3: pool[0].grant[1].to[0]: "user:*x" has a * that is not its end, or group:NAME`,
			`pools.cfg:4: pool[0].grant[2].to[0]: settings.cfg has no group "g"`,
			`pools.cfg:5: pool[0].grant[3].to[0]: "user:" has no name; user:* is every one, or group:NAME`,
			`pools.cfg:5: pool[0].grant[3]: allows nothing; give it a permission or a role`,
		}},
		{"settings", Files{"settings.cfg": `google_analytics: "UA"
resultdb { server: "https://x" }
display_server_url_template: "https://x/%s/%s"
cas { viewer_server: "ftp://x" }
extra_child_src_csp_url: "https://x; script-src *"
auth { admins_group: "nobody" }
bot_deployment { canary_percent: 10 stable { pkg: "x" } }
rollout { canary_percent: 10 }
group { name: "a b" member: "x" }
reusable_task_age_secs: -1
ui_client_id: ""`}, []string{
			"settings.cfg:1: google_analytics: is not supported: skep's pages load nothing from elsewhere",
			"settings.cfg:2: resultdb: is not supported: there is no ResultDB",
			`settings.cfg:3: display_server_url_template: "https://x/%s/%s" has not exactly one %s`,
			`settings.cfg:4: cas.viewer_server: "ftp://x" is not an https URL`,
			`settings.cfg:5: extra_child_src_csp_url[0]: "https://x; script-src *" cannot be part of a content security policy`,
			`settings.cfg:6: auth.admins_group: there is no group "nobody"; add group { name: "nobody" member: "user:NAME" }`,
			"settings.cfg:7: bot_deployment.stable: is not supported: skep serves its own bot; take it out",
			"settings.cfg:7: bot_deployment.canary_percent: excludes rollout.canary_percent, which is given too",
			`settings.cfg:9: group[0].name: "a b" does not match ^[a-zA-Z0-9_-]{1,100}$`,
			`settings.cfg:9: group[0].member[0]: "x" is not user:NAME or bot:NAME`,
			"settings.cfg:10: reusable_task_age_secs: is not supported: skep runs every task and answers none with an earlier result; take it out",
		}},
		{"a text that is too long", Files{"settings.cfg": `display_server_url_template: "https://x/%s` + strings.Repeat("x", maxText) + `"`}, []string{"settings.cfg:1: display_server_url_template: has 4108 bytes, at most 4096 are allowed"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := faultsOf(c.files)
			if diff := cmp.Diff(c.want, got, anyOrder); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// anyOrder compares lists as sets: faults of one line have no order.
var anyOrder = cmp.Transformer("anyOrder", func(in []string) map[string]int {
	out := map[string]int{}
	for _, s := range in {
		out[s]++
	}
	return out
})

// The server's own bootstrap scripts are ones that an administrator may start
// from.
func TestBuiltInBootstrapScripts(t *testing.T) {
	for _, name := range []string{"bootstrap.sh", "bootstrap.ps1"} {
		text, err := os.ReadFile(filepath.Join("..", "server", "script", name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := New(Files{"scripts/" + name: string(text)}); err != nil {
			t.Error(err)
		}
	}
}

func TestDefaults(t *testing.T) {
	want := Settings{
		BotDeath: 10 * time.Minute, MaxBotSleep: time.Minute, RemoveDeadBots: 28 * 24 * time.Hour,
		ForeignBots: ForeignBots{Policy: ForeignAllow},
		Rollout:     Rollout{CanaryPercent: 10, Probation: time.Minute, MaxCrashes: 3, MaxCrashPercent: 5, Soak: time.Minute},
		Queen:       Queen{Lease: 10 * time.Minute, MaxRemovedPercent: 20},
	}
	if diff := cmp.Diff(want, Empty().Settings()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestExample holds the printed example to the struct and its defaults: it is
// valid, and what it does not mark as different is the default.
func TestExample(t *testing.T) {
	s, err := ReadDir("../examples/config")
	if err != nil {
		t.Fatal(err)
	}
	want := Empty().Settings()
	want.DisplayURL, want.ViewerServer = "https://results.example.com/task/%s", "https://cas.example.com"
	if diff := cmp.Diff(want, s.Settings()); diff != "" {
		t.Errorf("settings.cfg (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]string{"boards", "default", "phones"}, s.Pools()); diff != "" {
		t.Error(diff)
	}
	p := s.Pool("phones")
	if len(p.ExpectedBots) != 11 || p.Breaker.Percent != 33 || len(p.Recovery) != 4 || p.MaxHostUptime != 30*24*time.Hour || !p.Informational("battery_level") {
		t.Errorf("%+v", p)
	}
	for bot, pool := range map[string]string{"lab1-phone3": "phones", "lab1-phone3--2": "phones", "lab1-phone9": "default", "lab1-board7": "boards", "x": "default"} {
		if got := s.Group(bot).Pools(); !cmp.Equal(got, []string{pool}) {
			t.Errorf("bot %s is in %v, want %s", bot, got, pool)
		}
	}
}

func TestGroupOfABot(t *testing.T) {
	group := func(what, pool string) string {
		return "bot_group { auth { require_token {} } dimensions: \"pool:" + pool + "\" " + what + " }\n"
	}
	files := Files{"bots.cfg": group(`bot_id: "a{1..3}" bot_id: "b"`, "exact") + group(`bot_id_prefix: "a"`, "a") + group(`bot_id_prefix: "bb"`, "bb")}
	s, err := New(files)
	if err != nil {
		t.Fatal(err)
	}
	for bot, want := range map[string]string{"a1": "exact", "a3--x": "exact", "a4": "a", "a": "a", "b": "exact", "bb": "bb", "bbb--1": "bb", "c": "", "": "", "b--b": "exact"} {
		got := ""
		if g := s.Group(bot); g != nil {
			got = g.Pools()[0]
		}
		if got != want {
			t.Errorf("bot %q is in %q, want %q", bot, got, want)
		}
	}
	files["bots.cfg"] += group("", "rest")
	if s, err = New(files); err != nil || s.Group("c").Pools()[0] != "rest" {
		t.Error(err, s.Group("c"))
	}
}

func TestRights(t *testing.T) {
	s, err := New(Files{"settings.cfg": `
group { name: "ops" member: "user:op-*" }
auth { admins_group: "ops" }
grant { to: "user:viewer" role: ROLE_READER }`, "pools.cfg": `
realm { name: "p:shut" }
realm { name: "p:some" grant { to: "user:ann" role: ROLE_SUBMITTER } grant { to: "group:ops" permission: REALM_PERMISSION_POOLS_CANCEL_TASK } }
pool { name: "free" realm: "p:free" }
pool { name: "shut" realm: "p:shut" }
pool { name: "some" realm: "p:some" }
pool { name: "own" realm: "p:own" grant { to: "user:*" role: ROLE_OPERATOR } }`})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what string
		got  Rights
		want Rights
	}{
		{"a pool without rights leaves it to the token", s.InPool("free", "user:ann", CreateTask), Unsaid},
		{"a realm without grants is shut", s.InPool("shut", "user:ann", CreateTask), Refused},
		{"a grant", s.InPool("some", "user:ann", CreateTask), Allowed},
		{"a grant is for one name", s.InPool("some", "user:anna", CreateTask), Refused},
		{"a submitter cancels nobody's", s.InPool("some", "user:ann", CancelPoolTask), Refused},
		{"a group", s.InPool("some", "user:op-1", CancelPoolTask), Allowed},
		{"a grant of the pool", s.InPool("own", "user:x", TerminateBot), Allowed},
		{"users are not bots", s.InPool("own", "bot:x", TerminateBot), Refused},
		{"no such pool", s.InPool("none", "user:ann", CreateTask), Refused},
		{"a realm", s.InRealm("p:some", "user:ann", CreateInRealm), Allowed},
		{"another realm", s.InRealm("p:other", "user:ann", CreateInRealm), Unsaid},
		{"admins", s.Everywhere("user:op-2", DeleteBot), Allowed},
		{"admins do not submit", s.Everywhere("user:op-2", CreateTask), Refused},
		{"a grant everywhere", s.Everywhere("user:viewer", ListTasks), Allowed},
		{"nobody", s.Everywhere("user:x", Peek), Refused},
		{"no settings", Empty().Everywhere("user:x", Peek), Unsaid},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", c.what, c.got, c.want)
		}
	}
}

func TestDigest(t *testing.T) {
	digest := func(files Files) string {
		s, err := New(files)
		if err != nil {
			t.Fatal(err)
		}
		return s.Digest()
	}
	a := digest(Files{"pools.cfg": onePool, "scripts/a.star": "x = 1"})
	if b := digest(Files{"pools.cfg": "# more\n" + strings.ReplaceAll(onePool, " ", "\n"), "scripts/a.star": "x = 1"}); a != b {
		t.Error("layout changes the digest")
	}
	for _, files := range []Files{{"pools.cfg": twoPools, "scripts/a.star": "x = 1"}, {"pools.cfg": onePool, "scripts/a.star": "y = 1"}, {"pools.cfg": onePool}, {"pools.cfg": onePool, "scripts/a.star": "x = 1", "bots.cfg": ""}} {
		if digest(files) == a {
			t.Errorf("%v has the same digest", files)
		}
	}
}

// TestExpand: an expansion gives as many ids as it says, all different, all
// found in their group.
func TestExpand(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from, n := rapid.IntRange(0, 2000).Draw(t, "from"), rapid.IntRange(1, 300).Draw(t, "n")
		before := rapid.StringMatching(`[a-z][a-z0-9.]{0,5}`).Draw(t, "before")
		after := rapid.StringMatching(`(-[a-z0-9]{0,4})?`).Draw(t, "after")
		s, err := New(in(fmt.Sprintf(`auth { require_token {} } bot_id: "%s{%d..%d}%s"`, before, from, from+n-1, after)))
		if err != nil {
			t.Fatal(err)
		}
		for i := from - 1; i <= from+n; i++ {
			want := i >= from && i < from+n
			if got := s.Group(fmt.Sprintf("%s%d%s", before, i, after)) != nil; got != want && i >= 0 {
				t.Fatalf("bot %d: %v, want %v", i, got, want)
			}
		}
	})
}

// TestRulesAreFields holds that each rule is about a field, and that the
// comment of the field says the same range and default.
func TestRulesAreFields(t *testing.T) {
	all := map[string]protoreflect.FieldDescriptor{}
	for _, file := range []protoreflect.FileDescriptor{configpb.File_configpb_common_proto, configpb.File_configpb_settings_proto, configpb.File_configpb_pools_proto, configpb.File_configpb_bots_proto, providerpb.File_providerpb_config_proto, projectspb.File_providerpb_projectspb_projects_proto} {
		var walk func(protoreflect.MessageDescriptors)
		walk = func(ms protoreflect.MessageDescriptors) {
			for i := range ms.Len() {
				for j := range ms.Get(i).Fields().Len() {
					fd := ms.Get(i).Fields().Get(j)
					all[ruleName(fd)] = fd
				}
				walk(ms.Get(i).Messages())
			}
		}
		walk(file.Messages())
	}
	comments := map[string]string{}
	for _, m := range parseProtos(t) {
		for _, f := range m.fields {
			comments[m.name+"."+f.name] = f.comment
		}
	}
	ranged := regexp.MustCompile(`\b\d+ to \d+\b`)
	for name := range all {
		if rules[name] == (rule{}) && ranged.MatchString(comments[name]) && !strings.HasPrefix(comments[name], "Names") && !strings.HasPrefix(comments[name], "Refused") {
			t.Errorf("%s has a range in its comment and no rule", name)
		}
	}
	for name, r := range rules {
		if all[name] == nil {
			t.Errorf("there is a rule for %s, which is no field", name)
			continue
		}
		says := func(format string, args ...any) {
			if text := fmt.Sprintf(format, args...); !strings.Contains(comments[name], text) {
				t.Errorf("the comment of %s does not say %q: %s", name, text, comments[name])
			}
		}
		if r.max != 0 {
			says("%d to %d", r.min, r.max)
		}
		if r.def != 0 {
			says("default %d", r.def)
		}
		if r.zero {
			says("0 = ")
		}
		if r.items > 0 && !strings.Contains(comments[name], fmt.Sprintf("1 to %d", r.items)) {
			says("t most %d", r.items)
		}
	}
}
