//! Signatures for clients: a detached JWS (RFC 7515 appendix F, RFC 7797) over one event, made at ingest with a key of the
//! exchange and verified by whoever receives the event. Neither an edge nor anything before it can change what is signed.
//!
//! Signed is the text of [`write_signed_text`]: stream, epoch, sequence and `data` as it stands in the frame, byte for byte.
//! `previous` is not: it depends on who asks for the event.
//!
//! ```text
//! header      {"alg":"EdDSA","kid":"kPrK_qmx…","b64":false,"crit":["b64"]}
//! text        {"stream":"orders.alice","epoch":"00000000000000ff","sequence":12,"data":{"id":7}}
//! signed      BASE64URL(header) || '.' || text
//! signature   BASE64URL(header) || '..' || BASE64URL(Ed25519 of that)
//! ```
//!
//! Ed25519 knows no chance, so every ingest peer with the key makes the same signature of the same event.

mod jwks;

use std::{fmt, str::FromStr, sync::Arc};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer, SigningKey};
use serde::Deserialize;

pub use self::jwks::{InvalidKey, KeySet, MAX_KEY_SET_BYTES, MAX_KEYS};
use crate::{Position, StreamName};

/// Longest signature, in bytes: twice what this code makes with a key id of [`MAX_KEY_ID_BYTES`].
pub const MAX_SIGNATURE_BYTES: usize = 512;

/// Longest key id, in bytes: a thumbprint (RFC 7638) of SHA-256 has 43.
pub const MAX_KEY_ID_BYTES: usize = 64;

/// The one algorithm (RFC 8037).
const ALGORITHM: &str = "EdDSA";

/// The extension that a verifier must know: the payload is signed as it is (RFC 7797 §3, §6).
const UNENCODED: &str = "b64";

/// Between header and signature of a compact JWS whose payload stands elsewhere.
const DETACHED: &str = "..";

/// Appends the text that is signed.
///
/// ```
/// use tickmesh_protocol::{Epoch, Position, Sequence, signature::write_signed_text};
///
/// let (mut text, stream) = (Vec::new(), "orders.alice".parse().unwrap());
/// let at = Position { epoch: Epoch::from_u64(255), sequence: Sequence::new(12).unwrap() };
/// write_signed_text(&mut text, &stream, at, br#"{"id":7}"#);
/// let expected = r#"{"stream":"orders.alice","epoch":"00000000000000ff","sequence":12,"data":{"id":7}}"#;
/// assert_eq!(text, expected.as_bytes());
/// ```
pub fn write_signed_text(out: &mut Vec<u8>, stream: &StreamName, at: Position, data: &[u8]) {
    use std::io::Write;
    let Position { epoch, sequence } = at;
    // Neither name nor epoch holds a character that JSON escapes, and writing to a Vec cannot fail.
    let _ = write!(out, r#"{{"stream":"{stream}","epoch":"{epoch}","sequence":{sequence},"data":"#);
    out.extend_from_slice(data);
    out.push(b'}');
}

/// What is signed: the encoded header, a dot, and the text (RFC 7797 §3).
fn signing_input(header: &str, stream: &StreamName, at: Position, data: &[u8]) -> Vec<u8> {
    /// Room for the text around `data`: the field names, an epoch, a sequence and the longest stream name.
    const AROUND_BYTES: usize = 256;
    let mut input = Vec::with_capacity(header.len() + AROUND_BYTES + data.len());
    input.extend_from_slice(header.as_bytes());
    input.push(b'.');
    write_signed_text(&mut input, stream, at, data);
    input
}

/// A compact JWS with a detached payload, of the right form and at most [`MAX_SIGNATURE_BYTES`]; whether it is true, only
/// [`KeySet::verify`] says. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Signature(Arc<str>);

/// Why an event is not signed as it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSignature {
    #[error("no detached JWS: BASE64URL(header)..BASE64URL(signature), {MAX_SIGNATURE_BYTES} bytes at most")]
    Form,
    #[error("the header cannot be read: {0}")]
    Header(String),
    #[error("algorithm {0:?}; only {ALGORITHM} is accepted")]
    Algorithm(String),
    #[error("the header lacks \"b64\":false or \"crit\":[\"b64\"] (RFC 7797)")]
    Encoding,
    #[error("the header asks for extensions that are not known here: {0:?}")]
    Extensions(Vec<String>),
    #[error("the header names no key")]
    NoKey,
    #[error("key {0:?} is not known")]
    UnknownKey(String),
    #[error("key {0:?} is no Ed25519 key that signs")]
    KeyType(String),
    #[error("it is not the signature of this event")]
    Mismatch,
}

impl Signature {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({})", self.0)
    }
}

impl FromStr for Signature {
    type Err = InvalidSignature;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parts(text)?;
        Ok(Self(text.into()))
    }
}

/// The encoded header and the encoded signature. Neither is empty, and neither holds what JSON escapes.
fn parts(text: &str) -> Result<(&str, &str), InvalidSignature> {
    let is_base64 = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    match text.split_once(DETACHED) {
        Some((header, signature))
            if text.len() <= MAX_SIGNATURE_BYTES && is_base64(header) && is_base64(signature) =>
        {
            Ok((header, signature))
        }
        _ => Err(InvalidSignature::Form),
    }
}

/// What a verifier reads of the header (RFC 7515 §4.1); a field that is given twice is refused.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    b64: Option<bool>,
    #[serde(default)]
    crit: Vec<String>,
}

impl Header {
    fn parse(encoded: &str) -> Result<Self, InvalidSignature> {
        let json = BASE64_URL_SAFE_NO_PAD.decode(encoded).map_err(|_| InvalidSignature::Form)?;
        serde_json::from_slice(&json).map_err(|error| InvalidSignature::Header(error.to_string()))
    }

    /// The id of the key, if everything else is as it must be.
    fn key_id(self) -> Result<String, InvalidSignature> {
        if self.alg != ALGORITHM {
            return Err(InvalidSignature::Algorithm(self.alg));
        }
        if self.b64 != Some(false) || !self.crit.iter().any(|name| name == UNENCODED) {
            return Err(InvalidSignature::Encoding);
        }
        if self.crit.len() > 1 {
            return Err(InvalidSignature::Extensions(self.crit));
        }
        self.kid.ok_or(InvalidSignature::NoKey)
    }
}

/// The exchange's secret Ed25519 key for events, and the id that clients find its public half by.
#[derive(Clone)]
pub struct MessageKey {
    secret: SigningKey,
    id: String,
    /// The encoded header, the same for every event.
    header: String,
}

/// Shows the id, not the key.
impl fmt::Debug for MessageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageKey({})", self.id)
    }
}

impl MessageKey {
    /// From the 32 secret bytes of RFC 8032. Its id is its thumbprint (RFC 7638).
    pub fn from_bytes(secret: &[u8; 32]) -> Self {
        let secret = SigningKey::from_bytes(secret);
        let id = jwks::thumbprint(&secret.verifying_key());
        Self::new(secret, id)
    }

    fn new(secret: SigningKey, id: String) -> Self {
        // A key id holds no character that JSON escapes.
        let header = format!(r#"{{"alg":"{ALGORITHM}","kid":"{id}","b64":false,"crit":["{UNENCODED}"]}}"#);
        Self { secret, id, header: BASE64_URL_SAFE_NO_PAD.encode(header) }
    }

    /// The key id, `kid`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The public key, for those who verify.
    pub fn public(&self) -> KeySet {
        KeySet::of(&self.id, self.secret.verifying_key())
    }

    /// Signs an event.
    pub fn sign(&self, stream: &StreamName, at: Position, data: &[u8]) -> Signature {
        let signature = self.secret.sign(&signing_input(&self.header, stream, at, data));
        let signature = BASE64_URL_SAFE_NO_PAD.encode(signature.to_bytes());
        Signature([&self.header, DETACHED, &signature].concat().into())
    }
}

impl KeySet {
    /// Whether an event was signed with one of these keys; its id.
    ///
    /// # Errors
    /// Why not.
    pub fn verify(
        &self,
        signature: &str,
        stream: &StreamName,
        at: Position,
        data: &[u8],
    ) -> Result<String, InvalidSignature> {
        let (header, signature) = parts(signature)?;
        let signature = BASE64_URL_SAFE_NO_PAD
            .decode(signature)
            .ok()
            .and_then(|bytes| ed25519_dalek::Signature::from_slice(&bytes).ok())
            .ok_or(InvalidSignature::Form)?;
        let id = Header::parse(header)?.key_id()?;
        let Some(key) = self.find(&id) else { return Err(InvalidSignature::UnknownKey(id)) };
        let Some(key) = key else { return Err(InvalidSignature::KeyType(id)) };
        key.verify_strict(&signing_input(header, stream, at, data), &signature)
            .map_err(|_| InvalidSignature::Mismatch)?;
        Ok(id)
    }
}

#[cfg(test)]
mod tests;
