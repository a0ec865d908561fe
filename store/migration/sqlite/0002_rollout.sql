-- Parts of bot code, compressed with zstd, named by the SHA-256 of their content.
CREATE TABLE bot_code_parts (
	hash TEXT PRIMARY KEY,
	data BLOB NOT NULL
) WITHOUT ROWID;

-- Releases of bot code: which parts make one.
CREATE TABLE bot_releases (
	id      TEXT PRIMARY KEY,
	parts   TEXT    NOT NULL,
	made_us INTEGER NOT NULL
) WITHOUT ROWID;

-- Bots that were told to run the release that rolls, and what came of it.
CREATE TABLE rollout_bots (
	bot     TEXT PRIMARY KEY,
	release TEXT    NOT NULL,
	digest  TEXT    NOT NULL,
	told_us INTEGER NOT NULL,
	result  TEXT    NOT NULL -- "" = not back yet
) WITHOUT ROWID;

-- How many bots a bootstrap token may still bring in.
ALTER TABLE tokens ADD COLUMN uses_left INTEGER NOT NULL DEFAULT 0;
