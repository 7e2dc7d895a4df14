//! An ingest peer whose dead letters are not taken: no checkpoint passes them, and with too many of them it pauses.

use tickmesh_protocol::{SignedBatch, SigningKey, Topic};
use tokio::sync::mpsc;

use super::*;
use crate::{
    ingest::{self, Lane, Outlet, Parts, Start, Tiers, checkpoint},
    ops::lifecycle::LifecycleEvents,
    ports::IngestInput,
    source::{LogReader, ReadError, SourceEvent, Stretch},
    transform::Policies,
};

struct Nobody;

impl Outlet for Nobody {
    fn join(&self, _: &Topic) {}

    fn publish(&self, _: SignedBatch) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

impl LogReader for Nobody {
    fn read<'a>(
        &'a self,
        topic: &'a str,
        partition: u32,
        _: u64,
        _: u64,
    ) -> BoxFuture<'a, Result<Stretch, ReadError>> {
        let unknown = ReadError::UnknownPartition { topic: topic.into(), partition };
        Box::pin(async move { Err(unknown) })
    }
}

struct Peer {
    events: mpsc::Sender<SourceEvent>,
    _mesh: mpsc::Sender<IngestInput>,
    stop: CancellationToken,
    thread: std::thread::JoinHandle<()>,
}

fn start(outbox: Outbox, file: &Path) -> Peer {
    let (registry, key) = (Registry::new(), SigningKey::from_bytes(&[7; 32]));
    let (events, received) = mpsc::channel(1);
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
        outbox: Some(outbox),
    };
    let parts = Parts {
        config: ingest::Config { checkpoint_every: Duration::from_millis(100), ..ingest::Config::default() },
        region: "eu".into(),
        private: Arc::default(),
        policies: Policies::default(),
        signer: Arc::default(),
        key,
        lanes: vec![lane],
        dead_letters: DeadLetters::default(),
        stop: stop.clone(),
        lifecycle: LifecycleEvents::new(&registry),
        registry,
    };
    let opened = ingest::open(parts, mpsc::channel(1).0).unwrap();
    let start = Start {
        state: None,
        events: vec![received],
        mesh: inputs,
        outlet: Arc::new(Nobody),
        checkpoint_file: Some(file.to_owned()),
        ended: CancellationToken::new().drop_guard(),
    };
    let thread = opened.spawn(start, stop.clone()).unwrap();
    Peer { events, _mesh: mesh, stop, thread }
}

impl Peer {
    async fn send(&self, event: SourceEvent) {
        tokio::time::timeout(DEADLINE, self.events.send(event)).await.expect("ingest takes it").unwrap();
    }

    async fn begin(&self) {
        let epoch = Epoch::from_u64(7);
        let topic = "market".into();
        self.send(SourceEvent::Begin { topic, partition: 3, epoch, position: 0, first: true, term: None })
            .await;
        self.send(SourceEvent::Reached { epoch, position: 0 }).await;
    }

    async fn records(&self, positions: std::ops::Range<u64>, value: &str) {
        let records = positions.map(|position| record(position, value.to_owned())).collect();
        self.send(SourceEvent::Records(records)).await;
    }

    async fn end(self) {
        self.stop.cancel();
        tokio::task::spawn_blocking(move || self.thread.join().unwrap()).await.unwrap();
    }
}

/// Where the checkpoint says that reading goes on.
fn next(file: &Path) -> Option<u64> {
    checkpoint::read(file).unwrap()?.sources[0].partitions.first().map(|partition| partition.next)
}

const GOOD: &str = r#"{"stream":"trades.btc","data":1}"#;

#[tokio::test]
async fn no_checkpoint_passes_a_letter_that_its_sink_does_not_have() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("checkpoint");
    let sent = carry(true, usize::MAX);
    let peer = start(sent.outbox.clone(), &file);
    peer.begin().await;
    peer.records(0..5, GOOD).await;
    sent.until("a checkpoint", |_| next(&file) == Some(5)).await;
    sent.gate.send(false).unwrap();
    peer.records(5..6, "poison").await;
    peer.records(6..9, GOOD).await;
    sent.until("a try in vain", |sent| sent.shows("dead_letters_failures_total{source=\"engine\"} 3")).await;
    assert!(next(&file) <= Some(5), "{:?} is behind the letter", next(&file));
    // The end of the process waits a moment for the sink, and then keeps what is true.
    peer.end().await;
    assert!(next(&file) <= Some(5), "{:?} is behind the letter", next(&file));
    drop(sent);

    // The next process reads the record again, and its sink takes the same letter.
    let sent = carry(true, usize::MAX);
    let peer = start(sent.outbox.clone(), &file);
    peer.begin().await;
    peer.records(5..6, "poison").await;
    peer.records(6..9, GOOD).await;
    sent.until("a checkpoint behind the letter", |_| next(&file) == Some(9)).await;
    assert_eq!(sent.taken.lock().unwrap()[0].id, "engine/market/3/0000000000000007/5");
    peer.end().await;
}

#[tokio::test]
async fn too_many_letters_pause_ingest_and_lose_nothing() {
    const GROUP: u64 = 100;
    const GROUPS: u64 = 30;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("checkpoint");
    let sent = carry(false, usize::MAX);
    let peer = start(sent.outbox.clone(), &file);
    peer.begin().await;
    let feeding = async {
        for group in 0..GROUPS {
            peer.records(group * GROUP..(group + 1) * GROUP, "poison").await;
        }
    };
    let opening = async {
        sent.until("a full outbox", |sent| !sent.health.readiness().ready).await;
        // No group is taken beyond the one that filled it.
        assert_eq!(sent.outbox.put_so_far(), 1000);
        sent.gate.send(true).unwrap();
    };
    tokio::join!(feeding, opening);
    sent.until("all letters", |sent| sent.outbox.kept() == GROUP * GROUPS).await;
    let taken: Vec<u64> = sent.taken.lock().unwrap().iter().map(|letter| letter.position).collect();
    assert_eq!(taken, Vec::from_iter(0..GROUP * GROUPS), "each once, in order");
    sent.until("a checkpoint", |_| next(&file) == Some(GROUP * GROUPS)).await;
    peer.end().await;
}
