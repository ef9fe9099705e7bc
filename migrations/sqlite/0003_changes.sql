-- The generation in which each pipeline changed last, so that a host reads only what has changed since it looked last.
ALTER TABLE pipelines ADD COLUMN generation BIGINT NOT NULL DEFAULT 0;
CREATE INDEX pipelines_by_generation ON pipelines (generation);
