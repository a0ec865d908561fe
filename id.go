package skep

import (
	"math/rand/v2"
	"strconv"
	"time"
)

// TaskID identifies a task: milliseconds since 2010-01-01T00:00:00Z in 43
// bits, 16 random bits and the constant 1 in the low 4 bits, so ids sort by
// creation time. spec/scheduler.md §2.
//
// On the wire it is written as lower-case hex with one more digit: 0 for the
// task (String), 1 for its single run (RunID).
type TaskID int64

const taskIDVersion = 1

var taskEpoch = time.Date(2010, 1, 1, 0, 0, 0, 0, time.UTC)

// NewTaskID returns an id for a task created at now. Two ids of one
// millisecond differ by 16 random bits; the store refuses a repeated one and
// the caller draws again.
func NewTaskID(now time.Time) TaskID {
	return FirstTaskID(now) | TaskID(rand.Uint64N(1<<16)<<4) | taskIDVersion
}

// FirstTaskID returns the lower bound of all ids created in now's
// millisecond; it turns a time range into a range of ids. Times before 2010
// give 0.
func FirstTaskID(now time.Time) TaskID {
	ms := now.Sub(taskEpoch).Milliseconds()
	if ms < 0 {
		return 0
	}
	return TaskID(ms << 20)
}

// ParseTaskID reads a task or run id as RPCs take it: at least two lower-case
// hex digits, the last one dropped without a look. spec/api-v2.md §1.3.
func ParseTaskID(s string) (TaskID, error) {
	if s == "" {
		return 0, &Error{Kind: Invalid, Field: "task_id", Text: "task_id is required"}
	}
	if len(s) < 2 || !isLowerHex(s) {
		return 0, &Error{Kind: Invalid, Field: "task_id", Text: "task_id " + s + ": bad task ID: want lower-case hex, at least 2 digits"}
	}
	v, err := strconv.ParseInt(s[:len(s)-1], 16, 64)
	if err != nil {
		return 0, &Error{Kind: Invalid, Field: "task_id", Text: "task_id " + s + ": bad task ID: it does not fit 64 bits"}
	}
	return TaskID(v), nil
}

func isLowerHex(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// String returns the id of the task's summary, ending in 0; "" for no task.
func (id TaskID) String() string { return id.hex('0') }

// RunID returns the id of the task's run, ending in 1; "" for no task.
func (id TaskID) RunID() string { return id.hex('1') }

// Created returns when the id was made, to the millisecond.
func (id TaskID) Created() time.Time {
	return taskEpoch.Add(time.Duration(id>>20) * time.Millisecond)
}

func (id TaskID) hex(last byte) string {
	if id == 0 {
		return ""
	}
	var buf [17]byte
	return string(append(strconv.AppendInt(buf[:0], int64(id), 16), last))
}

// BotID names a bot; unique in a fleet. It is also the bot's dimension "id".
type BotID string
