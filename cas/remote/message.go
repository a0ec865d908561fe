package remote

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/skepdev/skep/cas"
)

// Methods, as REAPI and ByteStream name them.
const (
	methodCapabilities = "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities"
	methodMissing      = "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs"
	methodBatchUpdate  = "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs"
	methodBatchRead    = "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs"
	methodGetTree      = "/build.bazel.remote.execution.v2.ContentAddressableStorage/GetTree"
	methodRead         = "/google.bytestream.ByteStream/Read"
	methodWrite        = "/google.bytestream.ByteStream/Write"
	methodWriteStatus  = "/google.bytestream.ByteStream/QueryWriteStatus"
)

// Compressor.Value.
const (
	identity = 0
	zstdCode = 1
)

func appendString(b []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

func appendInt(b []byte, field protowire.Number, n int64) []byte {
	if n == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), uint64(n))
}

// bytesHead is the tag and the length of a bytes field whose n bytes follow.
func bytesHead(b []byte, field protowire.Number, n int) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.BytesType), uint64(n))
}

// decodeCapabilities reads ServerCapabilities.
func decodeCapabilities(b []byte) (l Limits, err error) {
	err = cas.Fields(b, func(n protowire.Number, f cas.Field) error {
		if n != 1 { // cache_capabilities
			return nil
		}
		return cas.Fields(f.Bytes, func(n protowire.Number, f cas.Field) error {
			switch n {
			case 1:
				each(f, func(v uint64) { l.sha256 = l.sha256 || v == 1; l.digests = true })
			case 4:
				l.Batch = int64(f.Varint)
			case 6:
				each(f, func(v uint64) { l.Zstd = l.Zstd || v == zstdCode })
			case 7:
				each(f, func(v uint64) { l.ZstdBatch = l.ZstdBatch || v == zstdCode })
			case 8:
				l.Blob = int64(f.Varint)
			default:
			}
			return nil
		})
	})
	return l, err
}

// each calls fn for the values of a repeated enum, packed or not.
func each(f cas.Field, fn func(uint64)) {
	if f.Bytes == nil {
		fn(f.Varint)
		return
	}
	for b := f.Bytes; len(b) > 0; {
		v, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return
		}
		fn(v)
		b = b[n:]
	}
}

// encodeMissing writes FindMissingBlobsRequest.
func encodeMissing(instance string, list []cas.Digest) []byte {
	b := appendString(make([]byte, 0, 80*len(list)+len(instance)+8), 1, instance)
	for _, d := range list {
		b = cas.AppendDigest(b, 2, d)
	}
	return b
}

// decodeMissing reads FindMissingBlobsResponse.
func decodeMissing(b []byte) (list []cas.Digest, err error) {
	err = cas.Fields(b, func(n protowire.Number, f cas.Field) error {
		if n != 2 {
			return nil
		}
		d, err := cas.DecodeDigest(f.Bytes)
		list = append(list, d)
		return err
	})
	return list, err
}

// batchResult is one response of a batch. Data lies in the message.
type batchResult struct {
	digest     cas.Digest
	data       []byte
	compressor uint64
	err        error // the status; nil = OK
}

// decodeBatch reads BatchUpdateBlobsResponse and BatchReadBlobsResponse, which
// differ in the numbers of their fields: status is 2 and 3.
func decodeBatch(b []byte, statusField protowire.Number) (list []batchResult, err error) {
	err = cas.Fields(b, func(n protowire.Number, f cas.Field) error {
		if n != 1 {
			return nil
		}
		var r batchResult
		err := cas.Fields(f.Bytes, func(n protowire.Number, f cas.Field) (err error) {
			switch n {
			case 1:
				r.digest, err = cas.DecodeDigest(f.Bytes)
			case statusField:
				r.err, err = decodeStatus(f.Bytes)
			case 2:
				r.data = f.Bytes
			case 4:
				r.compressor = f.Varint
			default:
			}
			return err
		})
		list = append(list, r)
		return err
	})
	return list, err
}

// decodeStatus reads google.rpc.Status; nil is OK.
func decodeStatus(b []byte) (is, err error) {
	var s status
	err = cas.Fields(b, func(n protowire.Number, f cas.Field) error {
		switch n {
		case 1:
			s.code = code(min(f.Varint, 255))
		case 2:
			s.text = percentDecode(string(f.Bytes[:min(len(f.Bytes), maxStatusText)]))
		default:
		}
		return nil
	})
	if s.code == ok {
		return nil, err
	}
	return &s, err
}

// decodeTree reads GetTreeResponse; the directories are undecoded.
func decodeTree(b []byte) (dirs [][]byte, token string, err error) {
	err = cas.Fields(b, func(n protowire.Number, f cas.Field) error {
		switch n { //nolint:exhaustive // numbers of fields
		case 1:
			dirs = append(dirs, f.Bytes)
		case 2:
			token = string(f.Bytes)
		}
		return nil
	})
	return dirs, token, err
}

// decodeRead reads ReadResponse.
func decodeRead(b []byte) (data []byte, err error) {
	err = cas.Fields(b, func(n protowire.Number, f cas.Field) error {
		if n == 10 {
			data = f.Bytes
		}
		return nil
	})
	return data, err
}

// decodeWrite reads WriteResponse and QueryWriteStatusResponse.
func decodeWrite(b []byte) (committed int64, complete bool, err error) {
	err = cas.Fields(b, func(n protowire.Number, f cas.Field) error {
		switch n { //nolint:exhaustive // numbers of fields
		case 1:
			committed = int64(f.Varint)
		case 2:
			complete = f.Varint != 0
		}
		return nil
	})
	return committed, complete, err
}

// malformed is what a server that breaks the protocol gets: repeating helps
// seldom, and is not tried.
func malformed(what string, err error) error {
	return statusf(unimplemented, "the answer to %s is malformed: %v", what, err)
}

// resource is the name of a blob for reading: INSTANCE/blobs/HASH/SIZE, or of
// its compressed form.
func (c *Client) resource(d cas.Digest, compressed bool) string {
	return c.within(kind(compressed) + d.String())
}

// upload is the name of a blob for writing.
func (c *Client) upload(d cas.Digest, uuid string, compressed bool) string {
	return c.within(fmt.Sprintf("uploads/%s/%s%s", uuid, kind(compressed), d))
}

func kind(compressed bool) string {
	if compressed {
		return "compressed-blobs/zstd/"
	}
	return "blobs/"
}

func (c *Client) within(name string) string {
	if c.instance == "" {
		return name
	}
	return c.instance + "/" + name
}
