use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};

/// The timer of one HTTP/1 connection, which bounds the time of each request's head.
///
/// All threads share the runtime's timers, so setting one for each request and taking it back costs more than reading the request
/// does. A connection's deadlines only ever move away: one timer is enough, and it is set again when it rings too early.
#[derive(Clone, Default)]
pub(crate) struct HeadTimer(Arc<Mutex<Option<Pin<Box<tokio::time::Sleep>>>>>);

struct HeadSleep {
    timer: HeadTimer,
    deadline: Instant,
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(HeadSleep {
            timer: self.clone(),
            deadline,
        })
    }
}

impl Sleep for HeadSleep {}

impl Future for HeadSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let deadline = self.deadline;
        let mut shared = self.timer.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sleep =
            shared.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline.into())));
        if deadline < sleep.deadline().into_std() {
            sleep.as_mut().reset(deadline.into());
        }
        while sleep.as_mut().poll(context).is_ready() {
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            // It was set for an earlier head.
            sleep.as_mut().reset(deadline.into());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_later_sleep_outlasts_an_earlier_one_that_was_dropped() {
        let timer = HeadTimer::default();
        let started = Instant::now();
        for _ in 0..3 {
            let mut dropped = timer.sleep(SOON);
            let poll = std::future::poll_fn(|context| Poll::Ready(dropped.as_mut().poll(context)));
            assert!(poll.await.is_pending());
        }
        timer.sleep_until(started + 4 * SOON).await;
        assert!(started.elapsed() >= 4 * SOON);
        timer.sleep_until(started).await;
    }

    #[tokio::test]
    async fn a_nearer_deadline_is_kept_too() {
        let timer = HeadTimer::default();
        let mut far = timer.sleep(Duration::from_secs(3600));
        let poll = std::future::poll_fn(|context| Poll::Ready(far.as_mut().poll(context)));
        assert!(poll.await.is_pending());
        let near = tokio::time::timeout(Duration::from_secs(60), timer.sleep(SOON));
        near.await.unwrap();
    }
}
