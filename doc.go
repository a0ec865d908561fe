// Package skep holds the nouns of a Swarming and the moves they may make. It
// imports only the standard library and does no I/O.
//
// The map of the repository:
//
//	cmd/skep → cli          server, user commands and host programs in one executable
//	cmd/skep-bot → botcli   the bot: small, because every task starts it again
//	server                  HTTP: pRPC swarming.v2, Bot API v1, access rules
//	scheduler               who runs what, when
//	store                   all SQL, on SQLite and PostgreSQL
//	api, api/*              the wire
//	client                  Go client of the API
//	bot, runner             one bot; one task
//	host                    many bots on one computer
//
// The glossary:
//
//   - task: one request to run a command on some bot, and what came of it.
//   - slice: one way to run a task; slices are tried in order.
//   - dimension: a key with values that a bot has and a slice may demand.
//   - queue: all waiting slices with the same demands.
//   - bot: the program that runs one task at a time on some machine.
//   - claim: the moment in which a waiting task becomes a bot's.
//   - drain: take no new work, finish what runs. Terminate: drain, then end for
//     good. Stop: cancel what runs.
//   - quarantine: a bot that is ill gets no tasks.
package skep
