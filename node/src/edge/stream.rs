//! One stream at the hub: pure, so that every order of arrival can be tried.
//!
//! A stream is *idle* until somebody wants it, then *joining* until it is known where it stands. Events that arrive in this
//! time are held; those beyond its head are delivered after the confirmation. From then on it is *live*: an event that
//! follows the last one is delivered, one after a hole waits for a while for what is missing ([`super::early`]).

use std::collections::VecDeque;

use bytes::Bytes;
use tickmesh_protocol::{
    Epoch, Event, Position,
    link::{Link, Verdict},
};
use tokio::time::Instant;

use super::early::{Early, MAX_HELD_BYTES, MAX_HELD_EVENTS};

/// What is known about where a stream stands.
#[derive(Debug, Default)]
pub enum State {
    #[default]
    Idle,
    Joining(Held),
    Live(Live),
}

/// A stream that stands at a known position.
#[derive(Debug)]
pub struct Live {
    link: Link,
    /// What waits for something missing; most streams never have any.
    early: Option<Box<Early>>,
}

/// What is to be done with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    Deliver,
    /// Deliver it; something before it is missing.
    DeliverAfterGap,
    /// Tell the clients the new epoch, then deliver it.
    DeliverAfterReset(Epoch),
    Duplicate,
    /// Nobody wants it.
    Ignored,
    /// Kept until the head is known; so many older ones had to go.
    Held {
        dropped: u64,
    },
    /// Kept until what is missing before it has come, or has waited long enough: see [`State::next_early`].
    Early,
}

impl From<Verdict> for Received {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Next => Self::Deliver,
            Verdict::Gap { .. } => Self::DeliverAfterGap,
            Verdict::Reset { epoch } => Self::DeliverAfterReset(epoch),
            Verdict::Duplicate => Self::Duplicate,
        }
    }
}

/// Events of a stream that is being joined; the oldest go first when there are too many.
#[derive(Debug, Default)]
pub struct Held {
    events: VecDeque<Event>,
    bytes: usize,
}

impl State {
    /// Takes an event. Afterwards, and before an event of another epoch ([`State::leaves_epoch`]), ask for
    /// [`State::next_early`] until there is none.
    pub fn receive(&mut self, event: &Event, now: Instant) -> Received {
        match self {
            Self::Idle => Received::Ignored,
            Self::Joining(held) => Received::Held { dropped: held.push(event) },
            Self::Live(live) => match live.link.judge(event) {
                Verdict::Gap { .. } => {
                    let early = live.early.get_or_insert_with(|| Box::new(Early::new(event.epoch)));
                    if early.keep(event, now) { Received::Early } else { Received::Duplicate }
                }
                Verdict::Next | Verdict::Duplicate | Verdict::Reset { .. } => live.link.advance(event).into(),
            },
        }
    }

    /// Whether an event begins an epoch while others of the one before still wait: those go first.
    pub fn leaves_epoch(&self, event: &Event) -> bool {
        let early = self.early();
        early.is_some_and(|early| early.epoch() != event.epoch && !self.judges_old(event))
    }

    /// The next event that has waited and need not any longer, and what is to be done with it. With `all` none waits.
    pub fn next_early(&mut self, now: Instant, all: bool) -> Option<(Event, Received)> {
        let Self::Live(Live { link, early }) = self else { return None };
        let next = early.as_mut()?.next(link, now, all);
        if early.as_ref().is_some_and(|early| early.is_empty()) {
            *early = None;
        }
        next.map(|(event, verdict)| (event, verdict.into()))
    }

    /// Whether events wait for something missing.
    pub fn has_early(&self) -> bool {
        self.early().is_some()
    }

    fn early(&self) -> Option<&Early> {
        match self {
            Self::Live(live) => live.early.as_deref(),
            Self::Idle | Self::Joining(_) => None,
        }
    }

    fn judges_old(&self, event: &Event) -> bool {
        matches!(self, Self::Live(live) if live.link.judge(event) == Verdict::Duplicate)
    }

    /// Begins to hold events, because the head has been asked for. Whether it has to be asked for.
    pub fn join(&mut self) -> bool {
        let idle = matches!(self, Self::Idle);
        if idle {
            *self = Self::Joining(Held::default());
        }
        idle
    }

    /// The head could not be had.
    pub fn give_up(&mut self) {
        if matches!(self, Self::Joining(_)) {
            *self = Self::Idle;
        }
    }

    /// The stream stands at `head`. Returns what was held, to be received again, in order.
    ///
    /// Held events of other epochs that came before the first one of the head's epoch are left out: most likely they are
    /// late ones of an epoch that the stream has left, and taking one for the beginning of a new epoch would make
    /// everything after the head look old.
    pub fn go_live(&mut self, head: Option<Position>) -> VecDeque<Event> {
        let Self::Joining(held) = self else {
            // An answer that comes twice changes nothing.
            return VecDeque::new();
        };
        let mut events = std::mem::take(&mut held.events);
        if let Some(head) = head {
            while events.front().is_some_and(|event| event.epoch != head.epoch) {
                events.pop_front();
            }
        }
        *self = Self::Live(Live { link: Link::at(head), early: None });
        events
    }

    /// The position of a live stream.
    pub fn position(&self) -> Option<Position> {
        match self {
            Self::Idle | Self::Joining(_) => None,
            Self::Live(live) => live.link.last(),
        }
    }

    pub fn is_live(&self) -> bool {
        matches!(self, Self::Live(_))
    }
}

impl Held {
    fn push(&mut self, event: &Event) -> u64 {
        // A slice would keep the whole envelope it was cut from.
        let event = Event { data: Bytes::copy_from_slice(&event.data), ..event.clone() };
        self.bytes += event.data.len();
        self.events.push_back(event);
        let mut dropped = 0;
        while self.events.len() > MAX_HELD_EVENTS || self.bytes > MAX_HELD_BYTES {
            let Some(oldest) = self.events.pop_front() else {
                break;
            };
            self.bytes -= oldest.data.len();
            dropped += 1;
        }
        dropped
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tickmesh_protocol::{Previous, Sequence};

    use super::{super::early::WAIT, *};

    fn at(sequence: u64) -> Position {
        Position { epoch: Epoch::from_u64(1), sequence: Sequence::new(sequence).unwrap() }
    }

    fn event(sequence: u64) -> Event {
        Event {
            stream: "trades.btc_usdt".parse().unwrap(),
            epoch: Epoch::from_u64(1),
            sequence: Sequence::new(sequence).unwrap(),
            previous: Previous::At(Sequence::new(sequence - 1).unwrap()),
            engine_time_us: 0,
            data: Bytes::from_static(b"1"),
        }
    }

    fn joining() -> State {
        let mut state = State::default();
        assert_eq!(receive(&mut state, &event(1)), Received::Ignored);
        assert!(state.join() && !state.join(), "the head is asked for once");
        state
    }

    fn replay(state: &mut State, head: Option<Position>) -> Vec<(u64, Received)> {
        let held = state.go_live(head);
        held.iter().map(|event| (event.sequence.get(), receive(state, event))).collect()
    }

    fn receive(state: &mut State, event: &Event) -> Received {
        state.receive(event, Instant::now())
    }

    fn early(state: &mut State, now: Instant, all: bool) -> Vec<(u64, Received)> {
        std::iter::from_fn(|| state.next_early(now, all))
            .map(|(event, received)| (event.sequence.get(), received))
            .collect()
    }

    #[test]
    fn held_events_up_to_the_head_are_duplicates_and_the_rest_follows() {
        let mut state = joining();
        for sequence in 5..9 {
            assert_eq!(receive(&mut state, &event(sequence)), Received::Held { dropped: 0 });
        }
        assert_eq!(
            replay(&mut state, Some(at(6))),
            [
                (5, Received::Duplicate),
                (6, Received::Duplicate),
                (7, Received::Deliver),
                (8, Received::Deliver)
            ]
        );
        assert_eq!(state.position(), Some(at(8)));
        assert_eq!(receive(&mut state, &event(9)), Received::Deliver);
        assert!(state.go_live(Some(at(1))).is_empty(), "a second answer changes nothing");
        assert_eq!(state.position(), Some(at(9)));
    }

    #[test]
    fn a_head_beyond_what_was_held_makes_late_events_duplicates() {
        let mut state = joining();
        receive(&mut state, &event(5));
        assert_eq!(replay(&mut state, Some(at(7))), [(5, Received::Duplicate)]);
        assert_eq!(receive(&mut state, &event(7)), Received::Duplicate);
        assert_eq!(receive(&mut state, &event(8)), Received::Deliver);
    }

    #[test]
    fn an_empty_stream_begins_with_its_first_event() {
        let first = Event { previous: Previous::Unknown { read_from: Sequence::ZERO }, ..event(5) };
        let mut state = joining();
        receive(&mut state, &first);
        assert_eq!(replay(&mut state, None), [(5, Received::Deliver)]);
    }

    #[test]
    fn an_empty_stream_whose_first_event_is_missing_has_a_gap() {
        let mut state = joining();
        receive(&mut state, &event(5));
        assert_eq!(replay(&mut state, None), [(5, Received::Early)]);
        assert_eq!(early(&mut state, Instant::now() + WAIT, false), [(5, Received::DeliverAfterGap)]);
    }

    #[test]
    fn what_could_not_be_held_is_a_gap() {
        let mut state = joining();
        let mut dropped = 0;
        for sequence in 1..=(MAX_HELD_EVENTS as u64 + 10) {
            match receive(&mut state, &event(sequence)) {
                Received::Held { dropped: now } => dropped += now,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(dropped, 10);
        let replayed = replay(&mut state, Some(at(3)));
        assert_eq!(replayed.len(), MAX_HELD_EVENTS);
        assert!(replayed.iter().all(|(_, received)| *received == Received::Early));
        let released = early(&mut state, Instant::now() + WAIT, false);
        assert_eq!(released.len(), MAX_HELD_EVENTS);
        assert_eq!(released[0], (11, Received::DeliverAfterGap));
        assert!(released[1..].iter().all(|(_, received)| *received == Received::Deliver));
    }

    #[test]
    fn held_bytes_are_bounded() {
        let mut state = joining();
        let big = |sequence| Event { data: Bytes::from(vec![b'1'; MAX_HELD_BYTES / 2]), ..event(sequence) };
        assert_eq!(receive(&mut state, &big(1)), Received::Held { dropped: 0 });
        assert_eq!(receive(&mut state, &big(2)), Received::Held { dropped: 0 });
        assert_eq!(receive(&mut state, &big(3)), Received::Held { dropped: 1 });
    }

    #[test]
    fn held_events_of_an_epoch_that_was_left_do_not_turn_the_stream_back() {
        let old = |sequence| Event { epoch: Epoch::from_u64(9), ..event(sequence) };
        let mut state = joining();
        receive(&mut state, &old(100));
        receive(&mut state, &event(3));
        assert_eq!(replay(&mut state, Some(at(2))), [(3, Received::Deliver)]);

        let mut state = joining();
        receive(&mut state, &old(100));
        assert_eq!(replay(&mut state, Some(at(2))), []);
        assert_eq!(receive(&mut state, &event(3)), Received::Deliver);
    }

    #[test]
    fn giving_up_holds_nothing_and_asks_anew() {
        let mut state = joining();
        receive(&mut state, &event(5));
        state.give_up();
        assert_eq!(receive(&mut state, &event(6)), Received::Ignored);
        assert!(state.join());
        assert_eq!(replay(&mut state, Some(at(6))), []);
        state.give_up();
        assert!(state.is_live(), "a live stream stays live");
    }

    #[test]
    fn another_epoch_is_told() {
        let mut state = joining();
        state.go_live(Some(at(5)));
        let next =
            Event { epoch: Epoch::from_u64(2), previous: Previous::Reset { after: at(5) }, ..event(1) };
        assert_eq!(receive(&mut state, &next), Received::DeliverAfterReset(Epoch::from_u64(2)));
        assert_eq!(
            receive(&mut state, &event(6)),
            Received::Duplicate,
            "a late one of the epoch that was left"
        );
    }

    fn live(head: u64) -> State {
        let mut state = joining();
        assert_eq!(replay(&mut state, Some(at(head))), []);
        state
    }

    #[test]
    fn what_was_overtaken_is_put_back_in_order() {
        let (mut state, now) = (live(1), Instant::now());
        assert_eq!(receive(&mut state, &event(4)), Received::Early);
        assert_eq!(receive(&mut state, &event(3)), Received::Early);
        assert_eq!(receive(&mut state, &event(3)), Received::Duplicate);
        assert_eq!(early(&mut state, now, false), []);
        assert_eq!(state.position(), Some(at(1)));
        assert_eq!(receive(&mut state, &event(2)), Received::Deliver);
        assert_eq!(early(&mut state, now, false), [(3, Received::Deliver), (4, Received::Deliver)]);
        assert!(!state.has_early());
        assert_eq!(receive(&mut state, &event(3)), Received::Duplicate);
    }

    #[test]
    fn what_does_not_come_in_time_is_a_gap() {
        let (mut state, now) = (live(1), Instant::now());
        for sequence in [3, 4, 7] {
            assert_eq!(state.receive(&event(sequence), now), Received::Early);
        }
        assert_eq!(early(&mut state, now + WAIT / 2, false), []);
        let gap = Received::DeliverAfterGap;
        assert_eq!(early(&mut state, now + WAIT, false), [(3, gap), (4, Received::Deliver), (7, gap)]);
        assert_eq!(receive(&mut state, &event(2)), Received::Duplicate);
    }

    #[test]
    fn early_events_are_bounded() {
        let (mut state, now) = (live(1), Instant::now());
        let last = MAX_HELD_EVENTS as u64 + 3;
        for sequence in 3..=last {
            assert_eq!(state.receive(&event(sequence), now), Received::Early);
        }
        let released = early(&mut state, now, false);
        assert_eq!(released[0], (3, Received::DeliverAfterGap));
        assert_eq!(released.last(), Some(&(last, Received::Deliver)));
    }

    #[test]
    fn a_new_epoch_lets_the_waiting_go_first() {
        let (mut state, now) = (live(1), Instant::now());
        let new = Event { epoch: Epoch::from_u64(2), previous: Previous::Reset { after: at(5) }, ..event(1) };
        assert_eq!(state.receive(&event(5), now), Received::Early);
        assert!(!state.leaves_epoch(&event(6)) && state.leaves_epoch(&new));
        assert_eq!(early(&mut state, now, true), [(5, Received::DeliverAfterGap)]);
        assert_eq!(state.receive(&new, now), Received::DeliverAfterReset(Epoch::from_u64(2)));
    }

    proptest! {
        /// Whatever overtakes what, and however often it comes: delivered is everything, once, in order, without a gap.
        #[test]
        fn any_order_becomes_the_right_one(order in Just((2..=60_u64).flat_map(|n| [n, n]).collect::<Vec<_>>()).prop_shuffle()) {
            let (mut state, now) = (live(1), Instant::now());
            let mut delivered = Vec::new();
            for sequence in order {
                match state.receive(&event(sequence), now) {
                    Received::Deliver => delivered.push(sequence),
                    Received::Early | Received::Duplicate => {}
                    other => prop_assert!(false, "{other:?}"),
                }
                for (sequence, received) in early(&mut state, now, false) {
                    prop_assert_eq!(received, Received::Deliver);
                    delivered.push(sequence);
                }
            }
            prop_assert_eq!(delivered, (2..=60).collect::<Vec<_>>());
        }
    }
}
