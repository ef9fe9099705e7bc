//! Checks the tokens of callers of HTTP triggers.

use std::sync::Arc;

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};
use stepwell_core::{Name, Secret};
use stepwell_http_trigger::{Subject, TokenVerifier, Unavailable};

/// The operator's token of the configuration, which may do everything everywhere.
pub(crate) struct OperatorToken(Option<[u8; 32]>);

impl OperatorToken {
    /// A check of this token; without one, no token is good.
    pub(crate) fn new(token: Option<&Secret>) -> Self {
        Self(token.map(|token| Sha256::digest(token.expose()).into()))
    }
}

#[async_trait]
impl TokenVerifier for OperatorToken {
    async fn verify(&self, token: &str, _: &Name) -> Result<Option<Subject>, Unavailable> {
        // Hashes are compared, so that the time that takes says nothing about the token.
        let presented: [u8; 32] = Sha256::digest(token).into();
        Ok((self.0 == Some(presented)).then(|| Subject {
            name: Arc::from("operator"),
            may_invoke: true,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_operators_token_is_good() {
        let anywhere = Name::default_namespace();
        let verifier = OperatorToken::new(Some(&Secret::new("t0ken")));
        let good = verifier.verify("t0ken", &anywhere).await.unwrap().unwrap();
        assert!(good.may_invoke);
        assert_eq!(verifier.verify("other", &anywhere).await, Ok(None));
        let none = OperatorToken::new(None);
        assert_eq!(none.verify("", &anywhere).await, Ok(None));
    }
}
