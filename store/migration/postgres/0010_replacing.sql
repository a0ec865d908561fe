-- Pools whose outdated machines an operator has replaced.
ALTER TABLE machine_pools ADD COLUMN replacing BIGINT NOT NULL DEFAULT 0; -- 1 = until none is outdated
