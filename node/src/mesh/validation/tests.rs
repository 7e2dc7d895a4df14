use proptest::prelude::*;
use tickmesh_protocol::{Batch, Epoch, Event, Previous, Sequence, SigningKey, StreamName, codec::VERSION};

use super::*;

fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

fn topic() -> Topic {
    Topic::spanning(&stream())
}

fn stream() -> StreamName {
    "trades.btc_usdt".parse().unwrap()
}

fn batch(key: &SigningKey, boot: u64, counter: u64) -> Batch {
    let event = Event {
        stream: stream(),
        epoch: Epoch::from_u64(7),
        sequence: Sequence::new(counter + 1).unwrap(),
        previous: Previous::At(Sequence::new(counter).unwrap()),
        engine_time_us: 1,
        data: Bytes::from_static(b"{\"price\":\"1\"}"),
        signature: None,
    };
    Batch {
        publisher: key.publisher(),
        boot,
        counter,
        topic: topic(),
        events: vec![event],
        heads: Vec::new(),
    }
}

fn envelope(key: &SigningKey, boot: u64, counter: u64) -> Bytes {
    SignedBatch::sign(batch(key, boot, counter), key).unwrap().envelope().clone()
}

fn validator() -> Validator {
    Validator::new([key(1).publisher(), key(2).publisher()])
}

fn accepted(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Accept { .. })
}

#[test]
fn a_batch_of_a_configured_publisher_is_accepted_once() {
    let mut validator = validator();
    let bytes = envelope(&key(1), 1, 0);
    assert!(accepted(&validator.judge(bytes.clone(), &topic(), || None)));
    assert_eq!(validator.judge(bytes, &topic(), || None), Verdict::Ignore(Reason::Replay));
    // The same counter of another boot or publisher is another batch.
    assert!(accepted(&validator.judge(envelope(&key(1), 2, 0), &topic(), || None)));
    assert!(accepted(&validator.judge(envelope(&key(2), 1, 0), &topic(), || None)));
}

#[test]
fn a_batch_after_a_later_one_is_told_apart() {
    let mut validator = validator();
    let mut late = |boot, counter| match validator.judge(envelope(&key(1), boot, counter), &topic(), || None)
    {
        Verdict::Accept { late, .. } => late,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        [late(1, 5), late(1, 7), late(1, 6), late(1, 8), late(2, 0)],
        [false, false, true, false, false]
    );
}

#[test]
fn nobody_else_makes_market_data() {
    let mut validator = validator();
    let stranger = key(9);
    let own = envelope(&stranger, 1, 0);
    let sender = || Some(stranger.publisher());
    assert_eq!(validator.judge(own.clone(), &topic(), sender), Verdict::Reject(Reason::Publisher));
    // Forwarded by somebody else, who may know more publishers than we do.
    assert_eq!(
        validator.judge(own, &topic(), || Some(key(2).publisher())),
        Verdict::Ignore(Reason::Publisher)
    );
    // The name of a publisher in a batch that somebody else signed: splice the key into the signed bytes.
    let mut forged = envelope(&stranger, 1, 0).to_vec();
    let at = forged.windows(32).position(|bytes| bytes == stranger.publisher().0).unwrap();
    forged[at..at + 32].copy_from_slice(&key(1).publisher().0);
    assert_eq!(validator.judge(forged.into(), &topic(), sender), Verdict::Reject(Reason::Signature));
}

#[test]
fn a_batch_counts_only_on_its_own_topic() {
    let other: Topic = "/tickmesh/1/all/depth/3".parse().unwrap();
    let verdict = validator().judge(envelope(&key(1), 1, 0), &other, || None);
    assert_eq!(verdict, Verdict::Reject(Reason::Topic));
}

#[test]
fn garbage_is_rejected() {
    for bytes in [&b""[..], &[VERSION], &[0xff; 20], &[VERSION; 200]] {
        let verdict = validator().judge(Bytes::copy_from_slice(bytes), &topic(), || None);
        assert_eq!(verdict, Verdict::Reject(Reason::Malformed), "{bytes:?}");
    }
    let newer = [&[VERSION + 1][..], &envelope(&key(1), 1, 0)[1..]].concat();
    assert_eq!(validator().judge(newer.into(), &topic(), || None), Verdict::Ignore(Reason::Version));
}

#[test]
fn played_back_boots_do_not_push_out_the_one_that_publishes() {
    let mut validator = validator();
    let old: Vec<Bytes> = (0..64).map(|boot| envelope(&key(1), boot, 5)).collect();
    for counter in 0..64 {
        assert!(accepted(&validator.judge(envelope(&key(1), 100, counter), &topic(), || None)), "{counter}");
        validator.judge(old[counter as usize].clone(), &topic(), || None);
        let again = validator.judge(envelope(&key(1), 100, counter), &topic(), || None);
        assert_eq!(again, Verdict::Ignore(Reason::Replay), "{counter}");
        assert!(validator.boots.values().all(|boots| boots.len() <= MAX_BOOTS));
    }
}

#[test]
fn a_topic_that_was_left_takes_no_memory() {
    let mut validator = validator();
    validator.judge(envelope(&key(1), 1, 0), &topic(), || None);
    validator.forget(&topic());
    assert!(validator.boots.values().flatten().all(|boot| boot.windows.is_empty()));
}

proptest! {
    /// Whatever is done to an envelope on the way, it is not believed.
    #[test]
    fn changed_bytes_are_never_accepted(
        counter in 0u64..1 << 40,
        changes in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
        tail in prop::collection::vec(any::<u8>(), 0..4),
    ) {
        let original = envelope(&key(1), 3, counter);
        let mut bytes = original.to_vec();
        for (at, change) in changes {
            let at = at.index(bytes.len());
            bytes[at] ^= change;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes.extend(tail);
        prop_assume!(bytes != original);
        let verdict = validator().judge(bytes.into(), &topic(), || None);
        prop_assert!(!accepted(&verdict), "{verdict:?}");
    }

    #[test]
    fn any_bytes_are_judged_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(!accepted(&validator().judge(bytes.into(), &topic(), || None)));
    }

    /// The window against a set that remembers everything.
    #[test]
    fn the_window_admits_each_counter_once(
        start in prop_oneof![Just(0u64), Just(u64::MAX - 10_000), any::<u64>()],
        steps in prop::collection::vec(-3_000i64..3_000, 1..200),
    ) {
        let mut window = Window::default();
        let mut seen = HashSet::new();
        let mut newest = None::<u64>;
        let mut counter = start;
        for step in steps {
            counter = counter.saturating_add_signed(step);
            let recent = newest.is_none_or(|newest| counter > newest || newest - counter < WINDOW as u64);
            let new = seen.insert(counter);
            prop_assert_eq!(window.admit(counter), new && recent, "counter {} newest {:?}", counter, newest);
            newest = newest.max(Some(counter));
        }
    }
}
