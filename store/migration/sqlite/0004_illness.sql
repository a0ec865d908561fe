-- Which bots of pools with a circuit breaker say that they are ill, and whether
-- they are believed: what all servers of a fleet count by.
CREATE TABLE bot_illness (
	bot      TEXT PRIMARY KEY,
	pool     TEXT NOT NULL,
	held     INTEGER NOT NULL, -- 1 = not believed
	why      TEXT NOT NULL,    -- what the bot says, of those held
	since_us INTEGER NOT NULL   -- 0 = it was ill before anybody counted
) WITHOUT ROWID;
CREATE INDEX bot_illness_pool ON bot_illness (pool, held, since_us);
