-- Who may do what: namespaces with their quotas, tokens, and the log of who changed what.

-- A quota that is null is none.
CREATE TABLE namespaces (
    name              TEXT PRIMARY KEY,
    plugins           INTEGER,
    bytes             INTEGER,
    runs_per_second   INTEGER,
    concurrent_runs   INTEGER,
    cpu_ms_per_minute INTEGER,
    created_at        INTEGER NOT NULL
);
INSERT INTO namespaces (name, created_at)
SELECT name, unixepoch() * 1000 FROM (
    SELECT 'default' AS name UNION SELECT namespace FROM plugin_versions UNION SELECT namespace FROM pipelines
) AS used;

-- The token itself is nowhere: `hash` is its SHA-256. A namespace that is null is all of them.
CREATE TABLE tokens (
    id           TEXT PRIMARY KEY,
    name         TEXT NOT NULL,
    hash         TEXT NOT NULL UNIQUE,
    role         TEXT NOT NULL,
    namespace    TEXT REFERENCES namespaces (name),
    created_by   TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER,
    last_used_at INTEGER
);

-- Rows are inserted with the change that they tell of, and deleted when they are old; never updated.
CREATE TABLE audit (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    at        INTEGER NOT NULL,
    who       TEXT NOT NULL,
    who_name  TEXT NOT NULL,
    action    TEXT NOT NULL,
    namespace TEXT,
    subject   TEXT NOT NULL,
    digest    TEXT,
    revision  INTEGER,
    outcome   TEXT NOT NULL
);
CREATE INDEX audit_by_namespace ON audit (namespace, id);
CREATE INDEX audit_by_time ON audit (at);

-- `access` grows with every change of namespaces or tokens.
ALTER TABLE catalog_state ADD COLUMN access INTEGER NOT NULL DEFAULT 0;
