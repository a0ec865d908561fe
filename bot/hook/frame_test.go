package hook

import (
	"bytes"
	"encoding/json"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	want := []Answer{
		{ID: 1, Action: &Action{Kind: ActionPrint, Text: "x"}},
		{ID: 1, Value: json.RawMessage(`{"a":1}`), Args: []json.RawMessage{json.RawMessage("2")}},
		{ID: 2, Error: &Error{Hook: "h", Cause: CauseType, Text: "t"}, Last: true},
	}
	for _, a := range want {
		if err := WriteFrame(&b, a); err != nil {
			t.Fatal(err)
		}
	}
	whole := bytes.Clone(b.Bytes())
	for _, a := range want {
		var got Answer
		if err := ReadFrame(&b, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(a, got); diff != "" {
			t.Errorf("frame (-want +got):\n%s", diff)
		}
	}
	if err := ReadFrame(&b, &Answer{}); err != io.EOF {
		t.Errorf("at the end: %v, want EOF", err)
	}
	if err := ReadFrame(bytes.NewReader(whole[:10]), &Answer{}); err != io.ErrUnexpectedEOF {
		t.Errorf("cut short: %v, want unexpected EOF", err)
	}
	if err := ReadFrame(bytes.NewReader([]byte{0xff, 0, 0, 0}), &Answer{}); err == nil {
		t.Error("a frame of 4 GiB is accepted")
	}
}

// FuzzFrame reads any bytes as frames of either direction, as after a hook host
// went mad.
func FuzzFrame(f *testing.F) {
	var b bytes.Buffer
	_ = WriteFrame(&b, Answer{ID: 1, Loaded: &Loaded{Base: []string{GetState}}})
	_ = WriteFrame(&b, Request{ID: 2, Call: &CallRequest{Hook: GetState, Args: []json.RawMessage{json.RawMessage("1")}}})
	f.Add(b.Bytes())
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, v := range []func() any{func() any { return &Answer{} }, func() any { return &Request{} }} {
			r := bytes.NewReader(data)
			for range 1000 {
				got := v()
				if ReadFrame(r, got) != nil {
					break
				}
				if err := WriteFrame(io.Discard, got); err != nil {
					t.Fatalf("read but not written: %v", err)
				}
			}
		}
	})
}
