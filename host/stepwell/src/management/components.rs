//! Compiled code is kept for as long as somebody has the component.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stepwell_catalog::Catalog;
use stepwell_core::Digest;
use stepwell_engine::Engine;
use tracing::debug;

use crate::deployer::Deployer;
use crate::guest::GuestState;

/// Knows who has a component, and has it forgotten when nobody does.
pub(crate) struct Components {
    catalog: Arc<Catalog>,
    engine: Engine<GuestState>,
    deployer: Arc<Deployer>,
    /// Uploads that are not stored yet, by what they bring.
    uploads: Mutex<HashMap<Digest, usize>>,
}

/// One upload under way; it has the component until it is dropped.
pub(crate) struct Upload {
    components: Arc<Components>,
    digest: Digest,
}

impl Components {
    pub(crate) fn new(
        catalog: Arc<Catalog>,
        engine: Engine<GuestState>,
        deployer: Arc<Deployer>,
    ) -> Arc<Self> {
        Arc::new(Self {
            catalog,
            engine,
            deployer,
            uploads: Mutex::default(),
        })
    }

    pub(super) fn upload(self: &Arc<Self>, digest: Digest) -> Upload {
        *self.lock().entry(digest).or_default() += 1;
        Upload {
            components: self.clone(),
            digest,
        }
    }

    /// Drops what was compiled of a component unless a version, a deployment or another upload has it. An upload that begins at this
    /// very moment loses nothing but the time to compile it once more.
    pub(super) async fn release(&self, digest: Digest) {
        if self.lock().contains_key(&digest) {
            return;
        }
        match self.catalog.world(digest).await {
            Ok(None) => {}
            Ok(Some(_)) => return,
            Err(error) => {
                // It goes when the cache is full.
                debug!(%digest, %error, "it is not known whether a component is still of use");
                return;
            }
        }
        if self.deployer.uses(&digest) {
            return;
        }
        self.deployer.forget(&digest);
        let engine = self.engine.clone();
        let _ = tokio::task::spawn_blocking(move || engine.forget(&digest)).await;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let mut uploads = self.components.lock();
        if let Some(count) = uploads.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                uploads.remove(&self.digest);
            }
        }
    }
}
