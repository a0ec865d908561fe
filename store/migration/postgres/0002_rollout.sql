-- Parts of bot code, compressed with zstd, named by the SHA-256 of their content.
CREATE TABLE bot_code_parts (
	hash TEXT PRIMARY KEY,
	data BYTEA NOT NULL
);

-- Releases of bot code: which parts make one.
CREATE TABLE bot_releases (
	id      TEXT PRIMARY KEY,
	parts   TEXT    NOT NULL,
	made_us BIGINT NOT NULL
);

-- Bots that were told to run the release that rolls, and what came of it.
CREATE TABLE rollout_bots (
	bot     TEXT PRIMARY KEY,
	release TEXT    NOT NULL,
	digest  TEXT    NOT NULL,
	told_us BIGINT NOT NULL,
	result  TEXT    NOT NULL -- "" = not back yet
);

-- How many bots a bootstrap token may still bring in.
ALTER TABLE tokens ADD COLUMN uses_left BIGINT NOT NULL DEFAULT 0;
