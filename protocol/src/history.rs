//! What an ingest peer has made of one stream lately, and what a reader who stands somewhere on it can be given. Pure.
//!
//! What is held goes to the reader as it is. What was held once, or read before this peer started, has to be looked for in the
//! log ([`Look`]); what was found there is linked anew ([`linked_to`]).
//!
//! A worked example: 5 and 8 are held, and 3 was the last one before them. A reader at 3 gets 5 and 8. One at 2 needs a look at
//! 3 to 5 of the log: whatever is found, 5 is linked to it. One of another epoch, that the first event held does not follow, is
//! refused, and told that the oldest is 5.

use std::collections::VecDeque;

use crate::{
    Epoch, Event, Position, Previous, Sequence,
    link::{Link, Verdict},
};

/// The last events of one stream, each with its place in the order in which all streams' events came.
#[derive(Clone, Debug, Default)]
pub struct StreamHistory {
    events: VecDeque<(u64, Event)>,
    /// The last event before those held: dropped, or of an earlier start of this peer.
    floor: Option<Position>,
}

/// What is held of a stream after a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// All of it, up to the head.
    All { head: Option<Position> },
    /// Not what comes directly after the position, but from here on.
    From(Position),
    /// Nothing of the stream.
    Unknown,
}

/// What a reader can be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// What is held.
    Held { head: Option<Position> },
    /// Nothing follows.
    Nothing,
    /// What the log holds there, if it still does.
    Look(Look),
    /// Nobody here has what follows; the oldest event is this.
    Lost { oldest: Option<Position> },
}

/// A part of the log that has to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    pub epoch: Epoch,
    pub from: u64,
    /// The first position that need not be looked at.
    pub until: u64,
    /// The oldest event that is held, for who cannot be given what is before it.
    pub oldest: Option<Position>,
}

impl StreamHistory {
    /// The stream stands here, by what a checkpoint kept.
    pub fn restore(&mut self, last: Position) {
        self.floor = Some(last);
    }

    /// Keeps an event; `arrived` rises with every event of any stream.
    pub fn keep(&mut self, arrived: u64, event: Event) {
        self.events.push_back((arrived, event));
    }

    /// Drops the oldest event.
    pub fn drop_oldest(&mut self) -> Option<Event> {
        let (_, event) = self.events.pop_front()?;
        self.floor = Some(event.position());
        Some(event)
    }

    /// An event and its place in the order of all, by its index.
    pub fn get(&self, index: usize) -> Option<&(u64, Event)> {
        self.events.get(index)
    }

    /// The events held after a position.
    pub fn events_after(&self, position: Option<Position>) -> impl Iterator<Item = &Event> {
        self.events.range(self.index_after(position)..).map(|(_, event)| event)
    }

    /// The index of the first held event after a position.
    pub fn index_after(&self, position: Option<Position>) -> usize {
        let Some(position) = position else { return 0 };
        // Events of one epoch are together; the newest epoch is nearly always the one asked for.
        let last = self.events.iter().rev().find(|(_, event)| event.epoch == position.epoch);
        let Some((last, _)) = last else { return 0 };
        self.events.partition_point(|(arrived, event)| {
            arrived <= last && (event.epoch != position.epoch || event.sequence <= position.sequence)
        })
    }

    /// Where the stream stands.
    pub fn head(&self) -> Option<Position> {
        self.events.back().map(|(_, event)| event.position()).or(self.floor)
    }

    /// Whether what follows a position is held; without one, what is the oldest.
    pub fn after(&self, position: Option<Position>) -> After {
        let head = self.head();
        let Some(newest) = head else { return After::Unknown };
        let Some(position) = position else {
            // If nothing is held, the newest was read, but is not held any more.
            return if self.events.is_empty() { After::From(newest) } else { After::All { head } };
        };
        match self.events.get(self.index_after(Some(position))) {
            Some((_, next)) => match Link::at(Some(position)).judge(next) {
                Verdict::Next | Verdict::Reset { .. } => After::All { head },
                // The first of its epoch, for who asks after the number before it because he was told of it.
                Verdict::Gap { .. } if begins_epoch_of(position, next) => After::All { head },
                Verdict::Gap { .. } | Verdict::Duplicate => After::From(next.position()),
            },
            None if newest.epoch != position.epoch || newest.sequence > position.sequence => {
                After::From(newest)
            }
            None => After::All { head },
        }
    }
}

/// Whether an event is the first of a position's epoch: nothing can be between.
fn begins_epoch_of(position: Position, event: &Event) -> bool {
    event.epoch == position.epoch && matches!(event.previous, Previous::Reset { .. })
}

/// What a reader who stands at `position` (`None`: who wants the oldest there is) can be given. `scanned`: everything before
/// this in the log, after the position, has been looked at. `read_from`: from where on the log of an epoch was read, if it was.
pub fn find(
    after: After,
    position: Option<Position>,
    scanned: Option<Sequence>,
    read_from: impl FnOnce(Epoch) -> Option<Sequence>,
) -> Found {
    let oldest = match after {
        After::All { head } => return Found::Held { head },
        After::From(oldest) => Some(oldest),
        After::Unknown => None,
    };
    let scanned = scanned.map_or(0, Sequence::get);
    let Some(position) = position else {
        // One that was read and is no longer held, unless that has been looked for in vain.
        return oldest.filter(|oldest| oldest.sequence.get() >= scanned).map_or(Found::Nothing, |oldest| {
            let from = oldest.sequence.get();
            Found::Look(Look { epoch: oldest.epoch, from, until: from + 1, oldest: None })
        });
    };
    let Some(read_from) = read_from(position.epoch) else { return Found::Lost { oldest } };
    let until = match oldest {
        // That one as well: what is looked at links it to the reader's position.
        Some(oldest) if oldest.epoch == position.epoch => oldest.sequence.get() + 1,
        Some(_) => return Found::Lost { oldest },
        None => read_from.get(),
    };
    let from = (position.sequence.get() + 1).max(scanned);
    if from < until {
        return Found::Look(Look { epoch: position.epoch, from, until, oldest });
    }
    if oldest.is_some() { Found::Lost { oldest } } else { Found::Nothing }
}

impl Look {
    /// The oldest event that can be had if the log begins at `oldest`, beyond where this look begins.
    pub fn left_by(&self, oldest: u64) -> Option<Position> {
        let left = Sequence::new(oldest).ok().filter(|oldest| oldest.get() < self.until);
        left.map(|sequence| Position { epoch: self.epoch, sequence }).or(self.oldest)
    }
}

/// What came before an event found in the log, for a reader who has been given everything up to `after`.
pub fn linked_to(after: Option<Position>, event: Position) -> Previous {
    match after {
        Some(after) if after.epoch == event.epoch => Previous::At(after.sequence),
        _ => Previous::Unknown { read_from: event.sequence },
    }
}
