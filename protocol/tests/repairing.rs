//! Repair of one stream: each step by itself, then any loss and order against a log that serves what is missing.

#![allow(clippy::unwrap_used, reason = "clippy knows only the #[test] functions as tests, not their helpers")]

#[cfg(test)]
#[path = "repairing/order.rs"]
mod order;
#[cfg(test)]
#[path = "repairing/stream.rs"]
mod stream;

use std::time::Duration;

use bytes::Bytes;
use stream::{Put, Stream, at, complete, event, event_after, events, refused, sequence};
use tickmesh_protocol::{
    Event, Moment, Position, Previous, Sequence,
    position::MAX_SEQUENCE,
    repair::{Fetched, GRACE, MAX_HELD_BYTES, MAX_HELD_EVENTS, Received},
};

// Joining

#[test]
fn held_events_up_to_the_head_are_left_out_and_the_rest_follows() {
    let mut stream = Stream::joining();
    for number in [5, 7, 6, 8] {
        assert_eq!(stream.gossip(&event(number)), Received::Held);
    }
    stream.joined(Some(at(1, 6)));
    assert_eq!(stream.put_out(), events([7, 8]));
    assert_eq!(stream.gossip(&event(9)), Received::Delivered);
    stream.joined(Some(at(1, 1)));
    assert_eq!(stream.repair.position(), Some(at(1, 9)), "a second answer changes nothing");
}

#[test]
fn a_head_beyond_what_was_held_makes_late_events_duplicates() {
    let mut stream = Stream::joining();
    stream.gossip(&event(5));
    stream.joined(Some(at(1, 7)));
    assert_eq!(stream.gossip(&event(7)), Received::Duplicate);
    assert_eq!(stream.gossip(&event(8)), Received::Delivered);
    assert_eq!(stream.put_out(), events([8]));
}

#[test]
fn an_empty_stream_begins_with_its_first_event() {
    let mut stream = Stream::joining();
    stream.gossip(&event_after(at(1, 5), Previous::Unknown { read_from: Sequence::ZERO }));
    stream.joined(None);
    assert_eq!(stream.put_out(), events([5]));
}

#[test]
fn an_empty_stream_whose_first_event_was_lost_is_fetched_from_its_oldest() {
    let mut stream = Stream::live(None);
    assert_eq!(stream.gossip(&event(5)), Received::Held);
    let first = event_after(at(1, 4), Previous::Unknown { read_from: Sequence::ZERO });
    assert_eq!(stream.serve(&[first, event(5)], Some(at(1, 5))).after, None);
    assert_eq!(stream.put_out(), events([4, 5]));
    assert!(!stream.repair.is_repairing());
}

#[test]
fn what_could_not_be_held_while_joining_is_fetched() {
    let mut stream = Stream::joining();
    let last = MAX_HELD_EVENTS as u64 + 10;
    let dropped = (1..=last).filter(|number| stream.gossip(&event(*number)) == Received::Dropped).count();
    assert_eq!((dropped, stream.repair.held()), (10, MAX_HELD_EVENTS));
    stream.joined(Some(at(1, 3)));
    assert_eq!(stream.put_out(), []);
    assert_eq!(stream.serve(&Vec::from_iter((4..=10).map(event)), Some(at(1, last))).after, Some(at(1, 3)));
    assert_eq!(stream.put_out(), events(4..=last));
}

#[test]
fn held_bytes_are_bounded() {
    let big = |number| Event { data: Bytes::from(vec![b'1'; MAX_HELD_BYTES / 2]), ..event(number) };
    let mut stream = Stream::joining();
    let received = [1, 2, 3].map(|number| stream.gossip(&big(number)));
    assert_eq!(received, [Received::Held, Received::Held, Received::Dropped]);
    let mut stream = Stream::live(at(1, 1));
    let received = [3, 4, 5].map(|number| stream.gossip(&big(number)));
    assert_eq!(received, [Received::Held, Received::Held, Received::Dropped]);
    assert!(stream.repair.is_catching_up());
}

#[test]
fn held_events_of_an_epoch_that_was_left_do_not_turn_the_stream_back() {
    for head in [2, 3] {
        let mut stream = Stream::joining();
        stream.gossip(&event_after(at(9, 100), Previous::At(sequence(99))));
        stream.gossip(&event(3));
        stream.joined(Some(at(1, head)));
        assert_eq!(stream.put_out(), events(head + 1..=3));
        assert_eq!(stream.gossip(&event(4)), Received::Delivered);
        assert!(!stream.repair.is_repairing());
    }
}

#[test]
fn giving_up_holds_nothing_and_asks_anew() {
    let mut stream = Stream::joining();
    stream.gossip(&event(5));
    stream.repair.give_up();
    assert_eq!((stream.gossip(&event(6)), stream.repair.held()), (Received::Ignored, 0));
    assert!(stream.repair.join());
    stream.joined(Some(at(1, 6)));
    assert_eq!(stream.put_out(), []);
    stream.repair.give_up();
    assert!(stream.repair.is_live(), "a live stream stays live");
}

// Holes

#[test]
fn what_was_overtaken_is_put_back_in_order_without_a_fetch() {
    let mut stream = Stream::live(at(1, 1));
    let received = [4, 3, 3].map(|number| stream.gossip(&event(number)));
    assert_eq!(received, [Received::Held, Received::Held, Received::Duplicate]);
    assert_eq!(stream.repair.fetch_due(), Some(Moment::START + GRACE));
    assert_eq!(stream.gossip(&event(2)), Received::Delivered);
    assert_eq!(stream.put_out(), events([2, 3, 4]));
    assert_eq!((stream.repair.fetch_due(), stream.repair.is_repairing()), (None, false));
    assert_eq!(stream.gossip(&event(3)), Received::Duplicate);
}

#[test]
fn a_hole_is_fetched_and_mended() {
    let mut stream = Stream::live(at(1, 8));
    stream.gossip(&event(12));
    let fetch = stream.fetch();
    assert_eq!((fetch.after, fetch.attempt), (Some(at(1, 8)), 0));
    stream.gossip(&event(13));
    for number in 9..=11 {
        assert_eq!(stream.fed(&event(number)), Received::Delivered);
    }
    assert_eq!(stream.put_out(), events(9..=13));
    assert!(!stream.repair.is_repairing());
    // The rest of the feed, and its end, come too late to matter.
    assert_eq!(stream.fed(&event(12)), Received::Duplicate);
    stream.ended(fetch, complete(Some(at(1, 13))));
    assert_eq!((stream.repair.fetch_due(), stream.put_out()), (None, vec![]));
}

#[test]
fn the_end_of_an_old_fetch_does_not_end_a_newer_one() {
    let mut stream = Stream::live(at(1, 1));
    stream.gossip(&event(3));
    let old = stream.fetch();
    stream.gossip(&event(2));
    stream.gossip(&event(5));
    stream.ended(old, Fetched::Failed);
    assert_eq!(stream.repair.fetch_due(), Some(stream.now + GRACE));
    let new = stream.fetch();
    stream.ended(old, Fetched::Failed);
    assert_eq!(stream.repair.fetch_due(), None, "the new one is still running");
    stream.fed(&event(4));
    stream.ended(new, complete(Some(at(1, 5))));
    assert_eq!(stream.put_out(), events([2, 3, 4, 5]));
}

#[test]
fn failed_fetches_are_tried_again_ever_more_slowly_and_for_ever() {
    let mut stream = Stream::live(at(1, 1));
    stream.gossip(&event(3));
    let mut pauses = Vec::new();
    for attempt in 0..50 {
        let before = stream.now;
        let fetch = stream.fetch();
        assert_eq!(fetch.attempt, attempt);
        pauses.push(stream.now.since(before));
        stream.ended(fetch, Fetched::Failed);
    }
    assert!(pauses.is_sorted() && pauses[49] == Duration::from_secs(2), "{pauses:?}");
    stream.serve(&[event(2)], Some(at(1, 3)));
    assert_eq!(stream.put_out(), events([2, 3]));
}

#[test]
fn beyond_the_bound_newer_events_are_dropped_and_fetched_when_their_turn_comes() {
    let mut stream = Stream::live(at(1, 1));
    let last = MAX_HELD_EVENTS as u64 + 500;
    let dropped = (3..=last).filter(|number| stream.gossip(&event(*number)) == Received::Dropped).count();
    assert_eq!((dropped, stream.repair.held()), (498, MAX_HELD_EVENTS));
    assert!(stream.repair.is_catching_up());
    // A first page brings what was missing, and with it all that was held.
    let fetch = stream.fetch();
    stream.fed(&event(2));
    assert_eq!(stream.repair.position(), Some(at(1, MAX_HELD_EVENTS as u64 + 2)));
    assert!(stream.repair.is_catching_up(), "what was dropped is still missing");
    assert_eq!(stream.gossip(&event(last + 1)), Received::Held);
    for number in 3..=last {
        stream.fed(&event(number));
    }
    stream.ended(fetch, complete(Some(at(1, last))));
    assert_eq!(stream.put_out(), events(2..=last + 1));
    assert!(!stream.repair.is_repairing() && !stream.repair.is_catching_up());
}

#[test]
fn a_refused_range_is_told_once_and_the_stream_goes_on_with_what_there_is() {
    let mut stream = Stream::live(at(1, 8));
    stream.gossip(&event(12));
    let fetch = stream.fetch();
    stream.ended(fetch, refused(Some(at(1, 10))));
    assert_eq!(stream.put_out(), [], "a server may just be starting");
    let fetch = stream.fetch();
    stream.ended(fetch, refused(Some(at(1, 10))));
    let fetch = stream.serve(&[event(10), event(11), event(12)], Some(at(1, 12)));
    assert_eq!(fetch.after, Some(at(1, 9)));
    let mut expected = vec![Put::Gap(Some(at(1, 8)))];
    expected.extend(events(10..=12));
    assert_eq!(stream.put_out(), expected);
    assert!(!stream.repair.is_repairing());
}

#[test]
fn a_server_that_still_had_it_after_all_makes_no_gap() {
    let mut stream = Stream::live(at(1, 8));
    stream.gossip(&event(12));
    for _ in 0..2 {
        let fetch = stream.fetch();
        stream.ended(fetch, refused(Some(at(1, 10))));
    }
    stream.serve(&Vec::from_iter((5..=12).map(event)), Some(at(1, 12)));
    assert_eq!(stream.put_out(), events(9..=12));
}

#[test]
fn what_is_held_is_put_out_before_what_servers_still_have() {
    let mut stream = Stream::live(at(1, 8));
    stream.gossip(&event(12));
    stream.claimed(at(1, 50));
    for _ in 0..2 {
        let fetch = stream.fetch();
        stream.ended(fetch, refused(Some(at(1, 50))));
    }
    assert_eq!(stream.put_out(), [Put::Gap(Some(at(1, 8))), Put::Event(12)]);
    for _ in 0..2 {
        let fetch = stream.fetch();
        assert_eq!(fetch.after, Some(at(1, 12)));
        stream.ended(fetch, refused(Some(at(1, 50))));
    }
    stream.serve(&[event(50)], Some(at(1, 50)));
    assert_eq!(stream.put_out(), [Put::Gap(Some(at(1, 12))), Put::Event(50)]);
}

#[test]
fn servers_that_refuse_everything_are_not_asked_in_a_tight_loop() {
    let mut stream = Stream::live(at(1, 8));
    stream.claimed(at(1, 20));
    let mut asked = 0;
    while stream.repair.is_repairing() {
        let fetch = stream.fetch();
        stream.ended(fetch, refused(Some(at(1, 10))));
        asked += 1;
        assert!(asked < 10, "it ends");
    }
    assert_eq!(stream.put_out(), [], "nothing was held, so nothing can be told yet");
}

#[test]
fn with_nothing_anywhere_else_what_is_held_goes_out_after_a_gap() {
    let mut stream = Stream::live(at(1, 8));
    for number in [12, 13, 20] {
        stream.gossip(&event(number));
    }
    while stream.repair.is_repairing() {
        let fetch = stream.fetch();
        stream.ended(fetch, refused(None));
    }
    let (first, second) = (Put::Gap(Some(at(1, 8))), Put::Gap(Some(at(1, 13))));
    let expected = [first, Put::Event(12), Put::Event(13), second, Put::Event(20)];
    assert_eq!(stream.put_out(), expected);
    assert_eq!(stream.fetches, 4);
}

#[test]
fn a_previous_that_lies_is_found_out_and_told() {
    let mut stream = Stream::live(at(1, 8));
    // 12 follows 8 in truth.
    let lie = event(12);
    stream.gossip(&lie);
    while stream.repair.is_repairing() {
        stream.serve(std::slice::from_ref(&lie), Some(at(1, 12)));
        assert!(stream.fetches < 10);
    }
    assert_eq!(stream.put_out(), [Put::Gap(Some(at(1, 8))), Put::Event(12)]);
    assert_eq!(stream.gossip(&event(13)), Received::Delivered);
}

// Claims

#[test]
fn a_claimed_head_causes_a_fetch_and_nothing_else() {
    let mut stream = Stream::live(at(1, 8));
    stream.claimed(at(1, 8));
    stream.claimed(at(1, 3));
    assert!(!stream.repair.is_repairing());
    stream.claimed(at(1, 10));
    assert_eq!((stream.repair.position(), stream.put_out()), (Some(at(1, 8)), vec![]));
    stream.serve(&[event(9), event(10)], Some(at(1, 10)));
    assert_eq!(stream.put_out(), events([9, 10]));
    assert!(!stream.repair.is_repairing());
}

#[test]
fn claims_reach_only_live_streams() {
    let mut stream = Stream::joining();
    stream.claimed(at(1, 10));
    assert_eq!(stream.repair.fetch_due(), None);
    stream.joined(Some(at(1, 10)));
    assert!(!stream.repair.is_repairing());
}

/// Whatever is claimed, the stream goes on, and the claim is forgotten after a few fetches.
fn a_claim_is_forgotten(claim: Position, gossip: bool) {
    let mut stream = Stream::live(at(1, 8));
    stream.claimed(claim);
    let mut next = 9;
    while stream.repair.is_repairing() {
        let fetch = stream.fetch();
        if gossip {
            assert_eq!(stream.gossip(&event(next)), Received::Delivered);
            next += 1;
        }
        stream.ended(fetch, complete(Some(at(1, next - 1))));
        assert!(stream.fetches < 10, "the claim is dropped");
    }
    assert!(stream.now > Moment::START + Duration::from_secs(1), "it was not fetched in a tight loop");
    assert_eq!(stream.put_out(), events(9..next));
    assert_eq!(stream.gossip(&event(next)), Received::Delivered);
}

#[test]
fn claims_from_the_future_or_of_unknown_epochs_are_forgotten() {
    for claim in [at(1, MAX_SEQUENCE), at(2, 0), at(2, MAX_SEQUENCE)] {
        for gossip in [false, true] {
            a_claim_is_forgotten(claim, gossip);
        }
    }
}

#[test]
fn an_event_from_the_future_does_not_delay_the_repair_of_a_hole() {
    let mut stream = Stream::live(at(1, 1));
    stream.gossip(&event(MAX_SEQUENCE));
    let mut next = 2;
    // Servers know nothing of it; the stream is busy all the time.
    for _ in 0..20 {
        let fetch = stream.fetch();
        assert_eq!(stream.gossip(&event(next)), Received::Delivered);
        stream.ended(fetch, complete(Some(at(1, next))));
        next += 1;
    }
    assert!(stream.now > Moment::START + Duration::from_secs(20), "it was not fetched in a tight loop");
    // A real hole is looked after at once.
    stream.gossip(&event(next + 1));
    let due = stream.repair.fetch_due().unwrap();
    assert!(due <= stream.now + GRACE);
    stream.serve(&[event(next)], Some(at(1, next + 1)));
    assert_eq!(stream.put_out(), events(2..=next + 1));
    // And in the end the false one is forgotten.
    while stream.repair.is_repairing() {
        stream.serve(&[], Some(at(1, next + 1)));
        assert!(stream.fetches < 100);
    }
    assert_eq!(stream.put_out(), []);
    assert_eq!(stream.gossip(&event(next + 2)), Received::Delivered);
}

#[test]
fn a_claim_that_its_own_server_does_not_serve_is_dropped() {
    let mut stream = Stream::live(at(1, 8));
    stream.claimed(at(1, 20));
    while stream.repair.is_repairing() {
        stream.serve(&[], Some(at(1, 20)));
    }
    assert_eq!((stream.fetches, stream.put_out()), (2, vec![]));
}

#[test]
fn a_suspicion_is_looked_into_once() {
    let mut stream = Stream::live(at(1, 8));
    stream.repair.suspect(stream.now);
    stream.serve(&[event(9)], Some(at(1, 9)));
    assert_eq!((stream.put_out(), stream.repair.is_repairing()), (events([9]), false));
    // What comes up while a fetch is running needs another one, and so does what could not be looked into.
    stream.repair.suspect(stream.now);
    let fetch = stream.fetch();
    assert_eq!(stream.gossip(&event(10)), Received::Delivered);
    stream.repair.suspect(stream.now);
    stream.ended(fetch, complete(Some(at(1, 10))));
    let fetch = stream.fetch();
    stream.ended(fetch, Fetched::Failed);
    stream.serve(&[], Some(at(1, 10)));
    assert_eq!((stream.fetches, stream.repair.is_repairing()), (4, false));
}

#[test]
fn a_server_that_comes_is_asked_before_the_pause_is_over() {
    let mut stream = Stream::live(at(1, 8));
    stream.claimed(at(1, 9));
    for _ in 0..10 {
        let fetch = stream.fetch();
        stream.ended(fetch, Fetched::Failed);
    }
    stream.repair.suspect(stream.now);
    assert_eq!(stream.repair.fetch_due(), Some(stream.now + GRACE));
}

// Epochs

#[test]
fn a_new_epoch_follows_what_was_before_it() {
    let new = |number, previous| event_after(at(2, number), previous);
    let reset = new(0, Previous::Reset { after: at(1, 5) });
    let mut stream = Stream::live(at(1, 3));
    // Everything arrives backwards.
    let second = new(1, Previous::At(Sequence::ZERO));
    for event in [&second, &reset, &event(5)] {
        assert_eq!(stream.gossip(event), Received::Held);
    }
    assert_eq!(stream.gossip(&event(4)), Received::Delivered);
    let expected = [Put::Event(4), Put::Event(5), Put::Reset(2), Put::Event(0), Put::Event(1)];
    assert_eq!(stream.put_out(), expected);
    assert_eq!(stream.gossip(&event(6)), Received::Duplicate, "a late one of the epoch that was left");
    stream.claimed(at(1, 100));
    assert!(!stream.repair.is_repairing(), "nor is the old epoch looked for");
}

#[test]
fn a_missed_reset_is_fetched() {
    let reset = event_after(at(2, 0), Previous::Reset { after: at(1, 4) });
    let second = event_after(at(2, 1), Previous::At(Sequence::ZERO));
    let mut stream = Stream::live(at(1, 3));
    stream.gossip(&second);
    stream.serve(&[event(4), reset], Some(at(2, 1)));
    let expected = [Put::Event(4), Put::Reset(2), Put::Event(0), Put::Event(1)];
    assert_eq!(stream.put_out(), expected);
    assert!(!stream.repair.is_repairing());
}

#[test]
fn an_old_epoch_that_is_lost_is_told_before_the_new_one() {
    let reset = event_after(at(2, 7), Previous::Unknown { read_from: sequence(5) });
    let mut stream = Stream::live(at(1, 3));
    stream.claimed(at(2, 7));
    for _ in 0..2 {
        let fetch = stream.fetch();
        stream.ended(fetch, refused(Some(at(2, 7))));
    }
    stream.serve(&[reset], Some(at(2, 7)));
    assert_eq!(stream.put_out(), [Put::Gap(Some(at(1, 3))), Put::Reset(2), Put::Event(7)]);
    assert!(!stream.repair.is_repairing());
}
