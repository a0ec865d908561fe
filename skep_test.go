package skep

import (
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestTaskIDs(t *testing.T) {
	at := time.Date(2026, 11, 21, 1, 2, 3, 4e6, time.UTC)
	id := NewTaskID(at)
	if id.Created() != at || id&0xf != 1 || id < FirstTaskID(at) || id >= FirstTaskID(at.Add(time.Millisecond)) {
		t.Errorf("id %x of %s", int64(id), id.Created())
	}
	for _, text := range []string{id.String(), id.RunID()} {
		if got, err := ParseTaskID(text); err != nil || got != id || len(text) != 16 {
			t.Errorf("%s: %v %v", text, got, err)
		}
	}
	for _, text := range []string{"", "1", "5A00000000000110", "xyz0", "-10", "80000000000000000", " 10"} {
		if _, err := ParseTaskID(text); KindOf(err) != Invalid || FieldOf(err) != "task_id" {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestMatching(t *testing.T) {
	bot := Dimensions{"id": {"b"}, "pool": {"p"}, "os": {"Linux", "Debian-12"}}
	c := func(kv ...string) (cs Constraints) {
		for i := 0; i < len(kv); i += 2 {
			cs = append(cs, ParseConstraint(kv[i], kv[i+1]))
		}
		return cs
	}
	for _, x := range []struct {
		name string
		cs   Constraints
		want bool
	}{
		{"no demand", nil, true},
		{"one of many values", c("os", "Debian-12"), true},
		{"an alternative", c("os", "Mac|Linux"), true},
		{"no alternative", c("os", "Mac|Windows"), false},
		{"equal keys are both demanded", c("os", "Linux", "os", "Debian-12"), true},
		{"one of equal keys fails", c("os", "Linux", "os", "Debian-11"), false},
		{"missing key", c("gpu", "none"), false},
		{"no wildcard", c("os", "*"), false},
	} {
		if got := x.cs.Match(bot); got != x.want {
			t.Errorf("%s: %v", x.name, got)
		}
	}
}

func TestQueueIsTheDemandNotItsOrder(t *testing.T) {
	a := Constraints{ParseConstraint("os", "b|a"), ParseConstraint("pool", "p")}
	b := Constraints{ParseConstraint("pool", "p"), ParseConstraint("os", "a|b")}
	a.Sort()
	b.Sort()
	if a.Queue() != b.Queue() {
		t.Error("equal demands have two queues")
	}
	if c := (Constraints{ParseConstraint("os", "a"), ParseConstraint("os", "b")}); c.Queue() == a.Queue() {
		t.Error("different demands share a queue")
	}
}

// TestEndFollowsTheTable checks spec/api-v2.md §9.3: the first rule that
// matches decides.
func TestEndFollowsTheTable(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 10, 0, time.UTC)
	start := now.Add(-10 * time.Second)
	asked := now.Add(-5 * time.Second)
	for _, c := range []struct {
		name              string
		killing           bool
		e                 Ending
		state             TaskState
		exit              int64 // 99 = cleared
		failure, internal bool
		fault             Fault
	}{
		{"success", false, Ending{ExitCode: new(int64(0)), Duration: new(1.0)}, Completed, 0, false, false, FaultNone},
		{"failure", false, Ending{ExitCode: new(int64(3)), Duration: new(1.0)}, Completed, 3, true, false, FaultTask},
		{"hard timeout", false, Ending{ExitCode: new(int64(-9)), Duration: new(1.0), HardTimeout: true}, TimedOut, -9, true, false, FaultLimit},
		{"timeout without a code", false, Ending{IOTimeout: true}, TimedOut, -1, true, false, FaultLimit},
		{"timeout wins over kill", true, Ending{HardTimeout: true}, TimedOut, -1, true, false, FaultLimit},
		{"cancelled in setup", true, Ending{Canceled: true, HardTimeout: true}, Canceled, 99, false, false, FaultUser},
		{"killed", true, Ending{ExitCode: new(int64(-15)), Duration: new(1.0)}, Killed, -15, true, false, FaultUser},
		{"lost while being killed", true, Ending{Lost: true}, Killed, -1, true, true, FaultUser},
		{"inputs are missing", false, Ending{MissingIn: true}, ClientError, -1, false, true, FaultUser},
		{"bot is lost", false, Ending{Lost: true}, BotDied, -1, false, true, FaultHost},
	} {
		t.Run(c.name, func(t *testing.T) {
			task := &Task{State: Running, StartedAt: start, Killing: c.killing}
			if c.killing {
				task.AbandonAt = asked
			}
			if err := task.End(c.e, now); err != nil {
				t.Fatal(err)
			}
			exit := int64(99)
			if task.ExitCode != nil {
				exit = *task.ExitCode
			}
			if task.State != c.state || exit != c.exit || task.Failure != c.failure || task.InternalFailure != c.internal || task.Fault != c.fault || task.EndedAt != now {
				t.Errorf("got %s exit %d failure %v internal %v fault %q", task.State, exit, task.Failure, task.InternalFailure, task.Fault)
			}
			if c.killing && task.AbandonAt != asked {
				t.Errorf("abandoned at %s, want the moment of the request", task.AbandonAt)
			}
			if c.e.Duration == nil && !c.e.Canceled && *task.Duration != 10 {
				t.Errorf("duration %v, want the time since the start", *task.Duration)
			}
		})
	}
	if err := (&Task{State: Running}).End(Ending{}, now); err == nil {
		t.Error("an ending without a reason was accepted")
	}
}

func TestFinalStatesAreFinal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		states := rapid.SampledFrom([]TaskState{Pending, Running, Expired, TimedOut, BotDied, Canceled, Completed, Killed, NoResource, ClientError})
		from, to := states.Draw(t, "from"), states.Draw(t, "to")
		err := (&Task{State: from}).Move(to, time.Time{})
		if from.Final() && KindOf(err) != Conflict || to == Pending && err == nil {
			t.Errorf("%s to %s: %v", from, to, err)
		}
	})
}

func many(n int) (values []string) {
	for i := range n {
		values = append(values, strconv.Itoa(i))
	}
	return values
}

func TestBotDimensions(t *testing.T) {
	for _, c := range []struct {
		name string
		d    Dimensions
		ok   bool
	}{
		{"valid", Dimensions{"id": {"b"}, "os": {"a", "b"}}, true},
		{"no id", Dimensions{"os": {"a"}}, false},
		{"two ids", Dimensions{"id": {"a", "b"}}, false},
		{"colon in id", Dimensions{"id": {"a:b"}}, false},
		{"empty list", Dimensions{"id": {"b"}, "os": {}}, false},
		{"empty value", Dimensions{"id": {"b"}, "os": {""}}, false},
		{"blank around", Dimensions{"id": {"b"}, "os": {" a"}}, false},
		{"twice", Dimensions{"id": {"b"}, "os": {"a", "a"}}, false},
		{"odd key", Dimensions{"id": {"b"}, "ö": {"a"}}, false},
		{"NUL", Dimensions{"id": {"b"}, "os": {"a\x00"}}, false},
		{"many values", Dimensions{"id": {"b"}, "os": many(MaxDimensionValues)}, true},
		{"too many values", Dimensions{"id": {"b"}, "os": many(MaxDimensionValues + 1)}, false},
	} {
		if err := c.d.Validate(); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
