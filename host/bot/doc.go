// Package bot starts and stops Swarming bots on this host: one process each,
// born in a cgroup with limits of its own, ended with everything that it
// started. spec/host.md §3.1.
//
//   - A [Starter] starts a bot in a directory: it downloads the bot's code once
//     for all bots of the host, checks its digest and runs it.
//   - A [DroneStarter] makes that directory, and clears away old ones.
//   - A [Bot] is drained (it finishes its task), or terminated (its task is
//     cancelled, and after [GraceInterval] everything is killed).
//   - A [FakeBot] stands for one in tests.
//
// On Linux the cgroup is of version 2, of version 1, or on a hybrid host of
// both: killed through the unified tree, limited by the controllers where they
// are. Elsewhere bots run in a process group or job, and Config.Resources must
// be nil.
package bot
