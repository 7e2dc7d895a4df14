//! Where an event stands on its stream: a [`Sequence`] within an [`Epoch`].
//!
//! The sequence comes from the record's place in its log (a Kafka offset, say), so every ingest peer that reads the
//! same log gives the same event the same number. Numbers rise but need not be consecutive: stream `trades.btc_usdt`
//! may hold offsets 3, 7 and 8 of a partition that other streams share. Whether something is missing between two
//! events is told by [`Previous`]: the event 7 carries "previous 3", the event 8 "previous 7". A client that has 3
//! and receives 8 knows that 7 is missing.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Largest sequence: 2^53 − 1, the largest integer that a JavaScript number holds exactly.
pub const MAX_SEQUENCE: u64 = (1 << 53) - 1;

/// Number of an event on its stream; strictly increasing within an epoch, at most [`MAX_SEQUENCE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Sequence(u64);

/// A number that no sequence can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("sequence {0} is beyond 2^53 - 1")]
pub struct SequenceTooLarge(pub u64);

impl Sequence {
    /// The smallest sequence.
    pub const ZERO: Self = Self(0);

    pub fn new(number: u64) -> Result<Self, SequenceTooLarge> {
        if number <= MAX_SEQUENCE { Ok(Self(number)) } else { Err(SequenceTooLarge(number)) }
    }

    pub fn get(self) -> u64 {
        self.0
    }

    /// The number before; none before zero.
    pub fn before(self) -> Option<Self> {
        self.0.checked_sub(1).map(Self)
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Sequence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(u64::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// Identity of what numbers a stream: log, partition and numbering rule. A recreated log or a moved partition is
/// another epoch, and sequences of different epochs must not be compared. Clients see 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(u64);

impl Epoch {
    /// The epoch of a log partition: a hash of everything that gives its numbers their meaning.
    ///
    /// `log` identifies the log itself (cluster and topic id), not merely its name, where the log system has such an
    /// identity; `rule` names how a sequence is made of a position (`offset`).
    pub fn of(log: &str, partition: u32, rule: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        // Lengths first, so that no two different triples give the same bytes.
        hasher.update(&(log.len() as u64).to_le_bytes()).update(log.as_bytes());
        hasher.update(&partition.to_le_bytes());
        hasher.update(&(rule.len() as u64).to_le_bytes()).update(rule.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        Self(u64::from_le_bytes(first))
    }

    pub const fn from_u64(id: u64) -> Self {
        Self(id)
    }

    pub fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The epochs that a stream has left for another, oldest first: what comes of them later is old. A stream that changes its
/// epoch more often than these hold has an operator looking at it already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftEpochs(Vec<Epoch>);

impl LeftEpochs {
    /// How many are remembered.
    pub const MOST: usize = 8;

    pub fn contains(&self, epoch: Epoch) -> bool {
        self.0.contains(&epoch)
    }

    /// The stream leaves an epoch; the oldest of too many is forgotten.
    pub fn leave(&mut self, epoch: Epoch) {
        if self.contains(epoch) {
            return;
        }
        if self.0.len() == Self::MOST {
            self.0.remove(0);
        }
        self.0.push(epoch);
    }

    /// Epochs that somebody else knows the stream to have left, as far as there is room for them.
    pub fn note(&mut self, epochs: &[Epoch]) {
        for epoch in epochs {
            if self.0.len() < Self::MOST {
                self.leave(*epoch);
            }
        }
    }

    pub fn as_slice(&self) -> &[Epoch] {
        &self.0
    }
}

/// A text that is no epoch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an epoch is 16 hexadecimal digits")]
pub struct InvalidEpoch;

impl FromStr for Epoch {
    type Err = InvalidEpoch;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !hex {
            return Err(InvalidEpoch);
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_| InvalidEpoch)
    }
}

impl Serialize for Epoch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Epoch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A place on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    pub epoch: Epoch,
    pub sequence: Sequence,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.sequence)
    }
}

/// What came before an event on its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Previous {
    /// The event with this sequence, of the same epoch.
    At(Sequence),
    /// Not known: it is the first that its publisher saw of this stream. The publisher has read everything of the log
    /// from `read_from` on, so whoever has the stream up to the number before `read_from`, or later, has missed nothing.
    Unknown { read_from: Sequence },
    /// It is the first of its epoch. The last event before, of another epoch, has this position.
    Reset { after: Position },
}

impl Previous {
    /// The sequence before, if it is known and of the same epoch.
    pub fn sequence(self) -> Option<Sequence> {
        match self {
            Self::At(sequence) => Some(sequence),
            Self::Unknown { .. } | Self::Reset { .. } => None,
        }
    }
}
