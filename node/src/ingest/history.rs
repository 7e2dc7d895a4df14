//! What this peer has made of the log lately: the events themselves, stream by stream, bounded by bytes and age. Feeds are
//! served from it.
//!
//! It holds what the peer sequenced, not what went over gossip: every ingest peer makes the same events, so a follower's
//! history is complete even where gossip lost a batch, and it goes on without a seam when the follower leads.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use slab::Slab;
use tickmesh_protocol::{
    Event, Moment, Position, StreamName, Topic,
    history::{After, StreamHistory},
};
use tokio::sync::Notify;

use crate::ports::Followed;

/// What an event costs beside its data and names.
const EVENT_BYTES: usize = 96;

/// Most events given at once; the receiver decodes them at once.
const MAX_PAGE_EVENTS: usize = 512;

/// The events of the last minutes. Shared between the ingest thread, which writes, and feeds, which read; the lock is held
/// for one page at most.
#[derive(Debug)]
pub(super) struct History(Mutex<Ring>);

#[derive(Debug)]
struct Ring {
    max_bytes: usize,
    max_age: Duration,
    bytes: usize,
    /// Events kept so far: the order in which they came.
    arrived: u64,
    /// The stream of each event held, in the order in which they came.
    order: VecDeque<(Moment, usize)>,
    names: HashMap<StreamName, usize>,
    streams: Vec<Stream>,
    topic_names: HashMap<Topic, usize>,
    topics: Vec<TopicStreams>,
    /// Topics with something new that their feeds have not been told.
    changed: HashSet<usize>,
    /// Who follows streams one by one.
    followers: Slab<Follower>,
    /// Followers with something new that they have not been told.
    followed: BTreeSet<usize>,
}

/// A reader of many streams, most of them quiet.
#[derive(Debug, Default)]
struct Follower {
    streams: HashMap<usize, Following>,
    /// Streams with something new: of those whose events it gets, and of the others.
    pushed: BTreeSet<usize>,
    told: BTreeSet<usize>,
    notify: Arc<Notify>,
}

#[derive(Clone, Copy, Debug)]
struct Following {
    push: bool,
    /// What it has been given.
    at: Option<Position>,
}

#[derive(Debug)]
struct Stream {
    name: StreamName,
    topic: usize,
    history: StreamHistory,
    followers: Vec<usize>,
}

#[derive(Debug, Default)]
struct TopicStreams {
    streams: Vec<usize>,
    notify: Arc<Notify>,
}

/// Events of some streams in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) events: Vec<Event>,
    /// Nothing was left out.
    pub(super) complete: bool,
}

impl History {
    pub(super) fn new(max_bytes: usize, max_age: Duration) -> Self {
        Self(Mutex::new(Ring {
            max_bytes,
            max_age,
            bytes: 0,
            arrived: 0,
            order: VecDeque::new(),
            names: HashMap::new(),
            streams: Vec::new(),
            topic_names: HashMap::new(),
            topics: Vec::new(),
            changed: HashSet::new(),
            followers: Slab::new(),
            followed: BTreeSet::new(),
        }))
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // No code panics while it holds the lock; if it did, what is in the ring would still be true.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps an event that was just sequenced.
    pub(super) fn keep(&self, event: Event, now: Moment) {
        self.ring().keep(event, now);
    }

    /// A stream stands here, by what a checkpoint kept.
    pub(super) fn restore(&self, name: &StreamName, last: Position) {
        let mut ring = self.ring();
        let at = ring.stream(name);
        ring.streams[at].history.restore(last);
    }

    /// Tells feeds what was kept since the last call.
    pub(super) fn tell(&self) {
        let mut ring = self.ring();
        let ring = &mut *ring;
        for topic in ring.changed.drain() {
            ring.topics[topic].notify.notify_waiters();
        }
        for id in std::mem::take(&mut ring.followed) {
            if let Some(follower) = ring.followers.get(id) {
                follower.notify.notify_one();
            }
        }
    }

    /// A new follower: its id, and what it is notified by.
    pub(super) fn begin_following(&self) -> (usize, Arc<Notify>) {
        let mut ring = self.ring();
        let follower = Follower::default();
        let notify = Arc::clone(&follower.notify);
        (ring.followers.insert(follower), notify)
    }

    pub(super) fn end_following(&self, id: usize) {
        let mut ring = self.ring();
        let Some(follower) = ring.followers.try_remove(id) else { return };
        for at in follower.streams.into_keys() {
            ring.streams[at].followers.retain(|follower| *follower != id);
        }
    }

    /// Follows a stream from where it stands.
    pub(super) fn follow(&self, id: usize, name: &StreamName, push: bool) -> Option<Position> {
        let mut ring = self.ring();
        let at = ring.stream(name);
        let head = ring.streams[at].history.head();
        let ring = &mut *ring;
        let Some(follower) = ring.followers.get_mut(id) else { return head };
        if follower.streams.insert(at, Following { push, at: head }).is_none() {
            ring.streams[at].followers.push(id);
        }
        follower.pushed.remove(&at);
        follower.told.remove(&at);
        head
    }

    pub(super) fn unfollow(&self, id: usize, name: &StreamName) {
        let mut ring = self.ring();
        let ring = &mut *ring;
        let (Some(at), Some(follower)) = (ring.names.get(name).copied(), ring.followers.get_mut(id)) else {
            return;
        };
        follower.streams.remove(&at);
        follower.pushed.remove(&at);
        follower.told.remove(&at);
        ring.streams[at].followers.retain(|follower| *follower != id);
    }

    /// What has come about for a follower, of about so many bytes.
    pub(super) fn take_followed(&self, id: usize, bytes: usize) -> Followed {
        self.ring().take_followed(id, bytes)
    }

    /// Where streams stand that a follower is not given the events of, if they have changed.
    pub(super) fn take_heads(&self, id: usize, most: usize) -> Vec<(StreamName, Option<Position>)> {
        let mut ring = self.ring();
        let Ring { followers, streams, .. } = &mut *ring;
        let Some(follower) = followers.get_mut(id) else { return Vec::new() };
        let mut heads = Vec::new();
        while heads.len() < most
            && let Some(at) = follower.told.pop_first()
        {
            heads.push((streams[at].name.clone(), streams[at].history.head()));
        }
        heads
    }

    /// Tells the feeds of a topic to look again.
    pub(super) fn wake(&self, topic: &Topic) {
        self.notify(topic).notify_waiters();
    }

    /// What is notified when a topic has something new. A topic that does not exist yet is as good as any other.
    pub(super) fn notify(&self, topic: &Topic) -> Arc<Notify> {
        let mut ring = self.ring();
        let at = ring.topic(topic);
        Arc::clone(&ring.topics[at].notify)
    }

    /// The streams of a topic that are known here.
    pub(super) fn streams(&self, topic: &Topic) -> Vec<StreamName> {
        let ring = self.ring();
        let streams = ring.topic_names.get(topic).map_or(&[][..], |at| &ring.topics[*at].streams);
        streams.iter().map(|at| ring.streams[*at].name.clone()).collect()
    }

    /// Whether what follows a position is held; without one, what is the oldest.
    pub(super) fn after(&self, name: &StreamName, position: Option<Position>) -> After {
        let ring = self.ring();
        ring.names.get(name).map_or(After::Unknown, |at| ring.streams[*at].history.after(position))
    }

    /// Events of streams after positions, oldest first, of about so many bytes. All must be held ([`After::All`]).
    pub(super) fn page(&self, wanted: &[(StreamName, Option<Position>)], bytes: usize) -> Page {
        self.ring().page(wanted, bytes)
    }

    /// Bytes held, and events.
    pub(super) fn size(&self) -> (usize, usize) {
        let ring = self.ring();
        (ring.bytes, ring.order.len())
    }
}

impl Ring {
    fn stream(&mut self, name: &StreamName) -> usize {
        if let Some(at) = self.names.get(name) {
            return *at;
        }
        let at = self.streams.len();
        let topic = self.topic(&Topic::spanning(name));
        self.streams.push(Stream {
            name: name.clone(),
            topic,
            history: StreamHistory::default(),
            followers: Vec::new(),
        });
        self.names.insert(name.clone(), at);
        self.topics[topic].streams.push(at);
        at
    }

    fn topic(&mut self, name: &Topic) -> usize {
        if let Some(at) = self.topic_names.get(name) {
            return *at;
        }
        let at = self.topics.len();
        self.topics.push(TopicStreams::default());
        self.topic_names.insert(name.clone(), at);
        at
    }

    fn keep(&mut self, event: Event, now: Moment) {
        let at = self.stream(&event.stream);
        self.changed.insert(self.streams[at].topic);
        for id in &self.streams[at].followers {
            let Some(follower) = self.followers.get_mut(*id) else { continue };
            if follower.streams.get(&at).is_some_and(|following| following.push) {
                follower.pushed.insert(at);
                self.followed.insert(*id);
            } else {
                follower.told.insert(at);
            }
        }
        self.bytes += cost(&event);
        self.arrived += 1;
        self.order.push_back((now, at));
        self.streams[at].history.keep(self.arrived, event);
        while let Some((kept, at)) = self.order.front().copied() {
            if self.bytes <= self.max_bytes && now.since(kept) <= self.max_age {
                break;
            }
            self.order.pop_front();
            // Each stream's events are in the order as a whole, so the oldest of all is the oldest of its stream.
            if let Some(event) = self.streams[at].history.drop_oldest() {
                self.bytes -= cost(&event);
            }
        }
    }

    fn take_followed(&mut self, id: usize, bytes: usize) -> Followed {
        let mut followed = Followed::default();
        let Some(follower) = self.followers.get_mut(id) else { return followed };
        let mut size = 0;
        while size < bytes
            && followed.events.len() < MAX_PAGE_EVENTS
            && let Some(at) = follower.pushed.first().copied()
        {
            let (stream, Some(following)) = (&self.streams[at], follower.streams.get_mut(&at)) else {
                follower.pushed.pop_first();
                continue;
            };
            if !matches!(stream.history.after(following.at), After::All { .. }) {
                // It is told where the stream stands, and fetches what it has missed.
                following.at = stream.history.head();
                followed.heads.push((stream.name.clone(), following.at));
            }
            let mut more = false;
            for event in stream.history.events_after(following.at) {
                more = size >= bytes || followed.events.len() == MAX_PAGE_EVENTS;
                if more {
                    break;
                }
                size += cost(event);
                following.at = Some(event.position());
                followed.events.push(event.clone());
            }
            if !more {
                follower.pushed.pop_first();
            }
        }
        followed
    }

    fn page(&self, wanted: &[(StreamName, Option<Position>)], bytes: usize) -> Page {
        let mut next = BinaryHeap::new();
        for (name, after) in wanted {
            let Some(at) = self.names.get(name).copied() else { continue };
            let first = self.streams[at].history.index_after(*after);
            if let Some((arrived, _)) = self.streams[at].history.get(first) {
                next.push(Reverse((*arrived, at, first)));
            }
        }
        let mut page = Page { events: Vec::new(), complete: true };
        let mut size = 0;
        while let Some(Reverse((_, at, index))) = next.pop() {
            if size >= bytes || page.events.len() == MAX_PAGE_EVENTS {
                page.complete = false;
                break;
            }
            let Some((_, event)) = self.streams[at].history.get(index) else { continue };
            size += cost(event);
            page.events.push(event.clone());
            if let Some((arrived, _)) = self.streams[at].history.get(index + 1) {
                next.push(Reverse((*arrived, at, index + 1)));
            }
        }
        page
    }
}

fn cost(event: &Event) -> usize {
    event.bytes() + EVENT_BYTES
}

#[cfg(test)]
mod tests {
    use tickmesh_protocol::{Epoch, Previous, Sequence, sequencer::Sequencer};

    use super::*;

    fn at(epoch: u64, sequence: u64) -> Position {
        Position { epoch: Epoch::from_u64(epoch), sequence: Sequence::new(sequence).unwrap() }
    }

    fn name(name: &str) -> StreamName {
        name.parse().unwrap()
    }

    fn seconds(n: u64) -> Moment {
        Moment::after(Duration::from_secs(n))
    }

    /// A history that has kept these records of (stream, epoch, position), one each second.
    fn history(max_bytes: usize, records: &[(&str, u64, u64)]) -> History {
        let history = History::new(max_bytes, Duration::from_secs(1000));
        let mut sequencer = Sequencer::default();
        for (second, (stream, epoch, position)) in (0..).zip(records) {
            let (stream, epoch) = (name(stream), Epoch::from_u64(*epoch));
            sequencer.begin(epoch, Sequence::ZERO, true);
            let (sequence, previous) = sequencer.next(&stream, epoch, *position).unwrap();
            let data = vec![b'1'; 100].into();
            history.keep(
                Event { stream, epoch, sequence, previous, engine_time_us: 0, data, signature: None },
                seconds(second),
            );
        }
        history
    }

    fn page(history: &History, wanted: &[(&str, Option<Position>)], bytes: usize) -> (Vec<u64>, bool) {
        let wanted: Vec<_> = wanted.iter().map(|(stream, after)| (name(stream), *after)).collect();
        let page = history.page(&wanted, bytes);
        (page.events.iter().map(|event| event.sequence.get()).collect(), page.complete)
    }

    #[test]
    fn pages_hold_what_follows_in_the_order_in_which_it_came() {
        let history = history(1 << 20, &[("t.a", 1, 1), ("t.b", 1, 2), ("t.a", 1, 4), ("t.b", 1, 5)]);
        assert_eq!(page(&history, &[("t.a", None), ("t.b", None)], 10_000), (vec![1, 2, 4, 5], true));
        assert_eq!(
            page(&history, &[("t.a", Some(at(1, 1))), ("t.b", Some(at(1, 3)))], 10_000),
            (vec![4, 5], true)
        );
        assert_eq!(page(&history, &[("t.a", None), ("t.b", None)], 200), (vec![1, 2], false));
        assert_eq!(history.after(&name("t.a"), Some(at(1, 1))), After::All { head: Some(at(1, 4)) });
        assert_eq!(history.after(&name("t.a"), Some(at(1, 9))), After::All { head: Some(at(1, 4)) });
        assert_eq!(history.after(&name("t.c"), None), After::Unknown);
    }

    /// Found by the model: an edge that was told "the oldest I have is 4, the first of its epoch" asked after 3 for ever.
    #[test]
    fn the_first_of_an_epoch_follows_the_number_before_it() {
        let history = history(1 << 20, &[("t.a", 1, 7), ("t.a", 2, 4)]);
        assert_eq!(history.after(&name("t.a"), Some(at(2, 3))), After::All { head: Some(at(2, 4)) });
    }

    #[test]
    fn what_was_dropped_is_said() {
        let records: Vec<_> = (1..=100).map(|n| ("t.a", 1, n)).collect();
        let history = history(10 * (100 + EVENT_BYTES), &records);
        assert_eq!(history.size().1, 10);
        let head = Some(at(1, 100));
        assert_eq!(history.after(&name("t.a"), Some(at(1, 90))), After::All { head });
        assert_eq!(history.after(&name("t.a"), Some(at(1, 89))), After::From(at(1, 91)));
        assert_eq!(history.after(&name("t.a"), None), After::All { head });
    }

    #[test]
    fn what_is_too_old_is_dropped_but_known() {
        let history = history(1 << 20, &[("t.a", 1, 1), ("t.a", 1, 2)]);
        history.keep(
            Event {
                stream: name("t.b"),
                epoch: Epoch::from_u64(1),
                sequence: Sequence::new(3).unwrap(),
                previous: Previous::Unknown { read_from: Sequence::ZERO },
                engine_time_us: 0,
                data: "1".into(),
                signature: None,
            },
            seconds(5000),
        );
        assert_eq!(history.size().1, 1);
        assert_eq!(history.after(&name("t.a"), Some(at(1, 2))), After::All { head: Some(at(1, 2)) });
        assert_eq!(history.after(&name("t.a"), Some(at(1, 1))), After::From(at(1, 2)));
        assert_eq!(history.after(&name("t.a"), None), After::From(at(1, 2)));
    }

    #[test]
    fn epochs_follow_one_another() {
        let history = history(1 << 20, &[("t.a", 1, 7), ("t.a", 1, 9), ("t.a", 2, 0), ("t.a", 2, 8)]);
        let wanted = |position| page(&history, &[("t.a", Some(position))], 10_000).0;
        assert_eq!(wanted(at(1, 7)), [9, 0, 8]);
        assert_eq!(wanted(at(1, 9)), [0, 8]);
        assert_eq!(wanted(at(2, 0)), [8]);
        let head = Some(at(2, 8));
        assert_eq!(history.after(&name("t.a"), Some(at(1, 9))), After::All { head });
        assert_eq!(history.after(&name("t.a"), Some(at(2, 8))), After::All { head });
        assert_eq!(
            history.after(&name("t.a"), Some(at(3, 1))),
            After::From(at(1, 7)),
            "an epoch nobody knows"
        );
    }

    #[test]
    fn a_follower_is_given_what_comes_after_where_it_began_and_each_event_once() {
        let history = history(1 << 20, &[("orders.a", 1, 1), ("orders.b", 1, 2)]);
        let (id, _) = history.begin_following();
        assert_eq!(history.follow(id, &name("orders.a"), true), Some(at(1, 1)));
        assert_eq!(history.follow(id, &name("orders.b"), false), Some(at(1, 2)));
        assert_eq!(history.follow(id, &name("orders.c"), true), None);
        let keep = |stream: &str, sequence: u64| {
            let previous = Previous::Unknown { read_from: Sequence::ZERO };
            history.keep(
                Event {
                    stream: name(stream),
                    epoch: Epoch::from_u64(1),
                    sequence: Sequence::new(sequence).unwrap(),
                    previous,
                    engine_time_us: 0,
                    data: "1".into(),
                    signature: None,
                },
                seconds(0),
            );
        };
        let taken = |bytes| {
            let followed = history.take_followed(id, bytes);
            let events = followed.events.iter();
            events.map(|event| (event.stream.to_string(), event.sequence.get())).collect::<Vec<_>>()
        };
        for (sequence, stream) in (3..).zip(["orders.a", "orders.b", "orders.c", "orders.a", "orders.d"]) {
            keep(stream, sequence);
        }
        assert_eq!(taken(1), [("orders.a".to_owned(), 3)], "in portions");
        assert_eq!(taken(1000), [("orders.a".to_owned(), 6), ("orders.c".to_owned(), 5)]);
        assert_eq!(taken(1000), []);
        assert_eq!(history.take_heads(id, 10), [(name("orders.b"), Some(at(1, 4)))]);
        assert_eq!(history.take_heads(id, 10), []);
        assert_eq!(history.follow(id, &name("orders.b"), true), Some(at(1, 4)));
        history.unfollow(id, &name("orders.a"));
        keep("orders.a", 8);
        keep("orders.b", 9);
        assert_eq!(taken(1000), [("orders.b".to_owned(), 9)]);
        history.end_following(id);
        keep("orders.b", 10);
        assert_eq!(taken(1000), []);
    }

    #[test]
    fn a_restored_stream_is_known_up_to_its_head() {
        let history = history(1 << 20, &[]);
        history.restore(&name("t.a"), at(1, 7));
        assert_eq!(history.after(&name("t.a"), Some(at(1, 7))), After::All { head: Some(at(1, 7)) });
        assert_eq!(history.after(&name("t.a"), Some(at(1, 6))), After::From(at(1, 7)));
        assert_eq!(history.streams(&Topic::spanning(&name("t.a"))), [name("t.a")]);
    }
}
