package code

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/skepdev/skep"
)

// head is how much of a file is read to see what it is.
const head = 4 << 10

// Format says for which system and machine the executable with these first
// bytes was built, in the words of GOOS and GOARCH; os is "linux" for every
// ELF. ok is false for anything else, such as a script.
func Format(first []byte) (goos, goarch string, ok bool) {
	le := binary.LittleEndian
	switch {
	case len(first) >= 20 && string(first[:6]) == "\x7fELF\x02\x01": // 64 bits, little endian
		goos, goarch = "linux", map[uint16]string{62: "amd64", 183: "arm64"}[le.Uint16(first[18:])]
	case len(first) >= 8 && le.Uint32(first) == 0xfeedfacf: // Mach-O, 64 bits
		goos, goarch = "darwin", map[uint32]string{0x01000007: "amd64", 0x0100000c: "arm64"}[le.Uint32(first[4:])]
	case len(first) >= 64 && string(first[:2]) == "MZ":
		at := uint64(le.Uint32(first[60:]))
		if at+6 > uint64(len(first)) || string(first[at:at+4]) != "PE\x00\x00" {
			return "", "", false
		}
		goos, goarch = "windows", map[uint16]string{0x8664: "amd64", 0xaa64: "arm64"}[le.Uint16(first[at+4:])]
	}
	return goos, goarch, goarch != ""
}

// Inspect looks whether the file in path can be a bot on goos and goarch: an
// executable of that platform with a configuration that a bot can follow. What
// it refuses must not be run, not even to try it. Nothing is executed.
func Inspect(path, goos, goarch string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	return inspect(f, st.Size(), goos, goarch)
}

func inspect(r io.ReaderAt, size int64, goos, goarch string) error {
	first := make([]byte, min(size, head))
	if _, err := r.ReadAt(first, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := checkFormat(first, goos, goarch); err != nil {
		return err
	}
	conf, err := readFile(r, size, ConfigName)
	if err == nil {
		_, err = ParseConfig(conf)
	}
	if err != nil {
		return fmt.Errorf("its configuration: %w", err)
	}
	return nil
}

func checkFormat(first []byte, goos, goarch string) error {
	switch goos {
	case "linux", "darwin", "windows":
	default: // of other systems we know nothing
		return nil
	}
	hasOS, hasArch, ok := Format(first)
	if !ok {
		return skep.Errorf(skep.Invalid, "it is no executable that a bot could be")
	}
	if hasOS != goos || hasArch != goarch && (goarch == "amd64" || goarch == "arm64") {
		return skep.Errorf(skep.Invalid, "it is an executable for %s/%s, and this is %s/%s", hasOS, hasArch, goos, goarch)
	}
	return nil
}
