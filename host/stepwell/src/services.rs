use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use stepwell_egress::{Egress, EgressConfig};
use stepwell_inference::{LibraryConfig, Models, ModelsConfig};
use stepwell_keyvalue::KeyValues;
use stepwell_logging::{LogCapacity, LogStore};
use stepwell_sql::Databases;
use stepwell_vector::Vectors;

use crate::config::Config;
use crate::telemetry::traceparent;

/// Everything that guests reach through host functions; it lives as long as the process.
pub(crate) struct Services {
    pub(crate) models: Models,
    pub(crate) vectors: Vectors,
    pub(crate) keyvalues: Arc<KeyValues>,
    pub(crate) databases: Databases,
    pub(crate) egress: Arc<Egress>,
    pub(crate) logs: Arc<LogStore>,
}

impl Services {
    /// Opens every binding. One that is not reachable is no error: it says so when it is used, in `/readyz` and in `doctor`.
    ///
    /// `own` are the host's listeners that no guest may reach.
    pub(crate) async fn open(config: &Config, models: Models, own: &[SocketAddr]) -> Result<Self> {
        let bindings = &config.bindings;
        Ok(Self {
            models,
            vectors: Vectors::open(&config.data_dir, bindings.vectors.clone()).await,
            keyvalues: Arc::new(KeyValues::open(&config.data_dir, bindings.keyvalue.clone())),
            databases: Databases::open(&config.data_dir, bindings.sql.clone())?,
            egress: Egress::new(EgressConfig {
                own: own.to_vec(),
                trace: Some(traceparent),
                ..config.egress.clone()
            })?,
            logs: Arc::new(LogStore::new(LogCapacity::default())),
        })
    }
}

/// Starts to load models. Called before there are other threads: libtensorflow is told by environment variables where it is.
pub(crate) fn start_models(config: &Config) -> Result<Models> {
    Models::start(ModelsConfig {
        directory: config.models_directory.clone(),
        library: config
            .models_library
            .clone()
            .map_or(LibraryConfig::Auto, LibraryConfig::Path),
        bindings: config.bindings.models.clone(),
        ..ModelsConfig::default()
    })
    .context("models")
}
