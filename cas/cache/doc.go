// Package cache keeps on a machine what was fetched from content-addressed
// storage, and turns trees of it into directories for tasks.
//
// Its directory, the bot's cas_cache, may be shared by several bots of one
// user:
//
//	state.json       what is there, oldest use first (spec bot.md §5.5), and how each file looked
//	<hash>           a blob, mode 0444
//	<hash>.x         the same, mode 0555: the mode lives in the inode
//	trees/<root>     the Directory messages of a tree, each checked by its hash when read
//	trees/<root>.d/  the tree made of hard links, lower directory of overlays
//	trees/<root>.ok  how the directories of it looked when it was whole
//	room/            what transfers under way have set aside
//	*.lock           flocks, see Cache
//
// A task may have damaged what it was given, so nothing here is believed by
// its name: an entry whose inode, size or time of change is not the recorded
// one, or that was recorded before the machine booted, is hashed before it is
// used, and fetched again when it is damaged. A file that state.json does not
// name is treated the same way, so that a kill -9 in the middle of a transfer
// loses no more than the hashing. decisions.md 26.
package cache
