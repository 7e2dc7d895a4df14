use proptest::prelude::*;
use serde_json::{json, value::RawValue};
use tickmesh_protocol::StreamName;

use super::*;

const STREAM: &str = "trades.a";

fn sequence(number: u64) -> Sequence {
    Sequence::new(number).unwrap()
}

fn at(epoch: u64, number: u64) -> Position {
    Position { epoch: Epoch::from_u64(epoch), sequence: sequence(number) }
}

fn event(number: u64, previous: Option<u64>) -> DataMessage<'static> {
    DataMessage {
        stream: STREAM.parse::<StreamName>().unwrap(),
        epoch: None,
        sequence: sequence(number),
        previous: previous.map(sequence),
        snapshot: false,
        conflated: false,
        data: RawValue::NULL,
        signature: None,
    }
}

fn streams(position: Option<Position>) -> Streams {
    let mut streams = Streams::new(vec![STREAM.into()], &Positions::new());
    streams.begin(STREAM, position);
    streams
}

fn gap(after: u64) -> Verdict {
    Verdict::Gap { after: Some(sequence(after)) }
}

#[test]
fn what_follows_is_next_and_what_does_not_is_a_gap() {
    let mut streams = streams(Some(at(1, 7)));
    assert_eq!(streams.advance(&event(8, Some(7))), Verdict::Next);
    assert_eq!(streams.advance(&event(8, Some(7))), Verdict::Duplicate { last: sequence(8) });
    assert_eq!(streams.advance(&event(12, Some(11))), gap(8));
    assert_eq!(streams.advance(&event(20, Some(12))), Verdict::Next, "numbers need not be dense");
    assert_eq!(streams.advance(&event(21, None)), gap(20), "nobody says that there is none");
    let snapshot = DataMessage { snapshot: true, ..event(21, Some(20)) };
    assert_eq!(streams.advance(&snapshot), Verdict::Next);
    let conflated = DataMessage { conflated: true, ..event(40, Some(39)) };
    assert_eq!(streams.advance(&conflated), Verdict::Next);
    assert_eq!(streams.advance(&conflated), Verdict::Duplicate { last: sequence(40) });
    assert_eq!(streams.advance(&event(41, Some(40))), Verdict::Next);
    assert_eq!(Vec::from_iter(streams.positions()), [(STREAM.into(), LastSeen::At(at(1, 41)))]);
}

#[test]
fn the_first_event_of_an_empty_stream_has_nothing_before_it() {
    assert_eq!(streams(None).advance(&event(5, None)), Verdict::Next);
    assert_eq!(streams(None).advance(&event(5, Some(4))), Verdict::Gap { after: None });
    let mut streams = streams(None);
    streams.advance(&event(5, None));
    assert!(streams.lacks_epoch(STREAM));
    streams.learn(STREAM, Epoch::from_u64(3));
    assert_eq!(Vec::from_iter(streams.positions()), [(STREAM.into(), LastSeen::At(at(3, 5)))]);
}

#[test]
fn until_the_first_event_of_a_new_epoch_a_stream_is_resumed_from_the_old_one() {
    let mut streams = streams(Some(at(1, 7)));
    streams.reset(STREAM, Epoch::from_u64(2));
    assert_eq!(Vec::from_iter(streams.positions()), [(STREAM.into(), LastSeen::At(at(1, 7)))]);
    streams.interrupt();
    assert_eq!(streams.advance(&event(8, Some(7))), Verdict::Next);
    streams.reset(STREAM, Epoch::from_u64(2));
    assert_eq!(streams.advance(&event(0, None)), Verdict::Next);
    assert_eq!(streams.advance(&event(1, Some(0))), Verdict::Next);
    assert_eq!(Vec::from_iter(streams.positions()), [(STREAM.into(), LastSeen::At(at(2, 1)))]);
}

#[test]
fn what_was_here_before_is_resumed_and_the_rest_subscribed() {
    let kept = [("trades.a".into(), LastSeen::At(at(255, 9))), ("trades.b".into(), LastSeen::Nothing)].into();
    let names = ["trades.a", "trades.b", "trades.c"].map(String::from).to_vec();
    let (mut streams, mut id) = (Streams::new(names, &kept), 0);
    let requests = serde_json::to_value(streams.requests(&mut id)).unwrap();
    let a = json!({"epoch": "00000000000000ff", "sequence": 9});
    assert_eq!(
        requests,
        json!([
            {"action": "resume", "id": 1, "positions": {"trades.a": a, "trades.b": null}},
            {"action": "subscribe", "id": 2, "streams": ["trades.c"]},
        ])
    );
    assert!(streams.requests(&mut id).is_empty(), "asked for already");
    assert_eq!(streams.asked_by(&2.into()), ["trades.c"]);
    streams.want("trades.b");
    streams.remove("trades.a");
    assert_eq!(
        serde_json::to_value(streams.requests(&mut id)).unwrap(),
        json!([{"action": "resume", "id": 3, "positions": {"trades.b": null}}])
    );
}

#[test]
fn requests_keep_to_the_limits_of_edges() {
    let long = "x".repeat(120);
    let names = Vec::from_iter((0..3000).map(|n| format!("trades.{long}{n:04}")));
    let kept: Positions = names
        .iter()
        .take(1500)
        .map(|name| (name.clone(), LastSeen::At(at(u64::MAX, (1 << 53) - 1))))
        .collect();
    let mut asked = Vec::new();
    for request in Streams::new(names.clone(), &kept).requests(&mut 0) {
        let text = serde_json::to_string(&request).unwrap();
        assert!(text.len() <= MAX_CLIENT_FRAME_BYTES, "{} bytes", text.len());
        assert_eq!(ClientMessage::parse(&text).as_ref(), Ok(&request));
        match request {
            ClientMessage::Resume { from: ResumeFrom::Positions { positions }, .. } => {
                asked.extend(positions.into_keys());
            }
            ClientMessage::Subscribe { streams, .. } => asked.extend(streams),
            other => panic!("{other:?}"),
        }
    }
    asked.sort();
    assert_eq!(asked, names);
}

proptest! {
    /// Whatever is lost of a log and whatever comes again: each event once, and a gap just where events are lost.
    #[test]
    fn each_event_once_and_a_gap_where_some_are_lost(
        steps in prop::collection::vec((1_u64..5, any::<bool>(), any::<prop::sample::Index>()), 1..100),
    ) {
        let mut streams = streams(None);
        let (mut number, mut previous, mut lost, mut seen) = (0, None, false, Vec::new());
        for (step, loses, again) in steps {
            number += step;
            let event = event(number, previous.replace(number));
            if loses {
                lost = true;
                continue;
            }
            match streams.advance(&event) {
                Verdict::Next => prop_assert!(!lost),
                Verdict::Gap { .. } => prop_assert!(lost),
                Verdict::Duplicate { .. } => prop_assert!(false),
            }
            lost = false;
            seen.push(event);
            prop_assert_eq!(streams.advance(again.get(&seen)), Verdict::Duplicate { last: sequence(number) });
        }
    }
}
