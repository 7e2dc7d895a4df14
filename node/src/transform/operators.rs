//! Operators: streams that are computed from many records, exactly and alike at every ingest peer.
//!
//! An operator belongs to one route and keeps a state for each partition of the log, since records of two partitions have no
//! common order. It is a pure machine: what it makes depends on the records before, in the order of the log, and on nothing
//! else. Time is event time, which only records move: whatever is due when time passes is told with the next record of the
//! partition, of whichever stream, and has that record's position as its sequence. So a peer that restores the state of a
//! position goes on as the one that kept it.
//!
//! A state begins with the first record that is read. What began before is not whole, and is not told as if it were: see
//! [`candles`] and [`ticker`].

mod candle;
pub mod candles;
mod due;
pub mod ticker;

use std::{collections::BTreeSet, fmt, rc::Rc};

use bincode::{Decode, Encode};

use self::{candles::Candles, ticker::Ticker};
use super::decimal::Decimal;

/// Most digits of a price or a quantity, and most decimal places: then no sum of a hundred million million products can be too
/// long for [`Decimal`].
pub const MAX_TRADE_DIGITS: u64 = 36;

/// Most streams of one operator in one partition; what every instrument of a large exchange needs, many times over.
pub const MAX_KEYS: usize = 20_000;

/// What an operator does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Candles(candles::Config),
    Ticker(ticker::Config),
}

/// A trade of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trade {
    /// Of the stream, as in `trades.<key>`.
    pub key: String,
    pub price: Decimal,
    pub quantity: Decimal,
    /// When it happened: milliseconds since 1970 UTC.
    pub time_ms: u64,
}

/// What an operator tells at a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub key: Rc<str>,
    /// As in `candles.<key>@<variant>`.
    pub variant: Option<Rc<str>>,
    /// JSON text.
    pub data: String,
}

/// Why trades are not taken. Their record is a dead letter, and changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("a price or quantity of more than {MAX_TRADE_DIGITS} digits or decimal places, or below zero")]
    Number,
    #[error("more than {MAX_KEYS} keys in one partition")]
    TooManyKeys,
}

/// An operator with its state.
pub enum Operator {
    Candles(Candles),
    Ticker(Ticker),
}

/// The state of an operator, to go on from.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
enum State {
    Candles(candles::State),
    Ticker(ticker::State),
}

impl Operator {
    /// Begins to read a partition: `from_first` if nothing is or ever was before what is read.
    pub fn new(kind: &Kind, from_first: bool) -> Self {
        match kind {
            Kind::Candles(config) => Self::Candles(Candles::new(config, from_first)),
            Kind::Ticker(config) => Self::Ticker(Ticker::new(config, from_first)),
        }
    }

    /// Takes the trades of the next record, and says what there is to tell now, at most once for each stream, and how many
    /// of the trades were late: they count for nothing.
    ///
    /// # Errors
    /// [`Refused`] says why none of them counts.
    pub fn take(&mut self, trades: &[Trade]) -> Result<(Vec<Told>, usize), Refused> {
        let fits = |number: &Decimal| !number.is_negative() && number.fits(MAX_TRADE_DIGITS);
        if !trades.iter().all(|trade| fits(&trade.price) && fits(&trade.quantity)) {
            return Err(Refused::Number);
        }
        match self {
            Self::Candles(candles) => candles.take(trades),
            Self::Ticker(ticker) => ticker.take(trades),
        }
    }

    /// The state as bytes.
    pub fn save(&self) -> Vec<u8> {
        let state = match self {
            Self::Candles(candles) => State::Candles(candles.save()),
            Self::Ticker(ticker) => State::Ticker(ticker.save()),
        };
        // Into memory, of what is there: it cannot fail.
        bincode::encode_to_vec(&state, bincode::config::standard()).unwrap_or_default()
    }

    /// Goes on from a state. `None` if the bytes are none, or one of another kind.
    pub fn restore(kind: &Kind, bytes: &[u8]) -> Option<Self> {
        let config = bincode::config::standard().with_limit::<MAX_STATE_BYTES>();
        let (state, read) = bincode::decode_from_slice::<State, _>(bytes, config).ok()?;
        if read != bytes.len() {
            return None;
        }
        match (kind, state) {
            (Kind::Candles(config), State::Candles(state)) => {
                Candles::restore(config, state).map(Self::Candles)
            }
            (Kind::Ticker(config), State::Ticker(state)) => Ticker::restore(config, state).map(Self::Ticker),
            (Kind::Candles(_) | Kind::Ticker(_), _) => None,
        }
    }
}

/// Whether there is room for the keys of trades beside those that are known.
fn room_for(trades: &[Trade], known: usize, is_known: impl Fn(&str) -> bool) -> Result<(), Refused> {
    let keys: BTreeSet<_> = trades.iter().map(|trade| &*trade.key).collect();
    let new = keys.into_iter().filter(|key| !is_known(key)).count();
    if known + new > MAX_KEYS { Err(Refused::TooManyKeys) } else { Ok(()) }
}

/// Largest state that is restored: what a checkpoint can hold at all.
const MAX_STATE_BYTES: usize = tickmesh_protocol::checkpoint::MAX_STATE_BYTES;

impl fmt::Debug for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Candles(_) => "Candles",
            Self::Ticker(_) => "Ticker",
        })
    }
}

#[cfg(test)]
mod tests;
