package botcli

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/bot/guest"
	"github.com/skepdev/skep/internal/logfile"
)

// bootstrapVM makes the virtual machine that it runs on a bot, at each of its
// starts. spec provider.md §15.
func bootstrapVM(e Env) int {
	v, err := parseVM(e)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return fail(e, err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, v.patience)
	defer cancel()
	o := guest.Options{
		Dir: v.dir, Provider: v.provider, Server: v.server, Metadata: v.metadata, Account: v.account, OS: runtime.GOOS, Arch: runtime.GOARCH,
		Log: slog.New(logfile.NewHandler(e.Stderr, slog.LevelInfo)),
	}
	if o.Own, o.Install, err = v.host(); err != nil {
		return fail(e, err)
	}
	if v.ca != "" {
		pem, err := os.ReadFile(v.ca)
		if err != nil {
			return fail(e, err)
		}
		o.Roots = x509.NewCertPool()
		if !o.Roots.AppendCertsFromPEM(pem) {
			return fail(e, fmt.Errorf("%s holds no certificate", v.ca))
		}
	}
	if err := guest.Run(ctx, o); err != nil {
		return fail(e, err)
	}
	fmt.Fprintf(e.Stdout, "the bot in %s runs now and starts with this machine\n", v.dir)
	return 0
}

// vm is what bootstrap-vm is told.
type vm struct {
	dir, user, provider, server, metadata, account, ca string
	patience                                           time.Duration
}

// Characters that a unit can start from; those of the bootstrap script.
var (
	unitDir  = regexp.MustCompile(`^[A-Za-z0-9/._-]+$`)
	unitUser = regexp.MustCompile(`^[A-Za-z0-9._][A-Za-z0-9._-]*$`)
)

func parseVM(e Env) (vm, error) {
	var v vm
	flags := flag.NewFlagSet("bootstrap-vm", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&v.dir, "dir", "", "the bot's `directory`, absolute; required")
	flags.StringVar(&v.user, "user", "", "local `account` of the bot; required but on Windows")
	flags.StringVar(&v.provider, "provider", "", "`server` that made this machine and knows whose bot it is, or "+guest.FromMetadata+" for the instance attribute provider")
	flags.StringVar(&v.server, "server", "", "`server` of the bot, or "+guest.FromMetadata+" for the instance attribute swarming-server")
	flags.StringVar(&v.account, "account", "default", "`service account` of the machine that signs for it")
	flags.StringVar(&v.metadata, "metadata-host", cmp.Or(os.Getenv(envMetadata), metadataHost), "`host` of the metadata server")
	flags.StringVar(&v.ca, "ca", "", "`file` with certificates that vouch for the servers; default: the system's")
	flags.DurationVar(&v.patience, "patience", 30*time.Minute, "how long it is tried")
	flags.String("python", "", "taken and not used: a skep-bot needs no `interpreter`")
	usage := func(w io.Writer) {
		fmt.Fprintln(w, "usage: skep-bot bootstrap-vm --dir DIR --user USER --provider HOST|"+guest.FromMetadata)
		flags.SetOutput(w)
		flags.PrintDefaults()
	}
	if err := flags.Parse(e.Args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			usage(e.Stdout)
		}
		return v, err
	}
	v.dir = strings.TrimRight(v.dir, `/\`)
	switch {
	case flags.NArg() > 0:
		return v, skep.Errorf(skep.Invalid, "there is an argument too many: %q", flags.Arg(0))
	case !filepath.IsAbs(v.dir):
		return v, skep.Errorf(skep.Invalid, "--dir is %q, want an absolute path", v.dir)
	case runtime.GOOS != "windows" && !unitDir.MatchString(v.dir):
		return v, skep.Errorf(skep.Invalid, "the directory %s has characters that a service cannot start from; choose another with --dir", v.dir)
	case runtime.GOOS != "windows" && !unitUser.MatchString(v.user):
		return v, skep.Errorf(skep.Invalid, "--user is %q, want the name of the bot's account", v.user)
	case v.provider == "" && v.server == "":
		return v, skep.Errorf(skep.Invalid, "give --provider or --server, a host or %s", guest.FromMetadata)
	case v.patience <= 0:
		return v, skep.Errorf(skep.Invalid, "--patience is %v, want more", v.patience)
	}
	return v, nil
}
