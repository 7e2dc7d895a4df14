//! Who a client is, and what it may have.
//!
//! ```text
//! request head ─> credentials ─> jwt | oauth2 | api_keys ─> identity ─> permissions ─> may it have this stream?
//! ```
//!
//! What a credential says is checked here and nowhere else; what an [`Identity`] may have is decided by
//! [`Permissions::decide`] and nowhere else. A credential never reaches a log, a metric or an error: [`Credential`] does not
//! print itself.

mod api_keys;
mod config;
mod credential;
pub(crate) mod http;
mod identity;
mod introspection;
mod jwks;
mod jwt;
mod pattern;
mod permissions;
mod revocations;

use std::{fmt, sync::Arc, time::Duration};

use tickmesh_protocol::client::{Credential, MAX_CREDENTIAL_BYTES};
use tokio_util::sync::CancellationToken;

use self::{api_keys::ApiKeys, introspection::Introspection, jwt::Jwt};
pub use self::{
    api_keys::{ApiKey, hash_of, new_api_key},
    config::{Config, IntrospectionConfig, JwtConfig, JwtKeys},
    credential::find_credential,
    identity::{ClaimNames, Identity, Proof},
    pattern::{InvalidPattern, Pattern},
    permissions::{Denied, Permissions, default_private},
    revocations::{Revocations, RevokeError},
};
use crate::ops::metrics::Registry;

/// How long a server that failed too often is not asked whose a token is, or for keys.
const CIRCUIT_PAUSE: Duration = Duration::from_secs(5);

/// Why credentials are not accepted. What it says may be told to whoever sent them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    NotAccepted,
    Malformed,
    TooLong,
    Algorithm,
    UnknownKey,
    Signature,
    Expired,
    NotYet,
    Audience,
    Issuer,
    Claims,
    UnknownApiKey,
    Inactive,
    Revoked,
    Unavailable,
}

impl Refusal {
    /// The label of metrics.
    pub fn label(self) -> &'static str {
        self.told().0
    }

    pub fn words(self) -> &'static str {
        self.told().1
    }

    fn told(self) -> (&'static str, &'static str) {
        match self {
            Self::NotAccepted => ("not_accepted", "credentials of this kind are not accepted here"),
            Self::Malformed => ("malformed", "the credentials cannot be read"),
            Self::TooLong => ("too_long", "the credentials are too long"),
            Self::Algorithm => {
                ("algorithm", "the token is signed with an algorithm that is not accepted here")
            }
            Self::UnknownKey => ("unknown_key", "the token is signed with a key that is not known here"),
            Self::Signature => ("signature", "the token's signature is wrong"),
            Self::Expired => ("expired", "the token has expired"),
            Self::NotYet => ("not_yet", "the token is not valid yet"),
            Self::Audience => ("audience", "the token is for another audience"),
            Self::Issuer => ("issuer", "the token is of another issuer"),
            Self::Claims => ("claims", "the token lacks a claim, or has one of the wrong form"),
            Self::UnknownApiKey => ("unknown_api_key", "the API key is not known"),
            Self::Inactive => ("inactive", "the token is not active"),
            Self::Revoked => ("revoked", "the credentials were revoked"),
            Self::Unavailable => {
                ("unavailable", "credentials cannot be checked at the moment; come back soon")
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

/// Checks credentials. One for all shards of a peer.
#[derive(Debug, Default)]
pub struct Authenticator {
    jwt: Option<Jwt>,
    oauth2: Option<Introspection>,
    api_keys: Option<ApiKeys>,
    revocations: Revocations,
}

impl Authenticator {
    /// Opens what the configuration names. Whatever is fetched or read again meanwhile ends with `stop`.
    ///
    /// # Errors
    /// If a file cannot be read or does not hold what it should; the message names it.
    pub fn open(config: &Config, registry: &Registry, stop: CancellationToken) -> anyhow::Result<Arc<Self>> {
        let jwt = config.jwt.as_ref();
        let jwt = jwt.map(|jwt| Jwt::open(jwt, &config.claims, registry, stop.clone())).transpose()?;
        let oauth2 = config.oauth2.as_ref();
        let oauth2 = oauth2
            .map(|oauth2| Introspection::start(oauth2, &config.claims, registry, stop.clone()))
            .transpose()?;
        let api_keys = config.api_keys.as_ref().map(|file| ApiKeys::open(file, stop)).transpose()?;
        let revocations = Revocations::open(config.revocations_file.as_deref(), config.revocations_kept)?;
        Ok(Arc::new(Self { jwt, oauth2, api_keys, revocations }))
    }

    /// Who sends these credentials.
    ///
    /// # Errors
    /// Why they are not accepted.
    pub async fn authenticate(&self, credential: &Credential) -> Result<Arc<Identity>, Refusal> {
        if credential.reveal().len() > MAX_CREDENTIAL_BYTES {
            return Err(Refusal::TooLong);
        }
        let identity = self.verify(credential).await?;
        if self.revocations.refuse(&identity) { Err(Refusal::Revoked) } else { Ok(identity) }
    }

    async fn verify(&self, credential: &Credential) -> Result<Arc<Identity>, Refusal> {
        match credential {
            Credential::Token(token) => match (&self.jwt, &self.oauth2) {
                (Some(jwt), oauth2) if oauth2.is_none() || jwt::looks_like_one(token.reveal()) => {
                    jwt.verify(token.reveal()).await
                }
                (_, Some(oauth2)) => oauth2.verify(token).await,
                (_, None) => Err(Refusal::NotAccepted),
            },
            Credential::ApiKey(key) => {
                self.api_keys.as_ref().ok_or(Refusal::NotAccepted)?.verify(key.reveal())
            }
        }
    }

    /// Whether what was accepted once still is. Expiry is not looked at: a connection knows when that is.
    pub fn still_accepts(&self, identity: &Identity) -> bool {
        if self.revocations.refuse(identity) {
            return false;
        }
        match &identity.proof {
            Proof::Token { .. } => true,
            Proof::Opaque { hash, .. } => self.oauth2.as_ref().is_some_and(|oauth2| oauth2.has(hash)),
            Proof::ApiKey { id, hash } => self.api_keys.as_ref().is_some_and(|keys| keys.has(id, hash)),
        }
    }

    /// A number that changes whenever [`Authenticator::still_accepts`] may answer otherwise than before.
    pub fn generation(&self) -> u64 {
        let keys = self.api_keys.as_ref().map_or(0, ApiKeys::generation);
        let tokens = self.oauth2.as_ref().map_or(0, Introspection::generation);
        // All only grow.
        keys + tokens + *self.revocations.serial().borrow()
    }

    /// What was taken back.
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }
}
