-- Units: amounts in nano-dollars, multipliers in millionths, prices in femto-dollars, times in
-- milliseconds since 1970 UTC, flags 0 or 1, `options`, lists and mappings as JSON text.
-- STRICT makes SQLite refuse a float where a whole number belongs; an overflowing sum is one.

CREATE TABLE meta (
    key   TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
INSERT INTO meta (key, value) VALUES ('change_counter', '0');

CREATE TABLE groups (
    id                         INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    name                       TEXT NOT NULL UNIQUE,
    enabled                    INTEGER NOT NULL CHECK (enabled IN (0, 1)),
    platform                   TEXT NOT NULL,
    rate_multiplier_millionths INTEGER,          -- NULL = billing.default_rate_multiplier
    subscription_type          TEXT NOT NULL,
    daily_limit_nanos          INTEGER,
    weekly_limit_nanos         INTEGER,
    monthly_limit_nanos        INTEGER,
    rpm_limit                  INTEGER NOT NULL,
    options                    TEXT NOT NULL,
    created_at                 INTEGER NOT NULL
) STRICT;

CREATE TABLE accounts (
    id                         INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    name                       TEXT NOT NULL UNIQUE,
    enabled                    INTEGER NOT NULL CHECK (enabled IN (0, 1)),
    platform                   TEXT NOT NULL,
    account_type               TEXT NOT NULL,
    credentials_sealed         BLOB NOT NULL,
    concurrency                INTEGER NOT NULL,
    priority                   INTEGER NOT NULL,
    model_mapping              TEXT NOT NULL,
    rate_multiplier_millionths INTEGER NOT NULL,
    load_factor                INTEGER,
    schedulable                INTEGER NOT NULL CHECK (schedulable IN (0, 1)),
    expires_at                 INTEGER,
    proxy_sealed               BLOB,
    extra                      TEXT NOT NULL,
    paused                     INTEGER NOT NULL CHECK (paused IN (0, 1)),
    resumed_at                 INTEGER,
    created_at                 INTEGER NOT NULL
) STRICT;

CREATE TABLE account_groups (
    account_id INTEGER NOT NULL REFERENCES accounts (id),
    group_id   INTEGER NOT NULL REFERENCES groups (id),
    PRIMARY KEY (account_id, group_id)
) STRICT;
CREATE INDEX account_groups_by_group ON account_groups (group_id);

CREATE TABLE users (
    id            INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    name          TEXT NOT NULL UNIQUE,
    enabled       INTEGER NOT NULL CHECK (enabled IN (0, 1)),
    balance_nanos INTEGER NOT NULL,              -- always the sum of the user's ledger entries
    concurrency   INTEGER NOT NULL,
    rpm_limit     INTEGER NOT NULL,
    created_at    INTEGER NOT NULL
) STRICT;

CREATE TABLE user_group_multipliers (
    user_id               INTEGER NOT NULL REFERENCES users (id),
    group_id              INTEGER NOT NULL REFERENCES groups (id),
    multiplier_millionths INTEGER NOT NULL,
    PRIMARY KEY (user_id, group_id)
) STRICT;

CREATE TABLE api_keys (
    id                  INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    name                TEXT NOT NULL UNIQUE,
    enabled             INTEGER NOT NULL CHECK (enabled IN (0, 1)),
    key_hash            BLOB NOT NULL UNIQUE,    -- HMAC-SHA-256; the key itself is never stored
    hint                TEXT NOT NULL,
    user_id             INTEGER REFERENCES users (id),
    group_id            INTEGER REFERENCES groups (id),
    quota_nanos         INTEGER,
    quota_used_nanos    INTEGER NOT NULL,
    rate_limit_5h_nanos INTEGER,
    rate_limit_1d_nanos INTEGER,
    rate_limit_7d_nanos INTEGER,
    expires_at          INTEGER,
    ip_allow            TEXT NOT NULL,
    ip_deny             TEXT NOT NULL,
    created_at          INTEGER NOT NULL
) STRICT;
CREATE INDEX api_keys_by_user ON api_keys (user_id);

CREATE TABLE price_overrides (
    model TEXT NOT NULL PRIMARY KEY,
    -- JSON: the fields grow with what providers price
    price TEXT NOT NULL
) STRICT;

CREATE TABLE ledger_entries (
    id           INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    user_id      INTEGER NOT NULL REFERENCES users (id),
    kind         TEXT NOT NULL CHECK (kind IN ('credit', 'charge', 'adjustment', 'reversal')),
    amount_nanos INTEGER NOT NULL,
    request_id   TEXT,
    note         TEXT,
    created_at   INTEGER NOT NULL,
    CHECK (kind <> 'charge' OR request_id IS NOT NULL)
) STRICT;
CREATE INDEX ledger_entries_by_user ON ledger_entries (user_id, id);
-- A request is charged once and reversed at most once.
CREATE UNIQUE INDEX ledger_entries_once ON ledger_entries (request_id, kind)
    WHERE request_id IS NOT NULL;
CREATE TRIGGER ledger_entries_no_update BEFORE UPDATE ON ledger_entries
BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only');
END;
CREATE TRIGGER ledger_entries_no_delete BEFORE DELETE ON ledger_entries
BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only');
END;

-- No foreign keys: a record is history and stands by itself; names are kept beside the ids.
CREATE TABLE usage_records (
    id                         INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    request_id                 TEXT NOT NULL UNIQUE,
    client_request_id          TEXT,
    upstream_request_id        TEXT,
    created_at                 INTEGER NOT NULL,
    user_id                    INTEGER NOT NULL,
    user_name                  TEXT NOT NULL,
    api_key_id                 INTEGER NOT NULL,
    api_key_name               TEXT NOT NULL,
    group_id                   INTEGER NOT NULL,
    group_name                 TEXT NOT NULL,
    fallback_from_group        TEXT,
    account_id                 INTEGER NOT NULL,
    account_name               TEXT NOT NULL,
    platform                   TEXT NOT NULL,
    endpoint                   TEXT NOT NULL,
    upstream_endpoint          TEXT NOT NULL,
    requested_model            TEXT NOT NULL,
    model                      TEXT NOT NULL,
    upstream_model             TEXT NOT NULL,
    model_mapping_chain        TEXT,
    stream                     INTEGER NOT NULL,
    status                     INTEGER NOT NULL,
    outcome                    TEXT NOT NULL,
    input_tokens               INTEGER NOT NULL,
    output_tokens              INTEGER NOT NULL,
    cache_creation_tokens      INTEGER NOT NULL,
    cache_creation_5m_tokens   INTEGER NOT NULL,
    cache_creation_1h_tokens   INTEGER NOT NULL,
    cache_read_tokens          INTEGER NOT NULL,
    image_output_tokens        INTEGER NOT NULL,
    image_count                INTEGER NOT NULL,
    cost_nanos                 INTEGER NOT NULL,
    charge_nanos               INTEGER NOT NULL,
    rate_multiplier_millionths INTEGER NOT NULL,
    billing_type               TEXT NOT NULL,
    service_tier               TEXT,
    reasoning_effort           TEXT,
    attempts                   INTEGER NOT NULL,
    account_switches           INTEGER NOT NULL,
    duration_ms                INTEGER NOT NULL,
    first_token_ms             INTEGER,
    usage_source               TEXT NOT NULL,
    client_disconnected        INTEGER NOT NULL,
    ip                         TEXT,
    user_agent                 TEXT
) STRICT;
CREATE INDEX usage_records_by_time ON usage_records (created_at);
CREATE INDEX usage_records_by_user ON usage_records (user_id, created_at);
