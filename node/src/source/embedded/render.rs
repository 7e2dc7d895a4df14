//! Records as JSON text: `{"stream": ..., "data": ...}`, which passes without a route. Numbers are exact decimals in
//! strings, as exchanges send them.

use std::fmt::Write;

use super::{
    book::{Levels, Order, Side},
    instrument::{Specification, Ticker},
};

/// A decimal number: `value` steps of `10^-decimals`.
struct Decimal {
    value: u128,
    negative: bool,
    decimals: u32,
}

impl std::fmt::Display for Decimal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Exactly "0" takes a level away.
        if self.value == 0 {
            return f.write_str("0");
        }
        let sign = if self.negative { "-" } else { "" };
        let scale = 10_u128.pow(self.decimals);
        let (whole, part) = (self.value / scale, self.value % scale);
        match self.decimals {
            0 => write!(f, "{sign}{whole}"),
            decimals => write!(f, "{sign}{whole}.{part:0width$}", width = decimals as usize),
        }
    }
}

fn price(specification: &Specification, value: i64) -> Decimal {
    let decimals = specification.price_decimals;
    Decimal { value: u128::from(value.unsigned_abs()), negative: value < 0, decimals }
}

fn quantity(specification: &Specification, value: u128) -> Decimal {
    Decimal { value, negative: false, decimals: specification.quantity_decimals }
}

// Writing to a String cannot fail, so the results below are dropped.

/// A trade, told from the taker's side.
pub(super) fn trade(
    specification: &Specification,
    id: u64,
    side: Side,
    at: i64,
    amount: u64,
    time_ms: u64,
) -> String {
    let symbol = &specification.symbol;
    let (side, at) = (side.name(), price(specification, at));
    let amount = quantity(specification, u128::from(amount));
    format!(
        r#"{{"stream":"trades.{symbol}","data":{{"id":{id},"price":"{at}","quantity":"{amount}","side":"{side}","timestamp":{time_ms}}}}}"#
    )
}

/// Levels of a book: on `depth` those that changed, on `book` all.
pub(super) fn levels(channel: &str, specification: &Specification, levels: &Levels, time_ms: u64) -> String {
    let mut text = String::with_capacity(96 + 28 * (levels.asks.len() + levels.bids.len()));
    let symbol = &specification.symbol;
    let _ = write!(text, r#"{{"stream":"{channel}.{symbol}","data":{{"#);
    sides(&mut text, specification, levels);
    let _ = write!(text, r#","timestamp":{time_ms}}}}}"#);
    text
}

/// All levels of a book, said to be all, on `depth`.
pub(super) fn whole_depth(specification: &Specification, levels: &Levels, time_ms: u64) -> String {
    let mut text = String::with_capacity(128 + 28 * (levels.asks.len() + levels.bids.len()));
    let symbol = &specification.symbol;
    let _ = write!(text, r#"{{"stream":"depth.{symbol}","data":{{"#);
    sides(&mut text, specification, levels);
    let _ = write!(text, r#","snapshot":true,"timestamp":{time_ms}}}}}"#);
    text
}

fn sides(text: &mut String, specification: &Specification, levels: &Levels) {
    text.push_str(r#""asks":["#);
    side_of(text, specification, &levels.asks);
    text.push_str(r#"],"bids":["#);
    side_of(text, specification, &levels.bids);
    text.push(']');
}

fn side_of(text: &mut String, specification: &Specification, levels: &[(i64, u64)]) {
    for (index, (at, amount)) in levels.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let (at, amount) = (price(specification, *at), quantity(specification, u128::from(*amount)));
        let _ = write!(text, r#"{comma}["{at}","{amount}"]"#);
    }
}

/// The ticker of one symbol.
pub(super) fn ticker(specification: &Specification, ticker: &Ticker, time_ms: u64) -> String {
    let mut text = String::with_capacity(256);
    let symbol = &specification.symbol;
    let _ = write!(text, r#"{{"stream":"ticker.{symbol}","data":"#);
    ticker_data(&mut text, specification, ticker, time_ms);
    text.push('}');
    text
}

/// The tickers of all symbols that have traded.
pub(super) fn tickers<'a>(
    all: impl Iterator<Item = (&'a Specification, &'a Ticker)>,
    time_ms: u64,
) -> String {
    let mut text = String::with_capacity(1536);
    text.push_str(r#"{"stream":"ticker.global","data":{"tickers":{"#);
    for (index, (specification, ticker)) in all.enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let _ = write!(text, r#"{comma}"{}":"#, specification.symbol);
        ticker_data(&mut text, specification, ticker, time_ms);
    }
    let _ = write!(text, r#"}},"timestamp":{time_ms}}}}}"#);
    text
}

fn ticker_data(text: &mut String, specification: &Specification, ticker: &Ticker, time_ms: u64) {
    let money = |value| price(specification, value);
    let (last, open) = (money(ticker.price), money(ticker.open));
    let (high, low) = (money(ticker.high), money(ticker.low));
    let change = money(ticker.price - ticker.open);
    let volume = quantity(specification, ticker.volume);
    let _ = write!(
        text,
        r#"{{"price":"{last}","open":"{open}","high":"{high}","low":"{low}","volume":"{volume}","change":"{change}","timestamp":{time_ms}}}"#
    );
}

/// What became of a user's order.
pub(super) fn order(
    specification: &Specification,
    user: &str,
    id: u64,
    order: &Order,
    status: &str,
    time_ms: u64,
) -> String {
    let (symbol, side) = (&specification.symbol, order.side.name());
    let at = price(specification, order.price);
    let amount = quantity(specification, u128::from(order.quantity));
    let filled = quantity(specification, u128::from(order.quantity - order.remaining.min(order.quantity)));
    format!(
        r#"{{"stream":"orders.{user}","data":{{"id":{id},"symbol":"{symbol}","side":"{side}","price":"{at}","quantity":"{amount}","filled":"{filled}","status":"{status}","timestamp":{time_ms}}}}}"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_exact() {
        let shown = |value, decimals| Decimal { value, negative: false, decimals }.to_string();
        assert_eq!(shown(362_005, 1), "36200.5");
        assert_eq!(shown(5, 4), "0.0005");
        assert_eq!(shown(0, 4), "0");
        assert_eq!(shown(70, 0), "70");
        assert_eq!(shown(u128::from(u64::MAX), 1), "1844674407370955161.5");
        assert_eq!(Decimal { value: 15, negative: true, decimals: 1 }.to_string(), "-1.5");
    }
}
