package store

import (
	"context"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"github.com/skepdev/skep"
)

// Key names a row that a change is going to ask for.
type Key struct {
	task          skep.TaskID
	pool, machine string
}

// KeyTask is a task that the change will lock.
func KeyTask(id skep.TaskID) Key { return Key{task: id} }

// KeyMachinePool is a pool of machines that the change will lock, or of which
// it will lock machines.
func KeyMachinePool(prefix string) Key { return Key{pool: prefix} }

// KeyMachine is a machine that the change will lock. The batch locks its pool,
// before anything of its changes: so no two batches wait for each other,
// whichever machines of a pool they change, and in which order.
func KeyMachine(id string) Key { return Key{machine: id} }

// batch is what the changes of one transaction share: the rows that they
// asked for, read at once and locked in the order of their keys. Without
// savepoints all changes hold or none does, so that none can see what another
// takes back.
type batch struct {
	shared bool // false: every change is on its own, and nothing is remembered
	sole   bool // nobody else writes: what was written is what is there
	tasks  map[skep.TaskID]*skep.Task
	made   map[madeBy]skep.TaskID // by calls of this batch that may be repeated
}

// madeBy is a call of NewTask that may be repeated.
type madeBy struct{ caller, uuid string }

func newBatch(shared bool) *batch {
	return &batch{shared: shared, tasks: map[skep.TaskID]*skep.Task{}, made: map[madeBy]skep.TaskID{}}
}

// maxKept bounds the running tasks that a sole writer remembers; one is less
// than 1 KiB.
const maxKept = 1 << 14

// soleBatch is newBatch for the only writer of a database. Running tasks stay
// at hand from batch to batch, as they were written last: three of the four
// times that a task is changed it need not be read. When a transaction is
// taken back, kept must be cleared.
func soleBatch(kept map[skep.TaskID]*skep.Task) *batch {
	if len(kept) > maxKept {
		clear(kept)
	}
	return &batch{shared: true, sole: true, tasks: kept, made: map[madeBy]skep.TaskID{}}
}

// read fetches the rows that changes name.
func (b *batch) read(ctx context.Context, w *writer, changes []*change) error {
	var ids []any
	var pools, machines []any
	for _, c := range changes {
		for _, k := range c.keys {
			switch {
			case k.pool != "":
				pools = append(pools, k.pool)
			case k.machine != "":
				machines = append(machines, k.machine)
			case b.tasks[k.task] == nil:
				ids = append(ids, int64(k.task))
			}
		}
	}
	if err := b.readTasks(ctx, w, ids); err != nil || w.d != postgres { // elsewhere is one writer
		return err
	}
	return lockPools(ctx, w, pools, machines)
}

// lockPools locks pools of machines, and those of machines, in one order.
func lockPools(ctx context.Context, w *writer, pools, machines []any) error {
	if len(pools)+len(machines) == 0 {
		return nil
	}
	pools, machines = padded(append(pools, "")), padded(append(machines, ""))
	of := make([]string, len(machines))
	for i := range of {
		of[i] = fmt.Sprintf("$%d", len(pools)+i+1)
	}
	rows, err := w.s.query(ctx, `SELECT prefix FROM machine_pools WHERE prefix IN (`+marks(len(pools))+`)
		OR prefix IN (SELECT prefix FROM vms WHERE id IN (`+strings.Join(of, ",")+`)) ORDER BY prefix FOR UPDATE`, append(pools, machines...)...)
	if err != nil {
		return fmt.Errorf("lock the pools of a batch: %w", err)
	}
	defer rows.Close()
	for rows.Next() { //nolint:revive // until all are locked
	}
	return rows.Err()
}

// readTasks is read, of tasks.
func (b *batch) readTasks(ctx context.Context, w *writer, ids []any) error {
	if len(ids) < 2 { // then there is nothing to save
		return nil
	}
	ids = padded(ids)
	query := `SELECT ` + lockColumns + ` FROM tasks t WHERE t.id IN (` + marks(len(ids)) + `) ORDER BY t.id`
	if w.d == postgres {
		query += ` FOR UPDATE`
	}
	rows, err := w.s.query(ctx, query, ids...)
	if err != nil {
		return fmt.Errorf("read the tasks of a batch: %w", err)
	}
	ts, err := scanAllLocked(rows)
	if err != nil {
		return fmt.Errorf("read the tasks of a batch: %w", err)
	}
	for _, t := range ts {
		b.tasks[t.ID] = t
	}
	return nil
}

// padded repeats the last of vs until their number is a power of two: few
// numbers make few statements to prepare.
func padded[T any](vs []T) []T {
	n := 1 << bits.Len(uint(len(vs)-1))
	for len(vs) < n {
		vs = append(vs, vs[len(vs)-1])
	}
	return vs
}

// marks returns $1,…,$n.
func marks(n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "$%d", i+1)
	}
	return b.String()
}

// task returns a task that was read for the batch and not written since.
func (b *batch) task(id skep.TaskID) *skep.Task {
	t := b.tasks[id]
	if t == nil {
		return nil
	}
	own := *t
	own.ServerVersions = slices.Clip(own.ServerVersions)
	return &own
}

// wrote notes that a task's row is now as t says.
func (b *batch) wrote(t *skep.Task) {
	if !b.sole || t.State != skep.Running {
		b.lose(t.ID)
		return
	}
	own := *t
	own.Claim, own.Outcome = nil, nil // which LockTask does not read either
	own.ServerVersions = slices.Clip(own.ServerVersions)
	b.tasks[t.ID] = &own
}

// lose notes that a task's row is not what it was.
func (b *batch) lose(id skep.TaskID) { delete(b.tasks, id) }
