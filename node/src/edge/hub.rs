//! The hub: one task that owns the state of every stream of this edge.
//!
//! It judges each event once, makes its frame once, and hands it to the shards that have subscribers. It waits for nobody:
//! questions to the mesh and fetches run beside it, and a shard that does not keep up loses frames, which is counted and
//! which clients see by `previous`.
//!
//! Order: a shard gets the confirmation of a subscription and the frames of its stream in one queue, so that a client
//! sees `subscribed` before the first event after the position told in it.
//!
//! What gossip loses is fetched from an ingest peer ([`repairs`]); [`tickmesh_protocol::repair`] says when.

mod joining;
mod repairs;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use slab::Slab;
use tickmesh_protocol::{
    Epoch, Event, Moment, Position, SignedBatch, StreamName, Topic,
    client::ControlMessage,
    policy::ChannelPolicy,
    repair::{Output, Repair, Way},
};
use tokio::{
    sync::mpsc,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

pub use self::repairs::Servers;
use self::{
    joining::{Answer, Request},
    repairs::{Hole, Refetched, Repairs, TopicFetch},
};
use super::{
    Upstream, frame,
    metrics::{ChannelMetrics, Channels, EdgeMetrics},
    private::{FromPrivate, PrivateStreams},
    queue::{FeedRoom, Frame, FrameEvent, ShardQueue, StreamId, ToHub, ToShard},
    recent::{Recent, RecentFrame},
};

/// Most topics joined at once. Gossip announces them to every neighbour; 10,000 are known to work, the usual edge
/// needs less than 640.
const MAX_TOPICS: usize = 4096;

/// Most streams that have a subscriber, or had one lately: about 100 MB of state.
const MAX_STREAMS: usize = 256 * 1024;

/// Batches, or requests, taken at once before the others have their turn.
const TAKEN_AT_ONCE: usize = 64;

/// How often streams without subscribers are looked at; their time is checked this exactly.
const TICK: Duration = Duration::from_secs(1);

/// What a hub is made with.
pub struct HubParts {
    pub private: Arc<PrivateStreams>,
    /// Channels whose streams never come by gossip.
    pub private_channels: Arc<HashSet<String>>,
    pub upstream: Arc<dyn Upstream>,
    pub shards: Vec<Arc<ShardQueue>>,
    /// Where what is given out is kept for clients that come back.
    pub recent: Arc<Recent>,
    /// How much of what was fetched the shards are given at once.
    pub feed_room: Arc<FeedRoom>,
    pub leave_after: Duration,
    pub join_timeout: Duration,
    pub metrics: EdgeMetrics,
}

pub struct Hub {
    private: Arc<PrivateStreams>,
    private_channels: Arc<HashSet<String>>,
    upstream: Arc<dyn Upstream>,
    shards: Vec<Arc<ShardQueue>>,
    recent: Arc<Recent>,
    /// What goes into each shard's queue next; given over as a whole.
    outgoing: Vec<Vec<ToShard>>,
    names: HashMap<StreamName, usize>,
    streams: Slab<Stream>,
    topics: HashMap<Topic, TopicState>,
    requests: Slab<Request>,
    /// Streams without subscribers, since when.
    idle: BTreeSet<(Instant, usize)>,
    questions: FuturesUnordered<BoxFuture<'static, Answer>>,
    repairs: Repairs,
    /// Where streams stood that are just being confirmed; what was held follows.
    joined_at: HashMap<usize, Option<Position>>,
    /// Empty between two events; kept for its memory.
    outputs: Vec<Output>,
    /// Where the state machines' time begins.
    started: Instant,
    leave_after: Duration,
    join_timeout: Duration,
    metrics: EdgeMetrics,
    channels: Channels,
}

struct Stream {
    name: StreamName,
    topic: Topic,
    repair: Repair,
    /// When its next fetch is due, as noted in [`Repairs`].
    fetch_due: Option<Moment>,
    /// What is being repaired; most streams never have any.
    hole: Option<Box<Hole>>,
    refetched: Option<Refetched>,
    /// Unfinished requests that wait for this stream's head.
    waiters: Vec<usize>,
    /// Unfinished requests that have this stream.
    pins: usize,
    /// Subscriptions by shard, and of all.
    by_shard: Box<[u32]>,
    subscriptions: usize,
    idle_since: Option<Instant>,
    /// Known as soon as the stream is live.
    channel: Option<Arc<ChannelMetrics>>,
    /// Of its channel, as told with its head.
    policy: ChannelPolicy,
}

/// A joined topic.
#[derive(Default)]
struct TopicState {
    /// How many of the hub's streams it has.
    streams: usize,
    fetch: TopicFetch,
}

impl Hub {
    pub fn new(parts: HubParts) -> Self {
        let HubParts {
            private,
            private_channels,
            upstream,
            shards,
            recent,
            feed_room,
            leave_after,
            join_timeout,
            metrics,
        } = parts;
        let channels = Channels::new(Arc::clone(&private_channels));
        Self {
            private,
            private_channels,
            repairs: Repairs::new(upstream.servers(), feed_room),
            upstream,
            outgoing: shards.iter().map(|_| Vec::new()).collect(),
            shards,
            recent,
            names: HashMap::new(),
            streams: Slab::new(),
            topics: HashMap::new(),
            requests: Slab::new(),
            idle: BTreeSet::new(),
            questions: FuturesUnordered::new(),
            joined_at: HashMap::new(),
            outputs: Vec::new(),
            started: Instant::now(),
            leave_after,
            join_timeout,
            metrics,
            channels,
        }
    }

    /// Runs until `stop`.
    pub async fn run(
        mut self,
        mut batches: mpsc::Receiver<Arc<SignedBatch>>,
        mut private: mpsc::Receiver<FromPrivate>,
        mut requests: mpsc::Receiver<ToHub>,
        stop: CancellationToken,
    ) {
        let mut tick = time::interval(TICK.min(self.leave_after / 4).max(Duration::from_millis(1)));
        tick.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let (mut new_batches, mut new_requests) = (Vec::new(), Vec::new());
        let mut more_batches = true;
        loop {
            let may_feed = self.shards.iter().all(|shard| shard.takes_feeds());
            tokio::select! {
                () = stop.cancelled() => break,
                taken = batches.recv_many(&mut new_batches, TAKEN_AT_ONCE), if more_batches => {
                    more_batches = taken > 0;
                    for batch in new_batches.drain(..) {
                        self.batch(&batch);
                        // A shard may begin while the next batch is judged.
                        self.hand_over();
                    }
                }
                taken = requests.recv_many(&mut new_requests, TAKEN_AT_ONCE) => {
                    if taken == 0 {
                        break;
                    }
                    for request in new_requests.drain(..) {
                        match request {
                            ToHub::Subscribe(subscribe) => self.subscribe(subscribe),
                            ToHub::Release { shard, streams } => self.release(shard, &streams),
                            ToHub::Renew { streams, credential } => self.renew(&streams, &credential),
                        }
                    }
                }
                Some(said) = private.recv() => self.take_private(&said),
                Some(answer) = self.questions.next() => self.answer(answer),
                work = self.repairs.work(self.started, may_feed) => self.repair(work),
                _ = tick.tick() => self.leave_idle(),
            }
            self.hand_over();
        }
        self.metrics.streams_repairing.set(0);
        self.metrics.streams_catching_up.set(0);
    }

    fn now(&self) -> Moment {
        Moment::after(self.started.elapsed())
    }

    fn batch(&mut self, batch: &SignedBatch) {
        let now = self.now();
        for event in &batch.batch().events {
            self.receive(event, Way::Gossip, now);
        }
        for (stream, head) in &batch.batch().heads {
            if let Some(key) = self.names.get(stream).copied() {
                self.streams[key].repair.claimed(*head, now);
                self.note(key, now);
            }
        }
    }

    /// Takes what an ingest peer says on a private feed. As with gossip, what is missing is fetched.
    fn take_private(&mut self, said: &FromPrivate) {
        let now = self.now();
        match said {
            FromPrivate::Events(events) => {
                for event in events {
                    if self.is_private(&event.stream) {
                        self.receive(event, Way::Gossip, now);
                    }
                }
            }
            FromPrivate::Heads(heads) => {
                for (stream, head) in heads {
                    if let (Some(key), Some(head)) = (self.names.get(stream).copied(), head) {
                        self.streams[key].repair.claimed(*head, now);
                        self.note(key, now);
                    }
                }
            }
        }
    }

    fn is_private(&self, stream: &StreamName) -> bool {
        self.private_channels.contains(stream.channel())
    }

    fn receive(&mut self, event: &Event, way: Way, now: Moment) {
        let Some(key) = self.names.get(&event.stream).copied() else {
            return;
        };
        let stream = &mut self.streams[key];
        let received = stream.repair.receive(event, way, now, &mut self.outputs);
        match way {
            Way::Gossip => stream.count_published(event, received, &self.metrics),
            Way::Feed => stream.count_refetched(event, received, &self.metrics),
        }
        self.put_out(key, now);
        self.note(key, now);
    }

    /// Gives the clients of a stream what its repair has put out.
    fn put_out(&mut self, key: usize, now: Moment) {
        let stream = &mut self.streams[key];
        let mut reset = None;
        for output in self.outputs.drain(..) {
            match output {
                Output::Deliver(event) => {
                    let frame = frame_of(&event, reset.take());
                    send(stream, key, &frame, &mut self.outgoing);
                    self.recent.keep(StreamId(key), frame);
                }
                Output::Reset(epoch) => {
                    tracing::warn!(stream = %stream.name, %epoch, "stream is numbered anew");
                    reset = Some(epoch);
                }
                Output::Gap { after } => {
                    self.metrics.unrepaired_gaps.inc();
                    if let Some(hole) = &mut stream.hole {
                        hole.told += 1;
                    }
                    self.repairs.warn_of_gap(&stream.name, after, now);
                }
            }
        }
    }

    /// Gives what has gathered to the shards.
    fn hand_over(&mut self) {
        for (queue, messages) in self.shards.iter().zip(&mut self.outgoing) {
            let dropped = queue.append(messages);
            if dropped > 0 {
                self.metrics.dropped_shard_full.inc_by(dropped);
                tracing::warn!(dropped, "a shard does not keep up, events dropped");
            }
        }
    }

    /// Notes since when a stream is without subscribers, or that it has one again.
    fn settle(&mut self, key: usize) {
        let stream = &mut self.streams[key];
        let used = stream.subscriptions > 0 || stream.pins > 0;
        match stream.idle_since {
            None if !used => {
                let now = Instant::now();
                stream.idle_since = Some(now);
                self.idle.insert((now, key));
            }
            Some(since) if used => {
                stream.idle_since = None;
                self.idle.remove(&(since, key));
            }
            _ => {}
        }
    }

    fn leave_idle(&mut self) {
        let now = Instant::now();
        while let Some((since, key)) = self.idle.first().copied() {
            if now < since + self.leave_after {
                break;
            }
            self.remove_if_unused(key);
        }
    }

    fn leave(&mut self, topic: &Topic) {
        if let Some(state) = self.topics.remove(topic) {
            self.repairs.leave(state.fetch);
            if !self.private_channels.contains(topic.channel()) {
                self.upstream.leave(topic);
            }
        }
    }

    fn remove_if_unused(&mut self, key: usize) {
        let Some(since) = self.streams.get(key).and_then(|stream| stream.idle_since) else {
            return;
        };
        self.idle.remove(&(since, key));
        self.forget_repair(key);
        self.recent.forget(StreamId(key));
        let stream = self.streams.remove(key);
        if self.is_private(&stream.name) {
            self.private.leave(&stream.name);
        }
        self.names.remove(&stream.name);
        if let Some(topic) = self.topics.get_mut(&stream.topic) {
            topic.streams -= 1;
            if topic.streams == 0 {
                self.leave(&stream.topic);
            }
        }
    }
}

/// Makes the frame of an event, and of the reset before it.
fn frame_of(event: &Event, reset: Option<Epoch>) -> RecentFrame {
    let stream = &event.stream;
    RecentFrame {
        position: event.position(),
        engine_time_us: event.engine_time_us,
        reset: reset.map(|epoch| frame::control(&ControlMessage::Reset { stream: stream.clone(), epoch })),
        bytes: frame::data(event),
    }
}

/// Puts a frame out for each shard that has subscribers.
fn send(stream: &Stream, key: usize, frame: &RecentFrame, outgoing: &mut [Vec<ToShard>]) {
    let Some(channel) = stream.channel.as_ref().filter(|_| stream.subscriptions > 0) else {
        return;
    };
    let reset = frame.reset.clone().map(|bytes| (bytes, None));
    let event = FrameEvent {
        position: frame.position,
        engine_time_us: frame.engine_time_us,
        channel: Arc::clone(channel),
    };
    for (bytes, event) in reset.into_iter().chain([(frame.bytes.clone(), Some(event))]) {
        for (messages, subscriptions) in outgoing.iter_mut().zip(&stream.by_shard) {
            if *subscriptions > 0 {
                messages.push(ToShard::Frame(Frame {
                    stream: StreamId(key),
                    bytes: bytes.clone(),
                    event: event.clone(),
                }));
            }
        }
    }
}
