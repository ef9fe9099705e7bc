use stepwell_core::Name;

use self::stored::{
    append, changes, check, forget, forgotten_since, head, no_pipeline, part, previous, readable,
    revision, sorted_out,
};
use crate::audit::Act;
use crate::db::{Value, now};
use crate::namespaces;
use crate::{
    Applied, Catalog, CatalogError, Change, NewRevision, Page, Paged, PipelineRevision,
    Precondition, Snapshot,
};

/// One revision as a whole, or `listed` ones without their sources.
macro_rules! select_revisions {
    (listed $rest:literal) => {
        select_revisions!("CAST(NULL AS TEXT)", $rest)
    };
    ($rest:literal) => {
        select_revisions!("r.source", $rest)
    };
    ($source:literal, $rest:literal) => {
        concat!(
            "SELECT r.namespace, r.name, r.revision, ",
            $source,
            ", r.content_type, r.document, r.steps, r.created_at FROM pipeline_revisions r ",
            $rest
        )
    };
}

/// What has changed after a generation, and what was deleted. Every change asks, more than once: in the order of generations, which
/// has an index, that takes the same time however many pipelines there are.
macro_rules! changed_since {
    () => {
        select_revisions!(
            listed "JOIN pipelines p ON p.namespace = r.namespace AND p.name = r.name AND p.revision = r.revision \
             WHERE p.deleted_at IS NULL AND p.generation > $1 ORDER BY p.generation"
        )
    };
}
macro_rules! deleted_since {
    () => {
        "SELECT namespace, name FROM pipelines \
         WHERE deleted_at IS NOT NULL AND generation > $1 ORDER BY generation"
    };
}

/// What tells a listed revision from others, and the bytes that it has.
macro_rules! select_sizes {
    ($key:literal, $rest:literal) => {
        concat!(
            "SELECT ",
            $key,
            ", CAST(octet_length(r.document) + octet_length(r.steps) AS BIGINT) FROM pipeline_revisions r ",
            $rest
        )
    };
}

// After the macros, which it takes from here.
mod stored;

impl Catalog {
    /// Makes this the current revision of a pipeline, unless it already is.
    ///
    /// # Errors
    /// [`CatalogError::Stale`] and [`CatalogError::Moved`] when the precondition does not hold, [`CatalogError::PluginsGone`]
    /// when it pins what is not there, [`CatalogError::QuotaExceeded`] when it is one pipeline too many.
    pub async fn put_pipeline(
        &self,
        namespace: &Name,
        name: &Name,
        new: &NewRevision,
        precondition: &Precondition,
    ) -> Result<Applied, CatalogError> {
        let mut tx = self.db.write().await?;
        let head = head(&mut tx, namespace, name).await?;
        check(&mut tx, precondition, head.current()).await?;
        if let Some(number) = head.current() {
            match revision(&mut tx, namespace, name, number).await {
                Ok(current) if current.document == new.document && current.steps == new.steps => {
                    return Ok(Applied {
                        change: Change::Unchanged,
                        revision: current,
                        generation: tx.generation().await?,
                    });
                }
                // What is damaged, or gone, is mended by the revision that takes its place.
                Ok(_) | Err(CatalogError::Corrupt(_) | CatalogError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let quotas = namespaces::quotas(&mut tx, namespace).await?;
        if head.current().is_none() {
            let most = quotas.pipelines.unwrap_or(self.limits.pipelines);
            namespaces::admit_pipeline(&mut tx, namespace, most).await?;
        }
        let action = ("pipeline.apply", &self.by);
        append(tx, namespace, name, &head, new, action, self.limits).await
    }

    /// Makes a new revision of an old one's document and pins; `to` is the old one, or none for the one before the current.
    ///
    /// # Errors
    /// As [`Catalog::put_pipeline`], and [`CatalogError::NotFound`].
    pub async fn rollback_pipeline(
        &self,
        namespace: &Name,
        name: &Name,
        to: Option<u64>,
        precondition: &Precondition,
    ) -> Result<Applied, CatalogError> {
        let mut tx = self.db.write().await?;
        let head = head(&mut tx, namespace, name).await?;
        check(&mut tx, precondition, head.current()).await?;
        let current = head.current().ok_or_else(|| no_pipeline(name))?;
        let to = match to {
            Some(number) => number,
            None => previous(&mut tx, namespace, name, current).await?,
        };
        let old = revision(&mut tx, namespace, name, to).await?;
        let new = NewRevision {
            source: old.source.unwrap_or_default(),
            content_type: old.content_type,
            document: old.document,
            steps: old.steps,
        };
        let action = ("pipeline.rollback", &self.by);
        append(tx, namespace, name, &head, &new, action, self.limits).await
    }

    /// The current revision of a pipeline.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] among them.
    pub async fn pipeline(
        &self,
        namespace: &Name,
        name: &Name,
    ) -> Result<PipelineRevision, CatalogError> {
        let mut tx = self.db.read().await?;
        let current = head(&mut tx, namespace, name).await?.current();
        let current = current.ok_or_else(|| no_pipeline(name))?;
        revision(&mut tx, namespace, name, current).await
    }

    /// The current revisions of a namespace's pipelines, in the order of their names, without those that cannot be read.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn pipelines(
        &self,
        namespace: &Name,
        page: &Page,
    ) -> Result<Paged<PipelineRevision>, CatalogError> {
        let limit = page.limit();
        let mut tx = self.db.read().await?;
        let after = Value::Text(page.cursor.as_deref().unwrap_or_default());
        let space = Value::Text(namespace.as_str());
        let sizes = tx
            .rows(
                select_sizes!(
                    "r.name",
                    "JOIN pipelines p ON p.namespace = r.namespace AND p.name = r.name AND p.revision = r.revision \
                     WHERE p.namespace = $1 AND p.name > $2 AND p.deleted_at IS NULL ORDER BY p.name LIMIT $3"
                ),
                &[space, after, Value::Int(limit as i64 + 1)],
            )
            .await?;
        let part = part(&sizes, limit)?;
        let rows = tx
            .rows(
                select_revisions!(
                    listed "JOIN pipelines p ON p.namespace = r.namespace AND p.name = r.name AND p.revision = r.revision \
                     WHERE p.namespace = $1 AND p.name > $2 AND p.deleted_at IS NULL ORDER BY p.name LIMIT $3"
                ),
                &[space, after, Value::Int(part as i64)],
            )
            .await?;
        let next = match sizes.get(part.saturating_sub(1)) {
            Some(last) if sizes.len() > part => Some(last.text(0)?),
            _ => None,
        };
        let items = readable(&rows);
        Ok(Paged { items, next })
    }

    /// Every pipeline's current revision, of all namespaces, at one moment; or only what has changed since a generation.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn snapshot(&self, since: Option<u64>) -> Result<Snapshot, CatalogError> {
        let mut tx = self.db.read().await?;
        let generation = tx.generation().await?;
        // A generation that is yet to come is another catalog's: this one was restored, or replaced.
        let since = since.filter(|since| *since <= generation);
        if since == Some(generation) {
            return Ok(Snapshot {
                generation,
                complete: false,
                pipelines: Vec::new(),
                unreadable: Vec::new(),
                deleted: Vec::new(),
            });
        }
        if let Some(since) = since
            && !forgotten_since(&mut tx, since).await?
        {
            return changes(&mut tx, generation, since).await;
        }
        let rows = tx
            .rows(
                select_revisions!(
                    listed "JOIN pipelines p ON p.namespace = r.namespace AND p.name = r.name AND p.revision = r.revision \
                     WHERE p.deleted_at IS NULL ORDER BY p.namespace, p.name"
                ),
                &[],
            )
            .await?;
        let (pipelines, unreadable) = sorted_out(&rows);
        Ok(Snapshot {
            generation,
            complete: true,
            pipelines,
            unreadable,
            deleted: Vec::new(),
        })
    }

    /// The revisions of a pipeline, the newest first, without those that cannot be read.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] among them. A cursor that this has not given out starts at the newest.
    pub async fn pipeline_revisions(
        &self,
        namespace: &Name,
        name: &Name,
        page: &Page,
    ) -> Result<Paged<PipelineRevision>, CatalogError> {
        let limit = page.limit();
        let below = page
            .cursor
            .as_deref()
            .and_then(|cursor| cursor.parse().ok())
            .unwrap_or(i64::MAX);
        let mut tx = self.db.read().await?;
        let current = head(&mut tx, namespace, name).await?.current();
        current.ok_or_else(|| no_pipeline(name))?;
        let (space, pipeline) = (Value::Text(namespace.as_str()), Value::Text(name.as_str()));
        let below = Value::Int(below);
        let sizes = tx
            .rows(
                select_sizes!(
                    "r.revision",
                    "WHERE r.namespace = $1 AND r.name = $2 AND r.revision < $3 \
                     ORDER BY r.revision DESC LIMIT $4"
                ),
                &[space, pipeline, below, Value::Int(limit as i64 + 1)],
            )
            .await?;
        let part = part(&sizes, limit)?;
        let rows = tx
            .rows(
                select_revisions!(
                    listed "WHERE r.namespace = $1 AND r.name = $2 AND r.revision < $3 \
                     ORDER BY r.revision DESC LIMIT $4"
                ),
                &[space, pipeline, below, Value::Int(part as i64)],
            )
            .await?;
        let next = match sizes.get(part.saturating_sub(1)) {
            Some(last) if sizes.len() > part => Some(last.int(0)?.to_string()),
            _ => None,
        };
        let items = readable(&rows);
        Ok(Paged { items, next })
    }

    /// One revision of a pipeline.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] among them.
    pub async fn pipeline_revision(
        &self,
        namespace: &Name,
        name: &Name,
        number: u64,
    ) -> Result<PipelineRevision, CatalogError> {
        let mut tx = self.db.read().await?;
        revision(&mut tx, namespace, name, number).await
    }

    /// Deletes a pipeline with all of its revisions; answers the new generation. Only its number stays, so that a later
    /// pipeline of the same name goes on counting; of pipelines that were deleted long before, only the highest number.
    ///
    /// # Errors
    /// [`CatalogError::Stale`] and [`CatalogError::Moved`] when the precondition does not hold, [`CatalogError::NotFound`].
    pub async fn delete_pipeline(
        &self,
        namespace: &Name,
        name: &Name,
        precondition: &Precondition,
    ) -> Result<u64, CatalogError> {
        let mut tx = self.db.write().await?;
        let head = head(&mut tx, namespace, name).await?;
        let current = head.current().ok_or_else(|| no_pipeline(name))?;
        check(&mut tx, precondition, Some(current)).await?;
        let key = [Value::Text(namespace.as_str()), Value::Text(name.as_str())];
        tx.execute(
            "DELETE FROM pipeline_plugins WHERE namespace = $1 AND pipeline = $2",
            &key,
        )
        .await?;
        tx.execute(
            "DELETE FROM pipeline_revisions WHERE namespace = $1 AND name = $2",
            &key,
        )
        .await?;
        let [space, pipeline] = key;
        tx.execute(
            "UPDATE pipelines SET deleted_at = $3, \
             generation = (SELECT generation + 1 FROM catalog_state WHERE id = 1) \
             WHERE namespace = $1 AND name = $2",
            &[space, pipeline, Value::Int(now())],
        )
        .await?;
        forget(&mut tx, namespace).await?;
        let act = Act::new(
            "pipeline.delete",
            Some(namespace),
            format!("pipeline {name}"),
        );
        tx.record(&self.by, act.at(current)).await?;
        tx.commit().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Location;

    #[tokio::test]
    async fn what_has_changed_is_found_without_a_look_at_all_pipelines() {
        let directory = tempfile::tempdir().unwrap();
        let location = Location::Sqlite(directory.path().join("catalog.sqlite"));
        let catalog = Catalog::new(&location).unwrap();
        let mut tx = catalog.db.read().await.unwrap();
        for explain in [
            concat!("EXPLAIN QUERY PLAN ", changed_since!()),
            concat!("EXPLAIN QUERY PLAN ", deleted_since!()),
        ] {
            let rows = tx.rows(explain, &[Value::Int(1)]).await.unwrap();
            let plan: Vec<String> = rows.iter().map(|row| row.text(3).unwrap()).collect();
            let plan = plan.join("; ");
            assert!(plan.contains("pipelines_by_generation"), "{plan}");
            assert!(!plan.contains("SCAN"), "{plan}");
        }
    }
}
