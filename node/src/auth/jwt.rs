//! JSON Web Tokens (RFC 7519, RFC 8725).
//!
//! Which algorithms are accepted is configured and never taken from the token, and all of them are of one family: a public
//! key is never taken for the secret of an HMAC.

use std::sync::Arc;

use jsonwebtoken::{Algorithm, DecodingKey, Validation, errors::ErrorKind};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::{
    ClaimNames, Identity, Refusal,
    config::{JwtConfig, JwtKeys},
    jwks::Jwks,
};
use crate::ops::metrics::Registry;

/// Checks tokens.
#[derive(Debug)]
pub(super) struct Jwt {
    keys: Keys,
    validation: Validation,
    claims: ClaimNames,
}

#[derive(Debug)]
enum Keys {
    One(Box<DecodingKey>),
    Set(Jwks),
}

impl Jwt {
    pub(super) fn open(
        config: &JwtConfig,
        claims: &ClaimNames,
        registry: &Registry,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let keys = match &config.keys {
            JwtKeys::Key(key) => Keys::One(key.clone()),
            JwtKeys::Url(url) => Keys::Set(Jwks::start(url.clone(), config.algorithm, registry, stop)?),
        };
        let mut validation = Validation::new(config.algorithm);
        validation.leeway = config.leeway.as_secs();
        validation.validate_nbf = true;
        let mut required = vec!["exp"];
        if let Some(issuer) = &config.issuer {
            validation.set_issuer(std::slice::from_ref(issuer));
            required.push("iss");
        }
        match &config.audience {
            Some(audience) => {
                validation.set_audience(std::slice::from_ref(audience));
                required.push("aud");
            }
            None => validation.validate_aud = false,
        }
        validation.set_required_spec_claims(&required);
        Ok(Self { keys, validation, claims: claims.clone() })
    }

    /// Whose token this is.
    pub(super) async fn verify(&self, token: &str) -> Result<Arc<Identity>, Refusal> {
        let header = jsonwebtoken::decode_header(token).map_err(|error| refusal(error.kind()))?;
        // Before a key is asked for: nobody makes this peer fetch keys with tokens that it would not accept.
        if !self.validation.algorithms.contains(&header.alg) {
            return Err(Refusal::Algorithm);
        }
        let fetched;
        let key = match &self.keys {
            Keys::One(key) => key.as_ref(),
            Keys::Set(set) => {
                fetched = set.key(header.kid.as_deref()).await?;
                fetched.as_ref()
            }
        };
        let token = jsonwebtoken::decode::<Map<String, Value>>(token, key, &self.validation)
            .map_err(|error| refusal(error.kind()))?;
        self.claims.read(&token.claims).map(Arc::new)
    }
}

/// Three parts with dots between: what else comes is for introspection, where that is configured.
pub(super) fn looks_like_one(token: &str) -> bool {
    token.bytes().filter(|byte| *byte == b'.').count() == 2
}

fn refusal(kind: &ErrorKind) -> Refusal {
    match kind {
        ErrorKind::InvalidSignature => Refusal::Signature,
        ErrorKind::InvalidAlgorithm | ErrorKind::MissingAlgorithm | ErrorKind::UnsupportedAlgorithm => {
            Refusal::Algorithm
        }
        ErrorKind::ExpiredSignature => Refusal::Expired,
        ErrorKind::ImmatureSignature => Refusal::NotYet,
        ErrorKind::InvalidAudience => Refusal::Audience,
        ErrorKind::InvalidIssuer => Refusal::Issuer,
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) | ErrorKind::InvalidSubject => {
            Refusal::Claims
        }
        ErrorKind::InvalidKeyFormat => Refusal::UnknownKey,
        _ => Refusal::Malformed,
    }
}

/// The family of key an algorithm needs, as configurations name it.
pub(super) fn algorithm(name: &str) -> Option<Algorithm> {
    // Those that exchanges and identity providers use.
    Some(match name {
        "HS256" => Algorithm::HS256,
        "RS256" => Algorithm::RS256,
        "ES256" => Algorithm::ES256,
        "EdDSA" => Algorithm::EdDSA,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
