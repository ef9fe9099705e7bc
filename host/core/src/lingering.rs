use std::any::Any;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// What lasts as long as a function's guest that has not returned when its response is there: in the extensions of that response.
/// A response that is not there as a whole has it in any case.
#[derive(Clone)]
pub struct Lingering {
    kept: Arc<Mutex<Kept>>,
    until: Instant,
}

/// The guest's end; it is gone when this is dropped.
pub struct Gone(Arc<Mutex<Kept>>);

enum Kept {
    UntilGone(Vec<Box<dyn Any + Send>>),
    Gone,
}

impl Lingering {
    /// Of a guest that is still there, and whose time is up at `until`.
    pub fn new(until: Instant) -> (Self, Gone) {
        let kept = Arc::new(Mutex::new(Kept::UntilGone(Vec::new())));
        let of_guest = Gone(kept.clone());
        (Self { kept, until }, of_guest)
    }

    /// When the guest's time is up. Its response must have been read by then: who does not read it keeps the guest from going on.
    pub fn until(&self) -> Instant {
        self.until
    }

    /// Drops this when the guest is gone; at once if it is.
    pub fn keep(&self, what: impl Send + 'static) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Kept::UntilGone(kept) = &mut *kept {
            kept.push(Box::new(what));
            return;
        }
        drop(kept);
        drop(what);
    }
}

impl Drop for Gone {
    fn drop(&mut self) {
        let kept = {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            mem::replace(&mut *kept, Kept::Gone)
        };
        // The lock is free again by now.
        drop(kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_goes_with_the_guest() {
        let (lingering, gone) = Lingering::new(Instant::now());
        let (early, late) = (Arc::new(()), Arc::new(()));
        lingering.clone().keep(early.clone());
        assert_eq!(Arc::strong_count(&early), 2);
        drop(gone);
        assert_eq!(Arc::strong_count(&early), 1);
        lingering.keep(late.clone());
        assert_eq!(Arc::strong_count(&late), 1);
    }
}
