use proptest::prelude::*;

use super::*;

fn trade(key: &str, price: &str, quantity: &str, time_ms: u64) -> Trade {
    Trade { key: key.into(), price: price.parse().unwrap(), quantity: quantity.parse().unwrap(), time_ms }
}

fn candles(every_ms: u64) -> Kind {
    let intervals = ["1s", "1m"].map(|interval| interval.parse().unwrap()).to_vec();
    Kind::Candles(candles::Config { intervals, every_ms })
}

/// What is told at a trade: stream and data, of the one-minute candles or of the ticker.
fn told(operator: &mut Operator, trade: Trade) -> Vec<String> {
    let told = operator.take(&[trade]).unwrap().0.into_iter();
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
            candles.take(&[trade("a", "1", "1", time_ms)]).unwrap().0[0].data.clone()
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
    assert_eq!(candles.take(&[trade("a", "100", "1", 119_999)]).unwrap(), (vec![], 1));
    // Late for the second, and not for the minute.
    told(&mut candles, trade("a", "7", "1", 125_000));
    let (told, late) = candles.take(&[trade("a", "3", "1", 123_000)]).unwrap();
    assert_eq!((told.len(), late), (1, 0));
    assert!(told[0].data.contains("\"low\":\"3\",\"close\":\"3\""), "{told:?}");

    let mut ticker = Operator::new(&Kind::Ticker(ticker::Config { every_ms: 0 }), true);
    let day = 86_400_000;
    ticker.take(&[trade("a", "5", "1", day + 60_000)]).unwrap();
    assert_eq!(ticker.take(&[trade("a", "1", "1", 119_999)]).unwrap(), (vec![], 1));
    assert_eq!(ticker.take(&[trade("a", "1", "1", 120_000)]).unwrap().1, 0);
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
            candles.take(&[good, trade("a", price, quantity, 1000)]),
            Err(Refused::Number),
            "{price} {quantity}"
        );
    }
    assert_eq!(candles.save(), before);
}

fn any_kind() -> impl Strategy<Value = Kind> {
    let every = prop_oneof![Just(0_u64), Just(1000), Just(60_000)];
    (any::<bool>(), every).prop_map(|(is_ticker, every_ms)| {
        if is_ticker { Kind::Ticker(ticker::Config { every_ms }) } else { candles(every_ms) }
    })
}

/// Trades whose times mostly rise, in records of one or a few, with hours between some.
fn any_records() -> impl Strategy<Value = Vec<Vec<Trade>>> {
    let step = prop_oneof![9 => -2_000_i64..5_000, 1 => 0_i64..40_000_000];
    let one = (0..3_u8, 1..500_u32, 1..500_u32, step);
    let records = proptest::collection::vec(proptest::collection::vec(one, 1..4), 1..120);
    records.prop_map(|records| {
        let mut time_ms = 1_700_000_000_000_i64;
        let mut of = |(key, price, quantity, step): (u8, u32, u32, i64)| {
            time_ms += step;
            let key = ["a", "b", "c"][usize::from(key)];
            trade(
                key,
                &format!("{}.{:02}", price / 100, price % 100),
                &format!("0.{quantity:03}"),
                time_ms.cast_unsigned(),
            )
        };
        records.into_iter().map(|record| record.into_iter().map(&mut of).collect()).collect()
    })
}

proptest! {
    /// Of two peers that read the same log one is restarted again and again: they tell the same at every record.
    #[test]
    fn a_restart_changes_nothing(
        kind in any_kind(), records in any_records(), from_first in any::<bool>(), restarts in any::<u64>(),
    ) {
        let mut steady = Operator::new(&kind, from_first);
        let mut restarted = Operator::new(&kind, from_first);
        for (record, number) in records.iter().zip(0_u32..) {
            if restarts.rotate_right(number) & 1 == 1 {
                let state = restarted.save();
                restarted = Operator::restore(&kind, &state).unwrap();
                prop_assert_eq!(restarted.save(), state);
            }
            let told = steady.take(record);
            prop_assert_eq!(&told, &restarted.take(record));
            let told = told.unwrap().0;
            let mut streams: Vec<_> = told.iter().map(|told| (told.key.clone(), told.variant.clone())).collect();
            streams.dedup();
            prop_assert_eq!(streams.len(), told.len(), "each stream once");
        }
    }

    /// Whatever stands in a checkpoint, it is taken or not.
    #[test]
    fn any_bytes_are_a_state_or_not(kind in any_kind(), bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Some(mut operator) = Operator::restore(&kind, &bytes) {
            let _ = operator.take(&[trade("a", "1", "1", 1)]);
        }
    }
}
