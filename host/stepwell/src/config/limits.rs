//! What the host as a whole may use.

use std::time::Duration;

use stepwell_catalog::CatalogLimits;
use stepwell_core::ByteSize;

use super::{Section, duration};

/// Limits of the host as a whole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostLimits {
    /// Bytes of the largest component that may be uploaded.
    pub(crate) component: u64,
    /// Bytes of all components that are being uploaded.
    pub(crate) uploads: u64,
    /// Time that compiling one component may take.
    pub(crate) compile: Duration,
    /// Bytes of memory that compiling one component may take.
    pub(crate) compile_memory: u64,
    /// Bytes of compiled components that are kept on disk.
    pub(crate) cache: u64,
    /// Components that stay loaded between calls.
    pub(crate) loaded_components: usize,
    /// Runs that may be under way at once.
    pub(crate) concurrent_runs: usize,
    /// Bytes of requests' bodies that are held at once.
    pub(crate) bodies: u64,
    /// Kafka triggers of all pipelines.
    pub(crate) subscriptions: usize,
    /// What the catalog keeps of pipelines and their revisions.
    pub(crate) catalog: CatalogLimits,
    /// Bytes of linear memory that all guests together may hold; none: as the engine has it.
    pub(crate) guest_memory: Option<u64>,
}

/// `[limits]`.
pub(super) fn limits(section: &mut Section<'_>) -> Option<HostLimits> {
    let component = section
        .optional("component")
        .map_or(Some(64 << 20), |at| at.size());
    let uploads = section.optional("uploads");
    let uploads = match (&uploads, component) {
        (None, component) => component.map(|component| component.saturating_mul(4)),
        (Some(at), component) => at.size().filter(|uploads| {
            let fits = component.is_none_or(|component| *uploads >= component);
            if !fits {
                at.problem("'uploads' is less than limits.component: the largest component could never be uploaded");
            }
            fits
        }),
    };
    let compile = duration(section, "compile", Duration::from_secs(120));
    let compile_memory = at_least(section, "compile_memory", 4 << 30, 16 << 20);
    let cache = at_least(section, "cache", 10 << 30, 1 << 20);
    let loaded_components = section
        .optional("loaded_components")
        .map_or(Some(1000), |at| {
            at.integer(1, 1_000_000)
                .and_then(|number| usize::try_from(number).ok())
        });
    let kept = CatalogLimits::default();
    // With a single revision there would be nothing to roll back to.
    let revisions = count(section, "revisions", kept.revisions, 2, 100_000);
    let pipelines = count(section, "pipelines", kept.pipelines, 1, 1_000_000);
    let concurrent_runs = section
        .optional("concurrent_runs")
        .map_or(Some(1024), |at| {
            at.integer(1, 1_000_000)
                .and_then(|number| usize::try_from(number).ok())
        });
    let subscriptions = count(section, "subscriptions", 256, 1, 100_000)
        .and_then(|number| usize::try_from(number).ok());
    let bodies = at_least(section, "bodies", 256 << 20, 1 << 20);
    let guest_memory = section
        .optional("guest_memory")
        .map_or(Some(None), |at| at.size().map(Some));
    section.finish();
    Some(HostLimits {
        component: component?,
        uploads: uploads?,
        compile: compile?,
        compile_memory: compile_memory?,
        cache: cache?,
        loaded_components: loaded_components?,
        concurrent_runs: concurrent_runs?,
        bodies: bodies?,
        subscriptions: subscriptions?,
        catalog: CatalogLimits {
            revisions: revisions?,
            pipelines: pipelines?,
        },
        guest_memory: guest_memory?,
    })
}

/// A number with a default and bounds.
fn count(
    section: &mut Section<'_>,
    key: &'static str,
    default: u64,
    least: i64,
    most: i64,
) -> Option<u64> {
    let Some(at) = section.optional(key) else {
        return Some(default);
    };
    at.integer(least, most)
        .and_then(|number| u64::try_from(number).ok())
}

/// A size with a default and a least value that makes sense.
fn at_least(section: &mut Section<'_>, key: &'static str, default: u64, least: u64) -> Option<u64> {
    let Some(at) = section.optional(key) else {
        return Some(default);
    };
    let size = at.size()?;
    if size < least {
        at.problem(format!("'{key}' is less than {}", ByteSize(least)));
        return None;
    }
    Some(size)
}
