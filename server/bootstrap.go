package server

import (
	"bytes"
	"embed"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/internal/bootstrap"
	"github.com/skepdev/skep/internal/bootstrap/unit"
	"github.com/skepdev/skep/rollout"
)

//go:embed script/bootstrap.sh script/bootstrap.ps1
var scripts embed.FS

// platforms are those that bots are built for. decisions.md 37.
var platforms = []rollout.Platform{
	{OS: "linux", Arch: "amd64"},
	{OS: "linux", Arch: "arm64"},
	{OS: "darwin", Arch: "amd64"},
	{OS: "darwin", Arch: "arm64"},
	{OS: "windows", Arch: "amd64"},
	{OS: "windows", Arch: "arm64"},
}

// shellUnit is the unit with the variables of bootstrap.sh, whose shell fills
// them in.
var shellUnit = unit.Fill(unit.Data{Server: "$server", User: "$user", Dir: "$dir", Extra: "${id:+Environment=SWARMING_BOT_ID=$id\n}"})

// bootstrap hands out the script that turns a machine into a bot: for a POSIX
// shell, or with shell=ps1 for PowerShell. It carries the digests of the code,
// so that what the machine downloads is what this server meant.
func (s *Server) bootstrap(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.mayHaveCode(r); err != nil {
		return err
	}
	q := r.URL.Query()
	name, quote := "bootstrap.sh", quoteSh
	if q.Get("shell") == "ps1" {
		name, quote = "bootstrap.ps1", quotePS
	}
	data := bootstrap.Data{Server: quote(s.hostOf(r)), Token: quote(q.Get("tok")), Unit: shellUnit}
	if _, ok := TokenID(q.Get("tok")); q.Get("tok") != "" && !ok {
		return skep.Invalidf("tok", "is not a token")
	}
	for _, p := range platforms {
		b, err := s.code(r, "", p)
		if skep.KindOf(err) == skep.NotFound && err != nil {
			continue
		}
		if err != nil {
			return err
		}
		data.Code = append(data.Code, bootstrap.Code{OS: p.OS, Arch: p.Arch, Digest: quote(b.Digest)})
		data.TLSCA = quote(b.TLSCA)
	}
	if len(data.Code) == 0 {
		return skep.Errorf(skep.Unavailable, "this server has no bot code to hand out; start it with --bot-dir")
	}
	text, err := s.script(name)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := bootstrap.Fill(&out, name, text, data); err != nil {
		return skep.Errorf(skep.Precondition, "scripts/%s: %v", name, err)
	}
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", "skep_"+name))
	h.Set("Cache-Control", "no-store") // it may hold a token
	_, err = w.Write(out.Bytes())
	return err
}

// script returns the bootstrap script of the configuration, or the built-in
// one.
func (s *Server) script(name string) (string, error) {
	if s.o.Script != nil {
		if text := s.o.Script(name); text != "" {
			return text, nil
		}
	}
	b, err := scripts.ReadFile("script/" + name)
	return string(b), err
}

// quoteSh makes a word of a POSIX shell that means text.
func quoteSh(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// quotePS makes a PowerShell literal. Its quotes may be any of several
// characters, so all are doubled.
func quotePS(text string) string {
	var b strings.Builder
	b.WriteByte('\'')
	for _, r := range text {
		if slices.Contains([]rune{'\'', '‘', '’', '‚', '‛'}, r) {
			b.WriteRune(r)
		}
		b.WriteRune(r)
	}
	b.WriteByte('\'')
	return b.String()
}
