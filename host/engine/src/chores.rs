use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tokio::sync::oneshot;

use crate::turns::{Pace, take_short_turns_at};

/// Threads for work that takes the processor for long and that no request waits for: requests come first.
pub(crate) struct Chores {
    sender: Mutex<Sender<Chore>>,
}

type Chore = Box<dyn FnOnce() + Send>;

/// The niceness of whatever must not delay requests. Where others want all of a core they leave it a tenth; at the lowest priority
/// they left nothing, and guests that spin kept uploads waiting for seconds.
pub(crate) const NICENESS: i32 = 10;

impl Chores {
    /// Starts this many threads; they end when this is dropped and their work is done.
    pub(crate) fn start(threads: usize) -> std::io::Result<Self> {
        let (sender, receiver) = channel::<Chore>();
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..threads.max(1) {
            let receiver = receiver.clone();
            thread::Builder::new()
                .name("chores".into())
                .spawn(move || work(&receiver))?;
        }
        Ok(Self {
            sender: Mutex::new(sender),
        })
    }

    /// Does some work on one of the threads; none: it panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        let chore: Chore = Box::new(move || {
            // Work that nobody waits for any more is left undone.
            if !sender.is_closed() {
                let _ = sender.send(work());
            }
        });
        let queued = self
            .sender
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .send(chore);
        match queued {
            Ok(()) => receiver.await.ok(),
            Err(_) => None,
        }
    }
}

fn work(receiver: &Mutex<Receiver<Chore>>) {
    // Of a thread, in spite of its name. Where it is refused, the thread competes as any other.
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "chores run at the usual priority");
    }
    take_short_turns_at(NICENESS);
    // Where there is none, a request may wait for a thread like this one until Linux next looks.
    let pace = Pace::new().ok();
    loop {
        let next = receiver
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        let Ok(chore) = next else {
            return;
        };
        if let Some(pace) = &pace {
            let _ = pace.begin();
        }
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(chore)).is_err() {
            tracing::error!("a chore panicked; this is a bug in the host");
        }
        if let Some(pace) = &pace {
            let _ = pace.pause();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::event::{Timespec, poll};
    use rustix::io::Errno;

    use super::*;

    #[tokio::test]
    async fn chores_run_at_a_low_priority_and_outlive_a_panic() {
        let chores = Chores::start(1).unwrap();
        let niceness = || rustix::process::getpriority_process(None).unwrap();
        assert_eq!(chores.run(niceness).await, Some(NICENESS));
        assert_ne!(niceness(), NICENESS, "only those threads are nice");
        assert_eq!(chores.run(|| panic!("on purpose")).await, None::<()>);
        assert_eq!(chores.run(|| 1).await, Some(1));
    }

    #[tokio::test]
    async fn chores_are_interrupted_to_give_way() {
        let chores = Chores::start(1).unwrap();
        let minute = Timespec::try_from(Duration::from_secs(60)).unwrap();
        let interrupted = chores.run(move || poll(&mut [], Some(&minute))).await;
        assert_eq!(interrupted, Some(Err(Errno::INTR)));
    }

    #[tokio::test]
    async fn a_process_begins_with_the_priority_of_the_chore_that_starts_it() {
        let chores = Chores::start(1).unwrap();
        // Without arguments it says how nice it is.
        let said = || std::process::Command::new("nice").output().unwrap().stdout;
        assert_eq!(
            String::from_utf8(chores.run(said).await.unwrap()),
            Ok(format!("{NICENESS}\n"))
        );
    }
}
