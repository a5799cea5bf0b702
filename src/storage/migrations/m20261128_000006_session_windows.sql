-- What the providers of accounts last said about their session windows. The server writes what it holds
-- in memory; the rows are read when it starts, and by the commands.
CREATE TABLE account_session_windows (
    account_id         INTEGER NOT NULL PRIMARY KEY REFERENCES accounts (id),
    status             TEXT NOT NULL,
    starts_at          INTEGER,                  -- NULL = not told, as the end
    ends_at            INTEGER,
    used_permille      INTEGER,                  -- of the window
    week_used_permille INTEGER,                  -- of the seven days
    seen_at            INTEGER NOT NULL
) STRICT;
