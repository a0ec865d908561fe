package jsonscan

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func members(doc string) (map[string]string, error) {
	got := map[string]string{}
	err := Members([]byte(doc), func(name, value []byte) error {
		got[string(name)] = string(value)
		return nil
	})
	return got, err
}

func TestMembers(t *testing.T) {
	for _, tc := range []struct {
		name, doc string
		want      map[string]string
		err       error
	}{
		{"nothing in it", ` { } `, map[string]string{}, nil},
		{"every kind of value", `{"a": [1, {"b":"]"}] ,"c":"\"}","d":-1.5e+3,"e":null,"f":true,"g":{ "h" : 1 }}`, map[string]string{
			"a": `[1, {"b":"]"}]`, "c": `"\"}"`, "d": "-1.5e+3", "e": "null", "f": "true", "g": `{ "h" : 1 }`,
		}, nil},
		{"the last of two counts", `{"a":1,"a":2}`, map[string]string{"a": "2"}, nil},
		{"names are not unescaped", `{"\u0061":1}`, map[string]string{`\u0061`: "1"}, nil},
		{"an array", `[1]`, nil, ErrNotObject},
		{"something behind it", `{} x`, nil, ErrSyntax},
		{"no end", `{"a":1`, nil, ErrSyntax},
		{"a comma too many", `{"a":1,}`, nil, ErrSyntax},
		{"a leading zero", `{"a":01}`, nil, ErrSyntax},
		{"a bad escape", `{"a":"\x"}`, nil, ErrSyntax},
		{"not UTF-8", "{\"a\":\"\xff\"}", nil, ErrSyntax},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := members(tc.doc)
			if !errors.Is(err, tc.err) {
				t.Fatalf("error %v, want %v", err, tc.err)
			}
			if d := cmp.Diff(tc.want, got); tc.err == nil && d != "" {
				t.Errorf("members (-want +got):\n%s", d)
			}
		})
	}
}

func TestMembersReturnsTheErrorOfVisit(t *testing.T) {
	stop := errors.New("stop")
	if err := Members([]byte(`{"a":1,"b":2}`), func([]byte, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
	if err := Members([]byte(`{"a":1,"b":}`), func([]byte, []byte) error { return stop }); !errors.Is(err, ErrSyntax) {
		t.Errorf("invalid behind it: %v", err)
	}
}

// FuzzMembers compares with encoding/json.
func FuzzMembers(f *testing.F) {
	for _, s := range []string{`{"a":[1,-2.5e3,"\u00e4\n",null,true,{}]}`, ` [ ] `, `"x"`, `{"a":1}}`, `-`, `1e`, `{"a":1,"a":{"b":2}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		got := map[string]json.RawMessage{}
		err := Members(doc, func(name, value []byte) error {
			var n string
			if err := json.Unmarshal([]byte(`"`+string(name)+`"`), &n); err != nil {
				t.Fatalf("name %q: %v", name, err)
			}
			got[n] = value
			return nil
		})
		if valid := json.Valid(doc) && utf8.Valid(doc); valid == errors.Is(err, ErrSyntax) {
			t.Fatalf("%q: error %v, valid JSON: %v", doc, err, valid)
		}
		if errors.Is(err, ErrSyntax) {
			return
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, doc); err != nil {
			t.Fatal(err)
		}
		if c := AppendCompact(nil, doc); !bytes.Equal(c, compact.Bytes()) {
			t.Fatalf("%q: compact is %q, want %q", doc, c, compact.Bytes())
		}
		if err != nil {
			return
		}
		var want map[string]json.RawMessage
		if err := json.Unmarshal(doc, &want); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("%q (-want +got):\n%s", doc, d)
		}
	})
}
