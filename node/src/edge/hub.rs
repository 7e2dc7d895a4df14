//! The hub: one task that owns the state of every stream of this edge.
//!
//! It judges each event once, makes its frame once, and hands it to the shards that have subscribers. It waits for nobody:
//! questions to the mesh run beside it, and a shard that does not keep up loses frames, which is counted and which clients
//! see by `previous`.
//!
//! Order: a shard gets the confirmation of a subscription and the frames of its stream in one queue, so that a client
//! sees `subscribed` before the first event after the position told in it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use slab::Slab;
use tickmesh_protocol::{
    Epoch, Event, SignedBatch, StreamName, Topic,
    client::{ControlMessage, ErrorCode, Rejection},
    head::{Head, HeadReply, HeadRequest},
};
use tokio::{
    sync::mpsc,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{
    Unavailable, Upstream, frame,
    metrics::{ChannelMetrics, Channels, EdgeMetrics},
    queue::{
        Confirmation, ConnectionId, Frame, FrameEvent, Grant, ShardQueue, StreamId, Subscribe, Ticket, ToHub,
        ToShard,
    },
    stream::{Received, State},
};

/// Most topics joined at once. Gossip announces them to every neighbour; 10,000 are known to work, the usual edge
/// needs less than 640.
const MAX_TOPICS: usize = 4096;

/// Most streams that have a subscriber, or had one lately: about 100 MB of state.
const MAX_STREAMS: usize = 256 * 1024;

/// Most questions about heads in flight; each is one topic of one request.
const MAX_QUESTIONS: usize = 4096;

/// Batches, or requests, taken at once before the others have their turn.
const TAKEN_AT_ONCE: usize = 64;

/// How often streams without subscribers are looked at; their time is checked this exactly.
const TICK: Duration = Duration::from_secs(1);

/// How often events that wait for something missing are looked at.
const EARLY_TICK: Duration = Duration::from_millis(50);

pub struct Hub {
    upstream: Arc<dyn Upstream>,
    shards: Vec<Arc<ShardQueue>>,
    /// What goes into each shard's queue next; given over as a whole.
    outgoing: Vec<Vec<ToShard>>,
    names: HashMap<StreamName, usize>,
    streams: Slab<Stream>,
    /// Joined topics, and how many of `streams` each has.
    topics: HashMap<Topic, usize>,
    requests: Slab<Request>,
    /// Streams without subscribers, since when.
    idle: BTreeSet<(Instant, usize)>,
    /// Streams with events that wait for something missing.
    early: BTreeSet<usize>,
    questions: FuturesUnordered<BoxFuture<'static, Answer>>,
    leave_after: Duration,
    join_timeout: Duration,
    metrics: EdgeMetrics,
    channels: Channels,
}

struct Stream {
    name: StreamName,
    topic: Topic,
    state: State,
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
}

/// A subscribe request that waits until all of its streams are decided.
struct Request {
    shard: usize,
    connection: ConnectionId,
    ticket: Ticket,
    /// Streams that are granted unless they turn out to be refused.
    streams: Vec<usize>,
    undecided: usize,
    rejected: Vec<Rejection>,
}

struct Answer {
    streams: Vec<usize>,
    reply: Result<HeadReply, Unavailable>,
}

impl Hub {
    pub fn new(
        upstream: Arc<dyn Upstream>,
        shards: Vec<Arc<ShardQueue>>,
        leave_after: Duration,
        join_timeout: Duration,
        metrics: EdgeMetrics,
    ) -> Self {
        Self {
            upstream,
            outgoing: shards.iter().map(|_| Vec::new()).collect(),
            shards,
            names: HashMap::new(),
            streams: Slab::new(),
            topics: HashMap::new(),
            requests: Slab::new(),
            idle: BTreeSet::new(),
            early: BTreeSet::new(),
            questions: FuturesUnordered::new(),
            leave_after,
            join_timeout,
            metrics,
            channels: Channels::default(),
        }
    }

    /// Runs until `stop`.
    pub async fn run(
        mut self,
        mut batches: mpsc::Receiver<Arc<SignedBatch>>,
        mut requests: mpsc::Receiver<ToHub>,
        stop: CancellationToken,
    ) {
        let mut tick = time::interval(TICK.min(self.leave_after / 4).max(Duration::from_millis(1)));
        tick.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let mut early_tick = time::interval(EARLY_TICK);
        early_tick.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let (mut new_batches, mut new_requests) = (Vec::new(), Vec::new());
        let mut more_batches = true;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
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
                        return;
                    }
                    for request in new_requests.drain(..) {
                        match request {
                            ToHub::Subscribe(subscribe) => self.subscribe(subscribe),
                            ToHub::Release { shard, streams } => self.release(shard, &streams),
                        }
                    }
                }
                Some(answer) = self.questions.next() => self.answer(answer),
                _ = tick.tick() => self.leave_idle(),
                _ = early_tick.tick(), if !self.early.is_empty() => {
                    let now = Instant::now();
                    for key in self.early.iter().copied().collect::<Vec<_>>() {
                        self.release_early(key, now, false);
                    }
                }
            }
            self.hand_over();
        }
    }

    fn batch(&mut self, batch: &SignedBatch) {
        for event in &batch.batch().events {
            if let Some(key) = self.names.get(&event.stream) {
                self.receive(*key, event);
            }
        }
    }

    fn receive(&mut self, key: usize, event: &Event) {
        let now = Instant::now();
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        if stream.state.leaves_epoch(event) {
            self.release_early(key, now, true);
        }
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        let received = stream.state.receive(event, now);
        if received == Received::Early {
            self.early.insert(key);
        }
        self.deliver(key, event, received);
        self.release_early(key, now, false);
    }

    /// Delivers what has waited for something missing and need not any longer.
    fn release_early(&mut self, key: usize, now: Instant, all: bool) {
        if !self.early.contains(&key) {
            return;
        }
        while let Some((event, received)) =
            self.streams.get_mut(key).and_then(|stream| stream.state.next_early(now, all))
        {
            self.deliver(key, &event, received);
        }
        if self.streams.get(key).is_none_or(|stream| !stream.state.has_early()) {
            self.early.remove(&key);
        }
    }

    fn deliver(&mut self, key: usize, event: &Event, received: Received) {
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        let mut reset = None;
        match received {
            Received::Deliver => {}
            Received::DeliverAfterGap => {
                self.metrics.unrepaired_gaps.inc();
                tracing::debug!(stream = %stream.name, at = %event.position(), "gap");
            }
            Received::DeliverAfterReset(epoch) => {
                tracing::warn!(stream = %stream.name, %epoch, "stream is numbered anew");
                reset = Some(epoch);
            }
            Received::Duplicate => return self.metrics.duplicates.inc(),
            Received::Held { dropped } => return self.metrics.dropped_join_full.inc_by(dropped),
            Received::Early => return self.metrics.early.inc(),
            Received::Ignored => return,
        }
        if stream.subscriptions > 0 {
            send(stream, key, event, reset, &mut self.outgoing);
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

    fn subscribe(&mut self, subscribe: Subscribe) {
        let Subscribe { shard, connection, ticket, streams: names } = subscribe;
        let key = self.requests.vacant_key();
        let mut request =
            Request { shard, connection, ticket, streams: Vec::new(), undecided: 0, rejected: Vec::new() };
        let mut questions: BTreeMap<Topic, Vec<usize>> = BTreeMap::new();
        for name in names {
            let stream_key = match self.find_or_add(&name) {
                Ok(key) => key,
                Err(message) => {
                    request.rejected.push(rejection(&name, ErrorCode::Overloaded, message));
                    continue;
                }
            };
            let stream = &mut self.streams[stream_key];
            stream.pins += 1;
            request.streams.push(stream_key);
            if stream.state.join() {
                questions.entry(stream.topic.clone()).or_default().push(stream_key);
            }
            if !stream.state.is_live() {
                stream.waiters.push(key);
                request.undecided += 1;
            }
            self.settle(stream_key);
        }
        let decided = request.undecided == 0;
        self.requests.insert(request);
        for (topic, streams) in questions {
            self.ask(topic, streams);
        }
        if decided {
            self.confirm(key);
        }
    }

    fn find_or_add(&mut self, name: &StreamName) -> Result<usize, &'static str> {
        if let Some(key) = self.names.get(name) {
            return Ok(*key);
        }
        if self.streams.len() >= MAX_STREAMS {
            return Err("this edge serves as many streams as it can; ask another one");
        }
        let topic = Topic::spanning(name);
        let joined = self.topics.len();
        match self.topics.get_mut(&topic) {
            Some(streams) => *streams += 1,
            None if joined >= MAX_TOPICS => {
                return Err("this edge has joined as many topics as it can; ask another one");
            }
            None => {
                self.upstream.join(&topic);
                self.topics.insert(topic.clone(), 1);
            }
        }
        let key = self.streams.insert(Stream {
            name: name.clone(),
            topic,
            state: State::default(),
            waiters: Vec::new(),
            pins: 0,
            by_shard: vec![0; self.shards.len()].into(),
            subscriptions: 0,
            idle_since: None,
            channel: None,
        });
        self.names.insert(name.clone(), key);
        Ok(key)
    }

    /// Asks where streams stand; a request has no more streams than a question may have.
    fn ask(&mut self, topic: Topic, streams: Vec<usize>) {
        if self.questions.len() >= MAX_QUESTIONS {
            let reply = Err(Unavailable { reason: "too many streams are being joined".into() });
            return self.answer(Answer { streams, reply });
        }
        let names = streams.iter().map(|key| self.streams[*key].name.clone()).collect();
        let heads = self.upstream.heads(HeadRequest { topic, streams: names });
        let heads = time::timeout(self.join_timeout, heads);
        self.questions.push(Box::pin(async move {
            let reply = heads.await.unwrap_or_else(|_| {
                Err(Unavailable { reason: "no peer said in time where the stream stands".into() })
            });
            Answer { streams, reply }
        }));
    }

    fn answer(&mut self, answer: Answer) {
        let Answer { streams, reply } = answer;
        let heads = match reply {
            Ok(reply) if reply.heads.len() == streams.len() => reply.heads,
            Ok(_) => return self.unavailable(&streams, "a peer answered another question"),
            Err(unavailable) => return self.unavailable(&streams, &unavailable.reason),
        };
        // First every stream gets its position, then the requests are confirmed at those, then come the held events.
        let mut held = Vec::new();
        for (key, head) in streams.iter().zip(&heads) {
            let stream = &mut self.streams[*key];
            let position = match head {
                Head::At(position) => Some(*position),
                Head::Empty => None,
                Head::UnknownChannel | Head::Private => continue,
            };
            held.push((*key, stream.state.go_live(position)));
            stream.channel = Some(self.metrics.channel(&mut self.channels, stream.name.channel()));
        }
        for (key, head) in streams.iter().zip(&heads) {
            match head {
                Head::At(_) | Head::Empty => self.decide(*key, None),
                Head::UnknownChannel => {
                    self.decide(
                        *key,
                        Some((ErrorCode::UnknownStream, "no route makes events of this channel")),
                    );
                }
                Head::Private => {
                    self.decide(*key, Some((ErrorCode::Forbidden, "the channel is private")));
                }
            }
        }
        for (key, events) in held {
            for event in events {
                self.receive(key, &event);
            }
        }
        for (key, head) in streams.iter().zip(&heads) {
            if matches!(head, Head::UnknownChannel | Head::Private) {
                self.remove_if_unused(*key);
            }
        }
    }

    fn unavailable(&mut self, streams: &[usize], reason: &str) {
        for key in streams {
            tracing::warn!(stream = %self.streams[*key].name, reason, "stream cannot be joined");
            self.decide(*key, Some((ErrorCode::Unavailable, reason)));
        }
    }

    /// Tells all who wait for a stream that it is live, or why it cannot be had.
    fn decide(&mut self, key: usize, refused: Option<(ErrorCode, &str)>) {
        let stream = &mut self.streams[key];
        let waiters = std::mem::take(&mut stream.waiters);
        if refused.is_some() {
            stream.state.give_up();
            stream.pins -= waiters.len();
        }
        for waiter in waiters {
            let request = &mut self.requests[waiter];
            request.undecided -= 1;
            if let Some((code, message)) = refused {
                request.rejected.push(rejection(&self.streams[key].name, code, message));
                request.streams.retain(|stream| *stream != key);
            }
            if request.undecided == 0 {
                self.confirm(waiter);
            }
        }
        self.settle(key);
    }

    /// Starts all streams of a request at the positions where they stand now.
    fn confirm(&mut self, key: usize) {
        let Request { shard, connection, ticket, streams, rejected, .. } = self.requests.remove(key);
        let mut granted = Vec::with_capacity(streams.len());
        for key in streams {
            let stream = &mut self.streams[key];
            stream.pins -= 1;
            stream.subscriptions += 1;
            stream.by_shard[shard] += 1;
            granted.push(Grant {
                id: StreamId(key),
                name: stream.name.clone(),
                position: stream.state.position(),
            });
        }
        self.outgoing[shard].push(ToShard::Confirm(Confirmation { connection, ticket, granted, rejected }));
    }

    fn release(&mut self, shard: usize, streams: &[StreamId]) {
        for StreamId(key) in streams {
            let stream = &mut self.streams[*key];
            stream.subscriptions -= 1;
            stream.by_shard[shard] -= 1;
            self.settle(*key);
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

    fn remove_if_unused(&mut self, key: usize) {
        let Some(since) = self.streams.get(key).and_then(|stream| stream.idle_since) else {
            return;
        };
        self.idle.remove(&(since, key));
        let stream = self.streams.remove(key);
        self.names.remove(&stream.name);
        if let Some(streams) = self.topics.get_mut(&stream.topic) {
            *streams -= 1;
            if *streams == 0 {
                self.topics.remove(&stream.topic);
                self.upstream.leave(&stream.topic);
            }
        }
    }
}

/// Makes the frame of an event, and of the reset before it, and puts it out for each shard that has subscribers.
fn send(stream: &Stream, key: usize, event: &Event, reset: Option<Epoch>, outgoing: &mut [Vec<ToShard>]) {
    let Some(channel) = &stream.channel else {
        return;
    };
    let id = StreamId(key);
    let reset = reset
        .map(|epoch| frame::control(&ControlMessage::Reset { stream: stream.name.clone(), epoch }))
        .map(|bytes| (bytes, None));
    let event_frame = (
        frame::data(event),
        Some(FrameEvent {
            position: event.position(),
            engine_time_us: event.engine_time_us,
            channel: Arc::clone(channel),
        }),
    );
    for (bytes, event) in reset.into_iter().chain([event_frame]) {
        for (messages, subscriptions) in outgoing.iter_mut().zip(&stream.by_shard) {
            if *subscriptions > 0 {
                messages.push(ToShard::Frame(Frame {
                    stream: id,
                    bytes: bytes.clone(),
                    event: event.clone(),
                }));
            }
        }
    }
}

fn rejection(stream: &StreamName, code: ErrorCode, message: &str) -> Rejection {
    Rejection { stream: stream.as_str().to_owned(), code, message: message.to_owned() }
}
