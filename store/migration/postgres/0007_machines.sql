-- Declared pools of machines, with the last good version of each.
CREATE TABLE machine_pools (
	prefix       TEXT PRIMARY KEY,
	config       TEXT    NOT NULL, -- JSON
	kind         TEXT    NOT NULL, -- of cloud
	shape        TEXT    NOT NULL, -- digest of what its machines are made from
	revision     TEXT    NOT NULL,
	amount       BIGINT NOT NULL, -- how many are wanted now
	duts         TEXT    NOT NULL, -- JSON: devices that have one each; they replace the amount
	generation   BIGINT NOT NULL, -- the last one that was given to a machine
	held         BIGINT NOT NULL, -- 1 = an operator wants none of its machines for now
	removed_us   BIGINT NOT NULL, -- 0 = it is declared; else it goes with its last machine
	error_class  TEXT    NOT NULL,
	error_reason TEXT    NOT NULL,
	error_text   TEXT    NOT NULL,
	error_code   BIGINT NOT NULL,
	error_us     BIGINT NOT NULL,
	failures     BIGINT NOT NULL, -- that paused it, since the last machine was made
	paused_us    BIGINT NOT NULL  -- nothing is made before
);

-- Machines that are wanted, exist or are being taken away.
CREATE TABLE vms (
	id           TEXT PRIMARY KEY,
	prefix       TEXT    NOT NULL,
	kind         TEXT    NOT NULL,
	idx          BIGINT NOT NULL, -- within its pool; -1 = it is a device's
	dut          TEXT    NOT NULL,
	hostname     TEXT    NOT NULL, -- of the instance, and id of its bot
	generation   BIGINT NOT NULL, -- grows with each plan, so that a hostname may be used again
	attributes   TEXT    NOT NULL, -- JSON, frozen
	images       TEXT    NOT NULL, -- short names of its disks' images, a line each
	project      TEXT    NOT NULL,
	zone         TEXT    NOT NULL,
	shape        TEXT    NOT NULL,
	scaling      TEXT    NOT NULL,
	revision     TEXT    NOT NULL,
	swarming     TEXT    NOT NULL,
	lifetime_us  BIGINT NOT NULL,
	timeout_us   BIGINT NOT NULL,
	expanded_us  BIGINT NOT NULL,
	inserted_us  BIGINT NOT NULL, -- the cloud was asked; 0 = never
	created_us   BIGINT NOT NULL, -- by the cloud's clock; 0 = no instance is known
	connected_us BIGINT NOT NULL,
	missing_us   BIGINT NOT NULL, -- its bot was there and is not since then
	retire_us    BIGINT NOT NULL, -- to be replaced from then on, before its lifetime is over
	drained      BIGINT NOT NULL, -- not wanted any more; never taken back
	asked_us     BIGINT NOT NULL, -- its bot was asked to end
	asked_task   BIGINT NOT NULL, -- by this task
	deleting_us  BIGINT NOT NULL,
	gone_us      BIGINT NOT NULL, -- there is no instance any more
	url          TEXT    NOT NULL,
	networks     TEXT    NOT NULL, -- JSON
	error_class  TEXT    NOT NULL,
	error_text   TEXT    NOT NULL,
	error_us     BIGINT NOT NULL
);
CREATE UNIQUE INDEX vms_by_hostname ON vms (hostname);
CREATE INDEX vms_by_prefix ON vms (prefix, idx);

-- Who looks after which pool, where several providers share a database.
CREATE TABLE provider_leases (
	name       TEXT PRIMARY KEY,
	holder     TEXT    NOT NULL,
	generation BIGINT NOT NULL,
	until_us   BIGINT NOT NULL
);
