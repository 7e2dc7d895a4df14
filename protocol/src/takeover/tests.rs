use super::{
    topic::{BATCH_EVENTS, TELLINGS},
    *,
};
use crate::{Epoch, Previous, Sequence, SigningKey};

const SOURCE: SourceId = SourceId(0);
const NOTHING: [u64; 0] = [];
const BATCH: Duration = Duration::from_millis(1);

/// Milliseconds after half a minute.
fn ms(n: u64) -> Moment {
    Moment::after(Duration::from_millis(30_000 + n))
}

fn key(n: u8) -> PublisherKey {
    SigningKey::from_bytes(&[n; 32]).publisher()
}

fn topic() -> Topic {
    Topic::spanning(&"trades.btc_usdt".parse().unwrap())
}

fn event(sequence: u64) -> Event {
    Event {
        stream: "trades.btc_usdt".parse().unwrap(),
        epoch: Epoch::from_u64(1),
        sequence: Sequence::new(sequence).unwrap(),
        previous: Previous::Unknown { read_from: Sequence::ZERO },
        engine_time_us: 0,
        data: "{}".into(),
        signature: None,
    }
}

fn sequences(batches: &[Batch]) -> Vec<u64> {
    batches.iter().flat_map(|batch| &batch.events).map(|event| event.sequence.get()).collect()
}

fn heads(batches: &[Batch]) -> Vec<u64> {
    batches.iter().flat_map(|batch| &batch.heads).map(|(_, at)| at.sequence.get()).collect()
}

/// As if it had settled.
fn warm(publisher: &mut Publisher, tier: u8, now: Moment) {
    publisher.read_up(SOURCE, tier, now);
    publisher.settled(now + publisher.settings.settle);
}

fn alone() -> Publisher {
    let mut publisher = Publisher::new(key(1), 1, Settings::default());
    warm(&mut publisher, 0, Moment::START);
    publisher
}

/// Publishers that know one another, in the order of their rank on the topic.
fn group(count: u8) -> Vec<Publisher> {
    let keys: Vec<_> = (1..=count).map(key).collect();
    let make = |me: PublisherKey| {
        let mut publisher = Publisher::new(me, 1, Settings::default());
        warm(&mut publisher, 0, Moment::START);
        for other in &keys {
            publisher.peer(*other, SOURCE, Some(0), Moment::START);
        }
        publisher
    };
    ranked(&topic(), keys.clone()).into_iter().map(make).collect()
}

/// The same, half a minute after the followers saw the first one publish, a millisecond late.
fn settled(count: u8) -> Vec<Publisher> {
    let mut group = group(count);
    for n in 0..20 {
        let now = Moment::START + Duration::from_millis(n);
        let event = Event { stream: "trades.btc_usdt@raw".parse().unwrap(), ..event(n) };
        for publisher in &mut group {
            publisher.offer(SOURCE, event.clone(), now);
        }
        let batches = group[0].take_due(now + BATCH);
        for publisher in &mut group[1..] {
            publisher.seen(&batches[0], now + BATCH);
        }
    }
    for publisher in &mut group {
        while publisher.next_due().is_some_and(|due| due < ms(0)) {
            publisher.take_due(ms(0));
        }
    }
    group
}

#[test]
fn the_leader_gathers_for_a_moment_then_publishes() {
    let mut leader = group(2).remove(0);
    assert_eq!(leader.offer(SOURCE, event(1), ms(10)), Some(topic()));
    assert_eq!(leader.offer(SOURCE, event(2), ms(10) + BATCH / 2), None);
    assert_eq!(leader.next_due(), Some(ms(11)));
    assert!(leader.take_due(ms(10) + BATCH / 2).is_empty());
    let batches = leader.take_due(ms(11));
    assert_eq!(batches.len(), 1);
    assert_eq!(sequences(&batches), [1, 2]);
}

#[test]
fn the_others_hold_events_until_they_are_seen() {
    let mut group = group(2);
    for publisher in &mut group {
        publisher.offer(SOURCE, event(1), ms(10));
    }
    let batches = group[0].take_due(ms(11));
    assert!(group[1].take_due(ms(11)).is_empty());
    group[1].seen(&batches[0], ms(12));
    assert_eq!(sequences(&group[1].take_due(ms(5000))), NOTHING);
    assert_eq!(group[1].counts().takeovers, 0);
}

#[test]
fn what_was_seen_before_it_was_read_is_not_published() {
    let mut group = group(2);
    group[1].offer(SOURCE, event(1), ms(1));
    group[0].offer(SOURCE, event(2), ms(1));
    let batches = group[0].take_due(ms(2));
    group[1].seen(&batches[0], ms(3));
    group[1].offer(SOURCE, event(2), ms(3));
    assert_eq!(sequences(&group[1].take_due(ms(5000))), NOTHING);
}

#[test]
fn a_silent_leader_is_followed_by_rank_and_yielded_to() {
    let mut group = settled(3);
    for publisher in &mut group[1..] {
        publisher.offer(SOURCE, event(1), ms(100));
        publisher.offer(SOURCE, event(2), ms(110));
    }
    assert_eq!(group[1].next_due(), Some(ms(125)));
    assert_eq!(group[2].next_due(), Some(ms(150)), "the next rank waits twice as long");
    let batches = group[1].take_due(ms(125));
    assert_eq!(sequences(&batches), [1, 2], "the whole backlog, in order");
    group[2].seen(&batches[0], ms(126));
    assert_eq!(sequences(&group[2].take_due(ms(400))), NOTHING);
    group[1].offer(SOURCE, event(3), ms(130));
    assert_eq!(sequences(&group[1].take_due(ms(131))), [3], "it leads now");
    assert_eq!(group[1].counts(), Counts { takeovers: 1, yields: 0, overflowed: 0 });

    group[0].offer(SOURCE, event(4), ms(140));
    let back = group[0].take_due(ms(141));
    group[1].offer(SOURCE, event(5), ms(142));
    group[1].seen(&back[0], ms(143));
    assert_eq!(group[1].counts().yields, 1);
    assert_eq!(sequences(&group[1].take_due(ms(192))), NOTHING, "the timeout is longer for a while");
    group[1].offer(SOURCE, event(6), ms(192));
    assert_eq!(sequences(&group[1].take_due(ms(193))), [5, 6]);
}

#[test]
fn a_late_leader_that_goes_on_is_left_alone() {
    let mut group = settled(2);
    for sequence in 1..=20 {
        group[1].offer(SOURCE, event(sequence), ms(100));
    }
    for sequence in 1..=18 {
        // 20 ms apart: never silent for the timeout.
        let now = ms(100 + sequence * 20);
        group[0].offer(SOURCE, event(sequence), now.before(BATCH));
        assert_eq!(sequences(&group[1].take_due(now)), NOTHING);
        let batches = group[0].take_due(now);
        group[1].seen(&batches[0], now);
    }
    assert_eq!(sequences(&group[1].take_due(ms(460 + 79))), NOTHING);
    assert_eq!(sequences(&group[1].take_due(ms(460 + 80))), [19, 20], "its lag has raised the timeout");
}

/// A batch of another topic.
fn elsewhere(publisher: PublisherKey, sequence: u64) -> Batch {
    let event = Event { stream: "depth.btc_usdt".parse().unwrap(), ..event(sequence) };
    let topic = Topic::spanning(&event.stream);
    Batch { publisher, boot: 1, counter: sequence, topic, events: vec![event], heads: Vec::new() }
}

#[test]
fn what_a_leader_leaves_out_for_long_is_published() {
    let mut group = settled(2);
    let leader = group[0].me;
    let follower = &mut group[1];
    follower.offer(SOURCE, event(1), ms(0));
    for now in (0..1000).step_by(10) {
        follower.seen(&elsewhere(leader, now), ms(now));
        assert_eq!(sequences(&follower.take_due(ms(now))), NOTHING, "at {now}");
    }
    assert_eq!(sequences(&follower.take_due(ms(1000))), [1]);
}

#[test]
fn a_lost_leader_is_followed_at_once_with_the_backlog() {
    let mut group = group(2);
    let leader = group[0].me;
    let follower = &mut group[1];
    for sequence in 1..=3 {
        follower.offer(SOURCE, event(sequence), ms(10));
    }
    follower.peer_down(leader, ms(12));
    assert_eq!((follower.leading(), follower.counts().takeovers), (1, 1));
    assert_eq!(sequences(&follower.take_due(ms(12))), [1, 2, 3]);
    follower.offer(SOURCE, event(4), ms(13));
    follower.peer(leader, SOURCE, Some(0), ms(13));
    assert_eq!((follower.leading(), follower.counts().yields), (0, 1));
    follower.offer(SOURCE, event(5), ms(15));
    assert_eq!(sequences(&follower.take_due(ms(16))), [4], "the new leader may not have held this one");
}

#[test]
fn who_is_not_warm_publishes_nothing() {
    let mut cold = Publisher::new(key(1), 1, Settings::default());
    cold.offer(SOURCE, event(1), ms(0));
    assert_eq!(sequences(&cold.take_due(ms(10_000))), NOTHING);
    warm(&mut cold, 0, ms(10_000));
    assert_eq!(sequences(&cold.take_due(ms(10_001))), [1]);
}

#[test]
fn who_comes_to_others_ranks_when_it_has_settled_or_they_are_gone() {
    let settle = Settings::default().settle;
    for gone in [false, true] {
        let mut publisher = Publisher::new(key(1), 1, Settings::default());
        // Of a standby region: ranked after this one.
        publisher.peer(key(2), SOURCE, Some(1), ms(0));
        publisher.offer(SOURCE, event(1), ms(0));
        publisher.read_up(SOURCE, 0, ms(0));
        assert_eq!((publisher.next_due(), publisher.settled(ms(1))), (Some(ms(0) + settle), vec![]));
        let ranks = if gone { ms(10) } else { ms(0) + settle };
        if gone {
            publisher.peer_down(key(2), ranks);
        }
        assert_eq!(sequences(&publisher.take_due(ranks)), NOTHING);
        assert_eq!(publisher.settled(ranks), [SOURCE]);
        assert_eq!(sequences(&publisher.take_due(ranks)), [1]);
        assert_eq!(publisher.settled(ranks + settle), []);
    }
}

#[test]
fn the_home_region_leads() {
    let mut publisher = alone();
    for other in 2..=9 {
        publisher.peer(key(other), SOURCE, Some(1), Moment::START);
    }
    publisher.offer(SOURCE, event(1), ms(1));
    assert_eq!(publisher.leading(), 1);
    warm(&mut publisher, 2, ms(1));
    assert_eq!(publisher.leading(), 0);
}

#[test]
fn who_was_frozen_listens_first() {
    let mut group = settled(2);
    for sequence in 1..=3 {
        for publisher in &mut group {
            publisher.offer(SOURCE, event(sequence), ms(10));
        }
    }
    let by_other = group[1].take_due(ms(100));
    assert_eq!(sequences(&by_other), [1, 2, 3]);
    let woken = ms(10_011);
    group[0].woken(woken.since(ms(11)), woken);
    assert_eq!(sequences(&group[0].take_due(woken)), NOTHING);
    group[0].offer(SOURCE, event(4), woken);
    group[0].seen(&by_other[0], woken);
    assert_eq!(group[0].next_due(), Some(woken + LISTEN));
    assert_eq!(sequences(&group[0].take_due(woken + LISTEN)), [4]);
}

#[test]
fn heads_are_told_after_silence_by_the_leader_and_again() {
    let mut group = group(2);
    group[0].offer(SOURCE, event(1), ms(0));
    let batches = group[0].take_due(ms(1));
    group[1].seen(&batches[0], ms(1));
    let mut told = Vec::new();
    while let Some(due) = group[0].next_due() {
        let batches = group[0].take_due(due);
        if !heads(&batches).is_empty() {
            told.push(due.since_start().as_millis());
        }
        assert_eq!(heads(&group[1].take_due(due)), NOTHING, "followers tell nothing");
    }
    assert_eq!(told.len(), usize::from(TELLINGS));
    assert_eq!((told[0], told[1], told[7]), (30_501, 31_501, 157_501));

    // A follower that becomes leader tells them again: the last ones may have been lost with its leader.
    let leader = group[0].me;
    group[1].offer(SOURCE, event(2), ms(200_000));
    group[1].peer_down(leader, ms(200_000));
    assert_eq!(sequences(&group[1].take_due(ms(200_001))), [2]);
    let mut told = Vec::new();
    while let Some(due) = group[1].next_due() {
        told.extend(heads(&group[1].take_due(due)));
    }
    assert_eq!(told, [2; 8]);
}

#[test]
fn a_busy_stream_tells_no_head() {
    let mut leader = alone();
    for n in 0..100 {
        leader.offer(SOURCE, event(n), ms(n * 100));
        let batches = leader.take_due(ms(n * 100 + 1));
        assert_eq!((sequences(&batches), heads(&batches)), (vec![n], NOTHING.to_vec()));
    }
}

#[test]
fn what_was_replayed_is_told_as_soon_as_the_source_is_warm() {
    let mut publisher = Publisher::new(key(1), 1, Settings::default());
    for sequence in 1..=3 {
        let event = event(sequence);
        publisher.replayed(SOURCE, &event.stream, event.position(), ms(1000));
    }
    assert_eq!(heads(&publisher.take_due(ms(1400))), NOTHING);
    publisher.read_up(SOURCE, 0, ms(2000));
    publisher.settled(ms(2000));
    let batches = publisher.take_due(ms(2000));
    assert_eq!((sequences(&batches), heads(&batches)), (NOTHING.to_vec(), vec![3]));
    assert_eq!(publisher.head(&event(1).stream), Some(event(3).position()));
}

#[test]
fn a_backlog_goes_out_in_portions_in_order() {
    let mut publisher = alone();
    for sequence in 0..2000 {
        publisher.offer(SOURCE, event(sequence), ms(0));
    }
    let batches = publisher.take_due(ms(1));
    assert!(batches.iter().all(|batch| batch.events.len() <= BATCH_EVENTS));
    assert_eq!(sequences(&batches), (0..2000).collect::<Vec<_>>());
    let counters: Vec<_> = batches.iter().map(|batch| batch.counter).collect();
    assert_eq!(counters, (1..=batches.len() as u64).collect::<Vec<_>>());
}

#[test]
fn a_follower_holds_no_more_than_its_bound() {
    let mut group = group(2);
    for sequence in 0..MAX_HELD as u64 + 10 {
        group[1].offer(SOURCE, event(sequence), ms(0));
    }
    assert_eq!(group[1].counts().overflowed, 10);
    assert_eq!(group[1].standings().next().unwrap().unpublished, MAX_HELD);
}

/// Found by the model: a follower that had not joined the topic yet published what the leader had, one epoch back, and every
/// peer told that head from then on.
#[test]
fn a_late_event_of_an_epoch_that_was_left_does_not_turn_the_head_back() {
    let after = event(7).position();
    let old = event(7);
    let anew = |sequence, previous| Event { epoch: Epoch::from_u64(2), previous, ..event(sequence) };
    let first = anew(0, Previous::Reset { after });
    let mut group = group(2);
    for publisher in &mut group {
        publisher.offer(SOURCE, old.clone(), ms(0));
        publisher.offer(SOURCE, first.clone(), ms(1));
    }
    let batches = group[0].take_due(ms(2));
    // Only the second was received; the first is taken for unpublished.
    let partly = Batch { events: vec![first.clone()], ..batches[0].clone() };
    group[1].seen(&partly, ms(3));
    let again = Batch { publisher: group[1].me, events: vec![old.clone()], ..batches[0].clone() };
    for publisher in &mut group {
        publisher.seen(&again, ms(100));
        assert_eq!(publisher.head(&old.stream), Some(first.position()));
    }
    // Who knows only the old epoch goes on with an event that says what it follows, and with nothing else.
    let mut behind = alone();
    behind.offer(SOURCE, old.clone(), ms(0));
    behind.take_due(ms(1));
    let unlinked = anew(3, Previous::At(Sequence::ZERO));
    for (event, head) in [(unlinked, after), (first.clone(), first.position()), (event(8), first.position())]
    {
        let batch = Batch { publisher: key(9), events: vec![event], ..batches[0].clone() };
        behind.seen(&batch, ms(2));
        assert_eq!(behind.head(&old.stream), Some(head));
    }
}
