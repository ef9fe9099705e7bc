//! The configuration: flags over environment over `stepwell.toml` over defaults, read so that every mistake is reported at once.

mod bindings;
mod egress;
mod environment;
mod kafka;
mod limits;
mod listeners;
mod secret;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use stepwell_catalog::Location;
use stepwell_core::{BindingKind, Problem, Secret, parse_lifetime};
use stepwell_document::{At, MapReader, Node, Position, Problems, parse_toml};
use stepwell_egress::EgressConfig;
use stepwell_inference::ModelBindingConfig;
use stepwell_kafka_trigger::KafkaConfig;
use stepwell_keyvalue::KeyValueBindingConfig;
use stepwell_sql::SqlBindingConfig;
use stepwell_vector::VectorBindingConfig;

pub(crate) use self::limits::HostLimits;
pub(crate) use self::listeners::JwtConfig;
use self::secret::SecretReader;
use crate::input;
use crate::reach::Reach;
use crate::tls::TlsFiles;

/// The file that `stepwell serve` reads when it is there and no other is named.
pub(crate) const DEFAULT_FILE: &str = "stepwell.toml";

/// Everything that an operator may decide.
#[derive(Debug)]
pub(crate) struct Config {
    /// The file that was read, if one was.
    pub(crate) file: Option<PathBuf>,
    pub(crate) listen: SocketAddr,
    pub(crate) admin_listen: SocketAddr,
    pub(crate) data_dir: PathBuf,
    pub(crate) admin_token: Option<Secret>,
    /// The data listener's certificate; none: it is plain.
    pub(crate) tls: Option<TlsFiles>,
    /// The admin listener's, which is the same unless the file says otherwise.
    pub(crate) admin_tls: Option<TlsFiles>,
    pub(crate) jwt: JwtConfig,
    /// How long runs may go on after the signal to stop; `terminationGracePeriodSeconds` of a deployment must be longer.
    pub(crate) grace_period: Duration,
    pub(crate) catalog: Location,
    pub(crate) kafka: KafkaConfig,
    pub(crate) models_directory: PathBuf,
    /// Where libtensorflow is; none: looked for in the usual places.
    pub(crate) models_library: Option<PathBuf>,
    pub(crate) limits: HostLimits,
    /// Outbound HTTP of guests.
    pub(crate) egress: EgressConfig,
    /// How long records of the audit log are kept.
    pub(crate) keep_audit: Duration,
    /// Where traces go; none: nowhere.
    pub(crate) otlp_endpoint: Option<String>,
    pub(crate) service_name: String,
    pub(crate) bindings: Bindings,
    /// Who may use them, and which names of Kafka.
    pub(crate) reach: Reach,
    /// What works, but should not stay.
    pub(crate) warnings: Vec<Problem>,
}

/// The operator's named resources.
#[derive(Debug, Default)]
pub(crate) struct Bindings {
    pub(crate) models: BTreeMap<String, ModelBindingConfig>,
    pub(crate) vectors: BTreeMap<String, VectorBindingConfig>,
    pub(crate) keyvalue: BTreeMap<String, KeyValueBindingConfig>,
    pub(crate) sql: BTreeMap<String, SqlBindingConfig>,
}

impl Bindings {
    /// Every binding's kind and name, whoever may use it.
    pub(crate) fn names(&self) -> Vec<(BindingKind, String)> {
        let of = |kind, names: Vec<&String>| {
            names
                .into_iter()
                .map(move |name| (kind, name.clone()))
                .collect::<Vec<_>>()
        };
        [
            of(BindingKind::Models, self.models.keys().collect()),
            of(BindingKind::Vectors, self.vectors.keys().collect()),
            of(BindingKind::Keyvalue, self.keyvalue.keys().collect()),
            of(BindingKind::Sql, self.sql.keys().collect()),
        ]
        .concat()
    }
}

/// What flags may override.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) listen: Option<String>,
    pub(crate) admin_listen: Option<String>,
}

/// Everything that is wrong with the configuration.
#[derive(Debug)]
pub(crate) struct ConfigError {
    pub(crate) file: PathBuf,
    pub(crate) problems: Vec<Problem>,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        let noun = if count == 1 { "mistake" } else { "mistakes" };
        write!(f, "{count} {noun} in the configuration")?;
        for problem in &self.problems {
            if problem.line.is_some() {
                write!(f, "\n  {}:{problem}", self.file.display())?;
            } else {
                write!(f, "\n  {problem}")?;
            }
        }
        Ok(())
    }
}

impl Config {
    /// Reads the configuration: `file` if it is named (then it must be there), else [`DEFAULT_FILE`] if it is there.
    pub(crate) fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Self, ConfigError> {
        let environment = |name: &str| std::env::var(name).ok();
        let path = file.map_or_else(|| PathBuf::from(DEFAULT_FILE), Path::to_path_buf);
        let text = match input::read_text(&path, input::MOST_TEXT) {
            Ok(text) => Some(text),
            Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(ConfigError {
                    problems: vec![Problem {
                        path: String::new(),
                        line: None,
                        column: None,
                        message: format!("cannot read {}: {error}", path.display()),
                        hint: None,
                    }],
                    file: path,
                });
            }
        };
        let found = text.is_some().then(|| path.clone());
        Self::parse(
            found,
            text.as_deref().unwrap_or(""),
            overrides,
            &environment,
        )
        .map_err(|problems| ConfigError {
            file: path,
            problems,
        })
    }

    fn parse(
        file: Option<PathBuf>,
        text: &str,
        overrides: &Overrides,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, Vec<Problem>> {
        let mut root = parse_toml(text)?;
        let overlaid = environment::overlay(&mut root, overrides, environment);
        let base = file
            .as_deref()
            .and_then(Path::parent)
            .map_or_else(PathBuf::new, Path::to_path_buf);
        let problems = Problems::default();
        let reader = Reader {
            secrets: SecretReader::new(&base, environment),
            base: &base,
            overlaid: &overlaid,
        };
        let config = reader.read(&root, &problems, file);
        let mut problems = problems.into_sorted();
        if problems.is_empty()
            && let Some(mut config) = config
        {
            config.warnings = reader.secrets.into_warnings();
            return Ok(config);
        }
        for problem in &mut problems {
            overlaid.name_source(problem);
        }
        Err(problems)
    }
}

struct Reader<'a> {
    secrets: SecretReader<'a>,
    base: &'a Path,
    overlaid: &'a environment::Overlaid,
}

impl Reader<'_> {
    // Each section is read whether or not the ones before it were right: the mistakes of all of them are wanted.
    fn read(&self, root: &Node, problems: &Problems, file: Option<PathBuf>) -> Option<Config> {
        let mut sections = At::root(root, problems).mapping()?;
        let server = self.server(&mut section(&mut sections, "server"));
        let data_dir = server
            .as_ref()
            .map_or_else(PathBuf::new, |server| server.data_dir.clone());
        let catalog = self.catalog(&mut section(&mut sections, "catalog"), &data_dir);
        let (kafka, owners) = kafka::kafka(&mut section(&mut sections, "kafka"), &self.secrets);
        let (models_directory, models_library) = self.models(&mut section(&mut sections, "models"));
        let limits = limits::limits(&mut section(&mut sections, "limits"));
        let egress = self.egress(&mut section(&mut sections, "egress"));
        let keep_audit = audit(&mut section(&mut sections, "audit"));
        let (otlp_endpoint, service_name) = telemetry(&mut section(&mut sections, "telemetry"));
        let mut reach = Reach::default();
        let bindings = sections
            .optional("bindings")
            .and_then(|at| at.mapping())
            .map(|map| bindings::read(map, &self.secrets, &mut reach))
            .unwrap_or_default();
        reach.kafka = owners;
        sections.finish();
        let server = server?;
        Some(Config {
            file,
            listen: server.listen,
            admin_listen: server.admin_listen,
            data_dir: server.data_dir,
            admin_token: server.admin_token,
            tls: server.tls,
            admin_tls: server.admin_tls,
            jwt: server.jwt,
            grace_period: server.grace_period,
            catalog: catalog?,
            kafka: kafka?,
            models_directory,
            models_library,
            limits: limits?,
            egress: egress?,
            keep_audit: keep_audit?,
            otlp_endpoint,
            service_name,
            bindings,
            reach,
            warnings: Vec::new(),
        })
    }

    fn server(&self, section: &mut Section<'_>) -> Option<Server> {
        let listen = address(section, "listen", "127.0.0.1:8080");
        let admin_listen = address(section, "admin_listen", "127.0.0.1:8081");
        let data_dir = self.path(section, "data_dir", "stepwell-data");
        let token = section.optional("admin_token");
        let admin_token = token.as_ref().and_then(|at| self.admin_token(at));
        let grace_period = duration(section, "grace_period", Duration::from_secs(25));
        let tls = section.optional("tls").and_then(|at| self.tls(&at, "tls"));
        let admin_tls = section
            .optional("admin_tls")
            .map_or_else(|| tls.clone(), |at| self.admin_tls(&at, tls.as_ref()));
        let jwt = section
            .optional("jwt")
            .map(|at| self.jwt(&at))
            .unwrap_or_default();
        let at = section.optional("admin_listen");
        section.finish();
        let (listen, admin_listen) = (listen?, admin_listen?);
        if !admin_listen.ip().is_loopback() && token.is_none() {
            let message = format!(
                "the admin listener at {admin_listen} is not on loopback, and there is no admin_token"
            );
            let hint = "set [server] admin_token = { env = \"STEPWELL_ADMIN_TOKEN\" }, or listen on 127.0.0.1";
            match at {
                Some(at) => at.problem_with_hint(message, hint),
                None => section.problem(message, hint),
            }
        }
        Some(Server {
            listen,
            admin_listen,
            data_dir,
            admin_token,
            tls,
            admin_tls,
            jwt,
            grace_period: grace_period?,
        })
    }

    fn catalog(&self, section: &mut Section<'_>, data_dir: &Path) -> Option<Location> {
        let at = section.optional("url");
        section.finish();
        let Some(at) = at else {
            return Location::parse(&Secret::new("sqlite"), data_dir).ok();
        };
        let url = self.secrets.read_url(&at)?;
        match Location::parse(&url, data_dir) {
            Ok(location) => Some(location),
            Err(error) => {
                at.problem(error.to_string());
                None
            }
        }
    }

    fn models(&self, section: &mut Section<'_>) -> (PathBuf, Option<PathBuf>) {
        let directory = self.path(section, "directory", "models");
        let library = match section.optional("library") {
            Some(at) if at.string() != Some("auto") => {
                at.string().map(|text| self.resolve(&at, text))
            }
            _ => None,
        };
        section.finish();
        (directory, library)
    }

    fn path(&self, section: &mut Section<'_>, key: &'static str, default: &str) -> PathBuf {
        match section.optional(key) {
            Some(at) => at
                .string()
                .map_or_else(PathBuf::new, |text| self.resolve(&at, text)),
            None => self.base.join(default),
        }
    }

    /// A path of the file is relative to the file; one of a flag or the environment to the working directory.
    fn resolve(&self, at: &At<'_>, text: &str) -> PathBuf {
        if self.overlaid.source(at.path()).is_some() {
            PathBuf::from(text)
        } else {
            self.base.join(text)
        }
    }
}

struct Server {
    listen: SocketAddr,
    admin_listen: SocketAddr,
    data_dir: PathBuf,
    admin_token: Option<Secret>,
    tls: Option<TlsFiles>,
    admin_tls: Option<TlsFiles>,
    jwt: JwtConfig,
    grace_period: Duration,
}

/// A section that may be absent: then every key of it is.
struct Section<'a> {
    reader: Option<MapReader<'a>>,
    root: At<'a>,
}

fn section<'a>(sections: &mut MapReader<'a>, name: &'static str) -> Section<'a> {
    Section {
        reader: sections.optional(name).and_then(|at| at.mapping()),
        root: sections.at().clone(),
    }
}

impl<'a> Section<'a> {
    fn optional(&mut self, key: &'static str) -> Option<At<'a>> {
        self.reader.as_mut().and_then(|reader| reader.optional(key))
    }

    fn problem(&self, message: String, hint: &str) {
        let at = self.reader.as_ref().map_or(&self.root, MapReader::at);
        at.problem_with_hint(message, hint);
    }

    fn finish(&mut self) {
        if let Some(reader) = &self.reader {
            reader.report_unknown();
        }
    }
}

fn address(section: &mut Section<'_>, key: &'static str, default: &str) -> Option<SocketAddr> {
    let Some(at) = section.optional(key) else {
        return default.parse().ok();
    };
    let text = at.string()?;
    // Names such as localhost are welcome, as everywhere else.
    let resolved = text
        .parse()
        .ok()
        .or_else(|| text.to_socket_addrs().ok()?.next());
    if resolved.is_none() {
        at.problem_with_hint(
            format!("'{text}' is not an address"),
            "write ADDRESS:PORT, such as 127.0.0.1:8080",
        );
    }
    resolved
}

fn duration(section: &mut Section<'_>, key: &'static str, default: Duration) -> Option<Duration> {
    section
        .optional(key)
        .map_or(Some(default), |at| at.duration())
}

fn audit(section: &mut Section<'_>) -> Option<Duration> {
    let keep = match section.optional("keep") {
        None => Some(Duration::from_secs(90 * 86_400)),
        Some(at) => match parse_lifetime(at.string()?) {
            Ok(time) if !time.is_zero() => Some(time),
            Ok(_) => {
                at.problem_with_hint("the audit log must be kept for a while", "such as 90d");
                None
            }
            Err(error) => {
                let hint = error
                    .hint
                    .clone()
                    .unwrap_or_else(|| "such as 90d".to_owned());
                at.problem_with_hint(error.to_string(), hint);
                None
            }
        },
    };
    section.finish();
    keep
}

fn telemetry(section: &mut Section<'_>) -> (Option<String>, String) {
    let endpoint = section.optional("otlp_endpoint").and_then(|at| {
        let text = at.string()?;
        if text.starts_with("http://") || text.starts_with("https://") {
            return Some(text.to_owned());
        }
        at.problem_with_hint(
            format!("'{text}' is not a URL"),
            "such as http://127.0.0.1:4318",
        );
        None
    });
    let name = section
        .optional("service_name")
        .and_then(|at| at.string())
        .unwrap_or("stepwell")
        .to_owned();
    section.finish();
    (endpoint, name)
}

/// Where an overlaid value stands: nowhere in the file.
const NOWHERE: Position = Position { line: 0, column: 0 };

#[cfg(test)]
mod tests;
