//! An order book (L2: quantities by price), kept from the events of a depth stream. Pure.
//!
//! Events are differences, as exchanges send them: levels as they are from now on, a quantity of zero where a level is gone.
//! One that says `"snapshot":true` holds the whole book; one that says `"incomplete":true`, that nobody knows it from here on, until
//! the next whole one. Prices and quantities are exact texts: compared as decimals, and given out as they came in.
//!
//! A worked example:
//!
//! ```
//! use tickmesh_protocol::book::Book;
//!
//! let mut book = Book::default();
//! book.apply(br#"{"asks":[["36200.5","1.2"]],"bids":[],"timestamp":1}"#).unwrap();
//! assert_eq!(book.to_data(), None, "nobody knows what was there before");
//! book.apply(br#"{"asks":[["36200.5","1.2"],["36200.1","3"]],"bids":[["36190.1","1.1"]],"snapshot":true,"timestamp":2}"#).unwrap();
//! // A level goes, and another one is told in another spelling.
//! book.apply(br#"{"asks":[["36200.50","0"],["36200.10","0.5"]],"timestamp":3}"#).unwrap();
//! let whole = r#"{"asks":[["36200.10","0.5"]],"bids":[["36190.1","1.1"]],"snapshot":true,"timestamp":3}"#;
//! assert_eq!(book.to_data().unwrap(), whole);
//! // Whoever is given that has the same book.
//! let mut other = Book::default();
//! other.apply(whole.as_bytes()).unwrap();
//! assert_eq!(other, book);
//! ```

mod checksum;
mod decimal;

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use self::decimal::Decimal;
pub use self::decimal::{MAX_DECIMAL_BYTES, MAX_DIGITS};
use crate::event::MAX_EVENT_DATA_BYTES;

/// Most levels on one side: what the deepest books of large exchanges have.
pub const MAX_BOOK_LEVELS: usize = 10_000;

/// Levels of each side that a checksum covers.
const CHECKSUM_LEVELS: usize = 10;

/// Longest timestamp, in bytes of JSON: RFC 3339 with nanoseconds and a zone, and room.
const MAX_TIMESTAMP_BYTES: usize = 64;

/// Bytes of a book's text around its levels and the timestamp.
const FRAME_BYTES: usize = r#"{"asks":[],"bids":[],"snapshot":true,"timestamp":}"#.len();

/// Bytes of a level's text around its price and quantity.
const LEVEL_BYTES: usize = r#"["",""],"#.len();

/// An order book, or one that is not known as a whole: nothing yet, or no longer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    asks: BTreeMap<Decimal, Level>,
    bids: BTreeMap<Decimal, Level>,
    /// Of the last event, as it was written.
    timestamp: Option<Box<str>>,
    whole: bool,
    /// Of the levels' text.
    bytes: usize,
}

/// A level as it was told last: its price, and behind it the quantity, in one text, which copies of the book share.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Level {
    text: Arc<str>,
    /// Where the quantity begins. A price has at most [`MAX_DECIMAL_BYTES`].
    price_bytes: u8,
}

/// What an event or a record says of one level, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    price: Decimal,
    level: Level,
    /// Its quantity is zero.
    gone: bool,
}

/// Why a book is not known as a whole any more, until the next event that holds all of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("no depth message: {0}")]
    NoDepth(String),
    #[error("{0:?} is no number, or has more than {MAX_DIGITS} digits")]
    Number(String),
    #[error("more than {MAX_BOOK_LEVELS} levels on one side")]
    TooManyLevels,
    #[error("as a text it has more than the {MAX_EVENT_DATA_BYTES} bytes of one event")]
    TooLarge,
}

impl Book {
    /// Takes in the `data` of the stream's next event. Differences of a book that is not known as a whole are passed over.
    ///
    /// # Errors
    /// Says why the book is not known as a whole from now on.
    pub fn apply(&mut self, data: &[u8]) -> Result<(), Broken> {
        let applied = Depth::parse(data).and_then(|depth| {
            if depth.incomplete == Some(true) {
                self.clear();
                return Ok(());
            }
            let sides = [&depth.asks, &depth.bids];
            let sides = sides.map(|levels| levels.iter().flatten().map(ToldLevel::read));
            self.take(depth.snapshot == Some(true), sides, depth.timestamp()?)
        });
        if applied.is_err() {
            self.clear();
        }
        applied
    }

    /// Takes in changes that were parsed before, as [`Self::apply`] does. `whole`: they are all there is.
    ///
    /// # Errors
    /// Says why the book is not known as a whole from now on.
    pub fn change(
        &mut self,
        whole: bool,
        asks: &[Change],
        bids: &[Change],
        timestamp_ms: u64,
    ) -> Result<(), Broken> {
        let timestamp = timestamp_ms.to_string();
        let applied =
            self.take(whole, [asks, bids].map(|side| side.iter().cloned().map(Ok)), Some(&timestamp));
        if applied.is_err() {
            self.clear();
        }
        applied
    }

    /// Forgets everything: events were missed, or the stream is numbered anew.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// The book as the `data` of an event that holds all of it: asks ascending, bids descending, the timestamp of the last
    /// event. `None` if it is not known as a whole. At most [`MAX_EVENT_DATA_BYTES`].
    pub fn to_data(&self) -> Option<String> {
        if !self.whole {
            return None;
        }
        let mut data = String::with_capacity(self.data_bytes());
        data.push('{');
        put_sides(&mut data, self.asks.values(), self.bids.values().rev());
        data.push_str(r#","snapshot":true"#);
        if let Some(timestamp) = &self.timestamp {
            data.push_str(r#","timestamp":"#);
            data.push_str(timestamp);
        }
        data.push('}');
        Some(data)
    }

    /// Length of [`Self::to_data`], or a little more.
    pub fn data_bytes(&self) -> usize {
        FRAME_BYTES + self.timestamp.as_ref().map_or(0, |timestamp| timestamp.len()) + self.bytes
    }

    /// The best levels of each side, as a part of an object: `"asks":[…],"bids":[…]`, asks ascending, bids descending.
    pub fn top(&self, levels: usize) -> String {
        let mut text = String::new();
        put_sides(&mut text, self.asks.values().take(levels), self.bids.values().rev().take(levels));
        text
    }

    /// CRC32 of the ten best levels of each side, as Kraken makes it (<https://docs.kraken.com/api/docs/guides/spot-ws-book-v2>): the
    /// asks ascending, then the bids descending; of each the price and the quantity, without the point and then without
    /// zeros in front.
    pub fn checksum(&self) -> u32 {
        let asks = self.asks.values().take(CHECKSUM_LEVELS);
        checksum::of(asks.chain(self.bids.values().rev().take(CHECKSUM_LEVELS)).map(Level::parts))
    }

    /// Whether somebody would buy for more than somebody sells for, or for as much: an exchange matches those.
    pub fn is_crossed(&self) -> bool {
        let (ask, bid) = (self.asks.first_key_value(), self.bids.last_key_value());
        ask.zip(bid).is_some_and(|((ask, _), (bid, _))| bid >= ask)
    }

    fn take(
        &mut self,
        whole: bool,
        [asks, bids]: [impl Iterator<Item = Result<Change, Broken>>; 2],
        timestamp: Option<&str>,
    ) -> Result<(), Broken> {
        if whole {
            self.clear();
            self.whole = true;
        } else if !self.whole {
            return Ok(());
        }
        take_side(&mut self.asks, &mut self.bytes, asks)?;
        take_side(&mut self.bids, &mut self.bytes, bids)?;
        self.timestamp = timestamp.map(Box::from);
        if self.data_bytes() > MAX_EVENT_DATA_BYTES { Err(Broken::TooLarge) } else { Ok(()) }
    }
}

fn take_side(
    side: &mut BTreeMap<Decimal, Level>,
    bytes: &mut usize,
    changes: impl Iterator<Item = Result<Change, Broken>>,
) -> Result<(), Broken> {
    for change in changes {
        let Change { price, level, gone } = change?;
        let (before, now) = if gone {
            (side.remove(&price), 0)
        } else {
            let now = level.bytes();
            (side.insert(price, level), now)
        };
        *bytes = *bytes + now - before.map_or(0, |before| before.bytes());
    }
    if side.len() > MAX_BOOK_LEVELS { Err(Broken::TooManyLevels) } else { Ok(()) }
}

impl Change {
    /// A level as it is from now on: gone, if its quantity is zero.
    ///
    /// # Errors
    /// If one of them is no number, or the quantity is below zero.
    pub fn parse(price_text: &str, quantity_text: &str) -> Result<Self, Broken> {
        let (price, quantity) = (number(price_text)?, number(quantity_text)?);
        if quantity.is_negative() {
            return Err(Broken::NoDepth(format!("a quantity of {quantity_text}")));
        }
        // It was just seen to be short.
        let price_bytes = u8::try_from(price_text.len()).unwrap_or(u8::MAX);
        let level = Level { text: [price_text, quantity_text].concat().into(), price_bytes };
        Ok(Self { price, level, gone: quantity.is_zero() })
    }
}

/// Changes as a part of an object, in their order: `"asks":[…],"bids":[…]`.
pub fn changes_to_text(asks: &[Change], bids: &[Change]) -> String {
    let mut text = String::new();
    put_sides(&mut text, asks.iter().map(|change| &change.level), bids.iter().map(|change| &change.level));
    text
}

impl Level {
    fn bytes(&self) -> usize {
        LEVEL_BYTES + self.text.len()
    }

    /// Price and quantity.
    fn parts(&self) -> (&str, &str) {
        self.text.split_at(usize::from(self.price_bytes))
    }
}

fn put_sides<'a>(
    text: &mut String,
    asks: impl Iterator<Item = &'a Level>,
    bids: impl Iterator<Item = &'a Level>,
) {
    text.push_str(r#""asks":["#);
    put_side(text, asks);
    text.push_str(r#"],"bids":["#);
    put_side(text, bids);
    text.push(']');
}

fn put_side<'a>(data: &mut String, levels: impl Iterator<Item = &'a Level>) {
    for (index, level) in levels.enumerate() {
        let (price, quantity) = level.parts();
        if index > 0 {
            data.push(',');
        }
        for part in [r#"[""#, price, r#"",""#, quantity, r#""]"#] {
            data.push_str(part);
        }
    }
}

/// An event of a depth stream. Other fields are passed over.
#[derive(Deserialize)]
struct Depth<'a> {
    #[serde(borrow)]
    asks: Option<Vec<ToldLevel<'a>>>,
    #[serde(borrow)]
    bids: Option<Vec<ToldLevel<'a>>>,
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
    snapshot: Option<bool>,
    incomplete: Option<bool>,
}

/// `[price, quantity]`, strings or numbers, as they are written; what else an exchange says of a level is passed over.
struct ToldLevel<'a> {
    price: &'a RawValue,
    quantity: &'a RawValue,
}

impl<'a> Depth<'a> {
    fn parse(data: &'a [u8]) -> Result<Self, Broken> {
        let no_depth = |reason: &str| Broken::NoDepth(reason.to_owned());
        // A list of the fields' values would be read as well.
        if data.trim_ascii_start().first() != Some(&b'{') {
            return Err(no_depth("not an object"));
        }
        let depth: Self = serde_json::from_slice(data).map_err(|error| Broken::NoDepth(error.to_string()))?;
        if depth.asks.is_none() && depth.bids.is_none() {
            return Err(no_depth("neither asks nor bids"));
        }
        Ok(depth)
    }

    fn timestamp(&self) -> Result<Option<&'a str>, Broken> {
        let Some(text) = self.timestamp.map(RawValue::get) else { return Ok(None) };
        if text.len() <= MAX_TIMESTAMP_BYTES
            && text.starts_with(|c: char| c.is_ascii_digit() || "-\"".contains(c))
        {
            Ok(Some(text))
        } else {
            Err(Broken::NoDepth("timestamp is neither a number nor a short string".to_owned()))
        }
    }
}

impl ToldLevel<'_> {
    fn read(&self) -> Result<Change, Broken> {
        Change::parse(number_text(self.price), number_text(self.quantity))
    }
}

/// What a number is written as, be it a JSON number or a string.
fn number_text(value: &RawValue) -> &str {
    let text = value.get();
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text)
}

fn number(text: &str) -> Result<Decimal, Broken> {
    Decimal::parse(text).ok_or_else(|| Broken::Number(text.chars().take(MAX_DECIMAL_BYTES).collect()))
}

impl<'de: 'a, 'a> Deserialize<'de> for ToldLevel<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Levels;

        impl<'de> Visitor<'de> for Levels {
            type Value = (&'de RawValue, &'de RawValue);

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a level: [price, quantity]")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let price = seq.next_element()?.ok_or_else(|| A::Error::invalid_length(0, &self))?;
                let quantity = seq.next_element()?.ok_or_else(|| A::Error::invalid_length(1, &self))?;
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok((price, quantity))
            }
        }

        let (price, quantity) = deserializer.deserialize_seq(Levels)?;
        Ok(Self { price, quantity })
    }
}
