use std::time::Instant;

use metrics::{counter, gauge, histogram};
use tokio::sync::OwnedSemaphorePermit;

use crate::error::EgressError;

/// A request under way: its places among those of the call, the namespace and the host, and what is counted of it.
pub(crate) struct Flight {
    _places: [OwnedSemaphorePermit; 3],
    began: Instant,
    counted: bool,
}

impl Flight {
    pub(crate) fn new(places: [OwnedSemaphorePermit; 3]) -> Self {
        gauge!("stepwell_egress_requests_active").increment(1);
        Self {
            _places: places,
            began: Instant::now(),
            counted: false,
        }
    }

    /// The response's head is there.
    pub(crate) fn answered(&mut self) {
        self.count("answered");
    }

    /// There will be no response.
    pub(crate) fn failed(mut self, error: &EgressError) {
        count_denied(error);
        self.count(error.outcome());
    }

    /// The response was read to its end.
    pub(crate) fn finished(self) {}

    /// The response broke off.
    pub(crate) fn cut_off(self, error: &EgressError) {
        counter!("stepwell_egress_responses_cut_off_total", "reason" => error.outcome())
            .increment(1);
    }

    fn count(&mut self, outcome: &'static str) {
        self.counted = true;
        counter!("stepwell_egress_requests_total", "outcome" => outcome).increment(1);
        histogram!("stepwell_egress_request_seconds").record(self.began.elapsed().as_secs_f64());
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        gauge!("stepwell_egress_requests_active").decrement(1);
        if !self.counted {
            self.count("cancelled");
        }
    }
}

/// Counts a request that was refused before anything was done for it.
pub(crate) fn count_refused(error: &EgressError) {
    count_denied(error);
    counter!("stepwell_egress_requests_total", "outcome" => error.outcome()).increment(1);
}

fn count_denied(error: &EgressError) {
    if let Some(reason) = error.denied() {
        counter!("stepwell_egress_denied_total", "reason" => reason).increment(1);
    }
}
