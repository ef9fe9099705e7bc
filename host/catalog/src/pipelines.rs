use std::collections::BTreeSet;

use stepwell_core::{Name, Principal};
use tracing::{error, warn};

use crate::audit::Act;
use crate::db::{Row, Tx, Value, now, signed};
use crate::namespaces;
use crate::{
    Applied, Catalog, CatalogError, CatalogLimits, Change, Expected, NewRevision, Page, Paged,
    PinnedStep, PipelineRevision, Precondition, Snapshot, Unreadable,
};

/// Bytes of the documents of one part of a list; a document that is larger than that is a part by itself.
const PART: u64 = 4 << 20;

/// How many deleted pipelines of a namespace are remembered one by one.
const DELETED: i64 = 1_000;

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

/// What is known of a pipeline's name.
enum Head {
    /// It was never used.
    None,
    /// A pipeline is there, at this revision.
    Live(u64),
    /// A pipeline was there, and got as far as this revision; or it may have been, and got no further.
    Deleted(u64),
}

impl Head {
    fn current(&self) -> Option<u64> {
        match self {
            Self::Live(number) => Some(*number),
            Self::None | Self::Deleted(_) => None,
        }
    }

    fn next(&self) -> u64 {
        match self {
            Self::None => 1,
            Self::Live(number) | Self::Deleted(number) => number + 1,
        }
    }
}

async fn head(tx: &mut Tx, namespace: &Name, name: &Name) -> Result<Head, CatalogError> {
    let row = tx
        .row(
            "SELECT revision, CASE WHEN deleted_at IS NULL THEN 'live' ELSE 'deleted' END \
             FROM pipelines WHERE namespace = $1 AND name = $2",
            &[Value::Text(namespace.as_str()), Value::Text(name.as_str())],
        )
        .await?;
    Ok(match row {
        None => match retired(tx, namespace).await? {
            0 => Head::None,
            number => Head::Deleted(number),
        },
        Some(row) if row.text(1)? == "live" => Head::Live(row.unsigned(0)?),
        Some(row) => Head::Deleted(row.unsigned(0)?),
    })
}

/// The highest revision of any pipeline of the namespace whose row is gone; 0: there is none.
async fn retired(tx: &mut Tx, namespace: &Name) -> Result<u64, CatalogError> {
    let row = tx
        .row(
            "SELECT revision FROM retired_pipelines WHERE namespace = $1",
            &[Value::Text(namespace.as_str())],
        )
        .await?;
    row.map_or(Ok(0), |row| row.unsigned(0))
}

/// Drops the rows of the pipelines that were deleted first, where there are more than [`DELETED`].
async fn forget(tx: &mut Tx, namespace: &Name) -> Result<(), CatalogError> {
    let space = Value::Text(namespace.as_str());
    let newest = tx
        .row(
            "SELECT generation FROM pipelines WHERE namespace = $1 AND deleted_at IS NOT NULL \
             ORDER BY generation DESC LIMIT 1 OFFSET $2",
            &[space, Value::Int(DELETED)],
        )
        .await?;
    let Some(newest) = newest else {
        return Ok(());
    };
    let newest = Value::Int(newest.int(0)?);
    tx.execute(
        "INSERT INTO retired_pipelines (namespace, revision, generation) \
         SELECT namespace, MAX(revision), MAX(generation) FROM pipelines \
         WHERE namespace = $1 AND deleted_at IS NOT NULL AND generation <= $2 GROUP BY namespace \
         ON CONFLICT (namespace) DO UPDATE SET generation = excluded.generation, \
         revision = CASE WHEN excluded.revision > retired_pipelines.revision \
         THEN excluded.revision ELSE retired_pipelines.revision END",
        &[space, newest],
    )
    .await?;
    tx.execute(
        "DELETE FROM pipelines WHERE namespace = $1 AND deleted_at IS NOT NULL AND generation <= $2",
        &[space, newest],
    )
    .await
}

/// Whether a deletion after this generation is no longer known one by one.
async fn forgotten_since(tx: &mut Tx, since: u64) -> Result<bool, CatalogError> {
    let row = tx
        .row(
            "SELECT 1 FROM retired_pipelines WHERE generation > $1 LIMIT 1",
            &[Value::Int(signed(since))],
        )
        .await?;
    Ok(row.is_some())
}

async fn check(
    tx: &mut Tx,
    precondition: &Precondition,
    current: Option<u64>,
) -> Result<(), CatalogError> {
    let as_expected = match precondition.expected {
        Expected::Any => true,
        Expected::Exists => current.is_some(),
        Expected::Absent => current.is_none(),
        Expected::Revision(number) => current == Some(number),
    };
    if !as_expected {
        return Err(CatalogError::Stale { current });
    }
    match precondition.generation {
        Some(generation) if generation != tx.generation().await? => Err(CatalogError::Moved),
        _ => Ok(()),
    }
}

/// Stores the next revision and ends the transaction.
async fn append(
    mut tx: Tx,
    namespace: &Name,
    name: &Name,
    head: &Head,
    new: &NewRevision,
    (action, by): (&'static str, &Principal),
    limits: CatalogLimits,
) -> Result<Applied, CatalogError> {
    let mut gone = Vec::new();
    for step in &new.steps {
        if !is_stored(&mut tx, namespace, step).await? {
            gone.push(step.clone());
        }
    }
    if !gone.is_empty() {
        return Err(CatalogError::PluginsGone(gone));
    }
    let number = head.next();
    let key = [Value::Text(namespace.as_str()), Value::Text(name.as_str())];
    let [space, pipeline] = key;
    let at = Value::Int(i64::try_from(number).unwrap_or(i64::MAX));
    tx.execute(
        "INSERT INTO pipelines (namespace, name, revision, generation) \
         VALUES ($1, $2, $3, (SELECT generation + 1 FROM catalog_state WHERE id = 1)) \
         ON CONFLICT (namespace, name) DO UPDATE SET \
         revision = excluded.revision, generation = excluded.generation, deleted_at = NULL",
        &[space, pipeline, at],
    )
    .await?;
    let steps = serde_json::to_string(&new.steps)
        .map_err(|error| CatalogError::Corrupt(error.to_string()))?;
    tx.execute(
        "INSERT INTO pipeline_revisions \
         (namespace, name, revision, source, content_type, document, steps, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        &[
            space,
            pipeline,
            at,
            Value::Text(&new.source),
            Value::Text(&new.content_type),
            Value::Text(&new.document.to_string()),
            Value::Text(&steps),
            Value::Int(now()),
        ],
    )
    .await?;
    tx.execute(
        "DELETE FROM pipeline_plugins WHERE namespace = $1 AND pipeline = $2",
        &key,
    )
    .await?;
    let plugins: BTreeSet<(&Name, String)> = new
        .steps
        .iter()
        .map(|step| (&step.plugin, step.version.to_string()))
        .collect();
    for (plugin, version) in plugins {
        tx.execute(
            "INSERT INTO pipeline_plugins (namespace, pipeline, plugin, version) VALUES ($1, $2, $3, $4)",
            &[
                space,
                pipeline,
                Value::Text(plugin.as_str()),
                Value::Text(&version),
            ],
        )
        .await?;
    }
    // Hosts hold what they run in memory: of what is stored, only the current revision is needed, and it is the newest.
    let oldest = number.saturating_sub(limits.revisions.max(1));
    tx.execute(
        "DELETE FROM pipeline_revisions WHERE namespace = $1 AND name = $2 AND revision <= $3",
        &[space, pipeline, Value::Int(signed(oldest))],
    )
    .await?;
    let revision = revision(&mut tx, namespace, name, number).await?;
    let act = Act::new(action, Some(namespace), format!("pipeline {name}"));
    tx.record(by, act.at(number)).await?;
    let generation = tx.commit().await?;
    Ok(Applied {
        change: match head {
            Head::Live(_) => Change::Changed,
            Head::None | Head::Deleted(_) => Change::Created,
        },
        revision,
        generation,
    })
}

/// What has changed after a generation. Changes are made one at a time, so none of them can be missed.
async fn changes(tx: &mut Tx, generation: u64, since: u64) -> Result<Snapshot, CatalogError> {
    let since = Value::Int(i64::try_from(since).unwrap_or(i64::MAX));
    let rows = tx.rows(changed_since!(), &[since]).await?;
    let deleted = tx.rows(deleted_since!(), &[since]).await?;
    let (pipelines, unreadable) = sorted_out(&rows);
    Ok(Snapshot {
        generation,
        complete: false,
        pipelines,
        unreadable,
        deleted: deleted
            .iter()
            .map(|row| Ok((row.parsed(0)?, row.parsed(1)?)))
            .collect::<Result<_, CatalogError>>()?,
    })
}

/// Whether the plugin version that a step is pinned to is there, with the same bytes.
async fn is_stored(tx: &mut Tx, namespace: &Name, step: &PinnedStep) -> Result<bool, CatalogError> {
    let row = tx
        .row(
            "SELECT 1 FROM plugin_versions \
             WHERE namespace = $1 AND name = $2 AND version = $3 AND digest = $4",
            &[
                Value::Text(namespace.as_str()),
                Value::Text(step.plugin.as_str()),
                Value::Text(&step.version.to_string()),
                Value::Text(&step.digest.to_string()),
            ],
        )
        .await?;
    Ok(row.is_some())
}

async fn previous(
    tx: &mut Tx,
    namespace: &Name,
    name: &Name,
    current: u64,
) -> Result<u64, CatalogError> {
    let row = tx
        .row(
            "SELECT revision FROM pipeline_revisions \
             WHERE namespace = $1 AND name = $2 AND revision < $3 ORDER BY revision DESC LIMIT 1",
            &[
                Value::Text(namespace.as_str()),
                Value::Text(name.as_str()),
                Value::Int(i64::try_from(current).unwrap_or(i64::MAX)),
            ],
        )
        .await?;
    row.ok_or_else(|| {
        CatalogError::NotFound(format!("revision of pipeline {name} before {current}"))
    })?
    .unsigned(0)
}

async fn revision(
    tx: &mut Tx,
    namespace: &Name,
    name: &Name,
    number: u64,
) -> Result<PipelineRevision, CatalogError> {
    let what = format!("revision {number} of pipeline {name}");
    let Ok(at) = i64::try_from(number) else {
        return Err(CatalogError::NotFound(what));
    };
    let (space, pipeline) = (Value::Text(namespace.as_str()), Value::Text(name.as_str()));
    let row = tx
        .row(
            select_revisions!("WHERE r.namespace = $1 AND r.name = $2 AND r.revision = $3"),
            &[space, pipeline, Value::Int(at)],
        )
        .await?;
    if let Some(row) = row {
        return read(&row);
    }
    let kept = tx
        .row(
            "SELECT revision FROM pipeline_revisions WHERE namespace = $1 AND name = $2 \
             ORDER BY revision LIMIT 1",
            &[space, pipeline],
        )
        .await?;
    let oldest = kept.map_or(Ok(0), |row| row.unsigned(0))?;
    Err(CatalogError::NotFound(if (1..oldest).contains(&number) {
        format!("{what} any more: the oldest that is kept is {oldest} (limits.revisions)")
    } else {
        what
    }))
}

/// How many of these revisions are one part of a list.
fn part(sizes: &[Row], limit: usize) -> Result<usize, CatalogError> {
    let mut bytes = 0_u64;
    for (index, row) in sizes.iter().take(limit).enumerate() {
        bytes = bytes.saturating_add(row.unsigned(1)?);
        if bytes > PART {
            return Ok(index.max(1));
        }
    }
    Ok(sizes.len().min(limit))
}

fn read(row: &Row) -> Result<PipelineRevision, CatalogError> {
    Ok(PipelineRevision {
        namespace: row.parsed(0)?,
        name: row.parsed(1)?,
        revision: row.unsigned(2)?,
        source: row.optional_parsed(3)?,
        content_type: row.text(4)?,
        document: row.json(5)?,
        steps: row.json(6)?,
        created_at: row.time(7)?,
    })
}

/// One damaged row is one pipeline that fails, not all of them.
fn sorted_out(rows: &[Row]) -> (Vec<PipelineRevision>, Vec<Unreadable>) {
    let (mut pipelines, mut unreadable) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in rows {
        match read(row) {
            Ok(revision) => pipelines.push(revision),
            Err(error) => unreadable.extend(unreadable_of(row, &error)),
        }
    }
    (pipelines, unreadable)
}

/// None where not even the name can be read.
fn unreadable_of(row: &Row, error: &CatalogError) -> Option<Unreadable> {
    let named = || {
        Ok::<_, CatalogError>(Unreadable {
            namespace: row.parsed(0)?,
            name: row.parsed(1)?,
            revision: row.unsigned(2)?,
            reason: format!("its stored revision cannot be read: {error}; apply the pipeline anew"),
        })
    };
    named()
        .inspect_err(|name| error!(%error, %name, "a pipeline without a readable name is left out"))
        .ok()
}

/// The revisions of a list; others are in the log.
fn readable(rows: &[Row]) -> Vec<PipelineRevision> {
    let (pipelines, unreadable) = sorted_out(rows);
    for one in unreadable {
        warn!(namespace = %one.namespace, pipeline = %one.name, revision = one.revision, reason = one.reason, "left out of a list");
    }
    pipelines
}

fn no_pipeline(name: &Name) -> CatalogError {
    CatalogError::NotFound(format!("pipeline {name}"))
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
