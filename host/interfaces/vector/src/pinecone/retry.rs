//! When a request to a service is sent again: the policy of Pinecone's own clients.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Requests after the first.
pub(crate) const MAX_RETRIES: u32 = 3;
const BASE: f64 = 0.25;
const CAP: f64 = 60.0;

const FULL: f64 = 100.0;
const EARNED_BY_SUCCESS: f64 = 0.1;

/// Whether a reply with this status is worth asking again for.
pub(crate) fn is_retryable(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

/// The pauses between the attempts of one call: decorrelated jitter, or what the service asks for and up to half more, so
/// that callers who were refused together do not come back together.
#[derive(Default)]
pub(crate) struct Backoff {
    previous: Option<f64>,
}

impl Backoff {
    pub(crate) fn next(&mut self, retry_after: Option<Duration>) -> Duration {
        let pause = match retry_after {
            Some(asked) => {
                let asked = asked.as_secs_f64().min(CAP);
                asked + rand::random_range(0.0..=asked * 0.5)
            }
            None => {
                let upper = (self.previous.unwrap_or(BASE) * 3.0).clamp(BASE, CAP);
                rand::random_range(BASE..=upper)
            }
        };
        self.previous = Some(pause);
        Duration::from_secs_f64(pause)
    }
}

/// `Retry-After` in seconds; other forms are not understood.
pub(crate) fn retry_after(header: Option<&str>) -> Option<Duration> {
    let seconds: f64 = header?.trim().parse().ok()?;
    (seconds >= 0.0).then(|| Duration::from_secs_f64(seconds.min(CAP)))
}

/// Bounds how much retries add to the load of a host in trouble: each failure costs a token, each success earns a tenth of
/// one, and at half of them or less nothing is sent again.
pub(crate) struct Budget(Mutex<f64>);

impl Budget {
    pub(crate) fn failure(&self) {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *tokens = (*tokens - 1.0).max(0.0);
    }

    pub(crate) fn success(&self) {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *tokens = (*tokens + EARNED_BY_SUCCESS).min(FULL);
    }

    pub(crate) fn allows_retry(&self) -> bool {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) > FULL / 2.0
    }
}

/// One [`Budget`] for each host, however many bindings use it.
#[derive(Default)]
pub(crate) struct Budgets(Mutex<BTreeMap<String, Arc<Budget>>>);

impl Budgets {
    pub(crate) fn of(&self, host: &str) -> Arc<Budget> {
        let mut budgets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(
            budgets
                .entry(host.to_owned())
                .or_insert_with(|| Arc::new(Budget(Mutex::new(FULL)))),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_jittered_within_their_bounds() {
        for _ in 0..200 {
            let mut backoff = Backoff::default();
            let mut previous = BASE;
            for _ in 0..20 {
                let pause = backoff.next(None).as_secs_f64();
                assert!(
                    pause >= BASE && pause <= (previous * 3.0).min(CAP) + 1e-9,
                    "{pause}"
                );
                previous = pause;
            }
            let asked = backoff.next(Some(Duration::from_secs(4))).as_secs_f64();
            assert!((4.0..=6.0).contains(&asked), "{asked}");
        }
    }

    #[test]
    fn an_asked_pause_is_seconds_and_capped() {
        assert_eq!(retry_after(Some("1.5")), Some(Duration::from_millis(1500)));
        assert_eq!(retry_after(Some("99999999")), Some(Duration::from_secs(60)));
        for nothing in [
            None,
            Some("-1"),
            Some("NaN"),
            Some("Wed, 21 Oct 2015 07:28:00 GMT"),
        ] {
            assert_eq!(retry_after(nothing), None, "{nothing:?}");
        }
    }

    #[test]
    fn a_host_in_trouble_is_not_asked_again() {
        let budgets = Budgets::default();
        let budget = budgets.of("a");
        for _ in 0..49 {
            budget.failure();
        }
        assert!(budget.allows_retry());
        budget.failure();
        assert!(!budgets.of("a").allows_retry());
        assert!(budgets.of("b").allows_retry());
        for _ in 0..11 {
            budget.success();
        }
        assert!(budget.allows_retry());
    }
}
