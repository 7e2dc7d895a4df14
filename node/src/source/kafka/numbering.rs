//! Which epoch a partition is in, and where reading of it goes on: the decisions, without any broker.
//!
//! # A log that lost its end
//!
//! A Kafka partition can lose records that consumers have read: an unclean leader election, a disk that did not keep what
//! was acknowledged, a restored backup. The topic keeps its id, and new records get the offsets of the lost ones. Under
//! the same epoch clients would see numbers a second time with other contents, or take new events for old ones. So the
//! partition goes on in another epoch, of the same log under the next generation of the numbering rule: `offset`, then
//! `offset/1`, `offset/2`.
//!
//! Generations are counted, and not named after the offset or the leader epoch of the cut, since that brings peers together
//! that know different things: one that reads live, one that was down meanwhile and finds the log's end before its
//! checkpoint, one that does not learn the exact offset. Each has seen one generation end, so all are in the next. A
//! checkpoint, and the state a sibling gives, hold the epoch and by that the generation.
//!
//! *That* a log lost its end is known in two ways: its end is before the offset to be read next; or, when it has grown
//! beyond that again, the broker says so when asked for the leader epoch of the last record read (KIP-320), which
//! librdkafka does for live readers at each change of the leader, and at the start with what the checkpoint kept.
//! *Where* it was cut follows from leader epochs: they never fall along the log, and every record written after the cut
//! has a later one than the last record read. Reading goes on at the first of those, so nothing is left out.
//!
//! Worked example: records 0 to 199 were read under leader epoch 4. The leader fails, a replica that has 0 to 149 leads
//! under leader epoch 5, and 150 to 160 are written anew. Whoever reads live is told that 200 is out of range; the first
//! record with a later leader epoch than 4 is 150; reading goes on there, in the epoch of rule `offset/1`, as its first
//! record.
//!
//! What this cannot see: a peer that starts from a checkpoint at 120 finds all that it had read, and the log does not tell
//! a change of leaders that lost records from one that did not. So a peer that starts needs the state of a sibling beside
//! its own checkpoint, where there is a sibling: of several generations the newest counts. If all peers were down, and
//! their checkpoints were older than the cut, nobody on this side knows of it. To make every change of leaders another
//! epoch would close that hole and reset all clients with each restart of a broker.

use std::ops::RangeInclusive;

use tickmesh_protocol::Epoch;

use crate::source::{Place, Starts, generations};

/// How a sequence is made of a position; part of the epoch.
const RULE: &str = "offset";
/// Steps to a cut: halving 2^63 offsets takes 63.
const MAX_STEPS: u32 = 64;

/// The epoch of a partition. `log` is cluster id, topic and topic id; `generation` counts how often it lost its end.
pub(super) fn epoch_of(log: &str, partition: i32, generation: u32) -> Epoch {
    generations::epoch_of(log, partition.unsigned_abs(), RULE, generation)
}

/// The newest generation of a partition that something is known of.
pub(super) fn known(starts: &Starts, log: &str, partition: i32) -> Option<(u32, Place)> {
    generations::newest_known(starts, |generation| epoch_of(log, partition, generation))
}

/// What a partition holds, as far as it matters for reading on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// First offset that is there.
    pub(super) low: i64,
    /// The offset after the last that may be read.
    pub(super) high: i64,
    /// Where records begin that were written after the log had lost its end. Looked for only where there is a reason.
    pub(super) cut: Option<i64>,
}

/// Where reading of a partition begins, or goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    /// How often the log has lost its end.
    pub(super) generation: u32,
    /// The offset that comes next.
    pub(super) next: i64,
    /// The leader epoch of the record before; `None` if nobody knows.
    pub(super) term: Option<u32>,
    /// Where the log ends now.
    pub(super) high: i64,
    /// Nothing of the epoch is or was before `next`.
    pub(super) first: bool,
}

/// Where reading goes on if the log no longer holds what comes next, or what came last; `None` if it does.
pub(super) fn move_on(at: At, extent: Extent) -> Option<At> {
    let Extent { low, high, cut } = extent;
    let anew = |next, term, first| At { generation: at.generation + 1, next, term, high, first };
    match cut {
        Some(cut) if cut >= low => Some(anew(cut, at.term, true)),
        // Cut, written anew, and trimmed since.
        Some(_) => Some(anew(low, None, false)),
        // Retention was faster: on with the oldest record.
        None if at.next < low => Some(At { next: low, term: None, high, first: false, ..at }),
        // Where it was cut is not known. What was written since may be missed, and nothing is given a wrong number.
        None if at.next > high => Some(anew(high, None, false)),
        None => None,
    }
}

/// A record that was found in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) offset: i64,
    pub(super) term: Option<u32>,
}

/// Finds where a log was cut whose last record before `next` was read under `term`. `first_after` gives the first record
/// at or after an offset. `None`: what was read is still there.
pub(super) fn find_cut<E>(
    next: i64,
    term: u32,
    range: RangeInclusive<i64>,
    mut first_after: impl FnMut(i64) -> Result<Option<Found>, E>,
) -> Result<Option<i64>, E> {
    let (low, high) = range.into_inner();
    let end = next.min(high);
    // Whether what is at or after the offset was written later; then so was all behind it. Nothing there counts as
    // later: offsets may hold no record.
    let mut later = |offset: i64| {
        let found = first_after(offset)?.filter(|found| found.offset < end);
        Ok(found.is_none_or(|found| found.term.is_some_and(|found| found > term)))
    };
    // Before `least` all is old, from `most` on nothing is.
    let (mut least, mut most) = (low.min(end), end);
    // The usual answer first: the last record that was read is there.
    if least < most && !later(most - 1)? {
        least = most;
    }
    for _ in 0..MAX_STEPS {
        if least >= most {
            break;
        }
        let middle = least + (most - least) / 2;
        if later(middle)? {
            most = middle;
        } else {
            least = middle + 1;
        }
    }
    if next > high {
        return Ok(Some(most));
    }
    // The log is long enough: only a record proves anything.
    Ok(first_after(most)?.filter(|found| found.offset < end).map(|found| found.offset))
}

#[cfg(test)]
mod tests;
