-- Bots of other servers that are there and take no tasks.
ALTER TABLE foreign_bots ADD COLUMN ill INTEGER NOT NULL DEFAULT 0; -- 1 = in quarantine or maintenance
