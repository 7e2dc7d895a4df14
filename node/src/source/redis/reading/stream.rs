//! One stream that is read live: where it is, and what of it is said.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use redis::Cmd;
use tickmesh_protocol::Epoch;

use super::Wanted;
use crate::source::{
    Place, Record, SourceEvent,
    redis::{
        answers::{self, Entry},
        config::Config,
        id::Id,
        link::Trouble,
        numbering::{Followed, Info, epoch_of, known},
        status::{Known, Status},
    },
};

/// A stream, and how far it is read.
pub(super) struct Stream {
    pub(super) key: Arc<str>,
    log: String,
    wanted: Wanted,
    state: State,
    epoch: Epoch,
    /// The position that comes next: after the last record that has one.
    next: u64,
    pub(super) followed: Followed,
    /// Its end was reached since it began, and that was said.
    at_end: bool,
    pub(super) lag: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing was said of it. `restored`: somebody had read it before.
    New {
        restored: bool,
    },
    Read,
    /// It was read, and is not there, or is no stream.
    Gone {
        since: Instant,
    },
}

/// What entries have become.
pub(super) struct Taken {
    pub(super) events: Vec<SourceEvent>,
    /// How many of them are records.
    pub(super) records: u64,
}

impl Stream {
    pub(super) fn new(config: &Config, status: &Status, wanted: Wanted) -> Self {
        let log = config.log(&wanted.key);
        let restored = known(&status.starts(), &log);
        let (generation, next) = restored.map_or((0, 0), |(generation, place)| (generation, place.position));
        let followed = match restored {
            Some((generation, place)) => Followed::restored(generation, place),
            None => Followed::from_beginning(&Info::default()),
        };
        Self {
            key: wanted.key.clone(),
            epoch: epoch_of(&log, generation),
            log,
            wanted,
            state: State::New { restored: restored.is_some() },
            next,
            followed,
            at_end: false,
            lag: 0,
        }
    }

    pub(super) fn is_read(&self) -> bool {
        self.state == State::Read
    }

    /// The key, and the id after which it is read.
    pub(super) fn place(&self) -> (&str, Id) {
        (&self.key, self.followed.cursor)
    }

    /// Asks for the entry that was read last.
    pub(super) fn question(&self) -> Cmd {
        answers::range(&self.key, self.followed.cursor, self.followed.cursor, 1)
    }

    /// Asks for that entry, and then for what the stream is. In this order: an entry that is not there, and is not before the
    /// first, was not trimmed.
    pub(super) fn questions(&self) -> [Cmd; 2] {
        [self.question(), answers::info(&self.key)]
    }

    /// Begins with a stream that nobody has read; nothing is said of others.
    pub(super) fn begin(&mut self, status: &Status, info: &Info) -> Option<SourceEvent> {
        if self.state != (State::New { restored: false }) {
            return None;
        }
        let first = if self.wanted.from_end {
            self.followed = Followed::from_end(info);
            self.next = self.followed.next();
            info.added == 0
        } else {
            self.followed = Followed::from_beginning(info);
            self.next = info.oldest_position();
            info.is_whole()
        };
        self.state = State::Read;
        tracing::info!(source = status.source, key = &*self.key, after = %self.followed.cursor, "reading a stream");
        Some(self.began(status, first, None))
    }

    /// Whether it is to be said that it goes on where somebody was.
    pub(super) fn begins_again(&self) -> bool {
        self.state == State::New { restored: true }
    }

    /// It goes on where somebody was.
    pub(super) fn goes_on(&mut self, status: &Status) -> SourceEvent {
        tracing::info!(source = status.source, key = &*self.key, after = %self.followed.cursor, "reading a stream on");
        self.began(status, self.next == 0, self.followed.digest)
    }

    fn began(&mut self, status: &Status, first: bool, term: Option<u32>) -> SourceEvent {
        self.at_end = false;
        let generation = self.followed.generation;
        let begun = match status.known(&self.key) {
            Some(known) if known.generation == generation => known.begun,
            _ if first => self.next,
            // How long this generation has been going on is not known.
            _ => 0,
        };
        status.know(&self.key, Known { generation, begun, read: self.followed.cursor });
        SourceEvent::Begin {
            topic: self.key.clone(),
            partition: 0,
            epoch: self.epoch,
            position: self.next,
            first,
            term,
        }
    }

    /// Entries were trimmed before they were read: it goes on with the first that is there, or was read since.
    pub(super) fn trimmed(&mut self, status: &Status, info: &Info, read: &[Id]) -> SourceEvent {
        let (lost, after) = (self.next, self.followed.cursor);
        self.next = match read.first() {
            Some(first) => first.position().unwrap_or_else(|| first.next_position()),
            None => info.oldest_position(),
        };
        self.next = self.next.max(lost);
        self.followed.trimmed(info, read);
        tracing::error!(source = status.source, key = &*self.key, %after, lost, next = self.next,
            "the stream no longer holds all that comes next: entries were trimmed before they were read");
        status.figures.moved.inc();
        self.began(status, false, None)
    }

    /// The stream lost its end, or is another one. `there`: what is there of what is remembered.
    pub(super) fn lost(&mut self, status: &Status, there: &[(Id, u32)], info: &Info) -> SourceEvent {
        let lost = self.followed.cursor;
        let cut = self.followed.find_cut(there, info);
        self.followed.go_on(cut, info);
        self.epoch = epoch_of(&self.log, self.followed.generation);
        self.next = self.followed.next();
        tracing::error!(source = status.source, key = &*self.key, %lost, after = %cut.after, last = %info.last_given,
            generation = self.followed.generation,
            "the stream lost its end, or was made anew: going on in another epoch");
        status.figures.moved.inc();
        // Who goes on from here looks for the entry before.
        let term = self.followed.digest.filter(|_| cut.after.position().is_some());
        self.began(status, cut.first, term)
    }

    /// It is there, and was judged.
    pub(super) fn there(&mut self, info: &Info) {
        self.state = State::Read;
        self.lag = self.followed.lag(info);
    }

    /// It is not there, or is no stream, or not for this user.
    pub(super) fn gone(&mut self, status: &Status, trouble: &Trouble) {
        self.lag = 0;
        match self.state {
            // If it comes, it comes after this peer: all of it is new.
            State::New { .. } => self.wanted.from_end &= matches!(trouble, Trouble::Denied(_)),
            State::Read => {
                tracing::warn!(source = status.source, key = &*self.key, %trouble, "a stream is gone");
                self.state = State::Gone { since: Instant::now() };
            }
            State::Gone { .. } => {}
        }
    }

    /// Whether it has been gone for so long that another may take its place. Should it come back, it goes on where it was.
    pub(super) fn forgets(&self, config: &Config, status: &Status, after: Duration) -> bool {
        let State::Gone { since } = self.state else { return false };
        if self.wanted.named || config.patterns.is_empty() || since.elapsed() < after {
            return false;
        }
        status.starts().replace(self.epoch, Place { position: self.next, term: self.followed.digest });
        status.taken().remove(&self.key);
        true
    }

    /// That its end is reached, if it is by what the server says, and that was not said.
    pub(super) fn reached_by(&mut self, info: &Info) -> Option<SourceEvent> {
        if info.last.is_none_or(|last| last <= self.followed.cursor) { self.reached() } else { None }
    }

    /// That its end is reached, if that was not said.
    pub(super) fn reached(&mut self) -> Option<SourceEvent> {
        let now = !std::mem::replace(&mut self.at_end, true);
        now.then(|| SourceEvent::Reached { epoch: self.epoch, position: self.next })
    }

    /// Makes records of entries that were read.
    pub(super) fn take(&mut self, config: &Config, status: &Status, entries: Vec<Entry>) -> Taken {
        let (mut events, mut records, mut count) = (Vec::new(), Vec::new(), 0);
        for entry in entries {
            // The server gives them so; what it does not would be taken for something else.
            if entry.id <= self.followed.cursor {
                continue;
            }
            let digest = entry.digest();
            self.followed.take(entry.id, digest);
            let (mut record, reason) = record_of(config, &self.key, self.epoch, &entry, digest);
            match entry.id.position() {
                Some(position) => self.next = position + 1,
                None => (record.position, record.term) = (self.next, None),
            }
            let Some(reason) = reason else {
                records.push(record);
                count += 1;
                continue;
            };
            if !records.is_empty() {
                events.push(SourceEvent::Records(std::mem::take(&mut records)));
            }
            events.push(SourceEvent::Refused { record, reason, next: self.next });
        }
        if !records.is_empty() {
            events.push(SourceEvent::Records(records));
        }
        if let Some(known) = status.known(&self.key) {
            status.know(&self.key, Known { read: self.followed.cursor, ..known });
        }
        Taken { events, records: count }
    }
}

/// An entry as a record, and why it cannot become an event, if it cannot. Where its id gives no position, that has no meaning.
pub(in crate::source::redis) fn record_of(
    config: &Config,
    key: &Arc<str>,
    epoch: Epoch,
    entry: &Entry,
    digest: u32,
) -> (Record, Option<String>) {
    let field = |name: &Option<String>| name.as_deref().and_then(|name| entry.field(name)).cloned();
    let (value, position) = (entry.field(&config.field), entry.id.position());
    let time_us = match field(&config.time_field) {
        None => Some(entry.id.ms.saturating_mul(1000)),
        Some(text) => std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok()),
    };
    let id = entry.id;
    let reason = if position.is_none() {
        Some(format!(
            "the id {id} has no position: ids from 2020 on have one, the first 4096 of a millisecond"
        ))
    } else if value.is_none() {
        Some(format!("the entry {id} has no field {:?}", config.field))
    } else if time_us.is_none() {
        let name = config.time_field.as_deref().unwrap_or_default();
        Some(format!("the field {name:?} of the entry {id} is no time in microseconds"))
    } else {
        None
    };
    let record = Record {
        topic: key.clone(),
        partition: 0,
        position: position.unwrap_or(0),
        epoch,
        term: Some(digest),
        key: field(&config.key_field),
        value: value.cloned().unwrap_or_default(),
        engine_time_us: time_us.unwrap_or(0),
    };
    (record, reason)
}
