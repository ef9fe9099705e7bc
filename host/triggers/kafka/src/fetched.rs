//! Records that were fetched and are not settled, and what they hold of memory.

use std::sync::atomic::{AtomicUsize, Ordering};

use rdkafka::message::{BorrowedMessage, Headers, Message, OwnedMessage};

/// A partition with this many records fetched and not settled is paused, and resumed at a quarter.
const MAX_RECORDS: usize = 400;

/// Bytes of the records of one subscription that are fetched and not settled: each of its partitions has an equal part, and may
/// hold one record more than fits.
pub(crate) const MAX_BYTES: usize = 32 << 20;

/// The largest record that is held as a whole, as the largest body of an HTTP trigger. A compressed one may become a thousand
/// times what the broker took it for.
pub(crate) const MAX_RECORD: usize = 64 << 20;

/// The longest key that is kept of a record that is not kept as a whole.
pub(crate) const SHORT_KEY: usize = 1 << 10;

/// What a record takes beside its key, value and headers.
const OVERHEAD: usize = 512;

/// One record.
pub(crate) struct Fetched {
    pub(crate) record: OwnedMessage,
    /// The size of a record that was too large to be held: its value and headers are left out, and its key unless that is short.
    pub(crate) too_large: Option<usize>,
    bytes: usize,
}

impl Fetched {
    pub(crate) fn of(message: &BorrowedMessage<'_>) -> Self {
        let size = size(message);
        if size <= MAX_RECORD {
            return Self {
                record: message.detach(),
                too_large: None,
                bytes: size + OVERHEAD,
            };
        }
        let key = message.key().filter(|key| key.len() <= SHORT_KEY);
        Self {
            bytes: key.map_or(0, <[u8]>::len) + OVERHEAD,
            record: OwnedMessage::new(
                None,
                key.map(<[u8]>::to_vec),
                message.topic().to_owned(),
                message.timestamp(),
                message.partition(),
                message.offset(),
                None,
            ),
            too_large: Some(size),
        }
    }
}

/// Bytes of the key, the value and the headers of a record.
fn size(message: &impl Message) -> usize {
    let headers = message.headers().map_or(0, |headers| {
        let sizes = headers
            .iter()
            .map(|header| header.key.len() + header.value.map_or(0, <[u8]>::len) + OVERHEAD / 8);
        sizes.sum()
    });
    message.key().map_or(0, <[u8]>::len) + message.payload().map_or(0, <[u8]>::len) + headers
}

/// What of a partition is fetched and not settled.
#[derive(Default)]
pub(crate) struct Queued {
    records: AtomicUsize,
    bytes: AtomicUsize,
}

impl Queued {
    pub(crate) fn add(&self, fetched: &Fetched) {
        self.records.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(fetched.bytes, Ordering::Relaxed);
    }

    pub(crate) fn remove(&self, fetched: &Fetched) {
        self.records.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(fetched.bytes, Ordering::Relaxed);
    }

    pub(crate) fn records(&self) -> usize {
        self.records.load(Ordering::Relaxed)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether no more should be fetched, where `share` bytes are the partition's.
    pub(crate) fn is_full(&self, share: usize) -> bool {
        self.records() >= MAX_RECORDS || self.bytes() >= share
    }

    /// Whether it is time to fetch more.
    pub(crate) fn is_low(&self, share: usize) -> bool {
        self.records() <= MAX_RECORDS / 4 && self.bytes() <= share / 4
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::Timestamp;
    use rdkafka::message::{Header, OwnedHeaders};

    use super::*;

    fn record(key: &[u8], value: &[u8], headers: usize) -> OwnedMessage {
        let headers = (0..headers).fold(OwnedHeaders::new(), |all, _| {
            all.insert(Header {
                key: "name",
                value: Some("value"),
            })
        });
        OwnedMessage::new(
            Some(value.to_vec()),
            Some(key.to_vec()),
            "t".into(),
            Timestamp::NotAvailable,
            0,
            0,
            Some(headers),
        )
    }

    #[test]
    fn headers_and_keys_have_a_size_too() {
        assert_eq!(size(&record(b"key", b"value", 0)), 8);
        // A header without bytes of its own still takes some.
        assert_eq!(size(&record(b"", b"", 10)), 10 * (9 + OVERHEAD / 8));
    }

    #[test]
    fn a_partition_is_full_by_records_or_by_bytes_and_low_by_both() {
        let fetched = |bytes| Fetched {
            record: record(b"", b"", 0),
            too_large: None,
            bytes,
        };
        let queued = Queued::default();
        let (small, large) = (fetched(1), fetched(1_000));
        queued.add(&large);
        assert!(queued.is_full(1_000) && !queued.is_full(1_001));
        assert!(queued.is_low(4_000) && !queued.is_low(3_999));
        queued.remove(&large);
        (0..MAX_RECORDS).for_each(|_| queued.add(&small));
        assert!(queued.is_full(1_000_000));
        (0..MAX_RECORDS / 2).for_each(|_| queued.remove(&small));
        assert!(!queued.is_full(1_000_000) && !queued.is_low(1_000_000));
        (0..MAX_RECORDS / 2).for_each(|_| queued.remove(&small));
        assert_eq!((queued.records(), queued.bytes()), (0, 0));
    }
}
