package hook

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMergeSettings(t *testing.T) {
	for _, tc := range []struct {
		name, value, err string
		want             func(*Settings)
	}{
		{name: "nothing", value: `{}`},
		{name: "one key deep down", value: `{"free_partition": {"bot": {"size": 7}}}`, want: func(s *Settings) { s.FreePartition.Bot.Size = 7 }},
		{name: "unknown keys", value: `{"mine": {"a": 1}, "free_partition": {"x": 2}}`},
		{name: "ours", value: `{"task": {"env_pass": ["CI_*"]}, "drain": {"deadline_secs": 60}, "uptime": {"host_secs": 43200}}`, want: func(s *Settings) {
			s.Task.EnvPass, s.Drain.DeadlineSecs, s.Uptime.HostSecs = []string{"CI_*"}, 60, 43200
		}},
		{name: "a ladder", value: `{"recovery": [{"do": "run", "command": ["x"], "times": 2}, {"do": "quarantine"}]}`, want: func(s *Settings) {
			s.Recovery = []Rung{{Do: "run", Command: []string{"x"}, Times: 2}, {Do: "quarantine"}}
		}},
		{name: "a number for a dict", value: `{"free_partition": {"bot": 7}}`, err: "free_partition.bot: is a number, want a dict"},
		{name: "a string for a number", value: `{"free_partition": {"bot": {"size": "7"}}}`, err: "free_partition.bot.size: is a string, want a number"},
		{name: "a negative size", value: `{"free_partition": {"bot": {"size": -7}}}`, err: "get_settings"},
		{name: "too many percent", value: `{"free_partition": {"root": {"min_percent": 101}}}`, err: "free_partition.root: has a percentage of 101"},
		{name: "numbers as names", value: `{"task": {"env_pass": [1]}}`, err: "get_settings"},
		{name: "a rung without budget", value: `{"recovery": [{"do": "bot_restart"}]}`, err: "recovery[0]: times is 0"},
		{name: "a rung without command", value: `{"recovery": [{"do": "run", "times": 1}]}`, err: "no command"},
		{name: "an unknown rung", value: `{"recovery": [{"do": "pray", "times": 1}]}`, err: `do is "pray"`},
		{name: "a wide spread", value: `{"uptime": {"spread": 1.5}}`, err: "uptime.spread"},
		{name: "a list", value: `[]`, err: "is not a dict"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want := DefaultSettings()
			if tc.want != nil {
				tc.want(&want)
			}
			got, err := MergeSettings(json.RawMessage(tc.value))
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
			if (err != nil) != (tc.err != "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error %v, want %q", err, tc.err)
			}
		})
	}
}
