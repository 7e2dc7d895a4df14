//! One message of one stream.

use bytes::Bytes;

use crate::{Epoch, Position, Previous, Sequence, StreamName, signature::Signature};

/// Largest `data` of one event, in bytes: a full order book of some thousand levels fits, and a batch holding one
/// still fits the mesh's frame limit.
pub const MAX_EVENT_DATA_BYTES: usize = 512 * 1024;

/// One message of one stream, as it goes from ingest over the mesh to the clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub stream: StreamName,
    pub epoch: Epoch,
    pub sequence: Sequence,
    pub previous: Previous,
    /// When the exchange's engine made the record: microseconds since 1970 UTC, as its log says; zero where it says
    /// nothing.
    pub engine_time_us: u64,
    /// Exact JSON text, made once at ingest and never parsed again.
    pub data: Bytes,
    /// For clients to verify; of channels that are signed.
    pub signature: Option<Signature>,
}

impl Event {
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, sequence: self.sequence }
    }

    /// What it weighs wherever events are bounded in bytes; names and numbers are bounded by the count.
    pub fn bytes(&self) -> usize {
        self.data.len() + self.signature.as_ref().map_or(0, |signature| signature.as_str().len())
    }
}
