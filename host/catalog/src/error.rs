use sqlx::migrate::MigrateError;
use sqlx::postgres::PgDatabaseError;
use sqlx::sqlite::SqliteError;
use stepwell_core::{Digest, Name};

use crate::PinnedStep;

/// Why an operation on the catalog did not happen. Nothing of it happened then.
///
/// The messages name no address, path or credential; what the database itself said is in the source, for the log.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// There is no such thing.
    #[error("there is no {0}")]
    NotFound(String),
    /// Current revisions of these pipelines pin the plugin version.
    #[error("{what} is used by {}", used_by(.pipelines))]
    InUse {
        /// `plugin NAME@VERSION`.
        what: String,
        /// Those that use it, by name.
        pipelines: Vec<Name>,
    },
    /// A namespace holds things, and so cannot be deleted.
    #[error("namespace {namespace} is not empty: it has {holds}")]
    NotEmpty {
        /// The namespace.
        namespace: Name,
        /// What it holds, in words.
        holds: String,
    },
    /// The namespace that always exists cannot be deleted.
    #[error("namespace default always exists: only its quotas can be changed")]
    DefaultNamespace,
    /// A namespace would hold more than it may.
    #[error(
        "namespace {namespace} may keep {quota} {value}, has {used}, and this would be {adding} more: \
         delete {}, or ask an operator for a higher quota ('stepwell namespace set {namespace} --{quota} …')",
        kept_by(.quota)
    )]
    QuotaExceeded {
        /// The namespace.
        namespace: Name,
        /// `plugins`, `bytes` or `pipelines`.
        quota: &'static str,
        /// How much it may keep.
        value: String,
        /// How much it keeps.
        used: String,
        /// How much the change would add.
        adding: String,
    },
    /// There are as many of these as a catalog takes.
    #[error("there are {limit} {what} already, and no more fit: delete some")]
    TooMany {
        /// `tokens` or `namespaces`.
        what: &'static str,
        /// How many a catalog takes.
        limit: u64,
    },
    /// The pipeline is not at the revision that the caller expected.
    #[error("the pipeline has changed: {}", at(.current))]
    Stale {
        /// The revision that it is at; none: it does not exist.
        current: Option<u64>,
    },
    /// The catalog changed since the generation that the caller's checks were made on: check again, then try again.
    #[error("the catalog has changed since the pipeline was checked")]
    Moved,
    /// A revision pins plugin versions that are not there, or not with these bytes.
    #[error("a plugin version is gone: {}", gone(.0))]
    PluginsGone(Vec<PinnedStep>),
    /// A text has a character that PostgreSQL stores in none: it is refused with both databases.
    #[error("a text holds a NUL character, which nothing in the catalog has")]
    Nul,
    /// The stored bytes of a component are not those that were uploaded.
    #[error("the stored component {0} is corrupt: push the same file again to mend it")]
    CorruptBlob(Digest),
    /// Something else in the database cannot be read.
    #[error("the catalog is corrupt: {0}")]
    Corrupt(String),
    /// A newer Stepwell has migrated this catalog.
    #[error(
        "the catalog is newer than this program: it has migration {found}, and this program knows {known}; run the newer version"
    )]
    TooNew {
        /// The newest migration of the database.
        found: i64,
        /// The newest migration of this program.
        known: i64,
    },
    /// The database cannot be used now; it may be later.
    #[error("the catalog database is unavailable: {reason}")]
    Unavailable {
        /// What is the matter, in our words.
        reason: &'static str,
        /// What the driver said.
        #[source]
        source: Option<sqlx::Error>,
    },
    /// The database refused a statement or a migration.
    #[error("the catalog database refused {0}")]
    Refused(
        &'static str,
        #[source] Box<dyn std::error::Error + Send + Sync>,
    ),
}

impl CatalogError {
    pub(crate) fn unavailable(reason: &'static str) -> Self {
        Self::Unavailable {
            reason,
            source: None,
        }
    }

    /// Whether another process held the database just now.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self, Self::Unavailable { reason, .. } if *reason == BUSY)
    }
}

const BUSY: &str = "it is busy";

impl From<sqlx::Error> for CatalogError {
    fn from(error: sqlx::Error) -> Self {
        let reason = match &error {
            sqlx::Error::Io(_) => "the connection failed",
            sqlx::Error::Tls(_) => "no TLS connection could be made",
            sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => "the connection broke",
            sqlx::Error::PoolTimedOut => "no connection could be made in time",
            sqlx::Error::PoolClosed => "the host is shutting down",
            sqlx::Error::Database(database) => {
                let known = if let Some(error) = database.try_downcast_ref::<PgDatabaseError>() {
                    postgres(error.code())
                } else if database.try_downcast_ref::<SqliteError>().is_some() {
                    sqlite(database.code().as_deref())
                } else {
                    Known::No
                };
                match known {
                    Known::Unavailable(reason) => reason,
                    Known::Corrupt => return Self::Corrupt("the database says so".to_owned()),
                    Known::No => return Self::Refused("a statement", error.into()),
                }
            }
            sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::Decode(_)
            | sqlx::Error::ColumnIndexOutOfBounds { .. } => {
                return Self::Corrupt("a row has an unexpected form".to_owned());
            }
            _ => return Self::Refused("a statement", error.into()),
        };
        Self::Unavailable {
            reason,
            source: Some(error),
        }
    }
}

/// What a database's error code says.
enum Known {
    Unavailable(&'static str),
    Corrupt,
    No,
}

fn postgres(code: &str) -> Known {
    let reason = match code {
        "53100" => "its disk is full",
        "25006" => "it is read-only",
        "42501" => "its user lacks a privilege",
        "XX001" | "XX002" => return Known::Corrupt,
        _ => match code.get(..2) {
            Some("08") => "the connection failed",
            Some("28") => "it refused the credentials",
            Some("3D") => "there is no such database",
            Some("40" | "55") => BUSY,
            Some("53") => "it is out of resources",
            Some("57") => "it is starting, stopping or cancelled the statement",
            _ => return Known::No,
        },
    };
    Known::Unavailable(reason)
}

fn sqlite(code: Option<&str>) -> Known {
    // The low byte of an extended result code is the primary one.
    match code
        .and_then(|code| code.parse::<i32>().ok())
        .map(|code| code & 0xff)
    {
        Some(5 | 6) => Known::Unavailable(BUSY),
        Some(8) => Known::Unavailable("its file is read-only"),
        Some(10) => Known::Unavailable("its file cannot be read or written"),
        Some(11 | 26) => Known::Corrupt,
        Some(13) => Known::Unavailable("its disk is full"),
        Some(14) => Known::Unavailable("its file cannot be opened"),
        _ => Known::No,
    }
}

/// The error of a failed migration; `known` is the newest migration of this program.
pub(crate) fn migration(error: MigrateError, known: i64) -> CatalogError {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error.into(),
        MigrateError::VersionMissing(found) if found > known => {
            CatalogError::TooNew { found, known }
        }
        other => CatalogError::Refused("a migration", other.into()),
    }
}

fn used_by(pipelines: &[Name]) -> String {
    let noun = if pipelines.len() == 1 {
        "pipeline"
    } else {
        "pipelines"
    };
    let names: Vec<&str> = pipelines.iter().map(Name::as_str).collect();
    format!("{noun} {}", names.join(", "))
}

/// What fills a quota.
fn kept_by(quota: &str) -> &'static str {
    match quota {
        "pipelines" => "pipelines",
        _ => "plugin versions",
    }
}

fn at(current: &Option<u64>) -> String {
    match current {
        Some(revision) => format!("it is at revision {revision}"),
        None => "it does not exist".to_owned(),
    }
}

fn gone(steps: &[PinnedStep]) -> String {
    let steps: Vec<String> = steps
        .iter()
        .map(|step| format!("{}@{} of step {}", step.plugin, step.version, step.id))
        .collect();
    steps.join(", ")
}
