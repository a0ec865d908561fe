package config

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"maps"
	"path"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/skepdev/skep/config/configpb"
	"github.com/skepdev/skep/internal/bootstrap"
	"github.com/skepdev/skep/internal/hookscript"
	"github.com/skepdev/skep/provider"
)

// The files of a directory, besides those under scripts/.
const (
	fileSettings = "settings.cfg"
	filePools    = "pools.cfg"
	fileBots     = "bots.cfg"
	fileMachines = "vms.cfg"
	fileProjects = "projects.cfg"
	scriptDir    = "scripts"
)

// BaseScript is the script that every skep-bot gets, where there is one.
// decisions.md 15.
const BaseScript = "bot_config.star"

// Snapshot is one state of the whole configuration. It never changes.
type Snapshot struct {
	digest   string
	files    Files
	hasPools bool
	hasBots  bool

	settings   Settings
	everywhere grants
	rights     bool // settings.cfg says who may do what
	pools      map[string]*Pool
	realms     map[string]grants
	groups     *groups
	members    map[string][]string // of the groups of settings.cfg
	machines   []provider.Config
	entries    map[string]*entry // of vms.cfg, by prefix
	projects   []Project

	messages map[string]proto.Message
}

// Files are the files of a configuration: content by name, as "bots.cfg" and
// "scripts/lab.star", those that vms.cfg takes metadata from too. A file that
// is not there says nothing.
type Files map[string]string

// Limits of a directory.
const (
	maxScript  = 1 << 20 // bytes
	maxScripts = 1000
)

// Empty is the configuration of a server that has none: every pool exists.
func Empty() *Snapshot {
	s, err := New(Files{})
	if err != nil {
		panic("config: the empty configuration is not valid: " + err.Error())
	}
	return s
}

// New returns the configuration that files make, or all Faults in them.
func New(files Files) (*Snapshot, error) {
	s := &Snapshot{files: files, messages: map[string]proto.Message{}}
	var all Faults
	doc := func(name string, m proto.Message) *document {
		src, ok := files[name]
		d := &document{file: name, lines: lines{}}
		if ok {
			d.lines, d.faults = read(name, src, m)
			d.bad = map[string]bool{}
			for _, f := range d.faults {
				d.bad[f.Field] = f.Field != ""
			}
			s.messages[name] = m
		}
		return d
	}
	settings, pools, bots := &configpb.SettingsCfg{}, &configpb.PoolsCfg{}, &configpb.BotsCfg{}
	ds, dp, db := doc(fileSettings, settings), doc(filePools, pools), doc(fileBots, bots)
	_, s.hasPools = files[filePools]
	_, s.hasBots = files[fileBots]

	s.settings, s.members, s.everywhere = ds.settings(settings)
	s.rights = settings.Auth != nil || len(settings.Grant) > 0
	s.pools, s.realms = dp.pools(pools, s.members)
	known := s.pools
	if !s.hasPools {
		known = nil
	}
	s.groups = db.botGroups(bots, known, func(name string) bool { _, ok := files[scriptDir+"/"+name]; return ok })

	all = append(append(append(all, ds.faults...), dp.faults...), db.faults...)
	all = append(all, checkScripts(files)...)
	all = append(append(all, s.readMachines(files)...), s.readProjects(files)...)
	s.forceDemand()
	all.sort()
	if err := all.err(); err != nil {
		return nil, err
	}
	s.digest = s.sum()
	return s, nil
}

// checkScripts holds the files under scripts/ against what may be there.
func checkScripts(files Files) (faults Faults) {
	n := 0
	for _, name := range slices.Sorted(maps.Keys(files)) {
		base, ok := strings.CutPrefix(name, scriptDir+"/")
		if !ok {
			continue
		}
		n++
		switch ext := path.Ext(base); {
		case len(files[name]) > maxScript:
			faults = append(faults, Fault{File: name, Text: fmt.Sprintf("has %d bytes, at most %d are allowed", len(files[name]), maxScript)})
		case ext != ".py" && ext != ".star" && base != "bootstrap.sh" && base != "bootstrap.ps1":
			faults = append(faults, Fault{File: name, Text: "is neither a .star nor a .py, bootstrap.sh or bootstrap.ps1; take it out"})
		case ext == ".star":
			faults = append(faults, checkStar(name, files[name])...)
		case ext != ".py":
			faults = append(faults, checkBootstrap(name, files[name])...)
		}
	}
	if n > maxScripts {
		faults = append(faults, Fault{File: scriptDir, Text: fmt.Sprintf("has %d files, at most %d are allowed", n, maxScripts)})
	}
	return faults
}

// checkStar tells the mistakes of a hook script that do not wait until it runs:
// one of them would make every bot ill that gets it.
func checkStar(name, source string) (faults Faults) {
	for i, f := range hookscript.Check(name, source) {
		if i == maxFaults {
			return append(faults, Fault{File: name, Text: "has more faults"})
		}
		faults = append(faults, Fault{File: name, Line: f.Line, Text: f.Text})
	}
	return faults
}

// checkBootstrap tries a bootstrap script: a server could hand out none whose
// template is wrong.
func checkBootstrap(name, source string) Faults {
	err := bootstrap.Fill(&limited{left: 4 * maxScript}, path.Base(name), source, bootstrap.Data{Code: make([]bootstrap.Code, 1)})
	if err != nil {
		return Faults{{File: name, Text: strings.TrimPrefix(err.Error(), "template: ")}}
	}
	return nil
}

// limited takes no more than so many bytes.
type limited struct{ left int }

func (w *limited) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, fmt.Errorf("it writes more than %d bytes", 4*maxScript)
	}
	return len(p), nil
}

// sum is the digest over what the files say: comments and layout of .cfg files
// do not count.
func (s *Snapshot) sum() string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		content := []byte(s.files[name])
		if m := s.messages[name]; m != nil {
			b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
			if err != nil {
				panic("config: a message that was read does not encode: " + err.Error())
			}
			content = b
		}
		writeSized(h, []byte(name))
		writeSized(h, content)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func writeSized(h hash.Hash, b []byte) {
	h.Write(binary.AppendUvarint(nil, uint64(len(b))))
	h.Write(b)
}

// Digest names the content: SHA-256 in hexadecimal over what the files say.
func (s *Snapshot) Digest() string { return s.digest }

// Settings are what settings.cfg says, or its defaults.
func (s *Snapshot) Settings() Settings { return s.settings }

// HasPools reports whether there is a pools.cfg: then only its pools exist.
func (s *Snapshot) HasPools() bool { return s.hasPools }

// HasBots reports whether there is a bots.cfg: then only bots of its groups
// may come in.
func (s *Snapshot) HasBots() bool { return s.hasBots }

// Pools returns the names of all configured pools, sorted.
func (s *Snapshot) Pools() []string { return slices.Sorted(maps.Keys(s.pools)) }

// Pool returns a configured pool, nil when pools.cfg has none of this name.
func (s *Snapshot) Pool(name string) *Pool { return s.pools[name] }

// Group returns the group of a bot: by the id of its host, else the longest
// prefix, else the group for all others. nil: bots.cfg does not know the bot.
func (s *Snapshot) Group(bot string) *Group { return s.groups.find(bot) }

// Groups returns all groups in the order of bots.cfg.
func (s *Snapshot) Groups() []*Group { return s.groups.all }

// Trusted returns the keys of dimensions that only the server may set.
func (s *Snapshot) Trusted() []string { return s.groups.trusted }

// Script returns the content of a file under scripts/.
func (s *Snapshot) Script(name string) (string, bool) {
	src, ok := s.files[scriptDir+"/"+name]
	return src, ok
}

// ForeignBots returns what a pool does with foreign bots.
func (s *Snapshot) ForeignBots(pool string) ForeignBots {
	if p := s.pools[pool]; p != nil && p.ForeignBots.Policy != ForeignUnset {
		return p.ForeignBots
	}
	return s.settings.ForeignBots
}

// Expected returns the ids of the bots that should be there, with the pool
// that expects them.
func (s *Snapshot) Expected() map[string]*Pool {
	out := map[string]*Pool{}
	for _, name := range s.Pools() {
		for _, id := range s.pools[name].ExpectedBots {
			if out[id] == nil {
				out[id] = s.pools[name]
			}
		}
	}
	return out
}

// Rights says who answers a question about a permission.
type Rights uint8

// The answers.
const (
	Unsaid Rights = iota // the configuration does not say; the scope of the token decides
	Allowed
	Refused
)

func verdict(said, allowed bool) Rights {
	switch {
	case !said:
		return Unsaid
	case allowed:
		return Allowed
	default:
		return Refused
	}
}

// Everywhere asks for a permission on the whole server. identity is kind:name.
func (s *Snapshot) Everywhere(identity, permission string) Rights {
	return verdict(s.rights, s.everywhere.allow(identity, permission))
}

// InPool asks for a permission in a pool. A pool without rights of its own and
// without a realm of the file leaves it to the token. An unknown pool refuses.
func (s *Snapshot) InPool(pool, identity, permission string) Rights {
	p := s.pools[pool]
	if p == nil {
		return Refused
	}
	return verdict(p.bound, p.own.allow(identity, permission) || p.realm.allow(identity, permission))
}

// InRealm asks for a permission in a realm.
func (s *Snapshot) InRealm(realm, identity, permission string) Rights {
	gs, ok := s.realms[realm]
	return verdict(ok, gs.allow(identity, permission))
}

// Files returns the files that this is made of. The map is the caller's.
func (s *Snapshot) Files() Files { return maps.Clone(s.files) }
