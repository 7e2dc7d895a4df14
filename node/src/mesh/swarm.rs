//! The one task that owns the swarm. What it decides is in the pure modules beside it; here it listens, waits and
//! passes on.

mod gossip;
mod peers;
mod questions;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId, Swarm,
    futures::{StreamExt, stream::FuturesUnordered},
    gossipsub::TopicHash,
    multiaddr::Protocol,
    request_response::{OutboundRequestId, ResponseChannel},
    swarm::{self, ConnectionId, SwarmEvent},
};
use tickmesh_protocol::{PublisherKey, SignedBatch, feed::Status, head::HeadReply};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{self, MissedTickBehavior},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{gossip::JoinedTopic, questions::PendingAnswer};
use super::{
    Config, Ports,
    behaviour::{Behaviour, BehaviourEvent, IDLE_TIMEOUT},
    dialing::{Dialer, TargetId},
    feeds::{
        ClientParts, FeedClient, FeedStreams, Gate, Incoming, LivePublishers, Open, Server, Statuses,
        exchange,
    },
    handle::{MeshHandle, NewQuestion, PUBLISH_QUEUE, QUESTION_QUEUE, Wanted},
    heads::{Held, QuestionId, Questions, Subscriptions},
    identity::{Identity, NetworkKey, peer_of},
    metrics::{FeedMetrics, Metrics},
    penalties::Penalties,
    slowness::Slowness,
    transport,
    validation::Validator,
};
use crate::ops::{health::Condition, metrics::Registry};

/// How often what depends on time is looked after: dials that are due, questions that waited. A fifth of the shortest
/// wait among them.
const TICK: Duration = Duration::from_millis(50);

/// How long a bound socket may take to say its address.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);

/// After the last batch at shutdown, so that it leaves for peers that are not behind. A part of the 2 s that the whole
/// node has.
const LAST_FLUSH: Duration = Duration::from_millis(100);

/// Why the mesh cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the settings of the mesh are refused: {0}")]
    Settings(String),
    #[error("cannot listen on {address}: {reason}")]
    Listen { address: Multiaddr, reason: String },
}

/// Starts the mesh. Returns when it listens. It runs until `stop`, then publishes what it was given before, and ends.
///
/// # Errors
/// If an address cannot be listened on.
pub async fn start(
    config: Config,
    identity: Identity,
    network_key: NetworkKey,
    ports: Ports,
    registry: &Registry,
    health: Condition,
    stop: CancellationToken,
) -> Result<(MeshHandle, JoinHandle<()>), StartError> {
    let transport =
        transport::build(&identity, &network_key).map_err(|error| StartError::Settings(error.to_string()))?;
    let (feed_streams, open, incoming) = FeedStreams::new(ports.feeds.is_some());
    let behaviour =
        Behaviour::new(&identity, ports.ingest.is_some(), feed_streams).map_err(StartError::Settings)?;
    let settings = swarm::Config::with_tokio_executor().with_idle_connection_timeout(IDLE_TIMEOUT);
    let swarm = Swarm::new(transport, behaviour, identity.peer_id(), settings);

    let (publish, to_publish) = mpsc::channel(PUBLISH_QUEUE);
    let (questions, new_questions) = mpsc::channel(QUESTION_QUEUE);
    let wanted = Arc::new(Wanted::default());
    let mut node = Node::new(swarm, &config, &identity, ports, Metrics::new(registry), health);
    node.wanted = wanted.clone();
    let listen_addrs = node.listen(&config.listen).await?.into();
    let feeds = node.start_feeds(&config, FeedMetrics::new(registry), open, incoming, &stop);
    let handle = MeshHandle { peer_id: identity.peer_id(), listen_addrs, wanted, publish, questions, feeds };
    let task = tokio::spawn(node.run(to_publish, new_questions, stop));
    Ok((handle, task))
}

/// The state of the task.
struct Node {
    swarm: Swarm<Behaviour>,
    me: PublisherKey,
    ports: Ports,
    metrics: Metrics,
    /// Ready while this node publishes or is connected to somebody who does.
    health: Condition,
    wanted: Arc<Wanted>,
    /// What has been joined, by its name in gossipsub.
    joined: HashMap<TopicHash, JoinedTopic>,
    validator: Validator,
    penalties: Penalties<PeerId>,
    slowness: Slowness<PeerId>,

    dialer: Dialer,
    /// Dials under way.
    dials: HashMap<ConnectionId, TargetId>,
    /// The other configured publishers.
    publishers: HashMap<PeerId, PublisherKey>,
    /// Those of them that are connected.
    live: HashMap<PeerId, PublisherKey>,
    /// Comings and goings of publishers that ingest has not been told yet; one entry each.
    unsaid: HashMap<PublisherKey, bool>,
    /// The same for what they say of themselves.
    unsaid_statuses: HashMap<PublisherKey, Status>,
    statuses: Arc<Statuses>,
    /// Connections to publishers there have been: numbers them in `live_publishers`.
    connections_made: u64,
    /// The live publishers, for the rest of the node.
    live_publishers: watch::Sender<LivePublishers>,
    /// Tasks of feeds.
    feed_tasks: TaskTracker,

    questions: Questions,
    /// Those of them that other peers have.
    asked: HashMap<OutboundRequestId, QuestionId>,
    subscriptions: Subscriptions<PeerId>,
    held: Held<PeerId, ResponseChannel<HeadReply>>,
    /// What ingest has been asked.
    answers: FuturesUnordered<PendingAnswer>,
}

impl Node {
    fn new(
        swarm: Swarm<Behaviour>,
        config: &Config,
        identity: &Identity,
        ports: Ports,
        metrics: Metrics,
        health: Condition,
    ) -> Self {
        let me = identity.publisher();
        let believed = config.publishers.clone().unwrap_or_else(|| vec![me]);
        if ports.ingest.is_some() && !believed.contains(&me) {
            tracing::warn!(peer = %identity.peer_id(), "this node publishes but is not among mesh.publishers");
        }
        let publishers: HashMap<_, _> = believed
            .iter()
            .filter(|key| **key != me)
            .filter_map(|key| peer_of(key).map(|peer| (peer, *key)))
            .collect();
        let wanted: Vec<_> = publishers.keys().copied().collect();
        let node = Self {
            swarm,
            me,
            ports,
            metrics,
            health,
            wanted: Arc::default(),
            joined: HashMap::new(),
            validator: Validator::new(believed),
            penalties: Penalties::default(),
            slowness: Slowness::default(),
            dialer: Dialer::new(identity.peer_id(), &config.bootstrap, &wanted, Instant::now()),
            dials: HashMap::new(),
            publishers,
            live: HashMap::new(),
            unsaid: HashMap::new(),
            unsaid_statuses: HashMap::new(),
            statuses: Arc::default(),
            connections_made: 0,
            live_publishers: watch::Sender::default(),
            feed_tasks: TaskTracker::new(),
            questions: Questions::default(),
            asked: HashMap::new(),
            subscriptions: Subscriptions::default(),
            held: Held::default(),
            answers: FuturesUnordered::new(),
        };
        node.count_peers();
        node
    }

    /// Listens on all addresses, and returns the real ones as soon as each listener has one.
    async fn listen(&mut self, addresses: &[Multiaddr]) -> Result<Vec<Multiaddr>, StartError> {
        let me = *self.swarm.local_peer_id();
        let failed =
            |address: &Multiaddr, reason: String| StartError::Listen { address: address.clone(), reason };
        let mut real = Vec::new();
        for address in addresses {
            let listener =
                self.swarm.listen_on(address.clone()).map_err(|error| failed(address, error.to_string()))?;
            let heard = async {
                loop {
                    match self.swarm.select_next_some().await {
                        SwarmEvent::NewListenAddr { listener_id, address } if listener_id == listener => {
                            break Ok(address);
                        }
                        SwarmEvent::ListenerClosed { listener_id, reason, .. } if listener_id == listener => {
                            break Err(match reason {
                                Ok(()) => "closed".to_owned(),
                                Err(error) => error.to_string(),
                            });
                        }
                        SwarmEvent::ListenerError { listener_id, error } if listener_id == listener => {
                            break Err(error.to_string());
                        }
                        other => self.on_event(other),
                    }
                }
            };
            let heard = time::timeout(LISTEN_TIMEOUT, heard)
                .await
                .unwrap_or_else(|_| Err(format!("no address within {} s", LISTEN_TIMEOUT.as_secs())));
            let heard = heard.map_err(|reason| failed(address, reason))?;
            tracing::info!(address = %heard, peer = %me, "mesh listens");
            real.push(heard.with(Protocol::P2p(me)));
        }
        Ok(real)
    }

    /// Starts what serves feeds, where this node does, and what asks for them.
    fn start_feeds(
        &mut self,
        config: &Config,
        metrics: FeedMetrics,
        open: mpsc::Sender<Open>,
        incoming: Option<Incoming>,
        stop: &CancellationToken,
    ) -> FeedClient {
        let believed: HashSet<_> = self
            .publishers
            .values()
            .copied()
            .chain(self.validator.believes(&self.me).then_some(self.me))
            .collect();
        let believed = Arc::new(believed);
        let metrics = Arc::new(metrics);
        let (tasks, settings) = (&self.feed_tasks, config.feeds);
        // A node's own edge is as good as a listed one, and publishers read the log anyway.
        let edges = config.edges.iter().chain(&*believed).filter_map(peer_of);
        let edges: HashSet<_> = edges.chain([*self.swarm.local_peer_id()]).collect();
        let local = self.ports.feeds.clone().map(|store| {
            let gate = self.ports.private.clone().map(|access| Gate { access, edges: edges.clone() });
            let (metrics, tasks) = (metrics.clone(), tasks.clone());
            Server::new(store, settings, believed.clone(), gate, metrics, tasks, stop.clone())
        });
        if let (Some(server), Some(incoming)) = (&local, incoming) {
            tasks.spawn(server.clone().run(incoming));
            if believed.contains(&self.me) {
                self.live_publishers.send_modify(|live| _ = live.insert(self.me, 0));
            }
        }
        let client = FeedClient::new(ClientParts {
            me: self.me,
            peer_id: *self.swarm.local_peer_id(),
            local,
            open,
            settings,
            believed,
            live: self.live_publishers.subscribe(),
            metrics,
        });
        if self.ports.ingest.is_some() {
            tasks.spawn(exchange(self.me, client.clone(), self.statuses.clone(), stop.clone()));
        }
        client
    }

    async fn run(
        mut self,
        mut to_publish: mpsc::Receiver<SignedBatch>,
        mut new_questions: mpsc::Receiver<NewQuestion>,
        stop: CancellationToken,
    ) {
        let mut tick = time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let wanted = self.wanted.clone();
        let statuses = self.statuses.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                event = self.swarm.select_next_some() => self.on_event(event),
                Some(batch) = to_publish.recv() => self.publish(batch),
                Some(question) = new_questions.recv() => self.on_question(question),
                Some((asker, reply)) = self.answers.next() => self.on_ingest_answer(asker, reply),
                () = wanted.changed() => self.follow_wanted(),
                () = statuses.changed() => self.tell_ingest(),
                _ = tick.tick() => self.on_tick(Instant::now()),
            }
        }
        to_publish.close();
        while let Some(batch) = to_publish.recv().await {
            self.publish(batch);
        }
        let flush = async {
            loop {
                let event = self.swarm.select_next_some().await;
                self.on_event(event);
            }
        };
        // It ends by the time alone: gossipsub does not say when its queues are empty.
        let _: Result<(), _> = time::timeout(LAST_FLUSH, flush).await;
        // They were told to stop when this was.
        self.feed_tasks.close();
        self.feed_tasks.wait().await;
        tracing::info!("mesh stopped");
    }

    fn on_tick(&mut self, now: Instant) {
        self.dial_due(now);
        self.forgive(now);
        self.tell_ingest();
        for channel in self.held.expired(now) {
            self.refuse(channel);
        }
        self.questions.tidy(now);
        self.slowness.tidy(now);
        self.ask_all();
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour_event(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                tracing::debug!(peer = %peer_id, address = %endpoint.get_remote_address(), "connected");
                self.on_connected(peer_id, connection_id);
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, cause, .. } => {
                let cause = cause.map(|cause| cause.to_string());
                tracing::debug!(peer = %peer_id, cause, "disconnected");
                self.on_disconnected(peer_id);
            }
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error } => {
                self.on_dial_failed(connection_id, peer_id, &error);
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                tracing::debug!(address = %send_back_addr, %error, "incoming connection failed");
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "mesh listener"),
            SwarmEvent::ListenerClosed { addresses, reason, .. } => {
                let reason = reason.err().map(|error| error.to_string());
                tracing::error!(?addresses, reason, "mesh listener closed");
            }
            _ => {}
        }
    }

    fn on_behaviour_event(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Gossip(event) => self.on_gossip(event),
            BehaviourEvent::Heads(event) => self.on_heads(event),
            BehaviourEvent::Routing(event) => self.on_routing(event),
            BehaviourEvent::Identify(event) => self.on_identified(event),
            BehaviourEvent::Ping(event) => self.on_ping(&event),
            BehaviourEvent::Limits(never) | BehaviourEvent::One(never) | BehaviourEvent::Feeds(never) => {
                match never {}
            }
        }
    }
}
