//! Candles: open, high, low, close and volume of each interval, as in `candles.btc_usdt@1m`.
//!
//! An interval begins at a multiple of its length since 1970 UTC and holds the trades from there up to, and not including, the
//! next. It is closed by the first record of the partition whose time is at or after its end; a trade of a closed interval is
//! late and counts for nothing. Intervals without a trade have no candle. The open candle is told at its first trade, and
//! then at most once in [`Config::every_ms`] of event time, if it has changed.
//!
//! The interval in which reading began, without the log before, has no candle: some of its trades were not seen.
//!
//! ```
//! use tickmesh::transform::operators::{Inputs, Kind, Operator, Trade, candles::{Config, Interval}};
//!
//! let config = Config { intervals: vec!["1m".parse().unwrap()], every_ms: 1000 };
//! let mut candles = Operator::new(&Kind::Candles(config), true);
//! let trade = |time_ms, price: &str| Trade {
//!     key: "btc_usdt".into(), price: price.parse().unwrap(), quantity: "0.5".parse().unwrap(), time_ms,
//! };
//! let mut take = |time_ms, price| candles.take(&Inputs::Trades(vec![trade(time_ms, price)])).unwrap();
//! let told = take(60_000, "36200.50").told;
//! assert_eq!(told[0].data, r#"{"candles":[{"start":60000,"open":"36200.50","high":"36200.50","low":"36200.50","close":"36200.50","volume":"0.5","quoteVolume":"18100.250","trades":1,"closed":false}]}"#);
//! assert_eq!(take(60_900, "36201").told, [], "within a second of the last");
//! let told = take(120_000, "36199").told;
//! assert!(told[0].data.starts_with(r#"{"candles":[{"start":60000,"open":"36200.50","high":"36201","low":"36200.50","close":"36201","volume":"1.0""#));
//! assert!(told[0].data.contains(r#""trades":2,"closed":true},{"start":120000,"#));
//! let outcome = take(119_999, "1");
//! assert_eq!((outcome.told.len(), outcome.late), (0, 1), "its minute is closed");
//! // Nothing happens for two minutes: they have no candle, and the one before them is closed by what comes then.
//! let told = take(300_000, "36198").told;
//! assert!(told[0].data.contains(r#""closed":true},{"start":300000,"#) && !told[0].data.contains("180000"));
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    rc::Rc,
    str::FromStr,
};

use bincode::{Decode, Encode};

use super::{Refused, Told, Trade, candle::Candle, due::Due, room_for};

/// Most intervals of one route: from a second to a week there are a dozen that anybody draws.
pub const MAX_INTERVALS: usize = 16;

/// What a route says of its candles.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    pub intervals: Vec<Interval>,
    /// How often an open candle is told at most, in milliseconds of event time.
    pub every_ms: u64,
}

/// The length of a candle, as it stands in the stream's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interval {
    name: String,
    ms: u64,
}

/// A text that is no interval.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no interval; write a number and s, m, h, d or w, as in 1m, at most 4w")]
pub struct InvalidInterval(String);

impl TryFrom<String> for Interval {
    type Error = InvalidInterval;

    fn try_from(text: String) -> Result<Self, InvalidInterval> {
        text.parse()
    }
}

impl FromStr for Interval {
    type Err = InvalidInterval;

    fn from_str(text: &str) -> Result<Self, InvalidInterval> {
        let invalid = || InvalidInterval(text.chars().take(32).collect());
        let unit = text.chars().next_back().ok_or_else(invalid)?;
        let unit_ms = match unit {
            's' => 1000,
            'm' => 60_000,
            'h' => 3_600_000,
            'd' => 86_400_000,
            'w' => WEEK_MS,
            _ => return Err(invalid()),
        };
        let count = &text[..text.len() - unit.len_utf8()];
        let canonical = count.bytes().all(|byte| byte.is_ascii_digit()) && !count.starts_with('0');
        let count: u64 = count.parse().ok().filter(|_| canonical).ok_or_else(invalid)?;
        let ms =
            count.checked_mul(unit_ms).filter(|ms| (1..=4 * WEEK_MS).contains(ms)).ok_or_else(invalid)?;
        Ok(Self { name: text.to_owned(), ms })
    }
}

const WEEK_MS: u64 = 7 * 86_400_000;

/// The candles of one partition.
pub struct Candles {
    intervals: Vec<(Rc<str>, u64)>,
    every_ms: u64,
    /// Intervals that begin before this are not known as a whole; unknown until the first trade.
    whole_from_ms: Option<u64>,
    /// The latest time of any trade.
    now_ms: u64,
    keys: BTreeSet<Rc<str>>,
    open: BTreeMap<Place, Open>,
    due: Due<Place>,
}

/// A key, and the index of an interval.
type Place = (Rc<str>, usize);

/// A candle that is not closed.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Open {
    candle: Candle,
    /// When it was told last.
    told_ms: Option<u64>,
    /// It has changed since.
    untold: bool,
}

/// What there is to tell of a place at one record.
#[derive(Default)]
struct Telling {
    closed: Vec<Candle>,
    open: Option<Candle>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct State {
    /// Lengths of the intervals, to which indices refer.
    intervals: Vec<u64>,
    whole_from_ms: Option<u64>,
    now_ms: u64,
    open: Vec<(String, u64, Open)>,
}

impl Candles {
    pub(super) fn new(config: &Config, from_first: bool) -> Self {
        let intervals = config.intervals.iter().map(|interval| (interval.name.as_str().into(), interval.ms));
        Self {
            intervals: intervals.collect(),
            every_ms: config.every_ms,
            whole_from_ms: from_first.then_some(0),
            now_ms: 0,
            keys: BTreeSet::new(),
            open: BTreeMap::new(),
            due: Due::new(),
        }
    }

    pub(super) fn take(&mut self, trades: &[Trade]) -> Result<(Vec<Told>, usize), Refused> {
        room_for(trades.iter().map(|trade| &*trade.key), self.keys.len(), |key| self.keys.contains(key))?;
        let (mut telling, mut late) = (BTreeMap::new(), 0);
        for trade in trades {
            late += usize::from(!self.take_one(trade, &mut telling));
            while let Some(place) = self.due.pop(self.now_ms) {
                self.look_at(place, &mut telling);
            }
        }
        let told = telling.into_iter().filter_map(|(place, telling)| self.told(place, &telling));
        Ok((told.collect(), late))
    }

    /// Whether the trade counts for any interval.
    fn take_one(&mut self, trade: &Trade, telling: &mut BTreeMap<Place, Telling>) -> bool {
        let before_ms = self.now_ms;
        let is_open = |length: u64| trade.time_ms.saturating_add(length - trade.time_ms % length) > before_ms;
        // Others may have traded in the same millisecond before reading began.
        self.whole_from_ms.get_or_insert(trade.time_ms.saturating_add(1));
        self.now_ms = before_ms.max(trade.time_ms);
        let key = self.key(&trade.key);
        let mut counts = false;
        for index in 0..self.intervals.len() {
            if is_open(self.intervals[index].1) {
                self.add(trade, (Rc::clone(&key), index), telling);
                counts = true;
            }
        }
        counts
    }

    fn key(&mut self, key: &str) -> Rc<str> {
        if let Some(key) = self.keys.get(key) {
            return Rc::clone(key);
        }
        let key: Rc<str> = key.into();
        self.keys.insert(Rc::clone(&key));
        key
    }

    /// The interval of the trade is not over.
    fn add(&mut self, trade: &Trade, place: Place, telling: &mut BTreeMap<Place, Telling>) {
        let length = self.intervals[place.1].1;
        let start_ms = trade.time_ms - trade.time_ms % length;
        if let Some(open) = self.open.get(&place) {
            self.due.unset(self.due_ms(open, length), &place);
        }
        match self.open.get_mut(&place) {
            Some(open) if open.candle.start_ms == start_ms => {
                open.candle.add(trade);
                open.untold = true;
            }
            other => {
                let new = Open { candle: Candle::new(start_ms, trade), told_ms: None, untold: true };
                if let Some(closed) = other.map(|open| std::mem::replace(open, new.clone())) {
                    let telling = telling.entry(place.clone()).or_default();
                    telling.open = None;
                    telling.closed.push(closed.candle);
                } else {
                    self.open.insert(place.clone(), new);
                }
            }
        }
        if let Some(open) = self.open.get(&place) {
            self.due.set(self.due_ms(open, length), place);
        }
    }

    /// When something is to be done about a candle: at its end, or when it may be told again.
    fn due_ms(&self, open: &Open, length: u64) -> u64 {
        let end_ms = open.candle.start_ms.saturating_add(length);
        if !open.untold {
            return end_ms;
        }
        end_ms.min(open.told_ms.map_or(0, |told_ms| told_ms.saturating_add(self.every_ms)))
    }

    fn look_at(&mut self, place: Place, telling: &mut BTreeMap<Place, Telling>) {
        let length = self.intervals[place.1].1;
        let Some(open) = self.open.get_mut(&place) else { return };
        let telling = telling.entry(place.clone()).or_default();
        if open.candle.start_ms.saturating_add(length) <= self.now_ms {
            telling.open = None;
            telling.closed.extend(self.open.remove(&place).map(|open| open.candle));
            return;
        }
        telling.open = Some(open.candle.clone());
        open.told_ms = Some(self.now_ms);
        open.untold = false;
        let open = open.clone();
        self.due.set(self.due_ms(&open, length), place);
    }

    fn told(&self, (key, index): Place, telling: &Telling) -> Option<Told> {
        let whole_from_ms = self.whole_from_ms.unwrap_or(0);
        let mut data = String::new();
        let candles = telling.closed.iter().map(|candle| (candle, true));
        let candles = candles.chain(telling.open.iter().map(|candle| (candle, false)));
        for (candle, closed) in candles.filter(|(candle, _)| candle.start_ms >= whole_from_ms) {
            data.push_str(if data.is_empty() { r#"{"candles":["# } else { "," });
            write_candle(&mut data, candle, closed);
        }
        if data.is_empty() {
            return None;
        }
        data.push_str("]}");
        Some(Told { key, variant: Some(Rc::clone(&self.intervals[index].0)), data })
    }

    pub(super) fn save(&self) -> State {
        let open =
            self.open.iter().map(|((key, index), open)| (key.to_string(), *index as u64, open.clone()));
        State {
            intervals: self.intervals.iter().map(|(_, ms)| *ms).collect(),
            whole_from_ms: self.whole_from_ms,
            now_ms: self.now_ms,
            open: open.collect(),
        }
    }

    pub(super) fn restore(config: &Config, state: State) -> Option<Self> {
        let mut candles = Self::new(config, false);
        if !candles.intervals.iter().map(|(_, ms)| *ms).eq(state.intervals) {
            return None;
        }
        (candles.whole_from_ms, candles.now_ms) = (state.whole_from_ms, state.now_ms);
        for (key, index, open) in state.open {
            let index = usize::try_from(index).ok()?;
            let length = candles.intervals.get(index)?.1;
            let place = (candles.key(&key), index);
            candles.due.set(candles.due_ms(&open, length), place.clone());
            candles.open.insert(place, open);
        }
        Some(candles)
    }
}

fn write_candle(data: &mut String, candle: &Candle, closed: bool) {
    let Candle { start_ms, open, high, low, close, volume, quote_volume, trades } = candle;
    // Into memory: it cannot fail.
    let _ = write!(
        data,
        r#"{{"start":{start_ms},"open":"{open}","high":"{high}","low":"{low}","close":"{close}","volume":"{volume}","quoteVolume":"{quote_volume}","trades":{trades},"closed":{closed}}}"#
    );
}
