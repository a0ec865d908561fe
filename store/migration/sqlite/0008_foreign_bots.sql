-- The Swarming server of a machine's bot, as a URL; '' = this fleet's.
ALTER TABLE vms ADD COLUMN server TEXT NOT NULL DEFAULT '';
CREATE INDEX vms_by_server ON vms (server, id) WHERE server <> '';

-- What other servers said last of the bots of machines.
CREATE TABLE foreign_bots (
	server        TEXT    NOT NULL,
	id            TEXT    NOT NULL,
	known         INTEGER NOT NULL, -- 0 = it has no such bot
	first_seen_us INTEGER NOT NULL,
	last_seen_us  INTEGER NOT NULL,
	dead          INTEGER NOT NULL,
	terminated    INTEGER NOT NULL, -- it was told to end, and did
	task          INTEGER NOT NULL, -- 0 = it has none
	heard_us      INTEGER NOT NULL, -- when the server was asked
	PRIMARY KEY (server, id)
) WITHOUT ROWID;

-- Other servers that were asked.
CREATE TABLE foreign_servers (
	server   TEXT PRIMARY KEY,
	since_us INTEGER NOT NULL -- it answers since then; 0 = it does not
) WITHOUT ROWID;
