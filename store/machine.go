package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/skepdev/skep"
)

// MachinePool is a declared pool of machines. spec/provider.md §1.
type MachinePool struct {
	Prefix     string
	Config     json.RawMessage // the last good version of what is declared
	Kind       string          // of cloud
	Shape      string          // digest of what new machines are made from
	Revision   string
	Amount     int       // how many are wanted now
	Duts       []string  // devices that have a machine each; they replace Amount
	Generation int64     // the last one that a machine got
	Held       bool      // an operator wants none of its machines for now
	Replacing  bool      // an operator wants its outdated machines replaced, until none is
	Removed    time.Time // zero = it is declared; else it goes with its last machine

	Failure  Failure   // the last one
	Failures int       // that paused it, since a machine was made last
	Paused   time.Time // nothing is made before
}

// Failure is what a cloud refused last.
type Failure struct {
	Class, Reason, Text string
	Code                int
	At                  time.Time // zero = nothing
}

const poolColumns = `prefix, config, kind, shape, revision, amount, duts, generation, held, removed_us,
	error_class, error_reason, error_text, error_code, error_us, failures, paused_us, replacing`

func (r reads) machinePools(ctx context.Context, where string, args ...any) ([]MachinePool, error) {
	rows, err := r.q.query(ctx, `SELECT `+poolColumns+` FROM machine_pools `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("read pools of machines: %w", err)
	}
	defer rows.Close()
	var out []MachinePool
	for rows.Next() {
		var p MachinePool
		var config, duts string
		var removed, at, paused int64
		f := &p.Failure
		if err := rows.Scan(&p.Prefix, &config, &p.Kind, &p.Shape, &p.Revision, &p.Amount, &duts, &p.Generation, flag{&p.Held}, &removed,
			&f.Class, &f.Reason, &f.Text, &f.Code, &at, &p.Failures, &paused, flag{&p.Replacing}); err != nil {
			return nil, fmt.Errorf("read pools of machines: %w", err)
		}
		p.Config, p.Removed, f.At, p.Paused = json.RawMessage(config), instant(removed), instant(at), instant(paused)
		if err := json.Unmarshal([]byte(duts), &p.Duts); err != nil {
			return nil, fmt.Errorf("devices of pool %s: %w", p.Prefix, err)
		}
		out = append(out, p)
	}
	return out, rows.Err()
}

// MachinePools returns all pools of machines, by prefix.
func (r reads) MachinePools(ctx context.Context) ([]MachinePool, error) {
	return r.machinePools(ctx, `ORDER BY prefix`)
}

// MachinePool returns a pool of machines, or a NotFound error.
func (r reads) MachinePool(ctx context.Context, prefix string) (*MachinePool, error) {
	return onePool(prefix)(r.machinePools(ctx, `WHERE prefix = $1`, prefix))
}

func onePool(prefix string) func([]MachinePool, error) (*MachinePool, error) {
	return func(ps []MachinePool, err error) (*MachinePool, error) {
		if err != nil {
			return nil, err
		}
		if len(ps) == 0 {
			return nil, skep.Errorf(skep.NotFound, "no pool of machines: %.100q", prefix)
		}
		return &ps[0], nil
	}
}

// forUpdate keeps other servers from a row until this change is made.
func (d dialect) forUpdate(of string) string {
	if d == postgres {
		return ` FOR UPDATE OF ` + of
	}
	return ""
}

// LockMachinePool is MachinePool for changing it.
func (tx *Tx) LockMachinePool(prefix string) (*MachinePool, error) {
	ps, err := tx.machinePools(tx.ctx, `WHERE prefix = $1`+tx.d.forUpdate("machine_pools"), prefix)
	return onePool(prefix)(ps, tx.note(err))
}

// SaveMachinePool writes a pool of machines, new or known.
func (tx *Tx) SaveMachinePool(p *MachinePool) error {
	duts, err := json.Marshal(append([]string{}, p.Duts...))
	if err != nil {
		return err
	}
	f := p.Failure
	err = tx.write(`INSERT INTO machine_pools (`+poolColumns+`) VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17,$18)
		ON CONFLICT (prefix) DO UPDATE SET config = excluded.config, kind = excluded.kind, shape = excluded.shape, revision = excluded.revision,
		amount = excluded.amount, duts = excluded.duts, generation = excluded.generation, held = excluded.held, removed_us = excluded.removed_us,
		error_class = excluded.error_class, error_reason = excluded.error_reason, error_text = excluded.error_text, error_code = excluded.error_code,
		error_us = excluded.error_us, failures = excluded.failures, paused_us = excluded.paused_us, replacing = excluded.replacing`,
		p.Prefix, string(p.Config), p.Kind, p.Shape, p.Revision, p.Amount, string(duts), p.Generation, bit(p.Held), micros(p.Removed),
		f.Class, f.Reason, f.Text, f.Code, micros(f.At), p.Failures, micros(p.Paused), bit(p.Replacing))
	if err != nil {
		return fmt.Errorf("store pool %s: %w", p.Prefix, err)
	}
	return nil
}

// DropMachinePool forgets a pool of machines, and who looked after it.
func (tx *Tx) DropMachinePool(prefix string) error {
	if err := tx.write(`DELETE FROM provider_leases WHERE name = $1`, prefix); err != nil {
		return err
	}
	return tx.write(`DELETE FROM machine_pools WHERE prefix = $1`, prefix)
}

// VM is the record of one machine that is wanted, exists or is being taken
// away. spec/provider.md §4. Zero times mean that it has not happened.
type VM struct {
	ID         string
	Prefix     string
	Kind       string // of cloud
	Index      int    // within its pool; -1 = it is a device's
	Dut        string
	Hostname   string // of the instance, and id of its bot
	Generation int64  // grows with each plan of this id
	Attributes json.RawMessage
	Images     []string // short names of its disks' images
	Project    string
	Zone       string
	Shape      string
	Scaling    string // "fixed" or "dynamic"
	Revision   string
	Swarming   string
	Server     string // URL of the Swarming server of its bot; "" = this fleet's
	Lifetime   time.Duration
	Timeout    time.Duration // 0 = no limit

	Expanded  time.Time // it was planned
	Inserted  time.Time // the cloud was asked for it
	Created   time.Time // by the cloud's clock
	Connected time.Time
	Missing   time.Time // its bot was there and is not since then
	Retire    time.Time // to be replaced from then on
	Park      time.Time // to be stopped from then on, and kept; zero = it is to run
	Stopping  time.Time // the cloud was asked to stop it; zero = it runs, as far as is known
	Stopped   time.Time // it had stopped
	Started   time.Time // the cloud was asked to start it again after that
	Drained   bool      // not wanted any more; never taken back
	Asked     time.Time // its bot was asked to end
	AskedTask skep.TaskID
	Deleting  time.Time
	Gone      time.Time // there is no instance any more
	URL       string    // "" = no instance is known
	Networks  json.RawMessage
	Failure   Failure // of the last step; Reason and Code are not kept

	// As of the reading; not part of the record.
	Bot       VMBot
	AskedDone bool      // AskedTask has ended; not known of another Server
	Answers   time.Time // Server answers since then; zero = it does not
}

// End is when the machine is to be replaced: its lifetime is over, or it was
// told so before; zero = nobody knows yet.
func (v *VM) End() time.Time {
	if v.Created.IsZero() {
		return v.Retire
	}
	end := v.Created.Add(v.Lifetime)
	if !v.Retire.IsZero() && v.Retire.Before(end) {
		return v.Retire
	}
	return end
}

// Up is when the machine was made, or began to be started last: what it may take
// to come counts from there.
func (v *VM) Up() time.Time {
	if v.Started.After(v.Created) {
		return v.Started
	}
	return v.Created
}

// VMBot is what its server knows of a VM's bot.
type VMBot struct {
	Known      bool
	FirstSeen  time.Time
	LastSeen   time.Time
	Dead       bool
	Terminated bool // by a termination task, after which it ended
	Ill        bool // in quarantine or maintenance
	Task       skep.TaskID
	Heard      time.Time // another server said this then; zero = it was not asked, or is this fleet's
}

const vmColumns = `v.id, v.prefix, v.kind, v.idx, v.dut, v.hostname, v.generation, v.attributes, v.images, v.project, v.zone, v.shape, v.scaling, v.revision, v.swarming,
	v.lifetime_us, v.timeout_us, v.expanded_us, v.inserted_us, v.created_us, v.connected_us, v.missing_us, v.retire_us, v.drained, v.asked_us, v.asked_task,
	v.deleting_us, v.gone_us, v.url, v.networks, v.error_class, v.error_text, v.error_us, v.server, v.park_us, v.stopping_us, v.stopped_us, v.started_us`

// vmBriefColumns leave out what is long and decides nothing.
var vmBriefColumns = strings.NewReplacer("v.attributes", "''", "v.images", "''", "v.networks", "''", "v.error_text", "''").Replace(vmColumns)

// vms reads whole records.
func (r reads) vms(ctx context.Context, where string, args ...any) ([]VM, error) {
	return r.vmColumns(ctx, vmColumns, where, args...)
}

// briefVMs reads records without Attributes, Images, Networks and Failure.Text.
func (r reads) briefVMs(ctx context.Context, where string, args ...any) ([]VM, error) {
	return r.vmColumns(ctx, vmBriefColumns, where, args...)
}

func (r reads) vmColumns(ctx context.Context, columns, where string, args ...any) ([]VM, error) {
	rows, err := r.q.query(ctx, `SELECT `+columns+`, CASE WHEN b.id IS NULL THEN COALESCE(f.known, 0) ELSE 1 END,
		COALESCE(b.first_seen_us, f.first_seen_us, 0), COALESCE(b.last_seen_us, f.last_seen_us, 0),
		COALESCE(b.dead, f.dead, 0), COALESCE(b.terminated, f.terminated, 0),
		CASE WHEN b.quarantined <> '' OR b.maintenance <> '' THEN 1 ELSE COALESCE(f.ill, 0) END, COALESCE(b.task, f.task, 0), COALESCE(f.heard_us, 0), COALESCE(o.since_us, 0),
		CASE WHEN v.asked_task <> 0 AND v.server = '' AND EXISTS (SELECT 1 FROM tasks t WHERE t.id = v.asked_task AND t.state NOT IN (16, 32)) THEN 1 ELSE 0 END
		FROM vms v LEFT JOIN bots b ON b.id = v.hostname AND v.server = ''
		LEFT JOIN foreign_bots f ON f.server = v.server AND f.id = v.hostname LEFT JOIN foreign_servers o ON o.server = v.server `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("read VMs: %w", err)
	}
	defer rows.Close()
	var out []VM
	for rows.Next() {
		var (
			v                                                                      VM
			attributes, images, networks                                           string
			lifetime, timeout, expanded, inserted, created, connected, missing     int64
			retire, asked, deleting, gone, failed, firstSeen, lastSeen, terminated int64
			heard, answers, park, stopping, stopped, started                       int64
		)
		if err := rows.Scan(&v.ID, &v.Prefix, &v.Kind, &v.Index, &v.Dut, &v.Hostname, &v.Generation, &attributes, &images, &v.Project, &v.Zone, &v.Shape, &v.Scaling,
			&v.Revision, &v.Swarming, &lifetime, &timeout, &expanded, &inserted, &created, &connected, &missing, &retire, flag{&v.Drained}, &asked, &v.AskedTask,
			&deleting, &gone, &v.URL, &networks, &v.Failure.Class, &v.Failure.Text, &failed, &v.Server, &park, &stopping, &stopped, &started,
			flag{&v.Bot.Known}, &firstSeen, &lastSeen, flag{&v.Bot.Dead}, &terminated, flag{&v.Bot.Ill}, &v.Bot.Task, &heard, &answers, flag{&v.AskedDone}); err != nil {
			return nil, fmt.Errorf("read VMs: %w", err)
		}
		v.Attributes, v.Networks = json.RawMessage(attributes), json.RawMessage(networks)
		if images = strings.Trim(images, "\n"); images != "" {
			v.Images = strings.Split(images, "\n")
		}
		v.Lifetime, v.Timeout = time.Duration(lifetime)*time.Microsecond, time.Duration(timeout)*time.Microsecond
		v.Expanded, v.Inserted, v.Created, v.Connected = instant(expanded), instant(inserted), instant(created), instant(connected)
		v.Missing, v.Retire, v.Asked, v.Deleting, v.Gone = instant(missing), instant(retire), instant(asked), instant(deleting), instant(gone)
		v.Park, v.Stopping, v.Stopped, v.Started = instant(park), instant(stopping), instant(stopped), instant(started)
		v.Failure.At = instant(failed)
		v.Bot.FirstSeen, v.Bot.LastSeen, v.Bot.Terminated, v.Bot.Heard, v.Answers = instant(firstSeen), instant(lastSeen), terminated != 0, instant(heard), instant(answers)
		out = append(out, v)
	}
	return out, rows.Err()
}

// VM returns the record of a machine with what is known of its bot, or a
// NotFound error.
func (r reads) VM(ctx context.Context, id string) (*VM, error) {
	return oneVM(id)(r.vms(ctx, `WHERE v.id = $1`, id))
}

// VMByHostname is VM by the name of the instance.
func (r reads) VMByHostname(ctx context.Context, hostname string) (*VM, error) {
	return oneVM(hostname)(r.vms(ctx, `WHERE v.hostname = $1`, hostname))
}

func oneVM(id string) func([]VM, error) (*VM, error) {
	return func(vms []VM, err error) (*VM, error) {
		if err != nil {
			return nil, err
		}
		if len(vms) == 0 {
			return nil, skep.Errorf(skep.NotFound, "no such machine: %.100q", id)
		}
		return &vms[0], nil
	}
}

// LockVM is VM for changing it.
func (tx *Tx) LockVM(id string) (*VM, error) {
	vms, err := tx.vms(tx.ctx, `WHERE v.id = $1`+tx.d.forUpdate("v"), id)
	return oneVM(id)(vms, tx.note(err))
}

// VMsOf returns the machines of a pool, by index and id, without Attributes,
// Images, Networks and Failure.Text: pools may be large. They cannot be saved.
func (r reads) VMsOf(ctx context.Context, prefix string) ([]VM, error) {
	return r.briefVMs(ctx, `WHERE v.prefix = $1 ORDER BY v.idx, v.id`, prefix)
}

// VMsAfter returns up to limit machines with an id above after, by id, as brief
// as VMsOf.
func (r reads) VMsAfter(ctx context.Context, after string, limit int) ([]VM, error) {
	return r.briefVMs(ctx, `WHERE v.id > $1 ORDER BY v.id LIMIT $2`, after, limit)
}

// VMFilter selects machines, by id. Zero values select all.
type VMFilter struct {
	Prefix, Zone, Image  string // Image: the short name
	Drained, Outdated    *bool
	CreatedFrom, Created time.Time // made at or after; before
	After                string    // ids above
	Limit                int
}

// ListVMs returns the machines that f selects.
func (r reads) ListVMs(ctx context.Context, f VMFilter) ([]VM, error) {
	where, args := f.where()
	return r.vms(ctx, where, args...)
}

func (f *VMFilter) where() (where string, args []any) {
	conds := []string{"v.id > $1"}
	args = append(args, f.After)
	add := func(cond string, arg any) {
		args = append(args, arg)
		conds = append(conds, fmt.Sprintf(cond, len(args)))
	}
	if f.Prefix != "" {
		add("v.prefix = $%d", f.Prefix)
	}
	if f.Zone != "" {
		add("v.zone = $%d", f.Zone)
	}
	if f.Image != "" {
		escaped := strings.NewReplacer(`\`, `\\`, "%", `\%`, "_", `\_`).Replace(f.Image)
		add(`v.images LIKE $%d ESCAPE '\'`, "%\n"+escaped+"\n%")
	}
	if f.Drained != nil {
		add("v.drained = $%d", bit(*f.Drained))
	}
	if f.Outdated != nil {
		is := "IN"
		if *f.Outdated {
			is = "NOT IN"
		}
		// The pools are read once, not for each machine.
		conds = append(conds, "(v.prefix, v.shape) "+is+" (SELECT p.prefix, p.shape FROM machine_pools p)")
	}
	if !f.CreatedFrom.IsZero() {
		add("v.created_us >= $%d", micros(f.CreatedFrom))
	}
	if !f.Created.IsZero() {
		add("v.created_us > 0 AND v.created_us < $%d", micros(f.Created))
	}
	args = append(args, f.Limit)
	// The inner question is answered from the index alone.
	return `WHERE v.id IN (SELECT v.id FROM vms v WHERE ` + strings.Join(conds, " AND ") + fmt.Sprintf(` ORDER BY v.id LIMIT $%d) ORDER BY v.id`, len(args)), args
}

// SaveVM writes the record of a machine, new or known. One that was read in
// part, without Attributes, is refused.
func (tx *Tx) SaveVM(v *VM) error {
	if len(v.Attributes) == 0 {
		return fmt.Errorf("store machine %s: it is not the whole record", v.ID)
	}
	networks := string(v.Networks)
	if networks == "" {
		networks = "[]"
	}
	err := tx.write(`INSERT INTO vms (id, prefix, kind, idx, dut, hostname, generation, attributes, images, project, zone, shape, scaling, revision, swarming,
			lifetime_us, timeout_us, expanded_us, inserted_us, created_us, connected_us, missing_us, retire_us, drained, asked_us, asked_task,
			deleting_us, gone_us, url, networks, error_class, error_text, error_us, server, park_us, stopping_us, stopped_us, started_us)
		VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17,$18,$19,$20,$21,$22,$23,$24,$25,$26,$27,$28,$29,$30,$31,$32,$33,$34,$35,$36,$37,$38)
		ON CONFLICT (id) DO UPDATE SET kind = excluded.kind, hostname = excluded.hostname, generation = excluded.generation, attributes = excluded.attributes, images = excluded.images,
			project = excluded.project, zone = excluded.zone, inserted_us = excluded.inserted_us, created_us = excluded.created_us,
			connected_us = excluded.connected_us, missing_us = excluded.missing_us, retire_us = excluded.retire_us, drained = excluded.drained,
			asked_us = excluded.asked_us, asked_task = excluded.asked_task, deleting_us = excluded.deleting_us, gone_us = excluded.gone_us,
			url = excluded.url, networks = excluded.networks, error_class = excluded.error_class, error_text = excluded.error_text, error_us = excluded.error_us,
			park_us = excluded.park_us, stopping_us = excluded.stopping_us, stopped_us = excluded.stopped_us, started_us = excluded.started_us`,
		v.ID, v.Prefix, v.Kind, v.Index, v.Dut, v.Hostname, v.Generation, string(v.Attributes), "\n"+strings.Join(v.Images, "\n")+"\n", v.Project, v.Zone, v.Shape, v.Scaling, v.Revision, v.Swarming,
		v.Lifetime.Microseconds(), v.Timeout.Microseconds(), micros(v.Expanded), micros(v.Inserted), micros(v.Created), micros(v.Connected), micros(v.Missing),
		micros(v.Retire), bit(v.Drained), micros(v.Asked), v.AskedTask, micros(v.Deleting), micros(v.Gone), v.URL, networks,
		v.Failure.Class, v.Failure.Text, micros(v.Failure.At), v.Server, micros(v.Park), micros(v.Stopping), micros(v.Stopped), micros(v.Started))
	if err != nil {
		return fmt.Errorf("store machine %s: %w", v.ID, err)
	}
	return nil
}

// DrainVM says that a machine is not wanted any more, if it is there, and with
// plan only if no cloud was asked for it. Nothing else of its record changes:
// it need not be locked or read before.
func (tx *Tx) DrainVM(id string, plan bool) error {
	return tx.write(`UPDATE vms SET drained = 1 WHERE id = $1 AND ($2 = 0 OR inserted_us = 0)`, id, bit(plan))
}

// RetireVM has a machine replaced from now on, if it is there and nobody said
// so before. Nothing else of its record changes.
func (tx *Tx) RetireVM(id string) error {
	return tx.write(`UPDATE vms SET retire_us = $2 WHERE id = $1 AND retire_us = 0`, id, micros(tx.Now))
}

// ParkVM has a machine stopped and kept from now on, if it is there, is wanted
// and nobody said so before. Nothing else of its record changes.
func (tx *Tx) ParkVM(id string) error {
	return tx.write(`UPDATE vms SET park_us = $2 WHERE id = $1 AND park_us = 0 AND drained = 0`, id, micros(tx.Now))
}

// UnparkVM has a machine that has stopped started again. Nothing else of its
// record changes.
func (tx *Tx) UnparkVM(id string) error {
	return tx.write(`UPDATE vms SET park_us = 0 WHERE id = $1 AND stopped_us <> 0 AND drained = 0`, id)
}

// DropVM forgets a machine, and what another server said of its bot.
func (tx *Tx) DropVM(id string) error {
	if err := tx.write(`DELETE FROM foreign_bots WHERE (server, id) IN (SELECT server, hostname FROM vms WHERE id = $1 AND server <> '')`, id); err != nil {
		return err
	}
	return tx.write(`DELETE FROM vms WHERE id = $1`, id)
}

// TakeLease gives a name to holder until an instant, if nobody else has it at
// tx.Now; held says whether holder has it then. A new holder's generation is
// one more than that of the one before.
func (tx *Tx) TakeLease(name, holder string, until time.Time) (held bool, err error) {
	n, err := tx.exec(`INSERT INTO provider_leases (name, holder, generation, until_us) VALUES ($1, $2, 1, $3)
		ON CONFLICT (name) DO UPDATE SET until_us = excluded.until_us, holder = excluded.holder,
			generation = provider_leases.generation + CASE WHEN provider_leases.holder = excluded.holder THEN 0 ELSE 1 END
		WHERE provider_leases.holder = excluded.holder OR provider_leases.until_us <= $4`,
		name, holder, micros(until), micros(tx.Now))
	if err != nil {
		return false, fmt.Errorf("lease of %s: %w", name, err)
	}
	return n > 0, nil
}

// Leases returns until when each name is somebody's, those of the past too.
func (r reads) Leases(ctx context.Context) (map[string]time.Time, error) {
	rows, err := r.q.query(ctx, `SELECT name, until_us FROM provider_leases`)
	if err != nil {
		return nil, fmt.Errorf("read leases: %w", err)
	}
	defer rows.Close()
	out := map[string]time.Time{}
	for rows.Next() {
		var name string
		var until int64
		if err := rows.Scan(&name, &until); err != nil {
			return nil, fmt.Errorf("read leases: %w", err)
		}
		out[name] = instant(until)
	}
	return out, rows.Err()
}

// GiveLeases gives up all that holder has.
func (tx *Tx) GiveLeases(holder string) error {
	return tx.write(`UPDATE provider_leases SET until_us = 0 WHERE holder = $1`, holder)
}
