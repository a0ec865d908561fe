// Package named keeps the named caches of a bot: directories that tasks of
// the same name find again. They lie in the bot's directory c:
//
//	state.json     name → directory, size and last use, oldest first
//	<2 characters> a cache
//	named/<name>   a link to it, for people
//
// A cache moves into a task's run directory by a rename, and back by another;
// meanwhile it is in no state. One process at a time uses a bot's caches.
// spec bot.md §5.5, §5.8.
package named
