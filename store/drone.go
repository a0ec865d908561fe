package store

import (
	"context"
	"fmt"
	"time"
)

// Drone is a host that runs the bots of devices. spec/host.md §3.4.
type Drone struct {
	UUID        string
	Key         string // that it chose when it registered, "" = none
	Description string
	Hive        string
	Version     string
	Capacity    int
	Expires     time.Time // end of the lease of all its devices
}

// Dut is a device.
type Dut struct {
	Name    string
	Hive    string
	Drone   string // UUID; "" = nobody's
	Gone    bool   // no inventory names it
	Leaving bool   // to be drained by its drone and given to another

	Generation int64 // of its assignment; grows with each, and begins beyond all that a deleted device of the name had
}

// AddDrone stores a new drone.
func (tx *Tx) AddDrone(d Drone) error {
	err := tx.write(`INSERT INTO drones (uuid, reg_key, description, hive, version, capacity, expires_us) VALUES ($1,$2,$3,$4,$5,$6,$7)`,
		d.UUID, d.Key, d.Description, d.Hive, d.Version, d.Capacity, micros(d.Expires))
	if err != nil {
		return fmt.Errorf("store drone: %w", err)
	}
	return nil
}

// KeepDrone prolongs the lease of a drone and notes what it said; ok is false
// for one that is not known or whose lease is over at tx.Now. Its row is then
// this transaction's: who would end its lease waits.
func (tx *Tx) KeepDrone(d Drone) (ok bool, err error) {
	n, err := tx.exec(`UPDATE drones SET description = $2, hive = $3, version = $4, capacity = $5, expires_us = $6 WHERE uuid = $1 AND expires_us > $7`,
		d.UUID, d.Description, d.Hive, d.Version, d.Capacity, micros(d.Expires), micros(tx.Now))
	if err != nil {
		return false, fmt.Errorf("prolong the lease of drone %s: %w", d.UUID, err)
	}
	return n > 0, nil
}

// DroneSaid returns the capacity and hive that a drone reported last; ok is
// false for an unknown one.
func (r reads) DroneSaid(ctx context.Context, uuid string) (capacity int, hive string, ok bool, err error) {
	ok, err = r.q.row(ctx, `SELECT capacity, hive FROM drones WHERE uuid = $1`, []any{uuid}, &capacity, &hive)
	if err != nil {
		return 0, "", false, fmt.Errorf("read drone: %w", err)
	}
	return capacity, hive, ok, nil
}

// LockDrone makes the row of a drone this transaction's; ok is false for one
// that is not known or whose lease is over.
func (tx *Tx) LockDrone(uuid string) (ok bool, err error) {
	n, err := tx.exec(`UPDATE drones SET capacity = capacity WHERE uuid = $1 AND expires_us > $2`, uuid, micros(tx.Now))
	if err != nil {
		return false, fmt.Errorf("lock drone %s: %w", uuid, err)
	}
	return n > 0, nil
}

// EndDrone forgets a drone whose lease is over at tx.Now and frees what it
// had; ok is false if it is not over.
func (tx *Tx) EndDrone(uuid string) (ok bool, err error) {
	n, err := tx.exec(`DELETE FROM drones WHERE uuid = $1 AND expires_us <= $2`, uuid, micros(tx.Now))
	if err == nil && n > 0 {
		err = tx.write(`UPDATE duts SET drone = '', leaving = 0 WHERE drone = $1`, uuid)
	}
	if err != nil {
		return false, fmt.Errorf("end the lease of drone %s: %w", uuid, err)
	}
	return n > 0, nil
}

// FreeDuts frees devices whose drone is not known, and deletes those that are
// gone and nobody's.
func (tx *Tx) FreeDuts() error {
	err := tx.write(`UPDATE duts SET drone = '', leaving = 0 WHERE drone <> '' AND drone NOT IN (SELECT uuid FROM drones)`)
	if err == nil {
		err = tx.write(`DELETE FROM duts WHERE drone = '' AND gone = 1`)
	}
	if err != nil {
		return fmt.Errorf("free devices: %w", err)
	}
	return nil
}

// DroneByKey returns the live drone that registered with a key.
func (tx *Tx) DroneByKey(key string) (uuid string, err error) {
	_, err = tx.q.row(tx.ctx, `SELECT uuid FROM drones WHERE reg_key = $1 AND expires_us > $2`, []any{key, micros(tx.Now)}, &uuid)
	if tx.note(err) != nil {
		return "", fmt.Errorf("read drone: %w", err)
	}
	return uuid, nil
}

// TakeDut gives a free device of a hive to a drone; ok is false if it is not
// free there.
func (tx *Tx) TakeDut(name, hive, drone string) (ok bool, err error) {
	n, err := tx.exec(`UPDATE duts SET drone = $3, leaving = 0, generation = generation + 1 WHERE name = $1 AND hive = $2 AND drone = '' AND gone = 0`, name, hive, drone)
	if err != nil {
		return false, fmt.Errorf("assign device %s: %w", name, err)
	}
	return n > 0, nil
}

// RenewDuts makes all assignments of a drone new ones: no release that names
// an old one fits any more.
func (tx *Tx) RenewDuts(drone string) error {
	if err := tx.write(`UPDATE duts SET generation = generation + 1 WHERE drone = $1`, drone); err != nil {
		return fmt.Errorf("renew the devices of drone %s: %w", drone, err)
	}
	return nil
}

// ReleaseDut takes a device from a drone, if it has it by the assignment with
// this generation; 0 = by any.
func (tx *Tx) ReleaseDut(name, drone string, generation int64) error {
	err := tx.write(`UPDATE duts SET drone = '', leaving = 0 WHERE name = $1 AND drone = $2 AND (generation = $3 OR $3 = 0)`, name, drone, generation)
	if err == nil {
		err = tx.write(`DELETE FROM duts WHERE name = $1 AND drone = '' AND gone = 1`, name)
	}
	if err != nil {
		return fmt.Errorf("release device %s: %w", name, err)
	}
	return nil
}

// LeaveDut says that a device is to leave its drone, if it has it.
func (tx *Tx) LeaveDut(name, drone string) error {
	if err := tx.write(`UPDATE duts SET leaving = 1 WHERE name = $1 AND drone = $2`, name, drone); err != nil {
		return fmt.Errorf("move device %s: %w", name, err)
	}
	return nil
}

// PutDut adds a device, or says where a known one is now; one that was gone is
// back.
func (tx *Tx) PutDut(name, hive string) error {
	// From 0 again, a release that was long under way would fit a new assignment.
	err := tx.write(`INSERT INTO duts (name, hive, drone, gone, leaving, generation) VALUES ($1,$2,'',0,0,$3)
		ON CONFLICT (name) DO UPDATE SET hive = excluded.hive, gone = 0`, name, hive, micros(tx.Now))
	if err != nil {
		return fmt.Errorf("store device %s: %w", name, err)
	}
	return nil
}

// DropDut says that a device is gone: at once, or when its drone releases it.
func (tx *Tx) DropDut(name string) error {
	err := tx.write(`UPDATE duts SET gone = 1 WHERE name = $1`, name)
	if err == nil {
		err = tx.write(`DELETE FROM duts WHERE name = $1 AND drone = '' AND gone = 1`, name)
	}
	if err != nil {
		return fmt.Errorf("remove device %s: %w", name, err)
	}
	return nil
}

// Drones returns all drones, by id.
func (r reads) Drones(ctx context.Context) ([]Drone, error) {
	rows, err := r.q.query(ctx, `SELECT uuid, reg_key, description, hive, version, capacity, expires_us FROM drones ORDER BY uuid`)
	if err != nil {
		return nil, fmt.Errorf("read drones: %w", err)
	}
	defer rows.Close()
	var out []Drone
	for rows.Next() {
		var d Drone
		var expires int64
		if err := rows.Scan(&d.UUID, &d.Key, &d.Description, &d.Hive, &d.Version, &d.Capacity, &expires); err != nil {
			return nil, fmt.Errorf("read drones: %w", err)
		}
		d.Expires = instant(expires)
		out = append(out, d)
	}
	return out, rows.Err()
}

// NextDroneEnd returns when the next lease ends, if nobody prolongs it; zero =
// there is no drone.
func (r reads) NextDroneEnd(ctx context.Context) (time.Time, error) {
	var us int64
	if _, err := r.q.row(ctx, `SELECT COALESCE(MIN(expires_us), 0) FROM drones`, nil, &us); err != nil {
		return time.Time{}, fmt.Errorf("read drones: %w", err)
	}
	return instant(us), nil
}

const dutColumns = `SELECT name, hive, drone, gone, leaving, generation FROM duts `

// Duts returns all devices, by name.
func (r reads) Duts(ctx context.Context) ([]Dut, error) {
	return r.duts(ctx, dutColumns+`ORDER BY name`)
}

// DutsOf returns the devices of a drone, by name.
func (r reads) DutsOf(ctx context.Context, drone string) ([]Dut, error) {
	return r.duts(ctx, dutColumns+`WHERE drone = $1 ORDER BY name`, drone)
}

// FreeDutsOf returns up to n devices of a hive that are nobody's, by name.
func (r reads) FreeDutsOf(ctx context.Context, hive string, n int) ([]Dut, error) {
	return r.duts(ctx, dutColumns+`WHERE drone = '' AND hive = $1 AND gone = 0 ORDER BY name LIMIT $2`, hive, n)
}

func (r reads) duts(ctx context.Context, query string, args ...any) ([]Dut, error) {
	rows, err := r.q.query(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("read devices: %w", err)
	}
	defer rows.Close()
	var out []Dut
	for rows.Next() {
		var d Dut
		var gone, leaving int
		if err := rows.Scan(&d.Name, &d.Hive, &d.Drone, &gone, &leaving, &d.Generation); err != nil {
			return nil, fmt.Errorf("read devices: %w", err)
		}
		d.Gone, d.Leaving = gone != 0, leaving != 0
		out = append(out, d)
	}
	return out, rows.Err()
}

// CountDuts returns how many devices a hive has that are not gone.
func (r reads) CountDuts(ctx context.Context, hive string) (n int, err error) {
	if _, err := r.q.row(ctx, `SELECT COUNT(*) FROM duts WHERE hive = $1 AND gone = 0`, []any{hive}, &n); err != nil {
		return 0, fmt.Errorf("count devices: %w", err)
	}
	return n, nil
}
