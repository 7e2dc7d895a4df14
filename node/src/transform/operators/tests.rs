use proptest::prelude::*;
use tickmesh_protocol::book::Change;

use super::*;

fn trade(key: &str, price: &str, quantity: &str, time_ms: u64) -> Trade {
    Trade { key: key.into(), price: price.parse().unwrap(), quantity: quantity.parse().unwrap(), time_ms }
}

/// What comes of trades: what is told, and how many were late.
fn take(operator: &mut Operator, trades: Vec<Trade>) -> Result<(Vec<Told>, usize), Refused> {
    operator.take(&Inputs::Trades(trades)).map(|outcome| (outcome.told, outcome.late))
}

fn candles(every_ms: u64) -> Kind {
    let intervals = ["1s", "1m"].map(|interval| interval.parse().unwrap()).to_vec();
    Kind::Candles(candles::Config { intervals, every_ms })
}

/// What is told at a trade: stream and data, of the one-minute candles or of the ticker.
fn told(operator: &mut Operator, trade: Trade) -> Vec<String> {
    let told = take(operator, vec![trade]).unwrap().0.into_iter();
    told.filter(|told| told.variant.as_deref() != Some("1s"))
        .map(|told| format!("{} {}", told.key, told.data))
        .collect()
}

#[test]
fn intervals_are_read() {
    for (text, ms) in
        [("1s", 1000), ("15m", 900_000), ("4h", 14_400_000), ("1d", 86_400_000), ("4w", 2_419_200_000)]
    {
        let config = candles::Config { intervals: vec![text.parse().unwrap()], every_ms: 0 };
        let mut candles = Operator::new(&Kind::Candles(config), true);
        let at = |candles: &mut Operator, time_ms| {
            take(candles, vec![trade("a", "1", "1", time_ms)]).unwrap().0[0].data.clone()
        };
        assert!(at(&mut candles, ms).contains(&format!("\"start\":{ms},")), "{text}");
        assert!(at(&mut candles, 2 * ms - 1).contains("\"trades\":2,\"closed\":false"), "{text}");
        assert!(at(&mut candles, 2 * ms).contains("\"trades\":2,\"closed\":true"), "{text}");
    }
    for text in ["", "m", "0m", "01m", "1", "1M", "-1m", "5w", "1ms", "99999999999999999999s", "1\u{e9}"] {
        assert!(text.parse::<candles::Interval>().is_err(), "{text}");
    }
}

#[test]
fn a_candle_is_closed_by_the_next_record_of_any_key() {
    let mut candles = Operator::new(&candles(1000), true);
    assert_eq!(told(&mut candles, trade("a", "5", "1", 60_000)).len(), 1);
    assert_eq!(told(&mut candles, trade("b", "7", "1", 119_999)).len(), 1);
    let told = told(&mut candles, trade("c", "9", "1", 120_000));
    assert_eq!(told.len(), 3, "{told:?}");
    for (told, start) in told.iter().zip([
        "a {\"candles\":[{\"start\":60000",
        "b {\"candles\":[{\"start\":60000",
        "c {\"candles\":[{\"start\":120000",
    ]) {
        assert!(told.starts_with(start), "{told}");
    }
    assert_eq!(told.iter().filter(|told| told.contains("\"closed\":true")).count(), 2);
}

#[test]
fn what_is_late_counts_for_nothing() {
    let mut candles = Operator::new(&candles(0), true);
    told(&mut candles, trade("a", "5", "1", 60_000));
    told(&mut candles, trade("a", "6", "1", 120_000));
    assert_eq!(take(&mut candles, vec![trade("a", "100", "1", 119_999)]).unwrap(), (vec![], 1));
    // Late for the second, and not for the minute.
    told(&mut candles, trade("a", "7", "1", 125_000));
    let (told, late) = take(&mut candles, vec![trade("a", "3", "1", 123_000)]).unwrap();
    assert_eq!((told.len(), late), (1, 0));
    assert!(told[0].data.contains("\"low\":\"3\",\"close\":\"3\""), "{told:?}");

    let mut ticker = Operator::new(&Kind::Ticker(ticker::Config { every_ms: 0 }), true);
    let day = 86_400_000;
    take(&mut ticker, vec![trade("a", "5", "1", day + 60_000)]).unwrap();
    assert_eq!(take(&mut ticker, vec![trade("a", "1", "1", 119_999)]).unwrap(), (vec![], 1));
    assert_eq!(take(&mut ticker, vec![trade("a", "1", "1", 120_000)]).unwrap().1, 0);
}

#[test]
fn what_began_before_reading_did_is_not_told_as_whole() {
    let mut candles = Operator::new(&candles(0), false);
    assert_eq!(told(&mut candles, trade("a", "5", "1", 60_000)), Vec::<String>::new());
    assert_eq!(told(&mut candles, trade("b", "5", "1", 90_000)), Vec::<String>::new());
    let told_then = told(&mut candles, trade("a", "6", "1", 120_000));
    assert_eq!(told_then.len(), 1, "{told_then:?}");
    assert!(!told_then[0].contains("\"closed\":true"), "{told_then:?}");
    assert!(told(&mut candles, trade("a", "6", "1", 180_000))[0].contains("\"closed\":true"));

    let mut ticker = Operator::new(&Kind::Ticker(ticker::Config { every_ms: 0 }), false);
    let began = told(&mut ticker, trade("a", "5", "1", 86_400_123));
    assert!(began[0].contains("\"openTime\":86400123,"), "{began:?}");
}

#[test]
fn a_ticker_is_what_24_hours_come_to() {
    let mut ticker = Operator::new(&Kind::Ticker(ticker::Config { every_ms: 0 }), true);
    let minute = 60_000;
    told(&mut ticker, trade("a", "100", "1.5", 10 * minute));
    told(&mut ticker, trade("a", "90", "0.5", 11 * minute));
    let told_then = told(&mut ticker, trade("a", "103.00", "2", 1449 * minute + 1));
    assert_eq!(
        told_then,
        [
            "a {\"open\":\"100\",\"high\":\"103.00\",\"low\":\"90\",\"last\":\"103.00\",\"volume\":\"4.0\",\"quoteVolume\":\"401.00\",\
          \"trades\":3,\"change\":\"3.00\",\"changePercent\":\"3.00\",\"openTime\":600000,\"closeTime\":86940001}"
        ]
    );
    // The first minute goes with a trade of another key.
    let told_then = told(&mut ticker, trade("b", "1", "1", 1450 * minute));
    assert!(
        told_then[0].starts_with("a {\"open\":\"90\",\"high\":\"103.00\",\"low\":\"90\""),
        "{told_then:?}"
    );
    // All of it goes.
    let told_then = told(&mut ticker, trade("b", "1", "1", 9000 * minute));
    assert!(
        told_then[0].contains("\"open\":\"103.00\"")
            && told_then[0].contains("\"volume\":\"0\",\"quoteVolume\":\"0\",\"trades\":0"),
        "{told_then:?}"
    );
}

#[test]
fn numbers_that_are_none_change_nothing() {
    let mut candles = Operator::new(&candles(0), true);
    let before = candles.save();
    for (price, quantity) in
        [("-1", "1"), ("1", "-0.1"), ("1e37", "1"), ("1", "1e-37"), (&"1".repeat(37), "1")]
    {
        let good = trade("a", "1", "1", 1000);
        assert_eq!(
            take(&mut candles, vec![good, trade("a", price, quantity, 1000)]),
            Err(Refused::Number),
            "{price} {quantity}"
        );
    }
    assert_eq!(candles.save(), before);
}

fn item(key: &str, member: &str, data: &str, time_ms: u64) -> Item {
    Item { key: key.into(), member: member.into(), data: data.into(), time_ms }
}

#[test]
fn what_waits_is_bounded() {
    let mut conflate = Operator::new(&Kind::Conflate(conflate::Config { every_ms: 1000 }), true);
    let mut take = |key: &str, bytes: usize, time_ms| {
        conflate.take(&Inputs::Items(vec![item(key, "", &"1".repeat(bytes), time_ms)]))
    };
    assert_eq!(take("a", 1, 1000).unwrap().told.len(), 1);
    assert_eq!(take("a", conflate::MAX_WAITING_BYTES, 1000).unwrap().told, [], "it waits");
    assert_eq!(take("b", 1, 1000), Err(Refused::TooMuchWaits));
    // It is told with the next record that is taken.
    assert_eq!(take("b", 0, 2000).unwrap().told.len(), 2);
    assert_eq!(take("b", 1, 2000).unwrap().told, []);
}

#[test]
fn a_member_that_has_no_room_is_left_out() {
    let mut combine = Operator::new(&Kind::Combine(combine::Config { every_ms: 0 }), true);
    let mut take = |member: &str, bytes: usize| {
        let outcome = combine.take(&Inputs::Items(vec![item("global", member, &"1".repeat(bytes), 1000)]));
        outcome.map(|outcome| outcome.told.into_iter().map(|told| told.data.len()).collect::<Vec<_>>())
    };
    // Two braces, and two quotes and a colon beside the name of each.
    assert_eq!(take("a", 100), Ok(vec![106]));
    let most = MAX_EVENT_DATA_BYTES - 106 - 5 - 1;
    let told = take("b", most).unwrap();
    assert!(told[0] <= MAX_EVENT_DATA_BYTES, "{told:?}");
    assert_eq!(take("b", most + 1), Err(Refused::TooLarge), "what it was is not true any more");
    assert_eq!(take("a", 100), Ok(vec![106]), "without it");
    assert_eq!(take("a", 101), Ok(vec![107]));
}

#[test]
fn groups_are_told_apart_and_members_are_counted() {
    let mut combine = Operator::new(&Kind::Combine(combine::Config { every_ms: 0 }), true);
    let items = (0..MAX_KEYS).map(|member| item("all", &member.to_string(), "1", 5)).collect();
    assert_eq!(combine.take(&Inputs::Items(items)).unwrap().told.len(), 1);
    let one = |key: &str, member: &str, data: &str| Inputs::Items(vec![item(key, member, data, 5)]);
    assert_eq!(combine.take(&one("usdt", "new", "1")), Err(Refused::TooManyKeys));
    combine.take(&one("all", "7", "null")).unwrap();
    let told = combine.take(&one("usdt", "new", "1")).unwrap().told;
    assert_eq!((&*told[0].key, &*told[0].data), ("usdt", r#"{"new":1}"#));
}

/// Bytes of checkpoints: what a peer wrote before it was made anew is read after.
#[test]
fn states_are_written_as_they_were() {
    let hex = |kind: &Kind, inputs: Inputs| {
        let mut operator = Operator::new(kind, true);
        operator.take(&inputs).unwrap();
        operator.save().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let trades = || Inputs::Trades(vec![trade("a", "5.0", "1", 60_000)]);
    let items = || Inputs::Items(vec![item("a", "b", "7", 60_000), item("a", "c", "8", 60_001)]);
    let update = Inputs::Updates(vec![update("a", true, 10, 60_000)]);
    let written = [
        (candles(0), trades(), CANDLES),
        (Kind::Ticker(ticker::Config { every_ms: 0 }), trades(), TICKER),
        (depth(vec![1], 100), update, DEPTH),
        (Kind::Conflate(conflate::Config { every_ms: 0 }), items(), CONFLATE),
        (Kind::Combine(combine::Config { every_ms: 0 }), items(), COMBINE),
    ];
    let (written, expected): (Vec<_>, Vec<_>) =
        written.into_iter().map(|(kind, inputs, bytes)| (hex(&kind, inputs), bytes)).unzip();
    assert_eq!(written, expected);
}

const CANDLES: &str = "0002fbe803fb60ea0100fb60ea02016100fb60ea03352e3003352e3003352e3003352e30013101350101fb60ea00016101fb60ea03352e3003352e3003352e3003352e30013101350101fb60ea00";
const TICKER: &str = "010100fb60ea01016101fb60ea03352e3003352e3003352e3003352e30013101350103352e3001fb60ea00";
const DEPTH: &str = "02fb60ea010161014c7b2261736b73223a5b5b22313030222c2231225d5d2c2262696473223a5b5b223939222c2231225d5d2c22736e617073686f74223a747275652c2274696d657374616d70223a36303030307d010a01fb60ea000101fb60ea01fdca6a2d82f1d63dc900";
const CONFLATE: &str = "03fb61ea01016101fb61ea00";
const COMBINE: &str = "04fb61ea0101610201620137016301380e01fb61ea00";

fn depth(levels: Vec<usize>, every_ms: u64) -> Kind {
    Kind::Depth(depth::Config { levels, every_ms, checksum: true })
}

/// An update that sets a level of each side, with an id that follows the one before it.
fn update(key: &str, whole: bool, id: u64, time_ms: u64) -> Update {
    let level = |price: u64| vec![Change::parse(&price.to_string(), &(id % 3).to_string()).unwrap()];
    let (asks, bids) = (level(100 + id % 5), level(99 - id % 5));
    Update { key: key.into(), whole, asks, bids, first: Some(id), last: Some(id), previous: None, time_ms }
}

fn any_kind() -> impl Strategy<Value = Kind> {
    let every = prop_oneof![Just(0_u64), Just(1000), Just(60_000)];
    (0..5_u8, every).prop_map(|(kind, every_ms)| match kind {
        0 => candles(every_ms),
        1 => Kind::Ticker(ticker::Config { every_ms }),
        2 => depth(vec![1, 3], every_ms),
        3 => Kind::Conflate(conflate::Config { every_ms }),
        _ => Kind::Combine(combine::Config { every_ms }),
    })
}

/// A part of a record, of which each kind of operator makes what it takes.
#[derive(Clone, Copy, Debug)]
struct Part {
    key: usize,
    price: u32,
    quantity: u32,
    time_ms: u64,
    /// The snapshot of a book, or an id that is left out.
    odd: u8,
}

/// Records whose times mostly rise, of one part or a few, with hours between some.
fn any_records() -> impl Strategy<Value = Vec<Vec<Part>>> {
    let step = prop_oneof![9 => -2_000_i64..5_000, 1 => 0_i64..40_000_000];
    let one = (0..3_usize, 1..500_u32, 1..500_u32, step, 0..12_u8);
    let records = proptest::collection::vec(proptest::collection::vec(one, 1..4), 1..120);
    records.prop_map(|records| {
        let mut now_ms = 1_700_000_000_000_i64;
        let mut of = |(key, price, quantity, step, odd): (usize, u32, u32, i64, u8)| {
            now_ms += step;
            Part { key, price, quantity, time_ms: now_ms.cast_unsigned(), odd }
        };
        records.into_iter().map(|record| record.into_iter().map(&mut of).collect()).collect()
    })
}

/// What an operator of a kind takes of each record.
fn inputs_of(kind: &Kind, records: &[Vec<Part>]) -> Vec<Inputs> {
    let mut ids = [0_u64; 3];
    let mut update_of = |part: &Part| {
        ids[part.key] += if part.odd == 0 { 2 } else { 1 };
        update(["a", "b", "c"][part.key], part.odd < 3, ids[part.key], part.time_ms)
    };
    let trade_of = |part: &Part| {
        let Part { key, price, quantity, time_ms, .. } = part;
        let price = format!("{}.{:02}", price / 100, price % 100);
        trade(["a", "b", "c"][*key], &price, &format!("0.{quantity:03}"), *time_ms)
    };
    let item_of = |part: &Part| {
        let data = if part.odd == 0 { "null".to_owned() } else { part.price.to_string() };
        item(["a", "b"][part.key % 2], ["x", "y"][part.quantity as usize % 2], &data, part.time_ms)
    };
    let record = |parts: &Vec<Part>| match kind {
        Kind::Candles(_) | Kind::Ticker(_) => Inputs::Trades(parts.iter().map(trade_of).collect()),
        Kind::Depth(_) => Inputs::Updates(parts.iter().map(&mut update_of).collect()),
        Kind::Conflate(_) | Kind::Combine(_) => Inputs::Items(parts.iter().map(item_of).collect()),
    };
    records.iter().map(record).collect()
}

proptest! {
    /// Of two peers that read the same log one is restarted again and again: they tell the same at every record.
    #[test]
    fn a_restart_changes_nothing(
        kind in any_kind(), records in any_records(), from_first in any::<bool>(), restarts in any::<u64>(),
    ) {
        let mut steady = Operator::new(&kind, from_first);
        let mut restarted = Operator::new(&kind, from_first);
        for (record, number) in inputs_of(&kind, &records).iter().zip(0_u32..) {
            if restarts.rotate_right(number) & 1 == 1 {
                let state = restarted.save();
                restarted = Operator::restore(&kind, &state).unwrap();
                prop_assert_eq!(restarted.save(), state);
            }
            let outcome = steady.take(record);
            prop_assert_eq!(&outcome, &restarted.take(record));
            prop_assert_eq!(steady.incomplete(), restarted.incomplete());
            let told = outcome.unwrap().told;
            let mut streams: Vec<_> = told.iter().map(|told| (told.key.clone(), told.variant.clone())).collect();
            streams.sort();
            streams.dedup();
            prop_assert_eq!(streams.len(), told.len(), "each stream once");
        }
    }

    /// Whatever stands in a checkpoint, it is taken or not.
    #[test]
    fn any_bytes_are_a_state_or_not(kind in any_kind(), bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let part = Part { key: 0, price: 1, quantity: 1, time_ms: 1, odd: 1 };
        if let Some(mut operator) = Operator::restore(&kind, &bytes) {
            let _ = operator.take(&inputs_of(&kind, &[vec![part]])[0]);
        }
    }
}
