//! The configuration of a route's operator.

use super::{check_jq, program};
use crate::{
    config::reader::{Section, Span},
    transform::operators::{Kind, candles, combine, conflate, depth, ticker},
};

/// How often something is told at most, if nothing else is said.
const EVERY_MS: u64 = 1000;
/// The same of the best levels of a book, which people watch.
const DEPTH_EVERY_MS: u64 = 100;

/// The operators' names, as a route says them.
pub(super) const NAMES: [&str; 5] = ["candles", "ticker", "depth", "conflate", "combine"];

/// An operator, and the jq programs that read for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorConfig {
    pub kind: Kind,
    pub reads: Reads,
    /// In milliseconds since 1970 UTC; the log's own time if left out.
    pub time: Option<String>,
}

/// What is read of a record: a jq program for each part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reads {
    Trades {
        price: String,
        quantity: String,
    },
    Updates {
        asks: String,
        bids: String,
        /// Whether the record holds the whole book; none does, if left out.
        snapshot: Option<String>,
        first: Option<String>,
        last: Option<String>,
        previous: Option<String>,
    },
    Items {
        /// Its name among those that are combined.
        member: Option<String>,
        /// The value as it is, if left out.
        data: Option<String>,
    },
}

/// Reads the operator that a route names; `None` inside if a fault makes it useless.
pub(super) fn read(section: &mut Section) -> Option<Option<OperatorConfig>> {
    let name = NAMES.into_iter().find(|name| section.has(name))?;
    let mut table = section.section(name);
    let operator = match name {
        "candles" => read_candles(&mut table),
        "ticker" => {
            let every_ms = every_ms(&mut table, EVERY_MS);
            trades(&mut table).map(|reads| (Kind::Ticker(ticker::Config { every_ms }), reads))
        }
        "depth" => read_depth(&mut table),
        "conflate" => {
            let every_ms = every_ms(&mut table, EVERY_MS);
            let reads = Reads::Items { member: None, data: program(&mut table, "data") };
            Some((Kind::Conflate(conflate::Config { every_ms }), reads))
        }
        _ => {
            let every_ms = every_ms(&mut table, EVERY_MS);
            let member = program(&mut table, "member").or_else(|| Some("$key".to_owned()));
            let reads = Reads::Items { member, data: program(&mut table, "data") };
            Some((Kind::Combine(combine::Config { every_ms }), reads))
        }
    };
    let time = program(&mut table, "time");
    table.finish();
    Some(operator.map(|(kind, reads)| OperatorConfig { kind, reads, time }))
}

fn read_candles(table: &mut Section) -> Option<(Kind, Reads)> {
    let intervals: Vec<candles::Interval> = table.parsed_list("intervals").unwrap_or_default();
    if !(1..=candles::MAX_INTERVALS).contains(&intervals.len()) {
        table.fault("intervals", format!("1 to {} of them, as in [\"1m\", \"1h\"]", candles::MAX_INTERVALS));
    }
    let every_ms = every_ms(table, EVERY_MS);
    Some((Kind::Candles(candles::Config { intervals, every_ms }), trades(table)?))
}

fn read_depth(table: &mut Section) -> Option<(Kind, Reads)> {
    let levels: Vec<usize> = table.or("levels", Vec::new());
    let in_range = levels.iter().all(|levels| (1..=depth::MAX_TOP_LEVELS).contains(levels));
    if !in_range || levels.len() > depth::MAX_TOPS {
        let (tops, most) = (depth::MAX_TOPS, depth::MAX_TOP_LEVELS);
        table.fault("levels", format!("at most {tops} numbers from 1 to {most}, as in [10, 50]"));
    }
    if levels.iter().enumerate().any(|(index, number)| levels[..index].contains(number)) {
        table.fault("levels", "a number stands there twice");
    }
    let checksum = table.or("checksum", false);
    let every_ms = every_ms(table, DEPTH_EVERY_MS);
    let (asks, bids) = (required(table, "asks"), required(table, "bids"));
    let snapshot = program(table, "snapshot");
    let [first, last, previous] = ["first", "last", "previous"].map(|id| program(table, id));
    if last.is_none() && (first.is_some() || previous.is_some()) {
        table
            .fault("last", "is missing: first and previous are compared with the last update id of the book");
    }
    let reads = Reads::Updates { asks: asks?, bids: bids?, snapshot, first, last, previous };
    Some((Kind::Depth(depth::Config { levels, every_ms, checksum }), reads))
}

fn trades(table: &mut Section) -> Option<Reads> {
    let (price, quantity) = (required(table, "price"), required(table, "quantity"));
    Some(Reads::Trades { price: price?, quantity: quantity? })
}

fn every_ms(table: &mut Section, default_ms: u64) -> u64 {
    let every = table.optional::<Span>("every");
    every.map_or(default_ms, |every| u64::try_from(every.0.as_millis()).unwrap_or(u64::MAX))
}

fn required(table: &mut Section, key: &'static str) -> Option<String> {
    table.required(key).inspect(|text: &String| check_jq(table, key, text))
}
