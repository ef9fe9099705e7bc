//! Guests that fail when their responses have been answered: no run is left to fail with them.

use std::time::Instant;

use metrics::counter;
use stepwell_core::StepError;
use stepwell_core::log_rate::LogRate;

/// What is logged of the guests of one step that fail so. They could do it thousands of times a second.
#[derive(Default)]
pub(crate) struct Late {
    /// Whose guests they are, as people know it.
    pub(crate) step: String,
    rate: LogRate,
}

impl Late {
    /// A guest has failed.
    pub(crate) fn note(&self, error: &StepError) {
        counter!("stepwell_guests_failed_late_total").increment(1);
        let step = self.step.as_str();
        let line = self.rate.next(Instant::now());
        let failures = "guests that failed after their responses";
        if let Some(left_out) = line.left_out(failures, "stepwell_guests_failed_late_total") {
            tracing::warn!(step, "{left_out}");
        }
        if !line.is_whole() {
            return;
        }
        tracing::warn!(step, %error, "a guest failed after its response");
    }
}
