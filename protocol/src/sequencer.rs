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
//! ```

use std::collections::HashMap;

use crate::{Epoch, Position, Previous, Sequence, StreamName, position::SequenceTooLarge};

/// Epochs that a stream left and may not go back to. A stream that changes its epoch more often than this in one
/// process has an operator looking at it already.
const LEFT_EPOCHS: usize = 8;

/// Gives each record of a log its sequence and `previous`, stream by stream.
#[derive(Debug, Default)]
pub struct Sequencer {
    streams: HashMap<StreamName, StreamState>,
    /// Where reading of each epoch (one per partition) began.
    read_from: HashMap<Epoch, Sequence>,
}

#[derive(Debug)]
struct StreamState {
    last: Position,
    left: Vec<Epoch>,
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
        let read_from = *self.read_from.entry(epoch).or_insert(sequence);
        let now = Position { epoch, sequence };
        let Some(state) = self.streams.get_mut(stream) else {
            self.streams.insert(stream.clone(), StreamState { last: now, left: Vec::new() });
            return Ok((sequence, Previous::Unknown { read_from }));
        };
        if state.last.epoch == epoch {
            let last = state.last.sequence;
            if sequence <= last {
                return Err(Unsequenced::Backward { position, last });
            }
            state.last = now;
            return Ok((sequence, Previous::At(last)));
        }
        if state.left.contains(&epoch) {
            return Err(Unsequenced::LeftEpoch(epoch));
        }
        if state.left.len() == LEFT_EPOCHS {
            state.left.remove(0);
        }
        state.left.push(state.last.epoch);
        state.last = now;
        Ok((sequence, Previous::Unknown { read_from }))
    }

    /// Notes that reading of a partition begins at `position`, before its first record is seen.
    pub fn begin(&mut self, epoch: Epoch, position: Sequence) {
        self.read_from.entry(epoch).or_insert(position);
    }

    /// The last position given on a stream.
    pub fn last(&self, stream: &StreamName) -> Option<Position> {
        self.streams.get(stream).map(|state| state.last)
    }
}
