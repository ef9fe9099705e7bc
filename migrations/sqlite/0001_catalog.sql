-- The catalog: plugins, their bytes, pipelines and their revisions. Times are milliseconds since 1970 (UTC), JSON is text.

-- Component bytes, by digest. They live beside the rows that name them, so that an upload is one transaction.
CREATE TABLE blobs (
    digest TEXT PRIMARY KEY,
    size   INTEGER NOT NULL,
    bytes  BLOB NOT NULL
);

-- A version is immutable: a row is inserted and deleted, never updated.
CREATE TABLE plugin_versions (
    namespace  TEXT NOT NULL,
    name       TEXT NOT NULL,
    version    TEXT NOT NULL,
    digest     TEXT NOT NULL REFERENCES blobs (digest),
    world      TEXT NOT NULL,
    imports    TEXT NOT NULL,
    exports    TEXT NOT NULL,
    size       INTEGER NOT NULL,
    compile_ms INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, name, version)
);
CREATE INDEX plugin_versions_by_digest ON plugin_versions (digest);

-- The row outlives its pipeline, so that revision numbers never restart.
CREATE TABLE pipelines (
    namespace  TEXT NOT NULL,
    name       TEXT NOT NULL,
    revision   INTEGER NOT NULL,
    deleted_at INTEGER,
    PRIMARY KEY (namespace, name)
);

-- A revision is immutable; all go when their pipeline is deleted. `steps` holds what each plugin step was pinned to.
CREATE TABLE pipeline_revisions (
    namespace    TEXT NOT NULL,
    name         TEXT NOT NULL,
    revision     INTEGER NOT NULL,
    source       TEXT NOT NULL,
    content_type TEXT NOT NULL,
    document     TEXT NOT NULL,
    steps        TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    PRIMARY KEY (namespace, name, revision),
    FOREIGN KEY (namespace, name) REFERENCES pipelines (namespace, name)
);

-- The plugin versions that current revisions pin: a version listed here cannot be deleted.
CREATE TABLE pipeline_plugins (
    namespace TEXT NOT NULL,
    pipeline  TEXT NOT NULL,
    plugin    TEXT NOT NULL,
    version   TEXT NOT NULL,
    PRIMARY KEY (namespace, pipeline, plugin, version),
    FOREIGN KEY (namespace, pipeline) REFERENCES pipelines (namespace, name),
    FOREIGN KEY (namespace, plugin, version) REFERENCES plugin_versions (namespace, name, version)
);
CREATE INDEX pipeline_plugins_by_version ON pipeline_plugins (namespace, plugin, version);

-- One row: a number that grows with every change, by which hosts notice each other's.
CREATE TABLE catalog_state (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    generation INTEGER NOT NULL
);
INSERT INTO catalog_state (id, generation) VALUES (1, 0);
