// Package code is the form in which a bot is delivered: the skep-bot
// executable with a zip appended that holds its configuration. One file, which
// runs as it is and says by its digest which bot it is (decisions.md 21, 22).
package code

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
)

// Names inside the zip.
const (
	ConfigName = "config/config.json"
	HooksName  = "config/bot_config.star" // the base script of hooks; optional
	mainName   = "__main__.py"
)

// ErrBare is the error of Read for an executable that carries no zip: it knows
// no server and can only be composed into a bot.
var ErrBare = errors.New("this skep-bot carries no configuration; get a bot from a server's /bot_code, or let `skep up` make one")

// Config is config.json: all that a bot knows before its first call. It has no
// secrets: /bot_code hands it out. spec bot.md §10.2.
type Config struct {
	Server        string `json:"server"` // base URL without a trailing slash
	ServerVersion string `json:"server_version,omitempty"`
	TLSCA         string `json:"tls_ca,omitempty"` // PEM certificates that vouch for the server; "" = the system's
	Reboot        string `json:"reboot,omitempty"` // "" = the bot may restart its host, "none" = never
}

// Validate returns an Invalid error that names the field, or nil.
func (c *Config) Validate() error {
	base, err := botapi.CheckServer(c.Server)
	if err != nil {
		return err
	}
	if base != c.Server {
		return skep.Invalidf("server", "%q must be written %q", c.Server, base)
	}
	if c.Reboot != "" && c.Reboot != "none" {
		return skep.Invalidf("reboot", "%q must be empty or \"none\"", c.Reboot)
	}
	return nil
}

// ParseConfig reads config.json strictly where it matters: a bot with a
// configuration it cannot follow must not run. Unknown fields are ignored, as
// other servers write some.
func ParseConfig(data []byte) (Config, error) {
	var c Config
	if err := json.Unmarshal(data, &c); err != nil {
		return Config{}, skep.Errorf(skep.Invalid, "config.json: %v", err)
	}
	if err := c.Validate(); err != nil {
		return Config{}, err
	}
	return c, nil
}

// File is one more file of the zip: a hook script.
type File struct {
	Name string // slash-separated, relative
	Data []byte
}

// mainPy lets scripts of existing bots work: `python3 swarming_bot.zip
// start_bot` finds this in the zip, and it starts the executable around it.
const mainPy = `import os, stat, sys
path = os.path.abspath(sys.argv[0])
mode = os.stat(path).st_mode
if not mode & stat.S_IXUSR:
    os.chmod(path, mode | stat.S_IRWXU)
args = [path] + sys.argv[1:]
if os.name == 'nt':
    import subprocess
    sys.exit(subprocess.call(args))
os.execv(path, args)
`

// Compose writes a bot: exe, the bytes of a skep-bot without a zip, followed
// by the zip. Equal arguments give equal bytes with every version of Go:
// entries are sorted, stored uncompressed and dated 1980-01-01.
func Compose(w io.Writer, exe []byte, cfg Config, files ...File) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	if _, err := zip.NewReader(bytes.NewReader(exe), int64(len(exe))); err == nil {
		return skep.Errorf(skep.Invalid, "the executable carries a zip already")
	}
	conf, err := json.MarshalIndent(cfg, "", "  ")
	if err != nil {
		return fmt.Errorf("encode config.json: %w", err)
	}
	all := append([]File{{ConfigName, append(conf, '\n')}, {mainName, []byte(mainPy)}}, files...)
	slices.SortFunc(all, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	if _, err := w.Write(exe); err != nil {
		return err
	}
	z := zip.NewWriter(w)
	z.SetOffset(int64(len(exe)))
	for i, f := range all {
		if i > 0 && all[i-1].Name == f.Name {
			return skep.Errorf(skep.Invalid, "the bot would hold %s twice", f.Name)
		}
		h := &zip.FileHeader{Name: f.Name, Method: zip.Store}
		h.SetMode(0o400)
		h.Modified = time.Time{}
		h.ModifiedDate = 1<<5 | 1 //nolint:staticcheck // 1980-01-01, the first day that zip knows; Modified would add a second stamp
		fw, err := z.CreateHeader(h)
		if err != nil {
			return err
		}
		if _, err := fw.Write(f.Data); err != nil {
			return err
		}
	}
	return z.Close()
}

// maxFile bounds what is read from a zip: hooks are small.
const maxFile = 4 << 20

// Read returns the configuration of the bot in file path, ErrBare if it
// carries none.
func Read(path string) (Config, error) {
	data, err := ReadFile(path, ConfigName)
	if err != nil {
		return Config{}, err
	}
	return ParseConfig(data)
}

// ReadFile returns one file of the bot in file path. The error is ErrBare
// when there is no zip, and skep.NotFound when the zip does not hold name.
func ReadFile(path, name string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	data, err := readFile(f, st.Size(), name)
	if err != nil && !errors.Is(err, ErrBare) {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return data, err
}

func readFile(r io.ReaderAt, size int64, name string) ([]byte, error) {
	z, err := openZip(r, size)
	if errors.Is(err, zip.ErrFormat) {
		return nil, ErrBare
	}
	if err != nil {
		return nil, err
	}
	zf, err := z.Open(name)
	if err != nil {
		return nil, skep.Errorf(skep.NotFound, "there is no %s", name)
	}
	defer zf.Close()
	data, err := io.ReadAll(io.LimitReader(zf, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(data) > maxFile {
		return nil, skep.Errorf(skep.Invalid, "%s is longer than %d bytes", name, maxFile)
	}
	return data, nil
}

// Version returns the identity of the bot in file path: the SHA-256 of all its
// bytes in lower-case hex. decisions.md 21.
func Version(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, make([]byte, 256<<10)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
