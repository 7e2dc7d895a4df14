//! Events of one stream that wait: for its head while it is being joined, or for what is missing before them.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{MAX_HELD_BYTES, MAX_HELD_EVENTS, Output, Received, deliver};
use crate::{
    Epoch, Event, Position, Sequence,
    link::{Link, Verdict},
};

/// Events that wait, by epoch in the order in which those were met, then by sequence.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    pub(super) epochs: Vec<(Epoch, BTreeMap<Sequence, Event>)>,
    pub(super) count: usize,
    bytes: usize,
}

impl Held {
    fn has_room(&self) -> bool {
        self.count < MAX_HELD_EVENTS && self.bytes < MAX_HELD_BYTES
    }

    fn insert(&mut self, event: &Event) -> bool {
        let at = match self.epochs.iter().position(|(epoch, _)| *epoch == event.epoch) {
            Some(at) => at,
            None => {
                self.epochs.push((event.epoch, BTreeMap::new()));
                self.epochs.len() - 1
            }
        };
        let events = &mut self.epochs[at].1;
        if events.contains_key(&event.sequence) {
            return false;
        }
        // A slice would keep the whole envelope it was cut from.
        let event = Event { data: Bytes::copy_from_slice(&event.data), ..event.clone() };
        self.count += 1;
        self.bytes += event.bytes();
        events.insert(event.sequence, event);
        true
    }

    fn take(&mut self, at: usize, sequence: Sequence) -> Option<Event> {
        let event = self.epochs.get_mut(at)?.1.remove(&sequence)?;
        self.count -= 1;
        self.bytes -= event.bytes();
        if self.epochs[at].1.is_empty() {
            self.epochs.remove(at);
        }
        Some(event)
    }

    fn first(&self, at: usize) -> Option<Sequence> {
        self.epochs.get(at)?.1.first_key_value().map(|(sequence, _)| *sequence)
    }

    /// Keeps an event; the oldest ones go when there are too many. For a stream whose position is not known yet.
    pub(super) fn keep_newest(&mut self, event: &Event) -> Received {
        if !self.insert(event) {
            return Received::Duplicate;
        }
        let mut received = Received::Held;
        while self.count > MAX_HELD_EVENTS || (self.bytes > MAX_HELD_BYTES && self.count > 1) {
            received = Received::Dropped;
            let Some(sequence) = self.first(0) else { break };
            self.take(0, sequence);
        }
        received
    }

    /// Keeps an event if there is room: the older ones are needed first.
    pub(super) fn keep_oldest(&mut self, event: &Event) -> Received {
        match (self.has_room(), self.contains(event)) {
            (_, true) => Received::Duplicate,
            (true, false) => {
                self.insert(event);
                Received::Held
            }
            (false, false) => Received::Dropped,
        }
    }

    fn contains(&self, event: &Event) -> bool {
        self.epochs
            .iter()
            .any(|(epoch, events)| *epoch == event.epoch && events.contains_key(&event.sequence))
    }

    /// Puts out everything that follows the stream's position now, and drops what is old.
    pub(super) fn release(&mut self, link: &mut Link, outputs: &mut Vec<Output>) {
        let mut at = 0;
        while let Some(sequence) = self.first(at) {
            let verdict = self.epochs[at].1.get(&sequence).map(|event| link.judge(event));
            match verdict {
                Some(Verdict::Gap { .. }) | None => at += 1,
                Some(Verdict::Duplicate) => {
                    self.take(at, sequence);
                }
                Some(verdict) => {
                    if let Some(event) = self.take(at, sequence) {
                        deliver(link, event, verdict, outputs);
                    }
                    // Another epoch may follow now.
                    at = 0;
                }
            }
        }
    }

    /// The oldest event of the stream's epoch, or else of the epoch that was met first.
    pub(super) fn oldest(&self, link: &Link) -> Option<Position> {
        let at = self.oldest_epoch(link);
        Some(Position { epoch: self.epochs.get(at)?.0, sequence: self.first(at)? })
    }

    /// Whether something held comes before an event of a feed.
    pub(super) fn has_older(&self, link: &Link, event: Position) -> bool {
        self.oldest(link).is_some_and(|held| {
            let of_this_epoch = link.last().is_some_and(|last| last.epoch == held.epoch);
            if held.epoch == event.epoch { held.sequence < event.sequence } else { of_this_epoch }
        })
    }

    /// Whether a server that stands at `head` has come to something held here.
    pub(super) fn is_reached_by(&self, head: Option<Position>) -> bool {
        let first = |events: &BTreeMap<Sequence, Event>| events.first_key_value().map(|(first, _)| *first);
        head.is_some_and(|head| {
            let of_epoch = self.epochs.iter().find(|(epoch, _)| *epoch == head.epoch);
            of_epoch.and_then(|(_, events)| first(events)).is_some_and(|first| first <= head.sequence)
        })
    }

    pub(super) fn pop_oldest(&mut self, link: &Link) -> Option<Event> {
        let at = self.oldest_epoch(link);
        let sequence = self.first(at)?;
        self.take(at, sequence)
    }

    fn oldest_epoch(&self, link: &Link) -> usize {
        let epoch = link.last().map(|last| last.epoch);
        self.epochs.iter().position(|(held, _)| Some(*held) == epoch).unwrap_or(0)
    }
}
