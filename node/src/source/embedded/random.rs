//! Random numbers that are the same on every machine: ChaCha8 and integer arithmetic, no floating point.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

#[derive(Clone, Debug)]
pub(super) struct Random(ChaCha8Rng);

impl Random {
    /// Streams of one seed are independent of one another.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(stream);
        Self(generator)
    }

    /// A number in `0..bound`; zero for a bound of zero. `bound` is at most 2^32, and small beside it, so that the bias
    /// of the multiplication does not matter.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        (u64::from(self.0.next_u32()) * bound) >> 32
    }

    /// A number in `-reach..=reach`.
    pub(super) fn around(&mut self, reach: i64) -> i64 {
        i64::try_from(self.below(reach.unsigned_abs() * 2 + 1)).unwrap_or(0) - reach
    }

    /// True in `percent` of 100 cases.
    pub(super) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// True once in `times` on average.
    pub(super) fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}
