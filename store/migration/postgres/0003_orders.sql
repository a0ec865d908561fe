-- What operators told single bots: to take no new work, or none at all.
CREATE TABLE bot_orders (
	bot    TEXT PRIMARY KEY,
	orders TEXT NOT NULL -- JSON
);
