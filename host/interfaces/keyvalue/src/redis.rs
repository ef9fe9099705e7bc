use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, IntoConnectionInfo, RedisError,
    ServerErrorKind, cmd,
};
use stepwell_core::Secret;
use tokio::sync::OnceCell;

use crate::client::{ClientError, KeyValueClient, Page, Reason};

/// Keys that one `SCAN` looks at, about.
const SCAN_COUNT: u32 = 1_000;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// After this long without an answer the connection is given up, and the next operation makes a new one.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Compares by value: Redis has no versions, and a `WATCH` needs a connection of its own for as long as the guest thinks.
const SWAP: &str = "local held = redis.call('GET', KEYS[1])
if (ARGV[1] == '1' and held == ARGV[2]) or (ARGV[1] == '0' and not held) then
    redis.call('SET', KEYS[1], ARGV[3])
    return 1
end
return 0";

/// A store in Redis. One connection carries every operation; when it breaks, the next operation makes a new one.
pub struct RedisStore {
    client: Result<Client, ClientError>,
    connection: ArcSwap<OnceCell<MultiplexedConnection>>,
}

/// Whether an operation may be sent again when nobody knows what became of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Harmless,
    Never,
}

impl RedisStore {
    /// A store at this URL, which is first connected to when it is first used. A URL that cannot be read is an error of
    /// every operation, so that one bad binding does not keep the host from starting.
    pub fn new(url: &Secret) -> Self {
        Self {
            client: client(url),
            connection: ArcSwap::default(),
        }
    }

    /// Sends a command over the connection, and once more over a new one if it broke and that is harmless.
    async fn run<T: FromRedisValue>(&self, cmd: &Cmd, repeat: Repeat) -> Result<T, ClientError> {
        let mut again = repeat == Repeat::Harmless;
        loop {
            let (cell, mut connection) = self.connection().await?;
            let error = match cmd.query_async(&mut connection).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let broken = error.is_connection_dropped() || error.is_unrecoverable_error();
            if broken || error.is_timeout() {
                // Compared, so that of many operations that saw the old connection break only one replaces it.
                self.connection.compare_and_swap(&cell, Arc::default());
            }
            if !(broken && std::mem::take(&mut again)) {
                return Err(error.into());
            }
        }
    }

    async fn connection(
        &self,
    ) -> Result<(Arc<OnceCell<MultiplexedConnection>>, MultiplexedConnection), ClientError> {
        let cell = self.connection.load_full();
        if let Some(connection) = cell.get() {
            return Ok((cell.clone(), connection.clone()));
        }
        // A task of its own: callers whose time is shorter than connecting takes would otherwise start over for ever.
        let client = self.client.clone()?;
        let shared = cell.clone();
        let connecting = tokio::spawn(async move {
            shared
                .get_or_try_init(|| connect(&client))
                .await
                .cloned()
                .map_err(ClientError::from)
        });
        let connection = connecting
            .await
            .map_err(|error| ClientError::unavailable(Reason::Unreachable, error))??;
        Ok((cell, connection))
    }
}

fn client(url: &Secret) -> Result<Client, ClientError> {
    // Neither error is kept: they may quote the URL.
    let misconfigured = |_| {
        ClientError::unavailable(
            Reason::Misconfigured,
            "the url is not one of redis://, rediss:// or unix://",
        )
    };
    let info = url.expose().into_connection_info().map_err(misconfigured)?;
    let tcp = info.tcp_settings().clone().set_nodelay(true);
    Client::open(info.set_tcp_settings(tcp)).map_err(misconfigured)
}

async fn connect(client: &Client) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(RESPONSE_TIMEOUT));
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
}

#[async_trait]
impl KeyValueClient for RedisStore {
    async fn get(&self, key: &str) -> Result<Option<Bytes>, ClientError> {
        let value: Option<Vec<u8>> = self.run(cmd("GET").arg(key), Repeat::Harmless).await?;
        Ok(value.map(Bytes::from))
    }

    async fn set(&self, key: &str, value: Bytes) -> Result<(), ClientError> {
        self.run(cmd("SET").arg(key).arg(&*value), Repeat::Harmless)
            .await
    }

    async fn delete(&self, key: &str) -> Result<(), ClientError> {
        self.run(cmd("DEL").arg(key), Repeat::Harmless).await
    }

    async fn exists(&self, key: &str) -> Result<bool, ClientError> {
        self.run(cmd("EXISTS").arg(key), Repeat::Harmless).await
    }

    async fn list(&self, prefix: &str, cursor: u64) -> Result<Page, ClientError> {
        let pattern = format!("{}*", escape_glob(prefix));
        let mut cursor = cursor;
        loop {
            let mut scan = cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&pattern);
            scan.arg("COUNT").arg(SCAN_COUNT).arg("TYPE").arg("string");
            let (next, found): (u64, Vec<Vec<u8>>) = self.run(&scan, Repeat::Harmless).await?;
            // A key that is no UTF-8 was written by other software; no guest can name it.
            let mut keys: Vec<String> = found
                .into_iter()
                .filter_map(|key| String::from_utf8(key).ok())
                .filter(|key| key.starts_with(prefix))
                .collect();
            // `SCAN` may report a key twice.
            keys.sort_unstable();
            keys.dedup();
            match next {
                0 => return Ok(Page { keys, next: None }),
                // Other prefixes only: an empty page would look like the end to many a caller.
                next if keys.is_empty() => cursor = next,
                next => {
                    return Ok(Page {
                        keys,
                        next: Some(next),
                    });
                }
            }
        }
    }

    async fn increment(&self, key: &str, delta: i64) -> Result<i64, ClientError> {
        self.run(cmd("INCRBY").arg(key).arg(delta), Repeat::Never)
            .await
    }

    async fn swap(
        &self,
        key: &str,
        expected: Option<Bytes>,
        value: Bytes,
    ) -> Result<bool, ClientError> {
        let mut eval = cmd("EVAL");
        eval.arg(SWAP).arg(1).arg(key);
        eval.arg(u8::from(expected.is_some()));
        eval.arg(expected.as_deref().unwrap_or_default())
            .arg(&*value);
        self.run(&eval, Repeat::Never).await
    }

    async fn get_many(&self, keys: &[String]) -> Result<Vec<Option<Bytes>>, ClientError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let values: Vec<Option<Vec<u8>>> =
            self.run(cmd("MGET").arg(keys), Repeat::Harmless).await?;
        Ok(values
            .into_iter()
            .map(|value| value.map(Bytes::from))
            .collect())
    }

    async fn set_many(&self, entries: &[(String, Bytes)]) -> Result<(), ClientError> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut mset = cmd("MSET");
        for (key, value) in entries {
            mset.arg(key).arg(&**value);
        }
        self.run(&mset, Repeat::Harmless).await
    }

    async fn delete_many(&self, keys: &[String]) -> Result<(), ClientError> {
        if keys.is_empty() {
            return Ok(());
        }
        self.run(cmd("DEL").arg(keys), Repeat::Harmless).await
    }

    async fn probe(&self) -> Result<(), ClientError> {
        self.run(&cmd("PING"), Repeat::Harmless).await
    }
}

/// A glob that matches `text` alone.
fn escape_glob(text: &str) -> String {
    let mut glob = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\') {
            glob.push('\\');
        }
        glob.push(c);
    }
    glob
}

impl From<RedisError> for ClientError {
    fn from(error: RedisError) -> Self {
        let reason = match error.kind() {
            _ if error.is_timeout() => Reason::TimedOut,
            _ if error.is_connection_refusal() => Reason::Unreachable,
            ErrorKind::Io if error.is_connection_dropped() => Reason::Interrupted,
            ErrorKind::Io => Reason::Unreachable,
            ErrorKind::AuthenticationFailed | ErrorKind::Server(ServerErrorKind::NoPerm) => {
                Reason::AccessRefused
            }
            ErrorKind::InvalidClientConfig => Reason::Misconfigured,
            ErrorKind::Server(
                ServerErrorKind::BusyLoading
                | ServerErrorKind::ReadOnly
                | ServerErrorKind::MasterDown
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::TryAgain,
            ) => Reason::NotReady,
            _ => return refusal(&error),
        };
        Self::unavailable(reason, error)
    }
}

/// What a Redis that answers says of an operation; it has no codes for most of this, only words.
fn refusal(error: &RedisError) -> ClientError {
    let detail = error.to_string();
    match error.code() {
        Some("WRONGTYPE") => ClientError::WrongType,
        Some("NOAUTH" | "WRONGPASS") => ClientError::unavailable(Reason::AccessRefused, detail),
        Some("OOM" | "MISCONF" | "NOREPLICAS") => {
            ClientError::unavailable(Reason::NotReady, detail)
        }
        _ if detail.contains("is not an integer") => ClientError::NotANumber,
        _ if detail.contains("would overflow") => ClientError::Overflow,
        _ => ClientError::Refused { detail },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_in_a_prefix_are_data() {
        assert_eq!(escape_glob("a*?[x]\\é:"), "a\\*\\?\\[x\\]\\\\é:");
    }

    #[tokio::test]
    async fn a_url_that_cannot_be_read_fails_each_operation_and_is_not_quoted() {
        let store = RedisStore::new(&Secret::new("http://user:hunter2@db.internal"));
        let error = store.get("a").await.unwrap_err();
        assert!(format!("{error} {error:?}").contains("configuration"));
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        assert!(!format!("{error} {error:?}").contains("db.internal"));
    }
}
