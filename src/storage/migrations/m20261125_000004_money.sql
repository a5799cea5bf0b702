-- Units as in the first step: amounts in nano-dollars, times in milliseconds since 1970 UTC, flags
-- 0 or 1, lists and objects as JSON text.

CREATE TABLE subscriptions (
    id         INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    user_id    INTEGER NOT NULL REFERENCES users (id),
    group_id   INTEGER NOT NULL REFERENCES groups (id),
    starts_at  INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    status     TEXT NOT NULL,
    enabled    INTEGER NOT NULL CHECK (enabled IN (0, 1)),   -- 0 = refused, whatever the status
    created_at INTEGER NOT NULL,
    UNIQUE (user_id, group_id)
) STRICT;
CREATE INDEX subscriptions_by_group ON subscriptions (group_id);

CREATE TABLE channels (
    id         INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    name       TEXT NOT NULL UNIQUE,
    enabled    INTEGER NOT NULL CHECK (enabled IN (0, 1)),
    options    TEXT NOT NULL,                    -- mapping, restriction, which model is billed
    prices     TEXT NOT NULL,                    -- in femto-dollars; in the order of the resources
    created_at INTEGER NOT NULL
) STRICT;

-- A group has at most one channel.
CREATE TABLE channel_groups (
    group_id   INTEGER NOT NULL PRIMARY KEY REFERENCES groups (id),
    channel_id INTEGER NOT NULL REFERENCES channels (id)
) STRICT;
CREATE INDEX channel_groups_by_channel ON channel_groups (channel_id);

-- What windows have counted, as of the last settled batch; columns end in the window's name. A window
-- that is over keeps what it had until the next charge begins it anew; no start = nothing counted yet.
-- One row holds what is always read and written together. No foreign keys: they are folded from
-- records, and no record may ever stop those behind it.
CREATE TABLE key_windows (
    api_key_id INTEGER NOT NULL PRIMARY KEY,
    start_5h   INTEGER,
    used_5h    INTEGER NOT NULL,
    start_1d   INTEGER,
    used_1d    INTEGER NOT NULL,
    start_7d   INTEGER,
    used_7d    INTEGER NOT NULL
) STRICT;
CREATE TABLE subscription_windows (
    user_id   INTEGER NOT NULL,
    group_id  INTEGER NOT NULL,
    start_1d  INTEGER,
    used_1d   INTEGER NOT NULL,
    start_7d  INTEGER,
    used_7d   INTEGER NOT NULL,
    start_30d INTEGER,
    used_30d  INTEGER NOT NULL,
    PRIMARY KEY (user_id, group_id)
) STRICT, WITHOUT ROWID;
-- At the account's multiplier, whoever pays; its day and its week begin where its options say.
CREATE TABLE account_usage (
    account_id INTEGER NOT NULL PRIMARY KEY,
    total      INTEGER NOT NULL,
    start_day  INTEGER,
    used_day   INTEGER NOT NULL,
    start_week INTEGER,
    used_week  INTEGER NOT NULL
) STRICT;

-- Up to where each journal has been applied: written in the transaction that applies it.
CREATE TABLE journal_watermark (
    journal INTEGER NOT NULL PRIMARY KEY,        -- a random u64, its bits as an i64
    segment INTEGER NOT NULL,
    offset  INTEGER NOT NULL,
    turn    INTEGER NOT NULL                     -- the journal that was applied last has the highest
) STRICT;

-- A command that is repeated with the same key enters nothing twice.
ALTER TABLE ledger_entries ADD COLUMN idempotency_key TEXT;
-- Which command made the entry; NULL = a settled request, or from before this step.
ALTER TABLE ledger_entries ADD COLUMN command TEXT;
CREATE UNIQUE INDEX ledger_entries_by_idempotency_key ON ledger_entries (idempotency_key)
    WHERE idempotency_key IS NOT NULL;
