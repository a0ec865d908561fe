-- Bots whose last download of code had another digest than they were told.
CREATE TABLE bot_mismatches (
	bot TEXT PRIMARY KEY
) WITHOUT ROWID;
