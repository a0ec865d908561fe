package runner

import (
	"encoding/binary"
	"errors"
)

var errSecrets = errors.New("not a secrets message")

// decodeBuildSecrets reads the one protobuf message that a bot has to know,
// whose fields 1 to 3 are strings, into its JSON form. Reading it by hand
// keeps protobuf out of the bot. Unknown fields are skipped.
func decodeBuildSecrets(b []byte) (map[string]string, error) {
	names := map[uint64]string{1: "buildToken", 2: "resultdbInvocationUpdateToken", 3: "startBuildToken"}
	out := map[string]string{}
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		if n <= 0 || tag>>3 == 0 {
			return nil, errSecrets
		}
		b = b[n:]
		size := uint64(0)
		switch tag & 7 {
		case 0:
			if _, n = binary.Uvarint(b); n <= 0 {
				return nil, errSecrets
			}
			size = uint64(n)
		case 1:
			size = 8
		case 5:
			size = 4
		case 2:
			if size, n = binary.Uvarint(b); n <= 0 {
				return nil, errSecrets
			}
			b = b[n:]
		default:
			return nil, errSecrets
		}
		if size > uint64(len(b)) {
			return nil, errSecrets
		}
		if name := names[tag>>3]; name != "" && tag&7 == 2 {
			out[name] = string(b[:size])
		}
		b = b[size:]
	}
	return out, nil
}
