//! What goes on for as long as the host does, beside what it was started for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use stepwell_core::{Name, Quotas};
use stepwell_kafka_trigger::KafkaTriggers;
use stepwell_pipeline::{Dispatcher, Registry};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::allocator::{self, Allocator};
use crate::series::{Living, Series};

/// Holds runs to the quotas of their namespaces, as they are set now.
pub(super) async fn hold_to_quotas(
    mut quotas: watch::Receiver<Arc<HashMap<Name, Quotas>>>,
    dispatcher: Dispatcher,
    stopping: CancellationToken,
) {
    loop {
        let now = HashMap::clone(&quotas.borrow_and_update());
        dispatcher.set_quotas(now);
        tokio::select! {
            () = stopping.cancelled() => return,
            changed = quotas.changed() => if changed.is_err() { return },
        }
    }
}

/// Forgets, now and then, what is no more: what the dispatcher holds of it, and its metrics. Subscriptions that could not be started
/// are tried again. Memory that bursts have left behind is given back when nothing runs.
pub(super) async fn upkeep(
    metrics: Arc<Series>,
    dispatcher: Dispatcher,
    registry: Arc<Registry>,
    kafka: Arc<KafkaTriggers>,
    stopping: CancellationToken,
) {
    let mut ticks = tokio::time::interval(Duration::from_secs(5));
    // Somebody may hold a series a while longer, who counts with it or renders it.
    let mut looks = 0_u32;
    let mut allocator = Allocator::default();
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            _ = ticks.tick() => {}
        }
        kafka.retry();
        if dispatcher.forget_unused() {
            looks = 3;
        }
        // As long as nothing goes, a host of many pipelines does not look at all their series.
        if looks > 0 {
            looks -= 1;
            let groups = kafka.state().into_iter().map(|one| one.group).collect();
            metrics.retain(&Living::new(&registry.all(), &dispatcher, &groups));
        }
        if allocator.has_grown() && dispatcher.is_idle() {
            let _ = tokio::task::spawn_blocking(allocator::trim).await;
            allocator.was_trimmed();
        }
    }
}
