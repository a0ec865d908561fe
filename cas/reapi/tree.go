package reapi

import (
	"context"
	"strconv"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

const (
	// maxTreeDirs bounds the directories that one GetTree walks over.
	maxTreeDirs = 500_000
	// treeMessage is the size at which a message of GetTree is sent.
	treeMessage = 1 << 20
)

// GetTree sends the directories of a tree, each once, breadth first. A
// directory that is missing is left out; a missing root is NOT_FOUND. With
// page_size, that many are sent, and the last message says with which token to
// go on. A token is how many directories were sent: the walk is always the
// same.
func (s *Service) GetTree(req *repb.GetTreeRequest, out grpc.ServerStreamingServer[repb.GetTreeResponse]) error {
	ctx := out.Context()
	if err := checkFunction(req.DigestFunction); err != nil {
		return s.status(ctx, err, "")
	}
	root, err := digestOf(req.RootDigest)
	if err != nil {
		return s.status(ctx, err, "")
	}
	skip := 0
	if req.PageToken != "" {
		if skip, err = strconv.Atoi(req.PageToken); err != nil || skip < 0 || skip > maxTreeDirs {
			return s.status(ctx, skep.Invalidf("page_token", "%.40q is not one that this server gave", req.PageToken), "")
		}
	}
	if req.PageSize < 0 {
		return s.status(ctx, skep.Invalidf("page_size", "is negative"), "")
	}
	w := &treeWriter{out: out, skip: skip, left: int(req.PageSize)}
	if w.left == 0 {
		w.left = maxTreeDirs + 1
	}
	if err := s.walk(ctx, root, w.add); err != nil {
		return s.status(ctx, err, root.String())
	}
	return s.status(ctx, w.flush(), root.String())
}

// treeWriter makes messages of directories.
type treeWriter struct {
	out  grpc.ServerStreamingServer[repb.GetTreeResponse]
	skip int // to leave out first
	left int // of this page
	seen int
	next *repb.GetTreeResponse
	size int
}

// add takes the next directory, size bytes long, and says whether it wants
// more.
func (w *treeWriter) add(d *repb.Directory, size int) (more bool, err error) {
	if w.seen++; w.seen <= w.skip {
		return true, nil
	}
	if w.left == 0 {
		w.next.NextPageToken = strconv.Itoa(w.seen - 1)
		return false, nil
	}
	w.left--
	if w.next != nil && w.size+size > treeMessage && w.left >= 0 {
		if err := w.out.Send(w.next); err != nil {
			return false, err
		}
		w.next, w.size = nil, 0
	}
	if w.next == nil {
		w.next = &repb.GetTreeResponse{}
	}
	w.next.Directories = append(w.next.Directories, d)
	w.size += size + 8
	return true, nil
}

func (w *treeWriter) flush() error {
	if w.next == nil {
		w.next = &repb.GetTreeResponse{}
	}
	return w.out.Send(w.next)
}

// walk calls fn for the directories of a tree in the order of GetTree until it
// wants no more.
func (s *Service) walk(ctx context.Context, root cas.Digest, fn func(*repb.Directory, int) (bool, error)) error {
	queue := []cas.Digest{root}
	seen := map[cas.Hash]struct{}{root.Hash: {}}
	for n := 0; n < len(queue); n++ {
		at := queue[n]
		if at.Size > maxMessage-1024 {
			return skep.Errorf(skep.Exhausted, "directory %s is too large for a message of GetTree; read it with ByteStream", at)
		}
		b, err := s.get(ctx, at, maxMessage)
		if err != nil {
			if n > 0 && isMissing(err) {
				continue
			}
			return err
		}
		d := &repb.Directory{}
		if err := proto.Unmarshal(b, d); err != nil {
			return skep.Errorf(skep.Invalid, "blob %s is not a Directory message", at)
		}
		for _, sub := range d.Directories {
			c, err := digestOf(sub.Digest)
			if err != nil {
				return skep.Errorf(skep.Invalid, "directory %s: %.80q: %w", at, sub.Name, err)
			}
			if _, known := seen[c.Hash]; known {
				continue
			}
			if seen[c.Hash] = struct{}{}; len(seen) > maxTreeDirs {
				return skep.Errorf(skep.Exhausted, "tree %s has more than %d directories; read them one by one", root, maxTreeDirs)
			}
			queue = append(queue, c)
		}
		if more, err := fn(d, len(b)); !more || err != nil {
			return err
		}
	}
	return nil
}
