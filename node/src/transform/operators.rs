//! Operators: streams that are computed from many records, exactly and alike at every ingest peer.
//!
//! An operator belongs to one route and keeps a state for each partition of the log, since records of two partitions have no
//! common order. It is a pure machine: what it makes depends on the records before, in the order of the log, and on nothing
//! else. Time is event time, which only records move: whatever is due when time passes is told with the next record of the
//! partition, of whichever stream, and has that record's position as its sequence. So a peer that restores the state of a
//! position goes on as the one that kept it.
//!
//! A state begins with the first record that is read. What began before is not whole, and is not told as if it were: see
//! [`candles`], [`ticker`] and [`depth`].

mod candle;
pub mod candles;
pub mod combine;
pub mod conflate;
pub mod depth;
mod due;
pub mod ticker;

use std::{collections::BTreeSet, fmt, rc::Rc};

use bincode::{Decode, Encode};
use tickmesh_protocol::event::MAX_EVENT_DATA_BYTES;

use self::{
    candles::Candles,
    combine::Combine,
    conflate::Conflate,
    depth::{Depth, Gap, Update},
    ticker::Ticker,
};
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
    Depth(depth::Config),
    Conflate(conflate::Config),
    Combine(combine::Config),
}

/// What an operator takes of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inputs {
    /// For candles and the ticker.
    Trades(Vec<Trade>),
    /// For depth.
    Updates(Vec<Update>),
    /// For conflation and combination.
    Items(Vec<Item>),
}

impl Inputs {
    /// Puts behind these what another part of the record holds for the same operator.
    pub(super) fn append(&mut self, more: Self) {
        match (self, more) {
            (Self::Trades(all), Self::Trades(more)) => all.extend(more),
            (Self::Updates(all), Self::Updates(more)) => all.extend(more),
            (Self::Items(all), Self::Items(more)) => all.extend(more),
            // One route reads one kind.
            (_, Self::Trades(_) | Self::Updates(_) | Self::Items(_)) => {}
        }
    }
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

/// Some data of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Of the stream that it goes to.
    pub key: String,
    /// Its name among those that are combined; nothing needs an escape in it.
    pub member: String,
    /// JSON text.
    pub data: String,
    /// Milliseconds since 1970 UTC.
    pub time_ms: u64,
}

/// What comes of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// At most once for each stream.
    pub told: Vec<Told>,
    /// Trades that were late: they count for nothing.
    pub late: usize,
    /// Updates of books that were no newer than the book: they count for nothing.
    pub old: usize,
    /// Books that are incomplete since then.
    pub gaps: Vec<Gap>,
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

/// Why a record is not taken. It is a dead letter, and changes nothing but what [`combine`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("a price or quantity of more than {MAX_TRADE_DIGITS} digits or decimal places, or below zero")]
    Number,
    #[error("more than {MAX_KEYS} keys in one partition")]
    TooManyKeys,
    #[error("more than {} bytes wait to be told in one partition", conflate::MAX_WAITING_BYTES)]
    TooMuchWaits,
    #[error(
        "all members together have more than the {MAX_EVENT_DATA_BYTES} bytes of one event; this one is left out"
    )]
    TooLarge,
    #[error("records of several partitions cannot be combined; only those of partition 0 are")]
    Partition,
}

/// An operator with its state.
pub enum Operator {
    Candles(Candles),
    Ticker(Ticker),
    Depth(Depth),
    Conflate(Conflate),
    Combine(Combine),
}

/// The state of an operator, to go on from.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
enum State {
    Candles(candles::State),
    Ticker(ticker::State),
    Depth(depth::State),
    Conflate(conflate::State),
    Combine(combine::State),
}

impl Operator {
    /// Begins to read a partition: `from_first` if nothing is or ever was before what is read.
    pub fn new(kind: &Kind, from_first: bool) -> Self {
        match kind {
            Kind::Candles(config) => Self::Candles(Candles::new(config, from_first)),
            Kind::Ticker(config) => Self::Ticker(Ticker::new(config, from_first)),
            Kind::Depth(config) => Self::Depth(Depth::new(config)),
            Kind::Conflate(config) => Self::Conflate(Conflate::new(config)),
            Kind::Combine(config) => Self::Combine(Combine::new(config)),
        }
    }

    /// Takes what the next record holds for it, and says what there is to tell now.
    ///
    /// # Errors
    /// [`Refused`] says why nothing of it counts.
    pub fn take(&mut self, inputs: &Inputs) -> Result<Outcome, Refused> {
        if let Inputs::Trades(trades) = inputs {
            let fits = |number: &Decimal| !number.is_negative() && number.fits(MAX_TRADE_DIGITS);
            if !trades.iter().all(|trade| fits(&trade.price) && fits(&trade.quantity)) {
                return Err(Refused::Number);
            }
        }
        let told = |told| Outcome { told, ..Outcome::default() };
        let of_trades = |(told, late)| Outcome { told, late, ..Outcome::default() };
        match (self, inputs) {
            (Self::Candles(candles), Inputs::Trades(trades)) => candles.take(trades).map(of_trades),
            (Self::Ticker(ticker), Inputs::Trades(trades)) => ticker.take(trades).map(of_trades),
            (Self::Depth(depth), Inputs::Updates(updates)) => depth.take(updates),
            (Self::Conflate(conflate), Inputs::Items(items)) => conflate.take(items).map(told),
            (Self::Combine(combine), Inputs::Items(items)) => combine.take(items).map(told),
            // A route reads what its operator takes.
            (_, Inputs::Trades(_) | Inputs::Updates(_) | Inputs::Items(_)) => Ok(Outcome::default()),
        }
    }

    /// Of how many keys the book is not known.
    pub fn incomplete(&self) -> usize {
        match self {
            Self::Depth(depth) => depth.incomplete(),
            Self::Candles(_) | Self::Ticker(_) | Self::Conflate(_) | Self::Combine(_) => 0,
        }
    }

    /// The state as bytes.
    pub fn save(&self) -> Vec<u8> {
        let state = match self {
            Self::Candles(candles) => State::Candles(candles.save()),
            Self::Ticker(ticker) => State::Ticker(ticker.save()),
            Self::Depth(depth) => State::Depth(depth.save()),
            Self::Conflate(conflate) => State::Conflate(conflate.save()),
            Self::Combine(combine) => State::Combine(combine.save()),
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
            (Kind::Depth(config), State::Depth(state)) => Depth::restore(config, state).map(Self::Depth),
            (Kind::Conflate(config), State::Conflate(state)) => {
                Some(Self::Conflate(Conflate::restore(config, state)))
            }
            (Kind::Combine(config), State::Combine(state)) => {
                Some(Self::Combine(Combine::restore(config, state)))
            }
            _ => None,
        }
    }
}

/// Whether there is room for keys beside those that are known.
fn room_for<'a>(
    keys: impl Iterator<Item = &'a str>,
    known: usize,
    is_known: impl Fn(&str) -> bool,
) -> Result<(), Refused> {
    let new = keys.filter(|key| !is_known(key)).collect::<BTreeSet<_>>().len();
    if known + new > MAX_KEYS { Err(Refused::TooManyKeys) } else { Ok(()) }
}

/// Largest state that is restored: what a checkpoint can hold at all.
const MAX_STATE_BYTES: usize = tickmesh_protocol::checkpoint::MAX_STATE_BYTES;

impl fmt::Debug for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Candles(_) => "Candles",
            Self::Ticker(_) => "Ticker",
            Self::Depth(_) => "Depth",
            Self::Conflate(_) => "Conflate",
            Self::Combine(_) => "Combine",
        })
    }
}

#[cfg(test)]
mod tests;
