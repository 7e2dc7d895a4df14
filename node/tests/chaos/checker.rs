//! What one client may see: every event of its streams, once, in order, linked. Pure.
//!
//! The records of each stream are numbered 0, 1, 2, ... in their `data`, so the checker needs neither the log nor the
//! edge's word: a number that is passed over is lost, one that comes again is doubled. Sequences and `previous` are
//! checked besides, because they are what a client has.

use std::{collections::HashMap, ops::Range};

/// Faults that are told in words; the rest is only counted.
const STORIES: usize = 20;

/// The streams of one client, through all its connections.
#[derive(Debug)]
pub struct Checker {
    streams: HashMap<String, Stream>,
    found: Findings,
}

/// What was wrong; all zero if nothing was.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    pub received: u64,
    /// Numbers passed over that have not come since.
    pub lost: u64,
    pub doubled: u64,
    /// Came after one that follows them.
    pub reordered: u64,
    /// `previous` was not the event before, or the first event not the one after the confirmed position.
    pub unlinked: u64,
    /// Data before `subscribed`, messages that nobody sends, resets although no log was replaced.
    pub odd: u64,
    /// The first faults, in words.
    pub stories: Vec<String>,
}

#[derive(Debug, Default)]
struct Stream {
    link: Link,
    /// The number that follows the highest seen.
    next: u64,
    missing: Vec<Range<u64>>,
}

/// What the next event of a stream must follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Link {
    /// Not subscribed on this connection.
    #[default]
    None,
    /// Confirmed while the stream had no event: the next is its very first.
    Start,
    /// Confirmed at this sequence.
    Joined(u64),
    /// The last event had this sequence.
    Last(u64),
}

/// One event as a client receives it.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    pub stream: &'a str,
    pub sequence: u64,
    pub previous: Option<u64>,
    /// The running number that the producer wrote.
    pub number: u64,
}

impl Checker {
    pub fn new(streams: &[String]) -> Self {
        let streams = streams.iter().map(|stream| (stream.clone(), Stream::default())).collect();
        Self { streams, found: Findings::default() }
    }

    /// A new connection: what it does not see between the last one and its subscriptions is not lost.
    pub fn connected(&mut self) {
        for stream in self.streams.values_mut() {
            stream.link = Link::None;
        }
    }

    /// A subscription was confirmed.
    pub fn subscribed(&mut self, stream: &str, position: Option<u64>) {
        match self.streams.get_mut(stream) {
            Some(known) if known.link == Link::None => {
                known.link = position.map_or(Link::Start, Link::Joined);
            }
            _ => self.odd(format!("{stream}: confirmed again, at {position:?}")),
        }
    }

    /// The last sequence of a stream that is or was subscribed, if it has had any.
    pub fn last(&self, stream: &str) -> Option<Option<u64>> {
        match self.streams.get(stream)?.link {
            Link::None => None,
            Link::Start => Some(None),
            Link::Joined(last) | Link::Last(last) => Some(Some(last)),
        }
    }

    pub fn take(&mut self, event: Event<'_>) {
        self.found.received += 1;
        let Some(stream) = self.streams.get_mut(event.stream) else {
            return self.odd(format!("a stream nobody asked for: {event:?}"));
        };
        let Event { sequence, previous, number, .. } = event;
        let (link, next) = (stream.link, stream.next);
        if let Link::Last(last) = link
            && sequence <= last
        {
            // It does not move the stream: what follows is judged by the highest.
            if stream.found_missing(number) {
                self.found.reordered += 1;
                return self.tell(format!("out of order after {last}, number {next} was next: {event:?}"));
            }
            self.found.doubled += 1;
            return self.tell(format!("doubled after {last}, number {next} was next: {event:?}"));
        }
        stream.link = Link::Last(sequence);
        let (linked, from) = match link {
            Link::None => {
                stream.next = number + 1;
                return self.odd(format!("data before subscribed: {event:?}"));
            }
            Link::Start => (previous.is_none(), 0),
            // Which number follows the position is known to nobody but the log: the link must do.
            Link::Joined(position) => (previous == Some(position), number),
            Link::Last(last) => (previous == Some(last), next),
        };
        stream.next = number + 1;
        if number > from {
            stream.missing.push(from..number);
        }
        if number < from {
            self.found.doubled += 1;
            self.tell(format!("number {from} was next: {event:?}"));
        } else if number > from {
            self.tell(format!("{} lost, number {from} was next: {event:?}", number - from));
        }
        if !linked {
            self.found.unlinked += 1;
            self.tell(format!("not linked to {link:?}: {event:?}"));
        }
    }

    /// Something that no edge says here.
    pub fn odd(&mut self, what: String) {
        self.found.odd += 1;
        self.tell(what);
    }

    /// What was found so far.
    pub fn findings(&self) -> Findings {
        let missing = self.streams.values().flat_map(|stream| &stream.missing);
        Findings { lost: missing.map(|range| range.end - range.start).sum(), ..self.found.clone() }
    }

    /// The number that follows the last one seen of a stream; 0 before the first.
    pub fn next(&self, stream: &str) -> u64 {
        self.streams.get(stream).map_or(0, |stream| stream.next)
    }

    fn tell(&mut self, story: String) {
        if self.found.stories.len() < STORIES {
            self.found.stories.push(story);
        }
    }
}

impl Stream {
    /// Whether a number was missing; then it no longer is.
    fn found_missing(&mut self, number: u64) -> bool {
        let Some(index) = self.missing.iter().position(|range| range.contains(&number)) else { return false };
        let range = self.missing.swap_remove(index);
        let parts = [range.start..number, number + 1..range.end];
        self.missing.extend(parts.into_iter().filter(|part| !part.is_empty()));
        true
    }
}

impl Findings {
    /// Adds what another was found to have since an earlier look at it.
    pub fn add_since(&mut self, now: &Self, before: &Self) {
        self.received += now.received - before.received;
        // What was lost may have come since, out of order.
        self.lost += now.lost.saturating_sub(before.lost);
        self.doubled += now.doubled - before.doubled;
        self.reordered += now.reordered - before.reordered;
        self.unlinked += now.unlinked - before.unlinked;
        self.odd += now.odd - before.odd;
        self.stories.extend_from_slice(&now.stories[before.stories.len()..]);
    }

    /// Everything that is wrong, counted.
    pub fn faults(&self) -> u64 {
        self.lost + self.doubled + self.reordered + self.unlinked + self.odd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "trades.a";

    /// A checker that was confirmed at sequence 70, and saw numbers 7 and 8.
    fn joined() -> Checker {
        let mut checker = Checker::new(&[STREAM.into()]);
        checker.connected();
        checker.subscribed(STREAM, Some(60));
        give(&mut checker, &[(70, 60, 7), (80, 70, 8)]);
        assert_eq!(checker.findings().faults(), 0);
        checker
    }

    fn give(checker: &mut Checker, events: &[(u64, u64, u64)]) {
        for (sequence, previous, number) in events {
            let (sequence, previous, number) = (*sequence, Some(*previous), *number);
            checker.take(Event { stream: STREAM, sequence, previous, number });
        }
    }

    /// `[lost, doubled, reordered, unlinked, odd]` after further events.
    fn found(events: &[(u64, u64, u64)]) -> [u64; 5] {
        let mut checker = joined();
        give(&mut checker, events);
        counts(&checker)
    }

    fn counts(checker: &Checker) -> [u64; 5] {
        let found = checker.findings();
        assert_eq!(found.stories.is_empty(), found.faults() == 0, "{found:?}");
        [found.lost, found.doubled, found.reordered, found.unlinked, found.odd]
    }

    #[test]
    fn events_in_order_are_right() {
        assert_eq!(found(&[(90, 80, 9), (91, 90, 10)]), [0; 5]);
        let mut checker = joined();
        give(&mut checker, &[(90, 80, 9)]);
        assert_eq!((checker.next(STREAM), checker.findings().received), (10, 3));
    }

    #[test]
    fn what_is_passed_over_is_lost_even_if_it_is_said_to_be_linked() {
        assert_eq!(found(&[(110, 100, 11)]), [2, 0, 0, 1, 0]);
        assert_eq!(found(&[(110, 80, 11)]), [2, 0, 0, 0, 0]);
    }

    #[test]
    fn what_comes_again_is_doubled_whatever_its_sequence() {
        assert_eq!(found(&[(80, 70, 8)]), [0, 1, 0, 0, 0]);
        assert_eq!(found(&[(70, 60, 7), (80, 70, 8), (90, 80, 9)]), [0, 2, 0, 0, 0]);
        assert_eq!(found(&[(90, 80, 8)]), [0, 1, 0, 0, 0]);
    }

    #[test]
    fn what_comes_late_is_out_of_order_and_not_lost() {
        assert_eq!(found(&[(120, 110, 12), (100, 90, 10), (130, 120, 13)]), [2, 0, 1, 1, 0]);
        assert_eq!(found(&[(100, 90, 10), (90, 80, 9), (90, 80, 9)]), [0, 1, 1, 1, 0]);
    }

    #[test]
    fn a_link_that_is_wrong_is_found_though_the_numbers_are_right() {
        assert_eq!(found(&[(90, 79, 9)]), [0, 0, 0, 1, 0]);
        let mut checker = joined();
        checker.take(Event { stream: STREAM, sequence: 90, previous: None, number: 9 });
        assert_eq!(counts(&checker), [0, 0, 0, 1, 0]);
    }

    #[test]
    fn the_first_event_must_follow_the_confirmed_position() {
        let mut checker = joined();
        checker.connected();
        checker.subscribed(STREAM, Some(200));
        give(&mut checker, &[(220, 210, 22)]);
        assert_eq!(counts(&checker), [0, 0, 0, 1, 0]);
    }

    #[test]
    fn a_stream_without_events_begins_with_its_first() {
        let mut checker = Checker::new(&[STREAM.into()]);
        checker.subscribed(STREAM, None);
        checker.take(Event { stream: STREAM, sequence: 3, previous: None, number: 0 });
        assert_eq!(counts(&checker), [0; 5]);
        let mut checker = Checker::new(&[STREAM.into()]);
        checker.subscribed(STREAM, None);
        give(&mut checker, &[(9, 8, 2)]);
        assert_eq!(counts(&checker), [2, 0, 0, 1, 0]);
    }

    #[test]
    fn what_happens_between_two_connections_is_not_lost_but_what_was_before_stays_so() {
        let mut checker = joined();
        give(&mut checker, &[(110, 80, 11)]);
        checker.connected();
        checker.subscribed(STREAM, Some(200));
        give(&mut checker, &[(210, 200, 21)]);
        assert_eq!(counts(&checker), [2, 0, 0, 0, 0]);
        assert_eq!(checker.next(STREAM), 22);
    }

    #[test]
    fn data_that_nobody_asked_for_is_odd() {
        let mut checker = joined();
        checker.connected();
        give(&mut checker, &[(90, 80, 9)]);
        checker.take(Event { stream: "trades.b", sequence: 1, previous: None, number: 0 });
        assert_eq!(counts(&checker), [0, 0, 0, 0, 2]);
    }
}
