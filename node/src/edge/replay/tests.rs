use proptest::prelude::*;
use tickmesh_protocol::{Previous, Sequence};

use super::*;

fn at(sequence: u64) -> Position {
    Position { epoch: Epoch::from_u64(1), sequence: Sequence::new(sequence).unwrap() }
}

fn name(stream: usize) -> StreamName {
    format!("trades.s{stream}").parse().unwrap()
}

fn waiter(serial: usize, after: Option<u64>) -> Waiter {
    let connection = ConnectionId { key: serial, serial: serial as u64 };
    Waiter { shard: 0, connection, stream: StreamId(0), after: after.map(at) }
}

/// A log of each stream: sequences that rise by more than one.
fn log(stream: usize, length: u64) -> Vec<Event> {
    let step = stream as u64 + 1;
    let event = |number: u64| Event {
        stream: name(stream),
        epoch: Epoch::from_u64(1),
        sequence: Sequence::new(number * step).unwrap(),
        previous: match number {
            1 => Previous::Unknown { read_from: Sequence::ZERO },
            _ => Previous::At(Sequence::new((number - 1) * step).unwrap()),
        },
        engine_time_us: 0,
        data: "{}".into(),
        signature: None,
    };
    (1..=length).map(event).collect()
}

/// Makes fetches of a log that has lost what is before `oldest`, until nobody waits. Returns what each waiter was answered.
fn serve(waiting: &mut Waiting, logs: &[Vec<Event>], oldest: u64, page: usize) -> Vec<(Waiter, Replayed)> {
    let mut answers = Vec::new();
    let mut fetches = 0;
    while !waiting.is_empty() {
        fetches += 1;
        assert!(fetches < 200, "somebody waits for ever: {waiting:?}");
        let mut ends = Vec::new();
        for (stream, after) in waiting.begin() {
            let index: usize = stream.key()[1..].parse().unwrap();
            let follows = |event: &&Event| after.is_none_or(|after| event.sequence > after.sequence);
            let missed: Vec<_> = logs[index].iter().filter(follows).cloned().collect();
            if missed.first().is_some_and(|first| first.sequence.get() < oldest) {
                let held = logs[index].iter().find(|event| event.sequence.get() >= oldest);
                ends.push((stream, Fetched::Ended(FeedEnd::Refused { oldest: held.map(Event::position) })));
                continue;
            }
            for events in missed.chunks(page) {
                if waiting.needs_more() {
                    answers.extend(waiting.page(events));
                }
            }
            let head = logs[index].last().map(Event::position);
            ends.push((stream, Fetched::Ended(FeedEnd::Complete { head })));
        }
        answers.extend(waiting.ended(ends));
    }
    answers
}

proptest! {
    /// Each waiter is answered with just what follows its position, or is told that this is lost.
    #[test]
    fn everyone_is_answered_with_what_follows(
        asks in proptest::collection::vec((0_usize..3, proptest::option::of(0_u64..70)), 1..60),
        length in 0_u64..30,
        oldest in 0_u64..40,
        page in 1_usize..12,
    ) {
        let logs: Vec<_> = (0..3).map(|stream| log(stream, length)).collect();
        let mut waiting = Waiting::default();
        for (serial, (stream, after)) in asks.iter().enumerate() {
            waiting.add(Ask { stream: name(*stream), what: Kind::Events, waiter: waiter(serial, *after) });
        }
        let answers = serve(&mut waiting, &logs, oldest, page);
        prop_assert_eq!(answers.len(), asks.len());
        for (waiter, replayed) in answers {
            let (stream, after) = asks[waiter.connection.key];
            let missed: Vec<u64> = logs[stream].iter().map(|event| event.sequence.get())
                .filter(|sequence| after.is_none_or(|after| *sequence > after)).collect();
            let lost = missed.first().is_some_and(|first| *first < oldest);
            match replayed {
                Replayed::Frames(frames, index) => {
                    let got: Vec<_> = frames[index..].iter().map(|frame| frame.position.sequence.get()).collect();
                    prop_assert!(!got.is_empty());
                    prop_assert_eq!(&got[..], &missed[..got.len()]);
                    prop_assert!(!lost);
                }
                Replayed::Nothing { .. } => prop_assert!(missed.is_empty()),
                Replayed::Lost { oldest: told } => {
                    // Of a log that has lost everything nobody can say what it held.
                    prop_assert!(lost, "{after:?} of {missed:?}");
                    prop_assert!(told.is_none_or(|told| told.sequence.get() >= oldest));
                }
                Replayed::Snapshot(_) => prop_assert!(false, "nobody asked for a snapshot"),
            }
        }
    }
}

#[test]
fn a_thousand_lost_positions_are_answered_by_a_few_fetches() {
    let mut waiting = Waiting::default();
    for serial in 0..1000 {
        waiting.add(Ask {
            stream: name(0),
            what: Kind::Events,
            waiter: waiter(serial, Some(serial as u64 + 1)),
        });
    }
    let mut fetches = 0;
    while !waiting.is_empty() {
        fetches += 1;
        let wanted = waiting.begin();
        let ends = wanted
            .into_iter()
            .map(|(stream, _)| (stream, Fetched::Ended(FeedEnd::Refused { oldest: Some(at(5000)) })));
        waiting.ended(ends.collect());
    }
    assert!(fetches <= 12, "{fetches}");
}

#[test]
fn a_feed_that_begins_late_is_a_loss() {
    let mut waiting = Waiting::default();
    waiting.add(Ask { stream: name(0), what: Kind::Events, waiter: waiter(0, Some(3)) });
    waiting.add(Ask { stream: name(0), what: Kind::Events, waiter: waiter(1, Some(8)) });
    assert_eq!(waiting.begin(), [(name(0), Some(at(3)))]);
    let events = log(0, 12);
    let answers = waiting.page(&events[5..]);
    assert_eq!(answers[0], (waiter(0, Some(3)), Replayed::Lost { oldest: Some(at(6)) }));
    assert!(!waiting.needs_more(), "what comes after a hole is not to be believed");
    assert_eq!(waiting.ended(vec![(name(0), Fetched::Failed)]), []);
    assert_eq!(waiting.begin(), [(name(0), Some(at(8)))], "the other one is fetched for itself");
}

#[test]
fn a_reset_goes_before_the_first_event_of_its_epoch() {
    let mut waiting = Waiting::default();
    waiting.add(Ask { stream: name(0), what: Kind::Events, waiter: waiter(0, Some(2)) });
    waiting.begin();
    let mut events = log(0, 3);
    events.push(Event {
        epoch: Epoch::from_u64(2),
        sequence: Sequence::ZERO,
        previous: Previous::Reset { after: at(3) },
        ..events[0].clone()
    });
    let answers = waiting.page(&events[2..]);
    let (_, Replayed::Frames(frames, 0)) = &answers[0] else { panic!("{answers:?}") };
    assert_eq!(frames.iter().map(|frame| frame.reset.is_some()).collect::<Vec<_>>(), [false, true]);
}
