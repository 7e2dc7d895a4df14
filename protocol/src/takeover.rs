//! What an ingest peer publishes, and when. Pure: time comes in, batches go out.
//!
//! All ingest peers that read a source make the same events of it. Per topic they are ranked ([`crate::rank`]; a source's home
//! region first): the first *leads* and publishes, the others *follow*: they hold the same events until they see them on the
//! mesh. No election: a follower that misses what the leader should have published long ago publishes it itself. Events
//! may then be published twice, never not at all; edges drop the second.
//!
//! ```text
//!                    leader silent for the timeout, or its connection lost
//!      Following ──────────────────────────────────────────────────────────> Leading
//!          <──────────────────────────────────────────────────────────────────
//!                    a better rank is heard, or is connected and warm
//! ```
//!
//! | when | a leader | a follower of rank r |
//! |---|---|---|
//! | an event is read | publishes it after [`Settings::batch`] | holds it |
//! | a batch of another peer is seen | drops what it covers; yields if the peer is ranked better | drops what it covers |
//! | the leader's connection is lost | – | ranks again; the new first publishes the backlog at once, in order |
//! | an event it holds is older than r timeouts, and the leader was silent as long | – | publishes the backlog, leads |
//! | the leader publishes, but not this | – | waits much longer ([`BEHIND`]): it is late, and more work would not help it |
//! | its own loop was late | waits: others may have published meanwhile | waits longer by that |
//! | a better rank becomes warm | publishes its backlog, then follows: the other never held it | – |
//! | it has read its log to the end while others lead | – | *settles* first: who comes back is not ranked before edges have had the time to connect to it |
//!
//! The timeout is four times the 99th percentile of the leader's lag (how long after this peer had an event it was seen from
//! the leader), 25 to 80 ms, and longer for a while after a leader that was given up came back. In a topic's first quarter of a second nobody
//! is given up: those who follow may not have joined it yet.
//!
//! A worked example: A leads, B follows, timeout 30 ms. At 0 both read 7; at 1 ms A publishes it, B drops its copy. At 5 ms both
//! read 8 and A is frozen. At 35 ms B publishes 8 and leads. At 10 s A wakes. It was 10 s late, so it first listens for
//! [`LISTEN`]: it sees what B published and drops it, publishes 9,001, and B yields.

mod lag;
mod pace;
mod topic;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    time::Duration,
};

use self::{
    lag::Lag,
    pace::Pace,
    topic::{Lane, TopicState},
};
use crate::{Batch, Epoch, Event, Moment, Position, PublisherKey, StreamName, Topic, rank::ranked};

/// Events that a follower holds per topic. What is beyond is dropped, oldest first: it is in the history, and edges fetch
/// it there.
const MAX_HELD: usize = 65_536;

/// The least time after which a follower publishes what a leader that goes on has left out.
const BEHIND: Duration = Duration::from_secs(1);

/// How much longer than its usual lag that is.
const BEHIND_LAGS: u32 = 16;

/// The most that lateness of the own loop counts.
const FROZEN: Duration = Duration::from_secs(1);

/// How long a peer that was frozen listens before it publishes again: some round trips, in which the queues of what others
/// published meanwhile are read: a quarter of its lateness, at most this. Others publish for it as long.
const LISTEN: Duration = Duration::from_secs(1);

/// How long after its first event a topic's followers have not certainly joined it: what they do not hear then was not
/// sent to them.
const JOINING: Duration = Duration::from_millis(250);

/// How long a lateness of the own loop counts.
const LATE_COUNTS: Duration = Duration::from_secs(1);

/// How long the timeout stays doubled after a leader that was given up came back.
const LENGTHENED: Duration = Duration::from_secs(30);
/// How often it may double.
const MOST_LENGTHENED: u32 = 3;

/// How this peer publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long a leader gathers events before it publishes them.
    pub batch: Duration,
    /// Batches published per second at most, over all topics.
    pub max_batches: u32,
    /// Bounds of the timeout after which a silent leader is followed.
    pub least_timeout: Duration,
    pub most_timeout: Duration,
    /// How long after its last event a stream's head is told first.
    pub head_every: Duration,
    /// How long a peer that comes to others waits before it ranks.
    pub settle: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            batch: Duration::from_millis(1),
            max_batches: 1000,
            least_timeout: Duration::from_millis(25),
            most_timeout: Duration::from_millis(80),
            head_every: Duration::from_millis(500),
            settle: Duration::from_secs(2),
        }
    }
}

/// Names a source of this peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u16);

/// What has been counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Topics that this peer began to lead after their leader was lost or silent.
    pub takeovers: u64,
    /// Topics that it gave back to a better rank.
    pub yields: u64,
    /// Events dropped from a follower's backlog because it was full.
    pub overflowed: u64,
}

/// How one topic of one source stands, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub topic: Topic,
    pub source: SourceId,
    /// Best first; this peer among them if its source is warm.
    pub ranks: Vec<PublisherKey>,
    /// Whether this peer publishes.
    pub leads: bool,
    /// Events held that have neither been published nor seen.
    pub unpublished: usize,
    pub streams: usize,
    /// The stream that moved last, and its head.
    pub newest: Option<(StreamName, Position)>,
}

/// What this peer has still to publish or to see published.
#[derive(Debug)]
pub struct Publisher {
    me: PublisherKey,
    boot: u64,
    settings: Settings,
    pace: Pace,
    sources: BTreeMap<SourceId, Source>,
    topics: HashMap<Topic, TopicState>,
    /// Lanes with something unpublished.
    waiting: HashSet<(SourceId, Topic)>,
    /// When heads of a topic are due; one entry per topic that has any.
    head_due: BTreeSet<(Moment, Topic)>,
    peers: HashMap<PublisherKey, Peer>,
    /// The largest lateness of the own loop lately, and when it was noticed.
    late: Option<(Moment, Duration)>,
    /// Nothing is published before this.
    listen_until: Moment,
    counts: Counts,
}

/// The peers that read one source, this one included, each with its tier: those of the home region first.
#[derive(Debug, Default)]
struct Source {
    readers: BTreeMap<PublisherKey, u8>,
    /// This peer's tier, and when it ranks at the latest, if it does not yet.
    settling: Option<(u8, Moment)>,
}

impl Source {
    /// When this peer ranks: at once, if nobody else does.
    fn settled_at(&self) -> Option<Moment> {
        let (_, at) = self.settling?;
        Some(if self.readers.is_empty() { Moment::START } else { at })
    }
}

/// What is known of another publisher.
#[derive(Debug, Default)]
struct Peer {
    /// When anything of it was last seen.
    heard: Option<Moment>,
    lag: Lag,
    lengthened: u32,
    lengthened_at: Option<Moment>,
}

impl Publisher {
    pub fn new(me: PublisherKey, boot: u64, settings: Settings) -> Self {
        Self {
            me,
            boot,
            pace: Pace::new(settings.max_batches),
            settings,
            sources: BTreeMap::new(),
            topics: HashMap::new(),
            waiting: HashSet::new(),
            head_due: BTreeSet::new(),
            peers: HashMap::new(),
            late: None,
            listen_until: Moment::START,
            counts: Counts::default(),
        }
    }

    /// This peer has read a source up to its log's end: it will be ranked, `tier` 0 in the source's home region. See
    /// [`Publisher::settled`].
    pub fn read_up(&mut self, source: SourceId, tier: u8, now: Moment) {
        self.sources.entry(source).or_default().settling = Some((tier, now + self.settings.settle));
    }

    /// The sources for which this peer is *warm* from now on: it ranks. At once if nobody else does, or else when it has
    /// settled. What was replayed is then told as heads.
    pub fn settled(&mut self, now: Moment) -> Vec<SourceId> {
        let settled = |(source, state): (&SourceId, &mut Source)| {
            state.settled_at().filter(|at| *at <= now)?;
            state.settling.take().map(|(tier, _)| (*source, tier))
        };
        let settled: Vec<_> = self.sources.iter_mut().filter_map(settled).collect();
        for (source, tier) in &settled {
            self.rank(*source, self.me, Some(*tier), now);
            for (name, topic) in &mut self.topics {
                topic.tell_again(*source, now.before(self.settings.head_every));
                topic.schedule(name, &mut self.head_due);
            }
        }
        settled.into_iter().map(|(source, _)| source).collect()
    }

    /// Another publisher reads a source, is connected and warm; or, with `None`, no longer.
    pub fn peer(&mut self, publisher: PublisherKey, source: SourceId, tier: Option<u8>, now: Moment) {
        if publisher != self.me {
            self.rank(source, publisher, tier, now);
        }
    }

    /// Another publisher's connection is lost.
    pub fn peer_down(&mut self, publisher: PublisherKey, now: Moment) {
        let sources: Vec<_> = self.sources.keys().copied().collect();
        for source in sources {
            self.peer(publisher, source, None, now);
        }
    }

    /// Takes an event that was just sequenced. Returns its topic if it is the first event of it.
    pub fn offer(&mut self, source: SourceId, event: Event, now: Moment) -> Option<Topic> {
        let topic = Topic::spanning(&event.stream);
        let new = self.add_lane(source, &topic);
        let state = self.topics.get_mut(&topic)?;
        let covered = state.own(source, &event.stream, event.epoch, now).covers(&event);
        let lane = state.lanes.get_mut(&source)?;
        lane.began.get_or_insert(now);
        if !covered {
            lane.unpublished.push_back((now, event));
            if lane.unpublished.len() > MAX_HELD && !lane.leads(self.me) {
                lane.unpublished.pop_front();
                self.counts.overflowed += 1;
            }
            self.waiting.insert((source, topic.clone()));
        }
        new.then_some(topic)
    }

    /// Takes the position of an event that was sequenced before the source was warm, or that a checkpoint kept: it is not to be
    /// published, but its stream's head is to be told. Returns its topic if it is the first event of it.
    pub fn replayed(
        &mut self,
        source: SourceId,
        stream: &StreamName,
        at: Position,
        now: Moment,
    ) -> Option<Topic> {
        let topic = Topic::spanning(stream);
        let new = self.add_lane(source, &topic);
        let state = self.topics.get_mut(&topic)?;
        state.own(source, stream, at.epoch, now);
        state.note(stream, at, None, now);
        state.schedule(&topic, &mut self.head_due);
        new.then_some(topic)
    }

    /// Notes what another publisher sent.
    pub fn seen(&mut self, batch: &Batch, now: Moment) {
        if batch.publisher == self.me {
            return;
        }
        let peer = self.peers.entry(batch.publisher).or_default();
        peer.heard = Some(now);
        let Some(state) = self.topics.get_mut(&batch.topic) else { return };
        for event in &batch.events {
            state.note(&event.stream, event.position(), Some(event.previous), now);
            state.heard(self.me, batch.publisher, &event.stream, event.position());
        }
        for (stream, head) in &batch.heads {
            state.heard(self.me, batch.publisher, stream, *head);
        }
        state.schedule(&batch.topic, &mut self.head_due);
        let TopicState { lanes, streams, .. } = state;
        for (source, lane) in lanes {
            lane.unpublished.retain(|(since, event)| {
                let covered = streams.get(&event.stream).is_some_and(|stream| stream.covers(event));
                if covered {
                    peer.lag.note(now.since(*since));
                }
                !covered
            });
            if lane.unpublished.is_empty() {
                self.waiting.remove(&(*source, batch.topic.clone()));
            }
            if lane.took_over && lane.ranks_before(batch.publisher, self.me) {
                // It was there all the time and holds the same events: what this peer holds now it still holds back.
                lane.took_over = false;
                self.counts.yields += 1;
                peer.lengthen(now);
            }
        }
    }

    /// Notes how much later than [`Publisher::next_due`] this peer was woken.
    pub fn woken(&mut self, late: Duration, now: Moment) {
        self.pace.woken(late);
        let outdated = self.late.is_none_or(|(at, known)| now.since(at) > LATE_COUNTS || late >= known);
        if outdated {
            self.late = Some((now, late));
        }
        // So late that another may have taken over: what it published is on its way here.
        let followed = self.sources.values().any(|source| source.readers.len() > 1);
        if followed && late >= self.settings.most_timeout {
            self.listen_until = self.listen_until.max(now + LISTEN.min(late / 4));
        }
    }

    /// When something will be due, and allowed, or this peer ranks; nothing while everything is published and told.
    pub fn next_due(&self) -> Option<Moment> {
        let lanes = self.waiting.iter().filter_map(|(source, topic)| self.due_at(*source, topic));
        let heads = self.head_due.first().map(|(due, _)| *due);
        let publishing = lanes.chain(heads).min().map(|due| {
            let due = due.max(self.listen_until);
            self.pace.next().map_or(due, |allowed| allowed.max(due))
        });
        let settled = self.sources.values().filter_map(Source::settled_at);
        settled.chain(publishing).min()
    }

    /// Takes what is due by `now`, as batches ready to be signed: no more than the pace allows, the longest due first.
    /// What has to wait gathers further events, so batches grow as the rate of events does.
    pub fn take_due(&mut self, now: Moment) -> Vec<Batch> {
        if now < self.listen_until {
            return Vec::new();
        }
        let mut due: Vec<(Moment, SourceId, Topic)> = self
            .waiting
            .iter()
            .filter_map(|(source, topic)| {
                let at = self.due_at(*source, topic).filter(|at| *at <= now)?;
                Some((at, *source, topic.clone()))
            })
            .collect();
        due.sort_unstable();
        let mut batches = Vec::new();
        for (_, source, topic) in due {
            let until = self.begin_publishing(source, &topic, now);
            while self.has_until(source, &topic, until) && self.pace.take(now) {
                batches.extend(self.take_portion(source, &topic, until, now));
            }
        }
        self.take_heads(now, &mut batches);
        batches
    }

    /// Takes everything that this peer would have published next, for the end.
    pub fn take_all(&mut self, now: Moment) -> Vec<Batch> {
        let waiting: Vec<_> = self.waiting.iter().cloned().collect();
        let mut batches = Vec::new();
        for (source, topic) in waiting {
            let leads = self.topics.get(&topic).and_then(|state| state.lanes.get(&source));
            if leads.is_some_and(|lane| lane.leads(self.me)) {
                while let Some(batch) = self.take_portion(source, &topic, now, now) {
                    batches.push(batch);
                }
            }
        }
        batches
    }

    /// The newest position of a stream that was published, seen or replayed.
    pub fn head(&self, stream: &StreamName) -> Option<Position> {
        let state = self.topics.get(&Topic::spanning(stream))?;
        state.streams.get(stream).and_then(|stream| stream.head)
    }

    /// The epochs that the head of a stream is known to have left.
    pub fn left(&self, stream: &StreamName) -> &[Epoch] {
        let state = self.topics.get(&Topic::spanning(stream)).and_then(|topic| topic.streams.get(stream));
        state.map_or(&[], |state| state.left.as_slice())
    }

    /// Topics that this peer leads, of those it has events of.
    pub fn leading(&self) -> usize {
        self.topics.values().flat_map(|state| state.lanes.values()).filter(|lane| lane.leads(self.me)).count()
    }

    /// How every topic stands.
    pub fn standings(&self) -> impl Iterator<Item = Standing> {
        self.topics.iter().flat_map(|(topic, state)| {
            state.lanes.iter().map(|(source, lane)| Standing {
                topic: topic.clone(),
                source: *source,
                ranks: lane.order.clone(),
                leads: lane.leads(self.me),
                unpublished: lane.unpublished.len(),
                streams: state.streams.len(),
                newest: state
                    .streams
                    .iter()
                    .max_by_key(|(_, stream)| stream.since)
                    .and_then(|(name, stream)| Some((name.clone(), stream.head?))),
            })
        })
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether the topic is new.
    fn add_lane(&mut self, source: SourceId, topic: &Topic) -> bool {
        let known = self.topics.get(topic);
        if known.is_some_and(|state| state.lanes.contains_key(&source)) {
            return false;
        }
        let new = known.is_none();
        let readers = &self.sources.entry(source).or_default().readers;
        let lane = Lane {
            order: order(topic, readers),
            took_over: false,
            unpublished: VecDeque::new(),
            flush_until: None,
            began: None,
        };
        self.topics.entry(topic.clone()).or_default().lanes.insert(source, lane);
        new
    }

    /// A peer comes to the readers of a source, or goes; all its topics are ranked again.
    fn rank(&mut self, source: SourceId, publisher: PublisherKey, tier: Option<u8>, now: Moment) {
        let readers = &mut self.sources.entry(source).or_default().readers;
        let before = match tier {
            Some(tier) => readers.insert(publisher, tier),
            None => readers.remove(&publisher),
        };
        if before == tier {
            return;
        }
        for (topic, state) in &mut self.topics {
            let Some(lane) = state.lanes.get_mut(&source) else { continue };
            let led = lane.leads(self.me);
            let had_leader = lane.order.first().is_some_and(|leader| *leader != self.me);
            lane.order = order(topic, readers);
            let first = lane.order.first() == Some(&self.me);
            if first {
                lane.took_over = false;
            }
            match (led, lane.leads(self.me)) {
                (false, true) => {
                    self.counts.takeovers += u64::from(had_leader);
                    state.tell_again(source, now);
                    state.schedule(topic, &mut self.head_due);
                }
                (true, false) => {
                    self.counts.yields += 1;
                    // The new leader may have read these events before it was warm, and does not hold them.
                    lane.flush_until = Some(now);
                }
                _ => {}
            }
            if tier.is_none() {
                // What it knew may be gone with it: who knows it as well tells it again.
                state.streams.values_mut().for_each(|stream| stream.heard = None);
                state.tell_again(source, now);
                state.schedule(topic, &mut self.head_due);
            }
        }
    }

    fn due_at(&self, source: SourceId, topic: &Topic) -> Option<Moment> {
        let lane = self.topics.get(topic)?.lanes.get(&source)?;
        let oldest = lane.unpublished.front().map(|(since, _)| *since)?;
        if lane.leads(self.me) || lane.flush_until.is_some_and(|until| oldest <= until) {
            return Some(oldest + self.settings.batch);
        }
        // Who is not warm publishes nothing.
        let rank = lane.order.iter().position(|key| *key == self.me)?;
        let better = lane.order[..rank].iter().filter_map(|key| self.peers.get(key));
        let heard = better.filter_map(|peer| peer.heard).max();
        let leader = lane.order.first().and_then(|leader| self.peers.get(leader));
        let late = self.late.map_or(Duration::ZERO, |(_, late)| late.min(FROZEN)) * 4;
        let rank = u32::try_from(rank).unwrap_or(u32::MAX);
        let silent = heard.map_or(oldest, |heard| heard.max(oldest)) + self.timeout(leader) * rank + late;
        let silent = lane.began.map_or(silent, |began| silent.max(began + JOINING));
        let usual = leader.and_then(|leader| leader.lag.p99()).unwrap_or_default();
        let behind = oldest + BEHIND.max(usual * BEHIND_LAGS) * rank + late;
        Some(silent.min(behind))
    }

    /// How long a leader may be silent.
    fn timeout(&self, leader: Option<&Peer>) -> Duration {
        let Settings { least_timeout, most_timeout, .. } = self.settings;
        let usual = leader.and_then(|leader| leader.lag.p99());
        let bounded = usual.map_or(most_timeout, |usual| (usual * 4).clamp(least_timeout, most_timeout));
        bounded * leader.map_or(1, |leader| 1 << leader.lengthened)
    }

    /// How late its own loop was lately, at most [`FROZEN`].
    pub fn lateness(&self, now: Moment) -> Duration {
        let counts = self.late.filter(|(at, _)| now.since(*at) <= LATE_COUNTS);
        counts.map_or(Duration::ZERO, |(_, late)| late.min(FROZEN))
    }

    /// Decides up to when events of a lane that is due go out; a follower takes over.
    fn begin_publishing(&mut self, source: SourceId, topic: &Topic, now: Moment) -> Moment {
        let me = self.me;
        let Some(state) = self.topics.get_mut(topic) else { return now };
        let Some(lane) = state.lanes.get_mut(&source) else { return now };
        if lane.leads(me) {
            return now;
        }
        if let Some(until) = lane.flush_until {
            let flushing = lane.unpublished.front().is_some_and(|(since, _)| *since <= until);
            if flushing {
                return until;
            }
            lane.flush_until = None;
        }
        lane.took_over = true;
        self.counts.takeovers += 1;
        state.tell_again(source, now);
        state.schedule(topic, &mut self.head_due);
        now
    }

    fn has_until(&self, source: SourceId, topic: &Topic, until: Moment) -> bool {
        let lane = self.topics.get(topic).and_then(|state| state.lanes.get(&source));
        let oldest = lane.and_then(|lane| lane.unpublished.front());
        oldest.is_some_and(|(sequenced, _)| *sequenced <= until)
    }

    /// The next batch of a lane, of events that were sequenced by `until`.
    fn take_portion(&mut self, source: SourceId, topic: &Topic, until: Moment, now: Moment) -> Option<Batch> {
        let state = self.topics.get_mut(topic)?;
        let lane = state.lanes.get_mut(&source)?;
        let events = lane.portion(until)?;
        if lane.unpublished.is_empty() {
            self.waiting.remove(&(source, topic.clone()));
        }
        state.counter += 1;
        let counter = state.counter;
        for event in &events {
            state.note(&event.stream, event.position(), Some(event.previous), now);
        }
        state.schedule(topic, &mut self.head_due);
        Some(Batch {
            publisher: self.me,
            boot: self.boot,
            counter,
            topic: topic.clone(),
            events,
            heads: Vec::new(),
        })
    }

    /// Takes the heads that are due. Followers only note that the leader has told them.
    fn take_heads(&mut self, now: Moment, batches: &mut Vec<Batch>) {
        while let Some((due, topic)) = self.head_due.first().cloned() {
            if due > now || !self.pace.take(now) {
                break;
            }
            self.head_due.pop_first();
            let Some(state) = self.topics.get_mut(&topic) else { continue };
            state.scheduled = None;
            let heads = state.due_heads(self.me, now, self.settings.head_every);
            state.schedule(&topic, &mut self.head_due);
            if heads.is_empty() {
                continue;
            }
            state.counter += 1;
            batches.push(Batch {
                publisher: self.me,
                boot: self.boot,
                counter: state.counter,
                topic,
                events: Vec::new(),
                heads,
            });
        }
    }
}

impl Peer {
    fn lengthen(&mut self, now: Moment) {
        if self.lengthened_at.is_some_and(|at| now.since(at) > LENGTHENED) {
            self.lengthened = 0;
        }
        self.lengthened = (self.lengthened + 1).min(MOST_LENGTHENED);
        self.lengthened_at = Some(now);
    }
}

/// The readers of a source in the order in which they may lead a topic.
fn order(topic: &Topic, readers: &BTreeMap<PublisherKey, u8>) -> Vec<PublisherKey> {
    let mut order = ranked(topic, readers.keys().copied());
    order.sort_by_key(|key| readers.get(key).copied());
    order
}

#[cfg(test)]
mod tests;
