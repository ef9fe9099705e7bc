-- The catalog: plugins, their bytes, pipelines and their revisions. Times are milliseconds since 1970 (UTC), JSON is text.
-- Names sort by their bytes ("C"), as they do in SQLite: list cursors depend on it.

-- Component bytes, by digest. They live beside the rows that name them, so that an upload is one transaction.
CREATE TABLE blobs (
    digest TEXT COLLATE "C" PRIMARY KEY,
    size   BIGINT NOT NULL,
    bytes  BYTEA NOT NULL
);

-- A version is immutable: a row is inserted and deleted, never updated.
CREATE TABLE plugin_versions (
    namespace  TEXT COLLATE "C" NOT NULL,
    name       TEXT COLLATE "C" NOT NULL,
    version    TEXT COLLATE "C" NOT NULL,
    digest     TEXT COLLATE "C" NOT NULL REFERENCES blobs (digest),
    world      TEXT NOT NULL,
    imports    TEXT NOT NULL,
    exports    TEXT NOT NULL,
    size       BIGINT NOT NULL,
    compile_ms BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (namespace, name, version)
);
CREATE INDEX plugin_versions_by_digest ON plugin_versions (digest);

-- The row outlives its pipeline, so that revision numbers never restart.
CREATE TABLE pipelines (
    namespace  TEXT COLLATE "C" NOT NULL,
    name       TEXT COLLATE "C" NOT NULL,
    revision   BIGINT NOT NULL,
    deleted_at BIGINT,
    PRIMARY KEY (namespace, name)
);

-- A revision is immutable; all go when their pipeline is deleted. `steps` holds what each plugin step was pinned to.
CREATE TABLE pipeline_revisions (
    namespace    TEXT COLLATE "C" NOT NULL,
    name         TEXT COLLATE "C" NOT NULL,
    revision     BIGINT NOT NULL,
    source       TEXT NOT NULL,
    content_type TEXT NOT NULL,
    document     TEXT NOT NULL,
    steps        TEXT NOT NULL,
    created_at   BIGINT NOT NULL,
    PRIMARY KEY (namespace, name, revision),
    FOREIGN KEY (namespace, name) REFERENCES pipelines (namespace, name)
);

-- The plugin versions that current revisions pin: a version listed here cannot be deleted.
CREATE TABLE pipeline_plugins (
    namespace TEXT COLLATE "C" NOT NULL,
    pipeline  TEXT COLLATE "C" NOT NULL,
    plugin    TEXT COLLATE "C" NOT NULL,
    version   TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (namespace, pipeline, plugin, version),
    FOREIGN KEY (namespace, pipeline) REFERENCES pipelines (namespace, name),
    FOREIGN KEY (namespace, plugin, version) REFERENCES plugin_versions (namespace, name, version)
);
CREATE INDEX pipeline_plugins_by_version ON pipeline_plugins (namespace, plugin, version);

-- One row: a number that grows with every change, by which hosts notice each other's.
CREATE TABLE catalog_state (
    id         BIGINT PRIMARY KEY CHECK (id = 1),
    generation BIGINT NOT NULL
);
INSERT INTO catalog_state (id, generation) VALUES (1, 0);
