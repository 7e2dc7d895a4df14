use tickmesh_protocol::{Epoch, Previous, Sequence, SigningKey};

use super::*;
use crate::ingest::Config;

fn key(n: u8) -> PublisherKey {
    SigningKey::from_bytes(&[n; 32]).publisher()
}

fn event(stream: &str, sequence: u64) -> Event {
    Event {
        stream: stream.parse().unwrap(),
        epoch: Epoch::from_u64(1),
        sequence: Sequence::new(sequence).unwrap(),
        previous: Previous::Unknown { read_from: Sequence::ZERO },
        engine_time_us: 0,
        data: "{}".into(),
    }
}

fn sequences(batches: &[Batch]) -> Vec<u64> {
    batches.iter().flat_map(|batch| &batch.events).map(|event| event.sequence.get()).collect()
}

/// Two publishers that know each other: first the one that leads the topic of `trades.btc_usdt`.
fn pair() -> (Publisher, Publisher) {
    let topic = Topic::spanning(&"trades.btc_usdt".parse().unwrap());
    let order = ranked(&topic, [key(1), key(2)]);
    let make = |me: PublisherKey, other: PublisherKey| {
        let mut publisher = Publisher::new(me, 1, Config::default());
        publisher.publisher_up(other);
        publisher
    };
    (make(order[0], order[1]), make(order[1], order[0]))
}

#[test]
fn the_leader_gathers_for_a_moment_then_publishes() {
    let (mut leader, _) = pair();
    let now = Instant::now();
    let config = Config::default();
    assert!(leader.offer(event("trades.btc_usdt", 1), now).is_some());
    assert!(leader.offer(event("trades.btc_usdt", 2), now + config.batch / 2).is_none());
    assert_eq!(leader.next_due(), Some(now + config.batch));
    assert!(leader.take_due(now + config.batch / 2).is_empty());
    let batches = leader.take_due(now + config.batch);
    assert_eq!(batches.len(), 1);
    assert_eq!(sequences(&batches), [1, 2]);
    assert_eq!(leader.next_due(), None);
}

#[test]
fn the_others_hold_events_until_they_are_seen() {
    let (mut leader, mut other) = pair();
    let now = Instant::now();
    for publisher in [&mut leader, &mut other] {
        publisher.offer(event("trades.btc_usdt", 1), now);
    }
    let batches = leader.take_due(now + Config::default().batch);
    assert!(other.take_due(now + Config::default().batch).is_empty());
    other.seen(&batches[0], now);
    assert!(other.take_due(now + Config::default().takeover_after).is_empty());
    assert_eq!(other.next_due(), None);
}

#[test]
fn what_was_seen_before_it_was_read_is_not_published() {
    let (mut leader, mut other) = pair();
    let now = Instant::now();
    other.offer(event("trades.btc_usdt", 1), now);
    leader.offer(event("trades.btc_usdt", 2), now);
    other.seen(&leader.take_due(now + Config::default().batch)[0], now);
    other.offer(event("trades.btc_usdt", 2), now);
    assert!(other.take_due(now + Config::default().takeover_after).is_empty());
}

#[test]
fn a_silent_leader_is_stood_in_for() {
    let (_, mut other) = pair();
    let config = Config::default();
    let now = Instant::now();
    other.offer(event("trades.btc_usdt", 1), now);
    other.offer(event("trades.btc_usdt", 2), now + config.takeover_after);
    assert_eq!(sequences(&other.take_due(now + config.takeover_after)), [1]);
    assert_eq!(sequences(&other.take_due(now + config.takeover_after * 2)), [2]);
}

#[test]
fn a_late_leader_that_goes_on_is_left_alone() {
    let (mut leader, mut other) = pair();
    let config = Config::default();
    let now = Instant::now();
    for sequence in 1..=3 {
        other.offer(event("trades.btc_usdt", sequence), now);
    }
    leader.offer(event("trades.btc_usdt", 1), now);
    let late = now + config.takeover_after - config.batch;
    other.seen(&leader.take_due(late)[0], late);
    assert!(other.take_due(now + config.takeover_after).is_empty());
    assert_eq!(other.next_due(), Some(late + config.takeover_after));
    assert_eq!(sequences(&other.take_due(late + config.takeover_after)), [2, 3]);
}

#[test]
fn a_lost_leader_is_followed_at_once_with_the_backlog() {
    let (leader, mut other) = pair();
    let now = Instant::now();
    for sequence in 1..=3 {
        other.offer(event("trades.btc_usdt", sequence), now);
    }
    other.publisher_down(leader.me);
    assert_eq!(other.leading(), 1);
    assert_eq!(sequences(&other.take_due(now + Config::default().batch)), [1, 2, 3]);
    other.publisher_up(leader.me);
    assert_eq!(other.leading(), 0);
}

#[test]
fn a_backlog_goes_out_in_portions_in_order() {
    let mut alone = Publisher::new(key(1), 1, Config::default());
    let now = Instant::now();
    for sequence in 0..2000 {
        alone.offer(event("trades.btc_usdt", sequence), now);
    }
    let batches = alone.take_due(now + Config::default().batch);
    assert!(batches.iter().all(|batch| batch.events.len() <= BATCH_EVENTS));
    assert_eq!(sequences(&batches), (0..2000).collect::<Vec<_>>());
    let counters: Vec<_> = batches.iter().map(|batch| batch.counter).collect();
    assert_eq!(counters, (1..=batches.len() as u64).collect::<Vec<_>>());
}
