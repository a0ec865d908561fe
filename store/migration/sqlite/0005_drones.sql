-- Hosts that run bots of devices, each with a lease of all that it has.
CREATE TABLE drones (
	uuid        TEXT PRIMARY KEY,
	reg_key     TEXT    NOT NULL, -- chosen by the drone when it registered, "" = none
	description TEXT    NOT NULL,
	hive        TEXT    NOT NULL,
	version     TEXT    NOT NULL,
	capacity    INTEGER NOT NULL,
	expires_us  INTEGER NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX drones_by_key ON drones (reg_key) WHERE reg_key <> '';
CREATE INDEX drones_by_expiry ON drones (expires_us);

-- Devices, and whose they are.
CREATE TABLE duts (
	name    TEXT PRIMARY KEY,
	hive    TEXT    NOT NULL,
	drone   TEXT    NOT NULL, -- "" = nobody's
	gone    INTEGER NOT NULL, -- 1 = no inventory names it; deleted when it is nobody's
	leaving INTEGER NOT NULL, -- 1 = to be drained by its drone and given to another
	generation INTEGER NOT NULL -- grows with each assignment: a late release names an older one
) WITHOUT ROWID;
CREATE INDEX duts_by_drone ON duts (drone, hive);
