//! Real nodes on loopback, with an ingest peer that only counts.

use std::{
    collections::HashMap,
    fmt::Write,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tickmesh::{
    mesh::{
        self, Config, Identity, MeshHandle, Multiaddr, NetworkKey, Ports, PrivateAccess, Role,
        feeds::Settings,
    },
    ops::{health::Health, metrics::Registry},
    ports::{FeedStore, IngestInput},
};
use tickmesh_protocol::{
    Batch, Epoch, Event, Position, Previous, PublisherKey, Sequence, SignedBatch, StreamName, Topic,
    feed::Status,
    head::{Head, HeadReply, HeadRequest},
};
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::store::Store;

/// How long a test waits for something that must come. Far more than it takes on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Large enough for everything a test sends, so that nothing is dropped for want of room.
const PORT: usize = 100_000;

/// Waits until a condition holds; fails with what it waited for.
pub async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for a future; fails with what it waited for.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain for: {what}"),
    }
}

/// What all nodes of a test have in common.
pub struct Network {
    pub key: NetworkKey,
    pub publishers: Vec<Identity>,
    pub feeds: Settings,
    /// Who may have private streams, and which edges may ask for them.
    pub private: Option<PrivateAccess>,
    pub edges: Vec<Identity>,
}

impl Network {
    pub fn new(publishers: usize) -> Self {
        let publishers = (0..publishers).map(|_| Identity::generate().unwrap()).collect();
        Self {
            key: NetworkKey::generate().unwrap(),
            publishers,
            feeds: Settings::default(),
            private: None,
            edges: Vec::new(),
        }
    }

    pub async fn publisher(&self, index: usize, bootstrap: &[Multiaddr]) -> Node {
        self.publisher_at(index, "/ip4/127.0.0.1/tcp/0", bootstrap).await
    }

    pub async fn publisher_at(&self, index: usize, listen: &str, bootstrap: &[Multiaddr]) -> Node {
        Node::start(self, self.publishers[index].clone(), listen, bootstrap, true).await
    }

    pub async fn edge(&self, bootstrap: &[Multiaddr]) -> Node {
        Node::start(self, Identity::generate().unwrap(), "/ip4/127.0.0.1/tcp/0", bootstrap, false).await
    }
}

/// One node and what came out of it.
pub struct Node {
    pub mesh: MeshHandle,
    pub identity: Identity,
    /// Batches for this node's edge.
    pub edge: mpsc::Receiver<Arc<SignedBatch>>,
    pub ingest: Ingest,
    /// What it serves, if it publishes.
    pub store: Arc<Store>,
    registry: Registry,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Node {
    pub async fn start(
        network: &Network,
        identity: Identity,
        listen: &str,
        bootstrap: &[Multiaddr],
        publishes: bool,
    ) -> Self {
        let (to_edge, edge) = mpsc::channel(PORT);
        let (to_ingest, input) = mpsc::channel(PORT);
        let store = Arc::new(Store::new(identity.signing_key()));
        let ports = Ports {
            edge: Some(to_edge),
            ingest: publishes.then_some(to_ingest),
            feeds: publishes.then(|| store.clone() as Arc<dyn FeedStore>),
            private: network.private.clone(),
        };
        let config = Config {
            listen: vec![listen.parse().unwrap()],
            bootstrap: bootstrap.to_vec(),
            publishers: Some(network.publishers.iter().map(Identity::publisher).collect()),
            edges: network.edges.iter().map(Identity::publisher).collect(),
            feeds: network.feeds,
            ..Config::default()
        };
        let (registry, stop) = (Registry::new(), CancellationToken::new());
        let health = Health::default().condition("mesh");
        let key = network.key.clone();
        let (mesh, task) =
            mesh::start(config, identity.clone(), key, ports, &registry, health, stop.clone()).await.unwrap();
        let ingest = Ingest::start(&mesh, &identity, input);
        Self { mesh, identity, edge, ingest, store, registry, stop, task }
    }

    pub fn address(&self) -> Multiaddr {
        self.mesh.listen_addrs()[0].clone()
    }

    pub fn join(&self, topic: &Topic) {
        self.mesh.join(topic, Role::Edge);
    }

    pub fn leave(&self, topic: &Topic) {
        self.mesh.leave(topic, Role::Edge);
    }

    /// Where a stream stands, asked until somebody answers.
    pub async fn head(&self, stream: &StreamName) -> Option<u64> {
        let request = HeadRequest { topic: Topic::spanning(stream), streams: vec![stream.clone()] };
        let ask = async {
            loop {
                match self.mesh.heads(request.clone()).await {
                    Ok(reply) => break reply,
                    Err(error) => eprintln!("asking again: {error}"),
                }
            }
        };
        match within("an answer about heads", ask).await.heads.as_slice() {
            [Head::At(position)] => Some(position.sequence.get()),
            [Head::Empty] => None,
            other => panic!("{other:?}"),
        }
    }

    /// Takes the next batch of this node's edge port.
    pub async fn next(&mut self) -> Arc<SignedBatch> {
        within("a batch at the edge", self.edge.recv()).await.unwrap()
    }

    /// Takes batches until that of a publisher with a sequence has come; gives the sequences of that publisher.
    pub async fn until(&mut self, publisher: PublisherKey, last: u64) -> Vec<u64> {
        let mut sequences = Vec::new();
        while sequences.last() != Some(&last) {
            let batch = self.next().await;
            if batch.batch().publisher == publisher {
                sequences.push(batch.batch().events[0].sequence.get());
            }
        }
        sequences
    }

    /// The value of a metric, written as Prometheus shows it; zero if it is not there.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.registry.render();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("tickmesh_")?.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().unwrap())
    }

    /// The sum of a metric over all its labels.
    pub fn metric_sum(&self, name: &str) -> u64 {
        let name = format!("tickmesh_{name}{{");
        let text = self.registry.render();
        text.lines()
            .filter(|line| line.starts_with(&name))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    }

    pub async fn connected_to_publishers(&self, count: u64) {
        wait_until("connections to publishers", || self.metric("mesh_publishers_connected") == count).await;
    }

    pub async fn stop(self) {
        self.stop.cancel();
        within("the end of the mesh task", self.task).await.unwrap();
    }
}

/// Publishes numbered events and answers where its streams stand.
#[derive(Clone)]
pub struct Ingest {
    state: Arc<Mutex<State>>,
    heard: Arc<std::sync::Mutex<Heard>>,
    mesh: MeshHandle,
    identity: Identity,
}

struct State {
    boot: u64,
    counters: HashMap<Topic, u64>,
    heads: HashMap<StreamName, u64>,
}

/// What an ingest peer heard from the mesh.
#[derive(Default)]
pub struct Heard {
    pub batches: Vec<Arc<SignedBatch>>,
    /// Publishers that came (true) and went.
    pub publishers: Vec<(PublisherKey, bool)>,
    /// What publishers said of themselves.
    pub statuses: Vec<(PublisherKey, Status)>,
    /// How long `publishers` was at each of these.
    pub at_statuses: Vec<usize>,
}

pub fn epoch() -> Epoch {
    Epoch::of("test", 0, "offset")
}

impl Ingest {
    fn start(mesh: &MeshHandle, identity: &Identity, mut input: mpsc::Receiver<IngestInput>) -> Self {
        let boot = tickmesh::ops::metrics::now_us();
        let state = State { boot, counters: HashMap::new(), heads: HashMap::new() };
        let ingest = Self {
            state: Arc::new(Mutex::new(state)),
            heard: Arc::default(),
            mesh: mesh.clone(),
            identity: identity.clone(),
        };
        let this = ingest.clone();
        tokio::spawn(async move {
            while let Some(input) = input.recv().await {
                match input {
                    IngestInput::Batch(batch) => this.heard.lock().unwrap().batches.push(batch),
                    IngestInput::PublisherUp(key) => this.heard.lock().unwrap().publishers.push((key, true)),
                    IngestInput::Status(key, status) => {
                        let mut heard = this.heard.lock().unwrap();
                        let publishers = heard.publishers.len();
                        heard.statuses.push((key, status));
                        heard.at_statuses.push(publishers);
                    }
                    IngestInput::PublisherDown(key) => {
                        this.heard.lock().unwrap().publishers.push((key, false));
                    }
                    IngestInput::Head { request, answer } => {
                        let state = this.state.lock().await;
                        let head = |stream| match state.heads.get(stream) {
                            Some(last) => {
                                Head::At(Position { epoch: epoch(), sequence: Sequence::new(*last).unwrap() })
                            }
                            None => Head::Empty,
                        };
                        // Whoever asked may have gone.
                        let _ = answer.send(HeadReply {
                            heads: request.streams.iter().map(head).collect(),
                            read: Vec::new(),
                            left: Vec::new(),
                            policy: Default::default(),
                        });
                    }
                }
            }
        });
        ingest
    }

    pub fn heard<T>(&self, look: impl FnOnce(&Heard) -> T) -> T {
        look(&self.heard.lock().unwrap())
    }

    /// Publishes the next event of a stream; gives its sequence.
    pub async fn publish(&self, stream: &StreamName) -> u64 {
        // Held while the batch is handed over: an answer about heads counts exactly what was handed over before it.
        let mut state = self.state.lock().await;
        let topic = Topic::spanning(stream);
        let sequence = state.heads.get(stream).map_or(0, |last| last + 1);
        let counter = state.counters.entry(topic).or_default();
        *counter += 1;
        let batch =
            batch(&self.identity, state.boot, state.counters[&Topic::spanning(stream)], stream, sequence);
        let signed = SignedBatch::sign(batch, &self.identity.signing_key()).unwrap();
        self.mesh.publish(signed).await;
        state.heads.insert(stream.clone(), sequence);
        sequence
    }

    /// Goes on where an ingest peer that ended was.
    pub async fn resume(&self, stream: &StreamName, last: u64) {
        self.state.lock().await.heads.insert(stream.clone(), last);
    }
}

pub fn batch(identity: &Identity, boot: u64, counter: u64, stream: &StreamName, sequence: u64) -> Batch {
    let mut data = String::new();
    write!(data, "{{\"price\":\"36200.5\",\"quantity\":\"1.2\",\"id\":{sequence}}}").unwrap();
    let event = Event {
        stream: stream.clone(),
        epoch: epoch(),
        sequence: Sequence::new(sequence).unwrap(),
        previous: Previous::At(Sequence::new(sequence.saturating_sub(1)).unwrap()),
        engine_time_us: 1,
        data: Bytes::from(data),
        signature: None,
    };
    Batch {
        publisher: identity.publisher(),
        boot,
        counter,
        topic: Topic::spanning(stream),
        events: vec![event],
        heads: Vec::new(),
    }
}

pub fn stream(name: &str) -> StreamName {
    name.parse().unwrap()
}
