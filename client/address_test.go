package client

import "testing"

// The rows of spec/cli-and-ui.md §2.1.
func TestParseServer(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"no scheme is https", "swarming.example.com", "https://swarming.example.com"},
		{"no scheme, a port", "swarming.example.com:8443", "https://swarming.example.com:8443"},
		{"no scheme is https for localhost too", "localhost:8900", "https://localhost:8900"},
		{"https", "https://swarming.example.com", "https://swarming.example.com"},
		{"what follows the host is dropped", "https://Swarming.Example.com:443/task?id=1#x", "https://swarming.example.com:443"},
		{"no scheme, a path", "swarming.example.com/task", "https://swarming.example.com"},
		{"blanks around it", " https://swarming.example.com\n", "https://swarming.example.com"},
		{"http to localhost", "http://localhost:8900", "http://localhost:8900"},
		{"http to 127.0.0.1", "http://127.0.0.1:8900/x", "http://127.0.0.1:8900"},
		{"http to another loopback address", "http://127.1.2.3:8900", "http://127.1.2.3:8900"},
		{"http to ::1", "http://[::1]:8900", "http://[::1]:8900"},
		{"http to a port", "http://:8900", "http://127.0.0.1:8900"},
		{"http without a port", "http://127.0.0.1", ""},
		{"http to another host", "http://swarming.example.com:80", ""},
		{"http to a host that looks like localhost", "http://localhost.example.com:80", ""},
		{"http to any address", "http://0.0.0.0:8900", ""},
		{"another scheme", "ftp://127.0.0.1:21", ""},
		{"a user", "https://me:secret@swarming.example.com", ""},
		{"no host", "https://", ""},
		{"only a port", ":8900", ""},
		{"not a URL", "https://[", ""},
		{"empty", " ", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := ParseServer(tc.in)
			if got != tc.want || (err == nil) != (tc.want != "") {
				t.Errorf("ParseServer(%q) = %q, %v; want %q", tc.in, got, err, tc.want)
			}
		})
	}
}

// What ParseServer returns is an address that it takes for itself.
func FuzzParseServer(f *testing.F) {
	for _, s := range []string{"a", "http://[::1]:1", "https://x:y@z", "http://:0/", "a%41:b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseServer(s)
		if err != nil {
			return
		}
		if again, err := ParseServer(got); err != nil || again != got {
			t.Errorf("ParseServer(%q) = %q, which is %q, %v", s, got, again, err)
		}
	})
}
