//! Depth: an order book of each key, kept from the engine's records. It tells every change, as in `depth.btc_usdt`, and the best
//! levels at a set rate, as in `depth.btc_usdt@100ms`.
//!
//! A record says how levels are from now on, a quantity of zero where one is gone, or it is a snapshot: all there is. What came
//! before the first snapshot nobody knows, so a book is told from its first snapshot on.
//!
//! The engine's own update ids say whether a record follows the book. They can be described in three ways:
//!
//! - `first` and `last`, as Binance's spot market has them (`U`, `u`): a record follows if `first` ≤ id of the book + 1 ≤ `last`.
//!   Without `first` it is the same as `last`: each record has the next id.
//! - `previous` and `last`, as OKX has them (`prevSeqId`, `seqId`): a record follows if `previous` is the id of the book. Ids may leap, and go
//!   back where the engine says so itself.
//! - all three, as Binance's futures have them (`U`, `u`, `pu`): by `previous`; the first record after a snapshot, which was made
//!   beside the records, by `first` ≤ id of the book + 1 ≤ `last`.
//!
//! (<https://developers.binance.com/docs/derivatives/usds-margined-futures/websocket-market-streams/How-to-manage-a-local-order-book-correctly>,
//! <https://www.okx.com/docs-v5/en/#order-book-trading-market-data-ws-order-book-channel>.) Without ids every record follows. One that is
//! no newer than the book is *old*: it counts for nothing. An engine that numbers anew says so by a snapshot.
//!
//! A book is *incomplete* where a record does not follow, where somebody would buy for as much as somebody else sells for (crossed),
//! and where it has more levels than can be kept. Its streams say so once, `"incomplete":true` beside two empty sides, and nothing
//! more is told of it until the next snapshot. Who subscribes meanwhile is given no book.
//!
//! The best levels are told whole each time (`"snapshot":true`), if they have changed and [`Config::every_ms`] of event time has passed.
//!
//! ```
//! use tickmesh::transform::operators::{Inputs, Kind, Operator, depth::{Config, Update}};
//! use tickmesh_protocol::book::Change;
//!
//! let config = Config { levels: vec![1], every_ms: 100, checksum: false };
//! let mut depth = Operator::new(&Kind::Depth(config), true);
//! let mut take = |whole, ids: [u64; 2], asks: &[(&str, &str)], bids: &[(&str, &str)], time_ms| {
//!     let changes = |side: &[(&str, &str)]| side.iter().map(|(price, quantity)| Change::parse(price, quantity).unwrap()).collect();
//!     let update = Update {
//!         key: "btc_usdt".into(), whole, asks: changes(asks), bids: changes(bids),
//!         first: Some(ids[0]), last: Some(ids[1]), previous: None, time_ms,
//!     };
//!     let outcome = depth.take(&Inputs::Updates(vec![update])).unwrap();
//!     outcome.told.into_iter().map(|told| (told.variant.map_or("".into(), |v| v.to_string()), told.data)).collect::<Vec<_>>()
//! };
//! let told = |variant: &str, data: &str| (variant.to_owned(), data.to_owned());
//! assert_eq!(take(false, [1, 4], &[("12", "1")], &[], 1000), [], "nobody knows what was there before");
//! assert_eq!(take(true, [5, 5], &[("12", "1")], &[("10.50", "3")], 2000), [
//!     told("", r#"{"asks":[["12","1"]],"bids":[["10.50","3"]],"snapshot":true,"timestamp":2000}"#),
//!     told("100ms", r#"{"asks":[["12","1"]],"bids":[["10.50","3"]],"snapshot":true,"timestamp":2000}"#),
//! ]);
//! // A level behind the best one: a change of the book, and none of its top.
//! assert_eq!(take(false, [6, 7], &[("13", "2")], &[], 2100), [
//!     told("", r#"{"asks":[["13","2"]],"bids":[],"timestamp":2100}"#),
//! ]);
//! assert_eq!(take(false, [6, 6], &[("13", "9")], &[], 2200), [], "old");
//! // Update 8 is missing.
//! assert_eq!(take(false, [9, 9], &[("12", "0")], &[], 2300), [
//!     told("", r#"{"asks":[],"bids":[],"incomplete":true,"timestamp":2300}"#),
//!     told("100ms", r#"{"asks":[],"bids":[],"incomplete":true,"timestamp":2300}"#),
//! ]);
//! assert_eq!(take(false, [10, 10], &[("11", "1")], &[], 2400), [], "differences of nothing");
//! assert_eq!(take(true, [10, 10], &[("11", "1")], &[], 2401).len(), 2);
//! ```

use std::{collections::BTreeMap, fmt::Write as _, rc::Rc};

use bincode::{Decode, Encode};
use tickmesh_protocol::{
    book::{Book, Change, MAX_BOOK_LEVELS, changes_to_text},
    event::MAX_EVENT_DATA_BYTES,
};

use super::{MAX_KEYS, Outcome, Refused, Told, due::Due, room_for};

/// Most tops of one route: the depths of 5, 10, 20, 50 … that exchanges offer, with room.
pub const MAX_TOPS: usize = 8;
/// Most levels of a top: 2,000 levels of both sides are far less than an event can hold. Who wants more takes the changes.
pub const MAX_TOP_LEVELS: usize = 1000;

/// Most text of all books of one operator in one partition: more would not fit a checkpoint. The book that goes beyond it is
/// incomplete.
const MAX_BYTES: usize = super::MAX_STATE_BYTES / 2;

/// Room for what an event says beside the book: checksum, snapshot, and a timestamp.
const FRAME_BYTES: usize = 128;

/// What a route says of its books.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// How many of the best levels are told at a set rate; each number has its own stream.
    pub levels: Vec<usize>,
    /// How often they are told at most, in milliseconds of event time.
    pub every_ms: u64,
    /// Whether events carry the checksum of the book.
    pub checksum: bool,
}

/// A record about the book of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// Of the stream, as in `depth.<key>`.
    pub key: String,
    /// It holds the whole book.
    pub whole: bool,
    pub asks: Vec<Change>,
    pub bids: Vec<Change>,
    /// The first and the last of the engine's update ids in it, and the last before it; as far as the route names them.
    pub first: Option<u64>,
    pub last: Option<u64>,
    pub previous: Option<u64>,
    /// Milliseconds since 1970 UTC.
    pub time_ms: u64,
}

/// A book that was known, and is not any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    pub key: Rc<str>,
    pub reason: String,
}

/// The books of one partition.
pub struct Depth {
    /// Number of levels and variant of each top.
    tops: Vec<(usize, Rc<str>)>,
    every_ms: u64,
    checksum: bool,
    /// The latest time of any record.
    now_ms: u64,
    books: BTreeMap<Rc<str>, Kept>,
    /// Of the text of all books.
    bytes: usize,
    due: Due<Place>,
}

/// A key, and the index of a top.
type Place = (Rc<str>, usize);

/// The book of a key.
struct Kept {
    book: Book,
    at: At,
    tops: Vec<Top>,
}

/// Where a book stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
struct At {
    /// The engine's id of the last update in it.
    last: Option<u64>,
    /// Nothing has come since its snapshot.
    fresh: bool,
    /// Time of the last record in it.
    time_ms: u64,
    /// It was said that the book is incomplete.
    told_gap: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
struct Top {
    told_ms: Option<u64>,
    /// A hash of the levels that were told last.
    told: Option<u64>,
    /// The book has changed since it was looked at.
    unseen: bool,
}

/// How a record stands to the book.
enum Standing {
    Follows,
    Old,
    Hole,
}

/// What became of a record.
enum Taken {
    Changed,
    Old,
    /// The book is not known.
    Waiting,
}

/// What there is to tell of a key at one record.
struct Telling {
    /// The book was known before.
    known: bool,
    /// All of it is told.
    whole: bool,
    asks: Vec<Change>,
    bids: Vec<Change>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct State {
    now_ms: u64,
    books: Vec<SavedBook>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct SavedBook {
    key: String,
    /// As the data of an event that holds all of it, if it is known.
    book: Option<String>,
    at: At,
    tops: Vec<Top>,
}

impl Config {
    /// The variants of the tops' streams: `100ms` if there is one, `10-100ms` and `20-100ms` if there are several.
    pub fn variants(&self) -> Vec<String> {
        let every = match self.every_ms {
            ms if ms > 0 && ms % 1000 == 0 => format!("{}s", ms / 1000),
            ms => format!("{ms}ms"),
        };
        match self.levels[..] {
            [_] => vec![every],
            _ => self.levels.iter().map(|levels| format!("{levels}-{every}")).collect(),
        }
    }
}

impl Depth {
    pub(super) fn new(config: &Config) -> Self {
        let variants = config.variants().into_iter().map(Rc::from);
        Self {
            tops: config.levels.iter().copied().zip(variants).collect(),
            every_ms: config.every_ms,
            checksum: config.checksum,
            now_ms: 0,
            books: BTreeMap::new(),
            bytes: 0,
            due: Due::new(),
        }
    }

    /// Of how many keys the book is not known.
    pub(super) fn incomplete(&self) -> usize {
        self.books.values().filter(|kept| !kept.book.is_whole()).count()
    }

    pub(super) fn take(&mut self, updates: &[Update]) -> Result<Outcome, Refused> {
        let keys = updates.iter().map(|update| &*update.key);
        room_for(keys, self.books.len(), |key| self.books.contains_key(key))?;
        let (mut telling, mut outcome) = (BTreeMap::new(), Outcome::default());
        for update in updates {
            self.take_one(update, &mut telling, &mut outcome);
        }
        for (key, telling) in telling {
            self.tell(&key, telling, &mut outcome.told);
        }
        while let Some((key, index)) = self.due.pop(self.now_ms) {
            outcome.told.extend(self.tell_top(key, index));
        }
        Ok(outcome)
    }

    fn take_one(&mut self, update: &Update, telling: &mut BTreeMap<Rc<str>, Telling>, outcome: &mut Outcome) {
        self.now_ms = self.now_ms.max(update.time_ms);
        let key: Rc<str> = match self.books.get_key_value(&*update.key) {
            Some((key, _)) => Rc::clone(key),
            None => update.key.as_str().into(),
        };
        let tops = self.tops.len();
        let kept = self.books.entry(Rc::clone(&key)).or_insert_with(|| Kept::new(tops));
        let telling = telling.entry(Rc::clone(&key)).or_insert_with(|| Telling::new(kept.book.is_whole()));
        let before = kept.bytes();
        let mut taken = kept.take(update);
        self.bytes = self.bytes - before + kept.bytes();
        if taken.is_ok() && self.bytes > MAX_BYTES {
            taken = Err(format!("all books together have more than {MAX_BYTES} bytes"));
        }
        match taken {
            Ok(Taken::Changed) => {
                telling.add(update);
                for (top, index) in kept.tops.iter_mut().zip(0..) {
                    if !top.unseen {
                        top.unseen = true;
                        self.due.set(top.due_ms(self.every_ms), (Rc::clone(&key), index));
                    }
                }
            }
            Ok(Taken::Old) => outcome.old += 1,
            Ok(Taken::Waiting) => {}
            Err(reason) => {
                self.bytes -= kept.bytes();
                for (top, index) in kept.tops.iter_mut().zip(0..) {
                    if top.unseen {
                        self.due.unset(top.due_ms(self.every_ms), &(Rc::clone(&key), index));
                    }
                }
                if !std::mem::replace(&mut kept.at.told_gap, true) {
                    outcome.gaps.push(Gap { key, reason });
                }
                kept.forget();
            }
        }
    }

    /// Tells the changes of a book, or that it is incomplete.
    fn tell(&self, key: &Rc<str>, telling: Telling, told: &mut Vec<Told>) {
        let Some(kept) = self.books.get(key) else { return };
        if !kept.book.is_whole() {
            if telling.known {
                let data =
                    format!(r#"{{"asks":[],"bids":[],"incomplete":true,"timestamp":{}}}"#, self.now_ms);
                let variants = self.tops.iter().map(|(_, variant)| Some(Rc::clone(variant)));
                let streams = std::iter::once(None).chain(variants);
                told.extend(streams.map(|variant| Told { key: Rc::clone(key), variant, data: data.clone() }));
            }
            return;
        }
        let changes = (!telling.whole).then(|| changes_to_text(&telling.asks, &telling.bids));
        let data = match changes.filter(|text| text.len() + FRAME_BYTES <= MAX_EVENT_DATA_BYTES) {
            Some(_) if telling.asks.is_empty() && telling.bids.is_empty() => return,
            Some(changes) => self.data(kept, changes, false),
            None => self.data(kept, kept.book.top(MAX_BOOK_LEVELS), true),
        };
        told.push(Told { key: Rc::clone(key), variant: None, data });
    }

    fn tell_top(&mut self, key: Rc<str>, index: usize) -> Option<Told> {
        let kept = self.books.get_mut(&key)?;
        let (levels, variant) = self.tops.get(index)?;
        let sides = kept.book.top(*levels);
        let hash = *blake3::hash(sides.as_bytes()).as_bytes().first_chunk().unwrap_or(&[0; 8]);
        let (now_ms, told) = (self.now_ms, Some(u64::from_le_bytes(hash)));
        let top = kept.tops.get_mut(index)?;
        top.unseen = false;
        if top.told == told {
            return None;
        }
        (top.told, top.told_ms) = (told, Some(now_ms));
        let (variant, kept) = (Some(Rc::clone(variant)), self.books.get(&key)?);
        Some(Told { data: self.data(kept, sides, true), key, variant })
    }

    fn data(&self, kept: &Kept, sides: String, whole: bool) -> String {
        let mut data = String::with_capacity(sides.len() + FRAME_BYTES);
        data.push('{');
        data.push_str(&sides);
        // Into memory: it cannot fail.
        if self.checksum {
            let _ = write!(data, r#","checksum":{}"#, kept.book.checksum());
        }
        let snapshot = if whole { r#","snapshot":true"# } else { "" };
        let _ = write!(data, r#"{snapshot},"timestamp":{}}}"#, kept.at.time_ms);
        data
    }

    pub(super) fn save(&self) -> State {
        let save = |(key, kept): (&Rc<str>, &Kept)| SavedBook {
            key: key.to_string(),
            book: kept.book.to_data(),
            at: kept.at.clone(),
            tops: kept.tops.clone(),
        };
        State { now_ms: self.now_ms, books: self.books.iter().map(save).collect() }
    }

    pub(super) fn restore(config: &Config, state: State) -> Option<Self> {
        let mut depth = Self::new(config);
        depth.now_ms = state.now_ms;
        for SavedBook { key, book: data, at, tops } in state.books.into_iter().take(MAX_KEYS) {
            let mut book = Book::default();
            if let Some(data) = data {
                book.apply(data.as_bytes()).ok()?;
            }
            if tops.len() != depth.tops.len() {
                return None;
            }
            let (key, kept): (Rc<str>, _) = (key.into(), Kept { book, at, tops });
            for (top, index) in kept.tops.iter().zip(0..).filter(|(top, _)| top.unseen) {
                depth.due.set(top.due_ms(config.every_ms), (Rc::clone(&key), index));
            }
            depth.bytes += kept.bytes();
            depth.books.insert(key, kept);
        }
        Some(depth)
    }
}

impl Kept {
    fn new(tops: usize) -> Self {
        Self { book: Book::default(), at: At::default(), tops: vec![Top::default(); tops] }
    }

    fn bytes(&self) -> usize {
        if self.book.is_whole() { self.book.data_bytes() } else { 0 }
    }

    /// # Errors
    /// Says why the book is not known any more; it must be forgotten.
    fn take(&mut self, update: &Update) -> Result<Taken, String> {
        if !update.whole {
            if !self.book.is_whole() {
                return Ok(Taken::Waiting);
            }
            match self.standing(update) {
                Standing::Follows => {}
                Standing::Old => return Ok(Taken::Old),
                Standing::Hole => return Err(hole(self.at.last, update)),
            }
        }
        let Update { whole, asks, bids, time_ms, .. } = update;
        self.book.change(*whole, asks, bids, *time_ms).map_err(|broken| broken.to_string())?;
        if self.book.is_crossed() {
            return Err("the best bid is not below the best ask".to_owned());
        }
        if self.book.data_bytes() + FRAME_BYTES > MAX_EVENT_DATA_BYTES {
            return Err(format!("as a text it has more than the {MAX_EVENT_DATA_BYTES} bytes of one event"));
        }
        let last = update.last;
        self.at = At { last, fresh: *whole, time_ms: *time_ms, told_gap: false };
        Ok(Taken::Changed)
    }

    /// The module's documentation says why.
    fn standing(&self, update: &Update) -> Standing {
        let (Some(at), Some(last)) = (self.at.last, update.last) else { return Standing::Follows };
        let next = at.saturating_add(1);
        let reaches_back = update.first.unwrap_or(last) <= next;
        match update.previous {
            Some(previous) if previous == at => Standing::Follows,
            _ if last < next => Standing::Old,
            None if reaches_back => Standing::Follows,
            Some(_) if self.at.fresh && update.first.is_some() && reaches_back => Standing::Follows,
            _ => Standing::Hole,
        }
    }

    /// The book is not known from here on.
    fn forget(&mut self) {
        self.book.clear();
        self.at = At { told_gap: self.at.told_gap, ..At::default() };
        self.tops.fill(Top::default());
    }
}

fn hole(at: Option<u64>, update: &Update) -> String {
    let id = |id: Option<u64>| id.map_or("none".to_owned(), |id| id.to_string());
    let Update { first, last, previous, .. } = update;
    let follows = previous.map(|previous| format!(", said to follow {previous}")).unwrap_or_default();
    format!("after update {} comes {} to {}{follows}", id(at), id(first.or(*last)), id(*last))
}

impl Top {
    /// When it may be told again.
    fn due_ms(&self, every_ms: u64) -> u64 {
        self.told_ms.map_or(0, |told_ms| told_ms.saturating_add(every_ms))
    }
}

impl Telling {
    const fn new(known: bool) -> Self {
        Self { known, whole: false, asks: Vec::new(), bids: Vec::new() }
    }

    fn add(&mut self, update: &Update) {
        if update.whole {
            self.whole = true;
        }
        if !self.whole {
            self.asks.extend_from_slice(&update.asks);
            self.bids.extend_from_slice(&update.bids);
        }
    }
}

#[cfg(test)]
mod tests;
