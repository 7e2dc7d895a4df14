//! One topic at an ingest peer: its streams, and per source what is still to be published of it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use super::SourceId;
use crate::{
    Epoch, Event, Moment, Position, Previous, PublisherKey, StreamName, Topic, batch::MAX_BATCH_HEADS,
    position::LeftEpochs,
};

/// Events in one batch at most: far below what a receiver accepts, so that a backlog goes out in portions between which
/// others get their turn.
pub(super) const BATCH_EVENTS: usize = 512;

/// Bytes of events after which a batch is closed. One event of the largest size may still be added to it.
const BATCH_BYTES: usize = 128 * 1024;

/// How often a stream's head is told after its last event, at intervals that double.
pub(super) const TELLINGS: u8 = 8;

/// Heads that will be due so soon are told with those that are.
const HEAD_SLACK: Duration = Duration::from_millis(250);

#[derive(Debug, Default)]
pub(super) struct TopicState {
    pub(super) counter: u64,
    pub(super) streams: HashMap<StreamName, StreamState>,
    /// One per source whose events are of this topic; nearly always one.
    pub(super) lanes: BTreeMap<SourceId, Lane>,
    /// Streams whose head is to be told again, by when to look; one that has had an event since then is told later.
    quiet: BTreeSet<(Moment, StreamName)>,
    /// Where the topic stands in [`Publisher::head_due`].
    pub(super) scheduled: Option<Moment>,
}

/// The events of one source on one topic.
#[derive(Debug)]
pub(super) struct Lane {
    /// The peers that may lead, best first.
    pub(super) order: Vec<PublisherKey>,
    /// Whether this peer leads although it is not the first.
    pub(super) took_over: bool,
    /// In the order in which they were sequenced, with the time when that was.
    pub(super) unpublished: VecDeque<(Moment, Event)>,
    /// What was held when a better rank came: it is published in any case.
    pub(super) flush_until: Option<Moment>,
    /// When the topic had its first event here.
    pub(super) began: Option<Moment>,
}

#[derive(Debug)]
pub(super) struct StreamState {
    source: Option<SourceId>,
    /// The newest that was published or seen, or replayed at the start.
    pub(super) head: Option<Position>,
    /// Epochs that `head` has left. What comes of them later is old.
    pub(super) left: LeftEpochs,
    /// The newest epoch that this peer has sequenced itself.
    own: Option<Epoch>,
    /// The newest position that a better rank has published or told.
    pub(super) heard: Option<Position>,
    /// When that was.
    pub(super) since: Moment,
    /// How often the head was told since then.
    told: u8,
    /// Whether it is in [`TopicState::quiet`].
    listed: bool,
}

impl TopicState {
    /// The state of a stream of which this peer has sequenced an event.
    pub(super) fn own(
        &mut self,
        source: SourceId,
        name: &StreamName,
        epoch: Epoch,
        now: Moment,
    ) -> &mut StreamState {
        let stream = self.streams.entry(name.clone()).or_insert_with(|| StreamState::new(now));
        stream.source = Some(source);
        stream.own = Some(epoch);
        stream
    }

    /// Notes that a stream has come to a position, by an event that says what was before it.
    pub(super) fn note(&mut self, name: &StreamName, at: Position, previous: Option<Previous>, now: Moment) {
        let stream = self.streams.entry(name.clone()).or_insert_with(|| StreamState::new(now));
        // Another publisher may send again what was sent already.
        if !stream.is_news(at, previous) {
            return;
        }
        // Who begins an epoch says which one was before it, even to those who never saw that.
        let before = match previous {
            Some(Previous::Reset { after }) => Some(after.epoch),
            _ => None,
        };
        let head = stream.head.map(|head| head.epoch);
        for left in [head, before].into_iter().flatten().filter(|left| *left != at.epoch) {
            stream.left.leave(left);
        }
        stream.head = Some(at);
        stream.tell_from(name, now, &mut self.quiet);
    }

    /// Notes that another publisher knows of a position. Only a better rank counts: so among those who know, the best
    /// ranked tells it.
    pub(super) fn heard(
        &mut self,
        me: PublisherKey,
        publisher: PublisherKey,
        name: &StreamName,
        at: Position,
    ) {
        let Some(stream) = self.streams.get_mut(name) else { return };
        let lane = stream.source.and_then(|source| self.lanes.get(&source));
        if lane.is_some_and(|lane| lane.ranks_before(publisher, me)) {
            let older = |known: Position| known.epoch != at.epoch || known.sequence < at.sequence;
            if stream.heard.is_none_or(older) {
                stream.heard = Some(at);
            }
        }
    }

    /// Begins anew to tell the heads of a source's streams, as if their last events had been at `since`.
    pub(super) fn tell_again(&mut self, source: SourceId, since: Moment) {
        for (name, stream) in &mut self.streams {
            if stream.source == Some(source) && stream.head.is_some() {
                stream.tell_from(name, since, &mut self.quiet);
            }
        }
        // Those that are listed for later are to be looked at now.
        let later: Vec<_> = self.quiet.iter().filter(|(at, _)| *at > since).cloned().collect();
        for entry in later {
            self.quiet.remove(&entry);
            self.quiet.insert((since, entry.1));
        }
    }

    /// Keeps the list of topics with heads to tell.
    pub(super) fn schedule(&mut self, topic: &Topic, head_due: &mut BTreeSet<(Moment, Topic)>) {
        let next = self.quiet.first().map(|(at, _)| *at);
        if next != self.scheduled {
            if let Some(before) = self.scheduled {
                head_due.remove(&(before, topic.clone()));
            }
            head_due.extend(next.map(|at| (at, topic.clone())));
            self.scheduled = next;
        }
    }

    /// The heads to tell now. Those of lanes that others lead count as told, but for what no better rank seems to know: a leader
    /// that started without a state has not read what was before.
    pub(super) fn due_heads(
        &mut self,
        me: PublisherKey,
        now: Moment,
        every: Duration,
    ) -> Vec<(StreamName, Position)> {
        let soon = now + HEAD_SLACK.min(every / 2);
        let mut heads = Vec::new();
        while heads.len() < MAX_BATCH_HEADS {
            let Some((_, name)) = self.quiet.first().filter(|(at, _)| *at <= soon).cloned() else { break };
            self.quiet.pop_first();
            let Some(stream) = self.streams.get_mut(&name) else { continue };
            let due = stream.since + telling(every, stream.told);
            if due > soon {
                // It has had an event meanwhile.
                self.quiet.insert((due, name));
                continue;
            }
            let lane = stream.source.and_then(|source| self.lanes.get(&source));
            let ranks = lane.is_some_and(|lane| lane.order.contains(&me));
            if lane.is_some_and(|lane| lane.leads(me)) || ranks && !stream.is_heard() {
                heads.extend(stream.head.map(|head| (name.clone(), head)));
            }
            stream.told += 1;
            stream.listed = stream.told < TELLINGS;
            if stream.listed {
                self.quiet.insert((stream.since + telling(every, stream.told), name));
            }
        }
        heads
    }
}

/// How long after its last event a stream's head is told for the (n+1)th time: 1, 3, 7, 15 … times `every`.
fn telling(every: Duration, told: u8) -> Duration {
    every * ((2 << told.min(TELLINGS)) - 1)
}

impl Lane {
    /// Whether a peer is ranked better than this one.
    pub(super) fn ranks_before(&self, peer: PublisherKey, me: PublisherKey) -> bool {
        self.order.iter().take_while(|key| **key != me).any(|key| *key == peer)
    }

    pub(super) fn leads(&self, me: PublisherKey) -> bool {
        self.took_over || self.order.first() == Some(&me)
    }

    /// The next events, sequenced by `until`, that go into one batch.
    pub(super) fn portion(&mut self, until: Moment) -> Option<Vec<Event>> {
        let mut bytes = 0;
        let mut count = 0;
        for (sequenced, event) in &self.unpublished {
            if *sequenced > until || count == BATCH_EVENTS || bytes >= BATCH_BYTES {
                break;
            }
            bytes += event.bytes();
            count += 1;
        }
        (count > 0).then(|| self.unpublished.drain(..count).map(|(_, event)| event).collect())
    }
}

impl StreamState {
    fn new(now: Moment) -> Self {
        Self {
            source: None,
            head: None,
            left: LeftEpochs::default(),
            own: None,
            heard: None,
            since: now,
            told: 0,
            listed: false,
        }
    }

    /// Begins to tell the head, as if the last event had been at `since`.
    fn tell_from(&mut self, name: &StreamName, since: Moment, quiet: &mut BTreeSet<(Moment, StreamName)>) {
        (self.since, self.told) = (since, 0);
        if !self.listed {
            self.listed = true;
            quiet.insert((since, name.clone()));
        }
    }

    /// Whether a better rank knows of the head.
    fn is_heard(&self) -> bool {
        let passes =
            |head: Position, heard: Position| heard.epoch == head.epoch && heard.sequence >= head.sequence;
        self.head.is_none_or(|head| self.heard.is_some_and(|heard| passes(head, heard)))
    }

    /// Whether this event need not be published any more.
    pub(super) fn covers(&self, event: &Event) -> bool {
        let passed = |head: Position| head.epoch == event.epoch && head.sequence >= event.sequence;
        self.head.is_some_and(passed) || self.left.contains(event.epoch)
    }

    /// Whether a position is further than the head. Of two epochs, which is the newer is known by the order in which this
    /// peer read them, and by an event that says which epoch it follows; a publisher that fell behind goes on in an old
    /// one, and must not turn the stream back.
    fn is_news(&self, at: Position, previous: Option<Previous>) -> bool {
        let Some(head) = self.head else { return true };
        if head.epoch == at.epoch {
            return at.sequence > head.sequence;
        }
        if self.left.contains(at.epoch) {
            return false;
        }
        let follows = matches!(previous, Some(Previous::Reset { after }) if after.epoch == head.epoch);
        follows || self.own.is_none_or(|own| own == at.epoch)
    }
}
