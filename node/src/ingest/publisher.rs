//! Decides which events this peer publishes, and when. Pure: time comes in, batches go out.
//!
//! All live ingest peers hold the same events. Per topic they are ranked ([`tickmesh_protocol::rank`]); the first leads
//! and publishes what it has after [`Config::batch`](super::Config::batch). The others hold their events until they see
//! them on the mesh; if they see nothing of the topic for `takeover_after` although they hold events, they publish what
//! they hold themselves. A leader that is late but goes on is left alone: to publish its events as well would only add to
//! what makes it late. A leader whose connection is
//! lost is no longer ranked, so the next leads at once and begins with what it has not seen. Events may be published
//! twice at such a change, never not at all; edges drop the second.

mod pace;

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    time::Duration,
};

use tickmesh_protocol::{Batch, Event, Position, PublisherKey, StreamName, Topic, rank::ranked};
use tokio::time::Instant;

use self::pace::Pace;

/// Events in one batch at most: far below what a receiver accepts, so that a backlog goes out in portions between which
/// others get their turn.
const BATCH_EVENTS: usize = 512;

/// Bytes of data after which a batch is closed. One event of the largest size may still be added to it.
const BATCH_BYTES: usize = 128 * 1024;

/// What this peer has still to publish or to see published, topic by topic.
#[derive(Debug)]
pub(super) struct Publisher {
    me: PublisherKey,
    boot: u64,
    batch: Duration,
    takeover_after: Duration,
    pace: Pace,
    /// Configured publishers that are connected, and this one.
    live: BTreeSet<PublisherKey>,
    topics: HashMap<Topic, TopicState>,
    /// Topics with something unpublished.
    waiting: HashSet<Topic>,
}

#[derive(Debug)]
struct TopicState {
    leads: bool,
    counter: u64,
    /// In the order in which they were sequenced, with the time when that was.
    unpublished: VecDeque<(Instant, Event)>,
    /// The newest position seen from other publishers, by stream.
    seen: HashMap<StreamName, Position>,
    /// When anything was last seen from other publishers.
    heard: Option<Instant>,
}

impl Publisher {
    pub(super) fn new(me: PublisherKey, boot: u64, config: super::Config) -> Self {
        Self {
            me,
            boot,
            batch: config.batch,
            takeover_after: config.takeover_after,
            pace: Pace::new(config.max_batches),
            live: BTreeSet::from([me]),
            topics: HashMap::new(),
            waiting: HashSet::new(),
        }
    }

    /// Takes an event that was just sequenced. Returns its topic if it is the first event of it.
    pub(super) fn offer(&mut self, event: Event, now: Instant) -> Option<Topic> {
        let topic = Topic::spanning(&event.stream);
        let known = self.topics.contains_key(&topic);
        let state = self.topics.entry(topic.clone()).or_insert_with(|| TopicState {
            leads: leads(self.me, &self.live, &topic),
            counter: 0,
            unpublished: VecDeque::new(),
            seen: HashMap::new(),
            heard: None,
        });
        if !state.has_seen(&event) {
            state.unpublished.push_back((now, event));
            self.waiting.insert(topic.clone());
        }
        (!known).then_some(topic)
    }

    /// Notes what another publisher sent.
    pub(super) fn seen(&mut self, batch: &Batch, now: Instant) {
        // A topic of which this peer has no event yet may get one later that the other was faster with; but then it is
        // published twice once, which is harmless.
        let Some(state) = self.topics.get_mut(&batch.topic) else { return };
        for event in &batch.events {
            let position = event.position();
            let seen = state.seen.entry(event.stream.clone()).or_insert(position);
            if seen.epoch != position.epoch || seen.sequence < position.sequence {
                *seen = position;
            }
        }
        state.heard = Some(now);
        let TopicState { unpublished, seen, .. } = state;
        unpublished.retain(|(_, event)| !covers(seen, event));
        if state.unpublished.is_empty() {
            self.waiting.remove(&batch.topic);
        }
    }

    pub(super) fn publisher_up(&mut self, publisher: PublisherKey) {
        self.live.insert(publisher);
        self.rank_again();
    }

    pub(super) fn publisher_down(&mut self, publisher: PublisherKey) {
        self.live.remove(&publisher);
        self.rank_again();
    }

    /// Notes how much later than [`Publisher::next_due`] this peer was woken.
    pub(super) fn woken(&mut self, late: Duration) {
        self.pace.woken(late);
    }

    /// Topics that this peer leads, of those it has events of.
    pub(super) fn leading(&self) -> usize {
        self.topics.values().filter(|state| state.leads).count()
    }

    /// When something will be due, and allowed; nothing while everything is published.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let due = self.waiting.iter().filter_map(|topic| self.due_at(topic)).min()?;
        Some(self.pace.next().map_or(due, |allowed| allowed.max(due)))
    }

    /// Takes what is due by `now`, as batches ready to be signed: no more than the pace allows, the longest due first.
    /// What has to wait gathers further events, so batches grow as the rate of events does.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Batch> {
        let mut due: Vec<(Instant, Topic)> = self
            .waiting
            .iter()
            .filter_map(|topic| self.due_at(topic).filter(|at| *at <= now).map(|at| (at, topic.clone())))
            .collect();
        due.sort_unstable();
        let mut batches = Vec::new();
        for (_, topic) in due {
            // A leader sends everything it has; another peer only what the leader had its time for.
            let leads = self.topics.get(&topic).is_some_and(|state| state.leads);
            let until = if leads { now } else { now.checked_sub(self.takeover_after).unwrap_or(now) };
            while self.has_until(&topic, until) && self.pace.take(now) {
                batches.extend(self.take_portion(&topic, until));
            }
        }
        batches
    }

    /// Takes everything that this peer would have published next, for the end.
    pub(super) fn take_all(&mut self, now: Instant) -> Vec<Batch> {
        let leading: Vec<Topic> =
            self.waiting.iter().filter(|topic| self.topics[*topic].leads).cloned().collect();
        let mut batches = Vec::new();
        for topic in leading {
            while let Some(batch) = self.take_portion(&topic, now) {
                batches.push(batch);
            }
        }
        batches
    }

    fn due_at(&self, topic: &Topic) -> Option<Instant> {
        let state = self.topics.get(topic)?;
        let (oldest, _) = state.unpublished.front()?;
        Some(if state.leads {
            *oldest + self.batch
        } else {
            state.heard.map_or(*oldest, |heard| heard.max(*oldest)) + self.takeover_after
        })
    }

    fn has_until(&self, topic: &Topic, until: Instant) -> bool {
        let oldest = self.topics.get(topic).and_then(|state| state.unpublished.front());
        oldest.is_some_and(|(sequenced, _)| *sequenced <= until)
    }

    /// The next batch of a topic, of events that were sequenced by `until`.
    fn take_portion(&mut self, topic: &Topic, until: Instant) -> Option<Batch> {
        let state = self.topics.get_mut(topic)?;
        let events = state.portion(until)?;
        state.counter += 1;
        let counter = state.counter;
        if state.unpublished.is_empty() {
            self.waiting.remove(topic);
        }
        Some(Batch {
            publisher: self.me,
            boot: self.boot,
            counter,
            topic: topic.clone(),
            events,
            heads: Vec::new(),
        })
    }

    fn rank_again(&mut self) {
        for (topic, state) in &mut self.topics {
            state.leads = leads(self.me, &self.live, topic);
        }
    }
}

impl TopicState {
    fn has_seen(&self, event: &Event) -> bool {
        covers(&self.seen, event)
    }

    /// The next events, sequenced by `until`, that go into one batch.
    fn portion(&mut self, until: Instant) -> Option<Vec<Event>> {
        let mut bytes = 0;
        let mut count = 0;
        for (sequenced, event) in &self.unpublished {
            if *sequenced > until || count == BATCH_EVENTS || bytes >= BATCH_BYTES {
                break;
            }
            bytes += event.data.len();
            count += 1;
        }
        (count > 0).then(|| self.unpublished.drain(..count).map(|(_, event)| event).collect())
    }
}

fn covers(seen: &HashMap<StreamName, Position>, event: &Event) -> bool {
    seen.get(&event.stream).is_some_and(|seen| seen.epoch == event.epoch && seen.sequence >= event.sequence)
}

fn leads(me: PublisherKey, live: &BTreeSet<PublisherKey>, topic: &Topic) -> bool {
    ranked(topic, live.iter().copied()).first() == Some(&me)
}

#[cfg(test)]
mod tests;
