package reapi

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// Resource is what a resource name of the ByteStream service names.
type Resource struct {
	Instance string // may be empty
	Upload   string // the client's id of a write; "" in the name of a read
	Zstd     bool   // the stream carries the blob compressed
	Digest   cas.Digest
}

// uploadID is what the store knows a write by: clients may use one id for
// several blobs.
func (r *Resource) uploadID() string { return r.Upload + "/" + r.Digest.Hash.String() }

const (
	maxResourceName = 2048 // bytes
	maxUploadID     = 128  // bytes
)

// Segments that no instance name can hold.
const (
	segBlobs      = "blobs"
	segCompressed = "compressed-blobs"
	segUploads    = "uploads"
)

// digestFunctions are the segments that name a digest function. Ours is never
// named: its hashes tell themselves by their length.
var digestFunctions = map[string]bool{
	"sha256": true, "sha1": true, "md5": true, "vso": true, "sha384": true, "sha512": true,
	"murmur3": true, "sha256tree": true, "blake3": true, "gitsha1": true,
}

// ParseRead reads the name of a blob to read,
// [INSTANCE/]blobs/HASH/SIZE or [INSTANCE/]compressed-blobs/zstd/HASH/SIZE.
// Anything else is an Invalid error.
func ParseRead(name string) (Resource, error) {
	const want = "[INSTANCE/]blobs/HASH/SIZE or [INSTANCE/]compressed-blobs/zstd/HASH/SIZE"
	segs, at, err := split(name, want, segBlobs, segCompressed, segUploads)
	if err != nil {
		return Resource{}, err
	}
	if segs[at] == segUploads {
		return Resource{}, malformed(name, want)
	}
	r := Resource{Instance: strings.Join(segs[:at], "/")}
	rest, err := r.blob(name, segs[at:], want)
	if err == nil && len(rest) > 0 {
		err = malformed(name, want)
	}
	return r, err
}

// ParseWrite reads the name of a blob to write,
// [INSTANCE/]uploads/ID/blobs/HASH/SIZE[/METADATA] or
// [INSTANCE/]uploads/ID/compressed-blobs/zstd/HASH/SIZE[/METADATA]; metadata is
// ignored. Anything else is an Invalid error.
func ParseWrite(name string) (Resource, error) {
	const want = "[INSTANCE/]uploads/ID/blobs/HASH/SIZE or [INSTANCE/]uploads/ID/compressed-blobs/zstd/HASH/SIZE"
	segs, at, err := split(name, want, segUploads)
	if err != nil {
		return Resource{}, err
	}
	r := Resource{Instance: strings.Join(segs[:at], "/")}
	segs = segs[at+1:]
	if len(segs) < 2 || !isUploadID(segs[0]) {
		return Resource{}, malformed(name, want)
	}
	r.Upload = segs[0]
	_, err = r.blob(name, segs[1:], want)
	return r, err
}

// split returns the segments of name and where the first of keys stands.
func split(name, want string, keys ...string) (segs []string, at int, err error) {
	if len(name) > maxResourceName || !utf8.ValidString(name) || strings.ContainsRune(name, 0) {
		return nil, 0, malformed(name, want)
	}
	segs = strings.Split(name, "/")
	for i, s := range segs {
		for _, k := range keys {
			if s == k {
				return segs, i, nil
			}
		}
		if s == "" {
			break
		}
	}
	return nil, 0, malformed(name, want)
}

// blob reads segments from the keyword on and returns those after the size.
func (r *Resource) blob(name string, segs []string, want string) ([]string, error) {
	kind := segs[0]
	segs = segs[1:]
	switch kind {
	case segBlobs:
	case segCompressed:
		if len(segs) == 0 {
			return nil, malformed(name, want)
		}
		if segs[0] != "zstd" {
			return nil, skep.Invalidf("resource_name", "compressor %.40q is not served; zstd is", segs[0])
		}
		r.Zstd = true
		segs = segs[1:]
	default:
		return nil, malformed(name, want)
	}
	if len(segs) > 0 && digestFunctions[segs[0]] {
		return nil, skep.Invalidf("resource_name", "digest function %q cannot be named here; blobs go by their SHA-256, without such a segment", segs[0])
	}
	if len(segs) < 2 {
		return nil, malformed(name, want)
	}
	size, err := strconv.ParseInt(segs[1], 10, 64)
	if err != nil {
		return nil, malformed(name, want)
	}
	if r.Digest, err = cas.NewDigest(segs[0], size); err != nil {
		return nil, skep.Invalidf("resource_name", "%v", err)
	}
	return segs[2:], nil
}

func isUploadID(s string) bool {
	if s == "" || len(s) > maxUploadID || s[0] == '.' {
		return false
	}
	return strings.IndexFunc(s, func(c rune) bool {
		return (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' && c != '_' && c != '.'
	}) < 0
}

func malformed(name, want string) error {
	return skep.Invalidf("resource_name", "%.300q is not of the form %s", name, want)
}
