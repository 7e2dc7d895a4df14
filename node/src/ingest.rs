//! Ingest: records of a log become sequenced events, kept in a history and published in signed batches.
//!
//! One thread owns all of it, without locks: route → sequence → history → publish. Ordering: the events of one stream
//! are published in the order of their sequence. When the mesh is behind, ingest waits; then the sources wait, and the
//! log keeps the rest. Several ingest peers read the same logs; which of them publishes a topic is decided by
//! [`tickmesh_protocol::takeover`].
//!
//! A peer that starts goes on from its checkpoint, or from a sibling's state, and replays the log up to its end. Only then is it
//! *warm*: it ranks and publishes. What it replayed is in its history, where edges fetch what they have missed.
//!
//! | file | holds |
//! |---|---|
//! | `worker` | the thread: takes what comes, in turn |
//! | `core` | numbers records, keeps and publishes events |
//! | `warmth`, `tiers` | when and in which order this peer ranks |
//! | `history` | the events of the last minutes |
//! | `retained` | last events and order books, for snapshots |
//! | `store`, `rescan` | what feeds are served from: the history, and the log behind it |
//! | `checkpoint` | how far this peer is, on disk |
//! | `control`, `hold` | routes and sources that change: where everybody waits, and what is other from there on |
//! | `overview` | how this peer sees the mesh, for people |
//! | `dead_letters` | records that could not become events |

mod checkpoint;
mod control;
mod core;
pub mod dead_letters;
mod history;
mod hold;
mod metrics;
mod overview;
pub mod rescan;
mod retained;
#[cfg(test)]
mod rig;
mod store;
mod tiers;
mod warmth;
mod worker;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    path::PathBuf,
    sync::Arc,
    thread,
    time::Duration,
};

use futures_util::future::BoxFuture;
use prometheus::IntGauge;
use tickmesh_protocol::{
    Epoch, Moment, SignedBatch, SigningKey, Topic,
    checkpoint::State,
    feed::{SourceStatus, Status},
    sequencer::Sequencer,
    takeover::{Publisher, Settings, SourceId},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::{
    checkpoint::Writer,
    core::Core,
    history::History,
    metrics::Metrics,
    rescan::{Log, Rescan},
    retained::RetainedStreams,
    store::{Feeds, Store, StoreParts},
    worker::{LaneMaker, Worker},
};
pub use self::{
    checkpoint::load as load_checkpoint,
    control::{Change, Control, Ended, NewLane},
    dead_letters::{DeadLetter, DeadLetters, Outbox},
    overview::{Overlook, Overview},
    store::Asked,
    tiers::Tiers,
};
use crate::{
    config::reader::{Section, Size, Span},
    ops::{health::Condition, lifecycle::LifecycleEvents, metrics::Registry},
    ports::{FeedStore, IngestInput},
    signing::Signer,
    source::{LogReader, SourceEvent},
    transform::{Policies, RouteTable, jq, jq::JqError, table::computed_channels},
};

/// What is kept of the log that was read again, for others who ask for the same: two chunks of the largest records for
/// each of four sources.
const RESCAN_BYTES: usize = 64 * 1024 * 1024;

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
    /// How long a leader may be silent at least, although there are events of its topics, before the next rank publishes
    /// them: four times its usual lag, within these bounds.
    pub takeover_least: Duration,
    pub takeover_most: Duration,
    /// How often it is kept on disk how far this peer is.
    pub checkpoint_every: Duration,
    /// How long a peer that starts without a checkpoint looks for a sibling that knows more, before it begins as configured.
    pub ask_siblings: Duration,
    /// What the history keeps at most, in bytes of events.
    pub history_bytes: usize,
    /// What the history keeps at most, by age.
    pub history_age: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            batch: Duration::from_millis(1),
            max_batches: 1000,
            takeover_least: Duration::from_millis(25),
            takeover_most: Duration::from_millis(80),
            checkpoint_every: Duration::from_secs(5),
            ask_siblings: Duration::from_secs(3),
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
            takeover_least: section.or("takeover_least", Span(default.takeover_least)).0,
            takeover_most: section.or("takeover_most", Span(default.takeover_most)).0,
            checkpoint_every: section.or("checkpoint_every", Span(default.checkpoint_every)).0,
            ask_siblings: section.or("ask_siblings", Span(default.ask_siblings)).0,
            history_bytes: section.or("history_bytes", Size(default.history_bytes)).0,
            history_age: section.or("history_age", Span(default.history_age)).0,
        };
        if config.batch > Duration::from_millis(100) {
            section.fault("batch", "at most 100ms: every event waits that long");
        }
        if !(10..=100_000).contains(&config.max_batches) {
            section.fault("max_batches", "between 10 and 100000 per second");
        }
        if config.takeover_least < config.batch * 4 {
            section.fault(
                "takeover_least",
                "at least four times ingest.batch, or every event is published twice",
            );
        }
        if config.takeover_most < config.takeover_least {
            section.fault("takeover_most", "at least ingest.takeover_least");
        }
        if config.checkpoint_every < Duration::from_millis(100) {
            section
                .fault("checkpoint_every", "at least 100ms: each one is a file that is written and synced");
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
    pub routes: RouteTable,
    /// Channels of records that pass without a route, if the source knows them.
    pub channels: Option<&'static [&'static str]>,
    pub tiers: Tiers,
    /// A second way into the log, for what the history no longer holds.
    pub reader: Arc<dyn LogReader>,
    /// Ready while the source is warm.
    pub condition: Condition,
    /// Records behind the end of the log, as the source says.
    pub lag: IntGauge,
    /// Where its dead letters go besides the operators' page.
    pub outbox: Option<Outbox>,
}

/// Everything an ingest peer needs before anything runs.
pub struct Parts {
    pub config: Config,
    pub region: String,
    /// Channels whose events never enter gossip.
    pub private: Arc<HashSet<String>>,
    /// What is retained of each channel, and what edges do for its clients.
    pub policies: Policies,
    pub key: SigningKey,
    /// Signs events for clients.
    pub signer: Arc<Signer>,
    pub lanes: Vec<Lane>,
    pub dead_letters: DeadLetters,
    /// Ends what reads logs for feeds.
    pub stop: CancellationToken,
    pub registry: Registry,
    pub lifecycle: LifecycleEvents,
}

/// An ingest peer that can be asked, and does nothing yet.
pub struct Opened {
    parts: Parts,
    boot: u64,
    store: Arc<Store>,
    overlook: Overlook,
    overlooks: mpsc::Receiver<oneshot::Sender<Overview>>,
    control: Control,
    requests: mpsc::Receiver<control::Request>,
}

/// What an ingest peer runs with.
pub struct Start {
    /// Where this peer, or a sibling, was; if that is known.
    pub state: Option<State>,
    /// What each lane's source says.
    pub events: Vec<mpsc::Receiver<SourceEvent>>,
    pub mesh: mpsc::Receiver<IngestInput>,
    pub outlet: Arc<dyn Outlet>,
    /// Where it is kept how far this peer is.
    pub checkpoint_file: Option<PathBuf>,
    /// Dropped when the thread ends, even by a panic.
    pub ended: DropGuard,
}

/// Why a source is not ready at first.
const WARMING: &str = "warming: reading the log up to its end";

impl Lane {
    fn log(&self) -> Log {
        Log {
            source: self.source.clone(),
            reader: Arc::clone(&self.reader),
            routes: Arc::clone(&self.routes),
            channels: self.channels,
        }
    }

    fn status(&self) -> SourceStatus {
        SourceStatus { name: self.source.clone(), warm: false, lag: 0 }
    }
}

/// Makes what feeds are served from. What others ask about the catalogue goes to `catalogue`.
///
/// # Errors
/// If a route does not compile, or a thread cannot be started.
pub fn open(parts: Parts, catalogue: mpsc::Sender<Asked>) -> io::Result<Opened> {
    let boot = boot_id(&parts.key);
    let history = History::new(parts.config.history_bytes, parts.config.history_age);
    let sources = parts.lanes.iter().map(Lane::status).collect();
    let status = Status { boot, region: parts.region.clone(), sources, lag_us: 0 };
    for lane in &parts.lanes {
        lane.condition.waiting(WARMING);
    }
    let logs = parts.lanes.iter().map(Lane::log);
    let rescan = Rescan::new(
        logs.collect(),
        parts.private.clone(),
        parts.signer.clone(),
        RESCAN_BYTES,
        &parts.registry,
        parts.stop.clone(),
    )?;
    let computed = parts.lanes.iter().flat_map(|lane| computed_channels(&lane.routes)).collect();
    let retained = RetainedStreams::new(&parts.registry);
    let store = Arc::new(Store::new(StoreParts {
        history,
        retained,
        key: parts.key.clone(),
        signer: Arc::clone(&parts.signer),
        boot,
        private: parts.private.clone(),
        computed,
        catalogue,
        status,
        rescan,
    }));
    let (overlook, overlooks) = mpsc::channel(overview::WAITING);
    let (control, requests) = mpsc::channel(control::WAITING);
    let (overlook, control) = (Overlook(overlook), Control(control));
    Ok(Opened { parts, boot, store, overlook, overlooks, control, requests })
}

impl Opened {
    /// What feeds are served from.
    pub fn feeds(&self) -> Arc<dyn FeedStore> {
        Arc::new(Feeds(Arc::clone(&self.store)))
    }

    /// How this peer sees the mesh.
    pub fn overlook(&self) -> Overlook {
        self.overlook.clone()
    }

    /// Has other routes and sources from the beginning on: those that are not named are not read.
    pub fn change(&mut self, routes: &BTreeMap<String, RouteTable>, policies: Policies, added: Vec<Lane>) {
        self.parts.policies = policies;
        self.parts.lanes.retain(|lane| routes.contains_key(&lane.source));
        for lane in &mut self.parts.lanes {
            if let Some(table) = routes.get(&lane.source) {
                lane.routes = Arc::clone(table);
                self.store.change_routes(&lane.source, Arc::clone(table));
            }
        }
        for lane in added {
            lane.condition.waiting(WARMING);
            self.store.add_log(lane.log());
            self.parts.lanes.push(lane);
        }
        let computed = self.parts.lanes.iter().flat_map(|lane| computed_channels(&lane.routes));
        self.store.add_computed(computed);
        let sources = self.parts.lanes.iter().map(Lane::status).collect();
        self.store.update_status(|status| status.sources = sources);
    }

    /// Changes its routes and sources, once it runs.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Starts the ingest thread. It ends soon after `stop`, when what it holds has been published.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn spawn(self, start: Start, stop: CancellationToken) -> io::Result<thread::JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let (every, registry) = (self.parts.config.checkpoint_every, &self.parts.registry);
        let checkpoints =
            start.checkpoint_file.clone().map(|file| Writer::spawn(file, every, registry)).transpose()?;
        thread::Builder::new().name("ingest".into()).stack_size(jq::STACK_BYTES).spawn(move || {
            let span = tracing::info_span!("ingest");
            let _entered = span.enter();
            match self.worker(start, checkpoints) {
                Ok(worker) => runtime.block_on(worker.run(stop)),
                // The configuration was checked with the same compiler.
                Err(error) => tracing::error!(%error, "routes do not compile"),
            }
        })
    }

    fn worker(self, start: Start, checkpoints: Option<Writer>) -> Result<Worker, JqError> {
        let Self { parts, boot, store, overlooks, requests, .. } = self;
        let ingested = parts.registry.counters(
            "events_ingested_total",
            "Events made of records, by their source.",
            &["source"],
        );
        let latency = parts.registry.latencies(
            "source_latency_seconds",
            "From the engine's timestamp to ingest, once per group of records, by source; without what is replayed.",
            &["source"],
        );
        let maker = LaneMaker { private: Arc::clone(&parts.private), ingested, latency };
        let mut lanes = (0..)
            .zip(parts.lanes.into_iter().zip(start.events))
            .map(|(id, (lane, events))| Ok(maker.lane(SourceId(id), lane, events)?.0))
            .collect::<Result<Vec<_>, JqError>>()?;
        let settings = Settings {
            batch: parts.config.batch,
            max_batches: parts.config.max_batches,
            least_timeout: parts.config.takeover_least,
            most_timeout: parts.config.takeover_most,
            ..Settings::default()
        };
        let every = parts.config.checkpoint_every;
        let metrics = Metrics::new(&parts.registry);
        for lane in &lanes {
            metrics.warm.with_label_values(&[&*lane.source]).set(0);
        }
        let mut core = Core {
            region: parts.region,
            sources: lanes.iter().map(|lane| lane.source.as_str().into()).collect(),
            private: parts.private,
            signer: parts.signer,
            policies: parts.policies,
            told_unfit: false,
            began: Instant::now(),
            sequencer: Sequencer::default(),
            partitions: HashMap::new(),
            publisher: Publisher::new(parts.key.publisher(), boot, settings),
            siblings: BTreeMap::new(),
            rest_until: Moment::START,
            store,
            checkpoints,
            checkpoint_every: every,
            next_checkpoint: Moment::after(every),
            held: None,
            next_tick: Moment::START,
            key: parts.key,
            outlet: Arc::clone(&start.outlet),
            dead_letters: parts.dead_letters,
            lifecycle: parts.lifecycle,
            metrics,
        };
        if let Some(state) = &start.state {
            core.restore(state, &mut lanes);
        }
        let Start { mesh, ended, .. } = start;
        Ok(Worker {
            lanes,
            next_lane: 0,
            mesh,
            mesh_open: true,
            overlooks,
            control: requests,
            hold: None,
            maker,
            core,
            _ended: ended,
        })
    }
}

/// Differs between two starts of one peer: its key and the time. It need not rise, so a clock set back does no harm.
fn boot_id(key: &SigningKey) -> u64 {
    let publisher = key.publisher();
    let seed = format!("{publisher:?} {} {}", crate::ops::metrics::now_us(), std::process::id());
    Epoch::of(&seed, 0, "boot").as_u64()
}
