//! How pipelines and their revisions stand in the database, within a transaction.

use std::collections::BTreeSet;

use stepwell_core::{Name, Principal};
use tracing::{error, warn};

use crate::audit::Act;
use crate::db::{Row, Tx, Value, now, signed};
use crate::{
    Applied, CatalogError, CatalogLimits, Change, Expected, NewRevision, PinnedStep,
    PipelineRevision, Precondition, Snapshot, Unreadable,
};

/// Bytes of the documents of one part of a list; a document that is larger than that is a part by itself.
const PART: u64 = 4 << 20;

/// How many deleted pipelines of a namespace are remembered one by one.
const DELETED: i64 = 1_000;

/// What is known of a pipeline's name.
pub(super) enum Head {
    /// It was never used.
    None,
    /// A pipeline is there, at this revision.
    Live(u64),
    /// A pipeline was there, and got as far as this revision; or it may have been, and got no further.
    Deleted(u64),
}

impl Head {
    pub(super) fn current(&self) -> Option<u64> {
        match self {
            Self::Live(number) => Some(*number),
            Self::None | Self::Deleted(_) => None,
        }
    }

    pub(super) fn next(&self) -> u64 {
        match self {
            Self::None => 1,
            Self::Live(number) | Self::Deleted(number) => number + 1,
        }
    }
}

pub(super) async fn head(tx: &mut Tx, namespace: &Name, name: &Name) -> Result<Head, CatalogError> {
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
pub(super) async fn retired(tx: &mut Tx, namespace: &Name) -> Result<u64, CatalogError> {
    let row = tx
        .row(
            "SELECT revision FROM retired_pipelines WHERE namespace = $1",
            &[Value::Text(namespace.as_str())],
        )
        .await?;
    row.map_or(Ok(0), |row| row.unsigned(0))
}

/// Drops the rows of the pipelines that were deleted first, where there are more than [`DELETED`].
pub(super) async fn forget(tx: &mut Tx, namespace: &Name) -> Result<(), CatalogError> {
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
pub(super) async fn forgotten_since(tx: &mut Tx, since: u64) -> Result<bool, CatalogError> {
    let row = tx
        .row(
            "SELECT 1 FROM retired_pipelines WHERE generation > $1 LIMIT 1",
            &[Value::Int(signed(since))],
        )
        .await?;
    Ok(row.is_some())
}

pub(super) async fn check(
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
pub(super) async fn append(
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
pub(super) async fn changes(
    tx: &mut Tx,
    generation: u64,
    since: u64,
) -> Result<Snapshot, CatalogError> {
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
pub(super) async fn is_stored(
    tx: &mut Tx,
    namespace: &Name,
    step: &PinnedStep,
) -> Result<bool, CatalogError> {
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

pub(super) async fn previous(
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

pub(super) async fn revision(
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
pub(super) fn part(sizes: &[Row], limit: usize) -> Result<usize, CatalogError> {
    let mut bytes = 0_u64;
    for (index, row) in sizes.iter().take(limit).enumerate() {
        bytes = bytes.saturating_add(row.unsigned(1)?);
        if bytes > PART {
            return Ok(index.max(1));
        }
    }
    Ok(sizes.len().min(limit))
}

pub(super) fn read(row: &Row) -> Result<PipelineRevision, CatalogError> {
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
pub(super) fn sorted_out(rows: &[Row]) -> (Vec<PipelineRevision>, Vec<Unreadable>) {
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
pub(super) fn unreadable_of(row: &Row, error: &CatalogError) -> Option<Unreadable> {
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
pub(super) fn readable(rows: &[Row]) -> Vec<PipelineRevision> {
    let (pipelines, unreadable) = sorted_out(rows);
    for one in unreadable {
        warn!(namespace = %one.namespace, pipeline = %one.name, revision = one.revision, reason = one.reason, "left out of a list");
    }
    pipelines
}

pub(super) fn no_pipeline(name: &Name) -> CatalogError {
    CatalogError::NotFound(format!("pipeline {name}"))
}
