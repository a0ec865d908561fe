package prpc

import "testing"

func TestRequestFormat(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want Format
		ok   bool
	}{
		{"", Binary, true},
		{"  ", Binary, true},
		{"*/*", Binary, true},
		{"application/*", Binary, true},
		{"application/grpc", Binary, true},
		{"application/prpc", Binary, true},
		{"application/prpc; encoding=binary", Binary, true},
		{"application/prpc;encoding=binary", Binary, true},
		{"Application/PRPC; Encoding=binary", Binary, true},
		{"application/prpc; encoding=json", JSON, true},
		{"application/prpc; encoding=text", Text, true},
		{"application/prpc; encoding=yaml", 0, false},
		{"application/prpc; charset=utf-8", 0, false},
		{"application/prpc; encoding=binary; charset=utf-8", 0, false},
		{"application/json", JSON, true},
		{"application/json; charset=utf-8", JSON, true},
		{"text/plain", 0, false},
		{"application/x-protobuf", 0, false},
		{"nonsense;;", 0, false},
	} {
		if got, ok := requestFormat(tc.in); got != tc.want || ok != tc.ok {
			t.Errorf("requestFormat(%q) = %v, %v; want %v, %v", tc.in, got, ok, tc.want, tc.ok)
		}
	}
}

func TestResponseFormat(t *testing.T) {
	for _, tc := range []struct {
		name   string
		accept []string
		want   Format
		ok     bool
		bad    bool
	}{
		{"absent", nil, Binary, true, false},
		{"empty", []string{""}, Binary, true, false},
		{"anything", []string{"*/*"}, Binary, true, false},
		{"JSON", []string{"application/json"}, JSON, true, false},
		{"text", []string{"application/prpc; encoding=text"}, Text, true, false},
		{"the better quality wins", []string{"application/prpc; encoding=binary; q=0.5, application/json"}, JSON, true, false},
		{"a tie goes to binary", []string{"application/json, application/prpc; encoding=text, application/prpc"}, Binary, true, false},
		{"a tie without binary goes to JSON", []string{"application/prpc; encoding=text, application/json"}, JSON, true, false},
		{"what is not understood is skipped", []string{"text/html, application/json;q=0.1"}, JSON, true, false},
		{"quality 0 is not never", []string{"application/json;q=0"}, JSON, true, false},
		{"two lines", []string{"text/html", "application/json"}, JSON, true, false},
		{"empty items", []string{", application/json,"}, JSON, true, false},
		{"nothing understood", []string{"text/html, image/png"}, 0, false, false},
		{"unknown encoding", []string{"application/prpc; encoding=yaml"}, 0, false, false},
		{"q is no number", []string{"application/json;q=high"}, 0, false, true},
		{"q is not a number", []string{"application/json;q=NaN"}, 0, false, true},
		{"q is negative", []string{"application/json;q=-1"}, 0, false, true},
		{"malformed item", []string{"application/json;;="}, 0, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, ok, err := responseFormat(tc.accept)
			if got != tc.want && err == nil || ok != tc.ok || (err != nil) != tc.bad {
				t.Errorf("responseFormat(%q) = %v, %v, %v; want %v, %v, bad %v", tc.accept, got, ok, err, tc.want, tc.ok, tc.bad)
			}
		})
	}
}

func TestAcceptsGzip(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want bool
		bad  bool
	}{
		{"gzip", true, false},
		{"GZip", true, false},
		{"deflate, gzip", true, false},
		{"gzip;q=0.5, *", true, false},
		{"gzip;q=0", false, false},
		{"identity", false, false},
		{"", false, false},
		{"gzipped", false, false},
		{"gzip;q=x", false, true},
		{"gzip;level=1", false, true},
		{"two words", false, true},
		{";q=1", false, true},
	} {
		if got, err := acceptsGzip([]string{tc.in}); got != tc.want || (err != nil) != tc.bad {
			t.Errorf("acceptsGzip(%q) = %v, %v; want %v, bad %v", tc.in, got, err, tc.want, tc.bad)
		}
	}
	if got, err := acceptsGzip(nil); got || err != nil {
		t.Errorf("acceptsGzip() = %v, %v; want false", got, err)
	}
}

// Whatever the header says, negotiation ends in a format or a refusal.
func FuzzAccept(f *testing.F) {
	f.Add("application/json;q=0.3, */*")
	f.Add("application/prpc; encoding=text; q=1")
	f.Add(`a/b; x=",";q=1`)
	f.Fuzz(func(t *testing.T, s string) {
		format, ok, err := responseFormat([]string{s})
		if err != nil && ok || format > Text {
			t.Errorf("responseFormat(%q) = %v, %v, %v", s, format, ok, err)
		}
		if g, ok := requestFormat(s); g > Text || !ok && g != 0 {
			t.Errorf("requestFormat(%q) = %v, %v", s, g, ok)
		}
		_, _ = acceptsGzip([]string{s})
	})
}
