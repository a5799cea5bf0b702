-- Units as in the first step: times in milliseconds since 1970 UTC, flags 0 or 1, lists as JSON text.

-- What keeps accounts from being chosen. The server writes what it holds in memory; the rows are
-- read when it starts, and by the commands.
CREATE TABLE account_conditions (
    account_id INTEGER NOT NULL REFERENCES accounts (id),
    kind       TEXT NOT NULL,
    model      TEXT NOT NULL,                    -- '' = every model
    reason     TEXT NOT NULL,
    status     INTEGER,                          -- the upstream's, where there was one
    since      INTEGER NOT NULL,
    until      INTEGER,                          -- NULL = until an operator lifts it
    PRIMARY KEY (account_id, kind, model)
) STRICT, WITHOUT ROWID;

-- Refusals that count towards the `error` condition, one row each.
CREATE TABLE account_strikes (
    account_id INTEGER NOT NULL REFERENCES accounts (id),
    struck_at  INTEGER NOT NULL
) STRICT;
CREATE INDEX account_strikes_by_account ON account_strikes (account_id);

-- Which account made a response. No foreign keys: one row for nearly every request, and a row that
-- refers to nothing is passed over.
CREATE TABLE response_bindings (
    group_id   INTEGER NOT NULL,
    key        BLOB NOT NULL CHECK (length(key) = 16),
    account_id INTEGER NOT NULL,
    used_at    INTEGER NOT NULL,
    PRIMARY KEY (group_id, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX response_bindings_by_use ON response_bindings (used_at);

CREATE TABLE error_passthrough_rules (
    id               INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    name             TEXT NOT NULL UNIQUE,
    enabled          INTEGER NOT NULL CHECK (enabled IN (0, 1)),
    priority         INTEGER NOT NULL,           -- lowest first
    error_codes      TEXT NOT NULL,
    keywords         TEXT NOT NULL,
    match_mode       TEXT NOT NULL,
    platforms        TEXT NOT NULL,
    passthrough_code INTEGER NOT NULL CHECK (passthrough_code IN (0, 1)),
    response_code    INTEGER,
    passthrough_body INTEGER NOT NULL CHECK (passthrough_body IN (0, 1)),
    custom_message   TEXT,
    skip_monitoring  INTEGER NOT NULL CHECK (skip_monitoring IN (0, 1)),
    description      TEXT NOT NULL,
    created_at       INTEGER NOT NULL
) STRICT;
