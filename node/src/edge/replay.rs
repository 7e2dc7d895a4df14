//! What clients missed and this edge does not hold any more: fetched from ingest peers, for all who wait for it at once.
//!
//! ```text
//! cursors of shards ─> asks ─> a task per topic ─> one fetch at a time ─> pages ─> everyone whose position is in them
//! ```
//!
//! When an edge dies, its clients come to others within a second, most of them with positions close to each other. One fetch
//! begins at the oldest position of each stream of a topic, and a page serves everyone who stands within it. A fetch is read only
//! as far as somebody waits for it: a slow client holds up nobody, and nothing is kept for it but its position.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use tickmesh_protocol::{
    Epoch, Event, Position, StreamName, Topic,
    client::ControlMessage,
    feed::FeedEnd,
    fetching::{Fetching, MAX_FETCH_STREAMS},
    link::{Link, Verdict},
    repair::Fetched,
};
use tokio::{
    sync::{Semaphore, mpsc},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, timeout_at},
};

use super::{
    Upstream,
    fetch::{self, Kind, Part},
    frame,
    queue::{ConnectionId, ShardQueue, StreamId, ToShard},
    recent::RecentFrame,
    snapshots::{MAX_SNAPSHOT_FETCHES, Snapshots, TopicSnapshots},
};

/// Asks that wait for the task of a topic; it takes them as they come.
const TOPIC_ASKS: usize = 1024;

/// Fetches at a time: as many as the hub makes for repairs, so that each has half of what a publisher allows one node.
const MAX_FETCHES: usize = 16;

/// How long an ask waits for others of its topic, when clients of a dead edge come all at once.
pub const GATHER: Duration = Duration::from_millis(3);

/// How long a fetch that nobody waits for is kept: its clients ask for the next page when they have taken the last.
const LINGER: Duration = Duration::from_millis(100);

/// Pause after a fetch that failed; it doubles up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A client that has not got what follows a position, or wants a snapshot.
#[derive(Debug)]
pub struct Ask {
    pub stream: StreamName,
    pub what: Kind,
    pub waiter: Waiter,
}

/// Where an answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    pub shard: usize,
    pub connection: ConnectionId,
    pub stream: StreamId,
    /// What follows this is asked for; it tells the answer from that to an older ask.
    pub after: Option<Position>,
}

/// What was found for one waiter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// What follows its position: these frames from the index on.
    Frames(Arc<[RecentFrame]>, usize),
    /// Nothing follows; the stream stands here, by what the server says that was asked.
    Nothing { head: Option<Position> },
    /// Nobody has what follows; the oldest event is this.
    Lost { oldest: Option<Position> },
    /// What is retained; nothing is, or the servers do not know it as a whole, if there is none.
    Snapshot(Option<RecentFrame>),
}

/// What the tasks of all topics share.
pub struct Parts {
    pub upstream: Arc<dyn Upstream>,
    pub shards: Vec<Arc<ShardQueue>>,
    pub snapshots: Arc<Snapshots>,
    fetches: Semaphore,
    pub snapshot_fetches: Semaphore,
}

impl Parts {
    pub fn new(upstream: Arc<dyn Upstream>, shards: Vec<Arc<ShardQueue>>, snapshots: Arc<Snapshots>) -> Self {
        let [fetches, snapshot_fetches] = [MAX_FETCHES, MAX_SNAPSHOT_FETCHES].map(Semaphore::new);
        Self { upstream, shards, snapshots, fetches, snapshot_fetches }
    }

    pub fn tell(&self, waiter: Waiter, replayed: Replayed) {
        if let Some(shard) = self.shards.get(waiter.shard) {
            shard.append(&mut vec![ToShard::Replayed(waiter, replayed)]);
        }
    }
}

/// Takes asks and answers them through the queues of the shards, as long as there are shards.
pub async fn run(parts: Parts, mut asks: mpsc::Receiver<Ask>) {
    let parts = Arc::new(parts);
    let mut topics: HashMap<(Topic, Kind), mpsc::Sender<Ask>> = HashMap::new();
    let mut tasks = JoinSet::new();
    while let Some(ask) = asks.recv().await {
        let (topic, what) = (Topic::spanning(&ask.stream), ask.what);
        // Only streams that the hub has joined are asked for, so there are no more topics than of known channels.
        let sender = topics.entry((topic.clone(), what)).or_insert_with(|| {
            let (sender, asks) = mpsc::channel(TOPIC_ASKS);
            let parts = Arc::clone(&parts);
            match what {
                Kind::Events => {
                    tasks.spawn(TopicReplay { topic, parts, asks, waiting: Waiting::default() }.run())
                }
                Kind::Snapshots => {
                    tasks.spawn(TopicSnapshots { topic, parts, asks, waiting: BTreeMap::new() }.run())
                }
            };
            sender
        });
        if sender.send(ask).await.is_err() {
            tracing::error!("a task that fetches for clients has ended by a fault");
            return;
        }
    }
}

/// Waits for an ask if nobody waits, and then a little for others. Whether there are any, and may be more.
pub async fn gather(
    asks: &mut mpsc::Receiver<Ask>,
    nobody: bool,
    time: Duration,
    mut add: impl FnMut(Ask),
) -> bool {
    if nobody {
        match asks.recv().await {
            Some(ask) => add(ask),
            None => return false,
        }
    }
    let deadline = Instant::now() + time;
    loop {
        match timeout_at(deadline, asks.recv()).await {
            Ok(Some(ask)) => add(ask),
            Ok(None) => return false,
            Err(_) => return true,
        }
    }
}

/// How long nobody is asked after so many failures in a row.
pub fn pause_after(failures: u32) -> Duration {
    PAUSE.saturating_mul(1 << failures.min(8)).min(LONGEST_PAUSE)
}

struct TopicReplay {
    topic: Topic,
    parts: Arc<Parts>,
    asks: mpsc::Receiver<Ask>,
    waiting: Waiting,
}

/// Ends its task when dropped.
pub struct Running(pub AbortHandle);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl TopicReplay {
    async fn run(mut self) {
        let mut failures = 0;
        while self.gather(GATHER).await {
            if self.fetch(failures).await {
                failures = 0;
                continue;
            }
            failures += 1;
            if !self.gather(pause_after(failures)).await {
                return;
            }
        }
    }

    async fn gather(&mut self, time: Duration) -> bool {
        let waiting = &mut self.waiting;
        gather(&mut self.asks, waiting.is_empty(), time, |ask| waiting.add(ask)).await
    }

    /// Makes one fetch; whether it did not fail.
    async fn fetch(&mut self, attempt: u32) -> bool {
        let parts = Arc::clone(&self.parts);
        let Parts { upstream, fetches, .. } = &*parts;
        // It is never closed.
        let _turn = fetches.acquire().await.ok();
        let servers: Vec<_> = upstream.servers().borrow().keys().copied().collect();
        let fetching = Fetching::new(&self.topic, self.waiting.begin(), servers, attempt);
        let (to, mut from) = mpsc::channel(1);
        let run = fetch::run(0, Kind::Events, self.topic.clone(), fetching, Arc::clone(upstream), to);
        let _running = Running(tokio::spawn(run).abort_handle());
        loop {
            let needed = self.waiting.needs_more();
            if !needed && !self.waiting.is_empty() {
                // Whoever waits now stands before it.
                return true;
            }
            tokio::select! {
                ask = self.asks.recv() => match ask {
                    Some(ask) => self.waiting.add(ask),
                    None => return true,
                },
                part = from.recv(), if needed => match part {
                    Some((_, Part::Page(page))) => {
                        let answers = self.waiting.page(&page.batch().events);
                        self.tell(answers);
                    }
                    Some((_, Part::Slow(_))) => {}
                    Some((_, Part::Results(results))) => {
                        let failed = results.iter().any(|(_, fetched)| *fetched == Fetched::Failed);
                        let answers = self.waiting.ended(results);
                        self.tell(answers);
                        return !failed;
                    }
                    None => return false,
                },
                () = sleep(LINGER), if !needed => return true,
            }
        }
    }

    fn tell(&self, answers: Vec<(Waiter, Replayed)>) {
        for (waiter, replayed) in answers {
            self.parts.tell(waiter, replayed);
        }
    }
}

/// Who waits for what of one topic, and how far the running fetch has come. Pure.
#[derive(Debug, Default)]
struct Waiting {
    streams: BTreeMap<StreamName, StreamWaiting>,
    /// Streams of the running fetch.
    fetched: HashMap<StreamName, Fetch>,
}

#[derive(Debug, Default)]
struct StreamWaiting {
    waiters: Vec<Waiter>,
    /// The fetch before began at a position whose events are lost: so may be others.
    lost: bool,
}

/// How far a fetch has come on one stream.
#[derive(Debug)]
struct Fetch {
    link: Link,
    /// Something before this event is missing: whoever stands before it cannot be served.
    hole: Option<Position>,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    fn add(&mut self, Ask { stream, waiter, .. }: Ask) {
        self.streams.entry(stream).or_default().waiters.push(waiter);
    }

    /// Begins a fetch: where, for each stream.
    fn begin(&mut self) -> Vec<(StreamName, Option<Position>)> {
        self.fetched.clear();
        let mut wanted = Vec::new();
        for (stream, waiting) in self.streams.iter().take(MAX_FETCH_STREAMS) {
            let after = waiting.begin();
            self.fetched.insert(stream.clone(), Fetch { link: Link::at(after), hole: None });
            wanted.push((stream.clone(), after));
        }
        wanted
    }

    /// Whether somebody waits for what the running fetch may bring.
    fn needs_more(&self) -> bool {
        self.streams.iter().any(|(stream, waiting)| {
            let serves = |fetch: &Fetch| waiting.waiters.iter().any(|waiter| fetch.serves(waiter.after));
            self.fetched.get(stream).is_some_and(|fetch| fetch.hole.is_none() && serves(fetch))
        })
    }

    /// Takes a page, and answers those who stand within it.
    fn page(&mut self, events: &[Event]) -> Vec<(Waiter, Replayed)> {
        let mut by_stream: BTreeMap<&StreamName, Vec<&Event>> = BTreeMap::new();
        for event in events {
            by_stream.entry(&event.stream).or_default().push(event);
        }
        let mut answers = Vec::new();
        for (stream, events) in by_stream {
            let Some(fetch) = self.fetched.get_mut(stream) else { continue };
            let before = fetch.link.last();
            let frames = fetch.take(&events);
            let Some(waiting) = self.streams.get_mut(stream) else { continue };
            waiting.waiters.retain(|waiter| match index_after(before, &frames, waiter.after) {
                Some(index) if index < frames.len() => {
                    answers.push((*waiter, Replayed::Frames(Arc::clone(&frames), index)));
                    false
                }
                // Of those between this and the hole nobody knows.
                _ if fetch.hole.is_some() && is_not_after(waiter.after, fetch.link.last()) => {
                    answers.push((*waiter, Replayed::Lost { oldest: fetch.hole }));
                    false
                }
                _ => true,
            });
            waiting.lost = false;
            if waiting.waiters.is_empty() {
                self.streams.remove(stream);
            }
        }
        answers
    }

    /// Ends the fetch, and answers those whom it leaves without a page.
    fn ended(&mut self, results: Vec<(StreamName, Fetched)>) -> Vec<(Waiter, Replayed)> {
        let mut answers = Vec::new();
        for (stream, fetched) in results {
            let (Some(fetch), Fetched::Ended(end)) = (self.fetched.remove(&stream), fetched) else {
                continue;
            };
            let Some(waiting) = self.streams.get_mut(&stream) else { continue };
            let at = fetch.link.last();
            waiting.waiters.retain(|waiter| {
                let answer = match end {
                    FeedEnd::Complete { head } if fetch.serves(waiter.after) => Replayed::Nothing { head },
                    FeedEnd::Refused { oldest } if is_not_after(waiter.after, at) => {
                        Replayed::Lost { oldest }
                    }
                    _ => return true,
                };
                answers.push((*waiter, answer));
                false
            });
            waiting.lost = matches!(end, FeedEnd::Refused { .. });
            if waiting.waiters.is_empty() {
                self.streams.remove(&stream);
            }
        }
        self.fetched.clear();
        answers
    }
}

impl StreamWaiting {
    /// Where a fetch is to begin: at the oldest position of the epoch of whoever waits longest. If what follows the oldest was
    /// lost, in the middle: of ten thousand lost positions each fetch then answers half.
    fn begin(&self) -> Option<Position> {
        let epoch: Epoch = self.waiters.first()?.after?.epoch;
        let same = self.waiters.iter().filter_map(|waiter| waiter.after.filter(|after| after.epoch == epoch));
        let mut sequences: Vec<_> = same.map(|after| after.sequence).collect();
        sequences.sort_unstable();
        let index = if self.lost { sequences.len() / 2 } else { 0 };
        sequences.get(index).map(|sequence| Position { epoch, sequence: *sequence })
    }
}

impl Fetch {
    /// Whether what follows a position may still come.
    fn serves(&self, after: Option<Position>) -> bool {
        match (self.link.last(), after) {
            (None, after) => after.is_none(),
            (Some(at), Some(after)) => at.epoch == after.epoch && at.sequence <= after.sequence,
            (Some(_), None) => false,
        }
    }

    /// Makes frames of events as far as they follow.
    fn take(&mut self, events: &[&Event]) -> Arc<[RecentFrame]> {
        let mut frames = Vec::new();
        for event in events {
            if self.hole.is_some() {
                break;
            }
            let reset = match self.link.advance(event) {
                Verdict::Next => None,
                Verdict::Reset { epoch } => {
                    Some(frame::control(&ControlMessage::Reset { stream: event.stream.clone(), epoch }))
                }
                Verdict::Duplicate => continue,
                Verdict::Gap { .. } => {
                    self.hole = Some(event.position());
                    break;
                }
            };
            frames.push(RecentFrame {
                position: event.position(),
                engine_time_us: event.engine_time_us,
                reset,
                bytes: frame::data(event),
            });
        }
        frames.into()
    }
}

/// Whether a position is at another, or before it in its epoch.
fn is_not_after(position: Option<Position>, other: Option<Position>) -> bool {
    match (position, other) {
        (None, other) => other.is_none(),
        (Some(position), Some(other)) => position.epoch == other.epoch && position.sequence <= other.sequence,
        (Some(_), None) => false,
    }
}

/// The index of the first frame after a position, of frames that follow `before`; `None` if the position is not among them.
fn index_after(
    before: Option<Position>,
    frames: &[RecentFrame],
    position: Option<Position>,
) -> Option<usize> {
    if position == before {
        return Some(0);
    }
    let position = position?;
    let reached = |at: Position| at.epoch == position.epoch && at.sequence <= position.sequence;
    if let Some(last) = frames.iter().rposition(|frame| reached(frame.position)) {
        return Some(last + 1);
    }
    before.filter(|before| reached(*before)).map(|_| 0)
}

#[cfg(test)]
mod tests;
