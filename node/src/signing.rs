//! Message signing: events of the configured channels carry a signature of the exchange, which clients verify
//! ([`tickmesh_protocol::signature`]). Ingest peers have the one secret key; edges serve the public keys and could forge
//! nothing that a client verifies with keys it has from the exchange itself.
//!
//! A key is replaced in three steps, each on every peer before the next: the new public key goes into the edges'
//! `jwks_file`, which is read again while they run; then, longer than [`MAX_AGE`] later, the new secret key onto the ingest
//! peers, which may restart one by one, as events of either key verify; the old public key stays in the file for as long
//! as clients hold messages that it verifies.

mod config;
mod fetch;
mod page;

use std::collections::HashSet;

use tickmesh_protocol::{
    Position, StreamName,
    signature::{MessageKey, Signature},
};

pub use self::{
    config::Config,
    fetch::fetch_keys,
    page::{MAX_AGE, PATH, PublicKeys, router},
};

/// Signs events of some channels; by default of none.
#[derive(Clone, Debug, Default)]
pub struct Signer {
    key: Option<MessageKey>,
    channels: HashSet<String>,
}

impl Signer {
    pub fn new(key: MessageKey, channels: HashSet<String>) -> Self {
        Self { key: Some(key), channels }
    }

    /// The signature of an event, if its channel is signed. It takes about 26 µs.
    pub fn sign(&self, stream: &StreamName, at: Position, data: &[u8]) -> Option<Signature> {
        let key = self.key.as_ref().filter(|_| self.channels.contains(stream.channel()))?;
        Some(key.sign(stream, at, data))
    }
}

/// A new random key.
pub fn new_key() -> MessageKey {
    // By way of the crate that makes keys anyway.
    let secret = libp2p::identity::ed25519::SecretKey::generate();
    MessageKey::from_bytes(blake3::hash(secret.as_ref()).as_bytes())
}
