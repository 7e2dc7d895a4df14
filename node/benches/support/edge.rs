//! What benchmarks of an edge share: an edge that is told what to deliver, and clients that only read.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use futures_util::{future::BoxFuture, stream::BoxStream};
use tickmesh::{
    edge::{self, Config, NodeInfo, Parts, Servers, Unavailable, Upstream},
    ops::{lifecycle::LifecycleEvents, metrics::Registry},
};
use tickmesh_protocol::{
    Batch, Epoch, Event, Position, PublisherKey, Sequence, SignedBatch, SigningKey, Topic,
    feed::{FeedFrame, PrivateChange},
    fetching::Ask,
    head::{Head, HeadReply, HeadRequest},
};
use tokio::{
    runtime::Runtime,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// All sequences, and `previous` of the first, have seven digits, so that all frames are equally long.
pub const FIRST_SEQUENCE: u64 = 1_000_001;

const HANDSHAKE: &str = "GET /ws HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

pub fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

/// Resident memory of this process, in bytes.
pub fn resident_bytes() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Makes a WebSocket of a socket and subscribes; returns when that is confirmed.
pub fn subscribe(socket: &mut TcpStream, streams: &[&str]) {
    let request = format!(r#"{{"action":"subscribe","streams":["{}"]}}"#, streams.join("\",\""));
    assert!(request.len() < 126, "a short frame");
    let mut bytes = HANDSHAKE.as_bytes().to_vec();
    bytes.extend([0x81, 0x80 | request.len() as u8, 0, 0, 0, 0]);
    bytes.extend(request.as_bytes());
    socket.write_all(&bytes).unwrap();
    let mut answer = Vec::new();
    while !answer.windows(13).any(|part| part == br#""rejected":[]"#) {
        let mut part = [0; 4096];
        let bytes = socket.read(&mut part).unwrap();
        assert!(bytes > 0, "the edge has hung up");
        answer.extend_from_slice(&part[..bytes]);
    }
}

/// An edge with one shard, on a thread of its own, that writes nothing but events.
pub struct QuietEdge {
    pub address: SocketAddr,
    runtime: Runtime,
    batches: mpsc::Sender<Arc<SignedBatch>>,
    stop: CancellationToken,
    ended: JoinHandle<Result<(), edge::RunError>>,
}

impl QuietEdge {
    pub fn start(registry: Registry) -> Self {
        let hours = Duration::from_secs(10_000);
        let config = Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            shards: 1,
            heartbeat: hours,
            ping_interval: hours,
            idle_timeout: 2 * hours,
            ..Config::default()
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let bound = edge::bind(config).unwrap();
        let address = bound.local_addr();
        let (batches, from_mesh) = mpsc::channel(16);
        let parts = Parts {
            node: NodeInfo { name: "bench".into(), region: "local".into() },
            upstream: Arc::new(QuietMesh),
            batches: from_mesh,
            authenticator: Arc::default(),
            pages: axum::Router::new(),
            lifecycle: LifecycleEvents::new(&registry),
            registry,
        };
        let stop = CancellationToken::new();
        let ended = runtime.spawn(bound.run(parts, stop.clone()));
        Self { address, runtime, batches, stop, ended }
    }

    pub fn deliver(&self, batch: Arc<SignedBatch>) {
        self.batches.blocking_send(batch).unwrap();
    }

    pub fn stop(self) {
        self.stop.cancel();
        self.runtime.block_on(self.ended).unwrap().unwrap();
    }
}

/// A batch of events of one stream, as it comes from the mesh. `counter` is greater each time.
pub fn signed(counter: u64, events: Vec<Event>) -> Arc<SignedBatch> {
    let key = SigningKey::from_bytes(&[7; 32]);
    let batch = Batch {
        publisher: key.publisher(),
        boot: 1,
        counter,
        topic: Topic::spanning(&events[0].stream),
        events,
        heads: Vec::new(),
    };
    Arc::new(SignedBatch::sign(batch, &key).unwrap())
}

/// A mesh whose streams stand before the first event.
struct QuietMesh;

impl Upstream for QuietMesh {
    fn join(&self, _: &Topic) {}

    fn leave(&self, _: &Topic) {}

    fn heads(&self, request: HeadRequest) -> BoxFuture<'static, Result<HeadReply, Unavailable>> {
        let sequence = Sequence::new(FIRST_SEQUENCE - 1).unwrap();
        let head = Head::At(Position { epoch: Epoch::from_u64(1), sequence });
        Box::pin(async move {
            Ok(HeadReply {
                heads: vec![head; request.streams.len()],
                read: Vec::new(),
                left: Vec::new(),
                policy: Default::default(),
            })
        })
    }

    fn servers(&self) -> watch::Receiver<Servers> {
        watch::Sender::new(Servers::new()).subscribe()
    }

    fn fetch(&self, _: &Topic, _: Ask) -> BoxStream<'static, Result<FeedFrame, Unavailable>> {
        Box::pin(futures_util::stream::empty())
    }

    fn private(
        &self,
        _: PublisherKey,
        _: mpsc::Receiver<PrivateChange>,
    ) -> BoxStream<'static, Result<FeedFrame, Unavailable>> {
        Box::pin(futures_util::stream::empty())
    }

    fn snapshots(&self, _: &Topic, _: Ask) -> BoxStream<'static, Result<FeedFrame, Unavailable>> {
        Box::pin(futures_util::stream::empty())
    }
}
