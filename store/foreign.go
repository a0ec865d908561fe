package store

import (
	"context"
	"fmt"
	"strings"
)

// SaveForeignBot notes what the server of a machine's bot said of it when it
// was asked at b.Heard; not over what it said later.
func (tx *Tx) SaveForeignBot(server, id string, b VMBot) error {
	err := tx.write(`INSERT INTO foreign_bots (server, id, known, first_seen_us, last_seen_us, dead, terminated, task, heard_us, ill)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
		ON CONFLICT (server, id) DO UPDATE SET known = excluded.known, first_seen_us = excluded.first_seen_us, last_seen_us = excluded.last_seen_us,
			dead = excluded.dead, terminated = excluded.terminated, task = excluded.task, heard_us = excluded.heard_us, ill = excluded.ill
		WHERE foreign_bots.heard_us <= excluded.heard_us`,
		server, id, bit(b.Known), micros(b.FirstSeen), micros(b.LastSeen), bit(b.Dead), bit(b.Terminated), b.Task, micros(b.Heard), bit(b.Ill))
	if err != nil {
		return fmt.Errorf("store bot %s of %s: %w", id, server, err)
	}
	return nil
}

// SaveForeignServer notes whether another server answers. began says that it
// did not before, or was not asked.
func (tx *Tx) SaveForeignServer(server string, answers bool) (began bool, err error) {
	if !answers {
		return false, tx.write(`INSERT INTO foreign_servers (server, since_us) VALUES ($1, 0) ON CONFLICT (server) DO UPDATE SET since_us = 0`, server)
	}
	n, err := tx.exec(`INSERT INTO foreign_servers (server, since_us) VALUES ($1, $2)
		ON CONFLICT (server) DO UPDATE SET since_us = excluded.since_us WHERE foreign_servers.since_us = 0`, server, micros(tx.Now))
	return n > 0, err
}

// ForeignServers returns the other servers that machines have their bots at,
// with the pools of those machines.
func (r reads) ForeignServers(ctx context.Context) (map[string][]string, error) {
	rows, err := r.q.query(ctx, `SELECT DISTINCT server, prefix FROM vms WHERE server <> '' ORDER BY server, prefix`)
	if err != nil {
		return nil, fmt.Errorf("read servers of machines: %w", err)
	}
	defer rows.Close()
	out := map[string][]string{}
	for rows.Next() {
		var server, prefix string
		if err := rows.Scan(&server, &prefix); err != nil {
			return nil, fmt.Errorf("read servers of machines: %w", err)
		}
		out[server] = append(out[server], prefix)
	}
	return out, rows.Err()
}

// KnownServers returns the other servers that were ever asked.
func (r reads) KnownServers(ctx context.Context) ([]string, error) {
	rows, err := r.q.query(ctx, `SELECT server FROM foreign_servers ORDER BY server`)
	if err != nil {
		return nil, fmt.Errorf("read other servers: %w", err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var server string
		if err := rows.Scan(&server); err != nil {
			return nil, fmt.Errorf("read other servers: %w", err)
		}
		out = append(out, server)
	}
	return out, rows.Err()
}

// VMsAt returns up to limit machines whose bots are at another server, with an
// id above after, by id.
func (r reads) VMsAt(ctx context.Context, server, after string, limit int) ([]VM, error) {
	return r.vms(ctx, `WHERE v.server = $1 AND v.server <> '' AND v.id > $2 ORDER BY v.id LIMIT $3`, server, after, limit)
}

// VMsByHostname returns the machines of these names whose bots are at another
// server, by name.
func (r reads) VMsByHostname(ctx context.Context, server string, names []string) (map[string]*VM, error) {
	out := map[string]*VM{}
	const most = 500 // in one question
	for len(names) > 0 {
		n := min(len(names), most)
		args, marks := []any{server}, make([]string, n)
		for i, name := range names[:n] {
			args = append(args, name)
			marks[i] = fmt.Sprintf("$%d", i+2)
		}
		vms, err := r.vms(ctx, `WHERE v.server = $1 AND v.hostname IN (`+strings.Join(marks, ",")+`)`, args...)
		if err != nil {
			return nil, err
		}
		for i := range vms {
			out[vms[i].Hostname] = &vms[i]
		}
		names = names[n:]
	}
	return out, nil
}
