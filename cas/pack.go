package cas

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"io"
	"slices"
)

// maxPacked bounds the bytes that one packed list may unfold to.
const maxPacked = 10 << 20

// PackSizes packs sizes as reports carry them: sorted, each as the difference
// to the one before in a varint, the whole in zlib. No sizes are no bytes.
// sizes is sorted in place. spec bot.md §5.9.
func PackSizes(sizes []int64) []byte {
	if len(sizes) == 0 {
		return nil
	}
	slices.Sort(sizes)
	raw := make([]byte, 0, 2*len(sizes))
	var last int64
	for _, n := range sizes {
		raw = binary.AppendUvarint(raw, uint64(n-last))
		last = n
	}
	var out bytes.Buffer
	z := zlib.NewWriter(&out)
	_, _ = z.Write(raw) // a buffer takes everything
	_ = z.Close()
	return out.Bytes()
}

// UnpackSizes reads what PackSizes writes. A list that unfolds to more than 10
// MiB, or that is none, is an error.
func UnpackSizes(packed []byte) ([]int64, error) {
	if len(packed) == 0 {
		return nil, nil
	}
	z, err := zlib.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(z, maxPacked+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > maxPacked {
		return nil, errors.New("the list is too long")
	}
	var out []int64
	var last int64
	for len(raw) > 0 {
		d, n := binary.Uvarint(raw)
		if n <= 0 || d > 1<<62 || last+int64(d) < last {
			return nil, errors.New("a size does not fit 64 bits")
		}
		last += int64(d)
		out, raw = append(out, last), raw[n:]
	}
	return out, nil
}
