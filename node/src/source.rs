//! Sources: one connector per kind of event log, all behind one trait.
//!
//! Ordering: the records of one partition arrive in the order of their positions, each position once; nothing is said
//! about the order between partitions. A source that loses its server keeps trying and goes on at the position where it
//! was: it never skips and never repeats.

pub mod embedded;
pub mod kafka;
pub mod metrics;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tickmesh_protocol::Epoch;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Largest record that is taken from a log, in bytes; larger ones are dead letters.
pub const MAX_RECORD_BYTES: usize = 1024 * 1024;

/// One record of a log.
#[derive(Clone, Debug)]
pub struct Record {
    /// The log's own name for where it came from: a Kafka topic.
    pub topic: Arc<str>,
    pub partition: u32,
    /// Strictly increasing within the partition: a Kafka offset.
    pub position: u64,
    /// What gives `position` its meaning: log identity, partition, numbering rule.
    pub epoch: Epoch,
    pub value: Bytes,
    /// When the engine wrote it: microseconds since 1970 UTC; zero where the log says nothing.
    pub engine_time_us: u64,
}

/// What a source says.
#[derive(Clone, Debug)]
pub enum SourceEvent {
    /// Reading of a partition begins at `position`: everything from there on will come.
    Begin { epoch: Epoch, position: u64 },
    /// Records of any partitions, never empty.
    Records(Vec<Record>),
}

/// A log that is read live.
pub trait Source: Send {
    /// Reads until `stop`, into a bounded channel: when ingest is slow the source waits, and the log keeps the rest.
    fn run(
        self: Box<Self>,
        output: mpsc::Sender<SourceEvent>,
        stop: CancellationToken,
    ) -> BoxFuture<'static, ()>;

    /// A second, independent way into the same log, for re-reading.
    fn reader(&self) -> Arc<dyn LogReader>;
}

/// Reads ranges of a log again, by position.
pub trait LogReader: Send + Sync {
    /// Reads the records of a partition with positions in `from..until`, in order; fewer if the log ends before.
    fn read<'a>(
        &'a self,
        topic: &'a str,
        partition: u32,
        from: u64,
        until: u64,
    ) -> BoxFuture<'a, Result<Vec<Record>, ReadError>>;
}

/// Why a range cannot be read again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("partition {partition} of {topic} no longer holds position {from}; the oldest is {oldest}")]
    Trimmed { topic: String, partition: u32, from: u64, oldest: u64 },
    #[error("no partition {partition} of {topic}")]
    UnknownPartition { topic: String, partition: u32 },
    #[error("cannot read {topic}: {reason}")]
    Unavailable { topic: String, reason: String },
}
