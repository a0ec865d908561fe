package config

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/config/configpb"
)

// Group is what bots.cfg says of bots that are treated alike. It is not
// changed once made.
type Group struct {
	Line        int                 // where it stands in bots.cfg
	Auth        []Auth              // tried in order; one success is enough
	Owners      []string            //
	Dimensions  map[string][]string // forced; sorted values
	PyScript    string              // name under scripts/ for foreign bots; ""
	StarScript  string              // name under scripts/ for skep-bots; ""
	LogsProject string
}

// Auth is one way to prove who a bot is. At most one of Token, Certificate and
// VM is set; Networks, where there are any, hold besides.
type Auth struct {
	Token       *TokenAuth
	Certificate *CertificateAuth
	VM          *VMAuth
	Networks    []netip.Prefix // nil = from anywhere
	LogFailed   bool
}

// TokenAuth is a bot token of this server.
type TokenAuth struct{ Names []string } // nil = any

// CertificateAuth is a TLS client certificate.
type CertificateAuth struct{ Names []string } // nil = the bot's own

// VMAuth is the signed identity of a Compute Engine VM.
type VMAuth struct {
	Project  string
	JWKSURL  string
	Issuer   string
	Audience string // "" = the public URLs of the server
}

// Defaults of VMAuth.
const (
	DefaultJWKSURL = "https://www.googleapis.com/oauth2/v3/certs"
	DefaultIssuer  = "https://accounts.google.com"
)

// Unassigned is the pool of bots whose group names none. spec/api-v2.md §3.
const Unassigned = "unassigned"

// Pools returns the pools of the group's bots.
func (g *Group) Pools() []string {
	if ps := g.Dimensions["pool"]; len(ps) > 0 {
		return ps
	}
	return []string{Unassigned}
}

// AuthHash names the ways to prove who a bot is: equal ones have equal hashes.
func (g *Group) AuthHash() [8]byte {
	h := sha256.New()
	for _, a := range g.Auth {
		fmt.Fprintf(h, "%q %q %q %v\n", a.Token, a.Certificate, a.VM, a.Networks)
	}
	return [8]byte(h.Sum(nil))
}

// HostID is the part of a bot id that groups look at: bots of one host have
// ids as host--1.
func HostID(bot string) string {
	host, _, _ := strings.Cut(bot, "--")
	return host
}

// groups is bots.cfg made ready for looking up.
type groups struct {
	byID     map[string]*Group
	byPrefix map[string]*Group // no key is a prefix of another
	lengths  []int             // of the keys of byPrefix, longest first
	other    *Group            // of bots that no id or prefix names; may be nil
	trusted  []string
	all      []*Group
}

// find returns the group of a bot, nil when it has none.
func (gs *groups) find(bot string) *Group {
	host := HostID(bot)
	if g := gs.byID[host]; g != nil {
		return g
	}
	for _, n := range gs.lengths {
		if n <= len(host) {
			if g := gs.byPrefix[host[:n]]; g != nil {
				return g
			}
		}
	}
	return gs.other
}

// maxBotIDs bounds the ids of one bots.cfg.
const maxBotIDs = 100000

// botGroups checks m. pools is nil when every pool exists; script reports whether
// a file is under scripts/.
func (d *document) botGroups(m *configpb.BotsCfg, pools map[string]*Pool, script func(string) bool) *groups {
	d.check(m.ProtoReflect(), "")
	gs := &groups{byID: map[string]*Group{}, byPrefix: map[string]*Group{}, trusted: m.TrustedDimensions}
	if len(gs.trusted) == 0 {
		gs.trusted = []string{"pool"}
	} else if !slices.Contains(gs.trusted, "pool") {
		d.faultf("trusted_dimensions", `lacks "pool", which only the server may set`)
	}
	for i, key := range m.TrustedDimensions {
		if err := skep.CheckDimensionKey("key", key); err != nil && key != "" || key == "id" {
			d.faultf(fmt.Sprintf("trusted_dimensions[%d]", i), "%q cannot be a key that the server sets", clip(key))
		}
	}
	lists := d.ipLists(m)
	budget := maxBotIDs
	for i, b := range m.BotGroup {
		at := fmt.Sprintf("bot_group[%d]", i)
		g := d.group(at, b, lists, pools, script)
		gs.all = append(gs.all, g)
		d.members(gs, at, b, g, &budget)
	}
	d.prefixes(gs, m)
	return gs
}

// members notes which bots are in g, and whether another group has them.
func (d *document) members(gs *groups, at string, b *configpb.BotGroup, g *Group, budget *int) {
	for j, text := range b.BotId {
		idAt := fmt.Sprintf("%s.bot_id[%d]", at, j)
		for _, id := range d.expand(idAt, text, budget) {
			if other := gs.byID[id]; other != nil {
				d.faultf(idAt, "bot %q is in a group already, in line %d", clip(id), other.Line)
				continue
			}
			gs.byID[id] = g
		}
	}
	for j, prefix := range b.BotIdPrefix {
		prefixAt := fmt.Sprintf("%s.bot_id_prefix[%d]", at, j)
		if prefix == "" {
			continue // told by check
		}
		d.botID(prefixAt, prefix)
		if other := gs.byPrefix[prefix]; other != nil {
			d.faultf(prefixAt, "%q is in a group already, in line %d", clip(prefix), other.Line)
			continue
		}
		gs.byPrefix[prefix] = g
	}
	if len(b.BotId) == 0 && len(b.BotIdPrefix) == 0 {
		if gs.other != nil {
			d.faultf(at, "has neither bot_id nor bot_id_prefix, and so has the group in line %d; only one can be for all others", gs.other.Line)
			return
		}
		gs.other = g
	}
}

// prefixes refuses a prefix of another prefix: whose bot would it be?
func (d *document) prefixes(gs *groups, m *configpb.BotsCfg) {
	sorted := slices.Sorted(maps.Keys(gs.byPrefix))
	clash := map[string]string{}
	for i, p := range sorted {
		if i > 0 && strings.HasPrefix(p, sorted[i-1]) {
			clash[p] = sorted[i-1]
			sorted[i] = sorted[i-1] // the next ones are compared with the shortest
		}
	}
	for i, b := range m.BotGroup {
		for j, p := range b.BotIdPrefix {
			if short, ok := clash[p]; ok {
				d.faultf(fmt.Sprintf("bot_group[%d].bot_id_prefix[%d]", i, j), "%q begins with %q, which is a prefix too", clip(p), clip(short))
			}
		}
	}
	lengths := map[int]bool{}
	for p := range gs.byPrefix {
		lengths[len(p)] = true
	}
	gs.lengths = slices.Sorted(maps.Keys(lengths))
	slices.Reverse(gs.lengths)
}

// botID checks an id or a prefix of ids.
func (d *document) botID(at, id string) bool {
	switch err := skep.CheckDimensionValue("id", "id", id); {
	case err != nil:
		d.faultf(at, "%s", strings.TrimPrefix(err.Error(), "id: "))
	case strings.Contains(id, "--"):
		d.faultf(at, "%q holds --; groups name the host, the part before it", clip(id))
	case strings.ContainsAny(id, "{}"):
		d.faultf(at, "%q has a brace that does not belong to one {a..b} or {a,b,c}", clip(id))
	default:
		return true
	}
	return false
}

// expand returns the ids that a text stands for: one {1..10} or {a,b,c} in it
// is a range or a list. budget is how many ids the file may still have.
func (d *document) expand(at, text string, budget *int) []string {
	if text == "" {
		return nil // told by check
	}
	before, rest, opened := strings.Cut(text, "{")
	inner, after, closed := strings.Cut(rest, "}")
	if !opened || !closed {
		if !d.botID(at, text) || !d.spend(at, budget, 1) {
			return nil
		}
		return []string{text}
	}
	var parts []string
	if from, to, ok := strings.Cut(inner, ".."); ok {
		a, errA := strconv.Atoi(from)
		b, errB := strconv.Atoi(to)
		switch {
		case errA != nil || errB != nil || a < 0 || strconv.Itoa(a) != from || strconv.Itoa(b) != to:
			d.faultf(at, "{%s} is not {a..b} with whole numbers that do not begin with 0", clip(inner))
			return nil
		case a > b:
			d.faultf(at, "{%s} is empty: %d is more than %d", clip(inner), a, b)
			return nil
		case !d.spend(at, budget, b-a+1):
			return nil
		}
		for n := a; n <= b; n++ {
			parts = append(parts, strconv.Itoa(n))
		}
	} else {
		parts = strings.Split(inner, ",")
		if len(parts) < 2 {
			d.faultf(at, "{%s} is neither {a..b} nor {a,b,c}", clip(inner))
			return nil
		}
		if !d.spend(at, budget, len(parts)) {
			return nil
		}
	}
	out := make([]string, 0, len(parts))
	for _, p := range parts {
		if p == "" {
			d.faultf(at, "{%s} has an empty alternative", clip(inner))
			return out
		}
		if !d.botID(at, before+p+after) {
			return out
		}
		out = append(out, before+p+after)
	}
	return out
}

func (d *document) spend(at string, budget *int, n int) bool {
	if n < 0 || n > *budget {
		d.faultf(at, "is more ids than this file may still have: %d", *budget)
		return false
	}
	*budget -= n
	return true
}

func (d *document) group(at string, m *configpb.BotGroup, lists map[string][]netip.Prefix, pools map[string]*Pool, script func(string) bool) *Group {
	g := &Group{Line: d.line(at), Owners: m.Owners, LogsProject: m.LogsCloudProject}
	for i, a := range m.Auth {
		g.Auth = append(g.Auth, d.auth(fmt.Sprintf("%s.auth[%d]", at, i), a, lists))
	}
	g.Dimensions = d.forced(at, m, pools)
	if s := m.SystemServiceAccount; s != "" && s != "none" {
		d.faultf(at+".system_service_account", "%q is not supported: skep has no service accounts; take it out", clip(s))
	}
	if len(m.LogsCloudProject) > 100 {
		d.faultf(at+".logs_cloud_project", "has %d characters, at most 100 are allowed", len(m.LogsCloudProject))
	}
	d.scripts(at, m, g, script)
	return g
}

func (d *document) forced(at string, m *configpb.BotGroup, pools map[string]*Pool) map[string][]string {
	dims := map[string][]string{}
	for i, kv := range m.Dimensions {
		dimAt := fmt.Sprintf("%s.dimensions[%d]", at, i)
		key, value, ok := strings.Cut(kv, ":")
		if !ok {
			if kv != "" {
				d.faultf(dimAt, "%q is not key:value", clip(kv))
			}
			continue
		}
		fault := skep.CheckDimensionKey("dimensions", key)
		if fault == nil {
			fault = skep.CheckDimensionValue("dimensions", key, value)
		}
		switch {
		case fault != nil:
			d.faultf(dimAt, "%s", strings.TrimPrefix(fault.Error(), "dimensions: "))
		case key == "id":
			d.faultf(dimAt, "the id of a bot cannot be forced")
		case slices.Contains(dims[key], value):
			d.faultf(dimAt, "%q is there already", clip(kv))
		case key == "pool" && pools != nil && pools[value] == nil:
			d.faultOther(filePools, dimAt, "pools.cfg has no pool %q", clip(value))
		default:
			dims[key] = append(dims[key], value)
		}
	}
	for _, vs := range dims {
		slices.Sort(vs)
	}
	return dims
}

// scripts sorts the scripts of a group by who gets them (decisions.md 15).
func (d *document) scripts(at string, m *configpb.BotGroup, g *Group, exists func(string) bool) {
	check := func(field, name string, endings ...string) bool {
		switch at := at + "." + field; {
		case name == "":
			return false
		case strings.ContainsAny(name, `/\`) || !slices.Contains(endings, path.Ext(name)):
			d.faultf(at, "%q is not the name of a file under scripts/ ending in %s", clip(name), strings.Join(endings, " or "))
		case !exists(name):
			d.faultOther("scripts/"+name, at, "there is no file scripts/%s", clip(name))
		default:
			return true
		}
		return false
	}
	if check("bot_config_script", m.BotConfigScript, ".py", ".star") {
		if path.Ext(m.BotConfigScript) == ".star" {
			g.StarScript = m.BotConfigScript
			if m.BotConfigScriptStar != "" {
				d.faultf(at+".bot_config_script_star", "excludes a bot_config_script that is a .star too; name the .py there")
			}
		} else {
			g.PyScript = m.BotConfigScript
		}
	}
	if check("bot_config_script_star", m.BotConfigScriptStar, ".star") {
		g.StarScript = m.BotConfigScriptStar
	}
}

func (d *document) ipLists(m *configpb.BotsCfg) map[string][]netip.Prefix {
	lists := map[string][]netip.Prefix{}
	for i, l := range m.IpList {
		at := fmt.Sprintf("ip_list[%d]", i)
		if _, ok := lists[l.Name]; ok {
			d.faultf(at+".name", "a list %q is there already", clip(l.Name))
		}
		lists[l.Name] = d.networks(at+".network", l.Network)
	}
	return lists
}

func (d *document) networks(at string, list []string) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(list))
	for i, s := range list {
		p, err := netip.ParsePrefix(s)
		if ip, ipErr := netip.ParseAddr(s); ipErr == nil && ip.Zone() == "" {
			p, err = netip.PrefixFrom(ip, ip.BitLen()), nil
		}
		switch elem := fmt.Sprintf("%s[%d]", at, i); {
		case s == "":
		case err != nil:
			d.faultf(elem, "%q is neither a network as 10.1.0.0/16 nor an address", clip(s))
		case p.Masked() != p:
			d.faultf(elem, "%q has bits set behind its length; did you mean %s?", clip(s), p.Masked())
		case p.Addr().Is4In6():
			d.faultf(elem, "%q is an IPv4 network in IPv6 form; write it as IPv4", clip(s))
		default:
			out = append(out, p)
		}
	}
	return out
}

func (d *document) auth(at string, m *configpb.BotAuth, lists map[string][]netip.Prefix) Auth {
	a := Auth{LogFailed: m.LogIfFailed}
	var methods []string
	if m.RequireLuciMachineToken {
		methods = append(methods, "require_luci_machine_token")
	}
	if m.RequireLuciMachineTokenSecure != nil {
		methods = append(methods, "require_luci_machine_token_secure")
	}
	if len(m.RequireServiceAccount) > 0 {
		methods = append(methods, "require_service_account")
	}
	if t := m.RequireToken; t != nil {
		methods = append(methods, "require_token")
		a.Token = &TokenAuth{t.Name}
	}
	if c := m.RequireClientCertificate; c != nil {
		methods = append(methods, "require_client_certificate")
		a.Certificate = &CertificateAuth{c.Name}
	}
	if v := m.RequireGceVmToken; v != nil {
		methods = append(methods, "require_gce_vm_token")
		a.VM = &VMAuth{v.Project, or(v.JwksUrl, DefaultJWKSURL), or(v.Issuer, DefaultIssuer), v.Audience}
		d.httpsURL(at+".require_gce_vm_token.jwks_url", a.VM.JWKSURL)
	}
	if len(methods) > 1 {
		d.faultf(at+"."+methods[1], "excludes %s, which is given too; put it into an auth of its own", methods[0])
	}
	if m.IpWhitelist != "" {
		list, ok := lists[m.IpWhitelist]
		if !ok {
			d.faultf(at+".ip_whitelist", "there is no ip_list %q; add ip_list { name: %[1]q network: \"10.1.0.0/16\" }", clip(m.IpWhitelist))
		}
		a.Networks = list
	}
	if len(m.IpNetwork) > 0 {
		if m.IpWhitelist != "" {
			d.faultf(at+".ip_network", "excludes ip_whitelist, which is given too")
		}
		a.Networks = d.networks(at+".ip_network", m.IpNetwork)
	}
	if len(methods) == 0 && m.IpWhitelist == "" && len(m.IpNetwork) == 0 {
		d.faultf(at, "proves nothing; give it require_token {}, require_client_certificate {}, require_gce_vm_token or an ip_whitelist")
	}
	return a
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
