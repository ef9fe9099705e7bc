-- Who may do what: namespaces with their quotas, tokens, and the log of who changed what.

-- A quota that is null is none.
CREATE TABLE namespaces (
    name              TEXT COLLATE "C" PRIMARY KEY,
    plugins           BIGINT,
    bytes             BIGINT,
    runs_per_second   BIGINT,
    concurrent_runs   BIGINT,
    cpu_ms_per_minute BIGINT,
    created_at        BIGINT NOT NULL
);
INSERT INTO namespaces (name, created_at)
SELECT name, (EXTRACT(EPOCH FROM now()) * 1000)::BIGINT FROM (
    SELECT 'default' AS name UNION SELECT namespace FROM plugin_versions UNION SELECT namespace FROM pipelines
) AS used;

-- The token itself is nowhere: `hash` is its SHA-256. A namespace that is null is all of them.
CREATE TABLE tokens (
    id           TEXT COLLATE "C" PRIMARY KEY,
    name         TEXT NOT NULL,
    hash         TEXT COLLATE "C" NOT NULL UNIQUE,
    role         TEXT NOT NULL,
    namespace    TEXT COLLATE "C" REFERENCES namespaces (name),
    created_by   TEXT NOT NULL,
    created_at   BIGINT NOT NULL,
    expires_at   BIGINT,
    last_used_at BIGINT
);

-- Rows are inserted with the change that they tell of, and deleted when they are old; never updated.
CREATE TABLE audit (
    id        BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at        BIGINT NOT NULL,
    who       TEXT NOT NULL,
    who_name  TEXT NOT NULL,
    action    TEXT NOT NULL,
    namespace TEXT COLLATE "C",
    subject   TEXT NOT NULL,
    digest    TEXT,
    revision  BIGINT,
    outcome   TEXT NOT NULL
);
CREATE INDEX audit_by_namespace ON audit (namespace, id);
CREATE INDEX audit_by_time ON audit (at);

-- `access` grows with every change of namespaces or tokens.
ALTER TABLE catalog_state ADD COLUMN access BIGINT NOT NULL DEFAULT 0;
