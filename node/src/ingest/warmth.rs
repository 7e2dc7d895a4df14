//! Whether a source has been read up to its log's end since this peer started: until then the peer neither ranks nor
//! publishes, since its siblings have published all of that already. Pure.

use std::collections::HashSet;

use tickmesh_protocol::Epoch;

/// How far one source is.
#[derive(Debug, Default)]
pub(super) struct Warmth {
    warm: bool,
    /// Partitions that have begun and not reached their end yet.
    reading: HashSet<Epoch>,
    begun: bool,
}

impl Warmth {
    pub(super) fn is_warm(&self) -> bool {
        self.warm
    }

    /// Reading of a partition begins.
    pub(super) fn begun(&mut self, epoch: Epoch) {
        self.begun = true;
        if !self.warm {
            self.reading.insert(epoch);
        }
    }

    /// A partition was read to its end. Whether the source has become warm by that; it stays so, whatever appears later.
    pub(super) fn reached(&mut self, epoch: Epoch) -> bool {
        self.reading.remove(&epoch);
        let now_warm = !self.warm && self.begun && self.reading.is_empty();
        self.warm |= now_warm;
        now_warm
    }

    /// Whether events of a partition are still those of before the start.
    pub(super) fn replays(&self, epoch: Epoch) -> bool {
        !self.warm && self.reading.contains(&epoch)
    }
}
