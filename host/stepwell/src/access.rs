//! Who may come in: bearers of the configured `admin_token`, bearers of the catalog's tokens, and anybody in development mode.

use std::sync::Arc;

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};
use stepwell_api::{Gate, NotAdmitted};
use stepwell_catalog::{Catalog, Directory, NotVerified, Unavailable};
use stepwell_core::{Name, Principal, Right, Secret};
use stepwell_http_trigger::{Subject, TokenVerifier};
use subtle::ConstantTimeEq as _;

use crate::refusals::Refusals;

/// Every token that this host takes.
pub(crate) struct Tokens {
    directory: Arc<Directory>,
    /// Only its hash is kept: comparing hashes takes the same time for every wrong token, whatever its length.
    admin: Option<[u8; 32]>,
    /// Whether only this machine reaches the admin listener.
    is_private: bool,
    refusals: Refusals,
}

impl Tokens {
    pub(crate) fn new(
        catalog: Arc<Catalog>,
        directory: Arc<Directory>,
        admin_token: Option<&Secret>,
        is_private: bool,
    ) -> Self {
        Self {
            directory,
            admin: admin_token.map(|token| Sha256::digest(token.expose()).into()),
            is_private,
            refusals: Refusals::new(catalog),
        }
    }

    /// Who bears a token; none: nobody does, or not any more. Usually this touches nothing but memory.
    async fn bearer(&self, token: &str) -> Result<Option<Principal>, Unavailable> {
        match self.find(token).await {
            Ok(principal) => Ok(Some(principal)),
            Err(NotVerified::Unavailable(error)) => Err(error),
            Err(NotVerified::Malformed | NotVerified::Unknown | NotVerified::Expired) => Ok(None),
        }
    }

    /// Development mode: requests need no token while none is configured and only this machine asks.
    pub(crate) fn is_development(&self) -> bool {
        self.admin.is_none() && self.is_private
    }

    async fn find(&self, token: &str) -> Result<Principal, NotVerified> {
        if self.is_admin(token) {
            return Ok(Principal::admin_token());
        }
        self.directory.verify(token).await
    }

    fn is_admin(&self, token: &str) -> bool {
        let presented: [u8; 32] = Sha256::digest(token).into();
        self.admin
            .is_some_and(|admin| admin.ct_eq(&presented).into())
    }
}

/// Callers of routes with `auth: token`.
#[async_trait]
impl TokenVerifier for Tokens {
    async fn verify(
        &self,
        token: &str,
        namespace: &Name,
    ) -> Result<Option<Subject>, stepwell_http_trigger::Unavailable> {
        let bearer = self.bearer(token).await;
        let bearer = bearer.map_err(|Unavailable| stepwell_http_trigger::Unavailable)?;
        Ok(bearer.map(|principal| Subject {
            may_invoke: principal.may(Right::Invoke, namespace),
            name: principal.id,
        }))
    }
}

#[async_trait]
impl Gate for Tokens {
    async fn admit(&self, token: Option<&str>) -> Result<Principal, NotAdmitted> {
        // A token of ours that is presented counts, in development mode too: what was revoked must not turn into more.
        let why = match token {
            None if self.is_development() => return Ok(Principal::development()),
            None => NotAdmitted::Missing,
            Some(token) => match self.find(token).await {
                Ok(principal) => return Ok(principal),
                Err(NotVerified::Malformed) if self.is_development() => {
                    return Ok(Principal::development());
                }
                Err(NotVerified::Malformed) => NotAdmitted::Malformed,
                Err(NotVerified::Unknown) => NotAdmitted::Unknown,
                Err(NotVerified::Expired) => NotAdmitted::Expired,
                Err(NotVerified::Unavailable(_)) => NotAdmitted::Unavailable,
            },
        };
        Err(why)
    }

    async fn refused(&self, principal: &Principal, operation: &'static str, subject: String) {
        self.refusals
            .of_request(principal, operation, subject)
            .await;
    }
}
