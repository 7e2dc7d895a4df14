//! Generations of a log: the epochs that it goes through because it lost its end, counted for the reason that
//! `kafka/numbering.rs` gives.

use tickmesh_protocol::Epoch;

use super::{Place, Starts};

/// Generations that are looked for at the start. A log that has lost its end more often has its operators looking at it.
const MAX_GENERATIONS: u32 = 256;

/// The epoch of a partition: of what identifies its log, how a sequence is made of a position, and how often it lost its end.
pub(super) fn epoch_of(log: &str, partition: u32, rule: &str, generation: u32) -> Epoch {
    match generation {
        0 => Epoch::of(log, partition, rule),
        _ => Epoch::of(log, partition, &format!("{rule}/{generation}")),
    }
}

/// The newest generation that something is known of.
pub(super) fn newest_known(starts: &Starts, epoch_of: impl Fn(u32) -> Epoch) -> Option<(u32, Place)> {
    if starts.is_empty() {
        return None;
    }
    (0..MAX_GENERATIONS).rev().find_map(|generation| Some((generation, starts.of(epoch_of(generation))?)))
}
