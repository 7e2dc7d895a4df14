//! Conflation: of each stream the newest event, at most once in [`Config::every_ms`] of event time. The others are left out.
//!
//! The first event of a stream is told at once. Of those that come within the time after one that was told, the newest (the last in the
//! log) waits, and is told with the first record of the partition, of whichever stream, that comes when the time is over. Where
//! no record comes any more, it waits for ever.
//!
//! ```
//! use tickmesh::transform::operators::{Inputs, Item, Kind, Operator, conflate::Config};
//!
//! let mut conflate = Operator::new(&Kind::Conflate(Config { every_ms: 1000 }), true);
//! let mut take = |key: &str, data: &str, time_ms| {
//!     let item = Item { key: key.into(), member: String::new(), data: data.into(), time_ms };
//!     let told = conflate.take(&Inputs::Items(vec![item])).unwrap().told;
//!     told.into_iter().map(|told| format!("{} {}", told.key, told.data)).collect::<Vec<_>>()
//! };
//! assert_eq!(take("a", "1", 5000), ["a 1"]);
//! assert!(take("a", "2", 5400).is_empty(), "it waits");
//! assert!(take("a", "3", 5300).is_empty(), "and is replaced by what comes after it, whatever its time");
//! assert_eq!(take("b", "9", 6000), ["a 3", "b 9"], "time is moved by records of any stream");
//! assert!(take("b", "9", 6999).is_empty(), "an idle stream tells nothing again");
//! ```

use std::{collections::BTreeMap, rc::Rc};

use bincode::{Decode, Encode};

use super::{Item, MAX_KEYS, Refused, Told, due::Due, room_for};

/// Most data that waits in one partition: more would not fit a checkpoint.
pub(super) const MAX_WAITING_BYTES: usize = super::MAX_STATE_BYTES / 2;

/// What a route says of its conflation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// How often an event of a stream is told at most, in milliseconds of event time.
    pub every_ms: u64,
}

/// The newest events of one partition.
pub struct Conflate {
    every_ms: u64,
    /// The latest time of any event.
    now_ms: u64,
    streams: BTreeMap<Rc<str>, Newest>,
    waiting_bytes: usize,
    due: Due<Rc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
struct Newest {
    /// When one was told last.
    told_ms: Option<u64>,
    /// What came since.
    waiting: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct State {
    now_ms: u64,
    streams: Vec<(String, Newest)>,
}

impl Conflate {
    pub(super) const fn new(config: &Config) -> Self {
        Self {
            every_ms: config.every_ms,
            now_ms: 0,
            streams: BTreeMap::new(),
            waiting_bytes: 0,
            due: Due::new(),
        }
    }

    pub(super) fn take(&mut self, items: &[Item]) -> Result<Vec<Told>, Refused> {
        room_for(items.iter().map(|item| &*item.key), self.streams.len(), |key| {
            self.streams.contains_key(key)
        })?;
        let more: usize = items.iter().map(|item| item.data.len()).sum();
        if self.waiting_bytes + more > MAX_WAITING_BYTES {
            return Err(Refused::TooMuchWaits);
        }
        for item in items {
            self.now_ms = self.now_ms.max(item.time_ms);
            let key: Rc<str> = match self.streams.get_key_value(&*item.key) {
                Some((key, _)) => Rc::clone(key),
                None => item.key.as_str().into(),
            };
            let newest = self.streams.entry(Rc::clone(&key)).or_default();
            self.waiting_bytes += item.data.len();
            match newest.waiting.replace(item.data.clone()) {
                Some(before) => self.waiting_bytes -= before.len(),
                None => self.due.set(newest.due_ms(self.every_ms), key),
            }
        }
        let mut told = Vec::new();
        while let Some(key) = self.due.pop(self.now_ms) {
            let Some(newest) = self.streams.get_mut(&key) else { continue };
            let Some(data) = newest.waiting.take() else { continue };
            newest.told_ms = Some(self.now_ms);
            self.waiting_bytes -= data.len();
            told.push(Told { key, variant: None, data });
        }
        told.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(told)
    }

    pub(super) fn save(&self) -> State {
        let streams = self.streams.iter().map(|(key, newest)| (key.to_string(), newest.clone())).collect();
        State { now_ms: self.now_ms, streams }
    }

    pub(super) fn restore(config: &Config, state: State) -> Self {
        let mut conflate = Self::new(config);
        conflate.now_ms = state.now_ms;
        for (key, newest) in state.streams.into_iter().take(MAX_KEYS) {
            let key: Rc<str> = key.into();
            if let Some(data) = &newest.waiting {
                conflate.waiting_bytes += data.len();
                conflate.due.set(newest.due_ms(config.every_ms), Rc::clone(&key));
            }
            conflate.streams.insert(key, newest);
        }
        conflate
    }
}

impl Newest {
    fn due_ms(&self, every_ms: u64) -> u64 {
        self.told_ms.map_or(0, |told_ms| told_ms.saturating_add(every_ms))
    }
}
