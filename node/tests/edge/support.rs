//! An edge on a free port with a played mesh, and clients of tokio-tungstenite.

use std::{
    collections::{BTreeSet, HashMap},
    future::Future,
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, future::BoxFuture, stream::BoxStream};
use serde_json::{Value, json};
use tickmesh::{
    auth::Authenticator,
    edge::{self, Config, NodeInfo, Parts, Servers, Unavailable, Upstream},
    ops::{
        lifecycle::LifecycleEvents,
        metrics::{Registry, now_us},
    },
};
use tickmesh_protocol::{
    Batch, Epoch, Event, Position, Previous, PublisherKey, Sequence, SignedBatch, SigningKey, StreamName,
    Topic,
    feed::{FeedFrame, PrivateChange},
    fetching::Ask,
    head::{Head, HeadReply, HeadRequest},
    policy::{ChannelPolicy, OnSlow, Retain},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};
use tokio_util::sync::CancellationToken;

use super::servers::Played as PlayedServers;

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Batches on their way to the edge.
const BATCHES: usize = 64;

pub fn config() -> Config {
    Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        shards: 2,
        leave_after: Duration::from_millis(200),
        join_timeout: Duration::from_secs(10),
        ..Config::default()
    }
}

pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}"))
}

pub async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_until_async(what, async || condition()).await;
}

pub async fn wait_until_async(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} until {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

pub fn position(sequence: u64) -> Position {
    position_in(1, sequence)
}

pub fn position_in(epoch: u64, sequence: u64) -> Position {
    Position { epoch: Epoch::from_u64(epoch), sequence: Sequence::new(sequence).unwrap() }
}

pub fn signing_key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

/// Events with these sequences, each after the one before it; 0 and 1 are the first of their log.
pub fn events(epoch: u64, stream: &str, sequences: Range<u64>, data: impl Fn(u64) -> String) -> Vec<Event> {
    let stream: StreamName = stream.parse().unwrap();
    let event = |sequence: u64| Event {
        stream: stream.clone(),
        epoch: Epoch::from_u64(epoch),
        sequence: Sequence::new(sequence).unwrap(),
        previous: match sequence {
            0 | 1 => Previous::Unknown { read_from: Sequence::ZERO },
            _ => Previous::At(Sequence::new(sequence - 1).unwrap()),
        },
        engine_time_us: now_us(),
        data: Bytes::from(data(sequence)),
        signature: None,
    };
    sequences.map(event).collect()
}

/// Plays the mesh: answers what the test has set, `Empty` otherwise.
pub struct Mesh {
    state: Mutex<MeshState>,
    answers: watch::Sender<bool>,
    pub servers: Arc<PlayedServers>,
}

#[derive(Default)]
struct MeshState {
    heads: HashMap<String, Head>,
    policies: HashMap<String, ChannelPolicy>,
    joined: BTreeSet<Topic>,
    left: usize,
    questions: usize,
}

/// Questions are answered again when this is dropped.
pub struct Held(Arc<Mesh>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.answers.send_replace(true);
    }
}

impl Mesh {
    pub fn set_head(&self, stream: &str, head: Head) {
        self.state.lock().unwrap().heads.insert(stream.into(), head);
    }

    pub fn set_policy(&self, channel: &str, retain: Retain, on_slow: OnSlow) {
        let policy = ChannelPolicy { retain, on_slow };
        self.state.lock().unwrap().policies.insert(channel.into(), policy);
    }

    pub fn hold_answers(self: &Arc<Self>) -> Held {
        self.answers.send_replace(false);
        Held(Arc::clone(self))
    }

    pub fn questions(&self) -> usize {
        self.state.lock().unwrap().questions
    }

    pub async fn wait_for_questions(&self, number: usize) {
        wait_until("the edge has asked", || self.questions() >= number).await;
    }

    pub fn joined(&self) -> usize {
        self.state.lock().unwrap().joined.len()
    }

    pub fn left(&self) -> usize {
        self.state.lock().unwrap().left
    }
}

struct Played(Arc<Mesh>);

impl Upstream for Played {
    fn join(&self, topic: &Topic) {
        assert!(self.0.state.lock().unwrap().joined.insert(topic.clone()), "{topic} joined twice");
    }

    fn leave(&self, topic: &Topic) {
        let mut state = self.0.state.lock().unwrap();
        assert!(state.joined.remove(topic), "{topic} left without having been joined");
        state.left += 1;
    }

    fn heads(&self, request: HeadRequest) -> BoxFuture<'static, Result<HeadReply, Unavailable>> {
        let mesh = Arc::clone(&self.0);
        {
            let mut state = mesh.state.lock().unwrap();
            assert!(state.joined.contains(&request.topic), "asked about a topic that is not joined");
            assert!(request.streams.iter().all(|stream| request.topic.carries(stream)));
            state.questions += 1;
        }
        Box::pin(async move {
            let mut answers = mesh.answers.subscribe();
            let _ = answers.wait_for(|answer| *answer).await;
            let state = mesh.state.lock().unwrap();
            let head = |stream: &StreamName| state.heads.get(stream.as_str()).copied().unwrap_or(Head::Empty);
            Ok(HeadReply {
                heads: request.streams.iter().map(head).collect(),
                read: Vec::new(),
                left: Vec::new(),
                policy: state.policies.get(request.topic.channel()).copied().unwrap_or_default(),
            })
        })
    }

    fn servers(&self) -> watch::Receiver<Servers> {
        self.0.servers.connected()
    }

    fn fetch(&self, topic: &Topic, ask: Ask) -> BoxStream<'static, Result<FeedFrame, Unavailable>> {
        assert!(ask.streams.iter().all(|(stream, _)| topic.carries(stream)));
        self.0.servers.serve(topic.clone(), ask)
    }

    fn private(
        &self,
        server: PublisherKey,
        changes: mpsc::Receiver<PrivateChange>,
    ) -> BoxStream<'static, Result<FeedFrame, Unavailable>> {
        self.0.servers.private(server, changes)
    }

    fn snapshots(&self, topic: &Topic, ask: Ask) -> BoxStream<'static, Result<FeedFrame, Unavailable>> {
        assert!(ask.streams.iter().all(|(stream, _)| topic.carries(stream)));
        self.0.servers.serve_snapshots(topic.clone(), &ask)
    }
}

pub struct Edge {
    pub address: SocketAddr,
    pub mesh: Arc<Mesh>,
    batches: mpsc::Sender<Arc<SignedBatch>>,
    registry: Registry,
    stop: CancellationToken,
    running: JoinHandle<Result<(), edge::RunError>>,
    counter: AtomicU64,
    shards: Mutex<BTreeSet<String>>,
}

impl Edge {
    pub async fn start(config: Config) -> Self {
        Self::start_with(config, Arc::default()).await
    }

    pub async fn start_with(config: Config, authenticator: Arc<Authenticator>) -> Self {
        let mesh = Arc::new(Mesh {
            state: Mutex::default(),
            answers: watch::Sender::new(true),
            servers: Arc::default(),
        });
        let registry = Registry::new();
        let (batches, from_mesh) = mpsc::channel(BATCHES);
        let bound = edge::bind(config).unwrap();
        let address = bound.local_addr();
        let stop = CancellationToken::new();
        let parts = Parts {
            node: NodeInfo { name: "eu-1".into(), region: "eu-west".into() },
            upstream: Arc::new(Played(Arc::clone(&mesh))),
            batches: from_mesh,
            authenticator,
            pages: axum::Router::new().route("/page", axum::routing::get(async || "a page")),
            registry: registry.clone(),
            lifecycle: LifecycleEvents::new(&registry),
        };
        let running = tokio::spawn(bound.run(parts, stop.clone()));
        let (counter, shards) = (AtomicU64::new(0), Mutex::default());
        Self { address, mesh, batches, registry, stop, running, counter, shards }
    }

    /// The value of a metric, with its labels as it is rendered; zero if there is none.
    pub fn metric(&self, name: &str) -> f64 {
        metric(&self.registry, name)
    }

    pub fn all_batches_taken(&self) -> bool {
        self.batches.capacity() == BATCHES
    }

    /// Events with these sequences, each after the one before it, in one batch.
    pub async fn publish(&self, stream: &str, sequences: Range<u64>) {
        let events = self.lose(stream, sequences);
        self.send(events, Vec::new()).await;
    }

    /// Events of the log that gossip loses.
    pub fn lose(&self, stream: &str, sequences: Range<u64>) -> Vec<Event> {
        self.log(events(1, stream, sequences, |sequence| json!({"n": sequence}).to_string()))
    }

    /// Events of about so many bytes, which no client that does not read can take for long.
    pub async fn publish_large(&self, stream: &str, sequences: Range<u64>, bytes: usize) {
        let events = self.log(events(1, stream, sequences, |_| format!("\"{}\"", "x".repeat(bytes))));
        self.send(events, Vec::new()).await;
    }

    /// Adds events to the log that servers serve.
    pub fn log(&self, events: Vec<Event>) -> Vec<Event> {
        self.mesh.servers.log(&events);
        events
    }

    /// A batch as it comes from the mesh.
    pub async fn send(&self, events: Vec<Event>, heads: Vec<(StreamName, Position)>) {
        let stream = events.first().map(|event| &event.stream).or(heads.first().map(|(stream, _)| stream));
        let key = signing_key();
        let batch = Batch {
            publisher: key.publisher(),
            boot: 1,
            counter: self.counter.fetch_add(1, Ordering::Relaxed),
            topic: Topic::spanning(stream.expect("a batch is not empty")),
            events,
            heads,
        };
        let batch = Arc::new(SignedBatch::sign(batch, &key).unwrap());
        within("the hub to take a batch", self.batches.send(batch)).await.unwrap();
    }

    /// A head message.
    pub async fn claim(&self, stream: &str, head: Position) {
        self.send(Vec::new(), vec![(stream.parse().unwrap(), head)]).await;
    }

    pub async fn connect(&self) -> Client {
        self.upgrade(within("a TCP connection", TcpStream::connect(self.address)).await.unwrap()).await
    }

    /// The kernel keeps little for this client.
    pub async fn connect_with_small_buffers(&self) -> Client {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        self.upgrade(within("a TCP connection", socket.connect(self.address)).await.unwrap()).await
    }

    async fn upgrade(&self, stream: TcpStream) -> Client {
        let (socket, _) = within("the handshake", client_async(self.url(), stream)).await.unwrap();
        let client = Client::greeted(socket).await;
        let connection = client.welcome["connection"].as_str().unwrap();
        self.shards.lock().unwrap().insert(connection.split('-').next().unwrap().to_owned());
        client
    }

    pub fn shards_used(&self) -> usize {
        self.shards.lock().unwrap().len()
    }

    pub fn url(&self) -> String {
        format!("ws://{}/ws", self.address)
    }

    /// Sends a request as it is, and returns everything that comes until the edge closes.
    pub async fn http(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within("the answer", stream.read_to_string(&mut answer)).await.unwrap();
        answer
    }

    /// What a handshake with one more header is answered with; an edge that lets it in is hung up on.
    pub async fn handshake(&self, path: &str, header: &str) -> String {
        self.open("", path, header).await.1
    }

    /// A connection on which a proxy may say something first, and the answer to its handshake.
    pub async fn open(&self, proxy: &str, path: &str, header: &str) -> (TcpStream, String) {
        let request = format!(
            "{proxy}GET {path} HTTP/1.1\r\nhost: x\r\nconnection: Upgrade, close\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{header}\r\n"
        );
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.windows(4).any(|end| end == b"\r\n\r\n") || !answer.starts_with(b"HTTP/1.1 101") {
            // One that is closed while something is unread is reset.
            if within("the answer", stream.read_buf(&mut answer)).await.unwrap_or(0) == 0 {
                break;
            }
        }
        (stream, String::from_utf8_lossy(&answer).into_owned())
    }

    pub async fn stop(self) {
        self.stop_and_measure().await;
    }

    /// Stops the edge and returns what it leaves behind.
    pub async fn stop_and_measure(self) -> Registry {
        self.stop.cancel();
        within("the edge to end", self.running).await.unwrap().unwrap();
        let gauges = [
            "connections",
            "subscriptions",
            "client_queue_frames",
            "streams_repairing",
            "streams_catching_up",
        ];
        for gauge in gauges {
            assert_eq!(metric(&self.registry, gauge), 0.0, "{gauge} after the end");
        }
        self.registry
    }
}

pub fn metric(registry: &Registry, name: &str) -> f64 {
    let name = format!("tickmesh_{name} ");
    let text = registry.render();
    text.lines().find_map(|line| line.strip_prefix(&name)).map_or(0.0, |value| value.parse().unwrap())
}

pub struct Client {
    pub socket: WebSocketStream<TcpStream>,
    pub welcome: Value,
}

impl Client {
    /// A client on a new connection, which the edge greets.
    pub async fn greeted(socket: WebSocketStream<TcpStream>) -> Self {
        let mut client = Self { socket, welcome: Value::Null };
        client.welcome = client.next().await;
        client
    }

    /// The next message of a kind, whatever comes before it.
    pub async fn next_event(&mut self, event: &str) -> Value {
        loop {
            let message = self.next_text().await;
            if message["event"] == event {
                return message;
            }
        }
    }

    pub async fn send(&mut self, request: Value) {
        self.socket.send(Message::text(request.to_string())).await.unwrap();
    }

    pub async fn send_text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    /// Bytes past the WebSocket library.
    pub async fn raw(&mut self, bytes: &[u8]) {
        self.socket.get_mut().write_all(bytes).await.unwrap();
    }

    pub async fn message(&mut self) -> Message {
        within("a message", self.socket.next()).await.expect("the connection is open").unwrap()
    }

    /// The next text.
    pub async fn next_text(&mut self) -> Value {
        loop {
            match self.message().await {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?} instead of a text"),
            }
        }
    }

    /// The next text that is no heartbeat.
    pub async fn next(&mut self) -> Value {
        loop {
            let text = self.next_text().await;
            if text["event"] != "heartbeat" {
                return text;
            }
        }
    }

    pub async fn sequences(&mut self, number: usize) -> Vec<u64> {
        let mut sequences = Vec::new();
        for _ in 0..number {
            let event = self.next().await;
            sequences.push(event["sequence"].as_u64().unwrap_or_else(|| panic!("{event} is no event")));
        }
        sequences
    }

    /// Subscribes and returns the confirmation.
    pub async fn subscribe(&mut self, streams: &[&str]) -> Value {
        self.send(json!({"action": "subscribe", "streams": streams})).await;
        let reply = self.next().await;
        assert_eq!(reply["event"], "subscribed", "{reply}");
        assert_eq!(reply["rejected"], json!([]));
        reply
    }

    /// When this returns, the edge has handled everything that this client has sent.
    pub async fn ping(&mut self) {
        self.send(json!({"action": "ping"})).await;
        assert_eq!(self.next().await["event"], "pong");
    }

    /// How the edge closes; nothing but data may come before, and nothing at all if `data` is false.
    pub async fn close_code(&mut self, data: bool) -> u16 {
        loop {
            match self.message().await {
                Message::Close(frame) => return frame.expect("a code").code.into(),
                Message::Text(text) => assert!(data && text.starts_with(r#"{"stream""#), "{text}"),
                _ => {}
            }
        }
    }
}
