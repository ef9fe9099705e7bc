//! What is deployed is made ready before anybody calls it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stepwell_core::{Digest, Name};
use stepwell_engine::{Engine, Fetch};
use tokio::sync::Notify;
use tracing::warn;

use crate::guest::GuestState;

/// A pipeline's namespace and name.
pub(crate) type Key = (Name, Name);

/// Checks, or compiles, the components of deployed pipelines in the background, one after the other. A call that comes first
/// does so itself.
pub(crate) struct Ahead {
    engine: Engine<GuestState>,
    fetch: Fetch,
    tasks: Mutex<Tasks>,
    woken: Notify,
}

#[derive(Default)]
struct Tasks {
    waiting: VecDeque<Task>,
    /// The one that is being worked on, unless it went meanwhile.
    working: Option<Key>,
    failed: BTreeMap<Key, (Task, String)>,
}

/// How long what has failed waits for its next try.
const RETRY: Duration = Duration::from_secs(15);

/// A pipeline's revision and its components.
#[derive(Clone)]
struct Task {
    key: Key,
    revision: u64,
    components: Vec<Digest>,
}

impl Ahead {
    pub(crate) fn new(engine: Engine<GuestState>, fetch: Fetch) -> Self {
        Self {
            engine,
            fetch,
            tasks: Mutex::default(),
            woken: Notify::new(),
        }
    }

    /// Makes a revision's components ready, some time soon.
    pub(crate) fn add(&self, key: Key, revision: u64, components: Vec<Digest>) {
        let mut tasks = self.lock();
        tasks.failed.remove(&key);
        if components.iter().all(|digest| self.engine.is_ready(digest)) {
            return;
        }
        tasks.waiting.push_back(Task {
            key,
            revision,
            components,
        });
        self.woken.notify_one();
    }

    /// Forgets a pipeline that is gone.
    pub(crate) fn remove(&self, key: &Key) {
        let mut tasks = self.lock();
        tasks.failed.remove(key);
        tasks.waiting.retain(|task| task.key != *key);
        tasks.working.take_if(|working| working == key);
    }

    /// Tries again what has failed: what it lacked may be there now.
    pub(crate) fn retry(&self) {
        let mut tasks = self.lock();
        if tasks.waiting.is_empty() && !tasks.failed.is_empty() {
            let failed: Vec<Task> = tasks
                .failed
                .values()
                .map(|(task, _)| task.clone())
                .collect();
            tasks.waiting.extend(failed);
            self.woken.notify_one();
        }
    }

    /// The revisions that are not ready, and why.
    pub(crate) fn failures(&self) -> BTreeMap<Key, (u64, String)> {
        let tasks = self.lock();
        let failed = tasks.failed.iter();
        failed
            .map(|(key, (task, reason))| (key.clone(), (task.revision, reason.clone())))
            .collect()
    }

    /// Does the work; it never ends.
    pub(crate) async fn work(&self) {
        loop {
            let next = self.lock().waiting.pop_front();
            match next {
                Some(task) => self.make_ready(task).await,
                None => {
                    let woken = tokio::time::timeout(RETRY, self.woken.notified()).await;
                    if woken.is_err() {
                        self.retry();
                    }
                }
            }
        }
    }

    async fn make_ready(&self, task: Task) {
        self.lock().working = Some(task.key.clone());
        let mut outcome = Ok(());
        for digest in &task.components {
            outcome = self.engine.prepare(*digest, &self.fetch).await;
            if outcome.is_err() {
                break;
            }
        }
        let mut tasks = self.lock();
        let Err(error) = outcome else {
            tasks.failed.remove(&task.key);
            return;
        };
        // A newer revision, or the pipeline's end, may have come meanwhile.
        let is_gone = tasks.working.take() != Some(task.key.clone());
        if is_gone || tasks.waiting.iter().any(|other| other.key == task.key) {
            return;
        }
        let (namespace, name) = task.key.clone();
        if !tasks.failed.contains_key(&task.key) {
            warn!(%namespace, pipeline = %name, revision = task.revision, %error, "a deployed component is not ready to be called");
        }
        tasks
            .failed
            .insert(task.key.clone(), (task, error.to_string()));
    }

    fn lock(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
