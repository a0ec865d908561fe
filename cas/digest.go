package cas

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/skepdev/skep"
)

// Hash is the SHA-256 of a blob.
type Hash [sha256.Size]byte

// String returns the hash as 64 lowercase hex digits.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// Digest names a blob: its hash and its size in bytes. It is comparable.
type Digest struct {
	Hash Hash
	Size int64
}

// Empty is the digest of the blob without bytes, and so of the empty
// directory. Every store has it, written or not (REAPI, Digest).
var Empty = Sum(nil)

// Sum returns the digest of data.
func Sum(data []byte) Digest { return Digest{sha256.Sum256(data), int64(len(data))} }

// SumReader reads r to its end and returns the digest of what it gave.
func SumReader(r io.Reader) (Digest, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	if err != nil {
		return Digest{}, err
	}
	return Digest{Hash(h.Sum(nil)), n}, nil
}

// String returns HASH/SIZE, as command lines and reports carry it.
func (d Digest) String() string { return d.Hash.String() + "/" + strconv.FormatInt(d.Size, 10) }

// ParseHash reads 64 lowercase hex digits; anything else is an Invalid error.
func ParseHash(s string) (h Hash, err error) {
	if len(s) != 2*len(h) || strings.ToLower(s) != s {
		return h, skep.Errorf(skep.Invalid, "digest hash %.80q: want the 64 lowercase hex digits of a SHA-256", s)
	}
	if _, err := hex.Decode(h[:], []byte(s)); err != nil {
		return h, skep.Errorf(skep.Invalid, "digest hash %q: want the 64 lowercase hex digits of a SHA-256", s)
	}
	return h, nil
}

// NewDigest makes a digest of its two parts on the wire. A malformed one is an
// Invalid error.
func NewDigest(hash string, size int64) (Digest, error) {
	h, err := ParseHash(hash)
	if err != nil {
		return Digest{}, err
	}
	if size < 0 {
		return Digest{}, skep.Errorf(skep.Invalid, "digest %s: size %d is negative", hash, size)
	}
	return Digest{h, size}, nil
}

// ParseDigest reads HASH/SIZE.
func ParseDigest(s string) (Digest, error) {
	hash, size, ok := strings.Cut(s, "/")
	n, err := strconv.ParseInt(size, 10, 64)
	if !ok || err != nil {
		return Digest{}, skep.Errorf(skep.Invalid, "digest %.100q: want HASH/SIZE, such as %s", s, Empty)
	}
	return NewDigest(hash, n)
}

// MarshalText and UnmarshalText let a digest stand in JSON as HASH/SIZE.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (d *Digest) UnmarshalText(b []byte) (err error) {
	*d, err = ParseDigest(string(b))
	return err
}

// MissingError says which blobs a store does not have. It ends as the
// missing_cas of a task's result.
type MissingError struct{ Digests []Digest }

// Error names the first of them.
func (e *MissingError) Error() string {
	if len(e.Digests) == 1 {
		return fmt.Sprintf("the content-addressed storage has no blob %s", e.Digests[0])
	}
	return fmt.Sprintf("the content-addressed storage lacks %d blobs, %s first", len(e.Digests), e.Digests[0])
}
