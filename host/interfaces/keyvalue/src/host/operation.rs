use std::sync::Arc;
use std::time::{Duration, Instant};

use stepwell_core::{Action, BindingKind, ByteSize, Call};
use tokio::sync::OwnedSemaphorePermit;

use super::{Bucket, Error};
use crate::client::{ClientError, Reason};
use crate::keyvalues::Store;

/// Bytes of the longest key, the grant's prefix not counted.
pub const MAX_KEY: usize = 1 << 10;

/// Bytes of the largest value.
pub const MAX_VALUE: usize = 1 << 20;

/// Entries of the longest list.
pub const MAX_BATCH: usize = 1_000;

/// Bytes of all values of one list, and of all values that one call's compare-and-swap handles remember.
pub const MAX_BATCH_BYTES: usize = 8 << 20;

/// The longest that one operation takes, however far the call's deadline is.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(10);

/// One operation that has its grant, its permit and its time.
pub(super) struct Operation {
    name: &'static str,
    pub(super) store: Arc<Store>,
    pub(super) prefix: String,
    until: Instant,
    started: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Operation {
    /// Grant, then permit, then the time; the sizes are each operation's own.
    pub(super) async fn begin(
        call: &Call,
        bucket: &Bucket,
        action: Action,
        name: &'static str,
    ) -> Result<Self, Error> {
        let started = Instant::now();
        let grant = call
            .grant(BindingKind::Keyvalue, &bucket.name, action)
            .map_err(|_| {
                record(&bucket.store, name, Error::AccessDenied.outcome(), started);
                Error::AccessDenied
            })?;
        // A tenth of the time stays with the guest, so that it can still say what went wrong.
        let until = started + (call.remaining() * 9 / 10).min(OPERATION_TIMEOUT);
        let permit = bucket.store.permits.clone().acquire_owned();
        let permit = match tokio::time::timeout_at(until.into(), permit).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) | Err(_) => {
                record(&bucket.store, name, "unavailable", started);
                return Err(Error::Other(format!(
                    "{name}: the store '{}' is busy, and the time for this operation is up",
                    bucket.name
                )));
            }
        };
        Ok(Self {
            name,
            store: bucket.store.clone(),
            prefix: grant.prefix.clone(),
            until,
            started,
            _permit: permit,
        })
    }

    /// The key as it is stored: a prefix that the guest cannot see, and then anything at all.
    pub(super) fn key(&self, key: &str) -> Result<String, Error> {
        if key.len() > MAX_KEY {
            return Err(self.refuse(format!(
                "a key of {} bytes is too long: keys have up to {}",
                key.len(),
                ByteSize(MAX_KEY as u64)
            )));
        }
        Ok(format!("{}{key}", self.prefix))
    }

    pub(super) fn keys(&self, keys: &[String]) -> Result<Vec<String>, Error> {
        self.entries(keys.len())?;
        keys.iter().map(|key| self.key(key)).collect()
    }

    pub(super) fn entries(&self, entries: usize) -> Result<(), Error> {
        if entries > MAX_BATCH {
            return Err(self.refuse(format!(
                "a list of {entries} is too long: lists have up to {MAX_BATCH} entries"
            )));
        }
        Ok(())
    }

    pub(super) fn value(&self, value: &[u8]) -> Result<(), Error> {
        if value.len() > MAX_VALUE {
            return Err(self.refuse(format!(
                "a value of {} bytes is too large: values have up to {}",
                value.len(),
                ByteSize(MAX_VALUE as u64)
            )));
        }
        Ok(())
    }

    pub(super) fn total(&self, bytes: usize) -> Result<(), Error> {
        if bytes > MAX_BATCH_BYTES {
            return Err(self.refuse(format!(
                "the values of this list are too large together: {} are allowed",
                ByteSize(MAX_BATCH_BYTES as u64)
            )));
        }
        Ok(())
    }

    pub(super) fn refuse(&self, why: String) -> Error {
        record(&self.store, self.name, "refused", self.started);
        Error::Other(format!("{}: {why}", self.name))
    }

    pub(super) async fn run<T>(
        &self,
        operation: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, Error> {
        // A timeout polls once before it looks at the clock; what must not begin any more is not begun.
        let in_time = async {
            if Instant::now() >= self.until {
                std::future::pending::<()>().await;
            }
            operation.await
        };
        let error = match tokio::time::timeout_at(self.until.into(), in_time).await {
            Ok(Ok(value)) => {
                record(&self.store, self.name, "ok", self.started);
                return Ok(value);
            }
            Ok(Err(error)) => error,
            Err(_) => ClientError::unavailable(Reason::TimedOut, "the call's time is up"),
        };
        let binding = self.store.name.as_str();
        match &error {
            ClientError::Unavailable { detail, .. } => {
                record(&self.store, self.name, "unavailable", self.started);
                tracing::warn!(binding, operation = self.name, %detail, "{error}");
            }
            ClientError::Refused { detail } => {
                record(&self.store, self.name, "refused", self.started);
                tracing::warn!(binding, operation = self.name, %detail, "{error}");
            }
            ClientError::Full(_) => {
                record(&self.store, self.name, "refused", self.started);
                metrics::counter!("stepwell_limit_hits_total", "limit" => "store_size")
                    .increment(1);
            }
            ClientError::NotANumber | ClientError::Overflow | ClientError::WrongType => {
                record(&self.store, self.name, "refused", self.started);
            }
        }
        Err(Error::Other(format!("{}: {error}", self.name)))
    }
}

fn record(store: &Store, operation: &'static str, outcome: &'static str, started: Instant) {
    metrics::histogram!(
        "stepwell_keyvalue_seconds",
        "binding" => store.name.clone(),
        "operation" => operation,
        "outcome" => outcome,
    )
    .record(started.elapsed().as_secs_f64());
}
