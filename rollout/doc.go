// Package rollout keeps the builds of skep-bot that a fleet runs and says which
// of them each bot should run.
//
// A Release is all that makes up bot code but the platform and the server's
// address: executables for several platforms, hook scripts, the server's
// version. With those two it makes a Build, the bytes that /bot_code hands out
// and whose digest is the bot's version (decisions.md 21).
//
// A new release rolls: first to the canary share of the fleet, and when that
// share is well, to everybody. When it is not, the rollout halts by itself and
// everybody's version is the old one again (decisions.md 24, spec bot.md §10.4).
// What is decided is a pure function, Plan; Keeper keeps its state in the
// store, so that all servers of a fleet say the same.
package rollout
