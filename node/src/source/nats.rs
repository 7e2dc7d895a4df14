//! NATS JetStream as a source; core NATS, which keeps nothing, is in `nats/core.rs`.
//!
//! A stream is one log of one partition, read by every ingest peer with a consumer of its own that the server forgets. The
//! position of a record is the stream's sequence, its topic is the message's subject. What else becomes of the numbers is told in
//! `nats/numbering.rs`. A sequence that is not there, since its message was deleted or has another subject, is a hole; what
//! limits or a purge took before it was read is told as lost.
//!
//! Exactness rests on three looks. A consumer counts what it gives, so that a message which got lost on the way is noticed. The
//! stream's time of creation is asked for before a consumer is made and after, so its messages are of that very stream. And
//! after each hole the stream is asked for its first sequence: if that is before the hole, nothing in it was trimmed. On any
//! doubt, and with each connection, reading begins anew exactly after the last record.
//!
//! A stream that keeps the last message of each subject only (`max_msgs_per_subject`, rollup) is compacted. What it had before
//! cannot be read again, so it is read only where all routes of the source retain the last event.

mod config;
pub mod core;
mod link;
mod numbering;
mod reading;
mod reread;
mod writing;

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tickmesh_protocol::Epoch;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use self::{
    config::{Access, Config, CoreConfig, Login},
    writing::Writer,
};
use self::{
    link::Trouble,
    numbering::{Extent, Stored},
    reading::Reading,
    reread::Reader,
};
use super::{
    LogReader, Record, Source, SourceEvent, Starts,
    metrics::{Figures, SourceMetrics},
};
use crate::ops::health::Condition;

/// A JetStream stream that is read live.
pub struct Nats {
    config: Config,
    retains_last: bool,
    status: Arc<Status>,
    reader: Arc<Reader>,
}

/// What the connections of one source share.
struct Status {
    source: String,
    servers: String,
    figures: Figures,
    condition: Condition,
    /// The stream that is read, and how often it has lost its end.
    generation: Mutex<Option<(Arc<str>, u32)>>,
}

impl Nats {
    /// Makes no connection yet; [`Source::run`] does. `retains_last`: all routes retain the last event, so a compacted stream may
    /// be read. The condition is ready while the stream is read.
    pub fn new(
        name: &str,
        config: Config,
        retains_last: bool,
        metrics: &SourceMetrics,
        condition: Condition,
    ) -> Self {
        let status = Arc::new(Status::new(name, &config.access, metrics, condition));
        let reader = Arc::new(Reader::new(config.clone(), status.clone()));
        Self { config, retains_last, status, reader }
    }
}

impl Source for Nats {
    fn run(
        self: Box<Self>,
        starts: Starts,
        output: mpsc::Sender<SourceEvent>,
        stop: CancellationToken,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let reading = Reading::new(self.config, self.retains_last, self.status, starts, output);
            tokio::select! {
                () = stop.cancelled() => {}
                () = reading.run() => {}
            }
        })
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        self.reader.clone()
    }
}

impl Status {
    fn new(name: &str, access: &Access, metrics: &SourceMetrics, condition: Condition) -> Self {
        let (source, servers) = (name.to_owned(), access.servers());
        Self { source, servers, figures: metrics.of(name), condition, generation: Mutex::default() }
    }

    fn reading(&self) {
        self.figures.circuit.note(true);
        self.figures.brokers_up.set(1);
        self.figures.partitions.set(1);
        self.condition.ready();
    }

    fn waiting(&self, reason: &str) {
        self.condition.waiting(format!("nats {}: {reason}", self.servers));
        self.figures.brokers_up.set(0);
        self.figures.partitions.set(0);
    }

    fn trouble(&self, trouble: &Trouble) {
        self.figures.error(trouble.kind);
        self.figures.circuit.note(false);
        self.waiting(&trouble.reason);
    }

    fn set_generation(&self, log: &Arc<str>, generation: u32) {
        *self.generation.lock().unwrap_or_else(PoisonError::into_inner) = Some((log.clone(), generation));
    }

    /// How often a stream has lost its end, as who reads live knows.
    fn generation(&self, log: &str) -> u32 {
        let generation = self.generation.lock().unwrap_or_else(PoisonError::into_inner);
        generation.as_ref().filter(|(read, _)| **read == *log).map_or(0, |(_, generation)| *generation)
    }
}

/// What identifies a stream: its name, and when it was created.
fn log_of(info: &async_nats::jetstream::stream::Info) -> Arc<str> {
    format!("nats/{}/{}", info.config.name, info.created.unix_timestamp_nanos()).into()
}

/// What a stream holds.
fn extent_of(info: &async_nats::jetstream::stream::Info) -> Extent {
    let state = &info.state;
    let initial = info.config.first_sequence.unwrap_or(1).max(1);
    let end = if state.last_sequence == 0 { 0 } else { state.last_sequence.saturating_add(1) };
    let low = if state.messages == 0 && state.last_sequence >= initial { end } else { state.first_sequence };
    // Before the first message that was ever there, nothing is missing.
    Extent { low: if low <= initial { 0 } else { low }, end, cut: None }
}

/// Whether a stream may lack any message but the last of its subject.
fn is_compacted(config: &async_nats::jetstream::stream::Config) -> bool {
    config.max_messages_per_subject > 0 || config.allow_rollup
}

/// Where a message is in its stream, as its reply address says.
struct Place {
    position: u64,
    /// Counts what the consumer has given.
    consumed: u64,
    /// Messages for this consumer that are in the stream behind this one.
    pending: u64,
    stored: Stored,
}

fn place_of(message: &async_nats::jetstream::Message) -> Result<Place, Trouble> {
    let info = message
        .info()
        .map_err(|error| Trouble::new("protocol", format!("a message without a place: {error}")))?;
    Ok(Place {
        position: info.stream_sequence,
        consumed: info.consumer_sequence,
        pending: info.pending,
        stored: Stored::at(info.published.unix_timestamp_nanos()),
    })
}

/// A message as a record.
fn record_of(
    message: async_nats::Message,
    place: &Place,
    (topic, epoch): (Arc<str>, Epoch),
    time_header: Option<&str>,
) -> Record {
    let time = time_header.and_then(|name| message.headers.as_ref()?.get(name)?.as_str().trim().parse().ok());
    Record {
        topic,
        partition: 0,
        position: place.position,
        epoch,
        term: Some(place.stored.term()),
        key: None,
        // A copy: a few records that are kept must not keep all that came over the socket with them.
        value: Bytes::copy_from_slice(&message.payload),
        engine_time_us: time.unwrap_or_else(|| place.stored.microseconds()),
    }
}
