-- Which bots of pools with a circuit breaker say that they are ill, and whether
-- they are believed: what all servers of a fleet count by.
CREATE TABLE bot_illness (
	bot      TEXT PRIMARY KEY,
	pool     TEXT NOT NULL,
	held     INTEGER NOT NULL, -- 1 = not believed
	why      TEXT NOT NULL,    -- what the bot says, of those held
	since_us BIGINT NOT NULL   -- 0 = it was ill before anybody counted
);
CREATE INDEX bot_illness_pool ON bot_illness (pool, held, since_us);

-- How bots with the release that is rolled out are, over all servers that hear them.
ALTER TABLE rollout_bots ADD COLUMN tasks INTEGER NOT NULL DEFAULT 0;  -- ended since
ALTER TABLE rollout_bots ADD COLUMN failed INTEGER NOT NULL DEFAULT 0; -- of those, by a fault of the bot
ALTER TABLE rollout_bots ADD COLUMN ill INTEGER NOT NULL DEFAULT 0;    -- 1 = in quarantine
