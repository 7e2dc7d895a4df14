//! Order books: against a model that knows nothing of decimals, and with what exchanges never send.

#![allow(clippy::unwrap_used, reason = "clippy knows only the #[test] functions as tests, not their helpers")]

use std::collections::BTreeMap;

use proptest::prelude::*;
use tickmesh_protocol::{
    book::{Book, Broken, Change, MAX_BOOK_LEVELS, changes_to_text},
    event::MAX_EVENT_DATA_BYTES,
};

/// A number of hundredths, spelled in one of several ways.
#[derive(Clone, Copy, Debug)]
struct Number {
    hundredths: u32,
    spelling: u8,
}

impl Number {
    fn json(self) -> String {
        let Self { hundredths, spelling } = self;
        let (whole, part) = (hundredths / 100, hundredths % 100);
        match spelling {
            0 => format!("\"{whole}.{part:02}\""),
            1 => format!("{whole}.{part:02}00"),
            2 => format!("\"00{whole}.{part:02}0\""),
            3 => format!("{hundredths}e-2"),
            _ => format!("\"{hundredths}00E-4\""),
        }
    }
}

#[derive(Clone, Debug)]
struct Told {
    snapshot: bool,
    sides: [Vec<(Number, Number)>; 2],
    timestamp: Option<u64>,
}

impl Told {
    fn json(&self) -> String {
        let [asks, bids] = self.sides.each_ref().map(|levels| {
            let level =
                |(price, quantity): &(Number, Number)| format!("[{}, {}]", price.json(), quantity.json());
            levels.iter().map(level).collect::<Vec<_>>().join(",")
        });
        let timestamp = self.timestamp.map(|at| format!(", \"timestamp\": {at}")).unwrap_or_default();
        format!("{{\"bids\": [{bids}], \"asks\": [{asks}], \"snapshot\": {}{timestamp}}}", self.snapshot)
    }
}

/// A book without decimals, and without an order: hundredths → hundredths and what was said last.
#[derive(Clone, Debug, Default)]
struct Model {
    sides: [BTreeMap<u32, (Number, Number)>; 2],
    whole: bool,
}

impl Model {
    fn apply(&mut self, told: &Told) {
        if told.snapshot {
            *self = Self { whole: true, ..Self::default() };
        }
        for (side, levels) in self.sides.iter_mut().zip(&told.sides) {
            for (price, quantity) in levels {
                side.remove(&price.hundredths);
                if quantity.hundredths > 0 && self.whole {
                    side.insert(price.hundredths, (*price, *quantity));
                }
            }
        }
    }

    fn data(&self, timestamp: Option<u64>) -> String {
        let text = |number: Number| number.json().trim_matches('"').to_owned();
        let level =
            |(price, quantity): &(Number, Number)| format!("[\"{}\",\"{}\"]", text(*price), text(*quantity));
        let asks: Vec<_> = self.sides[0].values().map(level).collect();
        let bids: Vec<_> = self.sides[1].values().rev().map(level).collect();
        let timestamp = timestamp.map(|at| format!(",\"timestamp\":{at}")).unwrap_or_default();
        format!(
            "{{\"asks\":[{}],\"bids\":[{}],\"snapshot\":true{timestamp}}}",
            asks.join(","),
            bids.join(",")
        )
    }
}

fn any_told() -> impl Strategy<Value = Told> {
    let number = |most| (0..most, 0..5_u8).prop_map(|(hundredths, spelling)| Number { hundredths, spelling });
    // Few prices, so that levels meet; a third of the quantities are zero.
    let quantity = prop_oneof![1 => number(1_u32), 2 => number(100_000)];
    let levels = || prop::collection::vec((number(40), quantity.clone()), 0..12);
    (prop::bool::weighted(0.2), levels(), levels(), prop::option::of(any::<u64>()))
        .prop_map(|(snapshot, asks, bids, timestamp)| Told { snapshot, sides: [asks, bids], timestamp })
}

proptest! {
    #[test]
    fn a_book_is_what_its_events_add_up_to(events in prop::collection::vec(any_told(), 1..40)) {
        let (mut book, mut model) = (Book::default(), Model::default());
        for told in &events {
            book.apply(told.json().as_bytes()).unwrap();
            model.apply(told);
            prop_assert_eq!(book.is_whole(), model.whole);
            let Some(data) = book.to_data() else { continue };
            prop_assert_eq!(&data, &model.data(told.timestamp));
            let levels = book.top(MAX_BOOK_LEVELS);
            prop_assert!(data[1..].starts_with(&levels));
            prop_assert!(data.len() <= book.data_bytes() && book.data_bytes() <= data.len() + 20);
            // Whoever is given the whole has the same book.
            let mut given = Book::default();
            given.apply(data.as_bytes()).unwrap();
            prop_assert_eq!(given, book.clone());
        }
    }

    /// Changes that were parsed before come to the same as their text does.
    #[test]
    fn changes_are_what_their_text_says(events in prop::collection::vec(any_told(), 1..20)) {
        let (mut changed, mut told_of) = (Book::default(), Book::default());
        for (told, timestamp_ms) in events.iter().zip(7..) {
            let parse = |(price, quantity): &(Number, Number)| {
                Change::parse(price.json().trim_matches('"'), quantity.json().trim_matches('"')).unwrap()
            };
            let [asks, bids] = told.sides.each_ref().map(|side| side.iter().map(parse).collect::<Vec<_>>());
            changed.change(told.snapshot, &asks, &bids, timestamp_ms).unwrap();
            let sides = changes_to_text(&asks, &bids);
            let text = format!("{{{sides},\"snapshot\":{},\"timestamp\":{timestamp_ms}}}", told.snapshot);
            told_of.apply(text.as_bytes()).unwrap();
            prop_assert_eq!(&changed, &told_of);
        }
    }

    /// Whatever comes, the book is whole or says that it is not; and what it gives out can be taken in.
    #[test]
    fn any_bytes_are_answered(events in prop::collection::vec("(\\{\"asks\":|\\[|\"1\"|,|\\]|\"bids\":|\\}|[0-9e.-]|\"snapshot\":true|.){0,12}", 1..6)) {
        let mut book = Book::default();
        book.apply(br#"{"asks":[["1","2"]],"snapshot":true}"#).unwrap();
        for event in &events {
            let applied = book.apply(event.as_bytes());
            prop_assert!(applied.is_ok() || !book.is_whole());
            prop_assert_eq!(book.is_whole(), book.to_data().is_some());
        }
    }
}

fn whole(levels: &str) -> Book {
    let mut book = Book::default();
    book.apply(format!(r#"{{"asks":[{levels}],"bids":[],"snapshot":true}}"#).as_bytes()).unwrap();
    book
}

#[test]
fn what_is_no_depth_message_breaks_the_book_until_the_next_whole_one() {
    let good = r#"{"asks":[["1","2"]],"bids":[]}"#;
    for bad in [
        "1",
        "{}",
        "[[],[],1,true]",
        r#"{"price":"1"}"#,
        r#"{"asks":{}}"#,
        r#"{"asks":[["1"]]}"#,
        r#"{"asks":[[]]}"#,
        r#"{"asks":[["1",null]]}"#,
        r#"{"asks":[["1","-2"]]}"#,
        r#"{"asks":[["1","2\u0030"]]}"#,
        r#"{"asks":[["one","2"]]}"#,
        r#"{"asks":[[[1],"2"]]}"#,
        r#"{"asks":[],"asks":[]}"#,
        r#"{"asks":[],"timestamp":{}}"#,
        r#"{"asks":[],"snapshot":"yes"}"#,
        r#"{"asks":[["1","2"]],"#,
    ] {
        let mut book = whole(r#"["5","6"]"#);
        assert!(book.apply(bad.as_bytes()).is_err(), "{bad}");
        assert_eq!(book, Book::default(), "{bad}: nothing is left of it");
        assert_eq!(book.apply(good.as_bytes()), Ok(()));
        assert_eq!(book.to_data(), None, "differences of nothing");
        book.apply(br#"{"asks":[],"bids":[["1",2]],"snapshot":true}"#).unwrap();
        assert_eq!(book.to_data().unwrap(), r#"{"asks":[],"bids":[["1","2"]],"snapshot":true}"#);
    }
}

#[test]
fn a_book_that_is_said_to_be_incomplete_is_not_known() {
    let mut book = whole(r#"["1","2"]"#);
    book.apply(br#"{"asks":[],"bids":[],"incomplete":true,"timestamp":5}"#).unwrap();
    assert_eq!(book, Book::default());
    assert!(book.apply(br#"{"asks":[],"incomplete":1}"#).is_err());
}

#[test]
fn the_top_of_a_book_and_whether_it_is_crossed() {
    let mut book = whole(r#"["3","1"],["4","1"],["5.0","2"]"#);
    book.apply(br#"{"bids":[["1","7"],["2.5","8"]]}"#).unwrap();
    assert_eq!(book.top(1), r#""asks":[["3","1"]],"bids":[["2.5","8"]]"#);
    assert_eq!(book.top(2), r#""asks":[["3","1"],["4","1"]],"bids":[["2.5","8"],["1","7"]]"#);
    assert!(!book.is_crossed());
    book.apply(br#"{"bids":[["3.00","1"]]}"#).unwrap();
    assert!(book.is_crossed(), "a bid of as much as the best ask");
    assert!(!whole(r#"["3","1"]"#).is_crossed(), "nobody buys");
    // Less than ten levels are all there are; what is behind the tenth changes nothing.
    let mut deep = whole(&(10..20).map(|price| format!("[\"{price}\",\"1\"]")).collect::<Vec<_>>().join(","));
    let checksum = deep.checksum();
    deep.apply(br#"{"asks":[["20","1"]]}"#).unwrap();
    assert_eq!(deep.checksum(), checksum);
    deep.apply(br#"{"asks":[["9.5","1"]]}"#).unwrap();
    assert_ne!(deep.checksum(), checksum);
}

#[test]
fn one_side_alone_more_columns_and_any_timestamp_are_taken() {
    let mut book = whole(r#"["36200.5","1.2",7,{"orders":3}]"#);
    book.apply(br#" {"bids":[[36190.10, 1e-8]],"u":9,"timestamp":"2024-08-25T01:12:25.123Z"}"#).unwrap();
    let data = r#"{"asks":[["36200.5","1.2"]],"bids":[["36190.10","1e-8"]],"snapshot":true,"timestamp":"2024-08-25T01:12:25.123Z"}"#;
    assert_eq!(book.to_data().unwrap(), data);
    book.apply(br#"{"asks":[],"timestamp":null}"#).unwrap();
    assert!(!book.to_data().unwrap().contains("timestamp"), "that of the last event, which had none");
}

#[test]
fn more_levels_than_a_side_may_have_break_the_book() {
    let levels = |from: usize, count: usize| {
        (from..from + count).map(|price| format!("[{price},1]")).collect::<Vec<_>>().join(",")
    };
    let mut book = whole(&levels(0, MAX_BOOK_LEVELS));
    assert!(book.is_whole());
    book.apply(format!(r#"{{"bids":[{}]}}"#, levels(0, MAX_BOOK_LEVELS)).as_bytes()).unwrap();
    assert!(book.to_data().unwrap().len() <= MAX_EVENT_DATA_BYTES);
    book.apply(br#"{"asks":[["0","0"],["20000","1"]]}"#).unwrap();
    assert_eq!(book.apply(br#"{"asks":[["20001","1"]]}"#), Err(Broken::TooManyLevels));
    assert!(!book.is_whole());
}

#[test]
fn a_book_that_no_event_could_hold_is_broken() {
    let long = |from: usize| {
        let level =
            |price| format!(r#"["{price}.0000000000000000000000000000","1.0000000000000000000000000000"]"#);
        (from..from + 3000).map(level).collect::<Vec<_>>().join(",")
    };
    let mut book = whole(&long(1000));
    let mut told = 1;
    let broken = loop {
        if let Err(broken) = book.apply(format!(r#"{{"asks":[{}]}}"#, long(1000 + told * 3000)).as_bytes()) {
            break broken;
        }
        assert!(book.to_data().unwrap().len() <= MAX_EVENT_DATA_BYTES);
        told += 1;
    };
    assert_eq!((broken, told), (Broken::TooLarge, 2));
}
