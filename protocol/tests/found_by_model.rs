//! What `tickmesh-sim model` found in the repair of a stream, each as small as it gets. What it found in the takeover is
//! with the tests of that.

#![allow(clippy::unwrap_used, reason = "clippy knows only the #[test] functions as tests, not their helpers")]

use std::time::Duration;

use tickmesh_protocol::{
    Epoch, Event, Moment, Position, Previous, Sequence,
    feed::FeedEnd,
    repair::{Fetched, Output, Received, Repair, Way},
};

fn ms(n: u64) -> Moment {
    Moment::after(Duration::from_millis(n))
}

fn at(epoch: u64, sequence: u64) -> Position {
    Position { epoch: Epoch::from_u64(epoch), sequence: Sequence::new(sequence).unwrap() }
}

fn event(sequence: u64, previous: Previous) -> Event {
    let Position { epoch, sequence } = at(1, sequence);
    let stream = "trades.btc_usdt".parse().unwrap();
    Event { stream, epoch, sequence, previous, engine_time_us: 0, data: "1".into(), signature: None }
}

fn read_from(sequence: u64) -> Previous {
    Previous::Unknown { read_from: Sequence::new(sequence).unwrap() }
}

fn joined(head: Position) -> Repair {
    let mut repair = Repair::default();
    assert!(repair.join());
    repair.joined(Some(head), ms(0), &mut Vec::new());
    repair
}

/// Fetches once, when it is due, with this end; whom to ask, and for what.
fn fetch(repair: &mut Repair, end: FeedEnd) -> (u32, Option<Position>) {
    let due = repair.fetch_due().unwrap();
    let fetch = repair.begin_fetch(due).unwrap();
    repair.fetched(fetch.id, Fetched::Ended(end), due, &mut Vec::new());
    (fetch.attempt, fetch.after)
}

/// Whoever served the first events of a new stream was gone, and the next server began after them.
#[test]
fn an_empty_stream_knows_what_its_first_event_may_leave_out() {
    let empty_before = |sequence| {
        let mut repair = Repair::default();
        assert!(repair.join());
        repair.joined_empty(vec![at(1, sequence)].into(), ms(0), &mut Vec::new());
        repair
    };
    let receive = |repair: &mut Repair, event: &Event| {
        let mut outputs = Vec::new();
        (repair.receive(event, Way::Gossip, ms(0), &mut outputs), outputs.len())
    };
    // Everything from 20 on was read.
    let first = |sequence, since| event(sequence, read_from(since));
    assert_eq!(receive(&mut empty_before(20), &first(25, 18)), (Received::Delivered, 1));
    assert_eq!(receive(&mut empty_before(20), &first(19, 0)), (Received::Duplicate, 0));
    // Something of 20 to 22 may be missing: it is asked for by its place.
    let mut repair = empty_before(20);
    assert_eq!(receive(&mut repair, &first(25, 23)), (Received::Held, 0));
    assert_eq!(fetch(&mut repair, FeedEnd::Complete { head: None }), (0, Some(at(1, 19))));
    // What is claimed from before is no news.
    let mut repair = empty_before(20);
    repair.claimed(at(1, 19), ms(0));
    assert!(!repair.is_repairing());
    repair.claimed(at(1, 20), ms(0));
    assert!(repair.is_repairing());
}

/// The answer where the stream stands came from a peer that knew less than the head message before it, which is not told again
/// for long.
#[test]
fn a_claim_counts_while_the_stream_is_being_joined() {
    let mut repair = Repair::default();
    repair.join();
    repair.claimed(at(1, 9), ms(0));
    repair.joined(Some(at(1, 7)), ms(1), &mut Vec::new());
    assert!(repair.is_repairing());
}

/// Two counters rose at once, so of four servers only two were ever asked first.
#[test]
fn every_server_has_its_turn() {
    let mut repair = joined(at(1, 7));
    repair.claimed(at(1, 9), ms(0));
    let behind = FeedEnd::Complete { head: Some(at(1, 7)) };
    let attempts: Vec<_> = (0..4).map(|_| fetch(&mut repair, behind).0).collect();
    assert_eq!(attempts, [0, 1, 2, 3]);
}

/// All servers have lost what follows 7; the oldest that one has is 20, but 12 came by gossip and is held.
#[test]
fn what_is_held_goes_before_what_a_server_has_left() {
    let mut repair = joined(at(1, 7));
    let mut outputs = Vec::new();
    let after = |sequence| Previous::At(Sequence::new(sequence).unwrap());
    assert_eq!(repair.receive(&event(12, after(11)), Way::Gossip, ms(0), &mut outputs), Received::Held);
    let lost = Fetched::Ended(FeedEnd::Refused { oldest: Some(at(1, 20)) });
    for _ in 0..2 {
        let due = repair.fetch_due().unwrap();
        let fetch = repair.begin_fetch(due).unwrap();
        repair.fetched(fetch.id, lost, due, &mut outputs);
    }
    repair.receive(&event(20, after(12)), Way::Feed, ms(9000), &mut outputs);
    let told: Vec<_> = outputs
        .iter()
        .map(|output| match output {
            Output::Gap { after } => after.map_or(0, |after| after.sequence.get()),
            Output::Deliver(event) => event.sequence.get(),
            Output::Reset(_) => 0,
        })
        .collect();
    assert_eq!(told, [7, 12, 20], "a gap after 7, then 12 and 20");
}

/// One server told of a new epoch; the next one that was asked had nothing, and the search began anew for ever.
#[test]
fn what_one_server_told_of_is_looked_for_at_the_others() {
    let mut repair = joined(at(1, 7));
    repair.claimed(at(2, 0), ms(0));
    let told = FeedEnd::Refused { oldest: Some(at(2, 0)) };
    fetch(&mut repair, told);
    fetch(&mut repair, told);
    assert_eq!(fetch(&mut repair, FeedEnd::Complete { head: None }), (2, None));
    assert_eq!(fetch(&mut repair, FeedEnd::Complete { head: None }), (3, None));
}
