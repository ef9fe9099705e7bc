//! `stepwell doctor`: is everything that the configuration names there, and what mends it if not?

use std::collections::BTreeMap;
use std::net::{TcpListener, ToSocketAddrs as _};
use std::path::Path;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use serde::Serialize;
use stepwell_catalog::{Catalog, Location};
use stepwell_core::Name;
use stepwell_inference::{INSTALL_COMMAND, LibraryConfig};
use stepwell_kafka_trigger::Brokers;
use stepwell_keyvalue::{KeyValueBindingConfig, KeyValues};
use stepwell_sql::{Databases, SqlBindingConfig};
use stepwell_vector::{Health, VectorBackend, Vectors};
use time::OffsetDateTime;

use crate::build::toolchain;
use crate::cli::DoctorArgs;
use crate::client::Failure;
use crate::config::{Config, DEFAULT_FILE, Overrides};
use crate::output;

/// Days before a certificate's end from which on it is a warning.
const EXPIRES_SOON: i64 = 21;

#[derive(Debug, Serialize)]
struct Check {
    status: Status,
    what: String,
    finding: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Warning,
    Failed,
}

/// Runs every check, prints them all, and fails if one failed.
pub(crate) async fn run(args: DoctorArgs, json: bool) -> Result<(), Failure> {
    let mut checks = Checks(Vec::new());
    let overrides = Overrides {
        data_dir: args.data_dir,
        ..Overrides::default()
    };
    match Config::load(args.config.as_deref(), &overrides) {
        Err(error) => {
            for mut problem in error.problems {
                let mend = problem.hint.take();
                let place = if problem.line.is_some() {
                    format!("{}:{problem}", error.file.display())
                } else {
                    problem.to_string()
                };
                checks.failed("configuration", place, mend);
            }
        }
        Ok(config) => {
            let file = config.file.as_ref().map_or_else(
                || format!("no {DEFAULT_FILE} here: every setting has its default"),
                |file| format!("{} has no mistakes", file.display()),
            );
            checks.ok("configuration", file);
            for warning in &config.warnings {
                let mut warning = warning.clone();
                let mend = warning.hint.take();
                checks.warning("configuration", warning.to_string(), mend);
            }
            checks.all(&config).await;
        }
    }
    checks.report(json)
}

struct Checks(Vec<Check>);

impl Checks {
    fn ok(&mut self, what: impl Into<String>, finding: impl Into<String>) {
        self.add(Status::Ok, what, finding, None);
    }

    fn warning(
        &mut self,
        what: impl Into<String>,
        finding: impl Into<String>,
        mend: Option<String>,
    ) {
        self.add(Status::Warning, what, finding, mend);
    }

    fn failed(
        &mut self,
        what: impl Into<String>,
        finding: impl Into<String>,
        mend: Option<String>,
    ) {
        self.add(Status::Failed, what, finding, mend);
    }

    fn add(
        &mut self,
        status: Status,
        what: impl Into<String>,
        finding: impl Into<String>,
        mend: Option<String>,
    ) {
        self.0.push(Check {
            status,
            what: what.into(),
            finding: finding.into(),
            mend,
        });
    }

    async fn all(&mut self, config: &Config) {
        self.data_dir(&config.data_dir);
        self.listeners(config).await;
        self.certificates(config);
        self.catalog(&config.catalog).await;
        self.kafka(config);
        self.models(config);
        self.bindings(config).await;
        for (binding, namespaces) in config.reach.confined() {
            let names: Vec<&str> = namespaces.iter().map(Name::as_str).collect();
            let names = names.join(", ");
            self.ok(binding, format!("for the pipelines of {names} alone"));
        }
        if let Some(endpoint) = &config.otlp_endpoint {
            let reachable = host_and_port(endpoint)
                .and_then(|address| address.to_socket_addrs().ok()?.next())
                .is_some_and(|address| {
                    std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2)).is_ok()
                });
            if reachable {
                self.ok("telemetry", "the OTLP endpoint takes connections");
            } else {
                let mend = "start a collector there, or take otlp_endpoint out of [telemetry]";
                self.warning(
                    "telemetry",
                    "the OTLP endpoint does not answer: traces are lost",
                    Some(mend.into()),
                );
            }
        }
        if config.admin_token.is_none() {
            let mend = "set [server] admin_token = { env = \"STEPWELL_ADMIN_TOKEN\" } before others reach it";
            self.warning(
                "admin listener",
                "development mode: no token is asked for",
                Some(mend.into()),
            );
        }
        match toolchain::find(toolchain::Choice::default(), Path::new(".")) {
            Ok(way) => self.ok("guest toolchain", way.to_string()),
            Err(error) => self.warning(
                "guest toolchain",
                format!("{error:#}"),
                Some("deploy/setup.sh guest".into()),
            ),
        }
    }

    /// Whether the listeners' addresses are free, or taken by the very host that is asked about.
    async fn listeners(&mut self, config: &Config) {
        let scheme = if config.admin_tls.is_some() {
            "https"
        } else {
            "http"
        };
        let livez = format!("{scheme}://{}/livez", config.admin_listen);
        let client = reqwest::Client::builder()
            .no_proxy()
            // Only whether something answers is asked, at an address of one's own.
            .tls_danger_accept_invalid_certs(true)
            .timeout(Duration::from_secs(2))
            .build();
        let running = match client {
            Ok(client) => client
                .get(livez)
                .send()
                .await
                .is_ok_and(|reply| reply.status().is_success()),
            Err(_) => false,
        };
        let listeners = [
            ("data listener", config.listen),
            ("admin listener", config.admin_listen),
        ];
        for (name, address) in listeners {
            match TcpListener::bind(address) {
                Ok(_) => self.ok(name, format!("{address} is free")),
                Err(_) if running => self.ok(name, format!("a host answers at {address}")),
                Err(error) => self.warning(
                    name,
                    format!("{address}: {error}"),
                    Some("something else listens there: choose another address in [server]".into()),
                ),
            }
        }
    }

    /// How long the certificates are good for; that they can be used was found out with the configuration.
    fn certificates(&mut self, config: &Config) {
        let mut files: Vec<_> = config.tls.iter().chain(&config.admin_tls).collect();
        files.dedup();
        for files in files {
            let what = format!("certificate ([server.{}])", files.section);
            let mend = format!("renew {}", files.certificate.display());
            let expires = files.load().ok().and_then(|loaded| loaded.expires);
            let Some(expires) = expires else {
                self.warning(what, "when it expires cannot be told", None);
                continue;
            };
            let left = (expires - OffsetDateTime::now_utc()).whole_days();
            if expires < OffsetDateTime::now_utc() {
                self.failed(
                    what,
                    format!("it expired on {}", expires.date()),
                    Some(mend),
                );
            } else if left < EXPIRES_SOON {
                self.warning(
                    what,
                    format!("it expires on {}", expires.date()),
                    Some(mend),
                );
            } else {
                self.ok(what, format!("good until {}", expires.date()));
            }
        }
    }

    fn data_dir(&mut self, directory: &Path) {
        let tried = std::fs::create_dir_all(directory)
            .and_then(|()| tempfile::tempfile_in(directory).map(|_| ()));
        match tried {
            Ok(()) => self.ok(
                "data directory",
                format!("{} can be written", directory.display()),
            ),
            Err(error) => self.failed(
                "data directory",
                format!("{}: {error}", directory.display()),
                Some("choose another with [server] data_dir or --data-dir".into()),
            ),
        }
    }

    async fn catalog(&mut self, location: &Location) {
        if let Location::Sqlite(path) = location {
            let there = if path.exists() {
                "is there"
            } else {
                "will be made"
            };
            self.ok("catalog", format!("sqlite: {} {there}", path.display()));
            return;
        }
        let result = match Catalog::new(location) {
            Ok(catalog) => catalog.ping().await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match result {
            Ok(_) => self.ok("catalog", "postgres: reachable and migrated"),
            Err(error) => self.failed(
                "catalog",
                error,
                Some("check [catalog] url and that PostgreSQL runs".into()),
            ),
        }
    }

    fn kafka(&mut self, config: &Config) {
        let Brokers::Servers(servers) = &config.kafka.brokers else {
            let mend = "set [kafka] brokers to a real one before anything depends on it";
            return self.warning(
                "kafka",
                "the embedded broker keeps nothing on disk",
                Some(mend.into()),
            );
        };
        let mut client = ClientConfig::new();
        for (key, value) in &config.kafka.properties {
            client.set(key, value);
        }
        let metadata =
            client
                .set("bootstrap.servers", servers)
                .create()
                .and_then(|consumer: BaseConsumer| {
                    consumer.fetch_metadata(None, Duration::from_secs(5))
                });
        match metadata {
            Ok(metadata) => self.ok(
                "kafka",
                format!(
                    "{} broker(s), {} topics",
                    metadata.brokers().len(),
                    metadata.topics().len()
                ),
            ),
            Err(error) => self.failed(
                "kafka",
                error.to_string(),
                Some("check [kafka] brokers and that they run".into()),
            ),
        }
    }

    fn models(&mut self, config: &Config) {
        let library = config
            .models_library
            .clone()
            .map_or(LibraryConfig::Auto, LibraryConfig::Path);
        let needed = !config.bindings.models.is_empty();
        match library.find() {
            Ok(directory) => self.ok("libtensorflow", format!("in {}", directory.display())),
            Err(error) if needed => self.failed(
                "libtensorflow",
                error.to_string(),
                Some(INSTALL_COMMAND.into()),
            ),
            Err(_) => self.ok("libtensorflow", "not found, and no binding needs it"),
        }
        for (name, binding) in &config.bindings.models {
            let directory = config.models_directory.join(binding.model.as_str());
            let what = format!("models/{name}");
            if directory.is_dir() {
                self.ok(what, format!("{} is there", directory.display()));
            } else {
                let mend = format!("put it there as {}/1/saved_model.pb", directory.display());
                self.failed(
                    what,
                    format!("there is no {}", directory.display()),
                    Some(mend),
                );
            }
        }
    }

    /// Asks every service that is not this host's own; embedded stores belong to the running host alone.
    async fn bindings(&mut self, config: &Config) {
        let bindings = &config.bindings;
        let remote: BTreeMap<_, _> = bindings
            .vectors
            .iter()
            .filter(|(_, binding)| !matches!(binding.backend, VectorBackend::Local))
            .map(|(name, binding)| (name.clone(), binding.clone()))
            .collect();
        for state in Vectors::open(&config.data_dir, remote).await.probe().await {
            let what = format!("vectors/{} ({})", state.name, state.backend);
            match state.health {
                Health::Ok => self.ok(what, "reachable"),
                Health::Degraded(reason) => self.warning(what, reason, None),
                Health::Down(reason) => self.failed(
                    what,
                    reason,
                    Some("check host and api_key of the binding".into()),
                ),
            }
        }
        let remote: BTreeMap<_, _> = bindings
            .keyvalue
            .iter()
            .filter(|(_, binding)| !matches!(binding, KeyValueBindingConfig::Local { .. }))
            .map(|(name, binding)| (name.clone(), binding.clone()))
            .collect();
        for state in KeyValues::open(&config.data_dir, remote).state().await {
            let what = format!("keyvalue/{} ({})", state.name, state.backend);
            self.reachable(what, state.down);
        }
        let remote: BTreeMap<_, _> = bindings
            .sql
            .iter()
            .filter(|(_, binding)| !matches!(binding, SqlBindingConfig::Sqlite { .. }))
            .map(|(name, binding)| (name.clone(), binding.clone()))
            .collect();
        match Databases::open(&config.data_dir, remote) {
            Err(error) => self.failed("sql", error.to_string(), None),
            Ok(databases) => {
                for state in databases.state().await {
                    let what = format!("sql/{} ({})", state.name, state.backend);
                    let superuser = state.down.is_none()
                        && databases.is_superuser(&state.name).await == Some(true);
                    self.reachable(what.clone(), state.down);
                    if superuser {
                        let mend =
                            "make a role of its own for guests, with rights on its tables only";
                        self.warning(
                            what,
                            "its role is a superuser: guests could do anything",
                            Some(mend.into()),
                        );
                    }
                }
            }
        }
        let embedded = bindings
            .vectors
            .values()
            .filter(|binding| matches!(binding.backend, VectorBackend::Local))
            .count()
            + bindings
                .keyvalue
                .values()
                .filter(|binding| matches!(binding, KeyValueBindingConfig::Local { .. }))
                .count()
            + bindings
                .sql
                .values()
                .filter(|binding| matches!(binding, SqlBindingConfig::Sqlite { .. }))
                .count();
        if embedded > 0 {
            self.ok(
                "embedded bindings",
                format!("{embedded}, in the data directory"),
            );
        }
    }

    fn reachable(&mut self, what: String, down: Option<String>) {
        match down {
            None => self.ok(what, "reachable"),
            Some(reason) => self.failed(
                what,
                reason,
                Some("check the binding's url and that the service runs".into()),
            ),
        }
    }

    fn report(self, json: bool) -> Result<(), Failure> {
        let failed = self
            .0
            .iter()
            .filter(|check| check.status == Status::Failed)
            .count();
        let noun = if failed == 1 { "check" } else { "checks" };
        let outcome = format!("{failed} {noun} failed");
        if json {
            if failed == 0 {
                output::json(&serde_json::json!({"ok": true, "checks": self.0}));
                return Ok(());
            }
            // One JSON value in all: the problem is the report.
            return Err(Failure::Refused(serde_json::json!({
                "type": "urn:stepwell:problem:unhealthy",
                "title": "Something is missing",
                "detail": outcome,
                "code": "unhealthy",
                "ok": false,
                "checks": self.0,
            })));
        } else {
            let rows = self
                .0
                .iter()
                .map(|check| {
                    let mark = match check.status {
                        Status::Ok => "ok",
                        Status::Warning => "warning",
                        Status::Failed => "FAILED",
                    };
                    let mend = check
                        .mend
                        .as_ref()
                        .map_or_else(String::new, |mend| format!(" → {mend}"));
                    vec![
                        mark.to_owned(),
                        check.what.clone(),
                        format!("{}{mend}", check.finding),
                    ]
                })
                .collect();
            output::table(&["", "what", "finding"], rows, "nothing to check");
        }
        if failed > 0 {
            return Err(Failure::Local(outcome));
        }
        Ok(())
    }
}

/// `HOST:PORT` of a URL.
fn host_and_port(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let default = if scheme == "https" { 443 } else { 80 };
    let has_port = authority
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    Some(if has_port {
        authority.to_owned()
    } else {
        format!("{authority}:{default}")
    })
}
