use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// CPU time that guests have used, on somebody's account. It only grows.
#[derive(Debug, Default)]
pub struct CpuAccount {
    nanos: AtomicU64,
    /// Whose part it is.
    of: Option<Arc<CpuAccount>>,
}

impl CpuAccount {
    /// An account that is part of another: what is charged to it is charged to that too.
    pub fn within(of: &Arc<Self>) -> Self {
        Self {
            nanos: AtomicU64::new(0),
            of: Some(of.clone()),
        }
    }

    /// Adds what a guest has just used. Called for each turn of a guest, so it takes no lock.
    pub fn charge(&self, used: Duration) {
        let nanos = u64::try_from(used.as_nanos()).unwrap_or(u64::MAX);
        let mut account = Some(self);
        while let Some(charged) = account {
            charged.nanos.fetch_add(nanos, Ordering::Relaxed);
            account = charged.of.as_deref();
        }
    }

    /// Everything that was charged so far.
    pub fn used(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_charged_to_the_whole() {
        let whole = Arc::new(CpuAccount::default());
        let (one, other) = (CpuAccount::within(&whole), CpuAccount::within(&whole));
        one.charge(Duration::from_millis(3));
        other.charge(Duration::from_millis(4));
        one.charge(Duration::from_millis(5));
        assert_eq!(one.used(), Duration::from_millis(8));
        assert_eq!(other.used(), Duration::from_millis(4));
        assert_eq!(whole.used(), Duration::from_millis(12));
    }
}
