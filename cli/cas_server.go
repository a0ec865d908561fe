package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/disk"
	"github.com/skepdev/skep/cas/reapi"
	"github.com/skepdev/skep/server"
)

// casFlags say where blobs are kept: in the state directory, within limits, or
// elsewhere (decisions.md 25).
type casFlags struct {
	url              string
	maxSize, minFree byteSize
}

func (c *casFlags) register(f *pflag.FlagSet) {
	c.maxSize, c.minFree = disk.DefaultMaxBytes, disk.DefaultMinFree
	f.StringVar(&c.url, "cas", "", "`URL` of another storage for inputs and outputs, grpc(s)://HOST[:PORT][/INSTANCE] (default: in the state directory)")
	f.Var(&c.maxSize, "cas-max-size", "`SIZE` that inputs and outputs may have on disk, as 50GiB; the least recently used go first")
	f.Var(&c.minFree, "cas-min-free", "`SIZE` that stays free on their disk")
}

// elsewhere reads --cas: the URL as bots get it, and the instance that it
// names.
func (c *casFlags) elsewhere() (to, instance string, err error) {
	u, err := url.Parse(c.url)
	if err != nil || u.Scheme != "grpc" && u.Scheme != "grpcs" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", "", errors.New("--cas: want grpc://HOST[:PORT][/INSTANCE], or grpcs:// for TLS") // the text may hold a password
	}
	if u.Scheme == "grpc" && !isThisMachine(u.Hostname()) {
		return "", "", fmt.Errorf("--cas: grpc://%s sends everything in plain text; use grpcs://, plain text is for this machine only", u.Host)
	}
	return u.Scheme + "://" + u.Host + u.EscapedPath(), strings.Trim(u.Path, "/"), nil
}

func isThisMachine(host string) bool {
	ip, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && ip.IsLoopback()
}

// storage is the content-addressed storage of a service: its own, or
// somebody else's.
type storage struct {
	disk *disk.Store    // nil when it is elsewhere
	rpc  *reapi.Service // nil when it is elsewhere

	url, instance string // of the one elsewhere, "" = our own
}

// openStorage opens the storage in the state directory, or finds out where
// else it is.
func (s *service) openStorage(ctx context.Context, flags *casFlags) (err error) {
	s.storage.instance = defaultCASInstance
	if flags.url != "" {
		to, instance, err := flags.elsewhere()
		if err != nil {
			return err
		}
		if s.storage.url = to; instance != "" {
			s.storage.instance = instance
		}
		return nil
	}
	s.storage.disk, err = disk.Open(ctx, disk.Options{
		Dir: filepath.Join(s.stateDir, "cas"), MaxBytes: int64(flags.maxSize), MinFree: int64(flags.minFree), Roots: s.inputs, Log: s.log,
	})
	return err
}

// inputs are the trees that tasks wait for or use. What is no digest of ours
// cannot be here either.
func (s *service) inputs(ctx context.Context) ([]cas.Digest, error) {
	refs, err := s.store.CASInputs(ctx)
	if err != nil {
		return nil, err
	}
	return digests(refs), nil
}

// digests are those of references that can be ours.
func digests(refs []skep.CASReference) []cas.Digest {
	out := make([]cas.Digest, 0, len(refs))
	for _, r := range refs {
		if d, err := cas.NewDigest(r.Hash, r.Size); err == nil && d != cas.Empty {
			out = append(out, d)
		}
	}
	return out
}

// pin keeps the inputs of a task while it is being accepted.
func (s *storage) pin(refs []skep.CASReference) (done func()) { return s.disk.Pin(digests(refs)...) }

// serveStorage makes the gRPC side of the storage, once the server can say who
// may use it.
func (s *service) serveStorage() {
	var blobs reapi.Store
	if s.storage.disk != nil {
		blobs = reapi.OnDisk(s.storage.disk)
	}
	s.storage.rpc = reapi.New(reapi.Options{Store: blobs, Elsewhere: s.storage.url, Log: s.log, Admit: s.server.AdmitCAS})
}

// blobs returns what the pages read, nil when the storage is elsewhere.
func (s *storage) blobs() server.Blobs {
	if s.disk == nil {
		return nil
	}
	return s.disk
}

// byteSize is a flag in bytes that also takes 10K, 10KB (1000) and 10KiB
// (1024), up to T.
type byteSize int64

func (b *byteSize) Type() string { return "size" }

func (b *byteSize) String() string {
	n := int64(*b)
	for _, unit := range []struct {
		name string
		size int64
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n != 0 && n%unit.size == 0 {
			return strconv.FormatInt(n/unit.size, 10) + unit.name
		}
	}
	return strconv.FormatInt(n, 10)
}

func (b *byteSize) Set(text string) error {
	digits := strings.TrimRight(text, "KMGTiB")
	unit := map[string]float64{
		"": 1, "B": 1, "K": 1e3, "KB": 1e3, "KiB": 1 << 10, "M": 1e6, "MB": 1e6, "MiB": 1 << 20,
		"G": 1e9, "GB": 1e9, "GiB": 1 << 30, "T": 1e12, "TB": 1e12, "TiB": 1 << 40,
	}[text[len(digits):]]
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil || unit == 0 || !(n > 0) || n*unit < 1 || n*unit > 1<<60 {
		return errors.New("want a size, as 500MB or 50GiB")
	}
	*b = byteSize(n * unit)
	return nil
}
