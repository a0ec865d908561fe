package cas

import "testing"

func TestLeavingLink(t *testing.T) {
	for name, tc := range map[string]struct {
		links map[string]string
		want  string
	}{
		"none":               {nil, ""},
		"inside":             {map[string]string{"a/b/l": "../../c/d", "m": "a/b/l/../x"}, ""},
		"to the root":        {map[string]string{"a/l": ".."}, ""},
		"by way of the root": {map[string]string{"l": ".", "q/m": "../l/../x"}, "q/m"},
		"by way of a parent": {map[string]string{"a/b/up": "..", "n": "a/b/up/../../x"}, "n"},
		"round and round":    {map[string]string{"a": "b", "b": "a"}, ""},
		"what is not there":  {map[string]string{"l": "no/../such"}, ""},
		"a link to itself":   {map[string]string{"l": "l/../.."}, ""}, // never resolved
		"through several":    {map[string]string{"a/b/c/one": "../two", "a/b/two": "../../three", "three": ".", "x/y/z": "../../a/b/c/one/../etc"}, "x/y/z"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := LeavingLink(tc.links); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			for at, target := range tc.links {
				if tc.want != "" && Escapes(parentOf(at), target) {
					t.Errorf("%s leaves as text already: nothing is shown", at)
				}
			}
		})
	}
}
