package api

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/skepdev/skep"
	pb "github.com/skepdev/skep/api/swarmingpb"
)

var (
	packageName = regexp.MustCompile(`^[a-z0-9_\-./]+$`)
	packageVar  = regexp.MustCompile(`\$\{(platform|os|arch)(=[^}]*)?\}`)
	packageRef  = regexp.MustCompile(`^[a-z0-9_./\-]{1,256}$`)
)

// cipd checks the packages of a slice. spec api-v2.md §4.3.
func (c *checker) cipd(field string, p *pb.TaskProperties) *skep.CIPDInput {
	in := p.GetCipdInput()
	if in == nil {
		return nil
	}
	out := &skep.CIPDInput{Server: in.Server}
	if in.Server != "" {
		c.text(field+".server", in.Server, 1024)
		u, err := url.Parse(in.Server)
		ok := err == nil && u.Host != "" && (u.Scheme == "https" ||
			u.Scheme == "http" && slices.Contains([]string{"localhost", "127.0.0.1", "::1"}, u.Hostname()))
		c.check(ok, field+".server", "%.100q is not an https URL (http only for localhost)", in.Server)
	}
	if cp := in.ClientPackage; cp != nil {
		c.check(cp.Path == "", field+".client_package.path", "must be empty")
		out.Client = c.pkg(field+".client_package", cp, false)
	}
	if !c.count(field+".packages", len(in.Packages), maxPackages) {
		return out
	}
	for i, e := range in.Packages {
		f := fmt.Sprintf("%s.packages[%d]", field, i)
		pkg := c.pkg(f, e, p.GetIdempotent())
		c.path(f+".path", e.Path, 256)
		same := func(o skep.CIPDPackage) bool { return o.Path == pkg.Path && o.Name == pkg.Name }
		c.check(!slices.ContainsFunc(out.Packages, same), f, "%s at %s is there twice", pkg.Name, pkg.Path)
		out.Packages = append(out.Packages, *pkg)
	}
	return out
}

func (c *checker) pkg(field string, p *pb.CipdPackage, pinned bool) *skep.CIPDPackage {
	name := packageVar.ReplaceAllString(p.PackageName, "x")
	valid := len(p.PackageName) <= 1024 && packageName.MatchString(name)
	for part := range strings.SplitSeq(name, "/") {
		valid = valid && part != "" && part != "." && part != ".."
	}
	c.check(valid, field+".package_name", "%.100q is not a package name", p.PackageName)
	c.text(field+".version", p.Version, 1024)
	tag := strings.Contains(p.Version, ":")
	c.check(p.Version != "" && (tag || packageRef.MatchString(p.Version) || isInstance(p.Version)), field+".version", "%.100q is not an instance id, tag or ref", p.Version)
	c.check(!pinned || tag || isInstance(p.Version), field+".version", "an idempotent task needs an instance id or a tag, %.100q may move", p.Version)
	return &skep.CIPDPackage{Name: p.PackageName, Version: p.Version, Path: p.Path}
}

// isInstance reports whether v names one instance: the old form is the hex
// SHA-1, the new one URL-safe base64 of 33 bytes.
func isInstance(v string) bool {
	if len(v) == 40 {
		return strings.Trim(v, "0123456789abcdef") == ""
	}
	return len(v) == 44 && strings.HasSuffix(v, "C")
}

// mounts refuses caches and packages whose directories share or nest. Packages
// among themselves may share.
func (c *checker) mounts(field string, p *skep.Properties) {
	type mount struct{ what, path string }
	var all []mount
	for _, m := range p.Caches {
		all = append(all, mount{"cache " + m.Name, m.Path})
	}
	caches := len(all)
	if p.CIPD != nil {
		for _, m := range p.CIPD.Packages {
			all = append(all, mount{"package " + m.Name, m.Path})
		}
	}
	inside := func(a, b string) bool { return a == b || strings.HasPrefix(a, b+"/") }
	for i := range caches {
		for j := i + 1; j < len(all); j++ {
			a, b := all[i], all[j]
			c.check(!inside(a.path, b.path) && !inside(b.path, a.path), field+".caches", "%s at %q and %s at %q overlap", a.what, a.path, b.what, b.path)
		}
	}
}
