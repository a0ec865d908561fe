package bot

import "testing"

// Nobody comes in who may be a task.
func TestWhoMayVisit(t *testing.T) {
	for _, c := range []struct {
		name      string
		uid, own  int
		isolation string
		may       bool
	}{
		{"the bot's user", 1000, 1000, "view", true},
		{"root", 0, 1000, "view", true},
		{"root, where the bot is root", 0, 0, "user", true},
		{"a task of a bot that is root", 1879048192, 0, "user", false},
		{"another user", 1001, 1000, "view", false},
		{"the bot's user, as tasks are", 1000, 1000, "none", false},
		{"root, as tasks are not", 0, 1000, "none", true},
		{"root, as tasks are", 0, 0, "none", false},
		{"another user, without isolation", 1001, 1000, "none", false},
	} {
		if err := mayUserVisit(c.uid, c.own, c.isolation); (err == nil) != c.may {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
