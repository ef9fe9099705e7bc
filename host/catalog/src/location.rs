use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;
use stepwell_core::Secret;

/// Where the catalog is kept.
#[derive(Clone)]
pub enum Location {
    /// In this file, for one host.
    Sqlite(PathBuf),
    /// In a PostgreSQL database, shared by any number of hosts; the URL may hold a password.
    Postgres(Secret),
}

/// A catalog URL that cannot be used. It never shows the URL, which may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLocation {
    /// Neither of the two kinds.
    #[error("the catalog is 'sqlite' or a URL that starts with postgres://")]
    Kind,
    /// A PostgreSQL URL that cannot be read.
    #[error(
        "the catalog's PostgreSQL URL cannot be read: write postgres://USER:PASSWORD@HOST:PORT/DATABASE"
    )]
    Postgres,
}

impl Location {
    /// Reads `[catalog] url`: `sqlite` is `catalog.sqlite` in the data directory.
    ///
    /// # Errors
    /// [`InvalidLocation`]
    pub fn parse(url: &Secret, data_dir: &Path) -> Result<Self, InvalidLocation> {
        let text = url.expose();
        if text == "sqlite" {
            return Ok(Self::Sqlite(data_dir.join("catalog.sqlite")));
        }
        if !["postgres://", "postgresql://"]
            .iter()
            .any(|scheme| text.starts_with(scheme))
        {
            return Err(InvalidLocation::Kind);
        }
        postgres_options(url)?;
        Ok(Self::Postgres(url.clone()))
    }

    /// The backend's name: `sqlite` or `postgres`.
    pub fn backend(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "sqlite",
            Self::Postgres(_) => "postgres",
        }
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.backend())
    }
}

pub(crate) fn postgres_options(url: &Secret) -> Result<PgConnectOptions, InvalidLocation> {
    PgConnectOptions::from_str(url.expose())
        .map(|options| options.application_name("stepwell"))
        .map_err(|_| InvalidLocation::Postgres)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Location, InvalidLocation> {
        Location::parse(&Secret::new(url), Path::new("data"))
    }

    #[test]
    fn both_kinds_are_read_and_others_refused() {
        assert!(
            matches!(parse("sqlite"), Ok(Location::Sqlite(path)) if path == Path::new("data/catalog.sqlite"))
        );
        for url in ["postgres://u:p@h/db", "postgresql://h:5433/db"] {
            assert!(matches!(parse(url), Ok(Location::Postgres(_))), "{url}");
        }
        for url in ["", "mysql://h/db", "sqlite3", "h:5432"] {
            assert_eq!(parse(url).unwrap_err(), InvalidLocation::Kind, "{url}");
        }
    }

    #[test]
    fn no_message_holds_the_password() {
        let error = parse("postgres://u:hunter2@h:port/db").unwrap_err();
        assert!(!error.to_string().contains("hunter2"));
        let location = parse("postgres://u:hunter2@h/db").unwrap();
        assert!(!format!("{location:?}").contains("hunter2"));
    }
}
