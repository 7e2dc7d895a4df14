//! One fetch over several servers: who is asked, and how it ends for each stream.

#![allow(clippy::unwrap_used, reason = "clippy knows only the #[test] functions as tests, not their helpers")]

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;
use tickmesh_protocol::{
    Epoch, Event, Position, Previous, PublisherKey, Sequence, StreamName, Topic,
    feed::FeedEnd,
    fetching::{Ask, Fetching},
    rank::ranked,
    repair::Fetched,
};

fn name(stream: &str) -> StreamName {
    format!("trades.{stream}").parse().unwrap()
}

fn topic() -> Topic {
    Topic::spanning(&name("x"))
}

fn at(number: u64) -> Position {
    Position { epoch: Epoch::from_u64(1), sequence: Sequence::new(number).unwrap() }
}

fn servers(number: u8) -> Vec<PublisherKey> {
    (0..number).map(|server| PublisherKey([server; 32])).collect()
}

fn fetching(streams: &[&str], number: u8, attempt: u32) -> Fetching {
    let streams = streams.iter().map(|stream| (name(stream), Some(at(7)))).collect();
    Fetching::new(&topic(), streams, servers(number), attempt)
}

fn complete(head: u64) -> FeedEnd {
    FeedEnd::Complete { head: Some(at(head)) }
}

fn refused(oldest: Option<u64>) -> FeedEnd {
    FeedEnd::Refused { oldest: oldest.map(at) }
}

fn streams(ask: &Ask) -> Vec<&str> {
    ask.streams.iter().map(|(stream, _)| stream.key()).collect()
}

fn results(fetching: Fetching) -> BTreeMap<StreamName, Fetched> {
    fetching.results().collect()
}

#[test]
fn what_one_refuses_another_is_asked_for() {
    let mut fetching = fetching(&["x", "y"], 3, 0);
    let ranked = ranked(&topic(), servers(3));
    let first = fetching.next_ask().unwrap();
    assert_eq!((first.server, streams(&first)), (ranked[0], vec!["x", "y"]));
    fetching.ended(&[(name("x"), refused(Some(20))), (name("y"), complete(9))]);
    let second = fetching.next_ask().unwrap();
    assert_eq!((second.server, streams(&second)), (ranked[1], vec!["x"]));
    fetching.failed();
    let third = fetching.next_ask().unwrap();
    assert_eq!((third.server, streams(&third)), (ranked[2], vec!["x"]));
    fetching.ended(&[(name("x"), refused(Some(30)))]);
    assert_eq!(fetching.next_ask(), None);
    // One of three went away: it may have had it.
    let expected = [(name("x"), Fetched::Failed), (name("y"), Fetched::Ended(complete(9)))];
    assert_eq!(results(fetching), expected.into());
}

#[test]
fn refused_is_only_what_all_refused() {
    let mut all = fetching(&["x"], 3, 0);
    for end in [refused(None), refused(Some(20)), refused(Some(30))] {
        all.next_ask().unwrap();
        all.ended(&[(name("x"), end)]);
    }
    assert_eq!(results(all)[&name("x")], Fetched::Ended(refused(Some(20))), "the best ranked that has any");
    let nobody = fetching(&["x"], 0, 5);
    assert_eq!(results(nobody)[&name("x")], Fetched::Failed, "nobody could be asked");
}

#[test]
fn the_attempt_turns_the_order() {
    let ranked = ranked(&topic(), servers(3));
    for attempt in 0..7 {
        let mut fetching = fetching(&["x"], 3, attempt);
        let order: Vec<_> = (0..3).map(|_| fetching.next_ask().unwrap().server).collect();
        assert_eq!(order[0], ranked[attempt as usize % 3]);
        assert_eq!(BTreeSet::from_iter(order), BTreeSet::from_iter(servers(3)));
        assert_eq!(fetching.next_ask(), None, "each is asked once");
    }
}

#[test]
fn what_one_has_sent_another_need_not_send_again() {
    let mut fetching = fetching(&["x", "y"], 2, 0);
    fetching.next_ask();
    let event = |stream: &str, number| Event {
        stream: name(stream),
        epoch: Epoch::from_u64(1),
        sequence: Sequence::new(number).unwrap(),
        previous: Previous::At(Sequence::new(number - 1).unwrap()),
        engine_time_us: 0,
        data: Bytes::new(),
        signature: None,
    };
    fetching.passed(&event("x", 8));
    fetching.passed(&event("x", 9));
    fetching.passed(&event("not-asked-for", 9));
    fetching.failed();
    let second = fetching.next_ask().unwrap();
    assert_eq!(second.streams, [(name("x"), Some(at(9))), (name("y"), Some(at(7)))]);
}

#[test]
fn ends_of_streams_that_were_not_asked_for_or_are_decided_change_nothing() {
    let mut fetching = fetching(&["x"], 2, 0);
    fetching.next_ask();
    fetching.ended(&[(name("z"), complete(1)), (name("x"), complete(9)), (name("x"), refused(Some(1)))]);
    assert_eq!(fetching.next_ask(), None);
    assert_eq!(results(fetching), [(name("x"), Fetched::Ended(complete(9)))].into());
}

proptest! {
    /// Each server is asked once at most, for what is undecided; what somebody completed is complete, and refused only
    /// what every server refused.
    #[test]
    fn every_stream_is_decided_by_what_servers_said(
        answers in prop::collection::vec(prop::option::of(prop::collection::vec(0..3_u8, 4)), 0..5),
        attempt in any::<u32>(),
    ) {
        let names = ["a", "b", "c", "d"];
        let mut fetching = fetching(&names, answers.len() as u8, attempt);
        let mut said: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
        let mut asked = BTreeSet::new();
        while let Some(ask) = fetching.next_ask() {
            prop_assert!(asked.insert(ask.server));
            let answer = &answers[usize::from(ask.server.0[0])];
            let mut ends = Vec::new();
            for (place, stream) in names.iter().enumerate() {
                let wanted = streams(&ask).contains(stream);
                prop_assert_eq!(wanted, !said.get(stream).is_some_and(|said| said.contains(&0)));
                match answer.as_ref().map(|answer| answer[place]) {
                    // 0 completes, 1 refuses, 2 is not answered.
                    Some(end @ (0 | 1)) if wanted => {
                        said.entry(stream).or_default().push(end);
                        ends.push((name(stream), if end == 0 { complete(9) } else { refused(Some(3)) }));
                    }
                    _ => {}
                }
            }
            fetching.ended(&ends);
            if answer.is_none() {
                fetching.failed();
            }
        }
        for (stream, result) in fetching.results() {
            let said = said.get(stream.key()).cloned().unwrap_or_default();
            match result {
                Fetched::Ended(FeedEnd::Complete { .. }) => prop_assert!(said.contains(&0)),
                Fetched::Ended(FeedEnd::Refused { .. }) => {
                    prop_assert!(said.len() == answers.len() && !said.contains(&0));
                }
                Fetched::Failed => prop_assert!(!said.contains(&0) && (answers.is_empty() || said.len() < answers.len())),
            }
        }
    }
}
