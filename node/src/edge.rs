//! The edge: takes batches from the mesh and pushes their events to WebSocket clients.
//!
//! ```text
//! batches ─> hub ─> queue ─> shard ─> outbox of a connection ─> socket
//!            │ └<─ fetches  per shard  │    ^
//!   heads of streams              requests  └ cursors of clients that come back
//! ```
//!
//! Promised to a client: it sees `subscribed` before the first event of a stream; then every event after the position
//! told in it, in order, each once. What gossip loses is fetched; only what the log itself has lost is missing, and
//! `previous` shows it.
//!
//! | file | holds |
//! |---|---|
//! | `hub` | the state of every stream, one task |
//! | `hub/joining`, `hub/repairs` | its subscribe requests; when what is missing is fetched |
//! | `fetch` | one fetch of missing events, a task |
//! | `recent` | what the hub gave out lately, for clients that come back |
//! | `private` | private streams: what each ingest peer is told, which of them pushes |
//! | `resume`, `cursor`, `replay` | cursors of those clients; what is fetched for them |
//! | `slow` | clients that do not keep up |
//! | `snapshots` | what new clients, and slow ones, begin with |
//! | `queue` | what the hub and the shards say to each other |
//! | `shard` | one thread with its connections: delivery, time, drain |
//! | `connection`, `incoming`, `requests` | one client: its life, what it sends, its requests |
//! | `subscriptions` | which connection has which stream |
//! | `inbox`, `outbox`, `frame` | bytes in and out, pure |
//! | `http` | accept, handshake, pages |

mod admission;
mod config;
mod connection;
mod cursor;
mod fetch;
mod frame;
mod http;
mod hub;
mod inbox;
mod incoming;
mod metrics;
mod outbox;
mod private;
mod proxied;
mod queue;
mod recent;
mod replay;
mod requests;
mod resume;
mod shard;
mod slow;
mod snapshots;
mod subscriptions;

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener},
    rc::Rc,
    sync::Arc,
    thread,
};

use axum::Router;
use futures_util::{future::BoxFuture, stream::BoxStream};
use socket2::{Domain, Protocol, Socket, Type};
use tickmesh_protocol::{
    PublisherKey, SignedBatch, Topic,
    feed::{FeedFrame, PrivateChange},
    fetching::Ask,
    head::{HeadReply, HeadRequest},
};
use tokio::{
    sync::{mpsc, watch},
    task::LocalSet,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::{
    admission::Admission,
    hub::{Hub, HubParts},
    metrics::EdgeMetrics,
    private::PrivateStreams,
    queue::{FeedRoom, ShardQueue},
    recent::Recent,
    shard::{Shard, ShardParts},
    snapshots::Snapshots,
};
pub use self::{config::Config, hub::Servers, outbox::Bounds, resume::ResumeLimits};
use crate::{
    auth::Authenticator,
    ops::{lifecycle::LifecycleEvents, metrics::Registry},
};

/// Most bytes of frames that wait for one shard: what half a second brings at 100,000 events/s of 600 bytes. A shard
/// that is further behind serves nobody any more.
const SHARD_QUEUE_BYTES: usize = 32 * 1024 * 1024;

/// Requests that wait for the hub, from all shards. It handles one in microseconds.
const HUB_REQUESTS: usize = 4096;

/// Cursors of clients that wait for a fetch, from all shards; more ask again a little later.
const REPLAY_ASKS: usize = 4096;

/// Frames of private feeds that wait for the hub.
const PRIVATE_FRAMES: usize = 256;

/// Connections that may wait for `accept`; the system may allow fewer.
const LISTEN_BACKLOG: i32 = 4096;

/// What an edge needs from the mesh. [`crate::app`] puts the two together; neither knows the other.
pub trait Upstream: Send + Sync + 'static {
    /// Starts to receive the batches of a topic. Idempotent.
    fn join(&self, topic: &Topic);

    /// Stops receiving them. Idempotent.
    fn leave(&self, topic: &Topic);

    /// Asks where streams stand. The topic must have been joined. The answer comes within the time an edge makes its
    /// clients wait, or it is [`Unavailable`].
    fn heads(&self, request: HeadRequest) -> BoxFuture<'static, Result<HeadReply, Unavailable>>;

    /// Who can be asked for feeds. A new serial number says that the publisher has connected anew.
    fn servers(&self) -> watch::Receiver<Servers>;

    /// Asks a server for what follows the positions of streams of a topic, up to its head: pages, which it has signed as
    /// such, and at last [`FeedFrame::End`]. If it ends otherwise, by an error or without one, the server could not be
    /// asked, has gone, or refuses. It goes on only as it is polled; dropping it closes the feed.
    fn fetch(&self, topic: &Topic, ask: Ask) -> BoxStream<'static, Result<FeedFrame, Unavailable>>;

    /// Opens a private feed at a server and tells it what comes through `changes`: heads, denials, events, or a sign of life
    /// several times a second. Dropping it closes the feed.
    fn private(
        &self,
        server: PublisherKey,
        changes: mpsc::Receiver<PrivateChange>,
    ) -> BoxStream<'static, Result<FeedFrame, Unavailable>>;

    /// Asks a server for snapshots of streams of a topic, whatever positions the ask names: [`FeedFrame::Snapshots`], which
    /// it has signed as such, and at last [`FeedFrame::End`]. Otherwise as [`Self::fetch`].
    fn snapshots(&self, topic: &Topic, ask: Ask) -> BoxStream<'static, Result<FeedFrame, Unavailable>>;
}

/// Nobody who knows could be asked in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable {
    pub reason: String,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// Who this node is; part of `welcome`.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    pub name: String,
    pub region: String,
}

/// Why an edge cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ([edge] listen): {error}")]
pub struct BindError {
    pub address: SocketAddr,
    #[source]
    pub error: io::Error,
}

/// Why an edge ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot start a thread for a shard of the edge: {0}")]
    Start(#[source] io::Error),
    #[error("shard {0} of the edge has ended by a fault; see the log")]
    Shard(usize),
}

/// An edge that listens but does not accept yet.
#[derive(Debug)]
pub struct Bound {
    config: Config,
    listeners: Vec<TcpListener>,
    address: SocketAddr,
}

/// What an edge runs with.
pub struct Parts {
    pub node: NodeInfo,
    pub upstream: Arc<dyn Upstream>,
    /// Valid batches; each holds events of one topic.
    pub batches: mpsc::Receiver<Arc<SignedBatch>>,
    pub authenticator: Arc<Authenticator>,
    /// Served beside `/ws`.
    pub pages: Router,
    pub registry: Registry,
    pub lifecycle: LifecycleEvents,
}

/// Listens with one socket per shard, between which the system spreads the connections.
///
/// # Errors
/// If the address cannot be had, also where another process of the same user already shares it.
pub fn bind(config: Config) -> Result<Bound, BindError> {
    let failed = |error| BindError { address: config.listen, error };
    // Sockets with SO_REUSEPORT would quietly share the port with another node. One without it does not.
    drop(listen(config.listen, false).map_err(failed)?);
    let first = listen(config.listen, true).map_err(failed)?;
    let address = first.local_addr().map_err(failed)?;
    let mut listeners = vec![first];
    for _ in 1..config.shards {
        listeners.push(listen(address, true).map_err(failed)?);
    }
    Ok(Bound { config, listeners, address })
}

fn listen(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok(socket.into())
}

impl Bound {
    /// The address with the port that the system chose, where the configuration says 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`, then says goodbye to the clients; returns when all threads have ended, within about a second.
    ///
    /// # Errors
    /// If it had to end before `stop`; everything has ended then, too.
    pub async fn run(self, parts: Parts, stop: CancellationToken) -> Result<(), RunError> {
        let Parts { node, upstream, batches, authenticator, pages, registry, lifecycle } = parts;
        let metrics = EdgeMetrics::new(&registry);
        // Ends everything as well when one part fails, or when this future is dropped.
        let stop = stop.child_token();
        let _guard = stop.clone().drop_guard();
        let (requests, from_shards) = mpsc::channel(HUB_REQUESTS);
        let config = Arc::new(self.config);
        let max_connections = config.max_connections.div_ceil(self.listeners.len());
        let admission =
            Arc::new(Admission::new(config.max_connections_per_address, config.max_connections_per_user));
        let feed_room = Arc::new(FeedRoom::new(config.queue));
        let recent = Arc::new(Recent::new(config.resume.memory));
        let snapshots = Arc::new(Snapshots::default());
        let (asks, from_cursors) = mpsc::channel(REPLAY_ASKS);
        let (mut queues, mut threads) = (Vec::new(), Vec::new());
        for (index, listener) in self.listeners.into_iter().enumerate() {
            let queue = Arc::new(ShardQueue::new(SHARD_QUEUE_BYTES, Arc::clone(&feed_room)));
            queues.push(Arc::clone(&queue));
            let parts = ShardParts {
                index,
                config: Arc::clone(&config),
                node: node.clone(),
                authenticator: authenticator.clone(),
                admission: admission.clone(),
                metrics: metrics.clone(),
                lifecycle: lifecycle.clone(),
                hub: requests.clone(),
                recent: Arc::clone(&recent),
                snapshots: Arc::clone(&snapshots),
                asks: asks.clone(),
                queue,
            };
            let shard = Spawn { parts, listener, pages: pages.clone(), max_connections, stop: stop.clone() };
            threads.push(shard.spawn().map_err(RunError::Start)?);
        }
        drop((requests, asks));
        let replays = replay::Parts::new(Arc::clone(&upstream), queues.clone(), snapshots);
        let replays = tokio::spawn(replay::run(replays, from_cursors));
        tracing::info!(address = %self.address, shards = threads.len(), "edge listens");
        let private = Arc::new(PrivateStreams::default());
        let (to_hub, from_private) = mpsc::channel(PRIVATE_FRAMES);
        let feeds = tokio::spawn(private::run(
            Arc::clone(&private),
            Arc::clone(&upstream),
            Arc::clone(&authenticator),
            to_hub,
        ));
        let hub = Hub::new(HubParts {
            private,
            private_channels: Arc::clone(&config.permissions.private),
            upstream,
            shards: queues,
            recent,
            feed_room,
            leave_after: config.leave_after,
            join_timeout: config.join_timeout,
            metrics,
        });
        hub.run(batches, from_private, from_shards, stop.clone()).await;
        stop.cancel();
        replays.abort();
        feeds.abort();
        let mut result = Ok(());
        for (index, mut thread) in threads.into_iter().enumerate() {
            // The sender is dropped when the thread ends, by a panic too; then it can be joined without waiting.
            let _ = thread.ended.recv().await;
            if thread.handle.join().is_err() {
                result = Err(RunError::Shard(index));
            }
        }
        tracing::info!(address = %self.address, "edge has ended");
        result
    }
}

/// Everything a shard's thread starts with.
struct Spawn {
    parts: ShardParts,
    listener: TcpListener,
    pages: Router,
    max_connections: usize,
    stop: CancellationToken,
}

struct ShardThread {
    handle: thread::JoinHandle<()>,
    ended: mpsc::Receiver<()>,
}

impl Spawn {
    fn spawn(self) -> io::Result<ShardThread> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (alive, ended) = mpsc::channel(1);
        let handle = thread::Builder::new().name(format!("edge-{}", self.parts.index)).spawn(move || {
            let _alive = alive;
            // A shard that fails takes the edge with it, rather than leave its clients without an answer.
            let _guard: DropGuard = self.stop.clone().drop_guard();
            LocalSet::new().block_on(&runtime, self.run());
        })?;
        Ok(ShardThread { handle, ended })
    }

    async fn run(self) {
        let listener = match tokio::net::TcpListener::from_std(self.listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, shard = self.parts.index, "a shard cannot listen"),
        };
        let queue = Arc::clone(&self.parts.queue);
        let shard = Shard::shared(self.parts);
        let accepting = tokio::task::spawn_local(http::accept(
            Rc::clone(&shard),
            listener,
            self.pages,
            self.max_connections,
        ));
        tokio::task::spawn_local(shard::deliver(Rc::clone(&shard), queue));
        tokio::task::spawn_local(shard::keep_time(Rc::clone(&shard)));
        tokio::task::spawn_local(shard::tell_releases(Rc::clone(&shard)));
        self.stop.cancelled().await;
        accepting.abort();
        // The other tasks end with the thread's LocalSet.
        shard::drain(&shard).await;
    }
}
