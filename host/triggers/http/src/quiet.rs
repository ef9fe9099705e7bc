use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// Waits for something that happens once in a connection's life, and polls it only when it has called: beside futures that are
/// polled for every request, it costs a look at a flag. It must stay within the task that polls it first.
pub(crate) async fn quietly<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut own = None;
    poll_fn(|context| {
        let (bell, waker) = own.get_or_insert_with(|| Bell::new(context.waker()));
        if !bell.rung.load(Ordering::Relaxed) || !bell.rung.swap(false, Ordering::Acquire) {
            return Poll::Pending;
        }
        future.as_mut().poll(&mut Context::from_waker(waker))
    })
    .await
}

struct Bell {
    rung: AtomicBool,
    task: Waker,
}

impl Bell {
    fn new(task: &Waker) -> (Arc<Self>, Waker) {
        let bell = Arc::new(Self {
            // For the first poll.
            rung: AtomicBool::new(true),
            task: task.clone(),
        });
        let waker = Waker::from(bell.clone());
        (bell, waker)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn it_is_polled_when_it_calls_and_not_before() {
        let polls = Cell::new(0);
        let waker = Cell::new(None);
        let mut waiting = pin!(quietly(poll_fn(|context| {
            polls.set(polls.get() + 1);
            waker.set(Some(context.waker().clone()));
            if polls.get() == 3 {
                Poll::Ready("done")
            } else {
                Poll::Pending
            }
        })));
        let mut poll = async |expected| {
            let outcome = poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context))).await;
            assert_eq!(polls.get(), expected);
            outcome
        };
        assert!(poll(1).await.is_pending());
        assert!(poll(1).await.is_pending());
        waker.take().unwrap().wake();
        assert!(poll(2).await.is_pending());
        assert!(poll(2).await.is_pending());
        waker.take().unwrap().wake_by_ref();
        assert_eq!(poll(3).await, Poll::Ready("done"));
    }

    #[tokio::test]
    async fn its_call_wakes_the_task() {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let waiting = tokio::spawn(quietly(receiver));
        tokio::task::yield_now().await;
        sender.send(7).unwrap();
        assert_eq!(waiting.await.unwrap(), Ok(7));
    }
}
