use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use sqlx::AssertSqlSafe;
use sqlx::Connection;
use stepwell_catalog::{
    Catalog, Location, NewPluginVersion, NewRevision, PinnedStep, PluginVersion, PutVersion,
};
use stepwell_core::{Name, Secret};
use stepwell_test_services::Postgres;
use tempfile::TempDir;

/// An empty database.
pub(crate) struct Place {
    pub(crate) location: Location,
    _directory: Option<TempDir>,
    _server: Option<Arc<Postgres>>,
}

impl Place {
    pub(crate) fn sqlite() -> Self {
        let directory = TempDir::new().unwrap();
        let data_dir = directory.path().join("not/there/yet");
        Self {
            location: Location::parse(&Secret::new("sqlite"), &data_dir).unwrap(),
            _directory: Some(directory),
            _server: None,
        }
    }

    pub(crate) fn postgres() -> Self {
        static DATABASES: AtomicUsize = AtomicUsize::new(0);
        let server = server();
        let name = format!("t{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        let url = Secret::new(server.create_database(&name).unwrap());
        Self {
            location: Location::parse(&url, "unused".as_ref()).unwrap(),
            _directory: None,
            _server: Some(server),
        }
    }

    pub(crate) async fn open(&self) -> Catalog {
        let catalog = Catalog::new(&self.location).unwrap();
        catalog.migrate().await.unwrap();
        catalog
    }

    /// Runs a statement behind the catalog's back.
    pub(crate) async fn meddle(&self, sql: &str) {
        let changed = match &self.location {
            Location::Sqlite(path) => {
                let mut connection =
                    sqlx::SqliteConnection::connect(&format!("sqlite:{}", path.display()))
                        .await
                        .unwrap();
                let done = sqlx::query(AssertSqlSafe(sql))
                    .execute(&mut connection)
                    .await;
                done.unwrap().rows_affected()
            }
            Location::Postgres(url) => {
                let mut connection = sqlx::PgConnection::connect(url.expose()).await.unwrap();
                let done = sqlx::query(AssertSqlSafe(sql))
                    .execute(&mut connection)
                    .await;
                done.unwrap().rows_affected()
            }
        };
        assert!(changed > 0, "{sql}");
    }
}

/// One server for the tests that run at the same time; the last of them stops it.
fn server() -> Arc<Postgres> {
    static SERVER: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
    let mut shared = SERVER.lock().unwrap();
    shared.upgrade().unwrap_or_else(|| {
        let server = Arc::new(Postgres::start().unwrap());
        *shared = Arc::downgrade(&server);
        server
    })
}

pub(crate) fn ns() -> Name {
    Name::default_namespace()
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A plugin version with these bytes.
pub(crate) fn plugin(name_: &str, version: &str, bytes: &str) -> NewPluginVersion {
    NewPluginVersion {
        namespace: ns(),
        name: name(name_),
        version: version.parse().unwrap(),
        bytes: Bytes::copy_from_slice(bytes.as_bytes()),
        world: "stepwell:pipeline/step@0.1.0".to_owned(),
        imports: vec!["wasi:logging/logging@0.1.0-draft".to_owned()],
        exports: vec!["stepwell:pipeline/handler@0.1.0".to_owned()],
        compile_ms: 118,
    }
}

/// Stores a plugin version that is not there yet.
pub(crate) async fn push(catalog: &Catalog, name: &str, version: &str) -> PluginVersion {
    let new = plugin(name, version, &format!("the bytes of {name}@{version}"));
    match catalog.put_plugin_version(new).await.unwrap() {
        PutVersion::Created(created) => created,
        other => panic!("{other:?}"),
    }
}

/// A document that says `text`, with one step for each of these plugin versions.
pub(crate) fn revision(text: &str, plugins: &[&PluginVersion]) -> NewRevision {
    NewRevision {
        source: format!("stepwell: 1\ndescription: {text}\n"),
        content_type: "application/yaml".to_owned(),
        document: serde_json::json!({"stepwell": 1, "description": text}),
        steps: plugins
            .iter()
            .enumerate()
            .map(|(number, plugin)| PinnedStep {
                id: name(&format!("step-{number}")),
                plugin: plugin.name.clone(),
                version: plugin.version.clone(),
                digest: plugin.digest,
            })
            .collect(),
    }
}
