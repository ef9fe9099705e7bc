use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use stepwell_core::{BindingKind, ByteSize, Name, STORE_SIZE};
use stepwell_document::{At, MapReader, Value};
use stepwell_inference::{ModelBindingConfig, ModelVersion};
use stepwell_keyvalue::KeyValueBindingConfig;
use stepwell_sql::SqlBindingConfig;
use stepwell_vector::{Metric, VectorBackend, VectorBindingConfig};

use super::Bindings;
use super::secret::SecretReader;
use crate::reach::Reach;

/// Reads `[bindings.KIND.NAME]`.
pub(super) fn read(
    mut kinds: MapReader<'_>,
    secrets: &SecretReader<'_>,
    reach: &mut Reach,
) -> Bindings {
    let mut kind = Kinds {
        kinds: &mut kinds,
        reach,
    };
    let models = kind.read(BindingKind::Models, model);
    let vectors = kind.read(BindingKind::Vectors, |map| vectors(map, secrets));
    let keyvalue = kind.read(BindingKind::Keyvalue, |map| keyvalue(map, secrets));
    let sql = kind.read(BindingKind::Sql, |map| sql(map, secrets));
    kinds.finish();
    Bindings {
        models,
        vectors,
        keyvalue,
        sql,
    }
}

struct Kinds<'a, 'b> {
    kinds: &'a mut MapReader<'b>,
    reach: &'a mut Reach,
}

impl Kinds<'_, '_> {
    fn read<T>(
        &mut self,
        kind: BindingKind,
        read: impl Fn(&mut MapReader<'_>) -> Option<T>,
    ) -> BTreeMap<String, T> {
        let mut bindings = BTreeMap::new();
        let entries = self
            .kinds
            .optional(kind.as_str())
            .and_then(|at| at.entries());
        for (key, at) in entries.unwrap_or_default() {
            if let Err(error) = key.name.parse::<Name>() {
                at.problem(error.to_string());
            }
            let Some(mut map) = at.mapping() else {
                continue;
            };
            if let Some(namespaces) = namespaces(&mut map) {
                self.reach.confine(kind, &key.name, namespaces);
            }
            let binding = read(&mut map);
            map.finish();
            if let Some(binding) = binding {
                bindings.insert(key.name.clone(), binding);
            }
        }
        bindings
    }
}

/// Those that a binding is for; none: all.
fn namespaces(map: &mut MapReader<'_>) -> Option<BTreeSet<Name>> {
    let at = map.optional("namespaces")?;
    let names = at.sequence()?;
    if names.is_empty() {
        at.problem("nobody could use it: name a namespace, or leave 'namespaces' out for all");
    }
    let name = |at: &At<'_>| parsed(at, at.string()?);
    Some(names.iter().filter_map(name).collect())
}

fn model(map: &mut MapReader<'_>) -> Option<ModelBindingConfig> {
    let model = map
        .required("model")
        .and_then(|at| parsed(&at, at.string()?));
    let version = match map.optional("version") {
        None => Some(ModelVersion::default()),
        Some(at) => match at.node().value {
            Value::Integer(number) => parsed(&at, &number.to_string()),
            _ => at.string().and_then(|text| parsed(&at, text)),
        },
    };
    Some(ModelBindingConfig {
        model: model?,
        version: version?,
    })
}

fn parsed<T: FromStr<Err: fmt::Display>>(at: &At<'_>, text: &str) -> Option<T> {
    text.parse()
        .inspect_err(|error: &T::Err| at.problem(error.to_string()))
        .ok()
}

fn vectors(map: &mut MapReader<'_>, secrets: &SecretReader<'_>) -> Option<VectorBindingConfig> {
    let backend = backend(map, "local", &["local", "pinecone"]);
    let dimension = map
        .required("dimension")
        .and_then(|at| at.integer(1, 20_000))
        .and_then(|number| u32::try_from(number).ok());
    let metric = match map.optional("metric") {
        None => Some("cosine"),
        Some(at) => at.one_of(&["cosine", "euclidean", "dotproduct"]),
    };
    let metric = match metric? {
        "euclidean" => Metric::Euclidean,
        "dotproduct" => Metric::Dotproduct,
        _ => Metric::Cosine,
    };
    let backend = match backend? {
        "pinecone" => {
            let host = map
                .required("host")
                .and_then(|at| at.string())
                .map(str::to_owned);
            let api_key = map.required("api_key").and_then(|at| secrets.read(&at));
            let namespace = map
                .optional("namespace")
                .and_then(|at| at.string())
                .map(str::to_owned);
            VectorBackend::Pinecone {
                host: host?,
                api_key: api_key?,
                namespace,
            }
        }
        _ => VectorBackend::Local,
    };
    let config = VectorBindingConfig {
        backend,
        dimension: dimension?,
        metric,
    };
    for (key, mistake) in config.mistakes() {
        let at = map.optional(key).unwrap_or_else(|| map.at().clone());
        at.problem(mistake);
    }
    Some(config)
}

fn keyvalue(map: &mut MapReader<'_>, secrets: &SecretReader<'_>) -> Option<KeyValueBindingConfig> {
    match backend(map, "local", &["local", "redis"])? {
        "redis" => {
            let at = map.required("url")?;
            let url = secrets.read_url(&at)?;
            let legal = ["redis://", "rediss://", "redis+unix://", "unix://"]
                .iter()
                .any(|scheme| url.expose().starts_with(scheme));
            if !legal {
                at.problem("a Redis URL starts with redis:// or rediss://");
            }
            Some(KeyValueBindingConfig::Redis { url })
        }
        _ => Some(KeyValueBindingConfig::Local {
            max_size: max_size(map)?,
        }),
    }
}

fn sql(map: &mut MapReader<'_>, secrets: &SecretReader<'_>) -> Option<SqlBindingConfig> {
    match backend(map, "sqlite", &["sqlite", "postgres"])? {
        "postgres" => {
            let url = map.required("url").and_then(|at| {
                let url = secrets.read_url(&at)?;
                let legal = ["postgres://", "postgresql://"]
                    .iter()
                    .any(|scheme| url.expose().starts_with(scheme));
                if !legal {
                    at.problem("a PostgreSQL URL starts with postgres://");
                }
                Some(url)
            });
            let max_connections = map.optional("max_connections").map_or(Some(10), |at| {
                at.integer(1, 1000)
                    .and_then(|number| u32::try_from(number).ok())
            });
            let statement_timeout = map
                .optional("statement_timeout")
                .map_or(Some(Duration::from_secs(5)), |at| at.duration());
            Some(SqlBindingConfig::Postgres {
                url: url?,
                max_connections: max_connections?,
                statement_timeout: statement_timeout?,
            })
        }
        _ => Some(SqlBindingConfig::Sqlite {
            max_size: max_size(map)?,
        }),
    }
}

/// How large the file of an embedded store may become.
fn max_size(map: &mut MapReader<'_>) -> Option<u64> {
    let Some(at) = map.optional("max_size") else {
        return Some(STORE_SIZE);
    };
    let size = at.size()?;
    if !SIZES.contains(&size) {
        at.problem(format!(
            "'max_size' is not between {} and {}",
            ByteSize(*SIZES.start()),
            ByteSize(*SIZES.end())
        ));
        return None;
    }
    Some(size)
}

/// Sizes that a store may have: SQLite has no more pages than make 16 TiB of 4 KiB each.
const SIZES: RangeInclusive<u64> = 1 << 20..=16 << 40;

fn backend(
    map: &mut MapReader<'_>,
    default: &'static str,
    backends: &[&'static str],
) -> Option<&'static str> {
    map.optional("backend")
        .map_or(Some(default), |at| at.one_of(backends))
}
