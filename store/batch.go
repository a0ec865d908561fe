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
	task         skep.TaskID
	caller, uuid string
}

// KeyTask is a task that the change will lock.
func KeyTask(id skep.TaskID) Key { return Key{task: id} }

// KeyUUID is a repeatable call that the change will look up.
func KeyUUID(caller, uuid string) Key { return Key{caller: caller, uuid: uuid} }

// batch is what the changes of one transaction share: the rows that they
// asked for, read at once and locked in the order of their keys. A row leaves
// it when somebody writes it. Without savepoints all changes hold or none
// does, so that none can see what another takes back.
type batch struct {
	shared bool // false: every change is on its own, and nothing is remembered
	tasks  map[skep.TaskID]*skep.Task
	uuids  map[Key]skep.TaskID // 0 = nobody has made this call; no entry = not known
	stale  map[Key]bool        // made so long ago that it can be made again
}

func newBatch(shared bool) *batch {
	return &batch{shared: shared, tasks: map[skep.TaskID]*skep.Task{}, uuids: map[Key]skep.TaskID{}, stale: map[Key]bool{}}
}

// read fetches the rows that changes name.
func (b *batch) read(ctx context.Context, w *writer, changes []*change) error {
	var ids []any
	var calls []Key
	for _, c := range changes {
		for _, k := range c.keys {
			if k.task != 0 {
				ids = append(ids, int64(k.task))
			} else {
				calls = append(calls, k)
			}
		}
	}
	if err := b.readTasks(ctx, w, ids); err != nil {
		return fmt.Errorf("read the tasks of a batch: %w", err)
	}
	if err := b.readCalls(ctx, w, calls); err != nil {
		return fmt.Errorf("read the calls of a batch: %w", err)
	}
	return nil
}

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
		return err
	}
	defer rows.Close()
	for rows.Next() {
		t, err := scanLocked(rows)
		if err != nil {
			return err
		}
		b.tasks[t.ID] = t
	}
	return rows.Close()
}

func (b *batch) readCalls(ctx context.Context, w *writer, calls []Key) error {
	if len(calls) < 2 {
		return nil
	}
	calls = padded(calls)
	var args []any
	var where strings.Builder
	for i, k := range calls {
		if i > 0 {
			where.WriteString(" OR ")
		}
		args = append(args, k.caller, k.uuid)
		fmt.Fprintf(&where, "(caller = $%d AND uuid = $%d)", 2*i+1, 2*i+2)
		b.uuids[k] = 0
	}
	rows, err := w.s.query(ctx, `SELECT caller, uuid, task, expires_us FROM request_uuids WHERE `+where.String(), args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	now := micros(w.now())
	for rows.Next() {
		var k Key
		var id skep.TaskID
		var expires int64
		if err := rows.Scan(&k.caller, &k.uuid, &id, &expires); err != nil {
			return err
		}
		if expires > now {
			b.uuids[k] = id
		} else {
			b.stale[k] = true
		}
	}
	return rows.Close()
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

// wrote notes that a task's row is not what it was.
func (b *batch) wrote(id skep.TaskID) { delete(b.tasks, id) }

// called notes that a call has made a task.
func (b *batch) called(k Key, id skep.TaskID) {
	delete(b.stale, k)
	if b.shared {
		b.uuids[k] = id
	}
}
