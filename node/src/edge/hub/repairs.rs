//! Repairs of the hub's streams: when their fetches begin, and what those bring.
//!
//! ```text
//! due of a stream ─> due of its topic ─> ready ─> running, a task each ─> parts ─> streams
//!    by time            one fetch at a time    at most MAX_FETCHES     bounded
//! ```
//!
//! What is fetched must not disturb what is live. The hub takes it in portions, between which live batches have their
//! turn, and only as fast as the shards and their clients take it ([`FeedRoom`]): who missed an hour gets it as fast as
//! it reads, not as a burst that makes it a slow client.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use prometheus::IntCounter;
use tickmesh_protocol::{
    Epoch, Event, Moment, Position, PublisherKey, Sequence, SignedBatch, StreamName, Topic,
    fetching::{Fetching, MAX_FETCH_STREAMS},
    repair::{Fetched, MAX_HELD_EVENTS, Received, Way},
};
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until},
};

use super::{Hub, Stream};
use crate::edge::{
    fetch::{self, Part},
    metrics::EdgeMetrics,
    queue::FeedRoom,
};

/// Fetches at a time. Each may hold a page here and one in [`Repairs::parts`], a megabyte at most; more would not be
/// quicker than the hub.
const MAX_FETCHES: usize = 16;

/// How long a fetch that is due waits for others of its topic: much less than [`tickmesh_protocol::repair::GRACE`].
const GATHER: Duration = Duration::from_millis(3);

/// How long a server that was too slow for one fetch is asked last.
const SLOW_FOR: Duration = Duration::from_secs(10);

/// How long fetched events wait at most for shards and clients that do not keep up, for each portion: longer than a client
/// is left without CPU on a busy machine. Who does not read at all is closed as slow after four of them.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Streams looked at in one turn when a server has come: well below a millisecond.
const SUSPECTS_AT_ONCE: usize = 1024;

/// A told gap is logged this often at most; metrics count all of them.
const WARN_EVERY: Duration = Duration::from_secs(1);

/// Connected publishers, and for each the serial number of its connection.
pub type Servers = BTreeMap<PublisherKey, u64>;

/// What the hub has to do for its repairs.
pub enum Work {
    /// A fetch has become due.
    Due,
    Part(u64, Part),
    /// The next portion of the page at hand may go out.
    Portion,
    Servers(Servers),
    /// Some more streams may have missed something.
    Suspects,
    /// A fetch ended without its results.
    Lost(u64),
}

/// Of all streams.
pub struct Repairs {
    /// When fetches are due.
    due: BTreeSet<(Moment, usize)>,
    /// Topics with streams whose fetch is due, and none running.
    ready: VecDeque<Topic>,
    running: HashMap<u64, Running>,
    next_id: u64,
    tasks: JoinSet<()>,
    to_hub: mpsc::Sender<(u64, Part)>,
    parts: mpsc::Receiver<(u64, Part)>,
    /// A page that goes out in portions, and how much of it has gone.
    page: Option<(SignedBatch, usize)>,
    /// Since when the next portion has been waiting.
    page_since: Instant,
    room: Arc<FeedRoom>,
    watch: Option<watch::Receiver<Servers>>,
    servers: Servers,
    /// Servers that were too slow, until when.
    slow: HashMap<PublisherKey, Moment>,
    /// Where to go on looking for streams that may have missed something.
    suspects_from: Option<usize>,
    warned: Option<Moment>,
    unwarned: u64,
}

/// A fetch that is running.
struct Running {
    topic: Topic,
    /// What each stream calls this fetch.
    streams: Vec<(StreamName, u32)>,
    task: AbortHandle,
}

/// The fetch of a topic.
#[derive(Default)]
pub struct TopicFetch {
    /// Streams whose fetch is due, in the order of their keys.
    due: BTreeSet<usize>,
    state: FetchState,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum FetchState {
    #[default]
    None,
    /// In [`Repairs::ready`].
    Ready,
    Running(u64),
}

/// What is being repaired on one stream, for those who watch.
pub struct Hole {
    since: Moment,
    after: Option<Position>,
    /// Events that a feed brought.
    fetched: u64,
    /// Gaps that were told.
    pub told: u64,
    catching_up: bool,
}

/// What a feed brought last, so that the same by gossip is known to be late rather than published twice.
#[derive(Clone, Copy)]
pub struct Refetched {
    epoch: Epoch,
    first: Sequence,
    last: Sequence,
}

impl Repairs {
    pub fn new(watch: watch::Receiver<Servers>, room: Arc<FeedRoom>) -> Self {
        let (to_hub, parts) = mpsc::channel(MAX_FETCHES);
        let servers = watch.borrow().clone();
        Self {
            due: BTreeSet::new(),
            ready: VecDeque::new(),
            running: HashMap::new(),
            next_id: 0,
            tasks: JoinSet::new(),
            to_hub,
            parts,
            page: None,
            page_since: Instant::now(),
            room,
            watch: Some(watch),
            servers,
            slow: HashMap::new(),
            suspects_from: None,
            warned: None,
            unwarned: 0,
        }
    }

    /// Waits until there is something to do. `started` is when the moments of this hub begin; `may_feed`: the shards have
    /// room. To give up waiting loses nothing.
    pub async fn work(&mut self, started: Instant, may_feed: bool) -> Work {
        let first_due = self.due.first().map(|(at, _)| started + at.since_start() + GATHER);
        let has_page = self.page.is_some();
        tokio::select! {
            () = at(first_due) => Work::Due,
            Some((id, part)) = self.parts.recv(), if !has_page => Work::Part(id, part),
            () = may_go_on(&self.room, may_feed, self.page_since), if has_page => Work::Portion,
            servers = changed(&mut self.watch) => Work::Servers(servers),
            () = std::future::ready(()), if self.suspects_from.is_some() => Work::Suspects,
            Some(Err(error)) = self.tasks.join_next() => {
                let lost = self.running.iter().find(|(_, running)| running.task.id() == error.id());
                Work::Lost(lost.map_or(u64::MAX, |(id, _)| *id))
            }
        }
    }

    pub fn leave(&mut self, fetch: TopicFetch) {
        if let FetchState::Running(id) = fetch.state
            && let Some(running) = self.running.remove(&id)
        {
            running.task.abort();
        }
    }

    pub fn warn_of_gap(&mut self, stream: &StreamName, after: Option<Position>, now: Moment) {
        if self.warned.is_some_and(|warned| now.since(warned) < WARN_EVERY) {
            self.unwarned += 1;
            return;
        }
        self.warned = Some(now);
        let others = std::mem::take(&mut self.unwarned);
        let after = after.map(tracing::field::display);
        tracing::warn!(%stream, after, others, "events are lost for good, clients are told");
    }

    /// Whom to ask: everybody, those that were too slow lately only if there is nobody else.
    fn servers(&mut self, now: Moment) -> Vec<PublisherKey> {
        self.slow.retain(|server, until| *until > now && self.servers.contains_key(server));
        let quick: Vec<_> =
            self.servers.keys().filter(|server| !self.slow.contains_key(server)).copied().collect();
        if quick.is_empty() { self.servers.keys().copied().collect() } else { quick }
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

async fn may_go_on(room: &FeedRoom, may_feed: bool, since: Instant) {
    if !may_feed {
        tokio::select! {
            () = room.changed() => {}
            () = sleep_until(since + LONGEST_PAUSE) => {}
        }
    }
}

/// The servers, when they have changed; never, when nobody tells any more.
async fn changed(watch: &mut Option<watch::Receiver<Servers>>) -> Servers {
    if let Some(receiver) = watch {
        if receiver.changed().await.is_ok() {
            return receiver.borrow_and_update().clone();
        }
        *watch = None;
    }
    std::future::pending().await
}

impl Hub {
    pub(super) fn repair(&mut self, work: Work) {
        let now = self.now();
        match work {
            Work::Due => self.due(now),
            Work::Part(id, part) => self.part(id, part, now),
            Work::Portion => self.portion(now),
            Work::Servers(servers) => {
                let known = &self.repairs.servers;
                // One that has come back may have gone on meanwhile, and this edge may have been cut off.
                if servers.iter().any(|(server, connection)| known.get(server) != Some(connection)) {
                    self.repairs.suspects_from = Some(0);
                }
                self.repairs.servers = servers;
            }
            Work::Suspects => self.suspect_some(now),
            Work::Lost(id) => {
                if let Some(running) = self.repairs.running.get(&id) {
                    tracing::error!(topic = %running.topic, "a fetch failed by a fault of its own");
                    let failed = |(name, _): &(StreamName, u32)| (name.clone(), Fetched::Failed);
                    let results = running.streams.iter().map(failed).collect();
                    self.part(id, Part::Results(results), now);
                }
            }
        }
        self.begin_fetches(now);
    }

    /// Notes what a stream needs from now on. To be called after everything that may have changed its repair.
    pub(super) fn note(&mut self, key: usize, now: Moment) {
        let stream = &mut self.streams[key];
        let due = stream.repair.fetch_due();
        if due != stream.fetch_due {
            if let Some(at) = stream.fetch_due {
                self.repairs.due.remove(&(at, key));
            }
            if let Some(at) = due {
                self.repairs.due.insert((at, key));
            }
            stream.fetch_due = due;
        }
        let repairing = stream.repair.is_repairing();
        if !repairing && stream.hole.is_none() {
            return;
        }
        if stream.hole.is_none() {
            self.metrics.streams_repairing.inc();
        }
        let after = stream.repair.position();
        let hole = stream.hole.get_or_insert_with(|| {
            Box::new(Hole { since: now, after, fetched: 0, told: 0, catching_up: false })
        });
        let catching_up = stream.repair.is_catching_up();
        if catching_up != hole.catching_up {
            hole.catching_up = catching_up;
            self.metrics.streams_catching_up.add(if catching_up { 1 } else { -1 });
            let state = if catching_up { "stream is catching up" } else { "stream has caught up" };
            let held = stream.repair.held();
            let at = after.map(tracing::field::display);
            tracing::info!(stream = %stream.name, at, held, bound = MAX_HELD_EVENTS, "{state}");
        }
        if !repairing && let Some(hole) = stream.hole.take() {
            self.metrics.streams_repairing.dec();
            if hole.fetched > 0 && hole.told == 0 {
                self.metrics.repaired_gaps.inc();
            }
            tracing::debug!(
                stream = %stream.name,
                after = hole.after.map(tracing::field::display),
                to = after.map(tracing::field::display),
                fetched = hole.fetched,
                told = hole.told,
                took_ms = u64::try_from(now.since(hole.since).as_millis()).unwrap_or(u64::MAX),
                "hole closed"
            );
        }
    }

    /// Forgets the repair of a stream that is removed.
    pub(super) fn forget_repair(&mut self, key: usize) {
        let stream = &mut self.streams[key];
        if let Some(at) = stream.fetch_due.take() {
            self.repairs.due.remove(&(at, key));
        }
        if let Some(topic) = self.topics.get_mut(&stream.topic) {
            topic.fetch.due.remove(&key);
        }
        if let Some(hole) = stream.hole.take() {
            self.metrics.streams_repairing.dec();
            self.metrics.streams_catching_up.sub(i64::from(hole.catching_up));
        }
    }

    /// Gathers the streams whose fetch is due by their topics.
    fn due(&mut self, now: Moment) {
        while let Some((at, key)) = self.repairs.due.first().copied()
            && at <= now
        {
            self.repairs.due.pop_first();
            let Some(stream) = self.streams.get(key) else { continue };
            let Some(topic) = self.topics.get_mut(&stream.topic) else { continue };
            topic.fetch.due.insert(key);
            if topic.fetch.state == FetchState::None {
                topic.fetch.state = FetchState::Ready;
                self.repairs.ready.push_back(stream.topic.clone());
            }
        }
    }

    /// Begins fetches, as many as there may be.
    fn begin_fetches(&mut self, now: Moment) {
        while self.repairs.running.len() < MAX_FETCHES
            && let Some(topic) = self.repairs.ready.pop_front()
        {
            // It may have been left, and even joined again.
            let Some(state) = self.topics.get_mut(&topic).map(|state| &mut state.fetch) else { continue };
            if state.state != FetchState::Ready {
                continue;
            }
            let (mut wanted, mut streams, mut attempt) = (Vec::new(), Vec::new(), 0);
            while wanted.len() < MAX_FETCH_STREAMS
                && let Some(key) = state.due.pop_first()
            {
                let Some(stream) = self.streams.get_mut(key) else { continue };
                if let Some(fetch) = stream.repair.begin_fetch(now) {
                    stream.fetch_due = None;
                    stream.refetched = None;
                    wanted.push((stream.name.clone(), fetch.after));
                    streams.push((stream.name.clone(), fetch.id));
                    attempt = attempt.max(fetch.attempt);
                }
            }
            if wanted.is_empty() {
                state.state = FetchState::None;
                continue;
            }
            let id = self.repairs.next_id;
            self.repairs.next_id += 1;
            state.state = FetchState::Running(id);
            tracing::debug!(%topic, streams = streams.len(), attempt, "fetch begins");
            let fetching = Fetching::new(&topic, wanted, self.repairs.servers(now), attempt);
            let (upstream, to_hub) = (Arc::clone(&self.upstream), self.repairs.to_hub.clone());
            let run = fetch::run(id, fetch::Kind::Events, topic.clone(), fetching, upstream, to_hub);
            let task = self.repairs.tasks.spawn(run);
            self.repairs.running.insert(id, Running { topic, streams, task });
        }
    }

    fn part(&mut self, id: u64, part: Part, now: Moment) {
        // The topic may have been left meanwhile.
        if !self.repairs.running.contains_key(&id) {
            return;
        }
        match part {
            Part::Page(page) => {
                self.repairs.page = Some((page, 0));
                self.repairs.page_since = Instant::now();
            }
            Part::Slow(server) => {
                tracing::debug!(?server, "a server of feeds is slow and asked last for a while");
                self.repairs.slow.insert(server, now + SLOW_FOR);
            }
            Part::Results(results) => self.fetched(id, results, now),
        }
    }

    /// Takes the next events of the page at hand, if shards and clients have room or have had time enough.
    fn portion(&mut self, now: Moment) {
        let Some((page, from)) = self.repairs.page.take() else { return };
        let waited = self.repairs.page_since.elapsed() >= LONGEST_PAUSE;
        if !waited && !self.shards.iter().all(|shard| shard.takes_feeds()) {
            self.repairs.page = Some((page, from));
            return;
        }
        let events = &page.batch().events;
        let rest = events.get(from..).unwrap_or_default();
        let portion = self.repairs.room.portion(rest);
        for event in &rest[..portion] {
            self.receive(event, Way::Feed, now);
        }
        let to = from + portion;
        if to < events.len() {
            self.repairs.page = Some((page, to));
            self.repairs.page_since = Instant::now();
        }
    }

    fn fetched(&mut self, id: u64, results: Vec<(StreamName, Fetched)>, now: Moment) {
        let Some(running) = self.repairs.running.remove(&id) else { return };
        let ids: HashMap<_, _> = running.streams.into_iter().collect();
        for (name, result) in results {
            let (Some(key), Some(fetch)) = (self.names.get(&name).copied(), ids.get(&name)) else { continue };
            self.streams[key].repair.fetched(*fetch, result, now, &mut self.outputs);
            self.put_out(key, now);
            self.note(key, now);
        }
        if let Some(topic) = self.topics.get_mut(&running.topic)
            && topic.fetch.state == FetchState::Running(id)
        {
            topic.fetch.state = FetchState::None;
            if !topic.fetch.due.is_empty() {
                topic.fetch.state = FetchState::Ready;
                self.repairs.ready.push_back(running.topic);
            }
        }
    }

    /// Has some more streams look for what they may have missed.
    fn suspect_some(&mut self, now: Moment) {
        let Some(from) = self.repairs.suspects_from.take() else { return };
        let end = self.streams.capacity();
        let to = end.min(from + SUSPECTS_AT_ONCE);
        for key in from..to {
            if let Some(stream) = self.streams.get_mut(key) {
                stream.repair.suspect(now);
                self.note(key, now);
            }
        }
        self.repairs.suspects_from = (to < end).then_some(to);
    }
}

impl Stream {
    /// Counts what became of an event from gossip.
    pub(super) fn count_published(&self, event: &Event, received: Received, metrics: &EdgeMetrics) {
        let counter: &IntCounter = match received {
            Received::Delivered | Received::Ignored => return,
            Received::Duplicate if self.was_refetched(event) => &metrics.refetched_duplicates,
            Received::Duplicate => &metrics.duplicates,
            Received::Held if self.repair.is_live() => &metrics.early,
            Received::Held => return,
            Received::Dropped if self.repair.is_live() => &metrics.dropped_hold_full,
            Received::Dropped => &metrics.dropped_join_full,
        };
        counter.inc();
    }

    /// Counts what became of an event from a feed.
    pub(super) fn count_refetched(&mut self, event: &Event, received: Received, metrics: &EdgeMetrics) {
        match received {
            Received::Delivered | Received::Held => {}
            Received::Duplicate => return metrics.refetched_duplicates.inc(),
            Received::Dropped | Received::Ignored => return,
        }
        metrics.refetched.inc();
        if let Some(hole) = &mut self.hole {
            hole.fetched += 1;
        }
        match &mut self.refetched {
            Some(range) if range.epoch == event.epoch && range.last < event.sequence => {
                range.last = event.sequence
            }
            range => {
                let (epoch, first) = (event.epoch, event.sequence);
                *range = Some(Refetched { epoch, first, last: first });
            }
        }
    }

    fn was_refetched(&self, event: &Event) -> bool {
        self.refetched.is_some_and(|range| {
            range.epoch == event.epoch && (range.first..=range.last).contains(&event.sequence)
        })
    }
}
