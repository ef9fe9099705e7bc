//! Replies that cannot be sent: the run has succeeded, and its caller is answered with a 500 all the same.

use std::time::Instant;

use stepwell_core::RunId;
use stepwell_core::log_rate::LogRate;
use stepwell_pipeline::Deployment;

/// What is logged of them: no run fails that could tell.
#[derive(Default)]
pub(crate) struct Unusable(LogRate);

impl Unusable {
    pub(crate) fn note(&self, run_id: RunId, deployment: &Deployment, reason: &str) {
        let Deployment {
            namespace, name, ..
        } = deployment;
        let line = self.0.next(Instant::now());
        let replies = "replies that cannot be sent";
        if let Some(left_out) = line.left_out(replies, "stepwell_http_requests_total") {
            tracing::warn!("{left_out}");
        }
        if !line.is_whole() {
            return;
        }
        tracing::warn!(%run_id, %namespace, pipeline = %name, reason, "a reply cannot be sent");
    }
}
