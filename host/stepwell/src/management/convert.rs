//! The words of the catalog, the engine and the interfaces in those of the API.

use semver::Version;
use stepwell_api::{
    ApiError, Change, ErrorCode, Expected, Items, LogLevel, LogLine, LogQuery, Model, ModelVersion,
    Page, Plugin, PluginVersion, Revision, Step, Tensor,
};
use stepwell_catalog::{self as catalog, CatalogError};
use stepwell_core::{Digest, Name};
use stepwell_engine::{LoadError, Refused};
use stepwell_inference::{DEFAULT_SIGNATURE, ModelStatus, TensorInfo, VersionState};
use stepwell_logging::{Level, LogEntry, LogFilter};

use crate::deployer::ApplyError;

/// A page of a list that is whole in memory, in the order of keys; the cursor is the last item's key.
pub(super) fn cut<T>(all: Vec<T>, page: &Page, key: impl Fn(&T) -> String) -> Items<T> {
    // By the order and not by the item itself, which may be gone by now.
    let is_wanted = |item: &T| page.cursor.as_ref().is_none_or(|last| key(item) > *last);
    let mut items: Vec<T> = all.into_iter().filter(is_wanted).collect();
    items.sort_by_cached_key(&key);
    let limit = page.limit as usize;
    let more = items.len() > limit;
    items.truncate(limit);
    let next_cursor = items.last().filter(|_| more).map(key);
    Items { items, next_cursor }
}

pub(super) fn to_catalog(page: &Page) -> catalog::Page {
    catalog::Page {
        limit: page.limit,
        cursor: page.cursor.clone(),
    }
}

pub(super) fn items<A, B>(paged: catalog::Paged<A>, convert: impl Fn(A) -> B) -> Items<B> {
    Items {
        items: paged.items.into_iter().map(convert).collect(),
        next_cursor: paged.next,
    }
}

pub(super) fn plugin(plugin: catalog::Plugin) -> Plugin {
    let latest = plugin
        .versions
        .iter()
        .map(|version| &version.version)
        .filter(|version| version.pre.is_empty())
        .max();
    Plugin {
        name: plugin.name,
        latest: latest.cloned(),
        versions: plugin.versions.into_iter().map(plugin_version).collect(),
    }
}

pub(super) fn plugin_version(stored: catalog::PluginVersion) -> PluginVersion {
    PluginVersion {
        name: stored.name,
        version: stored.version,
        digest: stored.digest,
        world: stored.world,
        imports: stored.imports,
        exports: stored.exports,
        size: stored.size,
        compile_ms: stored.compile_ms,
        created_at: stored.created_at,
    }
}

pub(super) fn revision(stored: catalog::PipelineRevision) -> Revision {
    let steps = steps(&stored.document, |id| {
        let pinned = stored.steps.iter().find(|step| step.id.as_str() == id)?;
        Some((pinned.plugin.clone(), pinned.version.clone(), pinned.digest))
    });
    Revision {
        name: stored.name,
        revision: stored.revision,
        document: stored.document,
        source: stored.source.unwrap_or_default(),
        steps,
        created_at: Some(stored.created_at),
    }
}

/// The steps of a document, in its order, with what they are pinned to.
pub(super) fn steps(
    document: &serde_json::Value,
    pin: impl Fn(&str) -> Option<(Name, Version, Digest)>,
) -> Vec<Step> {
    let nodes = document
        .get("steps")
        .and_then(serde_json::Value::as_array)
        .into_iter()
        .flatten();
    nodes
        .filter_map(|node| {
            let text = |key: &str| node.get(key).and_then(serde_json::Value::as_str);
            let id = text("id")?;
            let (plugin, version, digest) = match pin(id) {
                Some((plugin, version, digest)) => (Some(plugin), Some(version), Some(digest)),
                None => (None, None, None),
            };
            Some(Step {
                id: id.parse().ok()?,
                plugin,
                version,
                digest,
                model: text("model").map(str::to_owned),
            })
        })
        .collect()
}

pub(super) fn model(status: ModelStatus) -> Model {
    let tensor = |info: &TensorInfo| Tensor {
        name: info.name.clone(),
        datatype: info.datatype.to_string(),
        shape: info.shape.clone().unwrap_or_default(),
    };
    Model {
        name: status.name,
        versions: status
            .versions
            .into_iter()
            .map(|version| {
                let signature = version
                    .signatures
                    .get(DEFAULT_SIGNATURE)
                    .or_else(|| version.signatures.values().next());
                ModelVersion {
                    version: version.version.clone(),
                    state: match version.state {
                        VersionState::Loading => "loading",
                        VersionState::Available => "available",
                        VersionState::End => "end",
                    }
                    .to_owned(),
                    reason: version.reason.clone(),
                    platform: version
                        .platform
                        .clone()
                        .unwrap_or_else(|| "tensorflow_savedmodel".to_owned()),
                    inputs: signature
                        .map(|signature| signature.inputs.iter().map(tensor).collect())
                        .unwrap_or_default(),
                    outputs: signature
                        .map(|signature| signature.outputs.iter().map(tensor).collect())
                        .unwrap_or_default(),
                }
            })
            .collect(),
    }
}

pub(super) fn filter(namespace: &Name, query: &LogQuery) -> LogFilter {
    LogFilter {
        namespace: Some(namespace.to_string()),
        pipeline: query.pipeline.as_ref().map(ToString::to_string),
        step: query.step.as_ref().map(ToString::to_string),
        level: query.level.map(|level| match level {
            LogLevel::Trace => Level::Trace,
            LogLevel::Debug => Level::Debug,
            LogLevel::Info => Level::Info,
            LogLevel::Warn => Level::Warn,
            LogLevel::Error => Level::Error,
        }),
        run: None,
        limit: Some(query.limit as usize),
    }
}

pub(super) fn line(entry: &LogEntry) -> LogLine {
    let mut fields = serde_json::Map::new();
    fields.insert(
        "source".into(),
        serde_json::to_value(entry.source).unwrap_or_default(),
    );
    fields.insert("revision".into(), entry.revision.into());
    if let Some(plugin) = &entry.plugin {
        fields.insert("plugin".into(), plugin.as_str().into());
    }
    if !entry.context.is_empty() {
        fields.insert("context".into(), entry.context.as_str().into());
    }
    if let Some(fault) = &entry.fault {
        fields.insert("trap".into(), fault.kind.as_str().into());
        fields.insert("backtrace".into(), fault.backtrace.clone().into());
    }
    LogLine {
        time: entry.time,
        level: match entry.level {
            Level::Trace => LogLevel::Trace,
            Level::Debug => LogLevel::Debug,
            Level::Info => LogLevel::Info,
            Level::Warn => LogLevel::Warn,
            Level::Error | Level::Critical => LogLevel::Error,
        },
        pipeline: Some(entry.pipeline.to_string()),
        step: entry.step.clone(),
        run_id: Some(entry.run_id.to_string()),
        message: entry.message.clone(),
        fields,
    }
}

pub(super) fn missed(count: u64) -> LogLine {
    LogLine {
        time: time::OffsetDateTime::now_utc(),
        level: LogLevel::Warn,
        pipeline: None,
        step: None,
        run_id: None,
        message: format!("{count} lines came faster than they were read, and are not shown"),
        fields: serde_json::Map::new(),
    }
}

pub(super) fn expected(expected: Expected) -> catalog::Expected {
    match expected {
        Expected::Any => catalog::Expected::Any,
        Expected::Exists => catalog::Expected::Exists,
        Expected::Absent => catalog::Expected::Absent,
        Expected::Revision(revision) => catalog::Expected::Revision(revision),
    }
}

pub(super) fn change(change: catalog::Change) -> Change {
    match change {
        catalog::Change::Created => Change::Created,
        catalog::Change::Changed => Change::Changed,
        catalog::Change::Unchanged => Change::Unchanged,
    }
}

pub(super) fn version_exists(stored: &catalog::PluginVersion) -> ApiError {
    let (name, version) = (&stored.name, &stored.version);
    ApiError::new(
        ErrorCode::VersionExists,
        format!(
            "{name}@{version} exists with other bytes ({})",
            stored.digest
        ),
    )
    .with_hint("", "versions never change: push it under a higher version")
}

pub(super) fn refused(refused: Refused) -> ApiError {
    let code = match refused.code {
        "not-wasm" => ErrorCode::NotWasm,
        "core-module" => ErrorCode::CoreModule,
        "truncated" => ErrorCode::Truncated,
        "unknown-import" => ErrorCode::UnknownImport,
        "unknown-world" => ErrorCode::UnknownWorld,
        "too-large" => ErrorCode::TooLarge,
        _ => ErrorCode::InvalidComponent,
    };
    let error = ApiError::new(code, refused.message);
    match refused.hint {
        Some(hint) => error.with_hint("", hint),
        None => error,
    }
}

pub(super) fn not_loadable(error: LoadError) -> ApiError {
    match error {
        LoadError::Refused(why) => refused(why),
        LoadError::TooSlow { .. } => ApiError::new(ErrorCode::CompileTimeout, error.to_string()),
        LoadError::TooBig { .. } | LoadError::TooMuchCode { .. } | LoadError::Crashed { .. } => {
            ApiError::new(ErrorCode::CompileFailed, error.to_string())
        }
        LoadError::Busy => ApiError::busy(error.to_string()),
        LoadError::Unreadable { .. } => ApiError::new(ErrorCode::Unavailable, error.to_string()),
        LoadError::Damaged { .. } => ApiError::new(ErrorCode::Corrupt, error.to_string()),
        // The disk is full, too many files are open: it may be better soon, and the log says what it is.
        LoadError::Host { digest, reason } => ApiError::new(
            ErrorCode::Unavailable,
            format!("the component {digest} cannot be compiled now; the host's log says why"),
        )
        .caused_by(reason),
    }
}

pub(super) fn from_apply(error: ApplyError) -> ApiError {
    match error {
        ApplyError::Catalog(error) => from_catalog(error),
        ApplyError::NotDeployable(_) | ApplyError::TooSlow(_) | ApplyError::Abandoned => {
            ApiError::new(ErrorCode::Unavailable, error.to_string())
        }
        ApplyError::Overtaken(_) => ApiError::new(ErrorCode::Conflict, error.to_string()),
        ApplyError::Invalid(problems) => {
            let count = problems.len();
            let noun = if count == 1 { "mistake" } else { "mistakes" };
            ApiError::new(
                ErrorCode::InvalidPipeline,
                format!("the pipeline document has {count} {noun}"),
            )
            .with_errors(problems)
        }
    }
}

pub(super) fn from_catalog(error: CatalogError) -> ApiError {
    let code = match &error {
        CatalogError::NotFound(_) => ErrorCode::NotFound,
        CatalogError::InUse { .. }
        | CatalogError::NotEmpty { .. }
        | CatalogError::DefaultNamespace => ErrorCode::InUse,
        CatalogError::QuotaExceeded { .. } => ErrorCode::QuotaExceeded,
        CatalogError::Nul => ErrorCode::BadRequest,
        CatalogError::TooMany { .. } => ErrorCode::Conflict,
        CatalogError::Stale { .. } => ErrorCode::Stale,
        CatalogError::Moved => ErrorCode::Conflict,
        CatalogError::PluginsGone(_) => ErrorCode::PluginGone,
        CatalogError::CorruptBlob(_) | CatalogError::Corrupt(_) => ErrorCode::Corrupt,
        CatalogError::TooNew { .. } | CatalogError::Unavailable { .. } => ErrorCode::Unavailable,
        CatalogError::Refused(..) => ErrorCode::Internal,
    };
    if let CatalogError::QuotaExceeded {
        namespace, quota, ..
    } = &error
    {
        metrics::counter!(
            "stepwell_quota_refusals_total",
            "namespace" => namespace.to_string(),
            "quota" => *quota,
        )
        .increment(1);
    }
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    let error = ApiError::new(code, error.to_string());
    match cause {
        Some(cause) => error.caused_by(cause),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_goes_on_after_an_item_that_is_gone() {
        let part = |all: &[&str], cursor: Option<&str>| {
            let page = Page {
                limit: 2,
                cursor: cursor.map(str::to_owned),
            };
            let all = all.iter().map(|text| (*text).to_owned()).collect();
            let part = cut(all, &page, String::clone);
            (part.items.join(" "), part.next_cursor)
        };
        let all = ["d", "a", "c", "b", "e"];
        assert_eq!(part(&all, None), ("a b".into(), Some("b".into())));
        assert_eq!(part(&all, Some("b")), ("c d".into(), Some("d".into())));
        assert_eq!(part(&all, Some("d")), ("e".into(), None));
        // `b` went between the first part and the second.
        let left = ["d", "a", "c", "e"];
        assert_eq!(part(&left, Some("b")), ("c d".into(), Some("d".into())));
        assert_eq!(part(&left, Some("\0")), ("a c".into(), Some("c".into())));
        assert_eq!(part(&left, Some("z")), (String::new(), None));
    }
}
