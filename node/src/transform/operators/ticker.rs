//! The ticker: what the last 24 hours come to, as in `ticker.btc_usdt`.
//!
//! The hours are counted in whole minutes: the minute of the latest trade of the partition and the 1,439 before it. A trade from
//! before those is late and counts for nothing. The ticker of a key is told at its first trade, and then at most once in
//! [`Config::every_ms`] of event time, if a trade came or a minute with trades went.
//!
//! `openTime` says since when trades are counted, in milliseconds since 1970 UTC: the begin of the first of those minutes, or
//! when reading began, if that was later. `changePercent` is rounded to two decimal places, half to even; all else is
//! exact. Where no trade is left in the 24 hours, all prices are that of the last trade before them.
//!
//! ```
//! use tickmesh::transform::operators::{Inputs, Kind, Operator, Trade, ticker::Config};
//!
//! let mut ticker = Operator::new(&Kind::Ticker(Config { every_ms: 1000 }), true);
//! let mut take = |key: &str, time_ms, price: &str| {
//!     let trade = Trade { key: key.into(), price: price.parse().unwrap(), quantity: "2".parse().unwrap(), time_ms };
//!     ticker.take(&Inputs::Trades(vec![trade])).unwrap()
//! };
//! let (day, minute) = (86_400_000, 60_000);
//! take("a", day, "100");
//! let told = take("a", day + minute, "103").told;
//! assert_eq!(told[0].data, r#"{"open":"100","high":"103","low":"100","last":"103","volume":"4","quoteVolume":"406","trades":2,"change":"3","changePercent":"3.00","openTime":120000,"closeTime":86460000}"#);
//! assert_eq!(take("a", 0, "1").late, 1, "from before the 24 hours");
//! // Nothing of it happens for a day: its minutes go with the trades of another one.
//! let told = take("b", 3 * day, "7").told;
//! assert!(told[0].data.starts_with(r#"{"open":"103","high":"103","low":"103","last":"103","volume":"0","quoteVolume":"0","trades":0,"#));
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    rc::Rc,
};

use bigdecimal::RoundingMode;
use bincode::{Decode, Encode};

use super::{MAX_KEYS, Refused, Told, Trade, candle::Candle, due::Due, room_for};
use crate::transform::decimal::Decimal;

const MINUTE_MS: u64 = 60_000;
/// From the first of the minutes to the last.
const REACH_MS: u64 = 1439 * MINUTE_MS;
/// Decimal places of a percentage, as exchanges show it.
const PERCENT_PLACES: i64 = 2;

/// What a route says of its tickers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// How often a ticker is told at most, in milliseconds of event time.
    pub every_ms: u64,
}

/// The tickers of one partition.
pub struct Ticker {
    every_ms: u64,
    /// Trades are counted since then; unknown until the first.
    since_ms: Option<u64>,
    /// The latest time of any trade.
    now_ms: u64,
    keys: BTreeMap<Rc<str>, Day>,
    due: Due<Rc<str>>,
}

/// The last 24 hours of a key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Day {
    /// Minutes with trades, oldest first.
    minutes: VecDeque<Candle>,
    last: Decimal,
    told_ms: Option<u64>,
    untold: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct State {
    since_ms: Option<u64>,
    now_ms: u64,
    keys: Vec<(String, Day)>,
}

impl Ticker {
    pub(super) const fn new(config: &Config, from_first: bool) -> Self {
        Self {
            every_ms: config.every_ms,
            since_ms: if from_first { Some(0) } else { None },
            now_ms: 0,
            keys: BTreeMap::new(),
            due: Due::new(),
        }
    }

    pub(super) fn take(&mut self, trades: &[Trade]) -> Result<(Vec<Told>, usize), Refused> {
        room_for(trades.iter().map(|trade| &*trade.key), self.keys.len(), |key| self.keys.contains_key(key))?;
        let late = trades.iter().filter(|trade| !self.take_one(trade)).count();
        let mut told = BTreeMap::new();
        while let Some(key) = self.due.pop(self.now_ms) {
            told.extend(self.tell(key).map(|told| (Rc::clone(&told.key), told)));
        }
        Ok((told.into_values().collect(), late))
    }

    /// Whether the trade counts.
    fn take_one(&mut self, trade: &Trade) -> bool {
        if minute_of(trade.time_ms).saturating_add(REACH_MS) < minute_of(self.now_ms) {
            return false;
        }
        self.since_ms.get_or_insert(trade.time_ms);
        self.now_ms = self.now_ms.max(trade.time_ms);
        let key: Rc<str> = match self.keys.get_key_value(&*trade.key) {
            Some((key, day)) => {
                self.due.unset(day.due_ms(self.every_ms), key);
                Rc::clone(key)
            }
            None => trade.key.as_str().into(),
        };
        let day = self.keys.entry(Rc::clone(&key)).or_insert_with(|| Day::new(&trade.price));
        day.add(trade);
        self.due.set(day.due_ms(self.every_ms), key);
        true
    }

    fn tell(&mut self, key: Rc<str>) -> Option<Told> {
        let first_ms = minute_of(self.now_ms).saturating_sub(REACH_MS);
        let day = self.keys.get_mut(&key)?;
        let gone = day.minutes.partition_point(|minute| minute.start_ms < first_ms);
        day.minutes.drain(..gone);
        day.untold |= gone > 0;
        let due = day.told_ms.is_none_or(|told_ms| told_ms.saturating_add(self.every_ms) <= self.now_ms);
        let told = (day.untold && due).then(|| {
            day.told_ms = Some(self.now_ms);
            day.untold = false;
            let open_ms = self.since_ms.unwrap_or(0).max(first_ms);
            Told { key: Rc::clone(&key), variant: None, data: day.data(open_ms, self.now_ms) }
        });
        self.due.set(day.due_ms(self.every_ms), key);
        told
    }

    pub(super) fn save(&self) -> State {
        let keys = self.keys.iter().map(|(key, day)| (key.to_string(), day.clone())).collect();
        State { since_ms: self.since_ms, now_ms: self.now_ms, keys }
    }

    pub(super) fn restore(config: &Config, state: State) -> Option<Self> {
        let mut ticker = Self::new(config, false);
        (ticker.since_ms, ticker.now_ms) = (state.since_ms, state.now_ms);
        for (key, day) in state.keys.into_iter().take(MAX_KEYS) {
            let key: Rc<str> = key.into();
            ticker.due.set(day.due_ms(config.every_ms), Rc::clone(&key));
            ticker.keys.insert(key, day);
        }
        Some(ticker)
    }
}

impl Day {
    fn new(price: &Decimal) -> Self {
        Self { minutes: VecDeque::new(), last: price.clone(), told_ms: None, untold: false }
    }

    fn add(&mut self, trade: &Trade) {
        let start_ms = minute_of(trade.time_ms);
        match self.minutes.binary_search_by_key(&start_ms, |minute| minute.start_ms) {
            Ok(at) => self.minutes[at].add(trade),
            Err(at) => self.minutes.insert(at, Candle::new(start_ms, trade)),
        }
        if let Some(last) = self.minutes.back() {
            self.last = last.close.clone();
        }
        self.untold = true;
    }

    /// When something is to be done: when it may be told again, or its oldest minute goes.
    fn due_ms(&self, every_ms: u64) -> u64 {
        if self.untold {
            return self.told_ms.map_or(0, |told_ms| told_ms.saturating_add(every_ms));
        }
        self.minutes.front().map_or(u64::MAX, |oldest| oldest.start_ms.saturating_add(REACH_MS + MINUTE_MS))
    }

    fn data(&self, open_ms: u64, close_ms: u64) -> String {
        let zero = Decimal::default();
        let (mut volume, mut quote_volume, mut trades) = (zero.clone(), zero, 0_u64);
        let oldest = self.minutes.front();
        let mut high = oldest.map_or(&self.last, |minute| &minute.high);
        let mut low = oldest.map_or(&self.last, |minute| &minute.low);
        for minute in &self.minutes {
            volume = volume.sum(&minute.volume);
            quote_volume = quote_volume.sum(&minute.quote_volume);
            trades = trades.saturating_add(minute.trades);
            high = if minute.high > *high { &minute.high } else { high };
            low = if minute.low < *low { &minute.low } else { low };
        }
        let (open, last) = (oldest.map_or(&self.last, |minute| &minute.open), &self.last);
        let change = last.difference(open);
        let percent = change.times_ten_to(PERCENT_PLACES).divide(open).unwrap_or_default();
        let percent = percent.rounded_to(PERCENT_PLACES, RoundingMode::HalfEven);
        let mut data = String::new();
        // Into memory: it cannot fail.
        let _ = write!(
            data,
            r#"{{"open":"{open}","high":"{high}","low":"{low}","last":"{last}","volume":"{volume}","quoteVolume":"{quote_volume}","trades":{trades},"change":"{change}","changePercent":"{percent}","openTime":{open_ms},"closeTime":{close_ms}}}"#
        );
        data
    }
}

const fn minute_of(time_ms: u64) -> u64 {
    time_ms - time_ms % MINUTE_MS
}
