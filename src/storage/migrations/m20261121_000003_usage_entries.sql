-- A usage record is one row of `usage_entries` and one of `usage_contexts`, which it shares with
-- all records that say the same of who asked, where it went and how it ended. `usage_records` stays
-- as it was for an older program that still writes to it; nothing reads it any more.

CREATE TABLE usage_contexts (
    id           INTEGER NOT NULL PRIMARY KEY,
    -- JSON object, written by storage/context.rs: names as they were at the time, beside the ids.
    details      TEXT NOT NULL UNIQUE,
    -- What queries ask for.
    user_name    TEXT NOT NULL GENERATED ALWAYS AS (details ->> 'user') STORED,
    api_key_id   INTEGER NOT NULL GENERATED ALWAYS AS (details ->> 'api_key_id') STORED,
    api_key_name TEXT NOT NULL GENERATED ALWAYS AS (details ->> 'api_key') STORED,
    group_name   TEXT NOT NULL GENERATED ALWAYS AS (details ->> 'group') STORED,
    account_name TEXT NOT NULL GENERATED ALWAYS AS (details ->> 'account') STORED,
    model        TEXT NOT NULL GENERATED ALWAYS AS (details ->> 'model') STORED,
    billing_type TEXT NOT NULL GENERATED ALWAYS AS (details ->> 'billing_type') STORED
) STRICT;

-- No foreign keys: a record is history and stands by itself. Contexts are never deleted.
CREATE TABLE usage_entries (
    id                       INTEGER NOT NULL PRIMARY KEY,
    request_id               TEXT NOT NULL UNIQUE,
    created_at               INTEGER NOT NULL,
    user_id                  INTEGER NOT NULL,
    context_id               INTEGER NOT NULL,
    client_request_id        TEXT,
    upstream_request_id      TEXT,
    ip                       TEXT,
    input_tokens             INTEGER NOT NULL,
    output_tokens            INTEGER NOT NULL,
    cache_creation_tokens    INTEGER NOT NULL,
    cache_creation_5m_tokens INTEGER NOT NULL,
    cache_creation_1h_tokens INTEGER NOT NULL,
    cache_read_tokens        INTEGER NOT NULL,
    image_output_tokens      INTEGER NOT NULL,
    image_count              INTEGER NOT NULL,
    cost_nanos               INTEGER NOT NULL,
    charge_nanos             INTEGER NOT NULL,
    duration_ms              INTEGER NOT NULL,
    first_token_ms           INTEGER,
    trail                    TEXT                -- JSON list of the attempts; NULL = one or none
) STRICT;
CREATE INDEX usage_entries_by_time ON usage_entries (created_at);
CREATE INDEX usage_entries_by_user ON usage_entries (user_id, created_at);

-- Whatever is in the old table, or is put there by an older program that is still running.
CREATE VIEW usage_records_in_context AS
SELECT *, json_object(
    'user_id', user_id, 'user', user_name, 'api_key_id', api_key_id, 'api_key', api_key_name,
    'group_id', group_id, 'group', group_name, 'fallback_from_group', fallback_from_group,
    'account_id', account_id, 'account', account_name, 'platform', platform,
    'endpoint', endpoint, 'upstream_endpoint', upstream_endpoint,
    'requested_model', requested_model, 'model', model, 'upstream_model', upstream_model,
    'model_mapping_chain', model_mapping_chain, 'stream', json(iif(stream, 'true', 'false')),
    'status', status, 'outcome', outcome,
    'rate_multiplier_millionths', rate_multiplier_millionths, 'billing_type', billing_type,
    'service_tier', service_tier, 'reasoning_effort', reasoning_effort,
    'attempts', attempts, 'account_switches', account_switches, 'usage_source', usage_source,
    'client_disconnected', json(iif(client_disconnected, 'true', 'false')), 'user_agent', user_agent
) AS details
FROM usage_records;

INSERT INTO usage_contexts (details)
SELECT DISTINCT details FROM usage_records_in_context;

INSERT INTO usage_entries
SELECT r.id, r.request_id, r.created_at, r.user_id, c.id, r.client_request_id,
       r.upstream_request_id, r.ip, r.input_tokens, r.output_tokens, r.cache_creation_tokens,
       r.cache_creation_5m_tokens, r.cache_creation_1h_tokens, r.cache_read_tokens,
       r.image_output_tokens, r.image_count, r.cost_nanos, r.charge_nanos, r.duration_ms,
       r.first_token_ms, NULL
FROM usage_records_in_context r JOIN usage_contexts c ON c.details = r.details
ORDER BY r.id;

CREATE TRIGGER usage_records_carried_over AFTER INSERT ON usage_records
BEGIN
    INSERT INTO usage_contexts (details)
    SELECT details FROM usage_records_in_context WHERE id = NEW.id
    ON CONFLICT (details) DO NOTHING;
    INSERT INTO usage_entries
    SELECT NULL, r.request_id, r.created_at, r.user_id, c.id, r.client_request_id,
           r.upstream_request_id, r.ip, r.input_tokens, r.output_tokens, r.cache_creation_tokens,
           r.cache_creation_5m_tokens, r.cache_creation_1h_tokens, r.cache_read_tokens,
           r.image_output_tokens, r.image_count, r.cost_nanos, r.charge_nanos, r.duration_ms,
           r.first_token_ms, NULL
    FROM usage_records_in_context r JOIN usage_contexts c ON c.details = r.details
    WHERE r.id = NEW.id
    ON CONFLICT (request_id) DO NOTHING;
END;

-- The ledger once more, with every row and rule as it was: but for `kind IN (…)` SQLite builds a
-- table of the four words for every row it checks, which was a third of the cost of an entry.
DROP TRIGGER ledger_entries_no_update;
DROP TRIGGER ledger_entries_no_delete;
CREATE TABLE ledger_entries_new (
    id           INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    user_id      INTEGER NOT NULL REFERENCES users (id),
    kind         TEXT NOT NULL
        CHECK (kind = 'charge' OR kind = 'credit' OR kind = 'adjustment' OR kind = 'reversal'),
    amount_nanos INTEGER NOT NULL,
    request_id   TEXT,
    note         TEXT,
    created_at   INTEGER NOT NULL,
    CHECK (kind <> 'charge' OR request_id IS NOT NULL)
) STRICT;
INSERT INTO ledger_entries_new SELECT * FROM ledger_entries ORDER BY id;
DROP TABLE ledger_entries;
ALTER TABLE ledger_entries_new RENAME TO ledger_entries;
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
