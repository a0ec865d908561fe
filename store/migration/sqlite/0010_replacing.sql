-- Pools whose outdated machines an operator has replaced.
ALTER TABLE machine_pools ADD COLUMN replacing INTEGER NOT NULL DEFAULT 0; -- 1 = until none is outdated
