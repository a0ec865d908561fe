package server

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
)

// headerVMToken carries the signed identity of a Compute Engine VM.
const headerVMToken = "X-Luci-Gce-Vm-Token"

// hostID is the part of a bot's id that names its host. spec scheduler.md §11.2.
func hostID(id skep.BotID) string {
	host, _, _ := strings.Cut(string(id), "--")
	return host
}

// mayBeBot lets in who may use the Bot API at all. With bots.cfg it is for
// admit to say: a bot may have other credentials than a token.
func (s *Server) mayBeBot(c *caller, path string) error {
	if c.scope == "" && s.rules().Group != nil {
		return nil
	}
	return mayBeBot(c, path)
}

// admit reports whether the call may speak for the bot. Without bots.cfg that
// needs a token for it. leaving: only to end what it runs.
func (s *Server) admit(r *http.Request, sp speaker) (leaving bool, err error) {
	ru, c := s.rules(), callerOf(r.Context())
	if ru.Group == nil {
		if c.mayAct(sp.id) {
			return false, nil
		}
		return false, skep.Errorf(skep.Denied, "%s may not act as bot %s", c.identity, sp.id)
	}
	if err = s.admitByGroup(r, ru, c, sp.id); err != nil && s.mayFinish(r, ru, sp) {
		return true, nil
	}
	return false, err
}

// mayFinish lets a task end that began under other rules: its session was
// opened under rules that are not these, and is what it was given for.
func (s *Server) mayFinish(r *http.Request, ru *Rules, sp speaker) bool {
	return sp.bound && !s.sessions.expired(sp.session) && sp.session.auth != ru.auth(sp.id) &&
		r.URL.Path != botapi.PathHandshake && r.URL.Path != botapi.PathPoll
}

func (s *Server) admitByGroup(r *http.Request, ru *Rules, c *caller, id skep.BotID) error {
	g := ru.Group(id)
	if g == nil {
		return skep.Errorf(skep.Denied, "bot %s is in no group of bots.cfg", id)
	}
	var why []string
	for i := range g.Credentials {
		cr := &g.Credentials[i]
		fault := s.check(r, cr, c, id)
		if fault == "" {
			return nil
		}
		why = append(why, cr.Name+": "+fault)
		if cr.LogFailed {
			s.log.WarnContext(r.Context(), "bot credential failed", "bot", string(id), "method", cr.Name, "reason", fault, "ip", peerIP(r))
		}
	}
	return skep.Errorf(skep.Unauthenticated, "bot %s does not prove who it is; bots.cfg wants %s", id, strings.Join(why, ", or "))
}

// check says what a credential lacks, "" if nothing.
func (s *Server) check(r *http.Request, cr *Credential, c *caller, id skep.BotID) string {
	if cr.Networks != nil {
		if fault := s.checkAddress(r, cr.Networks); fault != "" {
			return fault
		}
	}
	switch {
	case cr.Token != nil:
		return checkToken(c, *cr.Token, id)
	case cr.Certificate != nil:
		return s.checkCertificate(r, *cr.Certificate, id)
	case cr.VM != nil:
		return checkVM(r.Context(), cr, r.Header.Get(headerVMToken), id)
	}
	return ""
}

func (s *Server) checkAddress(r *http.Request, networks []netip.Prefix) string {
	if s.o.BehindProxy {
		return "behind a proxy the bot's address is not known"
	}
	ip, err := netip.ParseAddr(peerIP(r))
	if err != nil {
		return "the bot's address is not known"
	}
	ip = ip.Unmap().WithZone("")
	if !slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(ip) }) {
		return fmt.Sprintf("%s is in none of its networks", ip)
	}
	return ""
}

// checkToken: a token of scope bot for this bot. An open server has none, and
// takes the bot's word. decisions.md 9.
func checkToken(c *caller, names Names, id skep.BotID) string {
	switch {
	case c.scope == "":
		return "no token was sent (SKEP_BOT_TOKEN)"
	case c.scope != ScopeBot && c.scope != ScopeAdmin && c.scope != ScopeBootstrap: // the last one gets no further than a handshake
		return "the token has scope " + c.scope
	case !c.mayAct(id):
		return "the token is not for this bot"
	case len(names) > 0 && c.identity != anonymous && !slices.Contains(names, c.name()):
		return "a token of this name is not accepted"
	}
	return ""
}

// name is the caller's identity without its kind.
func (c *caller) name() string {
	_, name, _ := strings.Cut(c.identity, ":")
	return name
}

// checkCertificate: a certificate that the listener verified, with a name that
// is accepted.
func (s *Server) checkCertificate(r *http.Request, names Names, id skep.BotID) string {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return "no client certificate that is signed by an authority of --tls-client-ca was sent"
	}
	leaf := r.TLS.VerifiedChains[0][0]
	have := append([]string{leaf.Subject.CommonName}, leaf.DNSNames...)
	host := hostID(id)
	for _, n := range have {
		switch {
		case n == "":
		case len(names) > 0 && slices.Contains(names, n):
			return ""
		case len(names) == 0 && (n == host || strings.HasPrefix(n, host+".")):
			return ""
		}
	}
	return "the client certificate has another name"
}

// checkVM: a token of the VM's metadata server. spec scheduler.md §11.2.
func checkVM(ctx context.Context, cr *Credential, token string, id skep.BotID) string {
	if token == "" {
		return "no " + headerVMToken + " was sent"
	}
	vm, err := cr.VM(ctx, token)
	switch {
	case err != nil:
		return err.Error()
	case vm.Project != cr.Project:
		return "the VM is of another project"
	case vm.Name != hostID(id):
		return "the VM has another name"
	}
	return ""
}

// callingVM returns the VM that makes the call, which must be called name and be
// one of those that bots.cfg lets in with their VM token. ok is false when none
// proves to be. spec provider.md §13.
func (s *Server) callingVM(r *http.Request, name string) (vm CloudVM, ok bool) {
	ru, id := s.rules(), skep.BotID(name)
	if ru.Group == nil || r.Header.Get(headerVMToken) == "" {
		return CloudVM{}, false
	}
	g := ru.Group(id)
	if g == nil {
		return CloudVM{}, false
	}
	for i := range g.Credentials {
		cr := &g.Credentials[i]
		if cr.VM == nil || s.check(r, cr, callerOf(r.Context()), id) != "" {
			continue
		}
		if vm, err := cr.VM(r.Context(), r.Header.Get(headerVMToken)); err == nil {
			return vm, true
		}
	}
	return CloudVM{}, false
}
