use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

/// What a future comes to; none: what `alarm` makes came to its end first.
///
/// The alarm is made when the future has to wait for the first time. Most guests answer at once, and a timer that nobody waits for
/// costs more than they take notice of.
pub async fn within<F: Future, A: Future>(
    alarm: impl FnOnce() -> A,
    future: F,
) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut ringing = pin!(None::<A>);
    let mut alarm = Some(alarm);
    poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Some(output));
        }
        if let Some(alarm) = alarm.take() {
            ringing.set(Some(alarm()));
        }
        match ringing.as_mut().as_pin_mut() {
            Some(ringing) => ringing.poll(context).map(|_| None),
            None => Poll::Pending,
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{pending, ready};
    use std::task::{Context, Waker};

    use super::*;

    fn polled<T>(future: impl Future<Output = T>) -> Poll<T> {
        pin!(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn who_is_ready_at_once_needs_no_alarm() {
        let alarms = Cell::new(0);
        let alarm = || {
            alarms.set(alarms.get() + 1);
            ready(())
        };
        assert_eq!(polled(within(alarm, ready(7))), Poll::Ready(Some(7)));
        assert_eq!(alarms.get(), 0);
        assert_eq!(polled(within(alarm, pending::<u8>())), Poll::Ready(None));
        assert_eq!(alarms.get(), 1);
    }

    #[test]
    fn until_the_alarm_there_is_time() {
        assert_eq!(
            polled(within(pending::<()>, pending::<u8>())),
            Poll::Pending
        );
        let mut polls = 0;
        let second_time = poll_fn(|_| {
            polls += 1;
            if polls == 2 {
                Poll::Ready(polls)
            } else {
                Poll::Pending
            }
        });
        let mut waiting = pin!(within(pending::<()>, second_time));
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(waiting.as_mut().poll(&mut context), Poll::Pending);
        assert_eq!(waiting.as_mut().poll(&mut context), Poll::Ready(Some(2)));
    }
}
