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
//! let stream = StreamState { name: "trades.btc_usdt".parse().unwrap(), last, left: vec![], retained: None };
//! let engine = SourceState { name: "engine".into(), partitions: vec![partition], streams: vec![stream], operators: vec![] };
//! let state = State { sources: vec![engine] };
//! assert_eq!(decode_state(&encode_state(&state).unwrap()).unwrap(), state);
//! ```

use std::{cmp::Reverse, sync::Arc};

use bytes::Bytes;

use crate::{Epoch, Position, Sequence, StreamName, book::Book};

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
    pub operators: Vec<OperatorState>,
}

/// The state of one operator in one partition, at the partition's `next`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorState {
    pub epoch: Epoch,
    /// What the operator does, as a hash of its route: the state means nothing to another one.
    pub route: u64,
    /// As the operator writes it.
    pub state: Bytes,
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
    /// What is kept of it for who subscribes, at its last event.
    pub retained: Option<Retained>,
}

/// What is kept of a stream. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retained {
    /// Of the last event.
    pub engine_time_us: u64,
    pub what: RetainedData,
}

/// The kinds of what is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RetainedData {
    /// The last event's data.
    Last(Bytes),
    /// The book that the events add up to. Known as a whole.
    Book(Arc<Book>),
}

/// What a stream costs in a state at most, beside its names, the epochs it left and what is retained.
const STREAM_BYTES: usize = 64;
/// An epoch that was left.
const LEFT_BYTES: usize = 9;
/// What a source or a partition costs at most, beside their names.
const PARTITION_BYTES: usize = 64;

impl Retained {
    /// Length of [`Self::data`], or a little more.
    pub fn data_bytes(&self) -> usize {
        match &self.what {
            RetainedData::Last(data) => data.len(),
            RetainedData::Book(book) => book.data_bytes(),
        }
    }

    /// The `data` of an event that says all there is to know. `None` for a book that is not known as a whole.
    pub fn data(&self) -> Option<Bytes> {
        match &self.what {
            RetainedData::Last(data) => Some(data.clone()),
            RetainedData::Book(book) => book.to_data().map(Bytes::from),
        }
    }
}

impl State {
    /// Leaves out what is retained of the streams with the most of it, and then the largest operators, until the rest surely
    /// fits [`MAX_STATE_BYTES`] as bytes. Returns of how many.
    pub fn fit(&mut self) -> usize {
        self.fit_into(MAX_STATE_BYTES)
    }

    fn fit_into(&mut self, limit: usize) -> usize {
        let mut bytes: usize = self.sources.iter().map(SourceState::bytes_at_most).sum();
        if bytes <= limit {
            return 0;
        }
        let streams = self.sources.iter_mut().flat_map(|source| &mut source.streams);
        let mut largest: Vec<_> =
            streams.map(|stream| &mut stream.retained).filter(|of| of.is_some()).collect();
        let data_bytes = |retained: &Option<Retained>| retained.as_ref().map_or(0, Retained::data_bytes);
        largest.sort_by_key(|retained| Reverse(data_bytes(retained)));
        let mut left_out = 0;
        for retained in largest {
            if bytes <= limit {
                break;
            }
            bytes -= data_bytes(retained);
            *retained = None;
            left_out += 1;
        }
        while bytes > limit {
            let operators = self.sources.iter_mut().map(|source| &mut source.operators);
            let largest = operators.filter_map(|all| {
                let (at, largest) =
                    all.iter().enumerate().max_by_key(|(_, operator)| operator.state.len())?;
                Some((largest.state.len(), at, all))
            });
            let Some((size, at, all)) = largest.max_by_key(|(size, ..)| *size) else { break };
            all.swap_remove(at);
            bytes -= size;
            left_out += 1;
        }
        left_out
    }

    /// The state of one source.
    pub fn source(&self, name: &str) -> Option<&SourceState> {
        self.sources.iter().find(|source| source.name == name)
    }
}

impl SourceState {
    fn bytes_at_most(&self) -> usize {
        let partition = |of: &PartitionState| PARTITION_BYTES + of.topic.len();
        let stream = |of: &StreamState| {
            let retained = of.retained.as_ref().map_or(0, Retained::data_bytes);
            STREAM_BYTES + of.name.as_str().len() + LEFT_BYTES * of.left.len() + retained
        };
        let partitions: usize = self.partitions.iter().map(partition).sum();
        let operators: usize = self.operators.iter().map(|of| PARTITION_BYTES + of.state.len()).sum();
        let streams: usize = self.streams.iter().map(stream).sum();
        PARTITION_BYTES + self.name.len() + partitions + streams + operators
    }
}
