//! JSON Web Tokens.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Validation, decode, decode_header};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use stepwell_pipeline::JwtIssuer;

use crate::auth::Unavailable;
use crate::keys::{Found, KeySet, Keys};

/// Seconds by which clocks may differ.
const LEEWAY: u64 = 60;

/// Bytes of a subject.
const MAX_SUBJECT: usize = 256;

/// Tokens that are remembered as good.
const REMEMBERED: usize = 4096;

/// Checks the tokens of one issuer for one audience.
pub(crate) struct JwtVerifier {
    validation: Validation,
    pub(crate) keys: Arc<Keys>,
    good: Mutex<HashMap<[u8; 32], Good>>,
}

/// What came of a token.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is good, and says whose it is.
    Good(Option<Arc<str>>),
    /// It is not, and its bearer is told why.
    Bad(&'static str),
}

/// A token whose signature need not be checked again: a check costs more than many a call.
struct Good {
    subject: Option<Arc<str>>,
    /// In seconds since 1970.
    until: u64,
    /// Those that its signature was checked with.
    keys: Arc<KeySet>,
}

#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    exp: f64,
}

impl JwtVerifier {
    pub(crate) fn new(issuer: &JwtIssuer, keys: Keys) -> Self {
        let mut validation = Validation::default();
        validation.algorithms.clear();
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.set_issuer(&[&issuer.issuer]);
        validation.set_audience(&[&issuer.audience]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY;
        Self {
            validation,
            keys: Arc::new(keys),
            good: Mutex::default(),
        }
    }

    /// Whether a token is good. Its size was limited before.
    pub(crate) async fn verify(&self, token: &str) -> Result<Verdict, Unavailable> {
        let hash: [u8; 32] = Sha256::digest(token).into();
        if let Some(subject) = self.remembered(&hash) {
            return Ok(Verdict::Good(subject));
        }
        // An algorithm that is not known, `none` among them, is no header.
        let Ok(header) = decode_header(token) else {
            return Ok(Verdict::Bad("the token is not a signed JSON Web Token"));
        };
        if header.crit.is_some() {
            return Ok(Verdict::Bad("the token asks for an extension"));
        }
        let (found, keys) = self.keys.find(header.kid.as_deref(), header.alg).await?;
        let key = match found {
            Found::Key(key) => key,
            Found::OtherAlgorithm => {
                return Ok(Verdict::Bad("the token's algorithm is not its key's"));
            }
            Found::Unknown => return Ok(Verdict::Bad("the token's key is not known")),
        };
        let mut validation = self.validation.clone();
        validation.algorithms = key.algorithms.to_vec();
        let claims = match decode::<Claims>(token, &key.key, &validation) {
            Ok(token) => token.claims,
            Err(error) => return Ok(Verdict::Bad(reason(error.kind()))),
        };
        let subject = match claims.sub.as_deref() {
            None | Some("") => None,
            Some(subject)
                if subject.len() <= MAX_SUBJECT && !subject.chars().any(char::is_control) =>
            {
                Some(Arc::from(subject))
            }
            Some(_) => return Ok(Verdict::Bad("the token's subject is unusable")),
        };
        let good = Good {
            subject: subject.clone(),
            until: (claims.exp as u64).saturating_add(LEEWAY),
            keys,
        };
        self.remember(hash, good);
        Ok(Verdict::Good(subject))
    }

    fn remembered(&self, hash: &[u8; 32]) -> Option<Option<Arc<str>>> {
        let keys = self.keys.usable()?;
        // Tokens that are remembered must not keep withdrawn keys in use until they are stale.
        self.keys.renew(&keys);
        let good = self.lock();
        let known = good.get(hash)?;
        // A key that was withdrawn vouches for nothing any more.
        (known.until >= now() && Arc::ptr_eq(&known.keys, &keys)).then(|| known.subject.clone())
    }

    fn remember(&self, hash: [u8; 32], new: Good) {
        let mut good = self.lock();
        if good.len() >= REMEMBERED {
            let now = now();
            good.retain(|_, known| known.until >= now && Arc::ptr_eq(&known.keys, &new.keys));
            if good.len() >= REMEMBERED {
                good.clear();
            }
        }
        good.insert(hash, new);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 32], Good>> {
        self.good.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn reason(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::ExpiredSignature => "the token has expired",
        ErrorKind::ImmatureSignature => "the token is not valid yet",
        ErrorKind::InvalidIssuer => "the token is of another issuer",
        ErrorKind::InvalidAudience => "the token is for another audience",
        ErrorKind::InvalidSignature => "the token's signature is not right",
        ErrorKind::MissingRequiredClaim(_) => "the token lacks one of exp, iss and aud",
        _ => "the token is not valid",
    }
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
