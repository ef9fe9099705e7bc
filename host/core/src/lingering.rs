use std::any::Any;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

/// What lasts as long as a function's guest that has not returned when its response is there: in the extensions of that response.
#[derive(Clone)]
pub struct Lingering(Arc<Mutex<Kept>>);

/// The guest's end; it is gone when this is dropped.
pub struct Gone(Arc<Mutex<Kept>>);

enum Kept {
    UntilGone(Vec<Box<dyn Any + Send>>),
    Gone,
}

impl Lingering {
    /// Of a guest that is still there.
    pub fn new() -> (Self, Gone) {
        let kept = Arc::new(Mutex::new(Kept::UntilGone(Vec::new())));
        (Self(kept.clone()), Gone(kept))
    }

    /// Drops this when the guest is gone; at once if it is.
    pub fn keep(&self, what: impl Send + 'static) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
        let (lingering, gone) = Lingering::new();
        let (early, late) = (Arc::new(()), Arc::new(()));
        lingering.clone().keep(early.clone());
        assert_eq!(Arc::strong_count(&early), 2);
        drop(gone);
        assert_eq!(Arc::strong_count(&early), 1);
        lingering.keep(late.clone());
        assert_eq!(Arc::strong_count(&late), 1);
    }
}
