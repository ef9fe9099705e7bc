//! What nobody reads of requests' bodies. A connection that is closed while its client still sends is reset, and takes the reply with
//! it; and one that goes on needs the body out of its way.

use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::EXPECT;
use http_body::Body as HttpBody;
use http_body_util::BodyExt as _;

use crate::body::Progress;

/// What is read, and for how long, of a body that nobody wants.
const DISCARD_BYTES: u64 = 16 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(1);

/// Throws away a body that is not wanted, within reason, so that the reply arrives that says why. A client that asked first has not
/// sent anything and needs none of this.
pub(crate) async fn discard<B>(headers: &HeaderMap, body: B, progress: &Progress)
where
    B: HttpBody<Data = Bytes>,
{
    if body.is_end_stream() {
        return;
    }
    progress.set_unread(true);
    if !headers.contains_key(EXPECT) {
        progress.set_unread(!drain(pin!(body)).await);
    }
}

/// Whether that was all of it.
pub(crate) async fn drain<B>(mut body: Pin<&mut B>) -> bool
where
    B: HttpBody<Data = Bytes>,
{
    let mut left = DISCARD_BYTES;
    if body.size_hint().lower() > left {
        return false;
    }
    let rest = async {
        loop {
            let frame = match body.frame().await {
                None => return true,
                Some(Err(_)) => return false,
                Some(Ok(frame)) => frame,
            };
            let length = frame.data_ref().map_or(0, Bytes::len) as u64;
            match left.checked_sub(length) {
                Some(less) => left = less,
                None => return false,
            }
        }
    };
    tokio::time::timeout(DISCARD_TIME, rest)
        .await
        .unwrap_or(false)
}
