package foreign

import (
	"bytes"
	"debug/pe"
	"testing"

	"github.com/skepdev/skep/bot/code"
)

func TestForwarder(t *testing.T) {
	data := forwarder("a.dll", "F", "b.G")
	if goos, arch, ok := code.Format(data); goos != "windows" || arch != "amd64" || !ok {
		t.Errorf("%s/%s, %v", goos, arch, ok)
	}
	f, err := pe.NewFile(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	s := f.Section(".edata")
	text, err := s.Data()
	if err != nil || !bytes.Contains(text, []byte("a.dll\x00F\x00b.G\x00")) {
		t.Errorf("%q, %v", text, err)
	}
	h, ok := f.OptionalHeader.(*pe.OptionalHeader64)
	if !ok || h.DataDirectory[0].VirtualAddress != s.VirtualAddress || h.SizeOfImage != s.VirtualAddress+0x1000 {
		t.Errorf("%+v", h)
	}
}
