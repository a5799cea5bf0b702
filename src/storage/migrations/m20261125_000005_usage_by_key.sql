-- What a key has used, summed up, so that asking for it costs the same after a million requests as
-- after ten: `GET /v1/usage` reads these rows and never the records (but for the last minute).
-- By quarters of an hour, since the days of every time zone begin at one.
CREATE TABLE usage_by_key (
    api_key_id            INTEGER NOT NULL,
    quarter               INTEGER NOT NULL,      -- milliseconds since 1970 UTC, divided by 900,000
    model                 TEXT NOT NULL,
    requests              INTEGER NOT NULL,
    input_tokens          INTEGER NOT NULL,
    output_tokens         INTEGER NOT NULL,
    cache_creation_tokens INTEGER NOT NULL,
    cache_read_tokens     INTEGER NOT NULL,
    cost_nanos            INTEGER NOT NULL,
    charge_nanos          INTEGER NOT NULL,
    duration_ms           INTEGER NOT NULL,
    PRIMARY KEY (api_key_id, quarter, model)
) STRICT, WITHOUT ROWID;

INSERT INTO usage_by_key
SELECT c.api_key_id, e.created_at / 900000, c.model, COUNT(*), SUM(e.input_tokens),
       SUM(e.output_tokens), SUM(e.cache_creation_tokens), SUM(e.cache_read_tokens),
       SUM(e.cost_nanos), SUM(e.charge_nanos), SUM(e.duration_ms)
FROM usage_entries e CROSS JOIN usage_contexts c ON c.id = e.context_id
GROUP BY 1, 2, 3;
