package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skepdev/skep"
	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/archive"
	"github.com/skepdev/skep/cas/remote"
)

// storageFlags say where blobs are, for commands that move them.
type storageFlags struct {
	url, instance string
	patience      time.Duration
}

func (s *storageFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.url, "cas", "", "`URL` of the storage, grpc(s)://HOST[:PORT][/INSTANCE], when it is not the server's (default $SKEP_CAS)")
	f.StringVar(&s.url, "cas-addr", "", "same as --cas")
	_ = f.MarkHidden("cas-addr")
	f.DurationVar(&s.patience, "cas-patience", time.Minute, "how long a transfer without progress is tried again")
}

// registerInstance is for commands that do not have --cas-instance already.
func (s *storageFlags) registerInstance(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.instance, "cas-instance", "", "instance of the storage (default "+defaultCASInstance+")")
}

// open makes a client of the storage: the one that --cas names, else the
// server's own, or the one that the server says to use instead. Only the
// server's own gets its token.
func (s *storageFlags) open(ctx context.Context, env *Env, conn *connection, f *fleet, instance string) (*remote.Client, error) {
	opt := remote.Options{Patience: s.patience, Refused: conn.connectTimeout, RootCAs: f.roots, Instance: instance}
	if opt.URL = s.url; opt.URL == "" {
		opt.URL = env.Getenv("SKEP_CAS")
	}
	if !strings.Contains(opt.URL, "://") && opt.URL != "" {
		opt.URL = "grpcs://" + opt.URL // as --cas-addr of the existing client
	}
	own := opt.URL == ""
	if own {
		opt.URL = f.url
		if f.token != "" {
			opt.Headers = func() map[string]string { return map[string]string{"Authorization": "Bearer " + f.token} }
		}
		if opt.Instance == "" {
			opt.Instance = defaultCASInstance
		}
	}
	c, err := remote.New(opt)
	if err != nil {
		return nil, fmt.Errorf("--cas: %w", err)
	}
	if !own {
		return c, nil
	}
	limits, err := c.Limits(ctx)
	if err == nil && limits.Elsewhere == "" {
		return c, nil
	}
	_ = c.Close()
	if err != nil {
		return nil, err
	}
	opt.URL, opt.Headers = limits.Elsewhere, nil
	if err := checkElsewhere(opt.URL, f.url); err != nil {
		return nil, err
	}
	if c, err = remote.New(opt); err != nil {
		return nil, fmt.Errorf("storage of the server: %w", err)
	}
	return c, nil
}

// checkElsewhere says whether the storage that a server names can be used from
// here: programs of this machine are not the server's to name, unless it is on
// this machine too.
func checkElsewhere(storage, server string) error {
	u, err := url.Parse(storage)
	s, serr := url.Parse(server)
	if err != nil || serr != nil || u.Scheme != "grpc" && u.Scheme != "grpcs" {
		return fmt.Errorf("the server says that its storage is %.200q, which is no address of one; name it with --cas", storage)
	}
	if isThisMachine(u.Hostname()) && !isThisMachine(s.Hostname()) {
		return fmt.Errorf("the server's storage is %.200s of its own machine; name its address for others with --cas", storage)
	}
	return nil
}

// archiveDir archives dir with a file of stats in the user's cache directory.
func archiveDir(ctx context.Context, env *Env, c *remote.Client, dir string, opt archive.Options) (*archive.Tree, error) {
	bar := newBytes(env.Stderr, -1, "archive")
	defer bar.done()
	opt.Sent = bar.bytes
	return archive.Upload(ctx, c, dir, opt)
}

// statFile is where the hashes of a directory's files are remembered; "" is
// nowhere. The files of directories that were not archived for long are
// removed, so that there are not ever more.
func statFile(env *Env, dir string) string {
	abs, err := filepath.Abs(dir)
	base := env.Getenv("XDG_CACHE_HOME")
	if base == "" || !filepath.IsAbs(base) {
		var err error
		if base, err = os.UserCacheDir(); err != nil {
			return ""
		}
	}
	if err != nil {
		return ""
	}
	stats := filepath.Join(base, "skep", "stats")
	pruneStats(stats, time.Now())
	name := sha256.Sum256([]byte(abs))
	return filepath.Join(stats, hex.EncodeToString(name[:16]))
}

// Bounds of the remembered directories.
const (
	statFiles = 64
	statAge   = 30 * 24 * time.Hour
)

func pruneStats(dir string, now time.Time) {
	entries, _ := os.ReadDir(dir)
	var list []fs.FileInfo
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			list = append(list, info)
		}
	}
	slices.SortFunc(list, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	for i, info := range list {
		if i >= statFiles || now.Sub(info.ModTime()) > statAge {
			_ = os.Remove(filepath.Join(dir, info.Name()))
		}
	}
}

// fetch writes the tree of root to dir.
func fetch(ctx context.Context, env *Env, c *remote.Client, root cas.Digest, dir string, force bool) (*archive.Extracted, error) {
	var bar progress
	defer func() { bar.done() }()
	return archive.Extract(ctx, c, root, dir, archive.Target{
		Force:   force,
		Total:   func(n int64) { bar = newBytes(env.Stderr, n, "download") },
		Fetched: func(n int64) { bar.bytes(n) },
	})
}

// reference reads a CASReference of the API.
func reference(r *pb.CASReference) (instance string, d cas.Digest, err error) {
	d, err = cas.NewDigest(r.GetDigest().GetHash(), r.GetDigest().GetSizeBytes())
	return r.GetCasInstance(), d, err
}

func toReference(instance string, d cas.Digest) *pb.CASReference {
	return &pb.CASReference{CasInstance: instance, Digest: &pb.Digest{Hash: d.Hash.String(), SizeBytes: d.Size}}
}

// transfer is the JSON that --dump-json writes. spec bot.md §5.4.
type transfer struct {
	Result    string    `json:"result"`
	ItemsCold []byte    `json:"items_cold"`
	ItemsHot  []byte    `json:"items_hot"`
	SizeCold  int64     `json:"size_cold"`
	SizeHot   int64     `json:"size_hot"`
	Error     *faultRef `json:"error_details,omitempty"`
}

type faultRef struct {
	Digest string `json:"digest"`
}

func newTransfer(cold, hot []int64) transfer {
	sum := func(list []int64) (n int64) {
		for _, s := range list {
			n += s
		}
		return n
	}
	return transfer{"success", cas.PackSizes(cold), cas.PackSizes(hot), sum(cold), sum(hot), nil}
}

// failedTransfer gives an error the word that bots of today look for.
func failedTransfer(err error, d cas.Digest) transfer {
	t := transfer{Result: "unknown"}
	var missing *cas.MissingError
	var path *fs.PathError
	switch kind := skep.KindOf(err); {
	case errors.As(err, &missing):
		t.Result = "digest_invalid"
		if len(missing.Digests) > 0 {
			d = missing.Digests[0]
		}
		t.Error = &faultRef{d.String()}
	case kind == skep.Unauthenticated || kind == skep.Denied:
		t.Result = "authentication_error"
	case kind == skep.Invalid || kind == skep.Conflict:
		t.Result = "arguments_invalid"
	case kind == skep.Unavailable || kind == skep.Exhausted:
		t.Result = "rpc_error"
	case errors.As(err, &path):
		t.Result = "io_error"
	}
	return t
}
