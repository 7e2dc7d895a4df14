//! Ingest: records of a log become sequenced events, published in signed batches and kept in a history.
//!
//! One thread owns all of it, without locks: route → sequence → publish → history. Ordering: the events of one stream
//! are published in the order of their sequence. When the mesh is behind, ingest waits; then the sources wait, and the
//! log keeps the rest.

pub mod checkpoint;
pub mod dead_letters;
mod history;
mod publisher;
pub mod rescan;
mod worker;

use std::{collections::HashSet, io, sync::Arc, thread, time::Duration};

use futures_util::future::BoxFuture;
use tickmesh_protocol::{SignedBatch, SigningKey, Topic};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use self::dead_letters::{DeadLetter, DeadLetters};
use crate::{
    config::{Section, Size, Span},
    ops::{lifecycle::LifecycleEvents, metrics::Registry},
    ports::IngestInput,
    source::SourceEvent,
    transform::{Routes, jq},
};

/// `[ingest]` of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long the leader of a topic gathers events before it publishes them. A batch costs about as much as a hundred
    /// events in it, so one millisecond is paid for ten times lower CPU at a thousand events a second.
    pub batch: Duration,
    /// Batches that this peer publishes per second at most, over all topics. Every edge pays about a tenth of a
    /// millisecond of CPU for each, whatever is in it; with more topics than this allows at one batch per millisecond,
    /// events wait longer and batches become larger.
    pub max_batches: u32,
    /// Age at which another peer publishes what the leader has not: much longer than any usual delay of a living leader,
    /// much shorter than a user's patience.
    pub takeover_after: Duration,
    /// What the history keeps at most, in bytes of envelopes.
    pub history_bytes: usize,
    /// What the history keeps at most, by age.
    pub history_age: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            batch: Duration::from_millis(1),
            max_batches: 1000,
            takeover_after: Duration::from_millis(250),
            history_bytes: 256 << 20,
            history_age: Duration::from_secs(300),
        }
    }
}

impl Config {
    pub fn read(section: &mut Section) -> Self {
        let default = Self::default();
        let config = Self {
            batch: section.or("batch", Span(default.batch)).0,
            max_batches: section.or("max_batches", default.max_batches),
            takeover_after: section.or("takeover_after", Span(default.takeover_after)).0,
            history_bytes: section.or("history_bytes", Size(default.history_bytes)).0,
            history_age: section.or("history_age", Span(default.history_age)).0,
        };
        if config.batch > Duration::from_millis(100) {
            section.fault("batch", "at most 100ms: every event waits that long");
        }
        if !(10..=100_000).contains(&config.max_batches) {
            section.fault("max_batches", "between 10 and 100000 per second");
        }
        if config.takeover_after < config.batch * 4 {
            section.fault(
                "takeover_after",
                "at least four times ingest.batch, or every event is published twice",
            );
        }
        config
    }
}

/// Where ingest's batches go. [`crate::app`] puts the mesh here.
pub trait Outlet: Send + Sync + 'static {
    /// Starts to receive what other publishers send on a topic. Idempotent.
    fn join(&self, topic: &Topic);

    /// Hands a batch to the mesh; waits while the mesh is behind.
    fn publish(&self, batch: SignedBatch) -> BoxFuture<'_, ()>;
}

/// One source and what becomes of its records.
pub struct Lane {
    pub source: String,
    pub routes: Routes,
    /// Channels of records that pass without a route, if the source knows them.
    pub channels: Option<&'static [&'static str]>,
    pub events: mpsc::Receiver<SourceEvent>,
}

/// Everything an ingest peer needs.
pub struct Parts {
    pub config: Config,
    /// Channels whose events never enter gossip.
    pub private: Arc<HashSet<String>>,
    pub key: SigningKey,
    pub lanes: Vec<Lane>,
    pub mesh: mpsc::Receiver<IngestInput>,
    pub outlet: Arc<dyn Outlet>,
    pub dead_letters: DeadLetters,
    pub registry: Registry,
    pub lifecycle: LifecycleEvents,
}

/// Starts the ingest thread. It ends soon after `stop`, when what it holds has been published.
///
/// # Errors
/// If the thread cannot be started.
pub fn spawn(parts: Parts, stop: CancellationToken) -> io::Result<thread::JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    thread::Builder::new().name("ingest".into()).stack_size(jq::STACK_BYTES).spawn(move || {
        let span = tracing::info_span!("ingest");
        let _entered = span.enter();
        match worker::Worker::new(parts) {
            Ok(worker) => runtime.block_on(worker.run(stop)),
            // The configuration was checked with the same compiler.
            Err(error) => tracing::error!(%error, "routes do not compile"),
        }
    })
}
