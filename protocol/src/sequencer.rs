//! Log positions become sequences: the only place where an ingest peer numbers events.
//!
//! ```
//! use tickmesh_protocol::{Epoch, Previous, Sequence, StreamName, sequencer::Sequencer};
//!
//! let btc: StreamName = "trades.btc_usdt".parse().unwrap();
//! let epoch = Epoch::of("cluster/topic", 0, "offset");
//! let mut sequencer = Sequencer::default();
//! // Offset 3 of the partition is the first record read, and it belongs to trades.btc_usdt.
//! let (sequence, previous) = sequencer.next(&btc, epoch, 3).unwrap();
//! assert_eq!((sequence.get(), previous), (3, Previous::Unknown { read_from: Sequence::new(3).unwrap() }));
//! // Offsets 4 to 6 went to other streams; 7 comes after 3.
//! let (sequence, previous) = sequencer.next(&btc, epoch, 7).unwrap();
//! assert_eq!((sequence.get(), previous), (7, Previous::At(Sequence::new(3).unwrap())));
//! // The topic is deleted and made anew: another epoch, whose first record tells what came before it.
//! let anew = Epoch::of("cluster/topic made anew", 0, "offset");
//! sequencer.begin(anew, Sequence::ZERO, true);
//! let (_, previous) = sequencer.next(&btc, anew, 2).unwrap();
//! assert!(matches!(previous, Previous::Reset { after } if after.epoch == epoch && after.sequence.get() == 7));
//! ```

use std::collections::HashMap;

use crate::{
    Epoch, Position, Previous, Sequence, StreamName,
    position::{LeftEpochs, SequenceTooLarge},
};

/// Gives each record of a log its sequence and `previous`, stream by stream.
#[derive(Clone, Debug, Default)]
pub struct Sequencer {
    streams: HashMap<StreamName, StreamState>,
    partitions: HashMap<Epoch, Reading>,
    /// Records numbered so far.
    count: u64,
}

#[derive(Clone, Debug)]
struct StreamState {
    last: Position,
    /// [`Sequencer::count`] when `last` was numbered.
    at_count: u64,
    left: LeftEpochs,
}

/// How a partition has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Everything from here on has been read.
    pub read_from: Sequence,
    /// The position that comes next.
    pub next: u64,
    /// [`Sequencer::count`] when reading began.
    began: u64,
    /// Nothing of the epoch was before `read_from`.
    whole: bool,
}

/// Why a record gets no sequence. It belongs in the dead letters; the stream goes on without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsequenced {
    #[error(transparent)]
    TooLarge(#[from] SequenceTooLarge),
    #[error("position {position} is not after {last}, the last of its stream")]
    Backward { position: u64, last: Sequence },
    #[error("the stream has left epoch {0} and cannot go back to it")]
    LeftEpoch(Epoch),
}

impl Sequencer {
    /// Numbers the record at `position` of the partition that `epoch` identifies.
    pub fn next(
        &mut self,
        stream: &StreamName,
        epoch: Epoch,
        position: u64,
    ) -> Result<(Sequence, Previous), Unsequenced> {
        let sequence = Sequence::new(position)?;
        let count = self.count;
        let reading = self.partitions.entry(epoch).or_insert(Reading {
            read_from: sequence,
            next: position,
            began: count,
            whole: false,
        });
        reading.next = reading.next.max(position + 1);
        let reading = *reading;
        let unknown = Previous::Unknown { read_from: reading.read_from };
        let now = Position { epoch, sequence };
        let Some(state) = self.streams.get_mut(stream) else {
            self.count += 1;
            let state = StreamState { last: now, at_count: self.count, left: LeftEpochs::default() };
            self.streams.insert(stream.clone(), state);
            return Ok((sequence, unknown));
        };
        let last = state.last;
        let previous = if last.epoch == epoch {
            if sequence <= last.sequence {
                return Err(Unsequenced::Backward { position, last: last.sequence });
            }
            // What the log lost, or this peer did not read, may have held events of this stream.
            if last.sequence >= reading.read_from { Previous::At(last.sequence) } else { unknown }
        } else {
            if state.left.contains(epoch) {
                return Err(Unsequenced::LeftEpoch(epoch));
            }
            state.left.leave(last.epoch);
            // Nothing of the new epoch was missed if it has been read since its beginning, or since before the last event
            // of the old one.
            if reading.whole || reading.began < state.at_count {
                Previous::Reset { after: last }
            } else {
                unknown
            }
        };
        self.count += 1;
        state.last = now;
        state.at_count = self.count;
        Ok((sequence, previous))
    }

    /// Notes that reading of a partition begins, or goes on, at `position`, before the record there is seen. If that is
    /// beyond what came next, what lies between was not read. `first`: nothing of the epoch is or ever was before it.
    pub fn begin(&mut self, epoch: Epoch, position: Sequence, first: bool) {
        let fresh = Reading { read_from: position, next: position.get(), began: self.count, whole: first };
        let reading = self.partitions.entry(epoch).or_insert(fresh);
        if position.get() > reading.next {
            *reading = fresh;
        }
    }

    /// Notes that everything before `position` has been read, whether it became events or not.
    pub fn passed(&mut self, epoch: Epoch, position: u64) {
        if let Some(reading) = self.partitions.get_mut(&epoch) {
            reading.next = reading.next.max(position);
        }
    }

    /// The last position given on a stream.
    pub fn last(&self, stream: &StreamName) -> Option<Position> {
        self.streams.get(stream).map(|state| state.last)
    }

    /// The epochs that a stream has left.
    pub fn left(&self, stream: &StreamName) -> &[Epoch] {
        self.streams.get(stream).map_or(&[], |state| state.left.as_slice())
    }

    /// How the partition of an epoch has been read.
    pub fn reading(&self, epoch: Epoch) -> Option<Reading> {
        self.partitions.get(&epoch).copied()
    }

    /// Where each stream stands, and the epochs it has left: what a checkpoint keeps.
    pub fn streams(&self) -> impl Iterator<Item = (&StreamName, Position, &[Epoch])> {
        self.streams.iter().map(|(name, state)| (name, state.last, state.left.as_slice()))
    }

    /// How each partition has been read: what a checkpoint keeps.
    pub fn partitions(&self) -> impl Iterator<Item = (Epoch, Reading)> {
        self.partitions.iter().map(|(epoch, reading)| (*epoch, *reading))
    }

    /// Takes up what a checkpoint kept of a partition; nothing, if it is known already.
    pub fn restore_partition(&mut self, epoch: Epoch, read_from: Sequence, next: u64) {
        // Whether that was before the last event of a stream of another epoch, a checkpoint does not say.
        self.count = self.count.max(1);
        let whole = read_from == Sequence::ZERO;
        self.partitions.entry(epoch).or_insert(Reading { read_from, next, began: 1, whole });
    }

    /// Takes up what a checkpoint kept of a stream; nothing, if it is known already.
    pub fn restore_stream(&mut self, stream: StreamName, last: Position, left: &[Epoch]) {
        let mut known = LeftEpochs::default();
        known.note(left);
        self.count = self.count.max(1);
        let at_count = self.count;
        self.streams.entry(stream).or_insert(StreamState { last, at_count, left: known });
    }
}
