-- What bounds how much of the catalog one namespace can fill.

-- How many pipelines a namespace may keep; null is none of its own.
ALTER TABLE namespaces ADD COLUMN pipelines INTEGER;

-- Rows of pipelines that were deleted long ago go. What stays is the highest revision that any of a namespace's had, after which
-- a new name starts, and the generation up to which hosts cannot be told any more which pipelines were deleted.
CREATE TABLE retired_pipelines (
    namespace  TEXT PRIMARY KEY,
    revision   INTEGER NOT NULL,
    generation INTEGER NOT NULL
);

-- Counting them must not take longer the larger their rows are.
CREATE INDEX pipelines_live ON pipelines (namespace) WHERE deleted_at IS NULL;
CREATE INDEX pipelines_deleted ON pipelines (namespace, generation) WHERE deleted_at IS NOT NULL;
