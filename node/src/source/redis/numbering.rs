//! Which epoch a stream is in, and where reading of it goes on: the decisions, without any server.
//!
//! # Redis can lose what it has confirmed
//!
//! A server that does not write its log to disk before it answers (`appendonly yes`, `appendfsync always`) loses the end of it
//! with a crash, and a replica that takes over lacks what had not reached it. Readers have seen those entries. A key can be
//! deleted and made anew as well, and nothing in Redis names that: streams have no id. Then the stream goes on in another
//! epoch, of the same key under the next generation of the numbering rule: `ms-n`, then `ms-n/1`, `ms-n/2`.
//!
//! What shows it, each time that a connection is made, every two seconds, and with all that is read:
//!
//! - the last id that the stream ever gave (`last-generated-id`) is before one that was seen;
//! - the entry that was read last has other contents, or is not there, though neither trimmed (it would be before the
//!   first) nor deleted (`max-deleted-entry-id` would not be before it);
//! - more entries are there than can have been added since (`entries-added`).
//!
//! The server's `run_id` and `master_replid` are not asked: they change with each restart and each orderly failover, and all
//! clients would begin anew though nothing was lost.
//!
//! Generations are counted, as Kafka's are, and for the same reason: every peer that saw one end is in the next, however much
//! each of them had read. A checkpoint, and the state a sibling gives, hold the epoch and by that the generation, and a
//! digest of the last entry.
//!
//! *Where* the stream was cut is known by the last [`REMEMBERED`] entries that were read: behind the newest that is still there,
//! all is new. If none is there, the stream may have been cut deeper than that, or be another one under the same key. It is
//! another one for sure, and read from its beginning, if nothing was ever taken from what it holds, and it begins after the
//! old one did, or all that was ever read of the old one is remembered. Otherwise reading goes on after the last id that was
//! seen: what was written since may be missed, which is told, and nothing is given twice.
//!
//! What this cannot see: a peer that had not read the lost entries, nor heard of them, finds all that it knows, and stays in its
//! epoch. Peers that read live are some milliseconds apart; one that was down takes up the state of a sibling. If all peers
//! were down, nobody on this side knows what they missed. An operator who knows better names another `epoch`.
//!
//! # What was trimmed
//!
//! Ids have gaps, so that the first entry is after the one read last does not tell whether one between them was trimmed before it
//! was read. Redis counts the entries that were ever added, and holds `length` of them: if no more are gone than were read,
//! none was missed. Where that count is not known, or does not add up, reading is told to begin at the first entry: better a
//! gap too many than one too few.

use std::{cmp::Ordering, collections::VecDeque};

use tickmesh_protocol::Epoch;

use super::id::Id;
use crate::source::{Place, Starts, generations};

/// How a sequence is made of an id; part of the epoch.
const RULE: &str = "ms-n";
/// Entries of each stream that are known by their digests: how many a server may lose and the cut is still found exactly. With
/// `appendfsync everysec` that is a second of a thousand entries, for 24 KiB.
pub(super) const REMEMBERED: usize = 1024;

/// The epoch of a stream. `log` is the configured name and the key; `generation` counts how often it lost its end.
pub(super) fn epoch_of(log: &str, generation: u32) -> Epoch {
    generations::epoch_of(log, 0, RULE, generation)
}

/// The newest generation of a stream that something is known of.
pub(super) fn known(starts: &Starts, log: &str) -> Option<(u32, Place)> {
    generations::newest_known(starts, |generation| epoch_of(log, generation))
}

/// What the server says of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Info {
    /// Entries that are there.
    pub(super) length: u64,
    /// Entries that were ever added.
    pub(super) added: u64,
    /// The last id that was given to an entry, whether that is there or not.
    pub(super) last_given: Id,
    /// The largest id that was deleted by name; trimming does not count.
    pub(super) max_deleted: Id,
    /// The entries that are there; none, if the stream is empty.
    pub(super) first: Option<Id>,
    pub(super) last: Option<Id>,
    /// Of the first, or zero.
    pub(super) first_digest: u32,
}

impl Info {
    /// Entries that were there once.
    fn removed(&self) -> u64 {
        self.added.saturating_sub(self.length)
    }

    /// Everything that the stream ever had is there.
    pub(super) fn is_whole(&self) -> bool {
        self.added == self.length
    }

    fn origin(&self) -> Option<(Id, u32)> {
        Some((self.first?, self.first_digest))
    }

    /// Where a reader begins who wants all that is there.
    pub(super) fn oldest_position(&self) -> u64 {
        match self.first {
            _ if self.is_whole() => 0,
            Some(first) => first.position().unwrap_or_else(|| first.next_position()),
            None => self.last_given.next_position(),
        }
    }
}

/// What a look at a stream showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The stream that was read, and nothing of it was missed.
    Same,
    /// Entries may have been trimmed before they were read.
    Trimmed,
    /// The stream lost its end, or is another one.
    Lost,
}

/// How far a stream was read, and what is remembered of it.
#[derive(Clone, Debug)]
pub(super) struct Followed {
    /// How often the stream has lost its end.
    pub(super) generation: u32,
    /// Reading goes on after this id.
    pub(super) cursor: Id,
    /// Of the entry at `cursor`, if that was read or looked at.
    pub(super) digest: Option<u32>,
    /// The last id that the stream was known to have given.
    given: Id,
    /// Entries that were added up to `cursor`, as the server counts them.
    passed: Option<u64>,
    /// That counts entries behind `cursor`, too, which are gone as it is.
    passed_over: bool,
    /// The first entry, when the stream was last looked at.
    origin: Option<(Id, u32)>,
    /// The last entries that were read.
    recent: VecDeque<(Id, u32)>,
    /// These are all that ever were, up to `cursor`.
    recent_is_all: bool,
}

/// Where a stream goes on that lost its end, in its next generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) after: Id,
    digest: Option<u32>,
    /// Everything that is new in it comes.
    pub(super) first: bool,
}

impl Followed {
    /// Reads on after the last entry.
    pub(super) fn from_end(info: &Info) -> Self {
        Self { recent_is_all: info.added == 0, ..Self::new(0, info.last_given, None) }.heard_of(info)
    }

    /// Reads all that is there.
    pub(super) fn from_beginning(info: &Info) -> Self {
        Self { recent_is_all: info.is_whole(), ..Self::new(0, Id::ZERO, None) }.heard_of(info)
    }

    /// Goes on where somebody was; [`Self::judge`] says whether that is still the same stream.
    pub(super) fn restored(generation: u32, place: Place) -> Self {
        Self::new(generation, Id::before(place.position), place.term)
    }

    fn new(generation: u32, cursor: Id, digest: Option<u32>) -> Self {
        let recent = digest.map(|digest| (cursor, digest)).into_iter().collect();
        Self {
            generation,
            cursor,
            digest,
            given: cursor,
            passed: None,
            passed_over: false,
            origin: None,
            recent,
            recent_is_all: false,
        }
    }

    fn heard_of(mut self, info: &Info) -> Self {
        self.heard(info);
        self
    }

    /// The position that comes next.
    pub(super) fn next(&self) -> u64 {
        self.cursor.next_position()
    }

    /// Judges what a stream is by a look at it: the digest of the entry at `cursor`, and then what the server says of the
    /// stream. `read`: entries after `cursor` that were read before that look.
    pub(super) fn judge(&self, at_cursor: Option<u32>, info: &Info, read: &[Id]) -> Verdict {
        if info.last_given < self.given {
            return Verdict::Lost;
        }
        if let Some(digest) = at_cursor {
            let same = self.digest.is_none_or(|known| known == digest);
            return if same { Verdict::Same } else { Verdict::Lost };
        }
        if info.first.is_some_and(|first| first <= self.cursor) {
            // Who did not read it does not know that there was one.
            let explained = self.digest.is_none() || self.cursor <= info.max_deleted;
            return if explained { Verdict::Same } else { Verdict::Lost };
        }
        let Some(passed) = self.passed else {
            return match self.digest {
                // A stream that holds all it ever had, and not what was read of it.
                Some(_) if info.is_whole() => Verdict::Lost,
                _ if info.last_given == self.cursor || info.is_whole() => Verdict::Same,
                _ => Verdict::Trimmed,
            };
        };
        // All that is there comes after the cursor.
        let read_and_gone =
            read.iter().filter(|id| info.first.is_none_or(|first| **id < first)).count() as u64;
        let accounted = passed.saturating_add(read_and_gone);
        match info.removed().cmp(&accounted) {
            Ordering::Less => Verdict::Lost,
            Ordering::Equal => Verdict::Same,
            Ordering::Greater => Verdict::Trimmed,
        }
    }

    /// Takes up what a look at the stream that is read has shown, while nothing is read that was not taken.
    pub(super) fn looked(&mut self, at_cursor: Option<u32>, info: &Info) {
        self.digest = self.digest.or(at_cursor);
        if at_cursor.is_some() && std::mem::take(&mut self.passed_over) {
            // A server that lost something has it again.
            self.passed = None;
        }
        self.heard(info);
    }

    fn heard(&mut self, info: &Info) {
        self.given = self.given.max(info.last_given);
        self.origin = info.origin();
        if self.cursor >= info.last_given {
            self.passed = Some(info.added);
        } else if info.first.is_none_or(|first| self.cursor < first) {
            self.passed = Some(info.removed());
        }
    }

    /// Something was trimmed before it was read; `read` was read before that was seen, and not taken yet.
    pub(super) fn trimmed(&mut self, info: &Info, read: &[Id]) {
        self.given = self.given.max(info.last_given);
        self.origin = info.origin();
        (self.recent_is_all, self.passed_over) = (false, true);
        // If what was read is gone as well, more may be gone behind it: the next look has to find that.
        let all_gone = !read.is_empty() && info.first.is_none_or(|first| read.iter().all(|id| *id < first));
        let gone = read.iter().filter(|id| info.first.is_some_and(|first| **id < first)).count() as u64;
        self.passed = (!all_gone).then(|| info.removed().saturating_sub(gone));
    }

    /// An entry was read.
    pub(super) fn take(&mut self, id: Id, digest: u32) {
        self.cursor = id;
        self.digest = Some(digest);
        self.given = self.given.max(id);
        self.passed = self.passed.map(|passed| passed.saturating_add(1));
        self.passed_over = false;
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
            self.recent_is_all = false;
        }
        self.recent.push_back((id, digest));
    }

    /// The oldest and the newest entry that are remembered.
    pub(super) fn remembered(&self) -> Option<(Id, Id)> {
        Some((self.recent.front()?.0, self.recent.back()?.0))
    }

    /// Where a stream goes on that is not the one that was read. `there`: what it holds between the oldest and the newest
    /// entry that are remembered.
    pub(super) fn find_cut(&self, there: &[(Id, u32)], info: &Info) -> Cut {
        let survivor = self.recent.iter().rev().find(|entry| there.contains(entry));
        if let Some((after, digest)) = survivor {
            return Cut { after: *after, digest: Some(*digest), first: true };
        }
        let another = match (info.origin(), self.origin) {
            (None, _) => true,
            (Some((first, _)), _) if first > self.given || self.recent_is_all => true,
            // A stream that was cut begins as it did, or before that, if it was trimmed since.
            (Some(now), Some(origin)) => now.0 > origin.0 || (now.0 == origin.0 && now.1 != origin.1),
            (Some(_), None) => false,
        };
        if info.is_whole() && another {
            return Cut { after: Id::ZERO, digest: None, first: true };
        }
        Cut { after: self.cursor.min(info.last_given), digest: None, first: false }
    }

    /// Goes on in the next generation.
    pub(super) fn go_on(&mut self, cut: Cut, info: &Info) {
        let recent = self.recent.iter().copied().filter(|(id, _)| cut.digest.is_some() && *id <= cut.after);
        let (recent, generation) = (recent.collect(), self.generation + 1);
        // Behind a survivor nothing is new; a stream that is read from its beginning has nothing before.
        let recent_is_all = cut.first && (cut.digest.is_none() || self.recent_is_all);
        *self = Self { recent, recent_is_all, ..Self::new(generation, cut.after, cut.digest) };
        self.heard(info);
    }

    /// Entries that are there and have not been read; an upper bound, until the end was reached once.
    pub(super) fn lag(&self, info: &Info) -> u64 {
        if info.last.is_none_or(|last| last <= self.cursor) {
            return 0;
        }
        self.passed.map_or(info.length, |passed| info.added.saturating_sub(passed).min(info.length))
    }
}

#[cfg(test)]
mod tests;
