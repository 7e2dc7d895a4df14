//! Keys as JSON (JWK and JWKS, RFC 7517; Ed25519 in them, RFC 8037).

use std::collections::BTreeMap;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use ed25519_dalek::{SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{ALGORITHM, MAX_KEY_ID_BYTES, MessageKey};

/// Most keys in one set: one in use, the next, and many years of retired ones.
pub const MAX_KEYS: usize = 64;

/// Largest text of a set or a key, in bytes: [`MAX_KEYS`] Ed25519 keys take a sixth of it, and a set may hold larger ones
/// of other kinds.
pub const MAX_KEY_SET_BYTES: usize = 64 * 1024;

const KEY_TYPE: &str = "OKP";
const CURVE: &str = "Ed25519";
const USE: &str = "sig";

/// Public keys by their ids. Those of other kinds are known to be there, and verify nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySet(BTreeMap<String, Option<VerifyingKey>>);

/// Why a text is no key, or no set of keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    #[error("more than {MAX_KEY_SET_BYTES} bytes")]
    TooLarge,
    #[error("no JSON of a key or a set of keys: {0}")]
    Json(String),
    #[error("more than {MAX_KEYS} keys")]
    TooMany,
    #[error("it holds no Ed25519 key with an id")]
    Empty,
    #[error("key {0:?} is a secret one, where only public keys belong")]
    Secret(String),
    #[error("key {0:?} has no good x: 32 bytes of a point on the curve in base64url")]
    Public(String),
    #[error("two different keys have the id {0:?}")]
    Repeated(String),
    #[error(
        "no secret Ed25519 key: it needs \"kty\":\"OKP\", \"crv\":\"Ed25519\" and d, 32 bytes in base64url"
    )]
    NotSecret,
    #[error("x is not the public key of d")]
    OtherPublic,
    #[error("kid has other characters than a-z, A-Z, 0-9, - and _, or not 1 to {MAX_KEY_ID_BYTES} of them")]
    Id,
}

#[derive(Serialize, Deserialize)]
struct Jwk {
    kty: String,
    crv: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    d: Option<String>,
    x: Option<String>,
    kid: Option<String>,
    #[serde(rename = "use", skip_serializing_if = "Option::is_none")]
    usage: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alg: Option<String>,
}

impl Jwk {
    fn public(id: &str, key: &VerifyingKey) -> Self {
        Self {
            kty: KEY_TYPE.into(),
            crv: Some(CURVE.into()),
            d: None,
            x: Some(BASE64_URL_SAFE_NO_PAD.encode(key.as_bytes())),
            kid: Some(id.into()),
            usage: Some(USE.into()),
            alg: Some(ALGORITHM.into()),
        }
    }

    fn is_ed25519(&self) -> bool {
        self.kty == KEY_TYPE && self.crv.as_deref() == Some(CURVE)
    }

    /// Whether its owner means it for this.
    fn signs(&self) -> bool {
        let is_or_absent =
            |field: &Option<String>, value| field.as_deref().is_none_or(|field| field == value);
        is_or_absent(&self.usage, USE) && is_or_absent(&self.alg, ALGORITHM)
    }
}

fn bytes_of(field: Option<&String>) -> Option<[u8; 32]> {
    BASE64_URL_SAFE_NO_PAD.decode(field?).ok()?.try_into().ok()
}

/// The thumbprint of a key (RFC 7638, RFC 8037 appendix A.3).
pub(super) fn thumbprint(key: &VerifyingKey) -> String {
    let x = BASE64_URL_SAFE_NO_PAD.encode(key.as_bytes());
    let canonical = format!(r#"{{"crv":"{CURVE}","kty":"{KEY_TYPE}","x":"{x}"}}"#);
    BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(canonical))
}

impl KeySet {
    pub(super) fn of(id: &str, key: VerifyingKey) -> Self {
        Self([(id.to_owned(), Some(key))].into())
    }

    /// Reads a set. Keys without an id can be named by no signature and are left out.
    ///
    /// # Errors
    /// If it is no set, holds a secret key, or no key that verifies anything.
    pub fn parse(text: &[u8]) -> Result<Self, InvalidKey> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        if text.len() > MAX_KEY_SET_BYTES {
            return Err(InvalidKey::TooLarge);
        }
        let Set { keys } =
            serde_json::from_slice(text).map_err(|error| InvalidKey::Json(error.to_string()))?;
        if keys.len() > MAX_KEYS {
            return Err(InvalidKey::TooMany);
        }
        let mut set = Self::default();
        for key in keys {
            let jwk = Jwk::deserialize(key).map_err(|error| InvalidKey::Json(error.to_string()))?;
            if jwk.d.is_some() {
                return Err(InvalidKey::Secret(jwk.kid.unwrap_or_default()));
            }
            let Some(id) = jwk.kid.clone() else { continue };
            let key = if jwk.is_ed25519() && jwk.signs() {
                let key = bytes_of(jwk.x.as_ref()).and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok());
                Some(key.ok_or_else(|| InvalidKey::Public(id.clone()))?)
            } else {
                None
            };
            set.add(id, key)?;
        }
        if set.ids().next().is_none() { Err(InvalidKey::Empty) } else { Ok(set) }
    }

    fn add(&mut self, id: String, key: Option<VerifyingKey>) -> Result<(), InvalidKey> {
        // Keys of different kinds may share an id (RFC 7517 §4.5).
        match (self.0.get(&id), key) {
            (Some(Some(known)), Some(key)) if *known != key => Err(InvalidKey::Repeated(id)),
            (Some(_), None) => Ok(()),
            _ => {
                self.0.insert(id, key);
                Ok(())
            }
        }
    }

    /// These keys and others.
    ///
    /// # Errors
    /// If an id means one key here and another there, or if they are too many together.
    pub fn with(mut self, others: &Self) -> Result<Self, InvalidKey> {
        for (id, key) in &others.0 {
            self.add(id.clone(), *key)?;
        }
        if self.0.len() > MAX_KEYS { Err(InvalidKey::TooMany) } else { Ok(self) }
    }

    /// The ids of keys that verify.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|(id, key)| key.is_some().then_some(id.as_str()))
    }

    /// A key, or that it is one of another kind.
    pub(super) fn find(&self, id: &str) -> Option<Option<&VerifyingKey>> {
        self.0.get(id).map(Option::as_ref)
    }

    /// The text of the set, without keys of other kinds.
    pub fn to_json(&self) -> String {
        let keys = self.0.iter().filter_map(|(id, key)| Some(Jwk::public(id, key.as_ref()?)));
        serde_json::json!({ "keys": keys.collect::<Vec<_>>() }).to_string()
    }
}

impl MessageKey {
    /// Reads a secret key (RFC 8037 appendix A.1). Without a `kid` its id is its thumbprint.
    ///
    /// # Errors
    /// What is wrong with it; the text says nothing of the key.
    pub fn from_jwk(text: &[u8]) -> Result<Self, InvalidKey> {
        if text.len() > MAX_KEY_SET_BYTES {
            return Err(InvalidKey::TooLarge);
        }
        // What serde says could show a part of the key.
        let jwk: Jwk = serde_json::from_slice(text).map_err(|_| InvalidKey::NotSecret)?;
        let secret = bytes_of(jwk.d.as_ref()).filter(|_| jwk.is_ed25519()).ok_or(InvalidKey::NotSecret)?;
        let secret = SigningKey::from_bytes(&secret);
        let public = secret.verifying_key();
        if jwk.x.is_some() && bytes_of(jwk.x.as_ref()) != Some(public.to_bytes()) {
            return Err(InvalidKey::OtherPublic);
        }
        match jwk.kid {
            Some(id) if !is_key_id(&id) => Err(InvalidKey::Id),
            Some(id) => Ok(Self::new(secret, id)),
            None => Ok(Self::new(secret, thumbprint(&public))),
        }
    }

    /// The text of the secret key.
    pub fn to_jwk(&self) -> String {
        let public = Jwk::public(&self.id, &self.secret.verifying_key());
        let jwk = Jwk { d: Some(BASE64_URL_SAFE_NO_PAD.encode(self.secret.to_bytes())), ..public };
        // Strings alone: nothing in here can fail to be JSON.
        serde_json::to_string(&jwk).unwrap_or_default()
    }
}

/// What goes into every signature's header as it is.
fn is_key_id(id: &str) -> bool {
    (1..=MAX_KEY_ID_BYTES).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}
