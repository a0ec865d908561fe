package chaos

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skepdev/skep/internal/proc"
)

// postgresHome finds the directory of PostgreSQL's server programs.
func postgresHome(ctx context.Context) (string, error) {
	var dirs []string
	if out, err := proc.Output(ctx, nil, "pg_config", "--bindir"); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	more, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	slices.SortFunc(more, func(a, b string) int { return cmp.Compare(pgVersion(b), pgVersion(a)) })
	dirs = append(append(dirs, more...), "/usr/local/pgsql/bin", "/usr/pgsql/bin")
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, "initdb")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("no initdb: PostgreSQL's server is not installed")
}

func pgVersion(bin string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(bin)))
	return n
}

// postgresUser is whom PostgreSQL runs as: it refuses root. nil = as we do.
func postgresUser() (*proc.User, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if errors.Join(err, err2) == nil && uid != 0 {
			return &proc.User{UID: uint32(uid), GID: uint32(gid)}, nil
		}
	}
	return nil, errors.New("PostgreSQL does not run as root, and there is no user postgres or nobody")
}

// newDatabase makes a PostgreSQL in dir that is reached through a socket there
// only, with everything that makes a commit durable as it comes. dsn is what
// the server takes.
func newDatabase(ctx context.Context, bin, dir, log string) (k *keeper, dsn string, err error) {
	as, err := postgresUser()
	if err != nil {
		return nil, "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, "", err
	}
	if as != nil {
		if err := os.Chown(dir, int(as.UID), int(as.GID)); err != nil {
			return nil, "", err
		}
	}
	data := filepath.Join(dir, "data")
	run := func(name string, args ...string) *proc.Cmd {
		path := filepath.Join(bin, name)
		return &proc.Cmd{Path: path, Args: append([]string{path}, args...), Dir: dir, Env: []string{"PATH=" + bin + ":/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}, User: as}
	}
	f, err := os.OpenFile(log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	cmd := run("initdb", "-D", data, "-U", "skep", "-A", "trust", "-E", "UTF8", "--no-locale", "-N")
	cmd.Files = []*os.File{nil, f, f}
	cmd.ParentDeath = true
	p, err := proc.Start(cmd)
	if err != nil {
		return nil, "", fmt.Errorf("start initdb: %w", err)
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		_ = p.Kill()
	}
	if s := p.Wait(); s.Code != 0 {
		return nil, "", fmt.Errorf("initdb ended with %d, see %s", s.Code, log)
	}
	k = &keeper{name: string(victimDatabase), log: log, cmd: func() *proc.Cmd {
		return run("postgres", "-D", data, "-k", dir, "-c", "listen_addresses=", "-c", "max_connections=50")
	}}
	return k, "postgres://skep@/postgres?host=" + url.QueryEscape(dir), nil
}

// databaseEnds is how long a restarted PostgreSQL may fail to start because
// processes of the killed one still hold its memory.
const databaseEnds = 15 * time.Second
