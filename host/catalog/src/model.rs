use bytes::Bytes;
use semver::Version;
use serde::{Deserialize, Serialize};
use stepwell_core::{Digest, Name};
use time::OffsetDateTime;

/// A plugin version to store.
#[derive(Clone, Debug)]
pub struct NewPluginVersion {
    /// The tenant.
    pub namespace: Name,
    /// The plugin.
    pub name: Name,
    /// Its version.
    pub version: Version,
    /// The component.
    pub bytes: Bytes,
    /// The world that it was found to have.
    pub world: String,
    /// What it imports.
    pub imports: Vec<String>,
    /// What it exports.
    pub exports: Vec<String>,
    /// How long its compilation took.
    pub compile_ms: u64,
}

/// A stored plugin version, without its bytes. It never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginVersion {
    /// The tenant.
    pub namespace: Name,
    /// The plugin.
    pub name: Name,
    /// Its version.
    pub version: Version,
    /// Of the component's bytes.
    pub digest: Digest,
    /// The component's world.
    pub world: String,
    /// What it imports.
    pub imports: Vec<String>,
    /// What it exports.
    pub exports: Vec<String>,
    /// Bytes of the component.
    pub size: u64,
    /// How long its compilation took when it was uploaded.
    pub compile_ms: u64,
    /// When it was stored, to the millisecond.
    pub created_at: OffsetDateTime,
}

/// What came of storing a plugin version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutVersion {
    /// It is stored.
    Created(PluginVersion),
    /// It was there already, with the same bytes.
    Same(PluginVersion),
    /// It is there with other bytes, and stays as it is.
    Conflict(PluginVersion),
}

/// A plugin with all of its versions, the highest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugin {
    /// The plugin.
    pub name: Name,
    /// At least one.
    pub versions: Vec<PluginVersion>,
}

/// What a plugin step was pinned to when its pipeline was applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedStep {
    /// The step.
    pub id: Name,
    /// The plugin.
    pub plugin: Name,
    /// Its exact version.
    pub version: Version,
    /// Of the version's bytes.
    pub digest: Digest,
}

/// A pipeline revision to store.
#[derive(Clone, Debug)]
pub struct NewRevision {
    /// The document as it was written.
    pub source: String,
    /// `application/yaml` or `application/json`.
    pub content_type: String,
    /// The document as data.
    pub document: serde_json::Value,
    /// Its plugin steps, in order.
    pub steps: Vec<PinnedStep>,
}

/// A stored pipeline revision. It never changes.
#[derive(Clone, Debug, PartialEq)]
pub struct PipelineRevision {
    /// The tenant.
    pub namespace: Name,
    /// The pipeline.
    pub name: Name,
    /// From 1; numbers are never used again, not even after the pipeline was deleted.
    pub revision: u64,
    /// The document as it was written; none where many revisions are read at once.
    pub source: Option<String>,
    /// `application/yaml` or `application/json`.
    pub content_type: String,
    /// The document as data.
    pub document: serde_json::Value,
    /// Its plugin steps, in order.
    pub steps: Vec<PinnedStep>,
    /// When it was stored, to the millisecond.
    pub created_at: OffsetDateTime,
}

/// What must hold for a change to a pipeline to happen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Precondition {
    /// The state of the pipeline itself.
    pub expected: Expected,
    /// The generation that the caller's checks (of routes, plugins, …) were made on; none: the caller needs no such guard.
    pub generation: Option<u64>,
}

/// The state in which a pipeline is expected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expected {
    /// Any.
    #[default]
    Any,
    /// It exists, at whatever revision (`If-Match: *`).
    Exists,
    /// It does not exist (`If-None-Match: *`).
    Absent,
    /// It is at this revision (`If-Match`).
    Revision(u64),
}

/// A pipeline after a change to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// What happened.
    pub change: Change,
    /// The revision that is current now.
    pub revision: PipelineRevision,
    /// The catalog's generation after the change.
    pub generation: u64,
}

/// What a change to a pipeline was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// There was no such pipeline.
    Created,
    /// It has a new revision.
    Changed,
    /// Document and pins are those of the current revision: nothing was stored.
    Unchanged,
}

/// Current revisions of pipelines at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The catalog's generation at that moment.
    pub generation: u64,
    /// Whether these are all pipelines; otherwise they are those that have changed.
    pub complete: bool,
    /// In the order of namespaces and names, or of their changes where these are not all.
    pub pipelines: Vec<PipelineRevision>,
    /// Those of them whose stored form is damaged.
    pub unreadable: Vec<Unreadable>,
    /// Namespaces and names of those that were deleted; of no interest where all that are left are there.
    pub deleted: Vec<(Name, Name)>,
}

/// A pipeline whose current revision is there and cannot be read. Applying it anew mends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The tenant.
    pub namespace: Name,
    /// The pipeline.
    pub name: Name,
    /// Its current revision.
    pub revision: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// Which part of a list is wanted.
#[derive(Clone, Debug)]
pub struct Page {
    /// At most this many items, clamped to 1–[`Page::MOST`]; a part of large items has fewer.
    pub limit: u32,
    /// The `next` of the part before.
    pub cursor: Option<String>,
}

impl Page {
    /// The most items of one part.
    pub const MOST: u32 = 500;

    pub(crate) fn limit(&self) -> usize {
        self.limit.clamp(1, Self::MOST) as usize
    }
}

impl Default for Page {
    fn default() -> Self {
        Self {
            limit: 100,
            cursor: None,
        }
    }
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Paged<T> {
    /// The items.
    pub items: Vec<T>,
    /// The cursor of the next part; none: this is the last.
    pub next: Option<String>,
}

impl<T> Paged<T> {
    /// From one item more than wanted, if there is one: the surplus says that there is a next part.
    pub(crate) fn from_surplus(
        mut items: Vec<T>,
        limit: usize,
        cursor: impl FnOnce(&T) -> String,
    ) -> Self {
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).map(cursor);
        Self { items, next }
    }
}
