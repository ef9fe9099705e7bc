use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use uuid::Uuid;

use crate::{Action, BindingKind, CpuAccount, Denied, Digest, Grant, Grants, Name};

/// The id of one event's passage through one pipeline: the key into logs and traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct RunId(Uuid);

impl RunId {
    /// A new id: a UUID of version 7. Ids sort by the time they were made, to a quarter of a microsecond; the fraction of the
    /// millisecond takes the place of a counter, over which every thread would have to wait for the others.
    #[allow(
        clippy::new_without_default,
        reason = "every id is different, so there is no default one"
    )]
    pub fn new() -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let (millis, nanos) = (now.as_millis() as u64, u64::from(now.subsec_nanos()));
        let fraction = (nanos % 1_000_000 * 4096) / 1_000_000;
        // The lower half is laid out in the same way: the variant, then 62 random bits.
        let (_, random) = Uuid::new_v4().as_u64_pair();
        Self(Uuid::from_u64_pair(
            millis << 16 | 0x7000 | fraction,
            random,
        ))
    }

    /// The random half of the id.
    pub fn random(&self) -> u64 {
        self.0.as_u64_pair().1
    }

    /// The id as text, without an allocation.
    pub fn encode<'a>(&self, buffer: &'a mut [u8; 36]) -> &'a str {
        self.0.hyphenated().encode_lower(buffer)
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is the same for every call of one deployed step: who it is and what it may do. It lives as long as the
/// pipeline revision.
#[derive(Debug)]
pub struct StepScope {
    /// The tenant.
    pub namespace: Name,
    /// The pipeline's name.
    pub pipeline: Name,
    /// The pipeline's revision.
    pub revision: u64,
    /// The step's id within the pipeline.
    pub step: Name,
    /// `name@version` of the plugin.
    pub plugin: String,
    /// The digest of its component; none: a built-in step.
    pub digest: Option<Digest>,
    /// What the step may do.
    pub grants: Grants,
    /// The step's `config`, in the order of the document.
    pub config: Vec<(String, String)>,
    /// Who is charged for the CPU time of its guests, and for what the host computes for them elsewhere.
    pub cpu: Arc<CpuAccount>,
}

/// One call of one step: what every host function may need to know of it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Call {
    /// The deployed step.
    pub scope: Arc<StepScope>,
    /// The run that this call is part of.
    pub run: RunId,
    /// When the call's time is up, whatever it is doing.
    pub deadline: Instant,
}

impl Call {
    /// The grant that allows `action` on what the guest calls `name`.
    ///
    /// # Errors
    /// [`Denied`], which says nothing about whether such a binding exists.
    pub fn grant(&self, kind: BindingKind, name: &str, action: Action) -> Result<&Grant, Denied> {
        self.scope.grants.check(kind, name, action)
    }

    /// The time left, zero when there is none.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn run_ids_are_of_version_7_and_say_when_they_were_made() {
        let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let id = RunId::new();
        let after = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        assert_eq!(id.0.get_version_num(), 7);
        assert_eq!(id.0.get_variant(), uuid::Variant::RFC4122);
        let millis = u128::from(id.0.as_u64_pair().0 >> 16);
        assert!((before.as_millis()..=after.as_millis()).contains(&millis));
        let mut buffer = [0; 36];
        assert_eq!(id.encode(&mut buffer), id.to_string());
    }

    #[test]
    fn run_ids_differ_and_sort() {
        let ids: Vec<RunId> = (0..1000).map(|_| RunId::new()).collect();
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
        let later = || {
            std::thread::sleep(Duration::from_millis(2));
            RunId::new().to_string()
        };
        let spread: Vec<String> = (0..20).map(|_| later()).collect();
        assert!(spread.is_sorted(), "{spread:?}");
    }
}
