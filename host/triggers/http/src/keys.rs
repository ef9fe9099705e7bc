//! An issuer's public keys: fetched off the request's path where that is possible, and kept while their issuer is away.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use bytes::Bytes;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use stepwell_core::Name;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::auth::Unavailable;

/// Keys of one set that are looked at.
const MAX_KEYS: usize = 100;

/// Bytes of an RSA modulus: shorter ones can be broken, longer ones take too long.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=512;

/// Where keys are, and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// The operator, who is trusted: a URL or a file.
    Operator(String),
    /// A deployer, who is not trusted beyond the namespace.
    Deployer {
        /// Whose issuer it is.
        namespace: Name,
        /// It may lead anywhere.
        url: String,
    },
}

/// Gets key sets from where they are; the composition root knows how, and what a deployer's URL must not reach.
///
/// Called by a task of its own, once at a time for each source and not more often than [`KeyTimes::pause`] says. It must come
/// back within seconds and must not take more than a MiB into memory, whatever the other side sends.
#[async_trait]
pub trait KeyFetcher: Send + Sync {
    /// The JSON Web Key Set of this source.
    async fn fetch(&self, source: &KeySource) -> Result<Bytes, FetchError>;
}

/// Why keys cannot be had; for the operator's log.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FetchError(pub String);

/// How long keys are good for.
#[derive(Clone, Copy, Debug)]
pub struct KeyTimes {
    /// Older ones are fetched again, while they are still used.
    pub fresh: Duration,
    /// Older ones are used no more.
    pub stale: Duration,
    /// Between two attempts to fetch them.
    pub pause: Duration,
}

impl Default for KeyTimes {
    fn default() -> Self {
        Self {
            fresh: Duration::from_secs(300),
            stale: Duration::from_secs(3600),
            pause: Duration::from_secs(10),
        }
    }
}

/// How many keys of a JSON Web Key Set can be used.
///
/// # Errors
/// It is no such set, or has none that can.
pub fn usable_keys(jwks: &[u8]) -> Result<usize, FetchError> {
    KeySet::parse(jwks).map(|set| set.keys.len())
}

/// The keys of one source.
pub(crate) struct Keys {
    source: KeySource,
    fetcher: Arc<dyn KeyFetcher>,
    times: KeyTimes,
    current: ArcSwapOption<KeySet>,
    attempt: Mutex<Attempt>,
    /// Attempts that are over.
    over: watch::Sender<u64>,
}

#[derive(Default)]
struct Attempt {
    running: bool,
    ended: Option<Instant>,
}

/// What was fetched at once.
pub(crate) struct KeySet {
    fetched: Instant,
    keys: Vec<Arc<Key>>,
}

pub(crate) struct Key {
    id: Option<String>,
    pub(crate) algorithms: &'static [Algorithm],
    pub(crate) key: DecodingKey,
}

/// A key that a token may have been signed with.
pub(crate) enum Found {
    Key(Arc<Key>),
    /// The key is there, and is not for this algorithm.
    OtherAlgorithm,
    Unknown,
}

impl Keys {
    pub(crate) fn new(source: KeySource, fetcher: Arc<dyn KeyFetcher>, times: KeyTimes) -> Self {
        Self {
            source,
            fetcher,
            times,
            current: ArcSwapOption::empty(),
            attempt: Mutex::default(),
            over: watch::Sender::new(0),
        }
    }

    /// The key with this id, or the only one there is when a token names none. A key that is not known is looked for anew, as
    /// often as the pause allows.
    pub(crate) async fn find(
        self: &Arc<Self>,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<(Found, Arc<KeySet>), Unavailable> {
        if let Some(set) = self.usable() {
            self.renew(&set);
            match set.find(id, algorithm) {
                Found::Unknown => {}
                found => return Ok((found, set)),
            }
        }
        if let Some(mut attempt) = self.refresh() {
            let _ = attempt.changed().await;
        }
        let set = self.usable().ok_or(Unavailable)?;
        Ok((set.find(id, algorithm), set))
    }

    /// The keys, unless they are too old.
    pub(crate) fn usable(&self) -> Option<Arc<KeySet>> {
        let set = self.current.load_full()?;
        (set.fetched.elapsed() <= self.times.stale).then_some(set)
    }

    /// Starts to fetch the keys anew where these are no longer fresh.
    pub(crate) fn renew(self: &Arc<Self>, set: &KeySet) {
        if set.fetched.elapsed() > self.times.fresh {
            self.refresh();
        }
    }

    /// Starts to fetch the keys; none when it was just tried. The receiver changes when the attempt is over.
    pub(crate) fn refresh(self: &Arc<Self>) -> Option<watch::Receiver<u64>> {
        let runtime = Handle::try_current().ok()?;
        let mut attempt = self.lock();
        let over = self.over.subscribe();
        if attempt.running {
            return Some(over);
        }
        if attempt
            .ended
            .is_some_and(|ended| ended.elapsed() < self.times.pause)
        {
            return None;
        }
        attempt.running = true;
        // Its own task: the caller who happened to start it may go away.
        let ends = Ends(self.clone());
        runtime.spawn(async move { ends.0.fetch().await });
        Some(over)
    }

    async fn fetch(&self) {
        let fetched = self.fetcher.fetch(&self.source).await;
        let outcome = match fetched.and_then(|bytes| KeySet::parse(&bytes)) {
            Ok(set) => {
                self.current.store(Some(Arc::new(set)));
                "ok"
            }
            Err(error) => {
                let (KeySource::Operator(at) | KeySource::Deployer { url: at, .. }) = &self.source;
                tracing::warn!(jwks = at, %error, "the keys of an issuer of tokens cannot be had");
                "failed"
            }
        };
        metrics::counter!("stepwell_http_jwks_fetches_total", "outcome" => outcome).increment(1);
    }

    fn lock(&self) -> MutexGuard<'_, Attempt> {
        self.attempt.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says that an attempt is over, however it ended.
struct Ends(Arc<Keys>);

impl Drop for Ends {
    fn drop(&mut self) {
        *self.0.lock() = Attempt {
            running: false,
            ended: Some(Instant::now()),
        };
        self.0.over.send_modify(|over| *over += 1);
    }
}

impl KeySet {
    fn parse(jwks: &[u8]) -> Result<Self, FetchError> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        let set: Set = serde_json::from_slice(jwks)
            .map_err(|error| FetchError(format!("this is no JSON Web Key Set: {error}")))?;
        // One key that nobody understands does not make the others useless.
        let keys: Vec<_> = set
            .keys
            .into_iter()
            .take(MAX_KEYS)
            .filter_map(|key| serde_json::from_value::<Jwk>(key).ok())
            .filter_map(|key| Key::new(&key))
            .map(Arc::new)
            .collect();
        if keys.is_empty() {
            let message = "the JSON Web Key Set has no key for signatures of RSA (2048 to 4096 bits), P-256, P-384 or Ed25519";
            return Err(FetchError(message.to_owned()));
        }
        Ok(Self {
            fetched: Instant::now(),
            keys,
        })
    }

    fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Found {
        let fits = |key: &&Arc<Key>| key.algorithms.contains(&algorithm);
        let Some(id) = id else {
            let mut fitting = self.keys.iter().filter(fits);
            return match (fitting.next(), fitting.next()) {
                (Some(key), None) => Found::Key(key.clone()),
                // With several, a token has to say which.
                _ => Found::Unknown,
            };
        };
        let mut named = self.keys.iter().filter(|key| key.id.as_deref() == Some(id));
        match (named.clone().find(fits), named.next()) {
            (Some(key), _) => Found::Key(key.clone()),
            (None, Some(_)) => Found::OtherAlgorithm,
            (None, None) => Found::Unknown,
        }
    }
}

impl Key {
    /// A public key for signatures; never a secret one, which whoever checks tokens could make them with.
    fn new(jwk: &Jwk) -> Option<Self> {
        if matches!(&jwk.common.public_key_use, Some(wanted) if *wanted != PublicKeyUse::Signature)
        {
            return None;
        }
        let key = DecodingKey::from_jwk(jwk).ok()?;
        let all: &'static [Algorithm] = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => {
                let jsonwebtoken::DecodingKeyKind::RsaModulusExponent { n, .. } = key.kind() else {
                    return None;
                };
                if !RSA_BYTES.contains(&n.len()) {
                    return None;
                }
                &[
                    Algorithm::RS256,
                    Algorithm::RS384,
                    Algorithm::RS512,
                    Algorithm::PS256,
                    Algorithm::PS384,
                    Algorithm::PS512,
                ]
            }
            AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
                EllipticCurve::P256 => &[Algorithm::ES256],
                EllipticCurve::P384 => &[Algorithm::ES384],
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(pair) => match pair.curve {
                EllipticCurve::Ed25519 => &[Algorithm::EdDSA],
                _ => return None,
            },
            _ => return None,
        };
        let algorithms = match &jwk.common.key_algorithm {
            None => all,
            Some(only) => {
                let only = only.to_string().parse::<Algorithm>().ok()?;
                let at = all.iter().position(|algorithm| *algorithm == only)?;
                all.get(at..=at)?
            }
        };
        Some(Self {
            id: jwk.common.key_id.clone(),
            algorithms,
            key,
        })
    }
}
