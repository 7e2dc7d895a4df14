use proptest::prelude::*;

use super::*;

fn books(levels: &[usize], every_ms: u64, checksum: bool) -> Depth {
    Depth::new(&Config { levels: levels.to_vec(), every_ms, checksum })
}

fn changes(side: &[(&str, &str)]) -> Vec<Change> {
    side.iter().map(|(price, quantity)| Change::parse(price, quantity).unwrap()).collect()
}

/// The ids of an update: first, last, previous.
type Ids = [Option<u64>; 3];

fn update(whole: bool, [first, last, previous]: Ids, asks: &[(&str, &str)], time_ms: u64) -> Update {
    let (asks, bids) = (changes(asks), changes(&[("1", "1")]));
    Update { key: "a".into(), whole, asks, bids, first, last, previous, time_ms }
}

/// Stream and data of what is told at one update.
fn told(depth: &mut Depth, update: Update) -> Vec<String> {
    let told = depth.take(&[update]).unwrap().told.into_iter();
    told.map(|told| format!("{}@{} {}", told.key, told.variant.as_deref().unwrap_or_default(), told.data))
        .collect()
}

/// Whether a book is known after each update: each has ids, and some are snapshots.
fn known_after(updates: &[(bool, Ids)]) -> Vec<(bool, usize)> {
    let mut depth = books(&[], 0, false);
    let known = |(whole, ids): &(bool, Ids)| {
        let outcome = depth.take(&[update(*whole, *ids, &[("5", "1")], 1)]).unwrap();
        (depth.incomplete() == 0, outcome.old)
    };
    updates.iter().map(known).collect()
}

#[test]
fn ids_say_what_follows() {
    let (follows, old, hole) = ((true, 0), (true, 1), (false, 0));
    let last = |last: u64| [None, Some(last), None];
    let range = |first: u64, last: u64| [Some(first), Some(last), None];
    let chain = |previous: u64, last: u64| [None, Some(last), Some(previous)];
    let all = |first: u64, last: u64, previous: u64| [Some(first), Some(last), Some(previous)];
    // Each record has the next id.
    assert_eq!(
        known_after(&[(true, last(7)), (false, last(8)), (false, last(10))]),
        [follows, follows, hole]
    );
    assert_eq!(known_after(&[(true, last(7)), (false, last(7)), (false, last(8))]), [follows, old, follows]);
    // Binance's spot market: the snapshot was made in the middle of a record.
    assert_eq!(
        known_after(&[(true, last(7)), (false, range(1, 6)), (false, range(5, 9)), (false, range(10, 10))]),
        [follows, old, follows, follows]
    );
    assert_eq!(known_after(&[(true, last(7)), (false, range(9, 9))]), [follows, hole]);
    // OKX: ids leap, nothing changes for a minute, and the ids go back as the engine says.
    assert_eq!(
        known_after(&[
            (true, last(7)),
            (false, chain(7, 20)),
            (false, chain(20, 20)),
            (false, chain(20, 3)),
            (false, chain(3, 5)),
            (false, chain(4, 6)),
        ]),
        [follows, follows, follows, follows, follows, hole]
    );
    // Binance's futures: by the range after the snapshot, by the last id then.
    assert_eq!(
        known_after(&[
            (true, last(7)),
            (false, all(2, 4, 1)),
            (false, all(6, 9, 5)),
            (false, all(12, 14, 9)),
            (false, all(15, 16, 13)),
        ]),
        [follows, old, follows, follows, hole]
    );
    // No ids at all.
    assert_eq!(known_after(&[(true, [None; 3]), (false, [None; 3])]), [follows, follows]);
}

#[test]
fn a_gap_is_said_once_and_ends_with_a_snapshot() {
    let mut depth = books(&[1, 5], 1000, false);
    let id = |id: u64| [None, Some(id), None];
    let mut take = |update: Update| {
        let outcome = depth.take(&[update]).unwrap();
        let streams = outcome.told.iter().map(|told| told.variant.as_deref().unwrap_or_default().to_owned());
        (streams.collect::<Vec<_>>(), outcome.gaps, outcome.told.first().map(|told| told.data.clone()))
    };
    assert_eq!(take(update(true, id(1), &[("5", "1")], 0)).0, ["", "1-1s", "5-1s"]);
    let (streams, gaps, data) = take(update(false, id(3), &[("6", "1")], 500));
    assert_eq!(streams, ["", "1-1s", "5-1s"]);
    assert_eq!(data.unwrap(), r#"{"asks":[],"bids":[],"incomplete":true,"timestamp":500}"#);
    assert_eq!(gaps[0].reason, "after update 1 comes 3 to 3");
    assert_eq!(take(update(false, id(4), &[("7", "1")], 2000)), (vec![], vec![], None));
    // A snapshot that cannot be is another one of the same gap.
    assert_eq!(take(update(true, id(5), &[("0.5", "1")], 2000)), (vec![], vec![], None));
    let (streams, gaps, data) = take(update(true, id(6), &[("7", "1")], 2001));
    assert_eq!((streams.len(), gaps.len()), (3, 0), "the tops at once, however little time has passed");
    assert_eq!(data.unwrap(), r#"{"asks":[["7","1"]],"bids":[["1","1"]],"snapshot":true,"timestamp":2001}"#);
}

#[test]
fn a_book_that_cannot_be_is_incomplete() {
    let id = |id: u64| [None, Some(id), None];
    let gap = |asks: &[Change]| {
        let mut depth = books(&[], 0, false);
        depth.take(&[update(true, id(1), &[("5", "1")], 0)]).unwrap();
        let update = Update { asks: asks.to_vec(), ..update(false, id(2), &[], 0) };
        depth.take(&[update]).unwrap().gaps.pop().map(|gap| gap.reason)
    };
    assert_eq!(gap(&changes(&[("1.01", "1")])), None);
    assert_eq!(gap(&changes(&[("1.00", "1")])).unwrap(), "the best bid is not below the best ask");
    let many: Vec<_> =
        (2..=MAX_BOOK_LEVELS + 2).map(|price| Change::parse(&price.to_string(), "1").unwrap()).collect();
    assert_eq!(gap(&many[1..MAX_BOOK_LEVELS]), None);
    assert!(gap(&many).unwrap().starts_with("more than"));
}

#[test]
fn the_top_is_told_when_it_changed_and_the_time_has_come() {
    let mut depth = books(&[1], 100, false);
    let id = |id: u64| [None, Some(id), None];
    assert_eq!(told(&mut depth, update(true, id(1), &[("5", "1"), ("6", "1")], 1000)).len(), 2);
    assert_eq!(told(&mut depth, update(false, id(2), &[("5", "2")], 1050)).len(), 1, "too early");
    // Another key moves the time.
    let other = Update { key: "b".into(), ..update(true, id(1), &[("9", "1")], 1100) };
    let then = told(&mut depth, other);
    assert_eq!(then[0], r#"b@ {"asks":[["9","1"]],"bids":[["1","1"]],"snapshot":true,"timestamp":1100}"#);
    assert_eq!(then[1..].iter().filter(|told| told.starts_with("a@100ms")).count(), 1, "{then:?}");
    let top = then.iter().find(|told| told.starts_with("a@100ms")).unwrap();
    assert_eq!(top, r#"a@100ms {"asks":[["5","2"]],"bids":[["1","1"]],"snapshot":true,"timestamp":1050}"#);
    // It goes and comes back between two looks.
    assert_eq!(told(&mut depth, update(false, id(3), &[("5", "0")], 1150)).len(), 1);
    assert_eq!(told(&mut depth, update(false, id(4), &[("5", "2")], 1250)).len(), 1, "as it was told last");
    // What has not changed is told as soon as it does.
    assert_eq!(told(&mut depth, update(false, id(5), &[("5", "3")], 1251)).len(), 2);
}

#[test]
fn updates_of_one_record_are_one_event() {
    let mut depth = books(&[2], 0, true);
    let id = |id: u64| [None, Some(id), None];
    let mut take = |updates: &[Update]| {
        let told = depth.take(updates).unwrap().told;
        told.into_iter().filter(|told| told.variant.is_none()).map(|told| told.data).collect::<Vec<_>>()
    };
    let snapshot = update(true, id(1), &[("5", "1")], 1);
    let both = take(&[snapshot.clone(), update(false, id(2), &[("6", "1")], 2)]);
    assert_eq!(both.len(), 1);
    assert!(
        both[0].starts_with(r#"{"asks":[["5","1"],["6","1"]],"bids":[["1","1"]],"checksum":"#),
        "{both:?}"
    );
    assert!(both[0].ends_with(r#","snapshot":true,"timestamp":2}"#));
    let changes = take(&[update(false, id(3), &[("7", "1")], 3), update(false, id(4), &[("7", "0")], 4)]);
    assert!(changes[0].starts_with(r#"{"asks":[["7","1"],["7","0"]],"#), "in their order: {changes:?}");
    // A hole, and a snapshot behind it.
    let whole = take(&[update(false, id(9), &[("8", "1")], 5), snapshot]);
    assert!(whole.len() == 1 && whole[0].contains("\"snapshot\":true"), "{whole:?}");
    // A hole behind a change.
    let lost = take(&[update(false, id(2), &[("8", "1")], 6), update(false, id(9), &[("8", "1")], 7)]);
    assert_eq!(lost, [r#"{"asks":[],"bids":[],"incomplete":true,"timestamp":7}"#]);
}

#[test]
fn variants_are_parts_of_names() {
    let variants = |levels: &[usize], every_ms| {
        Config { levels: levels.to_vec(), every_ms, checksum: false }.variants().join(" ")
    };
    assert_eq!(variants(&[10], 100), "100ms");
    assert_eq!(variants(&[10, 50], 1000), "10-1s 50-1s");
    assert_eq!(variants(&[5], 0), "0ms");
    assert_eq!(variants(&[], 100), "");
}

/// Changes of levels by their prices in cents; asks are at 101 and above, bids at 100 and below.
type Sides = (Vec<(u8, u8)>, Vec<(u8, u8)>);

fn any_sides() -> impl Strategy<Value = Sides> {
    let side = || prop::collection::vec((0..30_u8, 0..4_u8), 0..6);
    (side(), side())
}

proptest! {
    /// A client that takes every event of a key has the engine's book, or knows that it has none; the tops are the engine's.
    #[test]
    fn what_is_told_adds_up_to_the_engines_book(
        records in prop::collection::vec((any_sides(), 0..12_u8, 0..300_u64), 1..80),
    ) {
        let mut depth = books(&[3], 100, true);
        let (mut engine, mut client, mut top) = (Book::default(), Book::default(), Book::default());
        engine.change(true, &[], &[], 0).unwrap();
        let (mut time_ms, mut last) = (1_000_000, 0);
        let level = |price: i32, quantity: u8| {
            Change::parse(&format!("{}.{:02}", price / 100, price % 100), &quantity.to_string()).unwrap()
        };
        for ((asks, bids), odd, step) in records {
            time_ms += step;
            last += 1;
            let asks: Vec<_> = asks.into_iter().map(|(price, size)| level(101 + i32::from(price), size)).collect();
            let bids: Vec<_> = bids.into_iter().map(|(price, size)| level(100 - i32::from(price), size)).collect();
            let whole = odd == 0;
            engine.change(whole, &asks, &bids, time_ms).unwrap();
            if odd == 1 {
                // The log has lost it.
                continue;
            }
            let key = "a".to_owned();
            let update = Update { key, whole, asks, bids, first: None, last: Some(last), previous: None, time_ms };
            let outcome = depth.take(&[update]).unwrap();
            let was_known = client.is_whole();
            for told in &outcome.told {
                let book = if told.variant.is_none() { &mut client } else { &mut top };
                book.apply(told.data.as_bytes()).unwrap();
                if book.is_whole() {
                    let checksum = format!("\"checksum\":{},", engine.checksum());
                    prop_assert!(told.data.contains(&checksum));
                }
            }
            prop_assert_eq!(client.is_whole(), depth.incomplete() == 0);
            prop_assert_eq!(outcome.gaps.len(), usize::from(was_known && !client.is_whole()));
            if client.is_whole() {
                prop_assert_eq!(client.top(MAX_BOOK_LEVELS), engine.top(MAX_BOOK_LEVELS));
                if outcome.told.iter().any(|told| told.variant.is_some()) {
                    prop_assert_eq!(top.top(MAX_BOOK_LEVELS), engine.top(3));
                }
            } else {
                prop_assert!(!top.is_whole());
            }
        }
    }
}
