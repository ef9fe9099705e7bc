//! The one task that changes an index. A caller may hang up: what it asked for is then done whole all the same, and memory
//! changes only after the file has, in the same order.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use stepwell_core::CpuAccount;
use tokio::sync::{mpsc, oneshot};

use super::Memory;
use super::file::{Changes, File};
use super::memory::{Space, footprint};
use super::scan::{Matching, Rows};
use crate::client::{Change, Metadata, Selection, Vector, VectorError};
use crate::limits::check_metadata;

/// Something for the writer to do.
pub(crate) enum Job {
    /// A change to one namespace.
    Write {
        space: String,
        /// When it is no longer worth looking for what is to change.
        deadline: Instant,
        /// Who is charged for looking.
        cpu: Option<Arc<CpuAccount>>,
        write: Box<Write>,
        done: oneshot::Sender<Result<(), VectorError>>,
    },
    /// Say whether the file can be read.
    Ping(oneshot::Sender<Result<(), String>>),
    /// Close the file and stop.
    Close(oneshot::Sender<()>),
}

/// What a caller asks for.
pub(crate) enum Write {
    Upsert(Vec<Vector>),
    Update(Change),
    Delete(Selection),
}

/// Runs until it is told to close or nobody can ask for anything any more.
pub(crate) async fn run(mut file: File, memory: Arc<Memory>, mut jobs: mpsc::Receiver<Job>) {
    let mut closing = None;
    while let Some(job) = jobs.recv().await {
        match job {
            Job::Write {
                space,
                deadline,
                cpu,
                write,
                done,
            } => {
                let result = perform(&mut file, &memory, space, (deadline, cpu), *write).await;
                let failing = matches!(result, Err(VectorError::Unavailable(_)));
                memory.writes_fail.store(failing, Ordering::Relaxed);
                // The caller may have gone; the work is done.
                let _ = done.send(result);
            }
            Job::Ping(done) => {
                let _ = done.send(file.ping().await.map_err(|error| error.to_string()));
            }
            Job::Close(done) => {
                closing = Some(done);
                break;
            }
        }
    }
    file.close().await;
    if let Some(done) = closing {
        let _ = done.send(());
    }
}

async fn perform(
    file: &mut File,
    memory: &Arc<Memory>,
    space: String,
    (deadline, cpu): (Instant, Option<Arc<CpuAccount>>),
    write: Write,
) -> Result<(), VectorError> {
    let changes = match write {
        Write::Upsert(vectors) => Changes::Put(vectors),
        Write::Update(change) => match memory.read(&space, |space| space.get(&change.id)) {
            Some(Some(vector)) => Changes::Put(vec![merged(vector, change)?]),
            _ => return Ok(()),
        },
        Write::Delete(Selection::All) => Changes::Clear,
        Write::Delete(Selection::Ids(ids)) => Changes::Remove(
            memory
                .read(&space, |space| {
                    ids.into_iter().filter(|id| space.has(id)).collect()
                })
                .unwrap_or_default(),
        ),
        Write::Delete(Selection::Filter(filter)) => {
            let segments = memory.read(&space, Space::segments).unwrap_or_default();
            let matching = Matching {
                rows: Rows::new(memory.dimension, segments, deadline),
                filter,
                ids: Vec::new(),
            };
            Changes::Remove(memory.lane.run(cpu, matching).await??)
        }
    };
    match &changes {
        Changes::Put(vectors) => make_room(memory, vectors)?,
        Changes::Remove(ids) if ids.is_empty() => return Ok(()),
        _ => {}
    }
    file.commit(&space, &changes).await.map_err(|error| {
        tracing::error!(binding = %memory.name, %error, "vector index could not store a write");
        VectorError::Unavailable("the index cannot store the write now".into())
    })?;
    memory.apply(space, changes);
    Ok(())
}

/// The vector with the change made, if it is then still one that could be stored.
fn merged(mut vector: Vector, change: Change) -> Result<Vector, VectorError> {
    if let Some(values) = change.values {
        vector.values = values;
    }
    if change.sparse.is_some() {
        vector.sparse = change.sparse;
    }
    if let Some(fields) = change.metadata {
        let metadata = vector.metadata.get_or_insert_with(Metadata::new);
        metadata.extend(fields);
        check_metadata(metadata)?;
    }
    Ok(vector)
}

/// Refuses vectors for which there is no memory; those that replace others count as if they were new, which only matters
/// when the index is nearly full.
fn make_room(memory: &Memory, vectors: &[Vector]) -> Result<(), VectorError> {
    let more: usize = vectors.iter().map(footprint).sum();
    if memory.bytes().saturating_add(more) > memory.max_bytes {
        metrics::counter!("stepwell_limit_hits_total", "limit" => "store_size").increment(1);
        return Err(VectorError::TooLarge(format!(
            "the index is full: it holds at most {} bytes, and this limit is the host's own and has no setting; delete vectors, or use a larger backend",
            memory.max_bytes
        )));
    }
    Ok(())
}
