//! Batches: what one publisher sends at once on one topic, and its signature.
//!
//! The signature is the publisher's, over the exact bytes of the batch: whoever forwards, stores or serves a batch
//! cannot change it, and nobody without the key of a configured publisher can make market data.

use std::fmt;

use bytes::Bytes;
use ed25519_dalek::{Signer, VerifyingKey};

use crate::{
    Event, Position, StreamName, Topic,
    codec::{self, CodecError},
};

/// Most events in one batch: bounds what a receiver decodes at once.
pub const MAX_BATCH_EVENTS: usize = 4096;

/// Most heads in one batch.
pub const MAX_BATCH_HEADS: usize = 1024;

/// What is signed: one of these, then the version byte and the body. It keeps a signature made here from meaning anything
/// elsewhere the same key may sign: a page of a feed, sent again as if it were a batch, is refused.
const BATCH_CONTEXT: &[u8] = b"tickmesh batch\0";
const PAGE_CONTEXT: &[u8] = b"tickmesh page\0";
const SNAPSHOT_CONTEXT: &[u8] = b"tickmesh snapshot\0";

/// Length of an Ed25519 signature (RFC 8032), in bytes.
pub const SIGNATURE_BYTES: usize = 64;

/// An ingest peer's public key: Ed25519 (RFC 8032), the key in its libp2p peer id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublisherKey(pub [u8; 32]);

impl fmt::Debug for PublisherKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What one publisher sends at once on one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub publisher: PublisherKey,
    /// Random at each start of the publisher, so that its counter may begin again.
    pub boot: u64,
    /// Rises by one with each batch of this publisher, boot and topic.
    pub counter: u64,
    pub topic: Topic,
    /// At most [`MAX_BATCH_EVENTS`], in the order of each stream.
    pub events: Vec<Event>,
    /// Where streams of the topic stand that have been silent for a while, so that whoever missed their last event learns
    /// of it. At most [`MAX_BATCH_HEADS`]; a batch has events, heads or both.
    pub heads: Vec<(StreamName, Position)>,
}

/// A batch together with the bytes that its publisher signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedBatch {
    batch: Batch,
    envelope: Bytes,
}

/// A secret Ed25519 key that signs batches.
#[derive(Clone)]
pub struct SigningKey(ed25519_dalek::SigningKey);

/// Why bytes are no batch to be believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBatch {
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("the signature is not the publisher's")]
    Signature,
}

impl SigningKey {
    /// From the 32 secret bytes of RFC 8032.
    pub fn from_bytes(secret: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(secret))
    }

    pub fn publisher(&self) -> PublisherKey {
        PublisherKey(self.0.verifying_key().to_bytes())
    }
}

impl SignedBatch {
    /// Encodes and signs what is published by gossip. `batch.publisher` must be the key's.
    ///
    /// # Errors
    /// If the batch breaks a limit of [`codec`].
    pub fn sign(batch: Batch, key: &SigningKey) -> Result<Self, CodecError> {
        Self::sign_as(BATCH_CONTEXT, batch, key)
    }

    /// Encodes and signs a page: what a feed serves. Its counter means nothing.
    ///
    /// # Errors
    /// If the page breaks a limit of [`codec`].
    pub fn sign_page(page: Batch, key: &SigningKey) -> Result<Self, CodecError> {
        Self::sign_as(PAGE_CONTEXT, page, key)
    }

    /// Encodes and signs snapshots: events that hold what is retained of their streams. Its counter means nothing.
    ///
    /// # Errors
    /// If the snapshots break a limit of [`codec`].
    pub fn sign_snapshots(snapshots: Batch, key: &SigningKey) -> Result<Self, CodecError> {
        Self::sign_as(SNAPSHOT_CONTEXT, snapshots, key)
    }

    fn sign_as(context: &[u8], batch: Batch, key: &SigningKey) -> Result<Self, CodecError> {
        debug_assert_eq!(batch.publisher, key.publisher());
        let envelope =
            codec::encode_batch(&batch, |body| key.0.sign(&signed_text(context, body)).to_bytes())?;
        Ok(Self { batch, envelope: envelope.into() })
    }

    /// Decodes an envelope from gossip and verifies its signature. Whether the publisher is one to be believed is not
    /// asked here.
    pub fn open(envelope: Bytes) -> Result<Self, InvalidBatch> {
        Self::open_as(BATCH_CONTEXT, envelope)
    }

    /// Decodes a page of a feed and verifies its signature. Whether the publisher is one to be believed is not asked here.
    pub fn open_page(envelope: Bytes) -> Result<Self, InvalidBatch> {
        Self::open_as(PAGE_CONTEXT, envelope)
    }

    /// Decodes snapshots and verifies their signature. Whether the publisher is one to be believed is not asked here.
    pub fn open_snapshots(envelope: Bytes) -> Result<Self, InvalidBatch> {
        Self::open_as(SNAPSHOT_CONTEXT, envelope)
    }

    fn open_as(context: &[u8], envelope: Bytes) -> Result<Self, InvalidBatch> {
        let (batch, body_bytes) = codec::decode_batch(&envelope)?;
        let (body, signature) = envelope.split_at(body_bytes);
        let signature =
            ed25519_dalek::Signature::from_slice(signature).map_err(|_| InvalidBatch::Signature)?;
        VerifyingKey::from_bytes(&batch.publisher.0)
            .and_then(|key| key.verify_strict(&signed_text(context, body), &signature))
            .map_err(|_| InvalidBatch::Signature)?;
        Ok(Self { batch, envelope })
    }

    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// The bytes as first sent: version, body, signature.
    pub fn envelope(&self) -> &Bytes {
        &self.envelope
    }
}

fn signed_text(context: &[u8], body: &[u8]) -> Vec<u8> {
    [context, body].concat()
}
