//! What an ingest peer must know to go on where it, or a sibling, was: how far each partition of a log is read, and where
//! each stream stands.
//!
//! Kept on disk every few seconds, and given to siblings that start. An old one does no harm: what the log wrote since is
//! read again, and comes out as the same events with the same numbers.
//!
//! ```
//! use tickmesh_protocol::{Epoch, Position, Sequence, checkpoint::*, codec::{decode_state, encode_state}};
//!
//! let epoch = Epoch::of("cluster/topic", 0, "offset");
//! // Records up to offset 8 have been read, all of them since offset 3; the last of trades.btc_usdt was at 7.
//! let partition = PartitionState {
//!     epoch, topic: "market.trades".into(), partition: 0, next: 9, read_from: Sequence::new(3).unwrap(), term: Some(4),
//! };
//! let last = Position { epoch, sequence: Sequence::new(7).unwrap() };
//! let stream = StreamState { name: "trades.btc_usdt".parse().unwrap(), last, left: vec![] };
//! let engine = SourceState { name: "engine".into(), partitions: vec![partition], streams: vec![stream] };
//! let state = State { sources: vec![engine] };
//! assert_eq!(decode_state(&encode_state(&state).unwrap()).unwrap(), state);
//! ```

use std::sync::Arc;

use crate::{Epoch, Position, Sequence, StreamName};

/// Largest state as bytes: about a million streams, which is more than one ingest peer can serve.
pub const MAX_STATE_BYTES: usize = 64 * 1024 * 1024;
/// Most sources in one state; a configuration with more would be made by a mistake.
pub const MAX_STATE_SOURCES: usize = 1024;
/// Longest name of a source or of a topic of a log, in bytes: Kafka's topics have at most 249.
pub const MAX_STATE_NAME_BYTES: usize = 256;
/// Most epochs that a stream is remembered to have left; the sequencer keeps eight.
pub const MAX_STATE_LEFT_EPOCHS: usize = 16;

/// The state of an ingest peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub sources: Vec<SourceState>,
}

/// The state of one source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceState {
    /// As the configuration calls it; siblings call it the same.
    pub name: String,
    pub partitions: Vec<PartitionState>,
    pub streams: Vec<StreamState>,
}

/// How far a partition has been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionState {
    pub epoch: Epoch,
    /// The log's own name for where it is: a Kafka topic.
    pub topic: Arc<str>,
    pub partition: u32,
    /// The position to read next; at most one more than the largest sequence.
    pub next: u64,
    /// Everything from here up to `next` has been read.
    pub read_from: Sequence,
    /// The term of the last record read, if its log has terms: a Kafka leader epoch. It tells whether the log has lost
    /// its end and written another one since.
    pub term: Option<u32>,
}

/// Where a stream stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamState {
    pub name: StreamName,
    /// Its last event.
    pub last: Position,
    /// Epochs that it has left and may not go back to, oldest first.
    pub left: Vec<Epoch>,
}

impl State {
    /// The state of one source.
    pub fn source(&self, name: &str) -> Option<&SourceState> {
        self.sources.iter().find(|source| source.name == name)
    }
}
