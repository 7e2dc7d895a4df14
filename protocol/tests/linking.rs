//! The sequencer and the link against naive models: whatever is lost, repeated or reordered between them, what is
//! delivered rises, and a missing event is told.

#![allow(clippy::unwrap_used, reason = "clippy knows only the #[test] functions as tests, not their helpers")]

use std::collections::{BTreeSet, HashMap};

use proptest::{prelude::*, sample::Index};
use tickmesh_protocol::{
    Epoch, Event, Position, Previous, Sequence, StreamName,
    link::{Link, Verdict},
    position::MAX_SEQUENCE,
    sequencer::{Sequencer, Unsequenced},
};

fn sequence(number: u64) -> Sequence {
    Sequence::new(number).unwrap()
}

fn stream() -> StreamName {
    "trades.btc_usdt".parse().unwrap()
}

fn event(epoch: u64, number: u64, previous: Previous) -> Event {
    Event {
        stream: stream(),
        epoch: Epoch::from_u64(epoch),
        sequence: sequence(number),
        previous,
        engine_time_us: 0,
        data: bytes::Bytes::from_static(b"1"),
        signature: None,
    }
}

// The sequencer alone

/// What the sequencer should do, by looking at everything it was ever asked.
#[derive(Default)]
struct SequencerModel {
    /// (stream, epoch, position) of each record that got a sequence, in order.
    given: Vec<(u8, u64, u64)>,
    /// Where reading of each epoch began, and how many records had been given by then.
    began: HashMap<u64, (u64, usize)>,
    /// Epochs that are read from their very beginning.
    whole: BTreeSet<u64>,
    /// Epochs of which nobody said where reading began.
    unasked: BTreeSet<u64>,
}

impl SequencerModel {
    fn next(&mut self, stream: u8, epoch: u64, position: u64) -> Result<(Sequence, Previous), Unsequenced> {
        let number = Sequence::new(position)?;
        let known = self.began.contains_key(&epoch);
        let (read_from, began) = *self.began.entry(epoch).or_insert((position, self.given.len()));
        self.whole.extend((known && read_from == 0 && !self.unasked.contains(&epoch)).then_some(epoch));
        self.unasked.extend((!known).then_some(epoch));
        let unknown = Previous::Unknown { read_from: sequence(read_from) };
        let mine = || self.given.iter().enumerate().filter(|(_, (s, _, _))| *s == stream);
        let previous = match mine().next_back() {
            Some((_, &(_, last_epoch, last))) if last_epoch == epoch => {
                if position <= last {
                    return Err(Unsequenced::Backward { position, last: sequence(last) });
                }
                if last >= read_from { Previous::At(sequence(last)) } else { unknown }
            }
            Some(_) if mine().any(|(_, (_, e, _))| *e == epoch) => {
                return Err(Unsequenced::LeftEpoch(Epoch::from_u64(epoch)));
            }
            Some((at, &(_, last_epoch, last))) if self.whole.contains(&epoch) || began <= at => {
                Previous::Reset {
                    after: Position { epoch: Epoch::from_u64(last_epoch), sequence: sequence(last) },
                }
            }
            _ => unknown,
        };
        self.given.push((stream, epoch, position));
        Ok((number, previous))
    }
}

proptest! {
    #[test]
    fn the_sequencer_does_what_the_model_does(
        begun in prop::collection::hash_map(0..5u64, 0..10u64, 0..5),
        records in prop::collection::vec(
            (0..4u8, 0..5u64, prop_oneof![20 => 0..60u64, 1 => Just(MAX_SEQUENCE + 1), 1 => any::<u64>()]), 1..200),
    ) {
        let (mut sequencer, mut model) = (Sequencer::default(), SequencerModel::default());
        for (epoch, position) in begun {
            sequencer.begin(Epoch::from_u64(epoch), sequence(position), position == 0);
            model.began.insert(epoch, (position, 0));
        }
        for (key, epoch, position) in records {
            let name = StreamName::new("trades", &format!("coin{key}"), None).unwrap();
            let got = sequencer.next(&name, Epoch::from_u64(epoch), position);
            prop_assert_eq!(got, model.next(key, epoch, position));
            let last = model.given.iter().rfind(|(s, _, _)| *s == key);
            let last = last.map(|&(_, epoch, number)| Position {
                epoch: Epoch::from_u64(epoch), sequence: sequence(number),
            });
            prop_assert_eq!(sequencer.last(&name), last);
        }
    }
}

// From two publishers' sequencers over a bad network into a link

/// Positions of the stream's records in each epoch of its log; the gaps between them belong to other streams.
fn any_log() -> impl Strategy<Value = Vec<BTreeSet<u64>>> {
    prop::collection::vec(prop::collection::btree_set(0..40u64, 1..15), 1..4)
}

/// The events as a publisher makes them that reads each epoch from some position on.
fn published(log: &[BTreeSet<u64>], starts: &[u64]) -> Vec<Event> {
    let mut sequencer = Sequencer::default();
    let mut events = Vec::new();
    for (epoch, (records, start)) in (0..).zip(log.iter().zip(starts)) {
        let id = Epoch::from_u64(epoch);
        sequencer.begin(id, sequence(*start), *start == 0);
        for position in records.range(start..) {
            let (number, previous) = sequencer.next(&stream(), id, *position).unwrap();
            events.push(event(epoch, number.get(), previous));
        }
    }
    events
}

/// A network that loses, repeats and moves events: each entry of `picks` delivers one event near `progress`.
fn network(events: &[Event], picks: &[(Index, bool)]) -> Vec<Event> {
    const REORDER: usize = 4;
    let mut arrived = Vec::new();
    let mut progress = 0;
    for (pick, advance) in picks {
        let window = &events[progress..(progress + REORDER).min(events.len())];
        if window.is_empty() {
            break;
        }
        arrived.push(window[pick.index(window.len())].clone());
        progress += usize::from(*advance);
    }
    arrived
}

fn position((epoch, number): (u64, u64)) -> Position {
    Position { epoch: Epoch::from_u64(epoch), sequence: sequence(number) }
}

/// What a link knows, told by looking at everything it did.
struct LinkModel {
    at: Option<(u64, u64)>,
    left: BTreeSet<u64>,
}

impl LinkModel {
    fn check(&mut self, log: &[BTreeSet<u64>], event: &Event, verdict: Verdict) -> Result<(), TestCaseError> {
        let (epoch, number) = (event.epoch.as_u64(), event.sequence.get());
        let missing =
            |after: u64| log[usize::try_from(epoch).unwrap()].range(after + 1..number).next().is_some();
        match self.at {
            Some((last_epoch, _)) if epoch != last_epoch => {
                if self.left.contains(&epoch) {
                    prop_assert_eq!(verdict, Verdict::Duplicate);
                    return Ok(());
                }
                // Only who knows what was before the new epoch begins it.
                let follows = matches!(event.previous, Previous::Reset { after }
                    if after.epoch.as_u64() == last_epoch && Some(after.sequence.get()) <= self.at.map(|at| at.1));
                let after = self.at.map(position);
                let expected =
                    if follows { Verdict::Reset { epoch: event.epoch } } else { Verdict::Gap { after } };
                prop_assert_eq!(verdict, expected);
                self.left.insert(last_epoch);
            }
            Some((_, last)) if number <= last => {
                prop_assert_eq!(verdict, Verdict::Duplicate);
                return Ok(());
            }
            Some((_, last)) => {
                // Who knows the event before tells exactly; who does not, tells it unless it read all since the last.
                let gap = match event.previous {
                    Previous::At(_) => missing(last),
                    Previous::Unknown { read_from } => last + 1 < read_from.get(),
                    Previous::Reset { .. } => true,
                };
                prop_assert!(gap || !missing(last), "a silent gap between {} and {}", last, number);
                let after = self.at.map(position);
                prop_assert_eq!(verdict, if gap { Verdict::Gap { after } } else { Verdict::Next });
            }
            None => {
                let gap = !matches!(event.previous, Previous::Unknown { .. });
                prop_assert_eq!(verdict, if gap { Verdict::Gap { after: None } } else { Verdict::Next });
            }
        }
        self.at = Some((epoch, number));
        Ok(())
    }
}

proptest! {
    #[test]
    fn delivered_events_rise_and_every_missing_one_is_told(
        log in any_log(),
        starts in prop::array::uniform2(prop::collection::vec(0..20u64, 4)),
        picks in prop::collection::vec((any::<Index>(), any::<bool>()), 1..120),
        begin in prop::option::of(0..40u64),
    ) {
        let mut events = published(&log, &starts[0]);
        events.extend(published(&log, &starts[1]));
        // Both publish the same log at about the same time.
        events.sort_by_key(|event| (event.epoch.as_u64(), event.sequence));

        let mut model = LinkModel { at: begin.map(|number| (0, number)), left: BTreeSet::new() };
        let mut link = Link::at(begin.map(|number| Position { epoch: Epoch::from_u64(0), sequence: sequence(number) }));
        let mut delivered: HashMap<Epoch, Vec<Sequence>> = HashMap::new();
        for event in network(&events, &picks) {
            let verdict = link.advance(&event);
            if matches!(verdict, Verdict::Gap { .. }) {
                link.jump(event.position());
            }
            model.check(&log, &event, verdict)?;
            prop_assert_eq!(link.last().map(|p| (p.epoch.as_u64(), p.sequence.get())), model.at);
            if verdict != Verdict::Duplicate {
                delivered.entry(event.epoch).or_default().push(event.sequence);
            }
        }
        for (epoch, sequences) in delivered {
            prop_assert!(sequences.is_sorted_by(|a, b| a < b), "epoch {:?}: {:?}", epoch, sequences);
        }
    }

    #[test]
    fn nothing_lost_means_no_gap(log in any_log(), repeat in any::<bool>()) {
        let events = published(&log, &[0; 4]);
        let mut link = Link::default();
        let mut delivered = Vec::new();
        for event in &events {
            for _ in 0..=usize::from(repeat) {
                match link.advance(event) {
                    Verdict::Duplicate => {}
                    Verdict::Gap { .. } => prop_assert!(false, "a gap before {:?}", event),
                    Verdict::Next | Verdict::Reset { .. } => delivered.push(event.clone()),
                }
            }
        }
        prop_assert_eq!(delivered, events);
    }
}

#[test]
fn a_link_tells_these_cases_apart() {
    let at = |number| Previous::At(sequence(number));
    let reset = |epoch, number| Previous::Reset { after: position((epoch, number)) };
    let mut link = Link::at(Some(position((1, 7))));
    assert_eq!(link.advance(&event(1, 8, at(7))), Verdict::Next);
    assert_eq!(link.advance(&event(1, 8, at(7))), Verdict::Duplicate);
    assert_eq!(link.advance(&event(1, 12, at(11))), Verdict::Gap { after: Some(position((1, 8))) });
    assert_eq!(link.advance(&event(1, 11, at(8))), Verdict::Next, "what is missing before it may still come");
    assert_eq!(link.advance(&event(2, 3, at(1))), Verdict::Gap { after: Some(position((1, 11))) });
    assert_eq!(link.advance(&event(2, 1, reset(1, 12))), Verdict::Gap { after: Some(position((1, 11))) });
    assert_eq!(link.advance(&event(2, 1, reset(1, 11))), Verdict::Reset { epoch: Epoch::from_u64(2) });
    assert_eq!(link.advance(&event(1, 12, at(11))), Verdict::Duplicate, "an epoch that was left");
    assert_eq!(link.advance(&event(2, 9, reset(1, 11))), Verdict::Gap { after: Some(position((2, 1))) });
    // A publisher that began at the end of the log, just after what is known here.
    assert_eq!(link.advance(&event(2, 9, Previous::Unknown { read_from: sequence(2) })), Verdict::Next);
    let later = Previous::Unknown { read_from: sequence(11) };
    assert_eq!(link.advance(&event(2, 12, later)), Verdict::Gap { after: Some(position((2, 9))) });
}

#[test]
fn a_skip_in_the_log_is_no_knowledge() {
    let (one, two) = (Epoch::from_u64(1), Epoch::from_u64(2));
    let mut sequencer = Sequencer::default();
    sequencer.begin(one, sequence(0), true);
    assert_eq!(sequencer.next(&stream(), one, 3).unwrap().1, Previous::Unknown { read_from: sequence(0) });
    sequencer.begin(one, sequence(4), false);
    assert_eq!(sequencer.next(&stream(), one, 5).unwrap().1, Previous::At(sequence(3)));
    sequencer.passed(one, 8);
    sequencer.begin(one, sequence(8), false);
    assert_eq!(sequencer.next(&stream(), one, 9).unwrap().1, Previous::At(sequence(5)));
    sequencer.begin(one, sequence(20), false);
    assert_eq!(sequencer.next(&stream(), one, 22).unwrap().1, Previous::Unknown { read_from: sequence(20) });
    assert_eq!(sequencer.next(&stream(), one, 23).unwrap().1, Previous::At(sequence(22)));
    // The log was made anew while this peer was away, and is not read from its beginning.
    sequencer.begin(two, sequence(2), false);
    assert_eq!(sequencer.next(&stream(), two, 4).unwrap().1, Previous::Unknown { read_from: sequence(2) });
}

#[test]
fn an_empty_stream_shows_that_its_first_event_is_missing() {
    let first = event(1, 3, Previous::Unknown { read_from: Sequence::ZERO });
    let second = event(1, 7, Previous::At(sequence(3)));
    assert_eq!(Link::at(None).advance(&first), Verdict::Next);
    assert_eq!(Link::at(None).advance(&second), Verdict::Gap { after: None });
}
