//! A shard: one thread that owns a share of the connections, from accept to close.
//!
//! Everything here runs on that thread, so nothing is locked. Each connection has one small task, which only waits for its
//! socket; a delivery wakes none of them. What has gathered in the shard's queue is first sorted to the connections and
//! then written, one system call for each.

use std::{
    cell::{Cell, RefCell},
    mem,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use prometheus::Histogram;
use slab::Slab;
use tickmesh_protocol::client::{CloseCode, ControlMessage, Limits, MAX_CLIENT_FRAME_BYTES};
use tokio::{
    net::TcpStream,
    sync::{Notify, mpsc},
    time::{self, Instant},
};

use super::{
    NodeInfo,
    admission::Admission,
    config::Config,
    connection::{Admitted, CLOSE_TIMEOUT, Connection, Phase, Slot},
    frame,
    metrics::EdgeMetrics,
    outbox::{Bounds, Pushed},
    queue::{ConnectionId, Frame, FrameEvent, ShardQueue, StreamId, ToHub, ToShard},
    recent::Recent,
    replay::Ask,
    snapshots::Snapshots,
    subscriptions::Subscriptions,
};
use crate::{
    auth::Authenticator,
    lifecycle,
    ops::{
        lifecycle::{Lifecycle, LifecycleEvents},
        metrics::{now_us, since_engine},
    },
};

/// Bytes read from a socket at once; shared by all connections of the shard.
const READ_BYTES: usize = 16 * 1024;

/// Connections written to, or looked at, before reads and new connections have their turn: a few milliseconds.
const CONNECTIONS_IN_A_ROW: usize = 512;

/// How exactly the times of connections are checked, at most and at least.
const TICK: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// Clients of a draining edge are told to come back spread over so many milliseconds.
const RECONNECT_SPREAD_MS: u64 = 1_000;

/// How long a draining edge waits for its clients to take what is queued and to close.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// Room for answers in a queue that is full of events: a client that is conflated may still ask. As many as there may be
/// requests outstanding.
const ANSWERS: Bounds = Bounds { frames: 64, bytes: 64 * 1024 };

pub type SharedShard = Rc<RefCell<Shard>>;

pub struct Shard {
    pub index: usize,
    pub config: Arc<Config>,
    pub node: NodeInfo,
    pub authenticator: Arc<Authenticator>,
    pub admission: Arc<Admission>,
    pub metrics: EdgeMetrics,
    pub lifecycle: LifecycleEvents,
    pub connections: Slab<Connection>,
    pub subscriptions: Subscriptions,
    pub hub: mpsc::Sender<ToHub>,
    /// What the hub gave out lately.
    pub recent: Arc<Recent>,
    /// What was fetched lately for clients that begin with one.
    pub snapshots: Arc<Snapshots>,
    /// For what is not there, or not any more.
    pub asks: mpsc::Sender<Ask>,
    /// Subscriptions that have ended and that the hub has not been told of; never more than there were.
    releases: Vec<StreamId>,
    releases_ready: Rc<Notify>,
    /// Places taken by connections and handshakes.
    pub slots: Rc<Cell<usize>>,
    pub input: Vec<u8>,
    pub output: Vec<u8>,
    /// Connections that have something to write after this round.
    dirty: Vec<usize>,
    /// Events of this round: engine time, and where their latency is noted.
    written: Vec<(u64, Histogram)>,
    next_serial: u64,
    /// Frames queued by clients, as last added to the gauge.
    queued_frames: i64,
    queue: Arc<ShardQueue>,
    /// Connections that have not taken what they were sent.
    crowded: usize,
    /// For tasks that come back to the shard.
    pub myself: Weak<RefCell<Self>>,
    /// The authenticator's generation when all connections were last looked at.
    accepts: u64,
}

/// What a shard is made with.
pub struct ShardParts {
    pub index: usize,
    pub config: Arc<Config>,
    pub node: NodeInfo,
    pub authenticator: Arc<Authenticator>,
    pub admission: Arc<Admission>,
    pub metrics: EdgeMetrics,
    pub lifecycle: LifecycleEvents,
    pub hub: mpsc::Sender<ToHub>,
    pub recent: Arc<Recent>,
    pub snapshots: Arc<Snapshots>,
    pub asks: mpsc::Sender<Ask>,
    /// What the hub has for it.
    pub queue: Arc<ShardQueue>,
}

impl Shard {
    pub fn shared(parts: ShardParts) -> SharedShard {
        Rc::new_cyclic(|myself| RefCell::new(Self::new(parts, myself.clone())))
    }

    fn new(parts: ShardParts, myself: Weak<RefCell<Self>>) -> Self {
        let ShardParts {
            index,
            config,
            node,
            authenticator,
            admission,
            metrics,
            lifecycle,
            hub,
            recent,
            snapshots,
            asks,
            queue,
        } = parts;
        Self {
            myself,
            accepts: authenticator.generation(),
            authenticator,
            admission,
            index,
            config,
            node,
            metrics,
            lifecycle,
            connections: Slab::new(),
            subscriptions: Subscriptions::default(),
            hub,
            recent,
            snapshots,
            asks,
            releases: Vec::new(),
            releases_ready: Rc::new(Notify::new()),
            slots: Rc::default(),
            input: vec![0; READ_BYTES],
            output: Vec::new(),
            dirty: Vec::new(),
            written: Vec::new(),
            next_serial: 0,
            queued_frames: 0,
            queue,
            crowded: 0,
        }
    }

    /// Takes over an upgraded socket, with what the client has sent already, and greets the client.
    pub fn open(
        &mut self,
        stream: TcpStream,
        slot: Slot,
        admitted: Admitted,
        early: &mut [u8],
    ) -> ConnectionId {
        let now = Instant::now();
        let entry = self.connections.vacant_entry();
        let id = ConnectionId { key: entry.key(), serial: self.next_serial };
        self.next_serial += 1;
        let user = admitted.identity.as_ref().map(|identity| identity.user.as_str().to_owned());
        entry.insert(Connection::new(id, stream, slot, admitted, self.config.requests, now));
        self.metrics.connections.inc();
        self.metrics.connections_opened.inc();
        lifecycle!(self.lifecycle, Lifecycle::ConnectionAccepted, connection = self.name_of(id));
        if !self.config.echo {
            self.say(id.key, &self.welcome(id, user));
        }
        self.read_frames(id.key, early, now);
        self.flush(id.key, now);
        id
    }

    fn welcome(&self, id: ConnectionId, user: Option<String>) -> ControlMessage {
        ControlMessage::Welcome {
            connection: self.name_of(id),
            node: self.node.name.clone(),
            region: self.node.region.clone(),
            user,
            limits: Limits {
                streams: self.config.max_streams,
                message_bytes: MAX_CLIENT_FRAME_BYTES,
                queue_frames: self.config.queue.frames,
                queue_bytes: self.config.queue.bytes,
            },
        }
    }

    pub fn name_of(&self, id: ConnectionId) -> String {
        format!("{}-{}", self.index, id.serial)
    }

    /// Queues a control message. Whoever calls has the connection written to afterwards.
    pub fn say(&mut self, key: usize, message: &ControlMessage) {
        self.push(key, frame::control(message), Instant::now());
    }

    pub fn push(&mut self, key: usize, frame: Bytes, now: Instant) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let Bounds { frames, bytes } = self.config.queue;
        let bounds = Bounds { frames: frames + ANSWERS.frames, bytes: bytes + ANSWERS.bytes };
        if connection.push(frame, bounds, &mut self.output, now) == Pushed::Full {
            self.overload(key, "its queue is full");
        }
    }

    /// Notes that a connection has something to write at the end of this round of deliveries.
    pub fn mark(&mut self, key: usize) {
        if let Some(connection) = self.connections.get_mut(key)
            && !mem::replace(&mut connection.dirty, true)
        {
            self.dirty.push(key);
        }
    }

    pub fn flush(&mut self, key: usize, now: Instant) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.dirty = false;
            if connection.blocked_since.is_none() {
                connection.flush(&mut self.output, now);
            }
            if connection.replaying.is_some() {
                self.replay(key);
            }
        }
        if let Some(connection) = self.connections.get_mut(key) {
            // What passes a slow client by need not wait for it.
            let behind = connection.replaying.as_ref().is_some_and(|replaying| replaying.is_behind());
            let crowded = connection.is_open() && !behind && connection.outbox.is_crowded(self.config.queue);
            if mem::replace(&mut connection.crowded, crowded) != crowded {
                self.count_crowded(crowded);
            }
        }
    }

    /// Tells the hub when there is a connection that has not taken what it was sent, and when there is none any more.
    fn count_crowded(&mut self, crowded: bool) {
        let before = self.crowded;
        self.crowded = if crowded { before + 1 } else { before.saturating_sub(1) };
        if (before > 0) != (self.crowded > 0) {
            self.queue.set_crowded(crowded);
        }
    }

    /// The client does not take what it has subscribed to.
    pub fn overload(&mut self, key: usize, why: &str) {
        let Some(connection) = self.connections.get(key).filter(|connection| connection.is_open()) else {
            return;
        };
        let (id, queued) = (connection.id, connection.outbox.queued_frames());
        lifecycle!(self.lifecycle, Lifecycle::ClientOverload, connection = self.name_of(id), queued, why);
        self.metrics.slow_client_disconnects.inc();
        let dropped = self.close(key, CloseCode::SlowClient, CloseCode::SlowClient.reason());
        self.metrics.dropped_slow_client.inc_by(dropped as u64);
    }

    /// Says Close before anything that is queued, and ends the subscriptions. Returns how many frames were dropped.
    pub fn close(&mut self, key: usize, code: CloseCode, reason: &str) -> usize {
        let Some(connection) = self.connections.get_mut(key) else {
            return 0;
        };
        let dropped = connection.close(code, reason, false, Instant::now() + CLOSE_TIMEOUT);
        self.unsubscribe_all(key);
        dropped
    }

    pub fn unsubscribe_all(&mut self, key: usize) {
        if let Some(replaying) =
            self.connections.get_mut(key).and_then(|connection| connection.replaying.take())
        {
            for cursor in &replaying.cursors {
                self.count_left_out(cursor);
            }
        }
        let streams = self.subscriptions.remove_all(key);
        self.metrics.subscriptions.sub(streams.len() as i64);
        self.release(streams);
    }

    /// Tells the hub, in time, that subscriptions have ended.
    pub fn release(&mut self, streams: impl IntoIterator<Item = StreamId>) {
        self.releases.extend(streams);
        if !self.releases.is_empty() {
            self.releases_ready.notify_one();
        }
    }

    /// Sorts what the hub has given to the connections. Nothing is written yet.
    fn sort(&mut self, messages: &mut Vec<ToShard>, now: Instant) {
        for message in messages.drain(..) {
            match message {
                ToShard::Frame(frame) => self.dispatch(&frame, now),
                ToShard::Confirm(confirmation) => {
                    let key = confirmation.connection.key;
                    self.confirm(confirmation);
                    self.mark(key);
                }
                ToShard::Replayed(waiter, replayed) => {
                    self.replayed(waiter, replayed);
                    self.mark(waiter.connection.key);
                }
            }
        }
    }

    fn dispatch(&mut self, frame: &Frame, now: Instant) {
        let Some(members) = self.subscriptions.members_mut(frame.stream) else {
            return;
        };
        let mut overloaded = Vec::new();
        let mut queued = 0;
        for key in &members.live {
            let Some(connection) = self.connections.get_mut(*key) else {
                continue;
            };
            match connection.push(frame.bytes.clone(), self.config.queue, &mut self.output, now) {
                Pushed::Queued => queued += 1,
                Pushed::Full => overloaded.push(*key),
                Pushed::Closed => {}
            }
            if !mem::replace(&mut connection.dirty, true) {
                self.dirty.push(*key);
            }
        }
        let (before, on_slow) = (members.last, members.policy.on_slow);
        let waiting = members.waiting.clone();
        if let Some(FrameEvent { position, engine_time_us, channel }) = &frame.event {
            members.last = Some(*position);
            channel.delivered.inc_by(queued);
            let tell = |event: Lifecycle| {
                self.lifecycle.count(event, queued);
                tracing::trace!(
                    target: "tickmesh::lifecycle",
                    event = event.name(),
                    stream = %members.name,
                    %position,
                    clients = queued
                );
            };
            tell(Lifecycle::MessageDispatch);
            if channel.private {
                tell(Lifecycle::UserStreamPush);
            }
            self.written.push((*engine_time_us, channel.latency.clone()));
        }
        for key in overloaded {
            self.fall_behind(key, frame, on_slow, before);
        }
        if !waiting.is_empty() {
            self.pass_waiting(frame, waiting, before);
        }
    }

    /// Notes the latency of the events of this round, once they have all been written.
    fn note_latency(&mut self) {
        let now = now_us();
        for (engine_time_us, latency) in self.written.drain(..) {
            if let Some(since) = since_engine(engine_time_us, now) {
                latency.observe(since.as_secs_f64());
            }
        }
    }

    /// Forgets a connection that has ended.
    pub fn remove(&mut self, key: usize) {
        self.unsubscribe_all(key);
        let connection = self.connections.remove(key);
        if connection.crowded {
            self.count_crowded(false);
        }
        let reason = match connection.phase {
            Phase::Open => "gone",
            Phase::Closing { reason, .. } | Phase::Over { reason } => reason,
        };
        self.metrics.connections.dec();
        self.metrics.connections_closed.with_label_values(&[reason]).inc();
        tracing::debug!(connection = self.name_of(connection.id), reason, "connection closed");
    }

    /// Looks at the times of one connection.
    fn check_times(&mut self, key: usize, now: Instant, heartbeat: &Bytes) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        match connection.phase {
            Phase::Over { .. } => return,
            Phase::Closing { deadline, reason } => {
                if now >= deadline {
                    connection.over(reason);
                }
                return;
            }
            Phase::Open => {}
        }
        connection.outbox.shrink();
        let silent = now.saturating_duration_since(connection.last_heard);
        if connection.blocked_since.is_some_and(|since| now >= since + self.config.write_timeout) {
            self.overload(key, "it takes nothing");
        } else if silent >= self.config.idle_timeout {
            self.close(key, CloseCode::Idle, CloseCode::Idle.reason());
        } else if connection.expiry.as_ref().is_some_and(|expiry| now >= expiry.at) {
            self.close(key, CloseCode::Credentials, "the token has expired; reconnect with a new one");
        } else {
            if let Some(warning) = connection.warning_due(now, self.config.token_warning) {
                connection.push(frame::control(&warning), self.config.queue, &mut self.output, now);
            }
            if silent >= self.config.ping_interval && !mem::replace(&mut connection.pinged, true) {
                connection.outbox.ping(frame::PING);
            }
            if now >= connection.last_said + self.config.heartbeat && connection.outbox.queued_frames() == 0 {
                connection.push(heartbeat.clone(), self.config.queue, &mut self.output, now);
            }
        }
        self.flush(key, now);
    }

    /// Closes the connections whose credentials are no longer accepted, if there may be any.
    fn close_refused(&mut self) {
        let generation = self.authenticator.generation();
        if mem::replace(&mut self.accepts, generation) == generation {
            return;
        }
        let refused: Vec<usize> = self
            .connections
            .iter()
            .filter(|(_, connection)| {
                let identity = connection.identity.as_ref();
                connection.is_open()
                    && identity.is_some_and(|identity| !self.authenticator.still_accepts(identity))
            })
            .map(|(key, _)| key)
            .collect();
        for key in refused {
            self.close(key, CloseCode::Credentials, "the credentials were revoked");
            self.flush(key, Instant::now());
        }
    }

    /// Tells everybody that this edge goes away.
    fn drain(&mut self, deadline: Instant) {
        let now = Instant::now();
        let keys: Vec<usize> = self.connections.iter().map(|(key, _)| key).collect();
        for key in keys {
            let reconnect_after = self.connections[key].id.serial * 37 % RECONNECT_SPREAD_MS;
            self.push(key, frame::control(&ControlMessage::Draining { reconnect_after }), now);
            if let Some(connection) = self.connections.get_mut(key) {
                connection.close(CloseCode::Drain, CloseCode::Drain.reason(), true, deadline);
            }
            self.unsubscribe_all(key);
            self.flush(key, now);
        }
    }
}

/// Delivers what the hub gives, for ever.
pub async fn deliver(shard: SharedShard, queue: Arc<ShardQueue>) {
    let mut messages = Vec::new();
    loop {
        queue.take(&mut messages).await;
        let now = Instant::now();
        let dirty = {
            let mut shard = shard.borrow_mut();
            shard.sort(&mut messages, now);
            mem::take(&mut shard.dirty)
        };
        for keys in dirty.chunks(CONNECTIONS_IN_A_ROW) {
            {
                let mut shard = shard.borrow_mut();
                for key in keys {
                    shard.flush(*key, now);
                }
            }
            tokio::task::yield_now().await;
        }
        shard.borrow_mut().note_latency();
        tokio::task::yield_now().await;
    }
}

/// Looks at the times of all connections, again and again, for ever.
pub async fn keep_time(shard: SharedShard) {
    let period = {
        let config = &shard.borrow().config;
        let shortest =
            config.heartbeat.min(config.ping_interval).min(config.idle_timeout).min(config.write_timeout);
        (shortest / 8).clamp(TICK.0, TICK.1)
    };
    let mut tick = time::interval(period);
    tick.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        shard.borrow_mut().close_refused();
        let heartbeat = frame::control(&ControlMessage::Heartbeat { timestamp: now_us() / 1000 });
        let (mut next, mut queued) = (0, 0);
        loop {
            {
                let mut shard = shard.borrow_mut();
                let now = Instant::now();
                let end = shard.connections.capacity().min(next + CONNECTIONS_IN_A_ROW);
                for key in next..end {
                    shard.check_times(key, now, &heartbeat);
                    queued +=
                        shard.connections.get(key).map_or(0, |connection| connection.outbox.queued_frames());
                }
                next = end;
                if next == shard.connections.capacity() {
                    break;
                }
            }
            tokio::task::yield_now().await;
        }
        let mut shard = shard.borrow_mut();
        let queued = i64::try_from(queued).unwrap_or(i64::MAX);
        let change = queued - mem::replace(&mut shard.queued_frames, queued);
        shard.metrics.client_queue_frames.add(change);
    }
}

/// Tells the hub of subscriptions that have ended, as long as there is a hub.
pub async fn tell_releases(shard: SharedShard) {
    let (hub, index, ready) = {
        let shard = shard.borrow();
        (shard.hub.clone(), shard.index, Rc::clone(&shard.releases_ready))
    };
    loop {
        ready.notified().await;
        let streams = mem::take(&mut shard.borrow_mut().releases);
        if hub.send(ToHub::Release { shard: index, streams }).await.is_err() {
            return;
        }
    }
}

/// Says goodbye to everybody and waits until all are gone, at most [`DRAIN_TIME`].
pub async fn drain(shard: &SharedShard) {
    let deadline = Instant::now() + DRAIN_TIME;
    shard.borrow_mut().drain(deadline);
    let mut look = time::interval(TICK.0);
    while !shard.borrow().connections.is_empty() && Instant::now() < deadline {
        look.tick().await;
    }
    let mut shard = shard.borrow_mut();
    let left: Vec<usize> = shard.connections.iter().map(|(key, _)| key).collect();
    for key in left {
        shard.remove(key);
    }
    let queued = mem::take(&mut shard.queued_frames);
    shard.metrics.client_queue_frames.sub(queued);
}
