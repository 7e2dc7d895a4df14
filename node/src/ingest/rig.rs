//! An ingest thread for tests: it has one source, whose records the test makes up, and no mesh.

use std::{collections::HashSet, path::Path, sync::Arc, thread::JoinHandle, time::Duration};

use futures_util::future::BoxFuture;
use tickmesh_protocol::{SignedBatch, SigningKey, Topic, checkpoint::State};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Config, DeadLetters, Lane, Outlet, Parts, Start, Tiers, dead_letters::Outbox, open};
use crate::{
    ops::{health::Health, lifecycle::LifecycleEvents, metrics::Registry},
    ports::{FeedStore, IngestInput},
    source::{LogReader, ReadError, SourceEvent, Stretch},
    transform::Policies,
};

struct Nobody;

impl Outlet for Nobody {
    fn join(&self, _: &Topic) {}

    fn publish(&self, _: SignedBatch) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// A log that is read once.
impl LogReader for Nobody {
    fn read<'a>(
        &'a self,
        topic: &'a str,
        partition: u32,
        _: u64,
        _: u64,
    ) -> BoxFuture<'a, Result<Stretch, ReadError>> {
        Box::pin(std::future::ready(Err(ReadError::UnknownPartition { topic: topic.to_owned(), partition })))
    }
}

/// What a test's ingest thread differs in.
pub(super) struct Settings {
    pub(super) key: SigningKey,
    pub(super) policies: Policies,
    pub(super) private: HashSet<String>,
    pub(super) outbox: Option<Outbox>,
    /// Groups of records that may wait for the thread.
    pub(super) ahead: usize,
    pub(super) state: Option<State>,
}

pub(super) struct Rig {
    pub(super) feeds: Arc<dyn FeedStore>,
    pub(super) events: mpsc::Sender<SourceEvent>,
    pub(super) mesh: mpsc::Sender<IngestInput>,
    pub(super) stop: CancellationToken,
    pub(super) thread: JoinHandle<()>,
}

impl Rig {
    /// Starts a thread that reads the source "engine", and keeps a checkpoint ten times a second.
    pub(super) fn start(checkpoint: &Path, settings: Settings) -> Self {
        let Settings { key, policies, private, outbox, ahead, state } = settings;
        let registry = Registry::new();
        let (events, received) = mpsc::channel(ahead);
        let (mesh, inputs) = mpsc::channel(16);
        let stop = CancellationToken::new();
        let lane = Lane {
            source: "engine".into(),
            routes: Arc::new([]),
            channels: None,
            tiers: Tiers::default(),
            reader: Arc::new(Nobody),
            condition: Health::default().condition("ingest engine"),
            lag: registry.gauge("lag", "Lag."),
            outbox,
        };
        let parts = Parts {
            config: Config { checkpoint_every: Duration::from_millis(100), ..Config::default() },
            region: "eu".into(),
            private: Arc::new(private),
            policies,
            signer: Arc::default(),
            key,
            lanes: vec![lane],
            dead_letters: DeadLetters::default(),
            stop: stop.clone(),
            lifecycle: LifecycleEvents::new(&registry),
            registry,
        };
        let opened = open(parts, mpsc::channel(1).0).unwrap();
        let feeds = opened.feeds();
        let start = Start {
            state,
            events: vec![received],
            mesh: inputs,
            outlet: Arc::new(Nobody),
            checkpoint_file: Some(checkpoint.to_owned()),
            ended: CancellationToken::new().drop_guard(),
        };
        let thread = opened.spawn(start, stop.clone()).unwrap();
        Self { feeds, events, mesh, stop, thread }
    }

    /// Asks the thread to end, and waits until it has.
    pub(super) async fn end(self) {
        self.stop.cancel();
        tokio::task::spawn_blocking(move || self.thread.join().unwrap()).await.unwrap();
    }
}
