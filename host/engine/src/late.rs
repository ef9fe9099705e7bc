//! Guests that fail when their responses have been answered: no run is left to fail with them.

use std::time::Instant;

use metrics::counter;
use stepwell_core::StepError;
use stepwell_core::log_rate::{Line, LogRate};

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
        match self.rate.next(Instant::now()) {
            Line::Whole { left_out: 0 } => {}
            Line::Whole { left_out } => {
                tracing::warn!(
                    step,
                    left_out,
                    "guests that failed after their responses were left out of the log"
                );
            }
            Line::FirstLeftOut => {
                tracing::warn!(
                    step,
                    "guests fail too fast after their responses: most are left out of the log; stepwell_guests_failed_late_total counts them all"
                );
                return;
            }
            Line::LeftOut => return,
        }
        tracing::warn!(step, %error, "a guest failed after its response");
    }
}
