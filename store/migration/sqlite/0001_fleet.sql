-- Instants are microseconds since 1970 UTC, 0 = never. JSON is text that Go parses.
CREATE TABLE meta (
	key   TEXT PRIMARY KEY,
	value TEXT NOT NULL
) WITHOUT ROWID;

-- What was asked for; never changes.
CREATE TABLE task_requests (
	id     INTEGER PRIMARY KEY,
	body   TEXT NOT NULL,
	secret BLOB
);

-- Everything about a task that changes. States are the numbers of the wire: 32 pending, 16 running.
CREATE TABLE tasks (
	id            INTEGER PRIMARY KEY,
	state         INTEGER NOT NULL,
	waits         INTEGER NOT NULL, -- 1 = pending; apart from state, as an update of what an index asks for is a dear one
	slice         INTEGER NOT NULL,
	priority      INTEGER NOT NULL,
	queue         INTEGER NOT NULL,
	expires_us    INTEGER NOT NULL,
	modified_us   INTEGER NOT NULL,
	started_us    INTEGER NOT NULL DEFAULT 0,
	ended_us      INTEGER NOT NULL DEFAULT 0,
	abandon_us    INTEGER NOT NULL DEFAULT 0,
	contact_us    INTEGER NOT NULL DEFAULT 0,
	tolerance_us  INTEGER NOT NULL,
	killing       INTEGER NOT NULL DEFAULT 0,
	bot           TEXT    NOT NULL DEFAULT '',
	bot_prev      INTEGER NOT NULL DEFAULT 0, -- the task that the bot took before this one
	claim_key     TEXT    NOT NULL DEFAULT '',
	claim         TEXT    NOT NULL DEFAULT '',
	claim_dims    INTEGER NOT NULL DEFAULT 0, -- the bot's, in dimension_sets
	exit_code     INTEGER,
	duration_secs REAL,
	failure       INTEGER NOT NULL DEFAULT 0,
	internal      INTEGER NOT NULL DEFAULT 0,
	fault         TEXT    NOT NULL DEFAULT '',
	cost_usd      REAL    NOT NULL DEFAULT 0,
	output_bytes  INTEGER NOT NULL DEFAULT 0,
	outcome       TEXT    NOT NULL DEFAULT '',
	versions      TEXT    NOT NULL DEFAULT '',
	tags          INTEGER NOT NULL DEFAULT 0, -- in tag_sets; 0 = none
	parent        INTEGER NOT NULL DEFAULT 0,
	children      INTEGER NOT NULL DEFAULT 0  -- 1 = it may have started others
);
CREATE INDEX tasks_pending  ON tasks (queue, priority, id) WHERE waits = 1;
CREATE INDEX tasks_expiring ON tasks (expires_us) WHERE waits = 1;
CREATE INDEX tasks_of_parent ON tasks (parent) WHERE parent <> 0;

-- Sets of tags that tasks have. Most tasks share theirs with many others, so a
-- new task seldom touches these; a set is named by the SHA-256 of its tags.
CREATE TABLE tag_sets (
	id      INTEGER PRIMARY KEY,
	members TEXT    NOT NULL, -- the tags as task_tags has them, for deleting them
	used_us INTEGER NOT NULL  -- within a day
);
CREATE INDEX tag_sets_used ON tag_sets (used_us);

-- Which sets hold a tag; a tag is the first 63 bits of its SHA-256.
CREATE TABLE task_tags (
	tag  INTEGER NOT NULL,
	tags INTEGER NOT NULL, -- in tag_sets
	PRIMARY KEY (tag, tags)
) WITHOUT ROWID;

-- Output in pieces that never overlap. They are appended: in a tree of their
-- own key each piece of a kilobyte would take a page.
CREATE TABLE task_output (
	task  INTEGER NOT NULL,
	start INTEGER NOT NULL,
	data  BLOB    NOT NULL,
	PRIMARY KEY (task, start)
);

-- Calls of NewTask that may be repeated.
CREATE TABLE request_uuids (
	caller     TEXT    NOT NULL,
	uuid       TEXT    NOT NULL,
	task       INTEGER NOT NULL,
	expires_us INTEGER NOT NULL,
	PRIMARY KEY (caller, uuid)
) WITHOUT ROWID;

-- Every set of demands that tasks had lately.
CREATE TABLE queues (
	id         INTEGER PRIMARY KEY,
	dimensions TEXT    NOT NULL,
	expires_us INTEGER NOT NULL
);

-- Live records. A bot's events are a chain, and so are its tasks: each row names
-- the one before it, and the record names the last. An index over all bots
-- would have every new entry on another page.
CREATE TABLE bots (
	id            TEXT PRIMARY KEY,
	dims          INTEGER NOT NULL, -- in dimension_sets
	snapshot      INTEGER NOT NULL, -- in bot_snapshots: who it is
	first_seen_us INTEGER NOT NULL,
	last_seen_us  INTEGER NOT NULL,
	idle_us       INTEGER NOT NULL,
	task          INTEGER NOT NULL,
	task_name     TEXT    NOT NULL,
	quarantined   TEXT    NOT NULL,
	maintenance   TEXT    NOT NULL,
	dead          INTEGER NOT NULL,
	terminated    INTEGER NOT NULL,
	last_event    TEXT    NOT NULL,
	last_seq      INTEGER NOT NULL, -- in bot_events; 0 = none
	prev_seq      INTEGER NOT NULL DEFAULT 0, -- what last_seq was before
	last_task     INTEGER NOT NULL, -- in tasks; 0 = none
	prev_task     INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

-- Where the chains of bots without a record begin.
CREATE TABLE bot_history (
	bot       TEXT PRIMARY KEY,
	last_seq  INTEGER NOT NULL,
	prev_seq  INTEGER NOT NULL,
	last_task INTEGER NOT NULL
) WITHOUT ROWID;

-- Dimensions that bots had, shared by their records, snapshots and claims.
CREATE TABLE dimension_sets (
	id         INTEGER PRIMARY KEY,
	dimensions TEXT    NOT NULL,
	used_us    INTEGER NOT NULL -- within a day
);

-- What bots said of themselves on some day, shared by their records and events.
CREATE TABLE bot_snapshots (
	id            INTEGER PRIMARY KEY,
	dims          INTEGER NOT NULL, -- in dimension_sets
	version       TEXT    NOT NULL,
	session       TEXT    NOT NULL,
	ip            TEXT    NOT NULL,
	authenticated TEXT    NOT NULL,
	state         TEXT    NOT NULL, -- the last of that day
	used_us       INTEGER NOT NULL -- within a day
);

CREATE TABLE bot_events (
	seq           INTEGER PRIMARY KEY, -- by time, see Tx.nextSeq
	prev          INTEGER NOT NULL, -- the bot's event before this one; 0 = none
	bot           TEXT    NOT NULL,
	at_us         INTEGER NOT NULL,
	type          TEXT    NOT NULL,
	message       TEXT    NOT NULL,
	task          INTEGER NOT NULL,
	snapshot      INTEGER NOT NULL, -- in bot_snapshots
	quarantined   TEXT    NOT NULL,
	maintenance   TEXT    NOT NULL
);

-- API tokens; only their hashes are kept.
CREATE TABLE tokens (
	id         TEXT PRIMARY KEY,
	hash       BLOB    NOT NULL,
	name       TEXT    NOT NULL,
	scope      TEXT    NOT NULL,
	bots       TEXT    NOT NULL,
	created_us INTEGER NOT NULL,
	expires_us INTEGER NOT NULL,
	revoked_us INTEGER NOT NULL
) WITHOUT ROWID;
