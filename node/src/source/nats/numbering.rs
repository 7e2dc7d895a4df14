//! Which epoch a stream is in, and where reading of it goes on: the decisions, without any server.
//!
//! A stream that is deleted and created again has another time of creation, and by that another epoch. One that keeps it and
//! loses its end, as a server does that lost its disk, a stream in memory, or a restored backup, gives the same sequences
//! again to other messages. It goes on in another epoch, of the next generation of the numbering rule: `sequence`, then
//! `sequence/1`, `sequence/2`, counted as in `kafka/numbering.rs`, for the same reason.
//!
//! *That* a stream lost its end is known in two ways: its end is before the sequence to be read next; or a message before
//! that sequence was stored later than all that was read. *Where* it was cut follows from the same: every message written
//! after the cut was stored later than every message read. So reading goes on at the first that is later than those. A
//! checkpoint keeps that time as the term, in seconds: who goes on from it can miss a cut only if all of the stream was lost
//! and written anew within one second.
//!
//! Worked example: sequences 1 to 200 were read, the last stored at 12:00:07. The server comes back with 1 to 150, and 151 to
//! 230 are written anew from 12:01:30 on. The first message that was stored after 12:00:07 is 151, and 151 is before 201:
//! reading goes on there, in the epoch of rule `sequence/1`, as its first message.

use tickmesh_protocol::Epoch;

use crate::source::{Place, Starts, generations};

/// How a sequence is made of a position; part of the epoch.
const RULE: &str = "sequence";
const NANOSECONDS: i128 = 1_000_000_000;

/// The epoch of a stream. `log` is its name and when it was created; `generation` counts how often it lost its end.
pub(super) fn epoch_of(log: &str, generation: u32) -> Epoch {
    generations::epoch_of(log, 0, RULE, generation)
}

/// The newest generation of a stream that something is known of.
pub(super) fn known(starts: &Starts, log: &str) -> Option<(u32, Place)> {
    generations::newest_known(starts, |generation| epoch_of(log, generation))
}

/// When the newest message was stored of those that were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stored {
    /// Nanoseconds since 1970; the last of the second, if no more is known.
    nanoseconds: i128,
}

impl Stored {
    pub(super) fn at(nanoseconds: i128) -> Self {
        Self { nanoseconds }
    }

    /// Of what a checkpoint kept.
    pub(super) fn within(term: u32) -> Self {
        Self { nanoseconds: (i128::from(term) + 1) * NANOSECONDS - 1 }
    }

    /// What a checkpoint keeps: the second, until 2106.
    pub(super) fn term(self) -> u32 {
        u32::try_from(self.nanoseconds.div_euclid(NANOSECONDS).max(0)).unwrap_or(u32::MAX)
    }

    /// Since 1970; zero before.
    pub(super) fn microseconds(self) -> u64 {
        u64::try_from(self.nanoseconds.div_euclid(1000)).unwrap_or(0)
    }

    /// The first moment that is later.
    pub(super) fn after(self) -> i128 {
        self.nanoseconds + 1
    }
}

/// What a stream holds, as far as it matters for reading on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// The first sequence that is there; zero if nothing was ever there before.
    pub(super) low: u64,
    /// The sequence after the last.
    pub(super) end: u64,
    /// The first message that was stored after all that were read, if it is before the one to be read next.
    pub(super) cut: Option<u64>,
}

/// Where reading of a stream begins, or goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    /// How often the stream has lost its end.
    pub(super) generation: u32,
    /// The sequence that comes next.
    pub(super) next: u64,
    /// When the newest message was stored of those before; `None` if nobody knows.
    pub(super) stored: Option<Stored>,
    /// Nothing of the epoch is or was before `next`.
    pub(super) first: bool,
}

/// Where reading goes on if the stream no longer holds what comes next, or what came last; `None` if it does. A compacted
/// stream lacks messages anyway.
pub(super) fn move_on(at: At, extent: Extent, compacted: bool) -> Option<At> {
    let Extent { low, end, cut } = extent;
    let anew = |next, stored, first| At { generation: at.generation + 1, next, stored, first };
    match cut {
        Some(cut) if cut < at.next => Some(anew(cut, at.stored, true)),
        // What was written since is later than all that was read, so nothing was.
        _ if at.next > end => Some(anew(end, at.stored, at.stored.is_some())),
        // Limits were faster: on with the oldest.
        _ if at.next < low && !compacted => Some(At { next: low, first: false, ..at }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_checkpoint_keeps_the_second() {
        let stored = Stored::at(1_700_000_007_123_456_789);
        assert_eq!(stored.term(), 1_700_000_007);
        assert!(Stored::within(stored.term()) >= stored, "what was read is not later");
        assert_eq!(Stored::within(1_700_000_007).after(), 1_700_000_008_000_000_000);
        assert_eq!(Stored::at(-5).term(), 0);
    }

    /// A stream in a test: when each message was stored, by sequence from one on.
    struct Model {
        times: Vec<i128>,
        low: u64,
    }

    impl Model {
        fn end(&self) -> u64 {
            if self.times.is_empty() { 0 } else { self.times.len() as u64 + 1 }
        }

        /// As the server answers who asks for the first message from a time on.
        fn extent(&self, at: At) -> Extent {
            let after = at.stored.map(Stored::after);
            let later = |(_, time): &(u64, &i128)| after.is_some_and(|after| **time >= after);
            let found = (1..).zip(&self.times).find(later).map(|(sequence, _)| sequence.max(self.low));
            Extent { low: self.low, end: self.end(), cut: found.filter(|found| *found < at.next) }
        }
    }

    proptest! {
        /// Whatever became of a stream since it was read: a sequence is never given two meanings within an epoch, and
        /// nothing that was written since is left out.
        #[test]
        fn nothing_is_given_two_meanings_or_left_out(
            read in 1_u64..40, unread in 0_u64..10, kept in 0_u64..50, written in 0_u64..60, trimmed in 0_u64..20,
            seconds_only: bool,
        ) {
            let (before, since) = (1_000 * NANOSECONDS, 2_000 * NANOSECONDS);
            let mut times: Vec<i128> = (0..read + unread).map(|n| before + i128::from(n)).collect();
            let stored = Stored::at(times[read as usize - 1]);
            let stored = if seconds_only { Stored::within(stored.term()) } else { stored };
            let at = At { generation: 3, next: read + 1, stored: Some(stored), first: false };
            times.truncate(kept as usize);
            let kept = times.len() as u64;
            times.extend((0..written).map(|n| since + i128::from(n)));
            let low = if trimmed == 0 { 0 } else { (trimmed + 1).min(times.len() as u64 + 1) };
            let model = Model { times, low };
            let moved = move_on(at, model.extent(at), false);
            let now = moved.unwrap_or(at);
            if kept >= read {
                // Nothing that was read is lost: at most limits were faster.
                prop_assert_eq!(now, At { next: at.next.max(low), ..at });
            }
            let first_new = (kept + 1).max(low);
            if kept < read && (model.end() < at.next || written > 0 && first_new <= read) {
                prop_assert_eq!(now.generation, 4, "what was read is gone");
            }
            if written > 0 {
                prop_assert!(now.next <= first_new.max(read + 1), "{:?} leaves out {}", now, first_new);
            }
            if now.generation == 3 {
                prop_assert!(written == 0 || first_new > read || low > read, "{} means something else", first_new);
            }
            // Once there, nothing moves again.
            prop_assert_eq!(move_on(now, model.extent(now), false), None);
        }
    }

    #[test]
    fn of_several_generations_the_newest_counts() {
        use tickmesh_protocol::{Sequence, checkpoint::PartitionState};
        let state = |generation, next| PartitionState {
            epoch: epoch_of("log", generation),
            topic: "ORDERS".into(),
            partition: 0,
            next,
            read_from: Sequence::ZERO,
            term: Some(7),
        };
        let starts: Starts = [state(0, 90), state(2, 40)].iter().collect();
        assert_eq!(known(&starts, "log"), Some((2, Place { position: 40, term: Some(7) })));
        assert_eq!(known(&starts, "another"), None);
    }

    #[test]
    fn a_compacted_stream_goes_on_where_it_was() {
        let at = At { generation: 0, next: 20, stored: None, first: false };
        let extent = Extent { low: 50, end: 60, cut: None };
        assert_eq!(move_on(at, extent, true), None);
        assert_eq!(move_on(at, extent, false), Some(At { next: 50, ..at }));
        let shorter = Extent { low: 0, end: 10, cut: None };
        let moved = At { generation: 1, next: 10, stored: None, first: false };
        assert_eq!(move_on(at, shorter, true), Some(moved), "where it was cut is not known");
    }
}
