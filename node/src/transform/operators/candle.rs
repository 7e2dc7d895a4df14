//! What a span of time comes to: the part that candles and the ticker share.

use bincode::{Decode, Encode};

use super::Trade;
use crate::transform::decimal::Decimal;

/// The trades of a span of time, never none.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct Candle {
    /// Where the span begins: milliseconds since 1970 UTC.
    pub(super) start_ms: u64,
    pub(super) open: Decimal,
    pub(super) high: Decimal,
    pub(super) low: Decimal,
    /// Of the trade that came last in the log.
    pub(super) close: Decimal,
    /// The sum of all quantities.
    pub(super) volume: Decimal,
    /// The sum of all prices times quantities.
    pub(super) quote_volume: Decimal,
    pub(super) trades: u64,
}

impl Candle {
    pub(super) fn new(start_ms: u64, trade: &Trade) -> Self {
        Self {
            start_ms,
            open: trade.price.clone(),
            high: trade.price.clone(),
            low: trade.price.clone(),
            close: trade.price.clone(),
            volume: trade.quantity.clone(),
            quote_volume: trade.price.product(&trade.quantity),
            trades: 1,
        }
    }

    /// Of two spellings of a price the first stays.
    pub(super) fn add(&mut self, trade: &Trade) {
        if trade.price > self.high {
            self.high = trade.price.clone();
        }
        if trade.price < self.low {
            self.low = trade.price.clone();
        }
        self.close = trade.price.clone();
        self.volume = self.volume.sum(&trade.quantity);
        self.quote_volume = self.quote_volume.sum(&trade.price.product(&trade.quantity));
        self.trades = self.trades.saturating_add(1);
    }
}
