package api

import (
	"encoding/base64"
	"strconv"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
)

// ManifestOptions is what the server adds to a task when it hands it out.
type ManifestOptions struct {
	CASInstance string // for outputs, when the task names none; "" = none
	CAS         string // grpc(s):// URL of the storage; "" = the server's own
	Host        string // URL of the server for the task's life
	Secret      []byte
	Trusted     bool   // the pool trusts its tasks with the cache of inputs
	WarmPool    string // socket of the pool in whose containers the task runs; "" = as its bot says

	CacheSize func(name string) int64 // what a named cache is expected to have, in bytes, -1 = unknown; nil = of none it is known
}

// emptyDigest is the SHA-256 of nothing: a reference with it selects a CAS
// instance without inputs. spec api-v2.md §2.10.
const emptyDigest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// Manifest returns a claimed task as its bot gets it. spec scheduler.md §9.4.
func Manifest(r *skep.TaskRequest, t *skep.Task, o ManifestOptions) *botapi.Manifest {
	p := &r.Slices[t.Slice].Properties
	m := &botapi.Manifest{
		TaskID: t.ID.RunID(), BotID: string(t.Bot), Host: o.Host,
		Dimensions: map[string][]string{}, Env: map[string]string{}, EnvPrefixes: map[string][]string{}, Caches: []botapi.Cache{},
		HardTimeout: int64(p.ExecutionTimeout / time.Second), GracePeriod: int64(p.GracePeriod / time.Second), IOTimeout: int64(p.IOTimeout / time.Second),
		Command: orEmpty(p.Command), RelativeCwd: p.RelativeCwd, Outputs: orEmpty(p.Outputs),
		Realm: &botapi.Realm{Name: r.Realm},
		ServiceAccounts: botapi.ServiceAccounts{
			System: botapi.ServiceAccount{ServiceAccount: "none"}, Task: botapi.ServiceAccount{ServiceAccount: r.ServiceAccount},
		},
		Containment: &botapi.Containment{},
	}
	if t.Claim != nil {
		m.BotDimensions, m.BotAuthenticatedAs = t.Claim.Dimensions, t.Claim.Authenticated
	}
	for _, c := range p.Dimensions {
		m.Dimensions[c.Key] = append(m.Dimensions[c.Key], c.Value())
	}
	for _, e := range p.Env {
		m.Env[e.Key] = e.Value
	}
	for _, e := range p.EnvPrefixes {
		m.EnvPrefixes[e.Key] = e.Values
	}
	for _, c := range p.Caches {
		hint := int64(-1)
		if o.CacheSize != nil {
			hint = o.CacheSize(c.Name)
		}
		m.Caches = append(m.Caches, botapi.Cache{Name: c.Name, Path: c.Path, Hint: strconv.FormatInt(hint, 10)})
	}
	if o.CAS != "" || o.Trusted || o.WarmPool != "" {
		m.Skep = &botapi.ManifestSkep{CAS: o.CAS, Trusted: o.Trusted, Pool: o.WarmPool}
	}
	switch {
	case p.CASInput != nil:
		m.CASInputRoot = casJSON(p.CASInput)
	case o.CASInstance != "":
		m.CASInputRoot = casJSON(&skep.CASReference{Instance: o.CASInstance, Hash: emptyDigest})
	}
	if p.CIPD != nil && len(p.CIPD.Packages) > 0 {
		m.CIPDInput = &botapi.CIPDInput{Server: p.CIPD.Server, Packages: packagesJSON(p.CIPD.Packages)}
		if c := p.CIPD.Client; c != nil {
			m.CIPDInput.ClientPackage = &botapi.CIPDPackage{PackageName: c.Name, Version: c.Version}
		}
	}
	if o.Secret != nil {
		m.SecretBytes = new(base64.StdEncoding.EncodeToString(o.Secret))
	}
	if c := p.Containment; c != nil {
		m.Containment = &botapi.Containment{
			ContainmentType: int(c.Type), LowerPriority: c.LowerPriority, LimitProcesses: c.MaxProcesses, LimitTotalCommittedMemory: c.MaxMemory,
		}
	}
	return m
}

func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

func casJSON(r *skep.CASReference) *botapi.CASReference {
	return &botapi.CASReference{Instance: r.Instance, Digest: botapi.CASDigest{Hash: r.Hash, SizeBytes: r.Size}}
}

func packagesJSON(ps []skep.CIPDPackage) []botapi.CIPDPackage {
	var out []botapi.CIPDPackage
	for _, p := range ps {
		out = append(out, botapi.CIPDPackage{PackageName: p.Name, Version: p.Version, Path: p.Path})
	}
	return out
}
