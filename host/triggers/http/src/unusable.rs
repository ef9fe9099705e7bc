//! Replies that cannot be sent: the run has succeeded, and its caller is answered with a 500 all the same.

use std::time::Instant;

use stepwell_core::RunId;
use stepwell_core::log_rate::{Line, LogRate};
use stepwell_pipeline::Deployment;

/// What is logged of them: no run fails that could tell.
#[derive(Default)]
pub(crate) struct Unusable(LogRate);

impl Unusable {
    pub(crate) fn note(&self, run_id: RunId, deployment: &Deployment, reason: &str) {
        let Deployment {
            namespace, name, ..
        } = deployment;
        match self.0.next(Instant::now()) {
            Line::Whole { left_out: 0 } => {}
            Line::Whole { left_out } => {
                tracing::warn!(
                    left_out,
                    "replies that cannot be sent were left out of the log"
                );
            }
            Line::FirstLeftOut => {
                tracing::warn!(
                    "too many replies cannot be sent: most are left out of the log; stepwell_http_requests_total counts them as 500"
                );
                return;
            }
            Line::LeftOut => return,
        }
        tracing::warn!(%run_id, %namespace, pipeline = %name, reason, "a reply cannot be sent");
    }
}
