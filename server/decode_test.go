package server

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep/api/botapi"
)

func TestMemberReadsAsEncodingJSONDoes(t *testing.T) {
	targets := []func() any{
		func() any { return new(string) }, func() any { return new([]byte) }, func() any { return new(bool) },
		func() any { return new(int64) }, func() any { return new(float64) }, func() any { return new(*int64) }, func() any { return new(*float64) },
	}
	for _, text := range []string{
		`""`, `"a"`, `"a\nb"`, `"ü\u00fc"`, `"aGk="`, `"aGk"`, `"a\u0047k="`, `true`, `false`, `null`, `0`, `-0`, `12`, `-7`, `1.5`, `1e3`, `1e999`,
		`9223372036854775807`, `9223372036854775808`, `[]`, `{}`, `"NaN"`, `"true"`, `"12"`,
	} {
		for _, target := range targets {
			want, got := target(), target()
			wantErr, gotErr := json.Unmarshal([]byte(text), want), member([]byte("f"), []byte(text), got)
			if (wantErr == nil) != (gotErr == nil) {
				t.Errorf("%s into %T: %v, want %v", text, got, gotErr, wantErr)
			}
			if diff := cmp.Diff(want, got); wantErr == nil && diff != "" {
				t.Errorf("%s into %T:\n%s", text, got, diff)
			}
		}
	}
}

func TestUpdateFieldKnowsEveryMember(t *testing.T) {
	u := reflect.TypeFor[botapi.TaskUpdate]()
	for f := range u.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		var to botapi.TaskUpdate
		if got, want := updateField(&to, []byte(name)), reflect.ValueOf(&to).Elem().FieldByIndex(f.Index).Addr().Interface(); got != want {
			t.Errorf("%s goes to %T", name, got)
		}
	}
}
