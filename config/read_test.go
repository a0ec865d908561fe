package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/skepdev/skep/api/providerpb"
	"github.com/skepdev/skep/config/configpb"
)

func texts(fs Faults) []string {
	var out []string
	for _, f := range fs {
		out = append(out, f.Error())
	}
	return out
}

func TestReadTellsEveryFault(t *testing.T) {
	for _, c := range []struct {
		name, src string
		want      []string
	}{
		{"nothing", "", nil},
		{"comments only", "# a\n\n  # b", nil},
		{"an unknown field and the one that is meant", "bot_grup {\n bot_id: \"a\"\n}\n", []string{"f:1: bot_grup: is not a field of BotsCfg; did you mean bot_group?"}},
		{"several unknown fields", "zzz: 1\nbot_group { qqq: [1, 2] bot_id: \"a\" }\nyyyyyyyy { a { b: \"}\" } }", []string{
			"f:1: zzz: is not a field of BotsCfg", "f:2: bot_group[0].qqq: is not a field of BotGroup", "f:3: yyyyyyyy: is not a field of BotsCfg",
		}},
		{"wrong types, with their places", "bot_group {\n  bot_id: 7\n  bot_id: \"ok\"\n  bot_id: true\n  auth { log_if_failed: \"yes\" }\n  owners { }\n  rbe_migration: 3\n}", []string{
			`f:2: bot_group[0].bot_id[0]: is 7, want a text in quotes`,
			`f:4: bot_group[0].bot_id[2]: is true, want a text in quotes`,
			`f:5: bot_group[0].auth[0].log_if_failed: is the text "yes", want true or false`,
			`f:6: bot_group[0].owners[0]: is a message, want a text in quotes`,
			`f:7: bot_group[0].rbe_migration: is 3, want a message in { }`,
		}},
		{"a text that is not closed, and a fault behind it", "bot_group {\n bot_id: \"a\n owners: 1\n}\nzz: 1", []string{
			"f:2: bot_group[0].bot_id[0]: a text that its line does not close is not allowed",
			"f:3: bot_group[0].owners[0]: is 1, want a text in quotes",
			"f:5: zz: is not a field of BotsCfg",
		}},
		{"a brace too few", "bot_group {\n auth {\n}\n", []string{"f:1: bot_group[0]: is opened here with \"{\" and not closed"}},
		{"a brace too many", "bot_group { }\n}\ntrusted_dimensions: 1", []string{`f:2: "}" closes nothing`, "f:3: trusted_dimensions[0]: is 1, want a text in quotes"}},
		{"a brace of the other kind", "bot_group < bot_id: \"a\" }\ntrusted_dimensions: 3", []string{
			`f:1: bot_group[0]: is closed with "}", want ">"`, "f:2: trusted_dimensions[0]: is 3, want a text in quotes",
		}},
		{"given twice", "bot_group { logs_cloud_project: \"a\"\n logs_cloud_project: \"b\" }", []string{"f:2: bot_group[0].logs_cloud_project: is given twice, first in line 1"}},
		{"a colon too few", "trusted_dimensions \"pool\"", []string{"f:1: trusted_dimensions[0]: lacks a colon before its value"}},
		{"an extension", "[a.b]: 1\ntrusted_dimensions: 1", []string{"f:1: extensions and Any are not known here", "f:2: trusted_dimensions[0]: is 1, want a text in quotes"}},
		{"a list where one is wanted", "bot_group { logs_cloud_project: [\"a\"] }", []string{"f:1: bot_group[0].logs_cloud_project: is one value, not a list"}},
		{"a list that goes on", "trusted_dimensions: [\"a\" \"b\", \"c\"; \"d\"]\nbot_grouq {}", []string{
			`f:1: trusted_dimensions: ";" stands in the list where a comma or ] was expected`, "f:2: bot_grouq: is not a field of BotsCfg; did you mean bot_group?",
		}},
		{"not UTF-8", "# a\n# \xff", []string{"f:2: is not valid UTF-8"}},
		{"too deep", strings.Repeat("a {", 100), []string{"f:1: " + strings.Repeat("a.", 32) + "a: is more than 32 messages deep", "f:1: a: is not a field of BotsCfg"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, faults := read("f", c.src, &configpb.BotsCfg{})
			got := texts(faults)
			if c.name == "too deep" {
				if len(got) != 2 {
					t.Error(got)
				}
				return
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestReadIsBounded(t *testing.T) {
	if _, faults := read("f", strings.Repeat("a: 1\n", 100000), &configpb.BotsCfg{}); len(faults) != maxFaults+1 {
		t.Errorf("%d faults", len(faults))
	}
	if _, faults := read("f", strings.Repeat("#", maxFile+1), &configpb.BotsCfg{}); len(faults) != 1 {
		t.Error(faults)
	}
}

// agree holds the reader to prototext: what one takes the other takes, and
// reads as the same.
func agree(t *testing.T, src string, mine, theirs proto.Message) {
	t.Helper()
	_, faults := read("f", src, mine)
	err := prototext.Unmarshal([]byte(src), theirs)
	switch {
	case len(faults) == 0 && err != nil:
		t.Errorf("%q is taken by us, and prototext says %v", src, err)
	case len(faults) == 0:
		if diff := cmp.Diff(theirs, mine, protocmp.Transform()); diff != "" {
			t.Errorf("%q (-prototext +read)\n%s", src, diff)
		}
	case err == nil && !stricter(theirs.ProtoReflect(), src):
		t.Errorf("%q is refused by us: %v", src, faults)
	}
}

// stricter reports whether we refuse on purpose what prototext takes.
func stricter(m protoreflect.Message, src string) bool {
	if !utf8.ValidString(src) || strings.Contains(src, "allowed_service_account") || strings.Contains(src, "client_version") { // reserved names
		return true
	}
	if strings.Count(src, "{")+strings.Count(src, "<") > maxDepth {
		return true
	}
	found := false
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if fd.IsMap() { // the same key twice
			found = true
			return true
		}
		each := func(v protoreflect.Value) {
			switch fd.Kind() {
			case protoreflect.EnumKind:
				found = found || fd.Enum().Values().ByNumber(v.Enum()) == nil
			case protoreflect.MessageKind:
				found = found || stricter(v.Message(), src)
			default:
			}
		}
		if !fd.IsList() {
			each(v)
			return true
		}
		for i := range v.List().Len() {
			each(v.List().Get(i))
		}
		return true
	})
	return found
}

var oddities = []string{
	`pool { name: "a" 'b' "\n\x41\101\u00e9\U0001F600\?" realm: "p:r" }`,
	`pool < name: ["a", "b"]; realm: 'x'; >, pool { }`,
	`pool [{ trusted: 1 }, < trusted: t >, { trusted: False }]`,
	`pool: [] realm: { grant: { to: [] } }`,
	`pool { canary_percent: -0x1F max_bot_uptime_secs: 010 uptime_spread_percent: 0 }`,
	`pool { canary_percent: - 5 }`, `pool { canary_percent: 08 }`, `pool { canary_percent: 1.0 }`, `pool { canary_percent: 0b1 }`, `pool { canary_percent: 1_000 }`,
	`pool { scheduling_algorithm: 2 } pool { scheduling_algorithm: SCHEDULING_ALGORITHM_FIFO }`, `pool { scheduling_algorithm: 77 }`, `pool { scheduling_algorithm: -1 }`,
	`pool { trusted: 0x1 }`, `pool { trusted: 00 }`, `pool { trusted: 2 }`, `pool { trusted: -0 }`, `pool { trusted: TRUE }`,
	`pool { rbe_migration < bot_mode_allocation: { percent: 100, mode: SWARMING; } > }`,
	`pool { task_template_deployment: "a" task_template_deployment_inline { } }`,
	"pool { # c\n name: # d\n \"a\" # e\n \"b\" }", `pool{name:"a"realm:"b"}`, `pool { name: "a",, }`, `;`, `pool { } ; ;`, `pool { name: "a`, `pool { name: "\`,
	`pool { name: "\400" }`, `pool { name: "\xZ" }`, `pool { name: "\X0" }`, `pool { name: "\ud83d\ude00" }`, `pool { name: "\ud83d" }`, "pool { name: \"\x00\" }", `pool { name: "\000" }`, `pool { name: "\xff" }`,
	`pool { name "a" }`, `pool: { } pool`, `pool { allowed_service_account: "a" }`, `1: 2`, `pool.name: "a"`, `[a.b/c.D] { }`, `pool { [ext]: 1 }`,
	"\ufeffpool { }", "pool\f{ }", "pool { name: 'a\nb' }", `pool { max_bot_uptime_secs: 99999999999 }`, `pool { name: "a" } }`, `pool { >`,
	`pool { name: "a" b }`, `pool { name: a"b" }`, `pool { canary_percent: 5name: "a" }`, `pool { canary_percent: 1e2 }`, `pool { canary_percent: --5 }`, `pool { canary_percent: 5- }`,
}

// maps are what the protos of pools of machines alone have.
var mapEntries = []string{
	`vms { attributes { label { key: "a" value: "b" } label: { value: 'c' } label < key: "d"; > } }`, `vms { attributes { label: [ { key: "a" }, { key: "b" } ] label: [] } }`,
	`vms { duts { key: "a" } duts { key: "b" value {} } duts { key: "c" value: { } } }`, `vms { duts { key: "a" value: 1 } }`, `vms { attributes { label { key: 1 } } }`,
	`vms { attributes { label: "a" } }`, `vms { attributes { label { key: "a" key: "b" } } }`, `vms { attributes { label { kee: "a" } } }`, `vms { attributes { label { key: "a" value: "b" }, label { } } }`,
}

func TestReaderAgrees(t *testing.T) {
	for _, src := range mapEntries {
		agree(t, src, &providerpb.Configs{}, &providerpb.Configs{})
	}
	for _, src := range oddities {
		agree(t, src, &configpb.PoolsCfg{}, &configpb.PoolsCfg{})
	}
}

func FuzzRead(f *testing.F) {
	for _, src := range append(oddities, mapEntries...) {
		f.Add(src)
	}
	paths, _ := filepath.Glob("../examples/config/*.cfg")
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	f.Fuzz(func(t *testing.T, src string) {
		agree(t, src, &configpb.PoolsCfg{}, &configpb.PoolsCfg{})
		agree(t, src, &configpb.BotsCfg{}, &configpb.BotsCfg{})
		agree(t, src, &configpb.SettingsCfg{}, &configpb.SettingsCfg{})
		agree(t, src, &providerpb.Configs{}, &providerpb.Configs{})
		for _, name := range []string{fileSettings, filePools, fileBots} {
			if s, err := New(Files{name: src}); err == nil {
				s.Group("host--1")
				s.InPool("p", "user:ann", CreateTask)
			}
		}
	})
}
